//! A walk over a dataset's rows: files are read on a thread of their own, rows become examples in parallel, and pieces come
//! out in order.

use std::path::Path;
use std::sync::mpsc::sync_channel;

use pipe_engine::digest::Digest;
use pipe_engine::task::{Context, TaskError};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::columns::Columns;
use super::format::{self, Misfit, RowFormat, names};
use super::select::{Cut, count};
use super::source::{self, Flow, Rows, bad_row};
use super::{Ingest, Row, json, role};
use crate::conversation::Content;

/// The rows of one part of the reading, from the first to before the last; `None` for all that follow.
pub(super) type Range = (u64, Option<u64>);

/// Rows that follow one another in a source.
pub(super) struct Piece {
    pub source: usize,
    pub rows: Vec<Row>,
}

/// What one thread made of its share of a chunk.
struct Share {
    rows: Vec<Row>,
    columns: Columns,
    stopped: Option<Stopped>,
}

/// The row that could not be read.
enum Stopped {
    Text(u64, String),
    Misfit(u64, Misfit, Map<String, Value>),
}

/// Rows that a thread takes at once.
const SHARE: usize = 128;

/// What `type: auto` found: the name to write, and how it is read.
type Detected = Option<(&'static str, RowFormat)>;

impl Ingest {
    /// The rows of each part. Counts a split only where a slice needs its size.
    pub(super) fn ranges(&self, ctx: &Context) -> Result<Vec<Range>, TaskError> {
        let mut counts: Vec<(&[usize], u64)> = Vec::new();
        let mut ranges = Vec::new();
        for (slice, sources) in &self.reading.parts {
            if !slice.needs_count() {
                ranges.push((slice.from.unwrap_or(0) as u64, slice.to.map(|to| to as u64)));
                continue;
            }
            let rows = match counts.iter().find(|(known, _)| known == sources) {
                Some((_, rows)) => *rows,
                None => {
                    let rows = self.count(ctx, sources)?;
                    counts.push((sources, rows));
                    rows
                }
            };
            let (from, to) =
                slice.range(rows).map_err(|why| TaskError::Input(format!("split `{}`: {why}", slice.split)))?;
            ranges.push((from, Some(to)));
        }
        Ok(ranges)
    }

    fn count(&self, ctx: &Context, sources: &[usize]) -> Result<u64, TaskError> {
        let mut rows = 0;
        for &source in sources {
            let path = ctx.file(&role(source))?;
            let digest = source::read(path, self.container(path), &mut |chunk| {
                ctx.cancel.check()?;
                rows += count(&chunk);
                Ok(Flow::More)
            })?;
            self.report(ctx, source, digest)?;
        }
        Ok(rows)
    }

    /// Hands out all rows in order; returns what `type: auto` found.
    pub(super) fn pass(
        &self,
        ctx: &Context,
        ranges: &[Range],
        columns: &mut Columns,
        take: &mut dyn FnMut(Piece) -> Result<(), TaskError>,
    ) -> Result<Detected, TaskError> {
        let pool = crate::rows::workers(ctx.threads)?;
        let mut format = self.rows.clone();
        let mut detected = None;
        let mut taken = 0;
        for ((_, sources), (from, to)) in self.reading.parts.iter().zip(ranges) {
            let mut cut = Cut::new(*from, *to);
            for &source in sources {
                let path = ctx.file(&role(source))?;
                let digest = self.chunks(path, &mut cut, &mut taken, &mut |rows| {
                    ctx.cancel.check()?;
                    if format == RowFormat::Auto
                        && let Some((name, found)) = self.detect(path, &rows)?
                    {
                        detected = Some((name, found.clone()));
                        format = found;
                    }
                    let rows = pool.install(|| self.convert(&format, source, path, rows, columns))?;
                    take(Piece { source, rows })
                })?;
                self.report(ctx, source, digest)?;
            }
        }
        Ok(detected)
    }

    /// Reads a file's chunks ahead of their use.
    fn chunks(
        &self,
        path: &Path,
        cut: &mut Cut,
        taken: &mut u64,
        each: &mut dyn FnMut(Rows) -> Result<(), TaskError>,
    ) -> Result<Digest, TaskError> {
        let (container, shard) = (self.container(path), self.shard);
        std::thread::scope(|scope| {
            let (sender, chunks) = sync_channel(1);
            let reading = scope.spawn(move || {
                source::read(path, container, &mut |rows| {
                    let (rows, flow) = cut.keep(rows, shard, taken);
                    sender.send(rows).map_err(|_| TaskError::Cancelled)?;
                    Ok(flow)
                })
            });
            for rows in chunks {
                each(rows)?;
            }
            reading.join().map_err(|_| TaskError::Failed(format!("reading {} panicked", path.display())))?
        })
    }

    /// A file that is read twice must be the same file.
    fn report(&self, ctx: &Context, source: usize, digest: Digest) -> Result<(), TaskError> {
        let before = ctx.read.lock().ok().and_then(|read| read.get(&role(source)).copied());
        if before.is_some_and(|before| before != digest) {
            let path = self.path(source);
            return Err(TaskError::Failed(format!("{path}: was changed while it was read; run again")));
        }
        ctx.report_read(&role(source), digest);
        Ok(())
    }

    fn convert(
        &self,
        format: &RowFormat,
        source: usize,
        path: &Path,
        rows: Rows,
        columns: &mut Columns,
    ) -> Result<Vec<Row>, TaskError> {
        let shares: Vec<Share> = match rows {
            Rows::Json { bytes, spans } => spans
                .par_chunks(SHARE)
                .map(|spans| {
                    let rows = spans.iter().map(|span| (span.place, json::parse(&bytes[span.start..span.end])));
                    self.share(format, source, rows)
                })
                .collect(),
            Rows::Values(rows) => rows
                .into_par_iter()
                .chunks(SHARE)
                .map(|rows| self.share(format, source, rows.into_iter().map(|(place, row)| (place, Ok(row)))))
                .collect(),
        };
        let mut all = Vec::with_capacity(shares.iter().map(|share| share.rows.len()).sum());
        for share in shares {
            columns.extend(share.columns);
            // Shares come in order, so that the first bad row of the file is the one that is reported.
            match share.stopped {
                None => all.extend(share.rows),
                Some(Stopped::Text(place, why)) => return Err(bad_row(path, place, why)),
                Some(Stopped::Misfit(place, misfit, row)) => {
                    return Err(self.misfit(path, place, misfit, &row, columns));
                }
            }
        }
        Ok(all)
    }

    fn share(
        &self,
        format: &RowFormat,
        source: usize,
        rows: impl Iterator<Item = (u64, Result<Map<String, Value>, String>)>,
    ) -> Share {
        let mut share = Share { rows: Vec::with_capacity(SHARE), columns: Columns::default(), stopped: None };
        for (place, row) in rows {
            let mut row = match row {
                Ok(row) => row,
                Err(why) => {
                    share.stopped = Some(Stopped::Text(place, why));
                    break;
                }
            };
            share.columns.note((source, place), &row);
            let meta = self.meta(&row);
            match format.examples(&mut row) {
                Ok(examples) => share.rows.extend(examples.iter().map(|example| Row {
                    place,
                    data: example.to_data(),
                    content: Content::of(example),
                    meta: meta.clone(),
                })),
                Err(misfit) => {
                    share.stopped = Some(Stopped::Misfit(place, misfit, row));
                    break;
                }
            }
        }
        share
    }

    fn misfit(
        &self,
        path: &Path,
        place: u64,
        misfit: Misfit,
        row: &Map<String, Value>,
        columns: &Columns,
    ) -> TaskError {
        let wanted = match misfit {
            Misfit::Row(why) => return bad_row(path, place, why),
            Misfit::Column(name, why) => {
                let before = columns
                    .before(&name)
                    .filter(|(_, first)| first.1 != place || self.path(first.0) != path.display().to_string());
                let before = before.map_or(String::new(), |(kind, (source, first))| {
                    format!("; it is {} at {}:{first}", a(kind), self.path(source))
                });
                return bad_row(path, place, format!("`{name}` {why}{before}"));
            }
            Misfit::NoColumn(wanted) => wanted,
        };
        let wanted: Vec<String> = wanted.iter().map(|name| format!("`{name}`")).collect();
        let there = names(row);
        let remedy = self.remedy(row);
        bad_row(path, place, format!("there is no column {}; this row has {there}; {remedy}", wanted.join(" or ")))
    }

    fn remedy(&self, row: &Map<String, Value>) -> String {
        let fitting = RowFormat::fitting(row).map(|format| (format, RowFormat::of_type(format.name(), &self.keys)));
        match fitting {
            Some((format, Ok(rows))) if rows != self.rows => {
                format!("`type: {}` would fit these", format.name())
            }
            _ => match row.iter().find(|(_, value)| value.get(0).is_some_and(Value::is_object)) {
                Some((name, _)) if row.len() <= 2 => {
                    format!("if the rows are the items of `{name}`, save that list as the file")
                }
                _ => "name the columns with the dataset's `field_...` keys or a `type` map, or choose another `type`"
                    .into(),
            },
        }
    }

    fn detect(&self, path: &Path, rows: &Rows) -> Result<Detected, TaskError> {
        let (place, row) = match rows {
            Rows::Json { bytes, spans } => match spans.first() {
                Some(span) => {
                    let row =
                        json::parse(&bytes[span.start..span.end]).map_err(|why| bad_row(path, span.place, why))?;
                    (span.place, row)
                }
                None => return Ok(None),
            },
            Rows::Values(rows) => match rows.first() {
                Some(first) => first.clone(),
                None => return Ok(None),
            },
        };
        match RowFormat::detect(&row, &self.keys) {
            Some((format, rows)) => Ok(Some((format.name(), rows))),
            None => {
                let (there, types) = (names(&row), format::type_names());
                Err(bad_row(
                    path,
                    place,
                    format!("no dataset type has the columns {there}; set `type` to one of {types}"),
                ))
            }
        }
    }
}

/// With its article.
fn a(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}
