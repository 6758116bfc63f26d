//! Split: train, validation and test rows by content.
//!
//! ```text
//! val: 0.1    row 5f0c… -> blake3(seed, content) = 0.07… of the range -> val.parquet
//! ```
//! A share compares the digest of a row's content with a threshold, a count takes the smallest digests. So equal rows
//! always fall on one side, and with shares a row's side never depends on other rows: appending rows moves none.

mod leakage;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use pipe_engine::task::{Context, Summary, Task, TaskError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::leakage::Leakage;
use self::leakage::Leaks;
use crate::conversation::Content;
use crate::mix;
use crate::rows::{TableWriter, batches, shapes, text_column};

const ROWS_PER_BATCH: usize = 4096;
const DEFAULT_SEED: u64 = 42;

/// Rows held out of training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SplitSection {
    /// Validation rows: a share below 1, or a count.
    #[schemars(range(min = 0), extend("if" = {"exclusiveMinimum": 1}, "then" = {"multipleOf": 1}), extend("default" = 0.0))]
    pub val: Option<f64>,
    /// Test rows: a share below 1, or a count.
    #[schemars(range(min = 0), extend("if" = {"exclusiveMinimum": 1}, "then" = {"multipleOf": 1}), extend("default" = 0.0))]
    pub test: Option<f64>,
    /// Another seed holds out other rows.
    #[schemars(extend("default" = 42))]
    pub seed: Option<u64>,
    /// Column whose every value is held out in the same proportion.
    pub stratify_by: Option<String>,
    /// Column whose equal values stay together on one side.
    pub group_by: Option<String>,
    /// What happens to training rows that ask what a held-out row asks, or nearly so: `report` counts and shows them, `drop`
    /// takes them out of training.
    #[schemars(extend("default" = "report"))]
    pub leakage: Option<Leakage>,
}

/// How many rows a part takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// Of all rows, 0 to 1.
    Share(f64),
    Count(u64),
}

/// One of the three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Train,
    Val,
    Test,
}

/// The section with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Split {
    pub val: Size,
    pub test: Size,
    pub seed: u64,
    pub stratify_by: Option<String>,
    pub group_by: Option<String>,
    /// Every row goes here, and the sizes do not count.
    pub all_to: Option<Part>,
    /// The share of the rows that are used at all; all of them when absent.
    pub take: Option<f64>,
    pub leakage: Leakage,
}

impl Size {
    /// Below 1 a share, from 1 a count.
    pub fn of(value: f64) -> Size {
        if value < 1.0 { Size::Share(value.max(0.0)) } else { Size::Count(value as u64) }
    }

    pub fn is_zero(self) -> bool {
        matches!(self, Size::Share(share) if share <= 0.0) || self == Size::Count(0)
    }
}

impl Split {
    /// Fills the defaults in; `val_set_size` is the alias of `val` outside the section.
    pub fn resolve(section: Option<&SplitSection>, val_set_size: Option<f64>) -> Split {
        let section = section.cloned().unwrap_or_default();
        Split {
            val: Size::of(section.val.or(val_set_size).unwrap_or(0.0)),
            test: Size::of(section.test.unwrap_or(0.0)),
            seed: section.seed.unwrap_or(DEFAULT_SEED),
            stratify_by: section.stratify_by,
            group_by: section.group_by,
            all_to: None,
            take: None,
            leakage: section.leakage.unwrap_or_default(),
        }
    }

    /// Sends every row to one part: datasets under `test_datasets` are test rows.
    pub fn all_to(part: Part) -> Split {
        let none = Size::Share(0.0);
        Split {
            val: none,
            test: none,
            seed: 0,
            stratify_by: None,
            group_by: None,
            all_to: Some(part),
            take: None,
            leakage: Leakage::Ignore,
        }
    }

    /// Uses a share of the rows only; repeating them, above 1, is the mix's part.
    pub fn taking(self, weight: f64) -> Split {
        Split { take: (weight < 1.0).then_some(weight), ..self }
    }
}

