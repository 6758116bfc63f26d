//! Augment: more training rows from the ones there are.
//!
//! ```text
//! paraphrase: ["{request}, please."]
//!   "show all containers" -> "docker ps -a"
//!   "show all containers, please." -> "docker ps -a"        (a row of its own, after the first)
//! ```
//! Only training rows come here: validation and test rows were set apart before, so no copy can leak into them. The choice of
//! templates depends on a row's id and the seed, never on its neighbours.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use pipe_engine::task::{Context, Summary, Task, TaskError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conversation::{Content, Example};
use crate::reuse::{Forward, Reuse, Weave};
use crate::rows::{LINEAGE_FILE, TableWriter, batches, row_count, shapes, text_column};

const ROWS_PER_BATCH: usize = 4096;
/// What a row's copies depend on, and what they are.
const COLUMNS: [&str; 3] = ["row_id", "data", "meta"];
const DEFAULT_SEED: u64 = 42;
/// Stands for the row's own request in a paraphrase template.
const REQUEST: &str = "{request}";

/// The file that augment writes, and that it reads from split.
pub const TRAIN_FILE: &str = "train.parquet";

/// How training rows are multiplied. Validation and test rows are never touched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentSection {
    /// How often each row occurs.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub repeat: Option<u64>,
    /// Ways to word a request, with `{request}` for the row's own; each row gains `copies` reworded copies.
    #[schemars(extend("examples" = [["{request}, please.", "Could you tell me: {request}"]]))]
    pub paraphrase: Option<Vec<String>>,
    /// Reworded copies of each row, each with another of the `paraphrase` templates.
    #[schemars(range(min = 1), extend("default" = 1))]
    pub copies: Option<u64>,
    /// Another seed chooses other templates.
    #[schemars(extend("default" = 42))]
    pub seed: Option<u64>,
}

/// The section with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Augment {
    pub repeat: u64,
    pub paraphrase: Vec<String>,
    /// At most as many as there are templates; 0 without any.
    pub copies: u64,
    /// 0 where nothing is chosen.
    pub seed: u64,
}

impl Augment {
    /// Fills the defaults in.
    pub fn resolve(section: Option<&AugmentSection>) -> Augment {
        let section = section.cloned().unwrap_or_default();
        let paraphrase = section.paraphrase.unwrap_or_default();
        let copies = section.copies.unwrap_or(1).min(paraphrase.len() as u64);
        let seed = if copies == 0 { 0 } else { section.seed.unwrap_or(DEFAULT_SEED) };
        Augment { repeat: section.repeat.unwrap_or(1).max(1), paraphrase, copies, seed }
    }

    /// Names the template that lacks `{request}`, if one does.
    pub fn check(&self) -> Result<(), String> {
        match self.paraphrase.iter().find(|template| !template.contains(REQUEST)) {
            Some(bad) => Err(format!(
                "augment.paraphrase: `{bad}` does not contain `{REQUEST}`, the place of the row's own text"
            )),
            None => Ok(()),
        }
    }

    fn changes_nothing(&self) -> bool {
        self.repeat == 1 && self.copies == 0
    }
}

impl Task for Augment {
    fn stage(&self) -> &'static str {
        "augment"
    }

    fn version(&self) -> String {
        "1".into()
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn reuses_rows(&self) -> bool {
        !self.changes_nothing()
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        self.check().map_err(TaskError::Input)?;
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
        let mut read = 0;
        for batch in batches(input, &COLUMNS, ROWS_PER_BATCH)? {
            ctx.cancel.check()?;
            let batch = batch?;
            let origins = reuse.next(batch.num_rows());
            let (rows, from) = self.grown(&batch, &origins, earlier.as_mut())?;
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

impl Augment {
    /// The batch's rows with their copies, and where each came from; copies of rows with an origin are the earlier ones.
    fn grown(
        &self,
        batch: &RecordBatch,
        origins: &[Option<u64>],
        mut earlier: Option<&mut EarlierRows>,
    ) -> Result<(RecordBatch, RecordBatch), TaskError> {
        let (mut rows, mut lineage) = (Weave::default(), Weave::default());
        let mut grown = Grown::default();
        for (i, origin) in origins.iter().enumerate() {
            match (origin, &mut earlier) {
                (Some(row), Some(earlier)) => {
                    let row = *row as usize;
                    for copy in earlier.starts[row]..earlier.starts[row + 1] {
                        rows.earlier(&mut earlier.rows, copy)?;
                        lineage.earlier(&mut earlier.lineage, copy)?;
                    }
                }
                _ => {
                    let before = grown.ids.len();
                    self.grow(batch, i, &mut grown)?;
                    for _ in before..grown.ids.len() {
                        rows.fresh();
                        lineage.fresh();
                    }
                }
            }
        }
        Ok((rows.finish(grown.rows()?)?, lineage.finish(grown.lineage()?)?))
    }

    /// Adds row `i` of the batch with its copies.
    fn grow(&self, batch: &RecordBatch, i: usize, grown: &mut Grown) -> Result<(), TaskError> {
        let (ids, data, meta) =
            (text_column(batch, "row_id")?, text_column(batch, "data")?, text_column(batch, "meta")?);
        let (id, text) = (ids.value(i), data.value(i));
        let meta = (!meta.is_null(i)).then(|| meta.value(i).to_string());
        let mut variants = vec![text.to_string()];
        variants.extend(self.reworded(id, text)?);
        for round in 0..self.repeat {
            for (k, variant) in variants.iter().enumerate() {
                let own = round == 0 && k == 0;
                grown.ids.push(if own { id.to_string() } else { derived(id, round, k) });
                grown.data.push(variant.clone());
                grown.meta.push(meta.clone());
                grown.from.push(id.to_string());
            }
        }
        Ok(())
    }

    /// Copies of a row with its last request reworded; none where a row has no request.
    fn reworded(&self, id: &str, data: &str) -> Result<Vec<String>, TaskError> {
        if self.copies == 0 {
            return Ok(Vec::new());
        }
        let example = Example::parse(data).map_err(|e| TaskError::Failed(format!("a row between stages: {e}")))?;
        let first = choice(self.seed, id) % self.paraphrase.len() as u64;
        let templates = self.paraphrase.iter().cycle().skip(first as usize).take(self.copies as usize);
        Ok(templates.filter_map(|template| reword(&example, template)).map(|example| example.to_data()).collect())
    }
}

impl Grown {
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

fn reword(example: &Example, template: &str) -> Option<Example> {
    let mut copy = example.clone();
    let request = match &mut copy {
        Example::Instruct { instruction, .. } => instruction,
        Example::Chat { messages, .. } => messages.iter_mut().rev().find_map(user_text)?,
        Example::Completion { .. } | Example::Segments { .. } | Example::Tokens { .. } => return None,
    };
    *request = template.replace(REQUEST, request);
    Some(copy)
}

fn user_text(message: &mut Map<String, Value>) -> Option<&mut String> {
    if message.get("role").and_then(Value::as_str) != Some("user") {
        return None;
    }
    match message.get_mut("content") {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// The id of a copy: of its origin, its round and its wording.
fn derived(id: &str, round: u64, wording: usize) -> String {
    Content::of_bytes(format!("{id}/{round}/{wording}").as_bytes()).row_id(0)
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
