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
use pipe_job::EvalJob;
use serde::Serialize;
use tch::Kind;

use crate::decoder::{Decoder, Segments};
use crate::events::Events;
use crate::linear::Pass;
use crate::loss::{self, Targets};
use crate::token_rows::{PackRow, count, each_pack, read_tokens};
use crate::{ModelError, Result, generate, tuned};

/// Packs are joined up to this many tokens per forward pass.
const PASS_TOKENS: usize = 4096;

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
    let mut decoder = tuned::load_tuned(&job.model, events)?;
    tuned::densify(&mut decoder);
    let models = models(job);
    let mut losses: BTreeMap<&str, BTreeMap<String, Losses>> = BTreeMap::new();
    for (name, pass) in &models {
        let own = losses.entry(*name).or_default();
        for (split, path) in &job.packs {
            let found = split_losses(&decoder, path, *pass, &format!("loss {name} {split}"), events)?;
            let sum = own.entry(split.clone()).or_default();
            sum.loss_sum += found.loss_sum;
            sum.tokens += found.tokens;
            sum.trained_tokens += found.trained_tokens;
        }
    }
    write_json(&out.join("losses.json"), &losses)?;
    write_answers(job, &decoder, &models, events)?;
    write_samples(job, &decoder, &models, events)
}

/// The models to measure: `tuned` and, where wanted, `base`; only `base` where there is no adapter.
fn models(job: &EvalJob) -> Vec<(&'static str, Pass)> {
    match (&job.model.adapter, job.baseline) {
        (None, _) => vec![("base", Pass::INFERENCE)],
        (Some(_), false) => vec![("tuned", Pass::INFERENCE)],
        (Some(_), true) => vec![("base", Pass::BASE), ("tuned", Pass::INFERENCE)],
    }
}

/// Loss over all packs of a file.
pub fn split_losses(decoder: &Decoder, path: &Path, pass: Pass, phase: &str, events: &Events) -> Result<Losses> {
    let total = count(path)?;
    let (mut sum, mut held, mut done) = (Losses::default(), PackRow::default(), 0u64);
    each_pack(path, |pack| {
        events.check()?;
        if !held.ids.is_empty() && held.ids.len() + pack.ids.len() > PASS_TOKENS {
            add(decoder, &std::mem::take(&mut held), pass, &mut sum)?;
            events.progress(phase, "packs", done, total);
        }
        held.ids.extend(pack.ids);
        held.labels.extend(pack.labels);
        held.lengths.extend(pack.lengths);
        done += 1;
        Ok(())
    })?;
    add(decoder, &held, pass, &mut sum)?;
    events.progress(phase, "packs", total, total);
    Ok(sum)
}

fn add(decoder: &Decoder, packs: &PackRow, pass: Pass, sum: &mut Losses) -> Result<()> {
    let targets = Targets::of(&packs.labels, &packs.lengths);
    sum.tokens += packs.ids.len() as u64;
    sum.trained_tokens += targets.ids.len() as u64;
    if targets.ids.is_empty() {
        return Ok(());
    }
    let segments = Segments { ids: packs.ids.clone(), lengths: packs.lengths.clone() };
    let losses = tch::no_grad(|| loss::token_losses(decoder, &segments, &targets, pass))?;
    let loss = losses.sum(Kind::Double).double_value(&[]);
    if !loss.is_finite() {
        return Err(ModelError::work("the loss is not a number; the weights or the adapter hold infinities"));
    }
    sum.loss_sum += loss;
    Ok(())
}

/// Columns of `answers.parquet` as they grow.
struct Answers {
    model: Vec<&'static str>,
    split: Vec<String>,
    row_id: Vec<String>,
    output_ids: ListBuilder<Int32Builder>,
}

fn write_answers(job: &EvalJob, decoder: &Decoder, models: &[(&'static str, Pass)], events: &Events) -> Result<()> {
    let mut answers = Answers {
        model: Vec::new(),
        split: Vec::new(),
        row_id: Vec::new(),
        output_ids: ListBuilder::new(Int32Builder::new()),
    };
    for (model, pass) in models {
        for (split, path) in &job.answers {
            let rows = read_tokens(path)?;
            let rows: Vec<_> = rows.into_iter().filter(|row| !row.prompt().is_empty()).collect();
            let prompts: Vec<Vec<i64>> = rows.iter().map(|row| row.prompt().to_vec()).collect();
            let phase = format!("answers {model} {split}");
            let total = rows.len() as u64;
            let written = generate::answer(decoder, &prompts, &job.generation, *pass, events, &mut |done| {
                events.progress(&phase, "rows", done as u64, total);
            })?;
            for (row, ids) in rows.into_iter().zip(written) {
                answers.model.push(model);
                answers.split.push(split.clone());
                answers.row_id.push(row.row_id);
                answers.output_ids.append_value(ids.into_iter().map(|id| i32::try_from(id).ok()));
            }
        }
    }
    write_table(answers, &job.output.join("answers.parquet"))
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

fn write_samples(job: &EvalJob, decoder: &Decoder, models: &[(&'static str, Pass)], events: &Events) -> Result<()> {
    let prompts: Vec<Vec<i64>> = job.samples.iter().map(|(_, ids)| ids.clone()).collect();
    let mut samples: BTreeMap<&str, BTreeMap<&str, Vec<i64>>> = BTreeMap::new();
    for (model, pass) in models {
        let answers = generate::answer(decoder, &prompts, &job.generation, *pass, events, &mut |_| {})?;
        let named = job.samples.iter().map(|(name, _)| name.as_str()).zip(answers);
        samples.insert(model, named.collect());
    }
    write_json(&job.output.join("samples.json"), &samples)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| ModelError::work(e.to_string()))?;
    std::fs::write(path, text + "\n").map_err(|e| ModelError::io(path, e))
}