impl Task for Split {
    fn stage(&self) -> &'static str {
        "split"
    }

    fn version(&self) -> String {
        "2".into()
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let input = ctx.input("rows")?;
        let taken = self.taken(ctx)?;
        let limits = self.limits(ctx, &taken)?;
        let mut leaks = Leaks::start(self, ctx, |batch| self.parts(batch, &limits, &taken))?;
        let mut writers = Vec::new();
        for part in Part::ALL {
            writers.push(TableWriter::create(&ctx.out().join(part.file()), shapes::example())?);
        }
        for batch in batches(input, &["row_id", "data", "meta"], ROWS_PER_BATCH)? {
            ctx.cancel.check()?;
            let batch = batch?;
            let mut parts = self.parts(&batch, &limits, &taken)?;
            leaks.find(&batch, &mut parts)?;
            for (writer, wanted) in writers.iter_mut().zip(Part::ALL) {
                let mask: BooleanArray = parts.iter().map(|&part| Some(part == Some(wanted))).collect();
                if mask.true_count() == batch.num_rows() {
                    writer.write(&batch)?;
                } else if mask.true_count() > 0 {
                    let rows = filter_record_batch(&batch, &mask);
                    writer.write(&rows.map_err(|e| TaskError::Failed(e.to_string()))?)?;
                }
            }
        }
        let mut counts = Vec::new();
        for writer in writers {
            counts.push(writer.finish()?);
        }
        let mut summary = self.summary(&counts)?;
        if let Some(taken) = &taken {
            summary.stats.insert("left_out".into(), taken.left_out.into());
        }
        leaks.finish(ctx, &mut summary)?;
        Ok(summary)
    }
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Train, Part::Val, Part::Test];

    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Val => "val",
            Part::Test => "test",
        }
    }

    /// The file of this part in the split's output.
    pub fn file(self) -> String {
        format!("{}.parquet", self.name())
    }
}

/// Where the digests of a part end: test rows lie below the first bound, validation rows between the two.
#[derive(Clone, Copy)]
struct Bounds {
    test: u128,
    val: u128,
}

/// Bounds by stratum; one stratum, named by nothing, when there is no `stratify_by`.
type Limits = HashMap<String, Bounds>;

/// Which rows are used at all: those below a digest, of which there are exactly as many as asked for.
struct Taken {
    bound: u128,
    left_out: u64,
}

impl Split {
    /// Row ids are unique, so the count is exact, equal rows or not.
    fn taken(&self, ctx: &Context) -> Result<Option<Taken>, TaskError> {
        let Some(share) = self.take else { return Ok(None) };
        let mut digests = Vec::new();
        for batch in batches(ctx.input("rows")?, &["row_id"], ROWS_PER_BATCH)? {
            ctx.cancel.check()?;
            let batch = batch?;
            let ids = text_column(&batch, "row_id")?;
            digests.extend((0..batch.num_rows()).map(|i| mix::digest(self.seed, ids.value(i))));
        }
        // As Axolotl takes them: rounded down, and never none of some.
        let wanted =
            ((share * digests.len() as f64 + 1e-9).floor() as usize).clamp(1.min(digests.len()), digests.len());
        let left_out = (digests.len() - wanted) as u64;
        let bound = if left_out == 0 { u128::MAX } else { *digests.select_nth_unstable(wanted).1 };
        Ok(Some(Taken { bound, left_out }))
    }

    fn takes(&self, taken: &Option<Taken>, batch: &RecordBatch, i: usize) -> Result<bool, TaskError> {
        let Some(taken) = taken else { return Ok(true) };
        Ok(mix::digest(self.seed, text_column(batch, "row_id")?.value(i)) < taken.bound)
    }

    /// Shares need no look at the data; counts need the digests of all rows, and strata their sizes.
    fn limits(&self, ctx: &Context, taken: &Option<Taken>) -> Result<Limits, TaskError> {
        let shares = |size: Size| if let Size::Share(share) = size { Some(share) } else { None };
        if let (Some(val), Some(test)) = (shares(self.val), shares(self.test)) {
            // A share of every stratum by its own digests is the same threshold everywhere.
            let bounds = Bounds { test: threshold(test), val: threshold(val + test) };
            return Ok(HashMap::from([(String::new(), bounds)]));
        }
        let mut strata: BTreeMap<String, Vec<u128>> = BTreeMap::new();
        for batch in batches(ctx.input("rows")?, &["row_id", "meta"], ROWS_PER_BATCH)? {
            let batch = batch?;
            for i in 0..batch.num_rows() {
                if !self.takes(taken, &batch, i)? {
                    continue;
                }
                let (stratum, digest) = self.place(&batch, i)?;
                strata.entry(stratum).or_default().push(digest);
            }
            ctx.cancel.check()?;
        }
        Ok(self.counted(strata))
    }

    fn counted(&self, strata: BTreeMap<String, Vec<u128>>) -> Limits {
        let total: usize = strata.values().map(Vec::len).sum();
        let (sizes, total) = (strata.values().map(Vec::len).collect::<Vec<_>>(), total as u64);
        let tests = portions(self.test, &sizes, total);
        let vals = portions(self.val, &sizes, total);
        let mut limits = HashMap::new();
        for (((stratum, mut digests), test), val) in strata.into_iter().zip(tests).zip(vals) {
            digests.sort_unstable();
            let bound = |n: usize| match n.cmp(&digests.len()) {
                // Equal rows have equal digests and go together, so a part may come out a few rows larger.
                Ordering::Less if n == 0 => 0,
                Ordering::Less => digests[n - 1].saturating_add(1),
                _ => u128::MAX,
            };
            limits.insert(stratum, Bounds { test: bound(test), val: bound(test + val) });
        }
        limits
    }

