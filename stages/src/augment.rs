//! Augment: more training rows from the ones there are.
//!
//! ```text
//! paraphrase: ["{request}, please."]
//!   "show all containers" -> "docker ps -a"
//!   "show all containers, please." -> "docker ps -a"        (a row of its own, after the first)
//! ```
//! Only training rows come here: validation and test rows were set apart before, so no copy can leak into them. What becomes of
//! a row depends on its id and the seed, never on its neighbours. The one exception is `endpoint.rows`, which sends the rows
//! with the smallest digests.

pub mod endpoint;
mod generate;
pub mod section;
mod turns;
mod wording;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use pipe_engine::task::{Context, Summary, Task, TaskError};
use serde_json::{Value, json};

use self::endpoint::{Client, Request};
pub use self::section::{Augment, AugmentSection, Endpoint, EndpointSection, EndpointTask};
use crate::conversation::{Content, Example};
use crate::mix;
use crate::reuse::{Forward, Reuse, Weave};
use crate::rows::{LINEAGE_FILE, TableWriter, batches, row_count, shapes, text_column};

const ROWS_PER_BATCH: usize = 4096;
/// What a row's copies depend on, and what they are.
const COLUMNS: [&str; 3] = ["row_id", "data", "meta"];
/// Answers of a model that became no rows and are shown.
const SAMPLES: usize = 3;

/// The file that augment writes, and that it reads from split.
pub const TRAIN_FILE: &str = "train.parquet";

impl Task for Augment {
    fn stage(&self) -> &'static str {
        "augment"
    }

    fn version(&self) -> String {
        "2".into()
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn reuses_rows(&self) -> bool {
        !self.changes_nothing() && self.only_words()
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let input = ctx.input("train")?;
        let output = ctx.out().join(TRAIN_FILE);
        let total = row_count(input)?;
        if self.changes_nothing() {
            // A copy, not a hard link: damage to one of two artifacts must not be damage to both. File systems that can
            // share the blocks do so.
            std::fs::copy(input, &output).map_err(TaskError::io(format!("cannot write {}", output.display())))?;
            return Ok(Summary { rows: Some(total), ..Summary::default() });
        }
        let mut reuse = Reuse::of(ctx, "train", &COLUMNS)?;
        let mut earlier = EarlierRows::open(ctx)?;
        let mut writer = TableWriter::create(&output, shapes::example())?;
        let mut lineage = TableWriter::create(&ctx.out().join(LINEAGE_FILE), shapes::lineage())?;
        let mut work = Work::start(self, ctx, total)?;
        let mut read = 0;
        for batch in batches(input, &COLUMNS, ROWS_PER_BATCH)? {
            ctx.cancel.check()?;
            let batch = batch?;
            let origins = reuse.next(batch.num_rows());
            let (rows, from) = work.grow(&batch, &origins, earlier.as_mut(), read)?;
            writer.write(&rows)?;
            lineage.write(&from)?;
            read += batch.num_rows() as u64;
            ctx.progress(read, total, "rows");
        }
        lineage.finish()?;
        let rows = writer.finish()?;
        let reused = Some(reuse.rows());
        let mut summary = Summary { rows: Some(rows), rows_reused: reused, ..Summary::default() };
        summary.rows_computed = Some(total - reuse.rows());
        summary.stats.insert("read".into(), total.into());
        summary.stats.insert("added".into(), (rows - total).into());
        work.finish(&mut summary);
        Ok(summary)
    }
}

/// The copies that an earlier output has of each row.
struct EarlierRows {
    rows: Forward,
    lineage: Forward,
    /// Where the copies of each row of the earlier input begin, and where the last ones end.
    starts: Vec<u64>,
}

impl EarlierRows {
    fn open(ctx: &Context) -> Result<Option<EarlierRows>, TaskError> {
        let Some(earlier) = &ctx.earlier else { return Ok(None) };
        let mut starts = Vec::new();
        let (mut last, mut rows) = (String::new(), 0);
        for batch in batches(&earlier.output.join(LINEAGE_FILE), &["from"], ROWS_PER_BATCH)? {
            let batch = batch?;
            for from in text_column(&batch, "from")?.iter().flatten() {
                // Copies of a row lie together, and no two rows of a dataset share an id.
                if last != from {
                    starts.push(rows);
                    last = from.to_string();
                }
                rows += 1;
            }
        }
        starts.push(rows);
        let table = |file, columns| Forward::open(ctx, file, columns);
        let (rows, lineage) = (table(TRAIN_FILE, &COLUMNS)?, table(LINEAGE_FILE, &["row_id", "from"])?);
        Ok(rows.zip(lineage).map(|(rows, lineage)| EarlierRows { rows, lineage, starts }))
    }
}

/// Rows to be written, column by column.
#[derive(Default)]
struct Grown {
    ids: Vec<String>,
    data: Vec<String>,
    meta: Vec<Option<String>>,
    from: Vec<String>,
}

