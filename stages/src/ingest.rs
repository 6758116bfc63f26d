//! Ingest: source files, of any container and dataset format, become rows of one shape.
//!
//! ```text
//! {"instruction": "Say hi", "output": "Hi!"}        (alpaca, line 7 of a JSONL file)
//!   -> row_id 5f0c…00000000, row 7, data {"shape":"instruct","instruction":"Say hi","output":"Hi!"}
//! ```
//! Rows keep the order of the source. Every row of the source either becomes a row or stops the run with its place; none
//! is dropped here. Nothing here renders or tokenises.

mod elements;
pub mod format;
pub mod source;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt16Array, UInt64Array};
use pipe_engine::task::{Context, SourceFile, Summary, Task, TaskError, View};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

pub use self::format::{DatasetKeys, RowFormat};
pub use self::source::FileFormat;

use self::format::{Misfit, names};
use self::source::{Rows, bad_row};
use crate::conversation::{Content, RowIds};
use crate::rows::{ROWS_FILE, TableWriter, shapes};

/// One dataset's reading, resolved.
pub struct Ingest {
    /// Files in reading order; not part of the key, their bytes are.
    pub sources: Vec<PathBuf>,
    /// Container; told by extension, then by content, when unset.
    pub file_format: Option<FileFormat>,
    pub rows: RowFormat,
    /// The dataset's field keys; only [`RowFormat::Auto`] still needs them at run time.
    pub keys: DatasetKeys,
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
        "1".into()
    }

    fn params(&self) -> Value {
        let containers: Vec<FileFormat> = self.sources.iter().map(|path| self.container(path)).collect();
        json!({"containers": containers, "rows": self.rows, "keep": self.keep})
    }

    fn files(&self) -> Vec<SourceFile> {
        let numbered = self.sources.iter().enumerate();
        numbered.map(|(i, path)| SourceFile { role: role(i), path: path.clone(), view: View::Whole }).collect()
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let pool = crate::rows::workers(ctx.threads)?;
        let mut table = Table::create(ctx)?;
        let mut format = self.rows.clone();
        for i in 0..self.sources.len() {
            let path = ctx.file(&role(i))?;
            let container = self.container(path);
            let before = table.writer.rows();
            std::thread::scope(|scope| {
                let (sender, chunks) = sync_channel(1);
                let reading = scope.spawn(move || {
                    source::read(path, container, &mut |rows| sender.send(rows).map_err(|_| TaskError::Cancelled))
                });
                for rows in chunks {
                    ctx.cancel.check()?;
                    if format == RowFormat::Auto {
                        format = self.detect(path, &rows)?;
                    }
                    let rows = pool.install(|| self.convert(&format, path, rows))?;
                    table.write(i, rows)?;
                    ctx.progress(table.writer.rows(), 0, "rows");
                }
                let digest =
                    reading.join().map_err(|_| TaskError::Failed(format!("reading {} panicked", path.display())))??;
                ctx.report_read(&role(i), digest);
                Ok(())
            })?;
            if table.writer.rows() == before {
                return Err(TaskError::Input(format!("{}: has no rows", path.display())));
            }
        }
        let rows = table.writer.finish()?;
        let mut summary = Summary { rows: Some(rows), ..Summary::default() };
        if self.rows == RowFormat::Auto {
            let chosen = serde_json::to_value(&format).unwrap_or_default();
            summary.stats.insert("detected".into(), chosen);
        }
        Ok(summary)
    }
}

impl Ingest {
    fn container(&self, path: &Path) -> FileFormat {
        self.file_format.unwrap_or_else(|| FileFormat::of_path(path))
    }

    fn convert(&self, format: &RowFormat, path: &Path, rows: Rows) -> Result<Vec<Row>, TaskError> {
        // Collecting results in order keeps the first bad row of the file the one that is reported.
        let converted: Vec<Result<Row, TaskError>> = match rows {
            Rows::Json { bytes, spans } => spans
                .par_iter()
                .with_min_len(16)
                .map(|span| {
                    let row = parse(&bytes[span.start..span.end]).map_err(|why| bad_row(path, span.place, why))?;
                    self.row(format, path, span.place, row)
                })
                .collect(),
            Rows::Values(rows) => {
                rows.into_par_iter().with_min_len(16).map(|(place, row)| self.row(format, path, place, row)).collect()
            }
        };
        converted.into_iter().collect()
    }

    fn row(&self, format: &RowFormat, path: &Path, place: u64, mut row: Map<String, Value>) -> Result<Row, TaskError> {
        let meta = self.meta(&row);
        let example = format.example(&mut row).map_err(|misfit| self.misfit(path, place, misfit, &row))?;
        Ok(Row { place, data: example.to_data(), content: Content::of(&example), meta })
    }

    fn meta(&self, row: &Map<String, Value>) -> Option<String> {
        if self.keep.is_empty() {
            return None;
        }
        let kept = self.keep.iter().filter_map(|name| row.get(name).map(|value| (name.clone(), value.clone())));
        Some(Value::Object(kept.collect()).to_string())
    }

    fn misfit(&self, path: &Path, place: u64, misfit: Misfit, row: &Map<String, Value>) -> TaskError {
        let wanted = match misfit {
            Misfit::Wrong(why) => return bad_row(path, place, why),
            Misfit::NoColumn(wanted) => wanted,
        };
        let remedy = match RowFormat::detect(row, &self.keys) {
            Some((name, fitting)) if fitting != self.rows => format!("`type: {name}` would fit these"),
            _ => "name the columns with the dataset's `field_...` keys, or choose another `type`".to_string(),
        };
        let wanted: Vec<String> = wanted.iter().map(|name| format!("`{name}`")).collect();
        let there = names(row);
        bad_row(path, place, format!("there is no column {}; this row has {there}; {remedy}", wanted.join(" or ")))
    }

    fn detect(&self, path: &Path, rows: &Rows) -> Result<RowFormat, TaskError> {
        let (place, row) = match rows {
            Rows::Json { bytes, spans } => match spans.first() {
                Some(span) => {
                    let row = parse(&bytes[span.start..span.end]).map_err(|why| bad_row(path, span.place, why))?;
                    (span.place, row)
                }
                None => return Ok(RowFormat::Auto),
            },
            Rows::Values(rows) => match rows.first() {
                Some(first) => first.clone(),
                None => return Ok(RowFormat::Auto),
            },
        };
        RowFormat::detect(&row, &self.keys).map(|(_, format)| format).ok_or_else(|| {
            let (there, types) = (names(&row), format::type_names().join(", "));
            bad_row(path, place, format!("no dataset type has the columns {there}; set `type` to one of {types}"))
        })
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

    fn write(&mut self, source: usize, rows: Vec<Row>) -> Result<(), TaskError> {
        let ids = StringArray::from_iter_values(rows.iter().map(|row| self.ids.name(row.content)));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(ids),
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

fn parse(text: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(text)
        .map_err(|e| format!("not UTF-8 at byte {} of the row; save the file as UTF-8", e.valid_up_to() + 1))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => {
            Err(format!("a row must be an object with columns, and this is `{}`", shorten(&other.to_string())))
        }
        Err(error) => {
            let why = error.to_string();
            let why = why.split(" at line ").next().unwrap_or(&why);
            Err(format!("not valid JSON: {why} (character {} of `{}`)", error.column(), shorten(text.trim())))
        }
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests;
