//! Evaluation: loss on packed rows and generated answers, for the tuned model and the base in one process.
//!
//! Base and tuned share their weights: the base is the same network with its adapter left out. Results are sums and
//! token ids; texts, metrics and tables are made elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Int32Builder, Int64Array, ListBuilder, RecordBatch, StringArray, UInt16Array,
};
use parquet::arrow::ArrowWriter;
use pipe_job::{Asked, BaseWeights, EvalJob, ModelSource};
use serde::Serialize;
use tch::Kind;

use crate::decoder::{Decoder, Segments};
use crate::events::Events;
use crate::lanes::{self, Shared};
use crate::linear::Pass;
use crate::loss::{self, Targets};
use crate::token_rows::{PackRow, count, each_pack, read_tokens};
use crate::{ModelError, Result, generate, tuned};

/// Packs are joined up to this many tokens that are in the network at one time, in all lanes together: small enough that a
/// short split is shared by all.
const PASS_TOKENS: usize = 1024;

/// What one document cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DocumentLoss {
    pub row_id: String,
    /// Dataset, from 0, as the pack says.
    pub source: u16,
    /// Nats over all trained tokens.
    pub loss_sum: f64,
    /// Real tokens.
    pub tokens: i64,
    /// Tokens with a loss, after the label shift.
    pub trained_tokens: i64,
}

/// Runs the job and writes `losses.parquet`, `answers.parquet` and `samples.json` into its output folder.
pub fn eval(job: &EvalJob, events: &Events) -> Result<()> {
    let out = &job.output;
    std::fs::create_dir_all(out).map_err(|e| ModelError::io(out, e))?;
    let stops = Stops::new(job)?;
    let mut found = Found::default();
    for (source, models) in models(job) {
        let mut decoder = tuned::load_tuned(&source, events)?;
        tuned::densify(&mut decoder);
        for (name, pass) in models {
            measure(job, &decoder, (name, pass), &stops, events, &mut found)?;
        }
    }
    found.losses.write(&out.join("losses.parquet"))?;
    found.answers.write(&out.join("answers.parquet"))?;
    write_json(&out.join("samples.json"), &found.samples)
}

