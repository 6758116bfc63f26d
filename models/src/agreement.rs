//! How far models that stand for one another agree on the same rows: losses, and the logits behind them.
//!
//! The reference is what should have come out; the others are what did: a merged model beside base and adapter, quantised
//! files beside the model they were made of. Everything is measured at trained positions, where a model answers.

use std::path::Path;

use pipe_job::{AgreementJob, ModelSource};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::decoder::Decoder;
use crate::events::Events;
use crate::layerwise::{Layerwise, documents, segments};
use crate::linear::Pass;
use crate::loss::Targets;
use crate::token_rows::PackRow;
use crate::{ModelError, Result};

/// Positions whose logits are held at once.
const HEAD_ROWS: i64 = 64;

/// Runs the job and writes its table of measures.
///
/// # Errors
/// Rows that train nothing, and models of different vocabularies.
pub fn agreement(job: &AgreementJob, events: &Events) -> Result<()> {
    let groups = documents(&job.packs, job.rows)?;
    let targets: Vec<Targets> = groups.iter().map(|group| Targets::of(&group.labels, &group.lengths)).collect();
    let ids: Vec<i64> = targets.iter().flat_map(|targets| targets.ids.iter().copied()).collect();
    if ids.is_empty() {
        return write(&job.output, &json!({ "rows": rows(&groups), "trained_tokens": 0, "models": {} }));
    }
    let answers = |name: &str, source: &ModelSource| Answers::of(source, &groups, &targets, name, events);
    let reference = answers(&job.reference.0, &job.reference.1)?;
    let mut models = Map::new();
    models.insert(job.reference.0.clone(), compare(&reference, &reference, &ids)?.to_json(ids.len(), false));
    for (name, source) in &job.others {
        let found = compare(&reference, &answers(name, source)?, &ids)?;
        models.insert(name.clone(), found.to_json(ids.len(), true));
    }
    let table = json!({
        "rows": rows(&groups),
        "trained_tokens": ids.len(),
        "reference": job.reference.0,
        "models": models,
    });
    write(&job.output, &table)
}

fn rows(groups: &[PackRow]) -> usize {
    groups.iter().map(|group| group.lengths.len()).sum()
}

/// A model's last states at the positions that are measured, and what makes logits of them.
struct Answers {
    decoder: Decoder,
    states: Tensor,
}

impl Answers {
    fn of(source: &ModelSource, groups: &[PackRow], targets: &[Targets], name: &str, events: &Events) -> Result<Self> {
        let mut model = Layerwise::open(source)?;
        let segments: Vec<_> = groups.iter().map(segments).collect();
        let progress = &mut |done, total| events.progress(&format!("agreement {name}"), "layers", done, total);
        let states = model.pass(&segments, &mut |_| {}, &mut |_| Ok(()), progress, events)?;
        let chosen: Vec<Tensor> =
            states.iter().zip(targets).map(|(x, t)| x.index_select(0, &Tensor::from_slice(&t.rows))).collect();
        Ok(Self { decoder: model.decoder, states: Tensor::cat(&chosen, 0) })
    }

    fn logits(&self, from: i64, count: i64) -> Tensor {
        self.decoder.logits(&self.states.narrow(0, from, count), Pass::INFERENCE)
    }
}

/// Sums over positions.
#[derive(Default)]
struct Sums {
    loss: f64,
    /// Kullback-Leibler divergence from the reference, nats.
    divergence: f64,
    same_top: f64,
    difference: f64,
    largest: f64,
}

fn compare(reference: &Answers, other: &Answers, ids: &[i64]) -> Result<Sums> {
    let vocabulary = |answers: &Answers| answers.decoder.head(Pass::INFERENCE).shape().0;
    if vocabulary(reference) != vocabulary(other) {
        return Err(ModelError::input(format!(
            "one model has {} tokens and the other {}; they cannot stand for one another",
            vocabulary(reference),
            vocabulary(other)
        )));
    }
    let (mut sums, total) = (Sums::default(), ids.len() as i64);
    for from in (0..total).step_by(HEAD_ROWS as usize) {
        let count = HEAD_ROWS.min(total - from);
        let targets = Tensor::from_slice(&ids[from as usize..(from + count) as usize]).unsqueeze(1);
        tch::no_grad(|| {
            let (wanted, found) = (reference.logits(from, count), other.logits(from, count));
            let (log_wanted, log_found) = (wanted.log_softmax(-1, Kind::Float), found.log_softmax(-1, Kind::Float));
            let sum = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
            sums.loss -= sum(&log_found.gather(1, &targets, false));
            sums.divergence += sum(&(log_wanted.exp() * (&log_wanted - &log_found)));
            sums.same_top += sum(&wanted.argmax(-1, false).eq_tensor(&found.argmax(-1, false)));
            let difference = (&wanted - &found).abs();
            sums.difference += sum(&difference.mean_dim(-1, false, Kind::Double));
            sums.largest = sums.largest.max(difference.max().double_value(&[]));
        });
    }
    if !sums.loss.is_finite() {
        return Err(ModelError::work("the loss is not a number; the weights hold infinities"));
    }
    Ok(sums)
}

impl Sums {
    fn to_json(&self, positions: usize, compared: bool) -> Value {
        let mean = |sum: f64| sum / positions as f64;
        let loss = mean(self.loss);
        let mut table = json!({ "loss": loss, "perplexity": loss.exp() });
        if compared {
            table["kl_divergence"] = json!(mean(self.divergence));
            table["same_top"] = json!(mean(self.same_top));
            table["mean_logit_difference"] = json!(mean(self.difference));
            table["max_logit_difference"] = json!(self.largest);
        }
        table
    }
}

fn write(path: &Path, table: &Value) -> Result<()> {
    std::fs::write(path, format!("{table:#}\n")).map_err(|e| ModelError::io(path, e))
}
