//! Mix: how many rows of each dataset are trained on, and in which order.
//!
//! ```text
//! weights: {code: 3, chat: 1}    code 900 rows, chat 200 rows   ->   600 of code, 200 of chat
//! replay: {dataset: wiki, share: 0.2}                           ->   and 200 of wiki, one row in five
//! ```
//! It is part of pack: there every dataset's rows are known, and how many of them fit. Counts are exact, and rows are chosen
//! by a seeded digest of their ids, so the choice depends on no other row's place. Nothing here knows how rows are packed.

use std::path::Path;

use indexmap::IndexMap;
use pipe_engine::task::{Context, TaskError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::rows::{Batches, batches, int_list, list_column, text_column};

const ROWS_PER_BATCH: usize = 2048;
const DEFAULT_SEED: u64 = 42;

/// How datasets are put together for training. Validation and test rows are never mixed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MixSection {
    /// One dataset after the other, or drawn by their share.
    #[schemars(extend("default" = "concatenate"))]
    pub strategy: Option<MixStrategy>,
    /// Share of each dataset by its label, in any unit: `{code: 3, chat: 1}`. Without it every row is taken, times `weight`.
    #[schemars(extend("examples" = [{"code": 3, "chat": 1}]))]
    pub weights: Option<IndexMap<String, f64>>,
    /// Shares from sizes: in proportion at 1, equal towards infinity (rows to the power of 1/temperature).
    #[schemars(range(min = 1.0))]
    pub temperature: Option<f64>,
    /// With shares, when a dataset has no more rows: stop, or go on repeating it until all have been used up.
    #[schemars(extend("default" = "first_exhausted"))]
    pub stop: Option<MixStop>,
    /// A row occurs at most so often.
    #[schemars(range(min = 1))]
    pub max_repeats: Option<u64>,
    /// Rows of each epoch that all datasets give together.
    #[schemars(range(min = 1))]
    pub max_rows: Option<u64>,
    /// A dataset of general text that makes up a share of the rows, against forgetting.
    pub replay: Option<Replay>,
    /// Another seed chooses other rows.
    #[schemars(extend("default" = 42))]
    pub seed: Option<u64>,
}

/// A dataset that is there to be remembered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Replay {
    /// Label of a dataset under `datasets`.
    pub dataset: Option<String>,
    /// Its share of all rows.
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1), extend("default" = 0.1))]
    pub share: Option<f64>,
}

/// Ways to put datasets together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MixStrategy {
    #[default]
    Concatenate,
    Interleave,
}

/// Where a mix by shares ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MixStop {
    /// No row twice: the scarcest dataset sets the size.
    #[default]
    FirstExhausted,
    /// Every row at least once: the most plentiful one does.
    AllExhausted,
}

/// What a dataset gives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// All of its rows, so often.
    Times(f64),
    /// This share of the rows that are no replay, in any unit.
    Share(f64),
    /// A share that follows from its size.
    BySize,
    /// This share of all rows.
    Replay(f64),
}

/// The section with every default filled in; parts in the order of pack's inputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mix {
    pub strategy: MixStrategy,
    pub parts: Vec<Part>,
    pub temperature: Option<f64>,
    pub stop: MixStop,
    pub max_repeats: Option<u64>,
    pub max_rows: Option<u64>,
    pub seed: u64,
}

impl Mix {
    /// The mix of datasets with these labels and `weight`s; `None` where every row is taken once, dataset after dataset.
    pub fn resolve(section: Option<&MixSection>, datasets: &[(String, f64)]) -> Option<Mix> {
        let repeats = datasets.iter().any(|(_, weight)| *weight > 1.0);
        if section.is_none() && !repeats {
            return None;
        }
        let section = section.cloned().unwrap_or_default();
        let replay = section.replay.as_ref().and_then(|replay| replay.dataset.clone());
        let part = |(label, weight): &(String, f64)| {
            if replay.as_ref() == Some(label) {
                return Part::Replay(section.replay.as_ref().and_then(|replay| replay.share).unwrap_or(0.1));
            }
            match (&section.weights, section.temperature) {
                (Some(weights), _) => Part::Share(weights.get(label).copied().unwrap_or(0.0)),
                (None, Some(_)) => Part::BySize,
                // What lies below one was left out when rows were split.
                (None, None) => Part::Times(weight.max(1.0)),
            }
        };
        Some(Mix {
            strategy: section.strategy.unwrap_or_default(),
            parts: datasets.iter().map(part).collect(),
            temperature: section.temperature,
            stop: section.stop.unwrap_or_default(),
            max_repeats: section.max_repeats,
            max_rows: section.max_rows,
            seed: section.seed.unwrap_or(DEFAULT_SEED),
        })
    }

