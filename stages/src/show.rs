//! `show`: what a node produced, as plain rows, whichever stage made them.
//!
//! Reads Parquet tables of stored outputs and nothing else; tokens get their texts from the tokenizer, and their roles from what
//! template rendered. It prints nothing.

mod place;
mod roles;
mod spread;

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float32Type, Float64Type, Int8Type, Int32Type, Int64Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow::record_batch::RecordBatchReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_engine::task::TaskError;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

pub use self::place::place_of_row;
pub use self::roles::Roles;
pub use self::spread::{Spread, spreads};
use crate::compile::{base_model, tokenizer_path};
use crate::conversation::Example;
use crate::project::Project;
use crate::recipe::Recipe;
use crate::rows::{LINEAGE_FILE, REMARKS_FILE};

/// One row of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// File stem of the table (`train`, `rows`, `packs`).
    pub table: String,
    /// Columns by name, in the table's order; for tokens, `text` is added.
    pub values: Map<String, Value>,
    /// Empty for rows without `input_ids`, and without a tokenizer.
    pub tokens: Vec<Token>,
}

/// A token of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    pub id: i64,
    pub text: String,
    pub trained: bool,
    /// Counts documents within a pack, from 1; 0 outside packs.
    pub segment: i64,
    /// Where its text begins in the row's, in characters.
    pub start: usize,
    pub end: usize,
    /// Who wrote it; empty for what the template put around messages, and where that is not known.
    pub role: String,
}

/// At most `limit` rows of the tables in `output`, or all rows with the id `row_id`.
pub fn rows(
    output: &Path,
    limit: usize,
    row_id: Option<&str>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Row>, TaskError> {
    let mut found = Vec::new();
    for path in tables(output)? {
        let table = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let reader = open(&path)?;
        for batch in reader {
            let batch = batch.map_err(|e| TaskError::Failed(format!("{}: {e}", path.display())))?;
            for i in 0..batch.num_rows() {
                if found.len() >= limit {
                    return Ok(found);
                }
                let values = values(&batch, i);
                if row_id.is_none_or(|wanted| has_id(&values, wanted)) {
                    found.push(row(&table, values, tokenizer));
                }
            }
        }
    }
    Ok(found)
}

/// The tokenizer at `path`; `None` where there is none that can be read.
pub fn tokenizer(path: &Path) -> Option<Tokenizer> {
    pipe_files::tokenizer(path).ok()
}

/// Where the tokenizer of a recipe's rows is, as its stages look for it.
pub fn tokenizer_of(recipe: &Recipe, project: &Project) -> Option<PathBuf> {
    tokenizer_path(recipe, project, base_model(recipe, project).as_ref())
}

fn tables(output: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let failed = || TaskError::io(format!("listing {}", output.display()));
    let entries = std::fs::read_dir(output).map_err(failed())?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "parquet"));
    // Rows alone: not where they came from, nor what was said of them.
    paths.retain(|path| path.file_name().is_some_and(|name| name != LINEAGE_FILE && name != REMARKS_FILE));
    paths.sort();
    Ok(paths)
}

fn open(path: &Path) -> Result<impl RecordBatchReader, TaskError> {
    let file = std::fs::File::open(path).map_err(TaskError::io(format!("opening {}", path.display())))?;
    let broken = |e: parquet::errors::ParquetError| TaskError::Failed(format!("{}: {e}", path.display()));
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken)?;
    builder.with_batch_size(256).build().map_err(broken)
}

fn has_id(values: &Map<String, Value>, wanted: &str) -> bool {
    let matches = |value: &Value| value.as_str().is_some_and(|id| id.starts_with(wanted));
    let one = values.get("row_id").is_some_and(matches);
    one || values.get("row_ids").and_then(Value::as_array).is_some_and(|ids| ids.iter().any(matches))
}

fn row(table: &str, mut values: Map<String, Value>, tokenizer: Option<&Tokenizer>) -> Row {
    let ids = numbers(&values, "input_ids");
    let labels = numbers(&values, "labels");
    let segments = numbers(&values, "segment_ids");
    let mut tokens = Vec::new();
    if let Some(tokenizer) = tokenizer.filter(|_| !ids.is_empty()) {
        let texts = texts(tokenizer, &ids);
        values.insert("text".to_string(), json!(texts.concat()));
        let mut start = 0;
        for (i, text) in texts.into_iter().enumerate() {
            let end = start + text.chars().count();
            let trained = labels.get(i).is_some_and(|&label| label != -100);
            let segment = segments.get(i).copied().unwrap_or(0);
            tokens.push(Token { id: ids[i], text, trained, segment, start, end, role: String::new() });
            start = end;
        }
    }
    Row { table: table.to_string(), values, tokens }
}