/// What is carried from batch to batch.
struct Work<'a> {
    augment: &'a Augment,
    ctx: &'a Context,
    total: u64,
    client: Option<Client<'a>>,
    /// Rows below this digest are sent.
    bound: u128,
    added: Vec<(&'static str, u64)>,
    /// Rows sent, answers that became no row, and some of those.
    sent: u64,
    unusable: u64,
    samples: Vec<Value>,
}

/// A row and its variants, each with the name that its id is made of.
type Variants = Vec<(String, String)>;

impl<'a> Work<'a> {
    fn start(augment: &'a Augment, ctx: &'a Context, total: u64) -> Result<Work<'a>, TaskError> {
        let client = match &augment.endpoint {
            Some(endpoint) => Some(Client::new(endpoint, &ctx.kept.join("answers"), &ctx.cancel)?),
            None => None,
        };
        let most = augment.endpoint.as_ref().and_then(|endpoint| endpoint.rows).filter(|&most| most < total);
        let bound = match most {
            Some(most) => bound(augment.seed, ctx, most as usize)?,
            None => u128::MAX,
        };
        Ok(Work { augment, ctx, total, client, bound, added: Vec::new(), sent: 0, unusable: 0, samples: Vec::new() })
    }

    /// The batch's rows with their copies, and where each came from; copies of rows with an origin are the earlier ones.
    fn grow(
        &mut self,
        batch: &RecordBatch,
        origins: &[Option<u64>],
        mut earlier: Option<&mut EarlierRows>,
        read: u64,
    ) -> Result<(RecordBatch, RecordBatch), TaskError> {
        let (ids, data) = (text_column(batch, "row_id")?, text_column(batch, "data")?);
        let broken = |e: String| TaskError::Failed(format!("a row between stages: {e}"));
        let (mut variants, mut examples) = (Vec::new(), Vec::new());
        for (i, origin) in origins.iter().enumerate() {
            if origin.is_some() && earlier.is_some() {
                variants.push(Variants::new());
                continue;
            }
            let example = Example::parse(data.value(i)).map_err(broken)?;
            variants.push(self.variants(ids.value(i), &example));
            examples.push(example);
        }
        // Rows are never taken over where an endpoint is asked: there, examples are all rows.
        self.write_anew(ids, &examples, &mut variants, read)?;
        let (mut rows, mut lineage) = (Weave::default(), Weave::default());
        let mut grown = Grown::default();
        for (i, (own, origin)) in variants.iter().zip(origins).enumerate() {
            if let (Some(row), Some(earlier)) = (origin, &mut earlier) {
                let row = *row as usize;
                for copy in earlier.starts[row]..earlier.starts[row + 1] {
                    rows.earlier(&mut earlier.rows, copy)?;
                    lineage.earlier(&mut earlier.lineage, copy)?;
                }
                continue;
            }
            for _ in 0..grown.add(batch, i, own, self.augment.repeat)? {
                rows.fresh();
                lineage.fresh();
            }
        }
        Ok((rows.finish(grown.rows()?)?, lineage.finish(grown.lineage()?)?))
    }

    /// Every variant of a row that needs nobody else.
    fn variants(&mut self, id: &str, example: &Example) -> Variants {
        let augment = self.augment;
        let mut made: Variants = Vec::new();
        let mut add = |kind: &'static str, k: usize, variant: Option<Example>| {
            let Some(variant) = variant.filter(|variant| variant != example) else { return };
            made.push((format!("{kind}/{k}"), variant.to_data()));
            // Of rows that are taken over it is not known; and where others are made, none is.
            if !augment.only_words() {
                count(&mut self.added, kind, 1);
            }
        };
        if augment.copies > 0 {
            let first = choice(augment.seed, id) % augment.paraphrase.len() as u64;
            let templates = augment.paraphrase.iter().cycle().skip(first as usize).take(augment.copies as usize);
            for (k, template) in templates.enumerate() {
                add("paraphrase", k, wording::reword(example, template));
            }
        }
        if let Some(noise) = &augment.noise {
            for k in 0..noise.copies as usize {
                add("noise", k, wording::mistype(example, noise, choice(augment.seed, &format!("{id}/noise/{k}"))));
            }
        }
        if let Some(prompt) = &augment.swap {
            add("swap_roles", 0, turns::swap(example, prompt));
        }
        if let Some(reply) = &augment.dialogue {
            add("dialogue", 0, turns::dialogue(example, reply));
        }
        made
    }

    /// Asks the endpoint about a batch's rows, and adds what its answers make.
    fn write_anew(
        &mut self,
        ids: &StringArray,
        examples: &[Example],
        variants: &mut [Variants],
        read: u64,
    ) -> Result<(), TaskError> {
        let (Some(client), Some(endpoint)) = (&self.client, &self.augment.endpoint) else { return Ok(()) };
        let mut requests: Vec<Request> = Vec::new();
        let mut whose = Vec::new();
        for (i, example) in examples.iter().enumerate() {
            let id = ids.value(i);
            if mix::digest(self.augment.seed, id) >= self.bound {
                continue;
            }
            for k in 0..endpoint.copies as usize {
                let seed = choice(self.augment.seed, &format!("{id}/endpoint/{k}"));
                if let Some(request) = generate::request(endpoint, example, seed) {
                    requests.push(request);
                    whose.push((i, k));
                }
            }
        }
        let tell = |done: usize| {
            let share = done as f64 / requests.len().max(1) as f64;
            self.ctx.progress(read + (share * examples.len() as f64) as u64, self.total, "rows");
        };
        let answers = client.ask(&requests, tell)?;
        self.sent += requests.len() as u64;
        for ((i, k), answer) in whose.into_iter().zip(answers) {
            match generate::row(endpoint, &examples[i], &answer.text) {
                Ok(made) => {
                    variants[i].push((format!("endpoint/{k}"), made.to_data()));
                    count(&mut self.added, "endpoint", 1);
                }
                Err(why) => {
                    self.unusable += 1;
                    if self.samples.len() < SAMPLES {
                        let text: String = answer.text.chars().take(160).collect();
                        self.samples.push(json!({"row_id": ids.value(i), "why": why, "text": text}));
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self, summary: &mut Summary) {
        for (kind, n) in &self.added {
            summary.stats.insert(format!("added_{kind}"), (*n).into());
        }
        let Some(client) = &self.client else { return };
        summary.stats.insert("endpoint".into(), serde_json::to_value(client.bill()).unwrap_or_default());
        summary.stats.insert("answers_unusable".into(), self.unusable.into());
        if self.unusable > 0 {
            summary.stats.insert("samples_unusable".into(), self.samples.into());
            summary.warnings.push(format!(
                "{} of {} answers of the endpoint could not be used and made no row; `pipe runs` shows some",
                self.unusable, self.sent
            ));
        }
    }
}

fn count(added: &mut Vec<(&'static str, u64)>, kind: &'static str, n: u64) {
    match added.iter_mut().find(|(name, _)| *name == kind) {
        Some((_, so_far)) => *so_far += n,
        None => added.push((kind, n)),
    }
}

/// The digest below which exactly `most` rows lie.
fn bound(seed: u64, ctx: &Context, most: usize) -> Result<u128, TaskError> {
    let mut digests = Vec::new();
    for batch in batches(ctx.input("train")?, &["row_id"], ROWS_PER_BATCH)? {
        let batch = batch?;
        let ids = text_column(&batch, "row_id")?;
        digests.extend((0..batch.num_rows()).map(|i| mix::digest(seed, ids.value(i))));
    }
    Ok(if most < digests.len() { *digests.select_nth_unstable(most).1 } else { u128::MAX })
}

impl Grown {
    /// Adds row `i` of the batch with its variants, each `repeat` times; how many rows that makes.
    fn add(&mut self, batch: &RecordBatch, i: usize, own: &Variants, repeat: u64) -> Result<usize, TaskError> {
        let (id, data) = (text_column(batch, "row_id")?.value(i), text_column(batch, "data")?.value(i));
        let meta = text_column(batch, "meta")?;
        let meta = (!meta.is_null(i)).then(|| meta.value(i).to_string());
        let before = self.ids.len();
        for round in 0..repeat {
            let first = std::iter::once(("", data));
            for (name, data) in first.chain(own.iter().map(|(name, data)| (name.as_str(), data.as_str()))) {
                let original = round == 0 && name.is_empty();
                self.ids.push(if original { id.to_string() } else { derived(id, round, name) });
                self.data.push(data.to_string());
                self.meta.push(meta.clone());
                self.from.push(id.to_string());
            }
        }
        Ok(self.ids.len() - before)
    }

    fn rows(&self) -> Result<RecordBatch, TaskError> {
        let texts = |values: &[String]| -> ArrayRef { Arc::new(StringArray::from_iter_values(values)) };
        let meta: StringArray = self.meta.iter().map(Option::as_deref).collect();
        batch(shapes::example(), vec![texts(&self.ids), texts(&self.data), Arc::new(meta)])
    }

    fn lineage(&self) -> Result<RecordBatch, TaskError> {
        let texts = |values: &[String]| -> ArrayRef { Arc::new(StringArray::from_iter_values(values)) };
        batch(shapes::lineage(), vec![texts(&self.ids), texts(&self.from)])
    }
}

fn batch(schema: arrow::datatypes::SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch, TaskError> {
    RecordBatch::try_new(schema, columns).map_err(|e| TaskError::Failed(e.to_string()))
}

/// The id of a copy: of its origin, its round and what was done to it.
fn derived(id: &str, round: u64, name: &str) -> String {
    Content::of_bytes(format!("{id}/{round}/{name}").as_bytes()).row_id(0)
}

fn choice(seed: u64, id: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(id.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
