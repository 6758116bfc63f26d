//! Clean: drops rows that cannot teach, and whatever else its section asks for.
//!
//! ```text
//! normalize, dedup: exact     "Hi! \r\n", "Hi!", ""   ->   "Hi!"
//! ```
//! Without a section only empty and invalid rows go: rows are never de-duplicated unasked. Rows keep their order and their
//! ids; a row whose texts were changed takes the id of its new content, and `lineage.parquet` leads back. The rows that are
//! written say nothing of those that are gone, so removing a duplicate from the source changes nothing downstream;
//! what is gone, and why, is in `dropped.json`.

mod boilerplate;
pub mod contamination;
mod edit;
pub(crate) mod html;
mod language;
mod measure;
mod normal;
mod profanity;
mod redact;
mod rules;
mod section;
mod told;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError, View};
use rayon::prelude::*;
use serde_json::Value;

use self::rules::{Candidate, Judge, Language, Reason};
pub use self::section::{Clean, CleanSection, Contamination, Dedup, Normalize, Pii, Profanity, Redact};
pub use self::told::DROPPED_FILE;
use self::told::{Sample, Told};
use crate::alike::{Index, Likeness, Sketch};
use crate::conversation::{Content, Example, RowIds};
use crate::rows::{LINEAGE_FILE, ROWS_FILE, TableWriter, batches, row_count, shapes, text_column, workers};

const ROWS_PER_BATCH: usize = 4096;
const PROFANITY_ROLE: &str = "profanity";

impl Task for Clean {
    fn stage(&self) -> &'static str {
        "clean"
    }

    fn version(&self) -> String {
        "2".into()
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn files(&self) -> Vec<SourceFile> {
        let file = |role: String, path: &std::path::PathBuf| SourceFile { role, path: path.clone(), view: View::Whole };
        let list = self.profanity_list.iter().map(|path| file(PROFANITY_ROLE.to_string(), path));
        let numbered = self.contamination_files.iter().enumerate();
        list.chain(numbered.map(|(i, path)| file(format!("{}{i}", contamination::FILE_ROLE), path))).collect()
    }

    fn resources(&self) -> Resources {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Resources { cores, ..Resources::default() }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let input = ctx.input("rows")?;
        let total = row_count(input)?;
        let pool = workers(ctx.threads)?;
        let judge = Judge::new(self, ctx)?;
        let mut cleaning = Cleaning::start(self, &judge, ctx)?;
        let mut read = 0;
        for batch in batches(input, &["row_id", "data", "meta"], ROWS_PER_BATCH)? {
            ctx.cancel.check()?;
            let batch = batch?;
            let data = text_column(&batch, "data")?;
            let each = (0..batch.num_rows()).into_par_iter().with_min_len(16);
            let rows: Vec<Candidate> =
                pool.install(|| each.map(|i| judge.candidate(data.value(i))).collect::<Result<_, _>>())?;
            cleaning.take(&batch, rows)?;
            read += batch.num_rows() as u64;
            ctx.progress(read, total, "rows");
        }
        cleaning.finish(ctx, total)
    }
}

/// What is carried from batch to batch.
struct Cleaning<'a> {
    clean: &'a Clean,
    judge: &'a Judge<'a>,
    writer: TableWriter,
    lineage: TableWriter,
    ids: RowIds,
    seen: HashSet<Content>,
    near: Option<Near>,
    told: Told,
}

/// Rows kept so far, by likeness, and what they are.
struct Near {
    index: Index,
    contents: Vec<Content>,
}

/// A sketch of what a row says, for near-duplicates.
fn near_sketch(likeness: Likeness, example: &Example) -> Sketch {
    likeness.sketch(example.texts())
}

impl<'a> Cleaning<'a> {
    fn start(clean: &'a Clean, judge: &'a Judge<'a>, ctx: &Context) -> Result<Cleaning<'a>, TaskError> {
        Ok(Cleaning {
            clean,
            judge,
            writer: TableWriter::create(&ctx.out().join(ROWS_FILE), shapes::example())?,
            lineage: TableWriter::create(&ctx.out().join(LINEAGE_FILE), shapes::lineage())?,
            ids: RowIds::default(),
            seen: HashSet::new(),
            near: judge.likeness.map(|likeness| Near { index: Index::new(likeness), contents: Vec::new() }),
            told: Told::default(),
        })
    }

    fn take(&mut self, batch: &RecordBatch, rows: Vec<Candidate>) -> Result<(), TaskError> {
        let (from, data, meta) =
            (text_column(batch, "row_id")?, text_column(batch, "data")?, text_column(batch, "meta")?);
        let reasons = rules::apply(self.clean, &rows)?;
        let (mut ids, mut texts, mut metas, mut origins) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, (row, reason)) in rows.iter().zip(reasons).enumerate() {
            let original = from.value(i);
            // A row's own id already names its content.
            let content = match row.changed {
                Some(ref changed) => changed.content,
                None => Content::of_row_id(original).unwrap_or_else(|| Content::of_bytes(original.as_bytes())),
            };
            let found = match reason {
                Some(reason) => Some((reason, self.judge.detail(reason, row))),
                None => self.duplicate(content, row),
            };
            let most = self.clean.samples;
            let sample = |why: String| Sample { row_id: original.to_string(), why, text: row.excerpt.clone() };
            if let Some((reason, why)) = found {
                self.told.drop(reason, most, || sample(why));
                continue;
            }
            if let Some(why) = &row.contaminated {
                self.told.note("contaminated", most, || sample(why.clone()));
            }
            if row.language == Language::Unsure {
                self.told.note("language_unsure", most, || sample(String::new()));
            }
            self.told.edits(&row.edits);
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

    fn duplicate(&mut self, content: Content, row: &Candidate) -> Option<(Reason, String)> {
        if self.clean.dedup == Dedup::None {
            return None;
        }
        if !self.seen.insert(content) {
            return Some((Reason::Duplicate, format!("as {}", content.row_id(0))));
        }
        let (near, sketch) = (self.near.as_mut()?, row.sketch.as_ref()?);
        if let Some((other, alike)) = near.index.find(sketch) {
            return Some((Reason::NearDuplicate, format!("{alike:.2} as {}", near.contents[other].row_id(0))));
        }
        near.index.add(sketch);
        near.contents.push(content);
        None
    }

    fn finish(self, ctx: &Context, read: u64) -> Result<Summary, TaskError> {
        let rows = self.writer.finish()?;
        self.lineage.finish()?;
        if rows == 0 && read > 0 {
            let why = self.told.tally();
            return Err(TaskError::Input(format!("clean drops all {read} rows ({why}); loosen its rules")));
        }
        self.told.write(ctx.out(), read, rows)?;
        let mut summary = Summary { rows: Some(rows), ..Summary::default() };
        summary.stats.insert("read".into(), read.into());
        self.told.summarise(&mut summary);
        if let Some(evaluated) = &self.judge.evaluated {
            summary.stats.insert("evaluation_rows".into(), evaluated.rows.into());
        }
        let shared = self.told.noted("contaminated");
        if shared > 0 {
            summary.warnings.push(format!(
                "{shared} training rows share text with evaluation rows, which makes scores look better than they are; \
                 `clean.contamination: drop` takes them out (samples: {DROPPED_FILE})"
            ));
        }
        Ok(summary)
    }
}

#[cfg(test)]
mod tests;
