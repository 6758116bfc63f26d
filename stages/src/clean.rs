//! Clean: drops rows that cannot teach, and whatever else its section asks for.
//!
//! ```text
//! normalize, dedup: exact     "Hi! \r\n", "Hi!", ""   ->   "Hi!"
//! ```
//! Without a section only empty and invalid rows go: rows are never de-duplicated unasked. Rows keep their order and their
//! ids; a row that normalisation changed takes the id of its new content, and `lineage.parquet` leads back. What is
//! written says nothing of the rows that are gone, so removing a duplicate from the source changes nothing downstream.

mod near;
mod normal;
mod rules;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use indexmap::IndexMap;
use pipe_engine::task::{Context, Summary, Task, TaskError};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::near::NearIndex;
use self::rules::{Candidate, Reason};
use crate::conversation::{Content, Example, RowIds};
use crate::rows::{LINEAGE_FILE, ROWS_FILE, TableWriter, batches, row_count, shapes, text_column, workers};

const ROWS_PER_BATCH: usize = 4096;
const DEFAULT_NEAR_THRESHOLD: f64 = 0.8;

/// Which rows to drop, and what to change in the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CleanSection {
    /// Keep the first of equal rows, or of nearly equal ones.
    #[schemars(extend("default" = "none"))]
    pub dedup: Option<Dedup>,
    /// Drop rows with fewer characters than this, counted over all texts of the row.
    #[schemars(range(min = 0))]
    pub min_chars: Option<u64>,
    /// Drop rows with more characters than this, counted over all texts of the row.
    #[schemars(range(min = 1))]
    pub max_chars: Option<u64>,
    /// Drop rows without an answer, or without any text.
    #[schemars(extend("default" = true))]
    pub drop_empty: Option<bool>,
    /// Unix line ends, no control or zero-width characters, no white space at the ends of lines and texts.
    #[schemars(extend("default" = false))]
    pub normalize: Option<bool>,
    /// Similarity from which two rows count as nearly equal: the share of five-word runs in common.
    #[schemars(range(min = 0.1, max = 1.0), extend("default" = 0.8))]
    pub near_threshold: Option<f64>,
}

/// Which rows count as the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dedup {
    /// None: every row stays.
    #[default]
    None,
    /// Rows with equal content.
    Exact,
    /// Rows with equal content, and rows that share most of their words in order.
    Near,
}

/// The section with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Clean {
    pub dedup: Dedup,
    pub min_chars: Option<u64>,
    pub max_chars: Option<u64>,
    pub drop_empty: bool,
    pub normalize: bool,
    /// Only where `dedup` is near.
    pub near_threshold: Option<f64>,
}

impl Clean {
    /// Fills the defaults in.
    pub fn resolve(section: Option<&CleanSection>) -> Clean {
        let section = section.cloned().unwrap_or_default();
        let dedup = section.dedup.unwrap_or_default();
        Clean {
            dedup,
            min_chars: section.min_chars.filter(|&least| least > 0),
            max_chars: section.max_chars,
            drop_empty: section.drop_empty.unwrap_or(true),
            normalize: section.normalize.unwrap_or(false),
            near_threshold: (dedup == Dedup::Near).then_some(section.near_threshold.unwrap_or(DEFAULT_NEAR_THRESHOLD)),
        }
    }
}

impl Task for Clean {
    fn stage(&self) -> &'static str {
        "clean"
    }

    fn version(&self) -> String {
        "1".into()
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let input = ctx.input("rows")?;
        let total = row_count(input)?;
        let pool = workers(ctx.threads)?;
        let mut cleaning = Cleaning::start(self, ctx.out())?;
        let mut read = 0;
        for batch in batches(input, &["row_id", "data", "meta"], ROWS_PER_BATCH)? {
            ctx.cancel.check()?;
            let batch = batch?;
            let rows = pool.install(|| self.candidates(&batch))?;
            cleaning.take(self, &batch, rows)?;
            read += batch.num_rows() as u64;
            ctx.progress(read, total, "rows");
        }
        cleaning.finish(total)
    }
}

impl Clean {
    fn candidates(&self, batch: &RecordBatch) -> Result<Vec<Candidate>, TaskError> {
        let data = text_column(batch, "data")?;
        (0..batch.num_rows()).into_par_iter().with_min_len(16).map(|i| self.candidate(data.value(i))).collect()
    }

