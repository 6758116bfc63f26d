//! Which rows of a source are taken: a range of its split, then one shard of those.

use pipe_engine::task::TaskError;

use super::source::{Flow, Rows};

/// One of `of` parts, every `of`-th row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shard {
    pub of: u64,
    pub index: u64,
}

/// Walks over the rows of one slice, across its files.
#[derive(Debug)]
pub struct Cut {
    from: u64,
    /// Before this row; `None` to the end.
    to: Option<u64>,
    seen: u64,
}

impl Cut {
    pub fn new(from: u64, to: Option<u64>) -> Cut {
        Cut { from, to, seen: 0 }
    }

    /// Whether no further row is wanted.
    pub fn is_done(&self) -> bool {
        self.to.is_some_and(|to| self.seen >= to)
    }

    /// The rows of the chunk that are in the slice and in the shard; `taken` counts the slice's rows across slices.
    pub fn keep(&mut self, mut rows: Rows, shard: Option<Shard>, taken: &mut u64) -> (Rows, Flow) {
        let mut wanted = || {
            let at = self.seen;
            self.seen += 1;
            if at < self.from || self.to.is_some_and(|to| at >= to) {
                return false;
            }
            *taken += 1;
            shard.is_none_or(|shard| (*taken - 1) % shard.of == shard.index)
        };
        match &mut rows {
            Rows::Json { spans, .. } => spans.retain(|_| wanted()),
            Rows::Values(values) => values.retain(|_| wanted()),
        }
        let flow = if self.is_done() { Flow::Enough } else { Flow::More };
        (rows, flow)
    }
}

/// How many rows a chunk has.
pub fn count(rows: &Rows) -> u64 {
    match rows {
        Rows::Json { spans, .. } => spans.len() as u64,
        Rows::Values(rows) => rows.len() as u64,
    }
}

/// The `most` rows with the smallest digests of all that were offered, at a cost that `most` bounds.
pub struct Smallest<K> {
    most: usize,
    heap: std::collections::BinaryHeap<K>,
}

impl<K: Ord + Clone> Smallest<K> {
    pub fn new(most: u64) -> Result<Self, TaskError> {
        let most = usize::try_from(most).map_err(|_| TaskError::Input(format!("max_rows: {most} is too large")))?;
        Ok(Smallest { most, heap: std::collections::BinaryHeap::new() })
    }

    pub fn offer(&mut self, key: K) {
        if self.heap.len() < self.most {
            self.heap.push(key);
        } else if self.heap.peek().is_some_and(|largest| key < *largest) {
            self.heap.pop();
            self.heap.push(key);
        }
    }

    /// The largest key that is among them; `None` when every row is.
    pub fn threshold(self) -> Option<K> {
        if self.heap.len() < self.most { None } else { self.heap.into_iter().next() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(cut: &mut Cut, chunks: &[usize], shard: Option<Shard>) -> Vec<u64> {
        let (mut place, mut taken, mut kept) = (0, 0, Vec::new());
        for &n in chunks {
            let rows = (0..n).map(|_| {
                place += 1;
                (place, serde_json::Map::new())
            });
            let (rows, flow) = cut.keep(Rows::Values(rows.collect()), shard, &mut taken);
            let Rows::Values(rows) = rows else { continue };
            kept.extend(rows.into_iter().map(|(place, _)| place));
            if flow == Flow::Enough {
                break;
            }
        }
        kept
    }

    #[test]
    fn ranges_and_shards_ignore_where_chunks_end() {
        for chunks in [&[10][..], &[3, 3, 4], &[1; 10]] {
            assert_eq!(numbers(&mut Cut::new(2, Some(5)), chunks, None), [3, 4, 5]);
            assert_eq!(numbers(&mut Cut::new(7, None), chunks, None), [8, 9, 10]);
            let shard = Some(Shard { of: 3, index: 1 });
            assert_eq!(numbers(&mut Cut::new(1, None), chunks, shard), [3, 6, 9]);
        }
    }

    #[test]
    fn the_smallest_are_found() {
        let threshold = |most: u64, keys: &[u32]| {
            let mut smallest = Smallest::new(most).ok()?;
            keys.iter().for_each(|&key| smallest.offer(key));
            smallest.threshold()
        };
        assert_eq!(threshold(2, &[5, 1, 4, 3]), Some(3));
        assert_eq!(threshold(4, &[5, 1, 4, 3]), Some(5));
        assert_eq!(threshold(9, &[5, 1]), None);
    }
}
