//! The Parquet files that hold token rows and packs, read whole columns at a time.

use std::fs::File;
use std::path::Path;

use arrow::array::{Array, Int32Array, ListArray, RecordBatch, StringArray, UInt16Array};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::loss::IGNORED;
use crate::{ModelError, Result};

/// One row of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    pub row_id: String,
    pub ids: Vec<i64>,
    pub labels: Vec<i64>,
}

/// One pack: documents laid end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackRow {
    pub ids: Vec<i64>,
    pub labels: Vec<i64>,
    pub lengths: Vec<i64>,
    /// Row of each document.
    pub row_ids: Vec<String>,
    /// Dataset of each document, from 0.
    pub sources: Vec<u16>,
}

impl PackRow {
    /// Lays another pack's documents behind these.
    pub fn extend(&mut self, other: PackRow) {
        self.ids.extend(other.ids);
        self.labels.extend(other.labels);
        self.lengths.extend(other.lengths);
        self.row_ids.extend(other.row_ids);
        self.sources.extend(other.sources);
    }
}

impl TokenRow {
    /// The ids before the first trained label: what the model is asked.
    pub fn prompt(&self) -> &[i64] {
        let end = self.labels.iter().position(|&label| label != IGNORED).unwrap_or(self.ids.len());
        &self.ids[..end]
    }
}

/// All rows of a tokenize stage's file.
pub fn read_tokens(path: &Path) -> Result<Vec<TokenRow>> {
    let mut rows = Vec::new();
    each_batch(path, &["row_id", "input_ids", "labels"], |batch| {
        let names = column::<StringArray>(path, batch, "row_id")?;
        for i in 0..batch.num_rows() {
            let ids = ints(path, batch, "input_ids", i)?;
            let labels = ints(path, batch, "labels", i)?;
            equal(path, ids.len(), labels.len())?;
            rows.push(TokenRow { row_id: names.value(i).to_owned(), ids, labels });
        }
        Ok(())
    })?;
    Ok(rows)
}

/// Hands over the packs of a pack stage's file, one after the other.
pub fn each_pack(path: &Path, mut take: impl FnMut(PackRow) -> Result<()>) -> Result<()> {
    each_batch(path, &["input_ids", "labels", "lengths", "row_ids", "sources"], |batch| {
        for i in 0..batch.num_rows() {
            let ids = ints(path, batch, "input_ids", i)?;
            let labels = ints(path, batch, "labels", i)?;
            let lengths = ints(path, batch, "lengths", i)?;
            equal(path, ids.len(), labels.len())?;
            equal(path, ids.len(), lengths.iter().sum::<i64>() as usize)?;
            let row_ids = item::<StringArray>(path, batch, "row_ids", i)?;
            let sources = item::<UInt16Array>(path, batch, "sources", i)?;
            equal(path, lengths.len(), row_ids.len())?;
            equal(path, lengths.len(), sources.len())?;
            let row_ids = row_ids.iter().map(|id| id.unwrap_or_default().to_string()).collect();
            take(PackRow { ids, labels, lengths, row_ids, sources: sources.values().to_vec() })?;
        }
        Ok(())
    })
}

/// Rows in a file, from its footer.
pub fn count(path: &Path) -> Result<u64> {
    let builder = open(path)?;
    Ok(u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0))
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| broken(path, &e.to_string()))
}

fn each_batch(path: &Path, columns: &[&str], mut take: impl FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
    let builder = open(path)?;
    let schema = builder.schema().clone();
    let roots = columns.iter().map(|c| schema.index_of(c).map_err(|_| broken(path, &format!("it has no column {c}"))));
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots.collect::<Result<Vec<_>>>()?);
    let reader = builder.with_projection(mask).with_batch_size(256).build();
    for batch in reader.map_err(|e| broken(path, &e.to_string()))? {
        take(&batch.map_err(|e| broken(path, &e.to_string()))?)?;
    }
    Ok(())
}

fn column<'a, A: Array + 'static>(path: &Path, batch: &'a RecordBatch, name: &str) -> Result<&'a A> {
    let found = batch.column_by_name(name).and_then(|c| c.as_any().downcast_ref::<A>());
    found.ok_or_else(|| broken(path, &format!("its column {name} has an unexpected type")))
}

fn ints(path: &Path, batch: &RecordBatch, name: &str, row: usize) -> Result<Vec<i64>> {
    Ok(item::<Int32Array>(path, batch, name, row)?.values().iter().map(|&v| i64::from(v)).collect())
}

/// One row of a list column.
fn item<A: Array + Clone + 'static>(path: &Path, batch: &RecordBatch, name: &str, row: usize) -> Result<A> {
    let list = column::<ListArray>(path, batch, name)?.value(row);
    let values = list.as_any().downcast_ref::<A>().cloned();
    values.ok_or_else(|| broken(path, &format!("the lists in its column {name} have an unexpected type")))
}

fn equal(path: &Path, tokens: usize, others: usize) -> Result<()> {
    if tokens == others {
        return Ok(());
    }
    Err(broken(path, &format!("a row has {tokens} tokens or documents, but {others} that belong to them")))
}

fn broken(path: &Path, what: &str) -> ModelError {
    ModelError::input(format!(
        "{} is not a table of token rows: {what}; run the stage that wrote it again",
        path.display()
    ))
}