    /// The part of each row; none for rows that are left out.
    fn parts(
        &self,
        batch: &RecordBatch,
        limits: &Limits,
        taken: &Option<Taken>,
    ) -> Result<Vec<Option<Part>>, TaskError> {
        let single = if limits.len() == 1 { limits.values().next().copied() } else { None };
        (0..batch.num_rows())
            .map(|i| {
                if !self.takes(taken, batch, i)? {
                    return Ok(None);
                }
                if self.all_to.is_some() {
                    return Ok(self.all_to);
                }
                let (stratum, digest) = self.place(batch, i)?;
                let bounds = single.or_else(|| limits.get(&stratum).copied()).unwrap_or(Bounds { test: 0, val: 0 });
                Ok(Some(match digest {
                    digest if digest < bounds.test => Part::Test,
                    digest if digest < bounds.val => Part::Val,
                    _ => Part::Train,
                }))
            })
            .collect()
    }

    /// A row's stratum and its seeded digest: of its group where rows are grouped, else of its content.
    fn place(&self, batch: &RecordBatch, i: usize) -> Result<(String, u128), TaskError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        let mut stratum = String::new();
        if self.group_by.is_some() || self.stratify_by.is_some() {
            let meta = text_column(batch, "meta")?;
            let meta: Value = match meta.is_null(i) {
                true => Value::Null,
                false => serde_json::from_str(meta.value(i)).map_err(|e| TaskError::Failed(e.to_string()))?,
            };
            let column = |name: &String| {
                meta.get(name).map(Value::to_string).ok_or_else(|| {
                    let row = text_column(batch, "row_id").map_or("", |ids| ids.value(i));
                    TaskError::Input(format!(
                        "split: row {row} has no column `{name}` to split by; name one that all rows have"
                    ))
                })
            };
            if let Some(name) = &self.stratify_by {
                stratum = column(name)?;
            }
            if let Some(name) = &self.group_by {
                hasher.update(column(name)?.as_bytes());
                return Ok((stratum, leading(&hasher)));
            }
        }
        let id = text_column(batch, "row_id")?.value(i);
        let content = Content::of_row_id(id).unwrap_or_else(|| Content::of_bytes(id.as_bytes()));
        hasher.update(content.as_bytes());
        Ok((stratum, leading(&hasher)))
    }

    fn summary(&self, counts: &[u64]) -> Result<Summary, TaskError> {
        let mut summary = Summary { rows: Some(counts.iter().sum()), ..Summary::default() };
        for (part, &count) in Part::ALL.into_iter().zip(counts) {
            summary.stats.insert(part.name().into(), count.into());
        }
        if self.all_to.is_some() {
            return Ok(summary);
        }
        if counts[0] == 0 {
            let (val, test) = (counts[1], counts[2]);
            return Err(TaskError::Input(format!(
                "split: no row is left to train on, {val} went to val and {test} to test; lower `split.val` and `split.test`"
            )));
        }
        for (part, size, count) in [(Part::Val, self.val, counts[1]), (Part::Test, self.test, counts[2])] {
            if !size.is_zero() && count == 0 {
                let (name, rows) = (part.name(), counts[0]);
                summary.warnings.push(format!(
                    "split.{name} is {} and no row of {rows} fell into it; give a count instead of a share",
                    size.text()
                ));
            }
        }
        Ok(summary)
    }
}

impl Size {
    fn text(self) -> String {
        match self {
            Size::Share(share) => share.to_string(),
            Size::Count(count) => count.to_string(),
        }
    }
}

/// A part's rows in each stratum: in proportion, the remainder to the strata with the largest fractions.
fn portions(size: Size, strata: &[usize], total: u64) -> Vec<usize> {
    let wanted = match size {
        Size::Share(share) => (share * total as f64).round() as u64,
        Size::Count(count) => count.min(total),
    };
    let exact: Vec<f64> = strata.iter().map(|&n| wanted as f64 * n as f64 / total.max(1) as f64).collect();
    let mut given: Vec<usize> = exact.iter().map(|n| n.floor() as usize).collect();
    let mut order: Vec<usize> = (0..strata.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let missing = (wanted as usize).saturating_sub(given.iter().sum());
    for &i in order.iter().take(missing) {
        given[i] += 1;
    }
    given
}

/// The digest below which a share of all digests lies.
fn threshold(share: f64) -> u128 {
    if share >= 1.0 {
        return u128::MAX;
    }
    // 53 bits of the share are all there are.
    ((share.max(0.0) * (1u64 << 53) as f64) as u128) << 75
}

fn leading(hasher: &blake3::Hasher) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests;
