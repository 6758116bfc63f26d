//! Runs one task outside the engine, for tests of stages.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::Array;
use pipe_engine::event::Silent;
use pipe_engine::plan::NodeName;
use pipe_engine::task::{Cancel, Context, Summary, Task, TaskError};
use tempfile::TempDir;

use super::{batches, text_column};

/// A task's output folder and what it said.
pub struct Done {
    pub dir: TempDir,
    pub summary: Summary,
}

/// Runs a task on inputs by role; source files are taken from the task itself.
pub fn run(task: &dyn Task, node: &str, inputs: &[(&str, &Path)]) -> Result<Done, TaskError> {
    let dir = tempfile::tempdir().unwrap();
    let ctx = Context {
        node: NodeName::new(node),
        inputs: inputs.iter().map(|(role, path)| (role.to_string(), path.to_path_buf())).collect(),
        files: task.files().into_iter().map(|file| (file.role, file.path)).collect(),
        earlier: None,
        out: dir.path().to_path_buf(),
        work: dir.path().join("work"),
        kept: dir.path().join("kept"),
        threads: 2,
        cancel: Cancel::default(),
        sink: Arc::new(Silent),
        read: Default::default(),
    };
    let summary = task.run(&ctx)?;
    Ok(Done { dir, summary })
}

impl Done {
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }

    /// A text column, whole; null as empty.
    pub fn texts(&self, file: &str, column: &str) -> Vec<String> {
        let mut texts = Vec::new();
        for batch in batches(&self.path(file), &[column], 100).unwrap() {
            let batch = batch.unwrap();
            let column = text_column(&batch, column).unwrap();
            texts.extend((0..column.len()).map(|i| column.value(i).to_string()));
        }
        texts
    }

    pub fn stat(&self, name: &str) -> u64 {
        self.summary.stats.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0)
    }
}
