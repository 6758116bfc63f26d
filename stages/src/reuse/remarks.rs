//! What rows did besides their columns, as a small table that is only there when some row did something.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, UInt64Array};
use pipe_engine::task::{Context, TaskError};

use super::BATCH_ROWS;
use crate::rows::{Batches, REMARKS_FILE, TableWriter, batches, shapes, text_column, typed};

/// One thing that a row did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    pub split: String,
    /// Place in the split's input, from 0.
    pub row: u64,
    pub row_id: String,
    pub what: String,
    pub count: u64,
}

/// Writes remarks in the order of splits and rows.
pub struct RemarkWriter {
    path: PathBuf,
    pending: Vec<Remark>,
    table: Option<TableWriter>,
}

impl RemarkWriter {
    pub fn new(ctx: &Context) -> RemarkWriter {
        RemarkWriter { path: ctx.out().join(REMARKS_FILE), pending: Vec::new(), table: None }
    }

    pub fn push(&mut self, remark: Remark) -> Result<(), TaskError> {
        self.pending.push(remark);
        if self.pending.len() < BATCH_ROWS { Ok(()) } else { self.flush() }
    }

    pub fn finish(mut self) -> Result<(), TaskError> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        self.table.map_or(Ok(0), TableWriter::finish).map(|_| ())
    }

    fn flush(&mut self) -> Result<(), TaskError> {
        let batch = batch(&std::mem::take(&mut self.pending))?;
        if self.table.is_none() {
            self.table = Some(TableWriter::create(&self.path, shapes::remarks())?);
        }
        self.table.as_mut().map_or(Ok(()), |table| table.write(&batch))
    }
}

fn batch(remarks: &[Remark]) -> Result<RecordBatch, TaskError> {
    let texts =
        |of: fn(&Remark) -> &String| -> ArrayRef { Arc::new(StringArray::from_iter_values(remarks.iter().map(of))) };
    let numbers =
        |of: fn(&Remark) -> u64| -> ArrayRef { Arc::new(UInt64Array::from_iter_values(remarks.iter().map(of))) };
    let columns = vec![
        texts(|remark| &remark.split),
        numbers(|remark| remark.row),
        texts(|remark| &remark.row_id),
        texts(|remark| &remark.what),
        numbers(|remark| remark.count),
    ];
    RecordBatch::try_new(shapes::remarks(), columns).map_err(|error| TaskError::Failed(error.to_string()))
}

/// Reads what the earlier output says of one split's rows, in their order.
#[derive(Default)]
pub struct RemarkReader {
    split: String,
    batches: Option<Batches>,
    /// Read and not yet passed, the next one last.
    ahead: Vec<Remark>,
}

impl RemarkReader {
    /// Of the earlier output; empty where it says nothing.
    pub fn open(ctx: &Context, split: &str) -> Result<RemarkReader, TaskError> {
        let path = ctx.earlier.as_ref().map(|earlier| earlier.output.join(REMARKS_FILE));
        let Some(path) = path.filter(|path| path.exists()) else { return Ok(RemarkReader::default()) };
        let batches = batches(&path, &["split", "row", "row_id", "what", "count"], BATCH_ROWS)?;
        Ok(RemarkReader { split: split.to_string(), batches: Some(batches), ahead: Vec::new() })
    }

    /// Goes on to `row` and returns what is said of it; `passed` sees the remarks on the way.
    pub fn of(&mut self, row: u64, mut passed: impl FnMut(&Remark)) -> Result<Vec<Remark>, TaskError> {
        let mut said = Vec::new();
        while self.is_due(row)? {
            if let Some(remark) = self.ahead.pop() {
                if remark.row == row { said.push(remark) } else { passed(&remark) }
            }
        }
        Ok(said)
    }

    /// Whether the next remark is about `row` or one before it.
    fn is_due(&mut self, row: u64) -> Result<bool, TaskError> {
        while self.ahead.is_empty() {
            let Some(batch) = self.batches.as_mut().and_then(Iterator::next) else { return Ok(false) };
            self.ahead = remarks(&batch?)?;
            self.ahead.retain(|remark| remark.split == self.split);
            self.ahead.reverse();
        }
        Ok(self.ahead.last().is_some_and(|remark| remark.row <= row))
    }
}

fn remarks(batch: &RecordBatch) -> Result<Vec<Remark>, TaskError> {
    let text = |name| text_column(batch, name);
    let number = |name| typed::<UInt64Array>(batch, name);
    let (splits, ids, whats) = (text("split")?, text("row_id")?, text("what")?);
    let (rows, counts) = (number("row")?, number("count")?);
    let remark = |i: usize| Remark {
        split: splits.value(i).to_string(),
        row: rows.value(i),
        row_id: ids.value(i).to_string(),
        what: whats.value(i).to_string(),
        count: counts.value(i),
    };
    Ok((0..splits.len()).map(remark).collect())
}
