//! The gradients of one optimizer step, chunk after chunk or several side by side.
//!
//! Every chunk's loss is divided by the trained tokens of the whole window, so however it is cut, the gradients are those
//! of one mean. This file must not know optimizers or checkpoints.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::decoder::Decoder;
use crate::events::Events;
use crate::lanes::{self, Shared};
use crate::linear::Pass;
use crate::optimizer::Parameter;
use crate::packs::{Chunk, Packs};
use crate::train::CHUNK_TOKENS;
use crate::{ModelError, Result, loss, random, shim};

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
    if alone { 1 } else { lanes::suited_to_products(decoder.config.hidden, decoder.compute) }
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
        let shares = lanes::shares(lanes, trained, |(_, chunk)| chunk.segments.ids.len());
        let (decoder, leaves) = (Shared::new(decoder), Shared::new(parameters));
        let learnt = lanes::apart(&shares, |lane: &mut Lane, &(index, chunk)| {
            events.check()?;
            let (losses, objective) = self.forward(decoder.get(), index, chunk)?;
            let leaves: Vec<&Tensor> = leaves.get().iter().map(|parameter| &parameter.tensor).collect();
            lane.tally.add(self, chunk, &losses)?;
            lane.add(Tensor::f_run_backward(&[objective], &leaves, false, false)?);
            Ok(())
        })?;
        let mut all = Lane::default();
        for lane in learnt {
            tally.absorb(lane.tally);
            all.add(lane.gradients);
        }
        for (parameter, gradient) in parameters.iter().zip(&all.gradients).filter(|(_, gradient)| gradient.defined()) {
            shim::set_gradient(&parameter.tensor, Some(gradient));
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

/// What a lane has learnt: its chunks' gradients are added up as they come.
#[derive(Default)]
struct Lane {
    tally: Tally,
    /// One for each parameter, or none yet; undefined where a parameter has none.
    gradients: Vec<Tensor>,
}

impl Lane {
    fn add(&mut self, gradients: Vec<Tensor>) {
        if self.gradients.is_empty() {
            self.gradients = gradients;
            return;
        }
        for (sum, gradient) in self.gradients.iter_mut().zip(gradients).filter(|(_, gradient)| gradient.defined()) {
            match sum.defined() {
                true => drop(tch::no_grad(|| sum.g_add_(&gradient))),
                false => *sum = gradient,
            }
        }
    }
}

impl Tally {
    fn absorb(&mut self, other: Self) {
        self.sum += other.sum;
        for (source, (sum, count)) in other.sources {
            let (own, counted) = self.sources.entry(source).or_default();
            *own += sum;
            *counted += count;
        }
    }

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
