//! Evaluation: loss on packed rows and generated answers, for the tuned model and the base in one process.
//!
//! Base and tuned share their weights: the base is the same network with its adapter left out. Results are sums and
//! token ids; texts, metrics and tables are made elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Builder, ListBuilder, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use pipe_job::{BaseWeights, EvalJob, ModelSource};
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

/// Loss totals of one model on one split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Losses {
    /// Nats over all trained tokens.
    pub loss_sum: f64,
    /// Real tokens.
    pub tokens: u64,
    /// Tokens with a loss, after the label shift.
    pub trained_tokens: u64,
}

/// Runs the job and writes `losses.json`, `answers.parquet` and `samples.json` into its output folder.
pub fn eval(job: &EvalJob, events: &Events) -> Result<()> {
    let out = &job.output;
    std::fs::create_dir_all(out).map_err(|e| ModelError::io(out, e))?;
    let mut found = Found::default();
    for (source, models) in models(job) {
        let mut decoder = tuned::load_tuned(&source, events)?;
        tuned::densify(&mut decoder);
        for (name, pass) in models {
            measure(job, &decoder, name, pass, events, &mut found)?;
        }
    }
    write_json(&out.join("losses.json"), &found.losses)?;
    write_table(found.answers, &out.join("answers.parquet"))?;
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
    losses: BTreeMap<&'static str, BTreeMap<String, Losses>>,
    answers: Answers,
    samples: BTreeMap<&'static str, BTreeMap<String, Vec<i64>>>,
}

fn measure(
    job: &EvalJob,
    decoder: &Decoder,
    name: &'static str,
    pass: Pass,
    events: &Events,
    found: &mut Found,
) -> Result<()> {
    let losses = found.losses.entry(name).or_default();
    for (split, path) in &job.packs {
        let own = split_losses(decoder, path, pass, &format!("loss {name} {split}"), events)?;
        let sum = losses.entry(split.clone()).or_default();
        sum.loss_sum += own.loss_sum;
        sum.tokens += own.tokens;
        sum.trained_tokens += own.trained_tokens;
    }
    answer(job, decoder, name, pass, events, &mut found.answers)?;
    let prompts: Vec<Vec<i64>> = job.samples.iter().map(|(_, ids)| ids.clone()).collect();
    let answers = generate::answer(decoder, &prompts, &job.generation, pass, events, &mut |_| {})?;
    let named = job.samples.iter().map(|(name, _)| name.clone()).zip(answers);
    found.samples.insert(name, named.collect());
    Ok(())
}

/// Loss over all packs of a file.
pub fn split_losses(decoder: &Decoder, path: &Path, pass: Pass, phase: &str, events: &Events) -> Result<Losses> {
    let total = count(path)?;
    let lanes = lanes::suited(decoder.config.hidden);
    let (mut sum, mut groups, mut done) = (Losses::default(), vec![PackRow::default()], 0);
    each_pack(path, |pack| {
        let full = |group: &PackRow| !group.ids.is_empty() && group.ids.len() + pack.ids.len() > PASS_TOKENS / lanes;
        if groups.last().is_none_or(full) {
            if groups.len() >= lanes {
                add(decoder, &std::mem::take(&mut groups), pass, events, &mut sum)?;
                events.progress(phase, "packs", done, total);
            }
            groups.push(PackRow::default());
        }
        if let Some(group) = groups.last_mut() {
            group.ids.extend(pack.ids);
            group.labels.extend(pack.labels);
            group.lengths.extend(pack.lengths);
        }
        done += 1;
        Ok(())
    })?;
    add(decoder, &groups, pass, events, &mut sum)?;
    events.progress(phase, "packs", total, total);
    Ok(sum)
}

/// Adds the losses of some passes, taken side by side.
fn add(decoder: &Decoder, groups: &[PackRow], pass: Pass, events: &Events, sum: &mut Losses) -> Result<()> {
    let shared = Shared::new(decoder);
    let work = |_: usize, packs: &PackRow| {
        events.check()?;
        let targets = Targets::of(&packs.labels, &packs.lengths);
        let (tokens, trained_tokens) = (packs.ids.len() as u64, targets.ids.len() as u64);
        if targets.ids.is_empty() {
            return Ok(Losses { loss_sum: 0.0, tokens, trained_tokens });
        }
        let segments = Segments { ids: packs.ids.clone(), lengths: packs.lengths.clone() };
        let losses = tch::no_grad(|| loss::token_losses(shared.get(), &segments, &targets, pass, 0.0))?;
        let loss_sum = losses.tokens.sum(Kind::Double).double_value(&[]);
        if !loss_sum.is_finite() {
            return Err(ModelError::work("the loss is not a number; the weights or the adapter hold infinities"));
        }
        Ok(Losses { loss_sum, tokens, trained_tokens })
    };
    lanes::in_order(lanes::suited(decoder.config.hidden), groups, work, |own| {
        sum.loss_sum += own.loss_sum;
        sum.tokens += own.tokens;
        sum.trained_tokens += own.trained_tokens;
        Ok(())
    })
}

/// Columns of `answers.parquet` as they grow.
#[derive(Default)]
struct Answers {
    model: Vec<&'static str>,
    split: Vec<String>,
    row_id: Vec<String>,
    output_ids: ListBuilder<Int32Builder>,
}

fn answer(
    job: &EvalJob,
    decoder: &Decoder,
    model: &'static str,
    pass: Pass,
    events: &Events,
    answers: &mut Answers,
) -> Result<()> {
    for (split, path) in &job.answers {
        let rows = read_tokens(path)?;
        let rows: Vec<_> = rows.into_iter().filter(|row| !row.prompt().is_empty()).collect();
        let prompts: Vec<Vec<i64>> = rows.iter().map(|row| row.prompt().to_vec()).collect();
        let phase = format!("answers {model} {split}");
        let total = rows.len() as u64;
        let written = generate::answer(decoder, &prompts, &job.generation, pass, events, &mut |done| {
            events.progress(&phase, "rows", done as u64, total);
        })?;
        for (row, ids) in rows.into_iter().zip(written) {
            answers.model.push(model);
            answers.split.push(split.clone());
            answers.row_id.push(row.row_id);
            answers.output_ids.append_value(ids.into_iter().map(|id| i32::try_from(id).ok()));
        }
    }
    Ok(())
}

fn write_table(mut answers: Answers, path: &Path) -> Result<()> {
    let failed = |e: String| ModelError::work(format!("{} could not be written: {e}", path.display()));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("model", Arc::new(StringArray::from(answers.model))),
        ("split", Arc::new(StringArray::from(answers.split))),
        ("row_id", Arc::new(StringArray::from(answers.row_id))),
        ("output_ids", Arc::new(answers.output_ids.finish())),
    ];
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