    fn candidate(&self, data: &str) -> Result<Candidate, TaskError> {
        let mut example = Example::parse(data).map_err(|e| TaskError::Failed(format!("a row between stages: {e}")))?;
        let changed = self.normalize && normal::normalize(&mut example);
        let shingles = self.near_threshold.map(|_| near::sketch(&example));
        Ok(Candidate::new(&example, changed, shingles))
    }
}

/// What is carried from batch to batch.
struct Cleaning {
    writer: TableWriter,
    lineage: TableWriter,
    ids: RowIds,
    seen: HashSet<Content>,
    near: Option<NearIndex>,
    changed: u64,
    dropped: IndexMap<Reason, Dropped>,
}

#[derive(Default)]
struct Dropped {
    rows: u64,
    samples: Vec<String>,
}

impl Cleaning {
    fn start(clean: &Clean, out: &Path) -> Result<Cleaning, TaskError> {
        Ok(Cleaning {
            writer: TableWriter::create(&out.join(ROWS_FILE), shapes::example())?,
            lineage: TableWriter::create(&out.join(LINEAGE_FILE), shapes::lineage())?,
            ids: RowIds::default(),
            seen: HashSet::new(),
            near: clean.near_threshold.map(NearIndex::new),
            changed: 0,
            dropped: IndexMap::new(),
        })
    }

    fn take(&mut self, clean: &Clean, batch: &RecordBatch, rows: Vec<Candidate>) -> Result<(), TaskError> {
        let (from, data, meta) =
            (text_column(batch, "row_id")?, text_column(batch, "data")?, text_column(batch, "meta")?);
        let reasons = rules::apply(clean, &rows)?;
        let (mut ids, mut texts, mut metas, mut origins) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, (row, reason)) in rows.iter().zip(reasons).enumerate() {
            let original = from.value(i);
            // A row's own id already names its content.
            let content = match row.changed {
                Some(ref changed) => changed.content,
                None => Content::of_row_id(original).unwrap_or_else(|| Content::of_bytes(original.as_bytes())),
            };
            if let Some(reason) = reason.or_else(|| self.duplicate(clean, content, row)) {
                let dropped = self.dropped.entry(reason).or_default();
                dropped.rows += 1;
                if dropped.samples.len() < 3 {
                    dropped.samples.push(original.to_string());
                }
                continue;
            }
            self.changed += u64::from(row.changed.is_some());
            ids.push(self.ids.name(content));
            texts.push(row.changed.as_ref().map_or(data.value(i), |changed| changed.data.as_str()));
            metas.push((!meta.is_null(i)).then(|| meta.value(i)));
            origins.push(original);
        }
        let ids: ArrayRef = Arc::new(StringArray::from(ids));
        let failed = |e: arrow::error::ArrowError| TaskError::Failed(e.to_string());
        let columns: Vec<ArrayRef> =
            vec![ids.clone(), Arc::new(StringArray::from(texts)), Arc::new(StringArray::from(metas))];
        self.writer.write(&RecordBatch::try_new(shapes::example(), columns).map_err(failed)?)?;
        let columns: Vec<ArrayRef> = vec![ids, Arc::new(StringArray::from(origins))];
        self.lineage.write(&RecordBatch::try_new(shapes::lineage(), columns).map_err(failed)?)
    }

    fn duplicate(&mut self, clean: &Clean, content: Content, row: &Candidate) -> Option<Reason> {
        if clean.dedup == Dedup::None {
            return None;
        }
        if !self.seen.insert(content) {
            return Some(Reason::Duplicate);
        }
        let (near, sketch) = (self.near.as_mut()?, row.sketch.as_ref()?);
        near.is_near(sketch).then_some(Reason::NearDuplicate)
    }

    fn finish(self, read: u64) -> Result<Summary, TaskError> {
        let rows = self.writer.finish()?;
        self.lineage.finish()?;
        if rows == 0 && read > 0 {
            let why: Vec<String> = self.dropped.iter().map(|(why, d)| format!("{} {}", d.rows, why.name())).collect();
            let why = why.join(", ");
            return Err(TaskError::Input(format!("clean drops all {read} rows ({why}); loosen its rules")));
        }
        let mut summary = Summary { rows: Some(rows), ..Summary::default() };
        summary.stats.insert("read".into(), read.into());
        summary.stats.insert("normalized".into(), self.changed.into());
        for (reason, dropped) in &self.dropped {
            summary.stats.insert(format!("dropped_{}", reason.name()), dropped.rows.into());
            summary.stats.insert(format!("samples_{}", reason.name()), dropped.samples.clone().into());
        }
        Ok(summary)
    }
}

#[cfg(test)]
mod tests;
