//! Which packs make up each optimizer step, and after which steps something is due.

use pipe_job::{Batching, EvalPoints, Order};

use crate::{ModelError, Result, random};

/// The steps of a run.
#[derive(Clone, Debug)]
pub struct Steps {
    /// Tokens of each pack.
    lengths: Vec<u64>,
    window: usize,
    pub per_epoch: u64,
    pub total: u64,
    order: Order,
    seed: u64,
}

impl Steps {
    /// The steps over packs of `lengths` tokens.
    pub fn new(batching: &Batching, lengths: Vec<u64>, seed: u64) -> Result<Self> {
        let window = batching.micro_batch * batching.accumulation;
        if lengths.is_empty() || window == 0 {
            return Err(ModelError::input("there is nothing to train on: no packed row, or a batch size of zero"));
        }
        let per_epoch = lengths.len().div_ceil(window) as u64;
        let total = batching.max_steps.unwrap_or((batching.epochs * per_epoch as f64).ceil() as u64);
        Ok(Self { lengths, window, per_epoch, total, order: batching.order, seed })
    }

    /// The packs of the step after `done` steps. The last window of an epoch may be short.
    pub fn window(&self, done: u64) -> Vec<usize> {
        let (epoch, place) = (done / self.per_epoch, (done % self.per_epoch) as usize * self.window);
        let order = self.order(epoch);
        order[place..(place + self.window).min(order.len())].to_vec()
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        let packs = self.lengths.len();
        let shuffled =
            || random::permutation(random::mix(random::mix(self.seed, random::name_key("epoch")), epoch), packs);
        match self.order {
            Order::Stored => (0..packs).collect(),
            Order::Shuffled => shuffled(),
            Order::ByLength => by_length(shuffled(), &self.lengths, self.window),
        }
    }

    pub fn is_due(&self, points: &EvalPoints, done: u64) -> bool {
        points.is_due(done, self.per_epoch, self.total)
    }
}

/// Batches that a stretch holds at most.
const STRETCH: usize = 50;

/// Sorts each stretch by length, longest first, and begins with the longest of all, so that memory peaks at once. As
/// `get_length_grouped_indices` in transformers' trainer_pt_utils.
fn by_length(mut order: Vec<usize>, lengths: &[u64], window: usize) -> Vec<usize> {
    let batches = (order.len() / (window * 4)).clamp(1, STRETCH);
    for stretch in order.chunks_mut(batches * window) {
        stretch.sort_by_key(|&pack| std::cmp::Reverse(lengths[pack]));
    }
    let starts = (0..order.len()).step_by(batches * window);
    if let Some(longest) = starts.min_by_key(|&start| std::cmp::Reverse(lengths[order[start]])) {
        order.swap(0, longest);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `get_length_grouped_indices` of transformers 5.24 over the same shuffled order.
    #[test]
    fn lengths_are_grouped_as_transformers_groups_them() {
        let fixture: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/training/length_grouped.json")).unwrap();
        for case in fixture.as_array().unwrap() {
            let list = |key: &str| serde_json::from_value::<Vec<usize>>(case[key].clone()).unwrap();
            let lengths: Vec<u64> = list("lengths").into_iter().map(|n| n as u64).collect();
            let window = case["batch_size"].as_u64().unwrap() as usize;
            assert_eq!(by_length(list("shuffled"), &lengths, window), list("grouped"), "batch size {window}");
        }
    }

    #[test]
    fn every_epoch_takes_each_pack_once() {
        for order in [Order::Stored, Order::Shuffled, Order::ByLength] {
            let batching = Batching { micro_batch: 2, accumulation: 3, epochs: 2.0, max_steps: None, order };
            let steps = Steps::new(&batching, (0..50).map(|n| n * 7 % 13).collect(), 1).unwrap();
            for epoch in 0..2 {
                let windows = (0..steps.per_epoch).map(|step| steps.window(epoch * steps.per_epoch + step));
                let mut seen: Vec<usize> = windows.flatten().collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..50).collect::<Vec<_>>());
            }
        }
    }
}
