//! `quantize`: a model as GGUF files of the wanted types, or as folders in bitsandbytes' layout, tokenizer and chat template
//! inside.

use std::path::{Path, PathBuf};

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError, View};
use pipe_job::QuantizeJob;
use serde_json::{Value, json};

use crate::companions::tokenizer_part;
use crate::model::BaseModel;
use crate::recipe::QuantType;
use crate::worker::Worker;

/// Quantises the merged model, or the base model where nothing was merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantize {
    pub types: Vec<QuantType>,
    /// An importance matrix that lies outside the store; one that was measured here is the input `importance`.
    pub importance: Option<PathBuf>,
    /// Read when there is no `model` input.
    pub model: BaseModel,
    pub merged: bool,
    pub worker: Worker,
}

impl Task for Quantize {
    fn stage(&self) -> &'static str {
        "quantize"
    }

    fn version(&self) -> String {
        format!("4+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        json!({ "types": self.types.iter().map(|t| t.name()).collect::<Vec<_>>() })
    }

    fn files(&self) -> Vec<SourceFile> {
        let guide = |path: &PathBuf| SourceFile { role: "importance".into(), path: path.clone(), view: View::Whole };
        let mut files: Vec<SourceFile> = self.importance.iter().map(guide).collect();
        if self.merged {
            return files;
        }
        files.extend(self.model.weight_sources());
        files.push(SourceFile {
            role: "tokenizer".into(),
            path: self.model.path.clone(),
            view: View::Part { name: "tokenizer-files", bytes: tokenizer_part },
        });
        files
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, gpus: 1, weight: 50 }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let model = match ctx.input_opt("model") {
            Some(merged) => merged.to_path_buf(),
            None => {
                self.model.require()?;
                self.model.path.clone()
            }
        };
        let outputs = self.types.iter().map(|kind| (kind.name(), ctx.out().join(file_name(*kind)))).collect();
        let importance = ctx.input_opt("importance").map(Path::to_path_buf).or(self.importance.clone());
        let job = QuantizeJob { model, outputs, importance };
        let report = self.worker.run(pipe_job::Task::Quantize(Box::new(job)), ctx)?;
        Ok(report.into_summary())
    }
}

/// What a type's output is called in the node's folder.
pub fn file_name(kind: QuantType) -> String {
    let end = if kind.is_gguf() { ".gguf" } else { "" };
    format!("model-{}{end}", kind.name())
}
