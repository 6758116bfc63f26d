//! Rows taken over from an earlier output: whatever a row function made of byte-equal columns is copied, not made again.
//!
//! A stage that works by rows compares its input with the one its earlier output was made of, computes the rows that are
//! new, and weaves both into one table; the table's bytes are those of a run from nothing. Tables are only read forwards, so
//! a row that changed places with its neighbours may be computed again. What a row did besides its columns, such as a
//! warning it counts for, is kept as remarks beside the tables: for the next run, and for people.

mod matching;
mod remarks;

use std::path::Path;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::interleave_record_batch;
use pipe_engine::task::{Context, TaskError};

use crate::rows::{Batches, batches};

pub use remarks::{Remark, RemarkReader, RemarkWriter};

const BATCH_ROWS: usize = 4096;

/// Which rows of one input were worked on before.
#[derive(Default)]
pub struct Reuse {
    /// For each row the number of its equal in the earlier input; empty when nothing can be taken over.
    origins: Vec<Option<u64>>,
    at: usize,
}

impl Reuse {
    /// Compares `columns` of the input that `role` names with the earlier output's. What is taken over must depend on
    /// nothing else.
    pub fn of(ctx: &Context, role: &str, columns: &[&str]) -> Result<Reuse, TaskError> {
        let origins = match ctx.earlier.as_ref().and_then(|earlier| earlier.inputs.get(role)) {
            Some(earlier) => {
                let before = matching::digests(earlier, columns, &ctx.cancel)?;
                matching::origins(&before, &matching::digests(ctx.input(role)?, columns, &ctx.cancel)?)
            }
            None => Vec::new(),
        };
        Ok(Reuse { origins, at: 0 })
    }

    /// The origins of the next `rows` rows; `None` for a row that has to be computed.
    pub fn next(&mut self, rows: usize) -> Vec<Option<u64>> {
        let next = (self.at..self.at + rows).map(|row| self.origins.get(row).copied().flatten()).collect();
        self.at += rows;
        next
    }

    /// How many rows are taken over.
    pub fn rows(&self) -> u64 {
        self.origins.iter().flatten().count() as u64
    }
}

/// A table of the earlier output, read forwards by row number.
pub struct Forward {
    batches: Batches,
    current: Option<RecordBatch>,
    start: u64,
}

impl Forward {
    /// The earlier output's table `file`, if there is an earlier output.
    pub fn open(ctx: &Context, file: &str, columns: &[&str]) -> Result<Option<Forward>, TaskError> {
        let Some(earlier) = &ctx.earlier else { return Ok(None) };
        Forward::at(&earlier.output.join(file), columns).map(Some)
    }

    fn at(path: &Path, columns: &[&str]) -> Result<Forward, TaskError> {
        Ok(Forward { batches: batches(path, columns, BATCH_ROWS)?, current: None, start: 0 })
    }

    /// The batch that holds row `row`, and its place there. Earlier rows cannot be asked for any more.
    pub fn row(&mut self, row: u64) -> Result<(&RecordBatch, usize), TaskError> {
        let ended = || TaskError::Failed(format!("an earlier table has no row {row} where one was expected"));
        while self.current.as_ref().is_none_or(|batch| row >= self.start + batch.num_rows() as u64) {
            self.start += self.current.take().map_or(0, |batch| batch.num_rows() as u64);
            self.current = Some(self.batches.next().ok_or_else(ended)??);
        }
        let place = row.checked_sub(self.start).ok_or_else(ended)?;
        self.current.as_ref().map(|batch| (batch, place as usize)).ok_or_else(ended)
    }
}

/// One table of rows just computed and rows taken over, in the order in which they are named.
#[derive(Default)]
pub struct Weave {
    /// Batches of the earlier table.
    sources: Vec<RecordBatch>,
    /// Source and row; source 0 is what was computed.
    places: Vec<(usize, usize)>,
    fresh: usize,
    start: Option<u64>,
}

impl Weave {
    /// The next row that was computed.
    pub fn fresh(&mut self) {
        self.places.push((0, self.fresh));
        self.fresh += 1;
    }

    /// Row `row` of the earlier table, and its place there.
    pub fn earlier<'a>(&mut self, table: &'a mut Forward, row: u64) -> Result<(&'a RecordBatch, usize), TaskError> {
        let (batch, place) = table.row(row)?;
        let start = row - place as u64;
        if self.start != Some(start) {
            self.sources.push(batch.clone());
            self.start = Some(start);
        }
        self.places.push((self.sources.len(), place));
        Ok((batch, place))
    }

    /// The table's columns, given what was computed.
    pub fn finish(self, fresh: RecordBatch) -> Result<RecordBatch, TaskError> {
        if self.sources.is_empty() {
            return Ok(fresh);
        }
        let sources: Vec<&RecordBatch> = std::iter::once(&fresh).chain(&self.sources).collect();
        let woven = interleave_record_batch(&sources, &self.places);
        woven.map_err(|error| TaskError::Failed(format!("rows cannot be put together: {error}")))
    }
}

/// The batch with its first column, a row's own id, replaced: equal rows may have different ids.
pub fn with_ids(batch: &RecordBatch, ids: ArrayRef) -> Result<RecordBatch, TaskError> {
    let mut columns = batch.columns().to_vec();
    columns[0] = ids;
    RecordBatch::try_new(batch.schema(), columns).map_err(|error| TaskError::Failed(error.to_string()))
}

#[cfg(test)]
mod tests;
