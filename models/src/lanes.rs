//! Several pieces of work at once, each on its share of the cores.
//!
//! The matrix products of small models split badly over threads: on two cores a product of 512 tokens gains a fifth, two
//! such products side by side gain everything. Results are taken in the order of the pieces, so sums do not depend on
//! which lane was faster. Nothing here knows what the work is.

#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tch::Kind;

use crate::{Result, device, shim};

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

/// The same for work on many tokens at a time in `compute`. Our own products split evenly, and two lanes would each decode and
/// pack every weight.
pub fn suited_to_products(hidden: usize, compute: Kind) -> usize {
    if compute == Kind::BFloat16 && shim::has_products() { 1 } else { suited(hidden) }
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
        take_a_share_of_the_cores(lanes);
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

/// Shares items out to lanes as evenly as their sizes allow; a function of the sizes alone. Each share keeps the items' order.
pub fn shares<T>(lanes: usize, items: impl IntoIterator<Item = T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut largest_first: Vec<(usize, T)> = items.into_iter().enumerate().collect();
    largest_first.sort_by_key(|(_, item)| std::cmp::Reverse(size(item)));
    let mut shares: Vec<(usize, Vec<(usize, T)>)> = (0..lanes.max(1)).map(|_| (0, Vec::new())).collect();
    for (index, item) in largest_first {
        if let Some((load, share)) = shares.iter_mut().min_by_key(|(load, _)| *load) {
            *load += size(&item);
            share.push((index, item));
        }
    }
    let ordered = shares.into_iter().map(|(_, mut share)| {
        share.sort_by_key(|(index, _)| *index);
        share.into_iter().map(|(_, item)| item).collect()
    });
    ordered.filter(|share: &Vec<T>| !share.is_empty()).collect()
}

/// Runs each share in a lane of its own, item after item, into a state that starts as its default; the states, in the order
/// of the shares. After the first error, which is returned, no item is begun.
pub fn apart<T: Sync, S: Default + Send>(
    shares: &[Vec<T>],
    work: impl Fn(&mut S, &T) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let failed = AtomicBool::new(false);
    let share = |items: &Vec<T>| {
        let mut state = S::default();
        for item in items {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            work(&mut state, item).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(state)
    };
    if let [only] = shares {
        return Ok(vec![share(only)?]);
    }
    let own_threads = tch::get_num_threads();
    let lane = |items| {
        take_a_share_of_the_cores(shares.len());
        share(items)
    };
    let states = std::thread::scope(|scope| {
        let running: Vec<_> = shares.iter().map(|items| scope.spawn(|| lane(items))).collect();
        let ended: Vec<_> =
            running.into_iter().map(|lane| lane.join().unwrap_or_else(|panic| resume_unwind(panic))).collect();
        ended
    });
    tch::set_num_threads(own_threads);
    states.into_iter().collect()
}

fn take_a_share_of_the_cores(lanes: usize) {
    // The setting is the thread's own, but a fresh thread takes the process's at its first question: asked here, so
    // that a setting made elsewhere meanwhile cannot replace this one. Some products' last bits depend on it.
    let _ = tch::get_num_threads();
    tch::set_num_threads((device::threads() / lanes).max(1) as i32);
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
    fn shares_are_even_and_in_order() {
        let sizes = [256, 40, 500, 250, 260, 90, 10];
        let shared = shares(2, sizes, |size| *size);
        assert_eq!(shared, [vec![500, 250], vec![256, 40, 260, 90, 10]]);
        assert_eq!(shares(4, [7, 7], |size| *size), [[7], [7]]);
    }

    #[test]
    fn each_share_has_a_state_of_its_own() {
        let add = |state: &mut Vec<u64>, item: &u64| {
            state.push(*item);
            Ok(())
        };
        assert_eq!(apart(&[vec![1, 2], vec![3]], add).unwrap(), [vec![1, 2], vec![3]]);
        let fail = |_: &mut (), item: &u64| if *item == 3 { Err(ModelError::work("row three")) } else { Ok(()) };
        assert!(apart(&[vec![1, 2], vec![3]], fail).unwrap_err().to_string().contains("row three"));
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
