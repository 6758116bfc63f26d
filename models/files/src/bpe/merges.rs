//! Byte-pair merging of one piece of text: lowest rank first, leftmost first among equals.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Pieces longer than this keep their candidate merges in a heap; shorter ones are searched.
const SEARCHED: usize = 40;
const NONE: u32 = u32::MAX;

/// What two tokens become, by open addressing: looked up several times for every piece that is new.
pub struct Merges {
    keys: Vec<u64>,
    /// Rank and token.
    values: Vec<(u32, u32)>,
    mask: usize,
}

/// Working space, kept from piece to piece.
#[derive(Default)]
pub struct Work {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Rank of the merge with the next symbol, and what it makes.
    rank: u32,
    makes: u32,
    previous: u32,
    next: u32,
}

impl Merges {
    /// From pairs in order of rank. Of a pair that is listed twice the last counts.
    pub fn new(pairs: &[(u32, u32, u32)]) -> Merges {
        let slots = (pairs.len() * 2 + 1).next_power_of_two();
        let mut merges = Merges { keys: vec![u64::MAX; slots], values: vec![(NONE, NONE); slots], mask: slots - 1 };
        for (rank, &(left, right, made)) in pairs.iter().enumerate() {
            let key = key(left, right);
            let slot = merges.slot(key);
            merges.keys[slot] = key;
            merges.values[slot] = (rank as u32, made);
        }
        merges
    }

    #[inline]
    fn slot(&self, key: u64) -> usize {
        let mut slot = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize & self.mask;
        while self.keys[slot] != key && self.keys[slot] != u64::MAX {
            slot = (slot + 1) & self.mask;
        }
        slot
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> (u32, u32) {
        self.values[self.slot(key(left, right))]
    }

    /// Merges the symbols of one piece; `out` gets the ids that are left.
    pub fn apply(&self, ids: impl Iterator<Item = u32>, work: &mut Work, out: &mut Vec<u32>) {
        work.symbols.clear();
        work.symbols.extend(ids.enumerate().map(|(at, id)| Symbol {
            id,
            rank: NONE,
            makes: NONE,
            previous: (at as u32).wrapping_sub(1),
            next: at as u32 + 1,
        }));
        let count = work.symbols.len();
        if let Some(last) = work.symbols.last_mut() {
            last.next = NONE;
        }
        for at in 0..count.saturating_sub(1) {
            let (rank, makes) = self.get(work.symbols[at].id, work.symbols[at + 1].id);
            (work.symbols[at].rank, work.symbols[at].makes) = (rank, makes);
        }
        if count <= SEARCHED { self.searched(&mut work.symbols, out) } else { self.heaped(work, out) }
    }

    /// Symbols stay contiguous and are moved down at each merge: for a short piece the fastest there is.
    fn searched(&self, symbols: &mut Vec<Symbol>, out: &mut Vec<u32>) {
        loop {
            let mut best = (NONE, 0);
            for (at, symbol) in symbols.iter().enumerate() {
                if symbol.rank < best.0 {
                    best = (symbol.rank, at);
                }
            }
            let (rank, at) = best;
            if rank == NONE {
                break;
            }
            symbols[at].id = symbols[at].makes;
            symbols.remove(at + 1);
            for left in [at.wrapping_sub(1), at] {
                if left < symbols.len() {
                    let right = symbols.get(left + 1).map(|symbol| symbol.id);
                    let (rank, makes) = right.map_or((NONE, NONE), |right| self.get(symbols[left].id, right));
                    (symbols[left].rank, symbols[left].makes) = (rank, makes);
                }
            }
        }
        out.extend(symbols.iter().map(|symbol| symbol.id));
    }

    /// Symbols are a linked list, and a heap holds the candidates: near-linear in the length of the piece.
    fn heaped(&self, work: &mut Work, out: &mut Vec<u32>) {
        let Work { symbols, heap } = work;
        heap.clear();
        for (at, symbol) in symbols.iter().enumerate().filter(|(_, symbol)| symbol.rank != NONE) {
            heap.push(Reverse((symbol.rank, at as u32, symbol.makes)));
        }
        while let Some(Reverse((rank, at, makes))) = heap.pop() {
            let symbol = symbols[at as usize];
            // A candidate whose symbols have changed since is stale.
            if symbol.id == NONE || symbol.rank != rank || symbol.makes != makes {
                continue;
            }
            let gone = symbol.next as usize;
            let next = symbols[gone].next;
            symbols[gone].id = NONE;
            symbols[at as usize].id = makes;
            symbols[at as usize].next = next;
            if next != NONE {
                symbols[next as usize].previous = at;
            }
            for left in [symbol.previous, at].into_iter().filter(|&left| left != NONE) {
                let here = symbols[left as usize];
                let (rank, makes) = match here.next {
                    NONE => (NONE, NONE),
                    right => self.get(here.id, symbols[right as usize].id),
                };
                (symbols[left as usize].rank, symbols[left as usize].makes) = (rank, makes);
                if rank != NONE {
                    heap.push(Reverse((rank, left, makes)));
                }
            }
        }
        out.extend(symbols.iter().filter(|symbol| symbol.id != NONE).map(|symbol| symbol.id));
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, read literally.
    fn literal(pairs: &[(u32, u32, u32)], mut ids: Vec<u32>) -> Vec<u32> {
        let rank = |a: u32, b: u32| pairs.iter().rposition(|&(left, right, _)| (left, right) == (a, b));
        loop {
            let candidates = (1..ids.len()).filter_map(|at| rank(ids[at - 1], ids[at]).map(|rank| (rank, at)));
            let Some((rank, at)) = candidates.min() else { return ids };
            ids[at - 1] = pairs[rank].2;
            ids.remove(at);
        }
    }

    proptest! {
        #[test]
        fn both_ways_are_the_definition(
            pairs in prop::collection::vec((0u32..12, 0u32..12), 0..40),
            ids in prop::collection::vec(0u32..4, 0..90),
        ) {
            let pairs: Vec<_> = pairs.iter().enumerate().map(|(n, &(a, b))| (a, b, 4 + n as u32 % 8)).collect();
            let merges = Merges::new(&pairs);
            let mut work = Work::default();
            let expected = literal(&pairs, ids.clone());
            let mut out = Vec::new();
            merges.apply(ids.iter().copied(), &mut work, &mut out);
            prop_assert_eq!(&out, &expected);
        }
    }
}
