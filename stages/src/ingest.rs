//! Ingest: source files, of any container and dataset format, become rows of one shape.
//!
//! ```text
//! {"instruction": "Say hi", "output": "Hi!"}        (alpaca, line 7 of a JSONL file)
//!   -> row_id 5f0c…00000000, row 7, data {"shape":"instruct","instruction":"Say hi","output":"Hi!"}
//! ```
//! Rows keep the order of the source. Every row that `split`, `shards` and `max_rows` leave either becomes a row or stops
//! the run with its place; none is dropped here. Nothing here renders or tokenises.

mod chat;
mod columns;
mod elements;
pub mod files;
pub mod format;
mod json;
pub mod layout;
mod message;
mod one_turn;
mod pass;
mod select;
pub mod slice;
pub mod source;
mod table;

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt16Array, UInt64Array};
use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError, View};
use serde_json::{Map, Value, json};

pub use self::files::Reading;
pub use self::format::{DatasetKeys, RowFormat};
pub use self::select::Shard;
pub use self::slice::Slice;
pub use self::source::FileFormat;

use self::columns::Columns;
use self::pass::Piece;
use self::select::Smallest;
use crate::conversation::{Content, RowIds};
use crate::rows::{ROWS_FILE, TableWriter, shapes};

/// One dataset's reading, resolved.
pub struct Ingest {
    /// Files, each once; not part of the key, their bytes are. And which rows of them, in reading order.
    pub reading: Reading,
    /// Container; told by extension, then by content, when unset.
    pub file_format: Option<FileFormat>,
    pub rows: RowFormat,
    /// The dataset's field keys; only [`RowFormat::Auto`] still needs them at run time.
    pub keys: DatasetKeys,
    pub shard: Option<Shard>,
    pub max_rows: Option<u64>,
    /// Columns that later stages group or stratify by, kept in `meta`.
    pub keep: Vec<String>,
}

/// A row that is ready to be written, but for its id.
struct Row {
    place: u64,
    data: String,
    content: Content,
    meta: Option<String>,
}

impl Task for Ingest {
    fn stage(&self) -> &'static str {
        "ingest"
    }

    fn version(&self) -> String {
        "2".into()
    }

    fn params(&self) -> Value {
        let containers: Vec<FileFormat> = self.reading.sources.iter().map(|path| self.container(path)).collect();
        let rows = &self.rows;
        json!({
            "containers": containers,
            "rows": rows,
            "keep": self.keep,
            "parts": self.reading.parts,
            "shard": self.shard,
            "max_rows": self.max_rows,
            // Only what is detected still depends on the keys; else they are in `rows`.
            "keys": (*rows == RowFormat::Auto).then(|| format!("{:?}", self.keys)),
        })
    }

    fn files(&self) -> Vec<SourceFile> {
        let numbered = self.reading.sources.iter().enumerate();
        numbered.map(|(i, path)| SourceFile { role: role(i), path: path.clone(), view: View::Whole }).collect()
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, ..Resources::default() }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let ranges = self.ranges(ctx)?;
        let limit = match self.max_rows {
            Some(most) => self.limit(ctx, &ranges, most)?,
            None => None,
        };
        let mut table = Table::create(ctx)?;
        let mut columns = Columns::default();
        let detected = self.pass(ctx, &ranges, &mut columns, &mut |piece: Piece| {
            table.write(piece.source, piece.rows, limit)?;
            ctx.progress(table.writer.rows(), 0, "rows");
            Ok(())
        })?;
        let rows = table.writer.finish()?;
        if rows == 0 {
            return Err(self.no_rows());
        }
        let mut summary = Summary { rows: Some(rows), ..Summary::default() };
        summary.stats.insert("columns".into(), columns.to_json());
        self.remarks(&columns, &mut summary);
        if let Some((name, format)) = detected {
            summary.stats.insert("detected".into(), json!({"type": name, "read_as": format}));
            summary.warnings.push(format!("`type: auto` reads these rows as `{name}`"));
        }
        Ok(summary)
    }
}

impl Ingest {
    fn container(&self, path: &Path) -> FileFormat {
        self.file_format.unwrap_or_else(|| FileFormat::of_path(path))
    }

