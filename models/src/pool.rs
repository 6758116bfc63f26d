//! Which blocks of the cache belong to which answers: counted holders, and what is remembered of answers that are over.
//!
//! Numbers only; keys and values lie in [`crate::cache`]. A block is written by one row, and by others only read: what is
//! shared is whole, and nothing is ever appended to a whole block. (Kwon et al., arXiv 2309.06180.)

use std::collections::{BTreeMap, HashMap};

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// Stands for all that keys and values depend on up to some token: the weights that made them, and every token so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Content(u64);

/// What a whole block holds: what came before it, and its own tokens. Compared in full, so nothing is taken for another.
type Key = (Content, [i64; BLOCK]);

/// The blocks of one row, in order.
#[derive(Debug)]
pub struct Table {
    pub blocks: Vec<usize>,
    /// Tokens whose keys and values are held.
    pub length: usize,
    /// Up to the last whole block; `None` where nothing is shared.
    content: Option<Content>,
    /// Tokens behind the last whole block.
    tail: Vec<i64>,
}

/// All blocks. One is held by rows, or idle (nobody's, but it holds what is known and may be asked for again), or free.
#[derive(Debug)]
pub struct Pool {
    most: usize,
    /// Rows that hold each block there has ever been.
    holders: Vec<u32>,
    free: Vec<usize>,
    known: HashMap<Key, (usize, Content)>,
    /// Each block's entry among the known.
    keys: Vec<Option<Key>>,
    /// Idle blocks by the time since when, and that time of each block.
    idle: BTreeMap<u64, usize>,
    since: Vec<u64>,
    clock: u64,
    contents: u64,
    found: u64,
}

/// How full the cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Blocks held by rows.
    pub used: usize,
    /// Blocks that can be had, idle ones included.
    pub free: usize,
    /// Tokens of prompts, so far, that were there already.
    pub found: u64,
}

/// Blocks that so many tokens take.
pub fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}

impl Table {
    /// Whether the next token needs a block more.
    pub fn is_full(&self) -> bool {
        self.length == self.blocks.len() * BLOCK
    }
}

