//! Row shapes and their Parquet files: what travels between data stages, and the only code that writes or reads it.
//!
//! Tables stream: a writer holds at most one row group, a reader a few batches. A table's bytes depend on its rows alone,
//! never on how callers cut them into batches or on thread counts, because the engine compares outputs by digest.
//! Nothing here knows what a row means.

mod encoder;
mod int_lists;
pub mod reference;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use arrow::array::{Array, ArrayRef, Int32Array, ListArray, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use pipe_engine::task::TaskError;

use self::encoder::{Chunk, Encoder};

/// The file that ingest and clean write.
pub const ROWS_FILE: &str = "rows.parquet";
/// Where a stage that renames or multiplies rows says what each came from.
pub const LINEAGE_FILE: &str = "lineage.parquet";
/// What a stage has to say of single rows; there only when it has.
pub const REMARKS_FILE: &str = "remarks.parquet";
/// The file that pack writes.
pub const PACKS_FILE: &str = "packs.parquet";

/// Rows are handed to the encoder in chunks of this many, or of [`CHUNK_BYTES`] where that is less.
const CHUNK_ROWS: usize = 4096;
const CHUNK_BYTES: usize = 8 << 20;

/// The columns of every row shape.
pub mod shapes {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

    /// What ingest writes: one row per row of the source, in its order.
    pub fn raw() -> SchemaRef {
        schema(vec![
            text("row_id"),
            Field::new("row", DataType::UInt64, false),
            text("data"),
            Field::new("meta", DataType::Utf8, true),
            Field::new("source", DataType::UInt16, false),
        ])
    }

    /// What clean, split and augment write.
    pub fn example() -> SchemaRef {
        schema(vec![text("row_id"), text("data"), Field::new("meta", DataType::Utf8, true)])
    }

    /// What tokenize writes.
    pub fn tokens() -> SchemaRef {
        schema(vec![text("row_id"), ints("input_ids"), ints("labels"), Field::new("length", DataType::Int32, false)])
    }

    /// What pack writes: one row per sequence that the model sees.
    pub fn packs() -> SchemaRef {
        schema(vec![
            ints("input_ids"),
            ints("labels"),
            ints("position_ids"),
            ints("segment_ids"),
            list("row_ids", DataType::Utf8),
            ints("lengths"),
            list("sources", DataType::UInt16),
        ])
    }

    /// Where a stage's rows came from, when it renames, drops or multiplies them; never read by a later stage.
    pub fn lineage() -> SchemaRef {
        schema(vec![text("row_id"), text("from")])
    }

    /// What template and tokenize have to say of single rows, in the order of splits and rows.
    pub fn remarks() -> SchemaRef {
        let number = |name: &str| Field::new(name, DataType::UInt64, false);
        schema(vec![text("split"), number("row"), text("row_id"), text("what"), number("count")])
    }

    fn schema(fields: Vec<Field>) -> SchemaRef {
        Arc::new(Schema::new(fields))
    }

    fn text(name: &str) -> Field {
        Field::new(name, DataType::Utf8, false)
    }

    fn ints(name: &str) -> Field {
        list(name, DataType::Int32)
    }

    /// As `ListBuilder` makes it by default, so that builders need no field of their own.
    fn list(name: &str, item: DataType) -> Field {
        Field::new(name, DataType::List(Arc::new(Field::new("item", item, true))), false)
    }
}

/// Where chunks go, and the thread that turns them into bytes.
type Encoding = (SyncSender<Chunk>, JoinHandle<Result<(), TaskError>>);

/// Writes a table on a thread of its own, so that encoding overlaps the caller's work.
pub struct TableWriter {
    path: PathBuf,
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    pending_bytes: usize,
    rows: u64,
    encoder: Option<Encoding>,
}

impl TableWriter {
    /// Creates the file. The table is complete only after [`TableWriter::finish`].
    pub fn create(path: &Path, schema: SchemaRef) -> Result<Self, TaskError> {
        let file = File::create(path).map_err(TaskError::io(format!("cannot create {}", path.display())))?;
        let encoder = Encoder::new(file, schema).map_err(|e| write_failed(path, &e))?;
        let (sender, receiver) = sync_channel(2);
        let place = path.to_path_buf();
        let encoder = std::thread::spawn(move || encoder.run(&receiver, &place));
        Ok(TableWriter {
            path: path.to_path_buf(),
            pending: Vec::new(),
            pending_rows: 0,
            pending_bytes: 0,
            rows: 0,
            encoder: Some((sender, encoder)),
        })
    }

    /// Appends rows; the batch must have the table's schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), TaskError> {
        self.rows += batch.num_rows() as u64;
        let sizes = row_bytes(batch);
        let mut start = 0;
        for (i, size) in sizes.iter().enumerate() {
            self.pending_rows += 1;
            self.pending_bytes += size;
            if self.pending_rows >= CHUNK_ROWS || self.pending_bytes >= CHUNK_BYTES {
                self.pending.push(batch.slice(start, i + 1 - start));
                start = i + 1;
                self.send()?;
            }
        }
        if start < batch.num_rows() {
            self.pending.push(batch.slice(start, batch.num_rows() - start));
        }
        Ok(())
    }

    /// Rows given so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes what is left and the footer, syncs the file, and returns the number of rows.
    pub fn finish(mut self) -> Result<u64, TaskError> {
        self.send()?;
        self.join()?;
        Ok(self.rows)
    }

