//! Best-fit decreasing bin packing in near-linear time.
//!
//! Items go longest first into the fullest bin that still takes them (Johnson 1974: at most 11/9 of the least number of bins,
//! and on natural mixes of lengths within a percent of it). Lengths are small integers, so sorting is counting, and the
//! fullest bin is the next set bit of a bitmap over free space: each item costs a few machine words.

/// Packs items of these lengths, each at most `capacity`, into bins of at most `most` items. Returns the bins, each with its items in ascending
/// order, in the order of their first items. Equal lengths are taken in order of position: the outcome never varies.
pub fn best_fit(lengths: &[u32], capacity: u32, most: usize) -> Vec<Vec<u32>> {
    let mut free = FreeSpace::new(capacity);
    let mut bins: Vec<Vec<u32>> = Vec::new();
    for item in longest_first(lengths, capacity) {
        let length = lengths[item as usize].min(capacity);
        let (bin, left) = match free.take(length) {
            Some((bin, space)) => (bin, space - length),
            None => {
                bins.push(Vec::new());
                (bins.len() as u32 - 1, capacity - length)
            }
        };
        bins[bin as usize].push(item);
        if bins[bin as usize].len() < most {
            free.put(bin, left);
        }
    }
    for bin in &mut bins {
        bin.sort_unstable();
    }
    bins.sort_unstable_by_key(|bin| bin.first().copied());
    bins
}

/// Packs items in their order: each into the last bin, or into a new one where it does not fit.
pub fn next_fit(lengths: &[u32], capacity: u32, most: usize) -> Vec<Vec<u32>> {
    let mut bins: Vec<Vec<u32>> = Vec::new();
    let mut left = 0;
    for (item, &length) in (0..).zip(lengths) {
        match bins.last_mut().filter(|bin| length <= left && bin.len() < most) {
            Some(bin) => bin.push(item),
            None => {
                bins.push(vec![item]);
                left = capacity;
            }
        }
        left -= length.min(left);
    }
    bins
}

/// Positions by falling length, by counting sort; stable.
fn longest_first(lengths: &[u32], capacity: u32) -> Vec<u32> {
    let bucket = |length: u32| (capacity - length.min(capacity)) as usize;
    let mut starts = vec![0usize; capacity as usize + 2];
    for &length in lengths {
        starts[bucket(length) + 1] += 1;
    }
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    let mut order = vec![0; lengths.len()];
    for (item, &length) in lengths.iter().enumerate() {
        let at = &mut starts[bucket(length)];
        order[*at] = item as u32;
        *at += 1;
    }
    order
}

/// Open bins by how much they still take, with a bitmap of bitmaps to find the next one.
struct FreeSpace {
    bins: Vec<Vec<u32>>,
    words: Vec<u64>,
    /// One bit per word of `words` that has a bit.
    summary: Vec<u64>,
}

impl FreeSpace {
    fn new(capacity: u32) -> FreeSpace {
        let words = capacity as usize / 64 + 1;
        FreeSpace {
            bins: vec![Vec::new(); capacity as usize + 1],
            words: vec![0; words],
            summary: vec![0; words / 64 + 1],
        }
    }

    fn put(&mut self, bin: u32, space: u32) {
        if space == 0 {
            return;
        }
        let space = space as usize;
        self.bins[space].push(bin);
        self.words[space / 64] |= 1 << (space % 64);
        self.summary[space / 4096] |= 1 << (space / 64 % 64);
    }

    /// Removes the bin with the least space of at least `wanted`; returns it with that space.
    fn take(&mut self, wanted: u32) -> Option<(u32, u32)> {
        let space = self.next(wanted as usize)?;
        let bin = self.bins[space].pop()?;
        if self.bins[space].is_empty() {
            self.words[space / 64] &= !(1 << (space % 64));
            if self.words[space / 64] == 0 {
                self.summary[space / 4096] &= !(1 << (space / 64 % 64));
            }
        }
        Some((bin, space as u32))
    }

    fn next(&self, from: usize) -> Option<usize> {
        let word = from / 64;
        let here = self.words.get(word)? & (!0 << (from % 64));
        if here != 0 {
            return Some(word * 64 + here.trailing_zeros() as usize);
        }
        let from = word + 1;
        let mut mask = !0u64 << (from % 64);
        for (i, &summary) in self.summary.iter().enumerate().skip(from / 64) {
            let found = summary & mask;
            if found != 0 {
                let word = i * 64 + found.trailing_zeros() as usize;
                return Some(word * 64 + self.words[word].trailing_zeros() as usize);
            }
            mask = !0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, read literally.
    fn slow_best_fit(lengths: &[u32], capacity: u32) -> usize {
        let mut order: Vec<u32> = lengths.to_vec();
        order.sort_by(|a, b| b.cmp(a));
        let mut space: Vec<u32> = Vec::new();
        for length in order {
            match space.iter_mut().filter(|space| **space >= length).min_by_key(|space| **space) {
                Some(space) => *space -= length,
                None => space.push(capacity - length),
            }
        }
        space.len()
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_bin_and_no_bin_overflows(
            capacity in 1u32..9000,
            raw in proptest::collection::vec(0u32..100_000, 0..400),
        ) {
            let lengths: Vec<u32> = raw.iter().map(|length| 1 + length % capacity).collect();
            let bins = best_fit(&lengths, capacity, usize::MAX);
            let mut seen = vec![0; lengths.len()];
            for bin in &bins {
                prop_assert!(bin.iter().map(|&item| lengths[item as usize]).sum::<u32>() <= capacity);
                prop_assert!(bin.windows(2).all(|pair| pair[0] < pair[1]));
                bin.iter().for_each(|&item| seen[item as usize] += 1);
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
            prop_assert!(bins.windows(2).all(|pair| pair[0][0] < pair[1][0]));
            prop_assert_eq!(bins.len(), slow_best_fit(&lengths, capacity));
        }
    }

    proptest! {
        #[test]
        fn items_in_order_stay_in_order_and_bins_keep_their_bounds(
            lengths in proptest::collection::vec(1u32..50, 0..200),
            most in 1usize..8,
        ) {
            let bins = next_fit(&lengths, 50, most);
            let flat: Vec<u32> = bins.iter().flatten().copied().collect();
            prop_assert_eq!(flat, (0..lengths.len() as u32).collect::<Vec<_>>());
            for bin in bins.iter().chain(&best_fit(&lengths, 50, most)) {
                prop_assert!(bin.len() <= most && bin.iter().map(|&item| lengths[item as usize]).sum::<u32>() <= 50);
            }
            let opens = |pair: &[Vec<u32>]| {
                let filled: u32 = pair[0].iter().map(|&item| lengths[item as usize]).sum();
                pair[0].len() == most || filled + lengths[pair[1][0] as usize] > 50
            };
            prop_assert!(bins.windows(2).all(opens));
        }
    }

    #[test]
    fn a_million_natural_rows_fill_their_packs() {
        // Log-normal-like lengths from a fixed generator: products of four uniforms.
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        let lengths: Vec<u32> = (0..1_000_000)
            .map(|_| ((40.0 * (3.2 * (uniform() + uniform())).exp() / 4.0) as u32).clamp(4, 2048))
            .collect();
        let bins = best_fit(&lengths, 2048, usize::MAX);
        let fill = lengths.iter().map(|&n| f64::from(n)).sum::<f64>() / (bins.len() as f64 * 2048.0);
        assert!(fill > 0.98, "{fill}");
    }
}