/// What was said in a row of examples: roles and texts, in order; `None` for other rows.
pub fn said(row: &Row) -> Option<Vec<(String, String)>> {
    let example = Example::parse(row.values.get("data")?.as_str()?).ok()?;
    let pair = |role: &str, text: &str| (role.to_string(), text.to_string());
    Some(match &example {
        Example::Chat { messages, tools } => {
            let tools = tools.iter().filter(|tools| !tools.is_null()).map(|tools| pair("tools", &tools.to_string()));
            tools.chain(messages.iter().flat_map(roles::message)).collect()
        }
        Example::Instruct { system, instruction, input, output } => {
            let parts = [("instruction", instruction), ("input", input), ("output", output)];
            let system = system.iter().map(|text| ("system", text));
            system.chain(parts).filter(|(_, text)| !text.is_empty()).map(|(role, text)| pair(role, text)).collect()
        }
        Example::Completion { text } => vec![pair("text", text)],
        Example::Segments { segments } => {
            segments.iter().map(|s| pair(if s.label { "trained" } else { "masked" }, &s.text)).collect()
        }
        Example::Tokens { .. } => return None,
    })
}

/// Each id's text. A character spread over several ids belongs to the last of them, so the texts joined are the row's.
fn texts(tokenizer: &Tokenizer, ids: &[i64]) -> Vec<String> {
    let mut stream = tokenizer.decode_stream(false);
    let piece = |id: &i64| u32::try_from(*id).ok().and_then(|id| stream.step(id).ok().flatten()).unwrap_or_default();
    ids.iter().map(piece).collect()
}

fn numbers(values: &Map<String, Value>, column: &str) -> Vec<i64> {
    let list = values.get(column).and_then(Value::as_array);
    list.map(|list| list.iter().filter_map(Value::as_i64).collect()).unwrap_or_default()
}

fn values(batch: &RecordBatch, i: usize) -> Map<String, Value> {
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(batch.columns());
    fields.map(|(field, column)| (field.name().clone(), value(column.as_ref(), i))).collect()
}

fn value(array: &dyn Array, i: usize) -> Value {
    if array.is_null(i) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Utf8 => json!(array.as_string::<i32>().value(i)),
        DataType::LargeUtf8 => json!(array.as_string::<i64>().value(i)),
        DataType::Boolean => json!(array.as_boolean().value(i)),
        DataType::Int8 => number::<Int8Type>(array, i),
        DataType::Int32 => number::<Int32Type>(array, i),
        DataType::Int64 => number::<Int64Type>(array, i),
        DataType::UInt16 => number::<UInt16Type>(array, i),
        DataType::UInt32 => number::<UInt32Type>(array, i),
        DataType::UInt64 => number::<UInt64Type>(array, i),
        DataType::Float32 => number::<Float32Type>(array, i),
        DataType::Float64 => number::<Float64Type>(array, i),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(i);
            Value::Array((0..items.len()).map(|j| value(items.as_ref(), j)).collect())
        }
        other => json!(format!("({other})")),
    }
}

fn number<T: ArrowPrimitiveType>(array: &dyn Array, i: usize) -> Value
where
    T::Native: Into<Value>,
{
    array.as_primitive::<T>().value(i).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rows::{TableWriter, shapes};
    use arrow::array::{ArrayRef, Int32Array, ListArray, StringArray};
    use std::sync::Arc;

    fn ints(values: &[i32]) -> ArrayRef {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(
            values.iter().map(|&v| Some(v)).collect::<Vec<_>>(),
        )]);
        Arc::new(list)
    }

    #[test]
    fn rows_come_out_by_name_and_id() {
        let folder = tempfile::tempdir().unwrap();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec!["abc"])),
            ints(&[1, 2]),
            ints(&[-100, 2]),
            Arc::new(Int32Array::from(vec![2])),
        ];
        let schema = shapes::tokens();
        let fixed = schema
            .fields()
            .iter()
            .zip(columns)
            .map(|(field, column)| arrow::compute::cast(&column, field.data_type()).unwrap());
        let batch = RecordBatch::try_new(schema.clone(), fixed.collect()).unwrap();
        let mut writer = TableWriter::create(&folder.path().join("train.parquet"), schema).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        // What was said of rows is no row.
        std::fs::copy(folder.path().join("train.parquet"), folder.path().join(REMARKS_FILE)).unwrap();
        let found = rows(folder.path(), 5, None, None).unwrap();
        assert_eq!((found.len(), found[0].table.as_str()), (1, "train"));
        assert_eq!(found[0].values["labels"], json!([-100, 2]));
        assert_eq!(rows(folder.path(), 5, Some("ab"), None).unwrap().len(), 1);
        assert!(rows(folder.path(), 5, Some("x"), None).unwrap().is_empty());
    }
}