    fn path(&self, source: usize) -> String {
        self.reading.sources.get(source).map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// The digest and number of the last row within `max_rows`, chosen by content.
    fn limit(&self, ctx: &Context, ranges: &[pass::Range], most: u64) -> Result<Option<(Content, u32)>, TaskError> {
        let mut smallest = Smallest::new(most)?;
        let mut ids = RowIds::default();
        self.pass(ctx, ranges, &mut Columns::default(), &mut |piece: Piece| {
            for row in &piece.rows {
                smallest.offer((row.content, ids.count(row.content)));
            }
            Ok(())
        })?;
        Ok(smallest.threshold())
    }

    fn no_rows(&self) -> TaskError {
        let first = self.path(0);
        let more = match self.reading.sources.len() {
            0 | 1 => String::new(),
            n => format!(" (nor have the {} files after it)", n - 1),
        };
        let sliced = self.reading.parts.iter().any(|(slice, _)| slice.from.is_some() || slice.to.is_some());
        let why = if sliced || self.shard.is_some() { "; does `split` or `shards` leave any?" } else { "" };
        TaskError::Input(format!("{first}: has no rows{more}{why}"))
    }

    /// What a user should know of the data and would not see.
    fn remarks(&self, columns: &Columns, summary: &mut Summary) {
        let place = |(source, place): columns::Place| format!("{}:{place}", self.path(source));
        for (name, kinds) in columns.conflicts() {
            if self.rows.reads(name) {
                let kinds: Vec<String> = kinds
                    .iter()
                    .map(|(kind, rows, first)| format!("{kind} in {rows} rows (first at {})", place(*first)))
                    .collect();
                summary.warnings.push(format!("the column `{name}` holds {}; all is read as text", kinds.join(", ")));
            }
        }
        let system = columns.filled("system");
        if let RowFormat::OneTurn(one) = &self.rows
            && system > 0
            && !one.reads("system")
        {
            summary.warnings.push(format!(
                "{system} rows have a `system` text, which this `type` does not use; `alpaca_w_system` does"
            ));
        }
        if !self.reading.left_out.is_empty() {
            let (n, first) = (self.reading.left_out.len(), &self.reading.left_out[0]);
            let files = if n == 1 { "file was" } else { "files were" };
            summary.warnings.push(format!("{n} {files} left out, being of another format than most (`{first}`)"));
        }
    }

    fn meta(&self, row: &Map<String, Value>) -> Option<String> {
        if self.keep.is_empty() {
            return None;
        }
        let kept = self.keep.iter().filter_map(|name| row.get(name).map(|value| (name.clone(), value.clone())));
        Some(Value::Object(kept.collect()).to_string())
    }
}

/// The output table and the ids given so far.
struct Table {
    writer: TableWriter,
    ids: RowIds,
}

impl Table {
    fn create(ctx: &Context) -> Result<Table, TaskError> {
        let writer = TableWriter::create(&ctx.out().join(ROWS_FILE), shapes::raw())?;
        Ok(Table { writer, ids: RowIds::default() })
    }

    /// Writes rows; of those beyond the limit only the place among equal rows counts.
    fn write(&mut self, source: usize, rows: Vec<Row>, limit: Option<(Content, u32)>) -> Result<(), TaskError> {
        let named = rows.into_iter().filter_map(|row| {
            let before = self.ids.count(row.content);
            let kept = limit.is_none_or(|limit| (row.content, before) <= limit);
            kept.then(|| (row.content.row_id(before), row))
        });
        let (ids, rows): (Vec<String>, Vec<Row>) = named.unzip();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(ids)),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.place))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.data))),
            Arc::new(rows.iter().map(|row| row.meta.as_deref()).collect::<StringArray>()),
            Arc::new(UInt16Array::from_iter_values(rows.iter().map(|_| source as u16))),
        ];
        let batch = RecordBatch::try_new(shapes::raw(), columns).map_err(|e| TaskError::Failed(e.to_string()))?;
        self.writer.write(&batch)
    }
}

fn role(i: usize) -> String {
    format!("source.{i}")
}

#[cfg(test)]
mod tests;