impl Pool {
    /// A pool of `most` blocks.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            holders: Vec::new(),
            free: Vec::new(),
            known: HashMap::new(),
            keys: Vec::new(),
            idle: BTreeMap::new(),
            since: Vec::new(),
            clock: 0,
            contents: 0,
            found: 0,
        }
    }

    /// Names a set of weights. Rows share blocks only under one name.
    pub fn root(&mut self) -> Content {
        self.contents += 1;
        Content(self.contents)
    }

    /// Blocks that can be had.
    pub fn available(&self) -> usize {
        self.most - self.holders.len() + self.free.len() + self.idle.len()
    }

    /// How full it is.
    pub fn fill(&self) -> Fill {
        Fill { used: self.holders.len() - self.free.len() - self.idle.len(), free: self.available(), found: self.found }
    }

    /// How many of the available blocks a row for `ids` would take away.
    pub fn cost(&self, root: Option<Content>, ids: &[i64]) -> usize {
        let found = self.find(root, ids);
        let held = found.iter().filter(|(block, _)| self.holders[*block] > 0).count();
        blocks_of(ids.len()) - held
    }

    /// The tokens of `ids` that are known.
    pub fn known(&self, root: Option<Content>, ids: &[i64]) -> usize {
        self.find(root, ids).len() * BLOCK
    }

    /// Blocks for a row that begins with `ids`; its `length` is what others have read already. `None` where there is no
    /// room. From here on others may share the whole ones, so they must be written before anybody looks.
    pub fn open(&mut self, root: Option<Content>, ids: &[i64]) -> Option<Table> {
        if self.cost(root, ids) > self.available() {
            return None;
        }
        let found = self.find(root, ids);
        let length = found.len() * BLOCK;
        self.found += length as u64;
        let mut blocks: Vec<usize> = found.iter().map(|(block, _)| *block).collect();
        blocks.iter().for_each(|block| self.hold(*block));
        while blocks.len() < blocks_of(ids.len()) {
            blocks.push(self.take()?);
        }
        let mut content = found.last().map(|(_, content)| *content).or(root);
        let whole = ids.len() / BLOCK;
        for place in found.len()..whole {
            content = self.note(blocks[place], content, &ids[place * BLOCK..][..BLOCK]);
        }
        Some(Table { blocks, length, content, tail: ids[whole * BLOCK..].to_vec() })
    }

    /// Makes room for the next token of a row; false where there is none.
    pub fn grow(&mut self, table: &mut Table) -> bool {
        if table.is_full() {
            match self.take() {
                Some(block) => table.blocks.push(block),
                None => return false,
            }
        }
        true
    }

    /// Says that `token` is the row's next and its keys and values are written.
    pub fn advance(&mut self, table: &mut Table, token: i64) {
        table.length += 1;
        table.tail.push(token);
        if table.tail.len() == BLOCK {
            let block = table.blocks[table.length / BLOCK - 1];
            table.content = self.note(block, table.content, &table.tail);
            table.tail.clear();
        }
    }

    /// Gives a row's blocks back. What is known stays until its room is needed, the ends of rows going first.
    pub fn close(&mut self, table: Table) {
        for block in table.blocks.into_iter().rev() {
            self.holders[block] -= 1;
            if self.holders[block] > 0 {
                continue;
            }
            match self.keys[block] {
                Some(_) => {
                    self.clock += 1;
                    self.since[block] = self.clock;
                    self.idle.insert(self.clock, block);
                }
                None => self.free.push(block),
            }
        }
    }

    /// The known blocks with which `ids` begin, all but the last token's: somebody must read that one.
    fn find(&self, root: Option<Content>, ids: &[i64]) -> Vec<(usize, Content)> {
        let Some(mut content) = root else { return Vec::new() };
        let mut found = Vec::new();
        for own in ids[..ids.len().saturating_sub(1)].chunks_exact(BLOCK) {
            let Some(&(block, next)) = key(content, own).and_then(|key| self.known.get(&key)) else { break };
            content = next;
            found.push((block, next));
        }
        found
    }

    fn hold(&mut self, block: usize) {
        if self.holders[block] == 0 {
            self.idle.remove(&self.since[block]);
        }
        self.holders[block] += 1;
    }

    /// A block to write to: a free one, a new one, or the one that has been idle longest.
    fn take(&mut self) -> Option<usize> {
        if let Some(block) = self.free.pop() {
            self.holders[block] = 1;
            return Some(block);
        }
        if self.holders.len() < self.most {
            self.holders.push(1);
            self.keys.push(None);
            self.since.push(0);
            return Some(self.holders.len() - 1);
        }
        let (_, block) = self.idle.pop_first()?;
        if let Some(key) = self.keys[block].take() {
            self.known.remove(&key);
        }
        self.holders[block] = 1;
        Some(block)
    }

    /// Lets a whole block be found by what it holds; the content up to its end. One that holds what another does stays
    /// its row's own.
    fn note(&mut self, block: usize, before: Option<Content>, tokens: &[i64]) -> Option<Content> {
        let key = key(before?, tokens)?;
        if let Some((_, content)) = self.known.get(&key) {
            return Some(*content);
        }
        let content = self.root();
        self.known.insert(key, (block, content));
        self.keys[block] = Some(key);
        Some(content)
    }
}

