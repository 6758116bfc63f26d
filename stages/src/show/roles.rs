//! Who wrote which token: what template rendered, laid over the tokens' texts.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use pipe_engine::task::TaskError;
use serde_json::{Map, Value};

use super::{Row, tables};
use crate::rows::{batches, text_column};

const COLUMNS: [&str; 5] = ["row_id", "text", "span_starts", "span_ends", "span_roles"];
const ROWS_PER_BATCH: usize = 1024;

/// Rendered rows by id.
#[derive(Default)]
pub struct Roles {
    rows: HashMap<String, Rendered>,
}

struct Rendered {
    text: String,
    /// Start, end (in bytes) and role of each message.
    spans: Vec<(usize, usize, String)>,
}

impl Roles {
    /// Reads what template rendered for these rows, from its outputs. Outputs that hold no such rows are no error.
    pub fn read(outputs: &[&Path], rows: &[Row]) -> Result<Roles, TaskError> {
        let wanted: HashSet<&str> = rows.iter().flat_map(row_ids).collect();
        let mut roles = Roles::default();
        for path in outputs.iter().filter_map(|output| tables(output).ok()).flatten() {
            let Ok(reader) = batches(&path, &COLUMNS, ROWS_PER_BATCH) else { continue };
            for batch in reader {
                if roles.rows.len() == wanted.len() {
                    return Ok(roles);
                }
                let batch = batch?;
                let ids = text_column(&batch, "row_id")?;
                for i in (0..batch.num_rows()).filter(|&i| wanted.contains(ids.value(i))) {
                    roles.rows.insert(ids.value(i).to_string(), rendered(&batch, i)?);
                }
            }
        }
        Ok(roles)
    }

    /// Says of every token who wrote it, where the tokens' texts are what was rendered.
    pub fn annotate(&self, row: &mut Row) {
        let ids: Vec<String> = row_ids(row).map(str::to_string).collect();
        let documents = row.tokens.chunk_by_mut(|a, b| a.segment == b.segment);
        for (tokens, id) in documents.zip(ids) {
            let Some(rendered) = self.rows.get(&id) else { continue };
            let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
            // A tokenizer may put a token of its own before what was rendered.
            let Some(shift) = text.find(&rendered.text) else { continue };
            let mut start = 0;
            for token in tokens {
                let end = start + token.text.len();
                let overlap = |(from, to, _): &&(usize, usize, String)| {
                    end.min(to + shift).saturating_sub(start.max(from + shift))
                };
                let best = rendered.spans.iter().max_by_key(overlap).filter(|span| overlap(span) > 0);
                token.role = best.map(|(_, _, role)| role.clone()).unwrap_or_default();
                start = end;
            }
        }
    }
}

/// Role and text of a message; calls to tools as they stand.
pub fn message(message: &Map<String, Value>) -> Vec<(String, String)> {
    let role = message.get("role").and_then(Value::as_str).unwrap_or("?").to_string();
    let part = |part: &Value| part.get("text").and_then(Value::as_str).unwrap_or_default().to_string();
    let text = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().map(part).collect(),
        _ => String::new(),
    };
    let thought = ["reasoning_content", "thinking"].iter().find_map(|key| message.get(*key)?.as_str());
    let calls = message.get("tool_calls").filter(|calls| !calls.is_null());
    let thought = thought.map(|text| (format!("{role} thinks"), text.to_string()));
    let calls = calls.map(|calls| (format!("{role} calls"), calls.to_string()));
    let spoke = !text.is_empty() || (thought.is_none() && calls.is_none());
    thought.into_iter().chain(spoke.then(|| (role.clone(), text))).chain(calls).collect()
}

fn row_ids(row: &Row) -> impl Iterator<Item = &str> {
    let one = row.values.get("row_id").and_then(Value::as_str);
    let many = row.values.get("row_ids").and_then(Value::as_array);
    one.into_iter().chain(many.into_iter().flatten().filter_map(Value::as_str))
}

fn rendered(batch: &arrow::array::RecordBatch, i: usize) -> Result<Rendered, TaskError> {
    let broken = || TaskError::Failed("a rendered row between stages has other columns than it should".to_string());
    let list = |column: usize| batch.column(column).as_list_opt::<i32>().map(|list| list.value(i)).ok_or_else(broken);
    let (starts, ends, roles) = (list(2)?, list(3)?, list(4)?);
    let (starts, ends) = (starts.as_primitive_opt::<Int32Type>(), ends.as_primitive_opt::<Int32Type>());
    let (Some(starts), Some(ends), Some(roles)) = (starts, ends, roles.as_string_opt::<i32>()) else {
        return Err(broken());
    };
    let span = |k: usize| (starts.value(k) as usize, ends.value(k) as usize, roles.value(k).to_string());
    let text = text_column(batch, "text")?.value(i).to_string();
    Ok(Rendered { text, spans: (0..starts.len()).map(span).collect() })
}