    /// Rows that each dataset gives, of so many that can be used.
    ///
    /// # Errors
    /// A dataset that has to give rows and has none, and a mix of no rows at all.
    pub fn targets(&self, usable: &[u64]) -> Result<Vec<u64>, String> {
        let replay = self.parts.iter().position(|part| matches!(part, Part::Replay(_)));
        let share = match replay.map(|at| self.parts[at]) {
            Some(Part::Replay(share)) => share,
            _ => 0.0,
        };
        let weights: Vec<f64> = self.parts.iter().zip(usable).map(|(part, &rows)| self.weight(*part, rows)).collect();
        if let Some(at) = (0..usable.len()).find(|&at| usable[at] == 0 && (weights[at] > 0.0 || replay == Some(at))) {
            return Err(format!("dataset {} has no row that can be used, and the mix gives it a share", at + 1));
        }
        let total = match self.max_rows {
            Some(most) => most - (share * most as f64).round() as u64,
            None => u64::MAX,
        };
        let mut targets = self.others(usable, &weights, total);
        let others: u64 = targets.iter().sum();
        if let Some(at) = replay {
            let wanted = match self.max_rows {
                Some(most) if others == total => most - others,
                _ => (share / (1.0 - share) * others as f64).round() as u64,
            };
            targets[at] = wanted;
        }
        if let Some(most) = self.max_repeats {
            targets.iter_mut().zip(usable).for_each(|(target, &rows)| *target = (*target).min(rows * most));
        }
        match targets.iter().sum::<u64>() {
            0 => Err("the mix has no rows; give its datasets larger shares".to_string()),
            _ => Ok(targets),
        }
    }

    fn weight(&self, part: Part, rows: u64) -> f64 {
        match part {
            Part::Times(_) | Part::Replay(_) => 0.0,
            Part::Share(weight) => weight,
            Part::BySize => (rows as f64).powf(1.0 / self.temperature.unwrap_or(1.0)),
        }
    }

    /// Rows of everything but the replay, at most `total`.
    fn others(&self, usable: &[u64], weights: &[f64], total: u64) -> Vec<u64> {
        let sum: f64 = weights.iter().sum();
        if sum > 0.0 {
            // At this size the dataset is used up.
            let ends = weights.iter().zip(usable).filter(|(weight, _)| **weight > 0.0);
            let ends = ends.map(|(weight, &rows)| rows as f64 * sum / weight);
            let size = match self.stop {
                _ if total != u64::MAX => total,
                MixStop::FirstExhausted => (ends.fold(f64::INFINITY, f64::min) + 1e-6).floor() as u64,
                MixStop::AllExhausted => (ends.fold(0.0, f64::max) - 1e-6).ceil() as u64,
            };
            return portions(size, weights);
        }
        let times = |(part, &rows): (&Part, &u64)| match part {
            Part::Times(times) => (times * rows as f64 + 1e-9).floor() as u64,
            _ => 0,
        };
        let all: Vec<u64> = self.parts.iter().zip(usable).map(times).collect();
        if all.iter().sum::<u64>() <= total {
            return all;
        }
        portions(total, &all.iter().map(|&rows| rows as f64).collect::<Vec<_>>())
    }
}

/// `total` in proportion to `weights`, the remainder to the largest fractions.
fn portions(total: u64, weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| total as f64 * weight / sum).collect();
    // A share that is whole but for rounding is whole.
    let mut given: Vec<u64> = exact.iter().map(|rows| (rows + 1e-9).floor() as u64).collect();
    let mut order: Vec<usize> = (0..weights.len()).filter(|&at| weights[at] > 0.0).collect();
    let fraction = |at: usize| exact[at] - given[at] as f64;
    order.sort_by(|&a, &b| fraction(b).total_cmp(&fraction(a)).then(a.cmp(&b)));
    let missing = total.saturating_sub(given.iter().sum());
    for &at in order.iter().take(missing as usize) {
        given[at] += 1;
    }
    given
}

/// A row as the mix hands it on.
pub struct MixedRow<'a> {
    pub row_id: &'a str,
    pub ids: &'a [i32],
    pub labels: &'a [i32],
    pub source: usize,
}