fn key(before: Content, tokens: &[i64]) -> Option<Key> {
    Some((before, tokens.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    /// What stands in a place of a block: a digest of the weights and of every token so far, as keys and values are.
    type Memory = HashMap<(usize, usize), u64>;

    struct Running {
        root: Option<Content>,
        ids: Vec<i64>,
        table: Table,
    }

    fn written(root: Option<Content>, ids: &[i64]) -> Vec<u64> {
        let start = root.map_or(0, |root| root.0 + 1);
        let next = |state: &mut u64, id: &i64| {
            *state = random::mix(*state, *id as u64);
            Some(*state)
        };
        ids.iter().scan(start, next).collect()
    }

    fn write(memory: &mut Memory, row: &Running, from: usize) {
        for (place, value) in written(row.root, &row.ids).into_iter().enumerate().skip(from) {
            memory.insert((row.table.blocks[place / BLOCK], place % BLOCK), value);
        }
    }

    fn check(pool: &Pool, memory: &Memory, rows: &[Running]) {
        let mut holders = vec![0; pool.holders.len()];
        for row in rows {
            row.table.blocks.iter().for_each(|block| holders[*block] += 1);
            assert_eq!(row.table.length, row.ids.len());
            for (place, value) in written(row.root, &row.ids).into_iter().enumerate() {
                assert_eq!(memory[&(row.table.blocks[place / BLOCK], place % BLOCK)], value, "token {place}");
            }
        }
        assert_eq!(pool.holders, holders);
        let mut loose: Vec<usize> = pool.free.iter().chain(pool.idle.values()).copied().collect();
        loose.sort_unstable();
        let unheld: Vec<usize> = (0..holders.len()).filter(|block| holders[*block] == 0).collect();
        assert_eq!(loose, unheld, "every block is held, idle or free, and only one of them");
        assert_eq!(pool.known.len(), pool.keys.iter().flatten().count());
        for (key, (block, _)) in &pool.known {
            assert_eq!(pool.keys[*block], Some(*key));
        }
        let fill = pool.fill();
        assert_eq!((fill.used + fill.free, fill.used), (pool.most, pool.holders.len() - loose.len()));
    }

    #[test]
    fn no_block_is_lost_or_shared_wrongly_whatever_comes_and_goes() {
        let (mut shared, mut full) = (0, 0);
        for case in 0..40 {
            let draw = |step: u64, below: usize| (random::unit(case, step) * below as f64) as usize;
            let mut pool = Pool::new(4 + draw(0, 40));
            let roots = [Some(pool.root()), Some(pool.root()), None];
            let (mut memory, mut rows): (Memory, Vec<Running>) = Default::default();
            for step in (8..4000).step_by(8) {
                match draw(step, 8) {
                    0 | 1 => {
                        // Few beginnings, so that many are alike; a few tokens, so that ends are alike as well.
                        let root = roots[draw(step + 1, 3)];
                        let mut ids = vec![draw(step + 2, 2) as i64; draw(step + 3, 60)];
                        ids.extend((0..=draw(step + 4, 20)).map(|i| (i / 7) as i64));
                        let (cost, before) = (pool.cost(root, &ids), pool.available());
                        let Some(table) = pool.open(root, &ids) else {
                            assert!(cost > before);
                            full += 1;
                            continue;
                        };
                        assert_eq!(before - pool.available(), cost);
                        let (from, length) = (table.length, ids.len());
                        assert!(from < length && (root.is_some() || from == 0));
                        shared += from;
                        let mut row = Running { root, ids, table };
                        write(&mut memory, &row, from);
                        row.table.length = length;
                        rows.push(row);
                    }
                    2 if !rows.is_empty() => {
                        let row = rows.swap_remove(draw(step + 1, rows.len()));
                        pool.close(row.table);
                    }
                    _ => {
                        for (i, row) in rows.iter_mut().enumerate() {
                            if pool.grow(&mut row.table) {
                                row.ids.push(draw(step + 1 + i as u64 % 6, 3) as i64);
                                write(&mut memory, row, row.ids.len() - 1);
                                pool.advance(&mut row.table, row.ids[row.ids.len() - 1]);
                            } else {
                                assert_eq!(pool.available(), 0);
                                full += 1;
                            }
                        }
                    }
                }
                check(&pool, &memory, &rows);
            }
            rows.drain(..).for_each(|row| pool.close(row.table));
            check(&pool, &memory, &rows);
            assert!(pool.holders.iter().all(|holders| *holders == 0) && pool.available() == pool.most);
        }
        assert!(shared > 1000 && full > 1000, "{shared} tokens shared, {full} times full");
    }

    #[test]
    fn what_was_not_asked_for_longest_goes_first_and_ends_before_beginnings() {
        let mut pool = Pool::new(6);
        let root = Some(pool.root());
        let ids = |from: i64, count: i64| (from..from + count).collect::<Vec<i64>>();
        let (first, second) = (ids(0, 49), ids(100, 49));
        let open = |pool: &mut Pool, ids: &[i64]| pool.open(root, ids).unwrap();
        let table = open(&mut pool, &first[..48]);
        pool.close(table);
        let table = open(&mut pool, &second[..48]);
        pool.close(table);
        assert_eq!((pool.known(root, &first), pool.known(root, &second)), (48, 48));
        // One of four tokens more than the second; its own end needs a block, which is the first's last.
        let table = open(&mut pool, &second);
        assert_eq!(table.length, 48);
        assert_eq!((pool.known(root, &first), pool.known(root, &second)), (32, 48));
        assert!(pool.open(root, &ids(200, 33)).is_none(), "three blocks where there are two");
        pool.close(table);
        let other = Some(pool.root());
        assert_eq!((pool.known(other, &second), pool.known(None, &second)), (0, 0));
    }
}
