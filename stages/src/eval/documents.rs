//! Documents that evaluation makes itself, as packs: the worker measures them as it measures any.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, RecordBatch, StringBuilder, UInt16Builder};
use pipe_engine::task::TaskError;
use serde_json::Value;

use crate::rows::{TableWriter, int_lists, shapes};

const MASKED: i32 = -100;
/// Documents per batch that is written.
const BATCH: usize = 1024;

/// Tokens with labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    name: String,
    ids: Vec<i32>,
    labels: Vec<i32>,
}

impl Document {
    /// Tokens that are given, and those that are measured.
    pub fn new(name: String, given: &[u32], measured: &[u32]) -> Document {
        let ids: Vec<i32> = given.iter().chain(measured).map(|&id| id as i32).collect();
        let mut labels = ids.clone();
        labels[..given.len()].fill(MASKED);
        Document { name, ids, labels }
    }

    /// Cuts tokens off the front where there are too many; whether it did.
    pub fn keep_last(&mut self, most: usize) -> bool {
        let excess = self.ids.len().saturating_sub(most.max(2));
        self.ids.drain(..excess);
        self.labels.drain(..excess);
        excess > 0
    }
}

/// Writes a table of packs with one document each.
pub fn write_packs(documents: &[Document], path: &Path) -> Result<(), TaskError> {
    let mut writer = TableWriter::create(path, shapes::packs())?;
    for documents in documents.chunks(BATCH) {
        let mut ends = Vec::new();
        let (mut ids, mut labels, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        let (mut names, mut sources) = (ListBuilder::new(StringBuilder::new()), ListBuilder::new(UInt16Builder::new()));
        for document in documents {
            ids.extend_from_slice(&document.ids);
            labels.extend_from_slice(&document.labels);
            positions.extend(0..document.ids.len() as i32);
            ends.push(ids.len() as i32);
            names.append_value([Some(&document.name)]);
            sources.append_value([Some(0)]);
        }
        let one_each: Vec<i32> = (1..=documents.len() as i32).collect();
        let columns: Vec<ArrayRef> = vec![
            int_lists(ids.clone(), &ends),
            int_lists(labels, &ends),
            int_lists(positions, &ends),
            int_lists(vec![1; ids.len()], &ends),
            Arc::new(names.finish()),
            int_lists(documents.iter().map(|document| document.ids.len() as i32).collect(), &one_each),
            Arc::new(sources.finish()),
        ];
        let batch = RecordBatch::try_new(shapes::packs(), columns);
        writer.write(&batch.map_err(|e| TaskError::Failed(e.to_string()))?)?;
    }
    writer.finish().map(|_| ())
}

/// Rows of a JSON list, or of a file with one JSON value a line.
///
/// # Errors
/// `TaskError::Input` with the line that is no JSON.
pub fn json_rows(path: &Path) -> Result<Vec<Value>, TaskError> {
    let text = std::fs::read_to_string(path).map_err(|e| TaskError::Input(format!("{}: {e}", path.display())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|e| TaskError::Input(format!("{}: {e}", path.display())));
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let row = |(place, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|e| TaskError::Input(format!("{}:{}: the line is no JSON: {e}", path.display(), place + 1)))
    };
    lines.map(row).collect()
}
