//! Several pieces of work at once, each on its share of the cores.
//!
//! The matrix products of small models split badly over threads: on two cores a product of 512 tokens gains a fifth, two
//! such products side by side gain everything. Results are taken in the order of the pieces, so sums do not depend on
//! which lane was faster. Nothing here knows what the work is.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{Result, device};

/// Hidden sizes up to this, divided by the lanes, keep a core busy with one product.
const WIDE: usize = 2048;
/// More lanes than this cost more memory in activations than they bring.
const MOST: usize = 4;

/// Lends a value that is only read to several lanes.
///
/// Tensors are not `Sync` because most of their operations may write. A forward pass only reads the model's, and
/// libtorch's reference counts are atomic; gradients are returned by `Tensor::run_backward`, never added to shared leaves.
pub struct Shared<'a, T: ?Sized>(&'a T);

// SAFETY: see above; whoever makes one promises that lanes only read through it.
unsafe impl<T: ?Sized> Sync for Shared<'_, T> {}

impl<'a, T: ?Sized> Shared<'a, T> {
    pub fn new(value: &'a T) -> Self {
        Self(value)
    }

    pub fn get(&self) -> &'a T {
        self.0
    }
}

/// How many lanes suit a model of this hidden size on this process's threads.
pub fn suited(hidden: usize) -> usize {
    (WIDE / hidden.max(1)).clamp(1, MOST).min(device::threads())
}

/// Runs `work` on every item, `lanes` at a time, and hands the results to `fold` in the order of the items. After the
/// first error, which is returned, no item is begun.
pub fn in_order<T: Sync, R: Send>(
    lanes: usize,
    items: &[T],
    work: impl Fn(usize, &T) -> Result<R> + Sync,
    mut fold: impl FnMut(R) -> Result<()> + Send,
) -> Result<()> {
    let lanes = lanes.min(items.len());
    if lanes <= 1 {
        return items.iter().enumerate().try_for_each(|(index, item)| fold(work(index, item)?));
    }
    let own_threads = tch::get_num_threads();
    let begun = AtomicUsize::new(0);
    let results = Mutex::new(Ordered { next: 0, waiting: BTreeMap::new(), fold: &mut fold, failed: None });
    let lane = || {
        // The setting is the thread's own, but a fresh thread takes the process's at its first question: asked here, so
        // that a setting made elsewhere meanwhile cannot replace this one. Some products' last bits depend on it.
        let _ = tch::get_num_threads();
        tch::set_num_threads((device::threads() / lanes).max(1) as i32);
        loop {
            let index = begun.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return };
            let result = work(index, item);
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            results.take(index, result);
            if results.failed.is_some() {
                begun.store(items.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        for lane in running {
            if let Err(panic) = lane.join() {
                begun.store(items.len(), Ordering::Relaxed);
                resume_unwind(panic);
            }
        }
    });
    tch::set_num_threads(own_threads);
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.failed.map_or(Ok(()), |(_, error)| Err(error))
}

/// Results that wait for those before them.
struct Ordered<'a, R, F> {
    next: usize,
    waiting: BTreeMap<usize, R>,
    fold: &'a mut F,
    /// The error of the earliest item that has one.
    failed: Option<(usize, crate::ModelError)>,
}

impl<R, F: FnMut(R) -> Result<()>> Ordered<'_, R, F> {
    fn take(&mut self, index: usize, result: Result<R>) {
        match result {
            Ok(result) => drop(self.waiting.insert(index, result)),
            Err(error) => self.fail(index, error),
        }
        while let Some(result) = self.waiting.remove(&self.next) {
            if let Err(error) = (self.fold)(result) {
                self.fail(self.next, error);
            }
            self.next += 1;
        }
    }

    fn fail(&mut self, index: usize, error: crate::ModelError) {
        if self.failed.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
            self.failed = Some((index, error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelError;

    #[test]
    fn results_arrive_in_order_whoever_is_faster() {
        let items: Vec<u64> = (0..40).collect();
        for lanes in [1, 2, 4] {
            let mut seen = Vec::new();
            let slow_evens = |index: usize, item: &u64| {
                std::thread::sleep(std::time::Duration::from_micros(if index.is_multiple_of(2) { 900 } else { 10 }));
                Ok(item * 3)
            };
            let folded = in_order(lanes, &items, slow_evens, |result| {
                seen.push(result);
                Ok(())
            });
            folded.unwrap();
            assert_eq!(seen, items.iter().map(|item| item * 3).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let items: Vec<usize> = (0..1000).collect();
        let begun = AtomicUsize::new(0);
        let work = |index: usize, _: &usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            if index == 5 { Err(ModelError::work("row five")) } else { Ok(index) }
        };
        let error = in_order(2, &items, work, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("row five"));
        assert!(begun.load(Ordering::Relaxed) < 1000);
    }
}