    fn send(&mut self) -> Result<(), TaskError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = (std::mem::take(&mut self.pending), self.pending_bytes);
        self.pending_rows = 0;
        self.pending_bytes = 0;
        match &self.encoder {
            Some((sender, _)) if sender.send(chunk).is_ok() => Ok(()),
            // The encoder only hangs up when it failed: its own error says why.
            _ => self.join(),
        }
    }

    fn join(&mut self) -> Result<(), TaskError> {
        let Some((sender, encoder)) = self.encoder.take() else {
            return Err(TaskError::Failed(format!("{} was not written completely", self.path.display())));
        };
        drop(sender);
        encoder.join().map_err(|_| TaskError::Failed(format!("writing {} panicked", self.path.display())))?
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        // An abandoned table: let the encoder end before the draft folder goes away.
        if let Some((sender, encoder)) = self.encoder.take() {
            drop(sender);
            let _ = encoder.join();
        }
    }
}

/// Reads columns of a table in order, `rows_per_batch` at a time, decoding ahead on a thread of its own.
pub fn batches(path: &Path, columns: &[&str], rows_per_batch: usize) -> Result<Batches, TaskError> {
    let file = open(path)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| read_failed(path, &e))?;
    let schema = builder.schema().clone();
    let mut roots = Vec::with_capacity(columns.len());
    for &column in columns {
        roots.push(schema.index_of(column).map_err(|_| {
            let there: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            TaskError::Failed(format!("{} has no column `{column}`; it has {}", path.display(), there.join(", ")))
        })?);
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).with_batch_size(rows_per_batch.max(1));
    let reader = reader.build().map_err(|e| read_failed(path, &e))?;
    let (sender, receiver) = sync_channel(1);
    let place = path.to_path_buf();
    std::thread::spawn(move || {
        for batch in reader {
            if sender.send(batch.map_err(|e| read_failed(&place, &e))).is_err() {
                return;
            }
        }
    });
    Ok(Batches { receiver })
}

/// The iterator that [`batches`] returns.
pub struct Batches {
    receiver: Receiver<Result<RecordBatch, TaskError>>,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.recv().ok()
    }
}

/// The number of rows, from the file's footer.
pub fn row_count(path: &Path) -> Result<u64, TaskError> {
    let metadata = ArrowReaderMetadata::load(&open(path)?, Default::default()).map_err(|e| read_failed(path, &e))?;
    Ok(metadata.metadata().file_metadata().num_rows().max(0) as u64)
}

/// The text column `name`.
pub fn text_column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, TaskError> {
    typed(batch, name)
}

/// The list column `name`.
pub fn list_column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ListArray, TaskError> {
    typed(batch, name)
}

/// The column `name` as the array type that its shape promises.
pub fn typed<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, TaskError> {
    let column = batch.column_by_name(name);
    column.and_then(|column| column.as_any().downcast_ref::<A>()).ok_or_else(|| {
        TaskError::Failed(format!("a table between stages lacks the column `{name}`, or it has another type"))
    })
}

/// The 32-bit integers of row `i` of a list column.
pub fn int_list(column: &ListArray, i: usize) -> Result<&[i32], TaskError> {
    let values = column.values().as_any().downcast_ref::<Int32Array>();
    let values =
        values.ok_or_else(|| TaskError::Failed("a list between stages does not hold 32-bit integers".into()))?;
    let offsets = column.value_offsets();
    Ok(&values.values()[offsets[i] as usize..offsets[i + 1] as usize])
}

/// A list column from all values end to end and the end of each list; one allocation per column.
pub fn int_lists(values: Vec<i32>, ends: &[i32]) -> ArrayRef {
    let offsets = OffsetBuffer::new(std::iter::once(0).chain(ends.iter().copied()).collect());
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    Arc::new(ListArray::new(item, offsets, Arc::new(Int32Array::from(values)), None))
}

/// A pool of a task's own, so that it uses no more threads than it was given.
pub fn workers(threads: usize) -> Result<rayon::ThreadPool, TaskError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    pool.map_err(|e| TaskError::Failed(format!("cannot start threads: {e}")))
}

/// Bytes of each row's variable parts, from the offsets alone.
fn row_bytes(batch: &RecordBatch) -> Vec<usize> {
    let mut sizes = vec![8; batch.num_rows()];
    for column in batch.columns() {
        add_row_bytes(column, &mut sizes);
    }
    sizes
}

fn add_row_bytes(column: &ArrayRef, sizes: &mut [usize]) {
    let (offsets, width) = if let Some(text) = column.as_any().downcast_ref::<StringArray>() {
        (text.value_offsets(), 1)
    } else if let Some(list) = column.as_any().downcast_ref::<ListArray>() {
        // Lists of text hold row ids here: 32 bytes each.
        (list.value_offsets(), list.values().data_type().primitive_width().unwrap_or(32))
    } else {
        return;
    };
    for (size, pair) in sizes.iter_mut().zip(offsets.windows(2)) {
        *size += (pair[1] - pair[0]) as usize * width;
    }
}

fn open(path: &Path) -> Result<File, TaskError> {
    File::open(path).map_err(TaskError::io(format!("cannot open {}", path.display())))
}

fn read_failed(path: &Path, error: &dyn std::fmt::Display) -> TaskError {
    TaskError::Failed(format!("cannot read the table {}: {error}", path.display()))
}

fn write_failed(path: &Path, error: &dyn std::fmt::Display) -> TaskError {
    TaskError::Failed(format!("cannot write the table {}: {error}", path.display()))
}

#[cfg(test)]
pub mod harness;
#[cfg(test)]
mod tests;
