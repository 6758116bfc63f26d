//! Which packs make up each optimizer step, and after which steps something is due.

use pipe_job::{Batching, EvalPoints};

use crate::{ModelError, Result, random};

/// The steps of a run.
#[derive(Clone, Debug)]
pub struct Steps {
    packs: usize,
    window: usize,
    pub per_epoch: u64,
    pub total: u64,
    shuffle: Option<u64>,
}

impl Steps {
    pub fn new(batching: &Batching, packs: usize, seed: u64) -> Result<Self> {
        let window = batching.micro_batch * batching.accumulation;
        if packs == 0 || window == 0 {
            return Err(ModelError::input("there is nothing to train on: no packed row, or a batch size of zero"));
        }
        let per_epoch = packs.div_ceil(window) as u64;
        let total = batching.max_steps.unwrap_or((batching.epochs * per_epoch as f64).ceil() as u64);
        Ok(Self { packs, window, per_epoch, total, shuffle: batching.shuffle.then_some(seed) })
    }

    /// The packs of the step after `done` steps. The last window of an epoch may be short.
    pub fn window(&self, done: u64) -> Vec<usize> {
        let (epoch, place) = (done / self.per_epoch, (done % self.per_epoch) as usize * self.window);
        let order = match self.shuffle {
            Some(seed) => {
                random::permutation(random::mix(random::mix(seed, random::name_key("epoch")), epoch), self.packs)
            }
            None => (0..self.packs).collect(),
        };
        order[place..(place + self.window).min(self.packs)].to_vec()
    }

    pub fn is_due(&self, points: &EvalPoints, done: u64) -> bool {
        points.is_due(done, self.per_epoch, self.total)
    }
}