/// The models to load and what to measure of each: `tuned` and, where wanted, `base`; only `base` where nothing was trained.
fn models(job: &EvalJob) -> Vec<(ModelSource, Vec<(&'static str, Pass)>)> {
    let (base, tuned) = (("base", Pass::BASE), ("tuned", Pass::INFERENCE));
    if let Some(folder) = &job.whole {
        let whole = ModelSource { path: folder.clone(), adapter: None, base: BaseWeights::Dense, ..job.model.clone() };
        let first = job.baseline.then(|| (job.model.clone(), vec![base]));
        return first.into_iter().chain([(whole, vec![tuned])]).collect();
    }
    let passes = match (&job.model.adapter, job.baseline) {
        (None, _) => vec![("base", Pass::INFERENCE)],
        (Some(_), false) => vec![tuned],
        (Some(_), true) => vec![base, tuned],
    };
    vec![(job.model.clone(), passes)]
}

/// What was measured, by model.
#[derive(Default)]
struct Found {
    losses: LossTable,
    answers: AnswerTable,
    samples: BTreeMap<&'static str, BTreeMap<String, Vec<i64>>>,
}

fn measure(
    job: &EvalJob,
    decoder: &Decoder,
    (name, pass): (&'static str, Pass),
    stops: &Stops,
    events: &Events,
    found: &mut Found,
) -> Result<()> {
    for (split, path) in &job.packs {
        let own = document_losses(decoder, path, pass, &format!("loss {name} {split}"), events)?;
        found.losses.extend(name, split, own);
    }
    for asked in job.answers.iter().filter(|asked| asked.base_as.is_none() || name == "base") {
        answer(job, decoder, (name, pass), asked, stops, events, &mut found.answers)?;
    }
    let prompts: Vec<Vec<i64>> = job.samples.iter().map(|(_, ids)| ids.clone()).collect();
    let answers = generate::answer(decoder, &prompts, &job.generation, pass, events, &stops.ended(), &mut |_| {})?;
    let named = job.samples.iter().map(|(name, _)| name.clone()).zip(answers);
    found.samples.insert(name, named.collect());
    Ok(())
}

/// The loss of every document in a file of packs, in their order.
pub fn document_losses(
    decoder: &Decoder,
    path: &Path,
    pass: Pass,
    phase: &str,
    events: &Events,
) -> Result<Vec<DocumentLoss>> {
    let total = count(path)?;
    let lanes = lanes::suited_to_products(decoder.config.hidden, decoder.compute);
    let (mut losses, mut groups, mut done) = (Vec::new(), vec![PackRow::default()], 0);
    each_pack(path, |pack| {
        let full = |group: &PackRow| !group.ids.is_empty() && group.ids.len() + pack.ids.len() > PASS_TOKENS / lanes;
        if groups.last().is_none_or(full) {
            if groups.len() >= lanes {
                add(decoder, &std::mem::take(&mut groups), pass, events, &mut losses)?;
                events.progress(phase, "packs", done, total);
            }
            groups.push(PackRow::default());
        }
        if let Some(group) = groups.last_mut() {
            group.extend(pack);
        }
        done += 1;
        Ok(())
    })?;
    add(decoder, &groups, pass, events, &mut losses)?;
    events.progress(phase, "packs", total, total);
    Ok(losses)
}

/// Adds the documents of some passes, taken side by side.
fn add(
    decoder: &Decoder,
    groups: &[PackRow],
    pass: Pass,
    events: &Events,
    losses: &mut Vec<DocumentLoss>,
) -> Result<()> {
    let shared = Shared::new(decoder);
    let work = |_: usize, packs: &PackRow| {
        events.check()?;
        let targets = Targets::of(&packs.labels, &packs.lengths);
        if targets.ids.is_empty() {
            return Ok(documents(packs, &targets, &[]));
        }
        let segments = Segments { ids: packs.ids.clone(), lengths: packs.lengths.clone() };
        let own = tch::no_grad(|| loss::token_losses(shared.get(), &segments, &targets, pass, 0.0))?;
        let own = Vec::<f64>::try_from(own.tokens.to_kind(Kind::Double))?;
        if own.iter().any(|loss| !loss.is_finite()) {
            return Err(ModelError::work("the loss is not a number; the weights or the adapter hold infinities"));
        }
        Ok(documents(packs, &targets, &own))
    };
    lanes::in_order(lanes::suited_to_products(decoder.config.hidden, decoder.compute), groups, work, |own| {
        losses.extend(own);
        Ok(())
    })
}

/// Token losses summed by document.
fn documents(packs: &PackRow, targets: &Targets, losses: &[f64]) -> Vec<DocumentLoss> {
    let mut end = 0;
    let mut own = targets.rows.iter().zip(losses).peekable();
    let mut documents = Vec::with_capacity(packs.lengths.len());
    for (place, &tokens) in packs.lengths.iter().enumerate() {
        end += tokens;
        let mut document = DocumentLoss {
            row_id: packs.row_ids.get(place).cloned().unwrap_or_default(),
            source: packs.sources.get(place).copied().unwrap_or(0),
            tokens,
            ..DocumentLoss::default()
        };
        while let Some((_, loss)) = own.next_if(|(row, _)| **row < end) {
            document.loss_sum += loss;
            document.trained_tokens += 1;
        }
        documents.push(document);
    }
    documents
}

/// Texts that end answers.
struct Stops {
    texts: Vec<String>,
    tokenizer: Option<pipe_files::Tokenizer>,
    /// No stop text is longer than this many tokens, for none of them is shorter than a byte.
    longest: usize,
}

impl Stops {
    fn new(job: &EvalJob) -> Result<Stops> {
        let texts = job.generation.stop_texts.clone();
        let tokenizer = match (texts.is_empty(), &job.tokenizer) {
            (false, Some(path)) => Some(pipe_files::tokenizer(path)?),
            _ => None,
        };
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        Ok(Stops { texts, tokenizer, longest })
    }

    /// Whether an answer so far holds a stop text in its last tokens.
    fn ended(&self) -> impl Fn(&[i64]) -> bool + Sync + '_ {
        |ids| {
            let Some(tokenizer) = &self.tokenizer else { return false };
            let tail = &ids[ids.len().saturating_sub(self.longest + 4)..];
            let tail: Vec<u32> = tail.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
            tokenizer.decode(&tail, true).is_ok_and(|text| self.texts.iter().any(|stop| text.contains(stop.as_str())))
        }
    }
}

/// Columns of `losses.parquet` as they grow.
#[derive(Default)]
struct LossTable {
    model: Vec<&'static str>,
    split: Vec<String>,
    documents: Vec<DocumentLoss>,
}

impl LossTable {
    fn extend(&mut self, model: &'static str, split: &str, documents: Vec<DocumentLoss>) {
        self.model.extend(documents.iter().map(|_| model));
        self.split.extend(documents.iter().map(|_| split.to_string()));
        self.documents.extend(documents);
    }

    fn write(self, path: &Path) -> Result<()> {
        let all = &self.documents;
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("model", Arc::new(StringArray::from(self.model))),
            ("split", Arc::new(StringArray::from(self.split))),
            ("source", Arc::new(all.iter().map(|d| Some(d.source)).collect::<UInt16Array>())),
            ("row_id", Arc::new(all.iter().map(|d| Some(d.row_id.as_str())).collect::<StringArray>())),
            ("loss_sum", Arc::new(all.iter().map(|d| Some(d.loss_sum)).collect::<Float64Array>())),
            ("tokens", Arc::new(all.iter().map(|d| Some(d.tokens)).collect::<Int64Array>())),
            ("trained_tokens", Arc::new(all.iter().map(|d| Some(d.trained_tokens)).collect::<Int64Array>())),
        ];
        write_table(columns, path)
    }
}

