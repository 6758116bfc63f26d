//! General text, measured before and after: what a model forgot shows as a loss that rose.
//!
//! Text is cut into windows of a sequence's length, each with the last token of the one before it as its context, so that
//! every token is predicted once (lm-evaluation-harness' rolling log-likelihood with a context of one token).

use std::path::Path;

use pipe_engine::task::TaskError;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::documents::{Document, json_rows, write_packs};

/// The split that general text is filed under.
pub const SPLIT: &str = "general";

/// Writes the windows of all texts as documents; a text of one token has none. Returns how many there are.
///
/// # Errors
/// `TaskError::Input` where a file holds no text.
pub fn write(files: &[&Path], sequence_len: usize, tokenizer: &Tokenizer, path: &Path) -> Result<usize, TaskError> {
    let mut documents = Vec::new();
    for file in files {
        let before = documents.len();
        for text in texts(file)? {
            let encoding = tokenizer.encode(text.as_str(), true);
            let encoding = encoding.map_err(|e| TaskError::Failed(format!("tokenising {}: {e}", file.display())))?;
            windows(encoding.get_ids(), sequence_len, &mut documents);
        }
        if documents.len() == before {
            return Err(TaskError::Input(format!("eval.general: there is no text in {}", file.display())));
        }
    }
    write_packs(&documents, path)?;
    Ok(documents.len())
}

fn windows(ids: &[u32], sequence_len: usize, documents: &mut Vec<Document>) {
    let step = sequence_len.max(2) - 1;
    let mut start = 0;
    while start + 1 < ids.len() {
        let end = (start + 1 + step).min(ids.len());
        documents.push(Document::new(format!("{:08}", documents.len()), &ids[start..=start], &ids[start + 1..end]));
        start = end - 1;
    }
}

/// The texts of a file: the `text` column of JSON and JSONL, all of any other file.
fn texts(path: &Path) -> Result<Vec<String>, TaskError> {
    let json = path.extension().is_some_and(|kind| kind == "json" || kind == "jsonl");
    if !json {
        let text = std::fs::read_to_string(path);
        return Ok(vec![text.map_err(|e| TaskError::Input(format!("eval.general: {}: {e}", path.display())))?]);
    }
    let text = |(place, row): (usize, Value)| match row.get("text").and_then(Value::as_str) {
        Some(text) => Ok(text.to_string()),
        None => Err(TaskError::Input(format!("{}:{}: there is no `text` (eval.general)", path.display(), place + 1))),
    };
    json_rows(path)?.into_iter().enumerate().map(text).collect()
}
