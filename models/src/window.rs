//! The gradients of one optimizer step, chunk after chunk or several side by side.
//!
//! Every chunk's loss is divided by the trained tokens of the whole window, so however it is cut, the gradients are those
//! of one mean. This file must not know optimizers or checkpoints.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::decoder::Decoder;
use crate::events::Events;
use crate::lanes::{self, Shared};
use crate::linear::Pass;
use crate::optimizer::Parameter;
use crate::packs::{Chunk, Packs};
use crate::train::CHUNK_TOKENS;
use crate::{ModelError, Result, loss, random};

/// Trained numbers up to which each lane may hold gradients of its own.
const MOST_LANE_GRADIENTS: usize = 64 << 20;

/// What one step learns from.
pub struct Window<'a> {
    pub packs: &'a Packs,
    pub chunks: &'a [Chunk],
    /// Trained and real tokens of all chunks.
    pub trained: u64,
    pub tokens: u64,
    /// The step's number, from 1, for messages.
    pub step: u64,
    /// What dropout and noise of this step are drawn from.
    pub seed: u64,
    pub pass: Pass,
    pub z_loss: f64,
}

/// Losses of a step's tokens, summed in all and by dataset.
#[derive(Debug, Default)]
pub struct Tally {
    pub sum: f64,
    sources: BTreeMap<u16, (f64, u64)>,
}

/// How many chunks go through the network at once: one where gradients are large or where layers are computed again, for
/// that adds to the parameters as it goes.
pub fn lanes_for(decoder: &Decoder, parameters: &[Parameter], pass: Pass) -> usize {
    let trained: usize = parameters.iter().map(|parameter| parameter.tensor.numel()).sum();
    let alone = pass.recompute > 0 || trained > MOST_LANE_GRADIENTS;
    if alone { 1 } else { lanes::suited(decoder.config.hidden) }
}

impl Window<'_> {
    /// Leaves the gradients at the parameters, which have none before. `Cancelled` when someone asked to stop.
    pub fn learn(&self, decoder: &Decoder, parameters: &[Parameter], lanes: usize, events: &Events) -> Result<Tally> {
        let mut tally = Tally::default();
        let trained: Vec<(usize, &Chunk)> =
            self.chunks.iter().enumerate().filter(|(_, chunk)| !chunk.targets.ids.is_empty()).collect();
        // Side by side, two long documents would need the memory of both.
        let long = trained.iter().any(|(_, chunk)| chunk.segments.ids.len() > CHUNK_TOKENS);
        if lanes <= 1 || long {
            for (index, chunk) in trained {
                events.check()?;
                let (losses, objective) = self.forward(decoder, index, chunk)?;
                tally.add(self, chunk, &losses)?;
                objective.backward();
            }
            return Ok(tally);
        }
        let (decoder, leaves) = (Shared::new(decoder), Shared::new(parameters));
        let mut sums: Vec<Option<Tensor>> = parameters.iter().map(|_| None).collect();
        let work = |_: usize, &(index, chunk): &(usize, &Chunk)| {
            events.check()?;
            let (losses, objective) = self.forward(decoder.get(), index, chunk)?;
            let leaves: Vec<&Tensor> = leaves.get().iter().map(|parameter| &parameter.tensor).collect();
            Ok((index, losses, Tensor::f_run_backward(&[objective], &leaves, false, false)?))
        };
        lanes::in_order(lanes, &trained, work, |(index, losses, gradients)| {
            tally.add(self, &self.chunks[index], &losses)?;
            for (sum, gradient) in sums.iter_mut().zip(gradients).filter(|(_, gradient)| gradient.defined()) {
                match sum {
                    Some(sum) => drop(tch::no_grad(|| sum.g_add_(&gradient))),
                    None => *sum = Some(gradient),
                }
            }
            Ok(())
        })?;
        for (parameter, sum) in parameters.iter().zip(&sums) {
            if let Some(sum) = sum {
                leave(&parameter.tensor, sum);
            }
        }
        Ok(tally)
    }

    /// The losses of a chunk's tokens, and its share of what the step minimises.
    fn forward(&self, decoder: &Decoder, index: usize, chunk: &Chunk) -> Result<(Vec<f32>, Tensor)> {
        let pass = Pass { training: Some(random::mix(self.seed, index as u64)), ..self.pass };
        let losses = loss::token_losses(decoder, &chunk.segments, &chunk.targets, pass, self.z_loss)?;
        let share = chunk.segments.ids.len() as f64 / self.tokens as f64;
        let mean = losses.objective / self.trained as f64;
        let objective = losses.balance.into_iter().fold(mean, |all, balance| all + balance * share);
        Ok((Vec::try_from(losses.tokens.detach())?, objective))
    }
}

impl Tally {
    fn add(&mut self, window: &Window<'_>, chunk: &Chunk, losses: &[f32]) -> Result<()> {
        for (value, document) in losses.iter().zip(chunk.target_documents()) {
            if !value.is_finite() {
                return Err(ModelError::work(format!(
                    "step {}: the loss of {} is {value}; nothing was updated. Look at that row, or lower learning_rate",
                    window.step,
                    window.packs.name_document(document)
                )));
            }
            self.sum += f64::from(*value);
            let (sum, count) = self.sources.entry(window.packs.source(document)).or_default();
            *sum += f64::from(*value);
            *count += 1;
        }
        Ok(())
    }

    /// Mean loss by dataset.
    pub fn by_source(&self) -> BTreeMap<u16, f64> {
        self.sources.iter().map(|(source, (sum, count))| (*source, sum / *count as f64)).collect()
    }
}

/// Makes `gradient` that of a leaf that has none, or only zeros.
fn leave(leaf: &Tensor, gradient: &Tensor) {
    let mut own = leaf.grad();
    match own.defined() {
        true => tch::no_grad(|| own.copy_(gradient)),
        // The gradient of a sum of products with constants is those constants.
        false => (leaf * gradient).sum(Kind::Float).backward(),
    }
}
