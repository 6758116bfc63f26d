//! Pack: tokenised rows become the sequences that the model sees.
//!
//! ```text
//! sequence_len: 8    rows [a a a a a] [b b] [c c c]
//!   -> input_ids  a a a a a c c c      | b b
//!      segment_ids 1 1 1 1 1 2 2 2     | 1 1
//!      position_ids 0 1 2 3 4 0 1 2    | 0 1
//! ```
//! No row is cut and none is padded. The first label of every document is masked, because its token would be predicted from
//! the document before it. Rows are packed in windows of bounded size, so memory does not grow with the data; rows of badly
//! filled packs wait for the next window. Packs keep the order of their first rows.

mod emit;
mod fit;

use std::sync::Arc;

use arrow::array::RecordBatch;
use pipe_engine::task::{Context, Summary, Task, TaskError};
use serde::Serialize;
use serde_json::Value;

use self::emit::Emitter;
use crate::mix::{self, Mix};
use crate::recipe::ExcessLength;
use crate::rows::{PACKS_FILE, TableWriter, batches, int_list, list_column, row_count, shapes, text_column};

const ROWS_PER_BATCH: usize = 2048;
const MASKED: i32 = -100;
/// A window closes once it holds this many tokens, or this many full sequences where that is more. Two exist at one time:
/// one is written while the next one fills.
const WINDOW_TOKENS: usize = 4 << 20;
const WINDOW_PACKS: usize = 64;
/// A pack less full than this gives its rows to the next window.
const GOOD_FILL: f64 = 0.97;

/// How rows are put together, resolved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pack {
    /// Tokens in a sequence at most.
    pub sequence_len: u64,
    /// Several rows in a sequence; else one.
    pub packing: bool,
    /// What happens to rows longer than a sequence.
    pub excess_length: ExcessLength,
    /// Rows with fewer tokens are dropped.
    pub min_sample_len: u64,
    /// Rows stay in order: each goes into the pack before it, or begins the next.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sequential: bool,
    /// Rows in a pack at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bin_size: Option<u64>,
    /// Rows that are packed together; packs of one group never wait for the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<u64>,
    /// How many rows of each input there are, where not all of them once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
}

impl Task for Pack {
    fn stage(&self) -> &'static str {
        "pack"
    }

    fn version(&self) -> String {
        "2".into()
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let inputs: Vec<_> = (0..).map_while(|i: usize| ctx.input_opt(&i.to_string())).collect();
        let mut total = 0;
        for path in &inputs {
            total += row_count(path)?;
        }
        let mut packing = Packing::start(self, ctx, inputs.len())?;
        if let Some(mix) = &self.mix {
            let usable = |ids: &[i32], labels: &[i32]| self.is_usable(ids, labels);
            let take = |row: mix::MixedRow<'_>| packing.row(row.row_id, row.ids, row.labels, row.source);
            let mixed = mix::feed(mix, &inputs, ctx, usable, take)?;
            let mut summary = packing.finish(ctx, total)?;
            summary.stats.insert("mix".into(), mixed);
            return Ok(summary);
        }
        let mut read = 0;
        for (source, path) in inputs.iter().enumerate() {
            for batch in batches(path, &["row_id", "input_ids", "labels"], ROWS_PER_BATCH)? {
                ctx.cancel.check()?;
                let batch = batch?;
                packing.take(&batch, source)?;
                read += batch.num_rows() as u64;
                ctx.progress(read, total, "rows");
            }
        }
        packing.finish(ctx, total)
    }
}

/// Why a part of a row that fits is not packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unusable {
    TooShort,
    Untrained,
}

impl Pack {
    /// What of a row is packed: all of it, its first tokens, its pieces, or nothing where it is too long.
    fn parts<'r>(&self, ids: &'r [i32], labels: &'r [i32]) -> impl Iterator<Item = (&'r [i32], &'r [i32])> + use<'r> {
        let limit = self.sequence_len as usize;
        let most = match self.excess_length {
            ExcessLength::Split => usize::MAX,
            ExcessLength::Drop | ExcessLength::Raise if ids.len() > limit => 0,
            _ => 1,
        };
        ids.chunks(limit).zip(labels.chunks(limit)).take(most)
    }

    /// How many tokens of a part are trained, where it can be used.
    fn judge(&self, ids: &[i32], labels: &[i32]) -> Result<u64, Unusable> {
        if (ids.len() as u64) < self.min_sample_len {
            return Err(Unusable::TooShort);
        }
        // The first token of a document is never predicted.
        match labels[1..].iter().filter(|&&label| label != MASKED).count() as u64 {
            0 => Err(Unusable::Untrained),
            trained => Ok(trained),
        }
    }