/// Columns of `answers.parquet` as they grow.
#[derive(Default)]
struct AnswerTable {
    model: Vec<String>,
    split: Vec<String>,
    source: Vec<u16>,
    row_id: Vec<String>,
    output_ids: ListBuilder<Int32Builder>,
}

impl AnswerTable {
    fn write(mut self, path: &Path) -> Result<()> {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("model", Arc::new(StringArray::from(self.model))),
            ("split", Arc::new(StringArray::from(self.split))),
            ("source", Arc::new(UInt16Array::from(self.source))),
            ("row_id", Arc::new(StringArray::from(self.row_id))),
            ("output_ids", Arc::new(self.output_ids.finish())),
        ];
        write_table(columns, path)
    }
}

fn answer(
    job: &EvalJob,
    decoder: &Decoder,
    (model, pass): (&'static str, Pass),
    asked: &Asked,
    stops: &Stops,
    events: &Events,
    answers: &mut AnswerTable,
) -> Result<()> {
    let rows = read_tokens(&asked.rows)?;
    let rows: Vec<_> = rows.into_iter().filter(|row| !row.prompt().is_empty()).collect();
    let prompts: Vec<Vec<i64>> = rows.iter().map(|row| row.prompt().to_vec()).collect();
    let model = asked.base_as.as_deref().unwrap_or(model);
    let phase = format!("answers {model} {}", asked.split);
    let total = rows.len() as u64;
    let done = &mut |done| events.progress(&phase, "rows", done as u64, total);
    let written = generate::answer(decoder, &prompts, &job.generation, pass, events, &stops.ended(), done)?;
    for (row, ids) in rows.into_iter().zip(written) {
        answers.model.push(model.to_string());
        answers.split.push(asked.split.clone());
        answers.source.push(asked.source);
        answers.row_id.push(row.row_id);
        answers.output_ids.append_value(ids.into_iter().map(|id| i32::try_from(id).ok()));
    }
    Ok(())
}

fn write_table(columns: Vec<(&str, ArrayRef)>, path: &Path) -> Result<()> {
    let failed = |e: String| ModelError::work(format!("{} could not be written: {e}", path.display()));
    let batch = RecordBatch::try_from_iter(columns).map_err(|e| failed(e.to_string()))?;
    let file = File::create(path).map_err(|e| ModelError::io(path, e))?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).map_err(|e| failed(e.to_string()))?;
    writer.write(&batch).map_err(|e| failed(e.to_string()))?;
    writer.close().map(|_| ()).map_err(|e| failed(e.to_string()))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| ModelError::work(e.to_string()))?;
    std::fs::write(path, text + "\n").map_err(|e| ModelError::io(path, e))
}