/// Hands every row of the mix to `take`, in order; rows that `usable` refuses are handed over once, to be counted. Returns
/// what was mixed, for the statistics.
pub fn feed(
    mix: &Mix,
    inputs: &[&Path],
    ctx: &Context,
    usable: impl Fn(&[i32], &[i32]) -> bool,
    mut take: impl FnMut(MixedRow<'_>) -> Result<(), TaskError>,
) -> Result<Value, TaskError> {
    let mut digests: Vec<Vec<u128>> = Vec::new();
    for (source, path) in inputs.iter().enumerate() {
        let mut own = Vec::new();
        each_row(path, ctx, |row_id, ids, labels| {
            if usable(ids, labels) {
                own.push(digest(mix.seed, row_id));
                return Ok(());
            }
            take(MixedRow { row_id, ids, labels, source })
        })?;
        digests.push(own);
    }
    let rows: Vec<u64> = digests.iter().map(|own| own.len() as u64).collect();
    let targets = mix.targets(&rows).map_err(|why| TaskError::Input(format!("mix: {why}")))?;
    let mut streams = Vec::new();
    for (source, own) in digests.into_iter().enumerate() {
        streams.push(Stream::new(inputs[source], mix.seed, own, targets[source])?);
    }
    let total: u64 = targets.iter().sum();
    let mut given = vec![0u64; streams.len()];
    for done in 0..total {
        let source = match mix.strategy {
            MixStrategy::Concatenate => (0..given.len()).find(|&at| given[at] < targets[at]),
            // The dataset that lags most behind its share.
            MixStrategy::Interleave => (0..given.len())
                .filter(|&at| given[at] < targets[at])
                .max_by_key(|&at| (lag(targets[at], given[at], done, total), std::cmp::Reverse(at))),
        };
        let Some(source) = source else { break };
        given[source] += 1;
        streams[source].next(&usable, |row_id, ids, labels| take(MixedRow { row_id, ids, labels, source }))?;
        if done.is_multiple_of(4096) {
            ctx.cancel.check()?;
            ctx.progress(done, total, "rows");
        }
    }
    Ok(told(mix, &rows, &targets))
}

fn lag(target: u64, given: u64, done: u64, total: u64) -> i128 {
    i128::from(target) * i128::from(done + 1) - i128::from(given) * i128::from(total)
}

fn told(mix: &Mix, rows: &[u64], targets: &[u64]) -> Value {
    let total: u64 = targets.iter().sum();
    let one = |(&rows, &taken): (&u64, &u64)| {
        json!({
            "rows": rows, "taken": taken, "share": taken as f64 / total.max(1) as f64,
            "repeats": taken as f64 / rows.max(1) as f64,
        })
    };
    json!({"strategy": mix.strategy, "rows": total, "datasets": rows.iter().zip(targets).map(one).collect::<Vec<_>>()})
}

/// The rows of one dataset, each as often as it is taken: all of them `whole` times, then those with the smallest digests.
struct Stream<'a> {
    path: &'a Path,
    seed: u64,
    whole: u64,
    /// Rows below this digest are taken once more.
    bound: u128,
    pass: u64,
    reader: Option<Batches>,
    batch: Option<arrow::array::RecordBatch>,
    row: usize,
}

impl<'a> Stream<'a> {
    fn new(path: &'a Path, seed: u64, mut digests: Vec<u128>, target: u64) -> Result<Stream<'a>, TaskError> {
        let rows = digests.len().max(1) as u64;
        let (whole, rest) = (target / rows, (target % rows) as usize);
        let bound = if rest == 0 { 0 } else { *digests.select_nth_unstable(rest).1 };
        Ok(Stream { path, seed, whole, bound, pass: 0, reader: None, batch: None, row: 0 })
    }

    fn next(
        &mut self,
        usable: &impl Fn(&[i32], &[i32]) -> bool,
        take: impl FnOnce(&str, &[i32], &[i32]) -> Result<(), TaskError>,
    ) -> Result<(), TaskError> {
        loop {
            let Some(batch) = &self.batch else {
                self.read()?;
                continue;
            };
            if self.row >= batch.num_rows() {
                self.batch = None;
                continue;
            }
            let i = self.row;
            self.row += 1;
            let row_id = text_column(batch, "row_id")?.value(i);
            let ids = int_list(list_column(batch, "input_ids")?, i)?;
            let labels = int_list(list_column(batch, "labels")?, i)?;
            let wanted = self.pass < self.whole || digest(self.seed, row_id) < self.bound;
            if wanted && usable(ids, labels) {
                return take(row_id, ids, labels);
            }
        }
    }

    /// The next batch, from the beginning again after the last.
    fn read(&mut self) -> Result<(), TaskError> {
        self.row = 0;
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => self.reader.insert(batches(self.path, &COLUMNS, ROWS_PER_BATCH)?),
        };
        match reader.next().transpose()? {
            Some(batch) => self.batch = Some(batch),
            None if self.pass > self.whole => {
                return Err(TaskError::Failed("a mix asked for more rows than there are".to_string()));
            }
            None => {
                self.reader = None;
                self.pass += 1;
            }
        }
        Ok(())
    }
}

const COLUMNS: [&str; 3] = ["row_id", "input_ids", "labels"];

fn each_row(
    path: &Path,
    ctx: &Context,
    mut take: impl FnMut(&str, &[i32], &[i32]) -> Result<(), TaskError>,
) -> Result<(), TaskError> {
    for batch in batches(path, &COLUMNS, ROWS_PER_BATCH)? {
        ctx.cancel.check()?;
        let batch = batch?;
        let row_ids = text_column(&batch, "row_id")?;
        let (ids, labels) = (list_column(&batch, "input_ids")?, list_column(&batch, "labels")?);
        for i in 0..batch.num_rows() {
            take(row_ids.value(i), int_list(ids, i)?, int_list(labels, i)?)?;
        }
    }
    Ok(())
}

/// Where a row stands in the seeded order of its dataset.
pub fn digest(seed: u64, row_id: &str) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"mix");
    hasher.update(&seed.to_le_bytes());
    hasher.update(row_id.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests;