    /// A window closes with the row that brings it to this many tokens.
    fn window_tokens(&self) -> usize {
        WINDOW_TOKENS.max((self.sequence_len as usize).saturating_mul(WINDOW_PACKS))
    }

    fn is_usable(&self, ids: &[i32], labels: &[i32]) -> bool {
        self.parts(ids, labels).any(|(ids, labels)| self.judge(ids, labels).is_ok())
    }
}

/// Rows that wait to be packed, end to end.
struct Window {
    ids: Vec<i32>,
    labels: Vec<i32>,
    ends: Vec<usize>,
    row_ids: Vec<String>,
    sources: Vec<u16>,
}

/// Counts of one dataset.
#[derive(Clone, Copy, Default)]
struct Counts {
    rows: u64,
    tokens: u64,
    trained_tokens: u64,
    too_long: u64,
    too_short: u64,
    untrained: u64,
    truncated: u64,
    split: u64,
}

/// What is carried from batch to batch.
struct Packing<'a> {
    pack: &'a Pack,
    window: Window,
    emitter: Emitter,
    counts: Vec<Counts>,
}

impl<'a> Packing<'a> {
    fn start(pack: &'a Pack, ctx: &Context, sources: usize) -> Result<Packing<'a>, TaskError> {
        Ok(Packing {
            pack,
            window: Window::new(pack),
            emitter: Emitter::start(TableWriter::create(&ctx.out().join(PACKS_FILE), shapes::packs())?),
            counts: vec![Counts::default(); sources],
        })
    }

    fn take(&mut self, batch: &RecordBatch, source: usize) -> Result<(), TaskError> {
        let row_ids = text_column(batch, "row_id")?;
        let (ids, labels) = (list_column(batch, "input_ids")?, list_column(batch, "labels")?);
        for i in 0..batch.num_rows() {
            self.row(row_ids.value(i), int_list(ids, i)?, int_list(labels, i)?, source)?;
        }
        Ok(())
    }

    fn row(&mut self, row_id: &str, ids: &[i32], labels: &[i32], source: usize) -> Result<(), TaskError> {
        let limit = self.pack.sequence_len as usize;
        let counts = &mut self.counts[source];
        if ids.len() > limit {
            match self.pack.excess_length {
                ExcessLength::Raise => return Err(too_long(row_id, ids.len(), limit)),
                ExcessLength::Drop => counts.too_long += 1,
                ExcessLength::Split => counts.split += 1,
                ExcessLength::Truncate => counts.truncated += 1,
            }
        }
        counts.too_short += u64::from(ids.is_empty());
        for (ids, labels) in self.pack.parts(ids, labels) {
            self.document(row_id, ids, labels, source);
        }
        let group = self.pack.group_size.is_some_and(|rows| self.window.ends.len() as u64 >= rows);
        if group || self.window.ids.len() >= self.pack.window_tokens() {
            self.close_window(group)?;
        }
        Ok(())
    }

    /// A row, or a part of one, that fits.
    fn document(&mut self, row_id: &str, ids: &[i32], labels: &[i32], source: usize) {
        let counts = &mut self.counts[source];
        match self.pack.judge(ids, labels) {
            Ok(trained) => {
                counts.rows += 1;
                counts.tokens += ids.len() as u64;
                counts.trained_tokens += trained;
                self.window.push(row_id, ids, labels, source as u16);
            }
            Err(Unusable::TooShort) => counts.too_short += 1,
            Err(Unusable::Untrained) => counts.untrained += 1,
        }
    }

    fn close_window(&mut self, last: bool) -> Result<(), TaskError> {
        let window = Arc::new(std::mem::replace(&mut self.window, Window::new(self.pack)));
        if !self.pack.packing {
            return self.emitter.emit(&window, (0..window.ends.len() as u32).map(|row| vec![row]).collect());
        }
        let capacity = self.pack.sequence_len.min(u64::from(u32::MAX)) as u32;
        let lengths: Vec<u32> = (0..window.ends.len()).map(|row| window.range(row).len() as u32).collect();
        let most = self.pack.bin_size.map_or(usize::MAX, |rows| rows.max(1) as usize);
        if self.pack.sequential {
            // The last pack may take more rows, so it waits for the next window.
            let mut bins = fit::next_fit(&lengths, capacity, most);
            let open = if last { None } else { bins.pop() };
            self.put_back(&window, open.into_iter().flatten());
            return self.emitter.emit(&window, bins);
        }
        let filled = |bin: &[u32]| bin.iter().map(|&row| f64::from(lengths[row as usize])).sum::<f64>();
        let is_good = |bin: &Vec<u32>| last || bin.len() == most || filled(bin) >= GOOD_FILL * f64::from(capacity);
        let (mut packs, poor): (Vec<_>, Vec<_>) =
            fit::best_fit(&lengths, capacity, most).into_iter().partition(is_good);
        // Where most packs are poor, waiting would not make them better: rows too long to share a pack.
        let mut waiting = poor.concat();
        waiting.sort_unstable();
        if filled(&waiting) * 4.0 > window.ids.len() as f64 {
            let lengths: Vec<u32> = waiting.iter().map(|&row| lengths[row as usize]).collect();
            let again = fit::best_fit(&lengths, capacity, most);
            packs.extend(again.into_iter().map(|bin| bin.iter().map(|&at| waiting[at as usize]).collect()));
            waiting.clear();
        }
        self.put_back(&window, waiting);
        self.emitter.emit(&window, packs)
    }

    fn put_back(&mut self, window: &Window, rows: impl IntoIterator<Item = u32>) {
        for row in rows.into_iter().map(|row| row as usize) {
            let range = window.range(row);
            let (ids, labels) = (&window.ids[range.clone()], &window.labels[range]);
            self.window.push(&window.row_ids[row], ids, labels, window.sources[row]);
        }
    }

    fn finish(mut self, ctx: &Context, read: u64) -> Result<Summary, TaskError> {
        self.close_window(true)?;
        let packs = self.emitter.finish()?;
        let sum = |of: fn(&Counts) -> u64| self.counts.iter().map(of).sum::<u64>();
        let (rows, tokens) = (sum(|c| c.rows), sum(|c| c.tokens));
        let mut summary = Summary { rows: Some(packs), ..Summary::default() };
        if rows == 0 {
            let (long, short, untrained) = (sum(|c| c.too_long), sum(|c| c.too_short), sum(|c| c.untrained));
            let why = format!(
                "{}: none of {read} rows can be used: {long} have more than sequence_len ({}) tokens, {short} fewer than {}, \
                 {untrained} no trained token",
                ctx.node, self.pack.sequence_len, self.pack.min_sample_len
            );
            if ctx.node.as_str() == "pack.train" {
                return Err(TaskError::Input(format!(
                    "{why}; raise sequence_len or look at the rows with `pipe show`"
                )));
            }
            summary.warnings.push(why);
        }
        let room = packs * self.pack.sequence_len;
        let fill = if room == 0 { 0.0 } else { tokens as f64 / room as f64 };
        let stats = &mut summary.stats;
        for (name, value) in [
            ("packs", packs),
            ("rows", rows),
            ("tokens", tokens),
            ("trained_tokens", sum(|c| c.trained_tokens)),
            ("dropped_too_long", sum(|c| c.too_long)),
            ("dropped_too_short", sum(|c| c.too_short)),
            ("dropped_untrained", sum(|c| c.untrained)),
            ("truncated", sum(|c| c.truncated)),
            ("split", sum(|c| c.split)),
        ] {
            stats.insert(name.into(), value.into());
        }
        stats.insert("fill".into(), fill.into());
        stats.insert("by_dataset".into(), self.counts.iter().map(Counts::json).collect());
        Ok(summary)
    }
}

impl Window {
    /// With room for all it may come to hold: rooms that grow leave holes behind.
    fn new(pack: &Pack) -> Self {
        let room = if pack.group_size.is_some() { 0 } else { 2 * WINDOW_TOKENS.min(pack.window_tokens()) };
        let (ids, labels) = (Vec::with_capacity(room), Vec::with_capacity(room));
        Self { ids, labels, ends: Vec::new(), row_ids: Vec::new(), sources: Vec::new() }
    }

    fn push(&mut self, row_id: &str, ids: &[i32], labels: &[i32], source: u16) {
        self.ids.extend_from_slice(ids);
        self.labels.extend_from_slice(labels);
        self.ends.push(self.ids.len());
        self.row_ids.push(row_id.to_string());
        self.sources.push(source);
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        start..self.ends[row]
    }
}

impl Counts {
    fn json(&self) -> Value {
        serde_json::json!({
            "rows": self.rows, "tokens": self.tokens, "trained_tokens": self.trained_tokens,
            "dropped_too_long": self.too_long, "dropped_too_short": self.too_short,
            "dropped_untrained": self.untrained, "truncated": self.truncated, "split": self.split,
        })
    }
}

fn too_long(row_id: &str, length: usize, limit: usize) -> TaskError {
    TaskError::Input(format!(
        "row {row_id} has {length} tokens and sequence_len is {limit}; raise sequence_len, or set excess_length_strategy to \
         drop or truncate"
    ))
}

#[cfg(test)]
mod tests;
