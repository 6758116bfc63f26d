//! Where a row came from, for errors of stages that know rows by their ids only.

use std::path::Path;

use arrow::array::{Array, UInt16Array, UInt64Array};
use pipe_engine::schedule::Above;
use pipe_engine::task::TaskError;

use crate::rows::{LINEAGE_FILE, ROWS_FILE, batches, text_column, typed};

const ID_DIGITS: usize = 32;
const BATCH_ROWS: usize = 8192;

/// The file and place of the row whose id an error names (`row ID: ...`), found through what the stages above made.
pub fn place_of_row(error: &str, above: &[Above]) -> Option<String> {
    let mut id = named_row(error)?.to_string();
    for node in above.iter().rev() {
        if let Ok(Some(from)) = earlier_id(&node.output.join(LINEAGE_FILE), &id) {
            id = from;
        }
        if node.task.stage() == "ingest"
            && let Ok(Some((source, row))) = source_of(&node.output.join(ROWS_FILE), &id)
        {
            let file = node.task.files().into_iter().nth(source)?;
            return Some(format!("this row is {}:{row}", file.path.display()));
        }
    }
    None
}

fn named_row(error: &str) -> Option<&str> {
    let is_id = |word: &&str| word.len() == ID_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    error.split(|c: char| !c.is_ascii_alphanumeric()).find(is_id)
}

/// The id that a row had before a stage renamed it.
fn earlier_id(lineage: &Path, id: &str) -> Result<Option<String>, TaskError> {
    if !lineage.is_file() {
        return Ok(None);
    }
    for batch in batches(lineage, &["row_id", "from"], BATCH_ROWS)? {
        let batch = batch?;
        let (ids, from) = (text_column(&batch, "row_id")?, text_column(&batch, "from")?);
        if let Some(i) = (0..ids.len()).find(|&i| ids.value(i) == id) {
            return Ok(Some(from.value(i).to_string()));
        }
    }
    Ok(None)
}

/// Which of a dataset's files a row is in, and its place there.
fn source_of(rows: &Path, id: &str) -> Result<Option<(usize, u64)>, TaskError> {
    for batch in batches(rows, &["row_id", "row", "source"], BATCH_ROWS)? {
        let batch = batch?;
        let ids = text_column(&batch, "row_id")?;
        if let Some(i) = (0..ids.len()).find(|&i| ids.value(i) == id) {
            let (places, sources) = (typed::<UInt64Array>(&batch, "row")?, typed::<UInt16Array>(&batch, "source")?);
            return Ok(Some((usize::from(sources.value(i)), places.value(i))));
        }
    }
    Ok(None)
}
