//! Keys and values of the tokens read so far, in blocks of a fixed size that rows take as they grow.
//!
//! Rows join and leave by changing hands of block numbers; no key is ever moved. Who holds which block is
//! [`crate::pool`]'s affair; this file must not know requests, adapters or sampling.

use std::cell::RefCell;
use std::rc::Rc;

use pipe_files::{ModelConfig, Rope};
use tch::{Kind, Tensor};

use crate::attention::{self, Span};
use crate::decoder::DEVICE;
use crate::linear::Pass;
use crate::pool::{BLOCK, Content, Fill, Pool, Table, blocks_of};
use crate::shim::{self, Attention, Pages};
use crate::{ModelError, Result};

/// Bytes that are asked for in one go.
const SLAB: usize = 1 << 20;

/// Memory in blocks, for any number of caches on one thread.
#[derive(Clone, Debug)]
pub struct Blocks(Rc<RefCell<Held>>);

#[derive(Debug)]
struct Held {
    pool: Pool,
    memory: Memory,
}

#[derive(Debug)]
struct Memory {
    /// `[each, layers, 2, kv_heads * head_dim * BLOCK]`; see csrc/paged.h for what lies where in a block.
    slabs: Vec<Tensor>,
    each: usize,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    kind: Kind,
    /// Whether a token's keys change with the length of its sequence, so that they fit no other sequence.
    keys_depend_on_length: bool,
}

/// Rows of one model or adapter that are answered together.
#[derive(Debug)]
pub struct Cache {
    blocks: Blocks,
    root: Option<Content>,
    rows: Vec<Table>,
}

/// Where the new tokens of a pass go, and what they see.
#[derive(Debug)]
pub(crate) struct Places {
    blocks: Vec<i64>,
    starts: Vec<i64>,
    seen: Vec<i64>,
    /// Whether nothing stands before the new tokens of any row.
    whole: bool,
    lengths: Vec<i64>,
}

impl Blocks {
    /// At most `most` blocks of a model's keys and values; memory is taken when it is first needed.
    pub fn new(config: &ModelConfig, kind: Kind, most: usize) -> Self {
        let block = BLOCK * token_bytes(config, kind);
        let memory = Memory {
            slabs: Vec::new(),
            each: (SLAB / block.max(1)).max(1),
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            kind,
            keys_depend_on_length: config.ropes.iter().any(Rope::depends_on_length),
        };
        Self(Rc::new(RefCell::new(Held { pool: Pool::new(most), memory })))
    }

    /// A name under which rows share the blocks of equal beginnings, one for each set of weights; `None` where a token's
    /// keys fit no other sequence.
    pub fn root(&self) -> Option<Content> {
        (!self.keys_depend_on_length()).then(|| self.0.borrow_mut().pool.root())
    }

    /// Whether a token's keys change with the length of its sequence: reading an answer again would not give what it had.
    pub fn keys_depend_on_length(&self) -> bool {
        self.0.borrow().memory.keys_depend_on_length
    }

    pub fn fill(&self) -> Fill {
        self.0.borrow().pool.fill()
    }

    /// A cache without rows. They share under `root`, or not at all.
    pub fn cache(&self, root: Option<Content>) -> Cache {
        Cache { blocks: self.clone(), root, rows: Vec::new() }
    }
}

impl Cache {
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// How many of the available blocks a row for `ids` would take.
    pub fn cost(&self, ids: &[i64]) -> usize {
        self.blocks.0.borrow().pool.cost(self.root, ids)
    }

    /// Tokens with which `ids` begin that need not be read again.
    pub fn known(&self, ids: &[i64]) -> usize {
        self.blocks.0.borrow().pool.known(self.root, ids)
    }

    /// Blocks that a row holds.
    pub fn held(&self, row: usize) -> usize {
        self.rows[row].blocks.len()
    }

    /// Rows whose next token needs a block more.
    pub fn full_rows(&self) -> usize {
        self.rows.iter().filter(|row| row.is_full()).count()
    }

    /// Adds a row for a prompt, which must be read next, before another cache of the same name is asked for anything.
    pub fn open(&mut self, ids: &[i64]) -> Result<()> {
        let table = self.blocks.0.borrow_mut().pool.open(self.root, ids);
        self.rows.push(table.ok_or_else(no_room)?);
        Ok(())
    }

    /// Takes the rows of another cache of the same name behind its own.
    pub fn join(&mut self, mut other: Cache) {
        self.rows.append(&mut other.rows);
    }

    /// Keeps only `rows`, in that order.
    pub fn keep(&mut self, rows: &[usize]) {
        let mut before: Vec<Option<Table>> = std::mem::take(&mut self.rows).into_iter().map(Some).collect();
        self.rows = rows.iter().filter_map(|&row| before[row].take()).collect();
        let mut held = self.blocks.0.borrow_mut();
        before.into_iter().flatten().for_each(|table| held.pool.close(table));
    }

    /// What each row has yet to read of its prompt.
    pub(crate) fn unread(&self, prompts: &[Vec<i64>]) -> Vec<Span> {
        let span = |(row, prompt): (&Table, &Vec<i64>)| {
            let (first, length) = (row.length as i64, prompt.len() as i64);
            Span { first, count: length - first, length }
        };
        self.rows.iter().zip(prompts).map(span).collect()
    }

    /// The next token of each row, with room made for it.
    pub(crate) fn next(&mut self) -> Result<Vec<Span>> {
        let mut held = self.blocks.0.borrow_mut();
        let span = |row: &mut Table| {
            let first = row.length as i64;
            held.pool.grow(row).then_some(Span { first, count: 1, length: first + 1 }).ok_or_else(no_room)
        };
        self.rows.iter_mut().map(span).collect()
    }

    /// Where tokens at `spans` of the rows go.
    pub(crate) fn places(&self, spans: &[Span]) -> Places {
        let (mut blocks, mut starts, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        let mut highest = 0;
        for (row, span) in self.rows.iter().zip(spans) {
            starts.extend(std::iter::repeat_n(blocks.len() as i64, span.count as usize));
            seen.extend(span.first + 1..=span.first + span.count);
            let own = &row.blocks[..blocks_of((span.first + span.count) as usize)];
            blocks.extend(own.iter().map(|&block| block as i64));
            highest = own.iter().fold(highest, |highest, block| highest.max(*block));
        }
        self.blocks.0.borrow_mut().memory.reach(highest);
        let whole = spans.iter().all(|span| span.first == 0);
        Places { blocks, starts, seen, whole, lengths: spans.iter().map(|span| span.count).collect() }
    }

    /// Stores the new tokens' keys and values, and lets each attend over its row up to itself; `[tokens, heads * head_dim]`.
    pub(crate) fn attend(
        &self,
        layer: usize,
        [q, k, v]: [&Tensor; 3],
        places: &Places,
        how: &Attention,
        pass: Pass,
    ) -> Tensor {
        let held = self.blocks.0.borrow();
        let pages = held.memory.pages(places);
        // Products of whole prompts are faster as large ones.
        let whole = places.whole && places.lengths.iter().any(|&length| length > 1);
        if !whole && pass.fused {
            return shim::cached_attention(Some(q), k, v, &pages, layer, how);
        }
        let _stored = shim::cached_attention(None, k, v, &pages, layer, how);
        match whole {
            true => attention::packed(q, k, v, &places.lengths, how, pass),
            false => held.memory.plain(layer, q, places, how),
        }
    }

    /// Says that the rows' prompts are read.
    pub(crate) fn was_read(&mut self, spans: &[Span]) {
        self.rows.iter_mut().zip(spans).for_each(|(row, span)| row.length = span.length as usize);
    }

    /// Says that each row has its next token.
    pub(crate) fn advance(&mut self, tokens: &[i64]) {
        let mut held = self.blocks.0.borrow_mut();
        self.rows.iter_mut().zip(tokens).for_each(|(row, &token)| held.pool.advance(row, token));
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.keep(&[]);
    }
}

impl Memory {
    /// Has memory for blocks up to this one.
    fn reach(&mut self, block: usize) {
        let size = [self.each, self.layers, 2, self.kv_heads * self.head_dim * BLOCK].map(|n| n as i64);
        while self.slabs.len() * self.each <= block {
            self.slabs.push(Tensor::zeros(size, (self.kind, DEVICE)));
        }
    }

    fn pages<'a>(&'a self, places: &'a Places) -> Pages<'a> {
        Pages {
            slabs: &self.slabs,
            blocks_each: self.each,
            layers: self.layers,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            blocks: &places.blocks,
            starts: &places.starts,
            seen: &places.seen,
        }
    }

    /// Attention over what is stored in libtorch's own operations, which the kernel is compared with.
    fn plain(&self, layer: usize, q: &Tensor, places: &Places, how: &Attention) -> Tensor {
        let (heads, dim) = (self.kv_heads as i64, self.head_dim as i64);
        let attended = places.starts.iter().zip(&places.seen).enumerate().map(|(token, (&start, &seen))| {
            let own = &places.blocks[start as usize..][..blocks_of(seen as usize)];
            let (keys, values): (Vec<Tensor>, Vec<Tensor>) = own.iter().map(|&b| self.block(layer, b)).unzip();
            let from = if how.window > 0 { (seen - how.window).max(0) } else { 0 };
            let keys = Tensor::cat(&keys, 2).narrow(2, from, seen - from);
            let values = Tensor::cat(&values, 1).narrow(1, from, seen - from);
            let scores = (q.get(token as i64).reshape([heads, -1, dim]) * how.scale).bmm(&keys);
            let weights = attention::capped(&scores, how.cap).softmax(-1, Kind::Float).to_kind(values.kind());
            weights.bmm(&values).reshape([-1])
        });
        Tensor::stack(&attended.collect::<Vec<_>>(), 0)
    }

    /// A block's keys `[kv_heads, head_dim, BLOCK]` and values `[kv_heads, BLOCK, head_dim]`.
    fn block(&self, layer: usize, block: i64) -> (Tensor, Tensor) {
        let each = self.each as i64;
        let own = self.slabs[(block / each) as usize].get(block % each).get(layer as i64);
        let (heads, dim, block) = (self.kv_heads as i64, self.head_dim as i64, BLOCK as i64);
        (own.get(0).view([heads, dim, block]), own.get(1).view([heads, block, dim]))
    }
}

/// Bytes of one token's keys and values in all layers.
pub fn token_bytes(config: &ModelConfig, kind: Kind) -> usize {
    2 * config.layers * config.kv_heads * config.head_dim * kind.elt_size_in_bytes()
}

fn no_room() -> ModelError {
    ModelError::work("the cache has no block left")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    /// Heads, key heads and numbers of a head; window and cap of the attention.
    const SHAPES: [(i64, usize, usize, i64, f64); 7] = [
        (4, 4, 64, 0, 0.0),
        (9, 3, 64, 0, 0.0),
        (5, 1, 80, 7, 30.0),
        (14, 2, 16, 16, 0.0),
        (2, 2, 6, 0, 50.0),
        (6, 3, 20, 33, 0.0),
        (3, 3, 257, 1, 0.0),
    ];
    const PLAIN: Pass = Pass { fused: false, ..Pass::INFERENCE };

    /// Queries, keys and values of a row's tokens, and the attention of the row alone.
    struct Row([Tensor; 3], Tensor);

    impl Row {
        fn new(qkv: [Tensor; 3], how: &Attention) -> Self {
            let [q, k, v] = qkv.each_ref().map(|x| x.to_kind(Kind::Float));
            let alone = attention::packed(&q, &k, &v, &[q.size()[0]], how, PLAIN);
            Self(qkv, alone)
        }
    }

    /// Passes the next tokens of every row through a layer and compares what comes with the rows alone.
    fn pass(cache: &Cache, rows: &[&Row], spans: &[Span], how: &Attention, kind: Kind, pass: Pass) {
        let places = cache.places(spans);
        let joined = |of: &dyn Fn(&Row) -> Tensor| {
            let part = |(row, span): (&&Row, &Span)| of(row).narrow(0, span.first, span.count);
            Tensor::cat(&rows.iter().zip(spans).map(part).collect::<Vec<_>>(), 0)
        };
        let [q, k, v] = [0, 1, 2].map(|i| joined(&|row| row.0[i].shallow_clone()));
        let got = cache.attend(1, [&q, &k, &v], &places, how, pass);
        assert_eq!(got.kind(), kind);
        let wanted = joined(&|row| row.1.shallow_clone());
        let worst = (got.to_kind(Kind::Float) - wanted).abs().max().double_value(&[]);
        // Some roundings of f32, of scores as large as the cap; of bf16, where whole prompts' scores and weights are rounded.
        let most = if kind == Kind::Float { 1e-5 } else { 4e-2 };
        assert!(worst <= most, "{spans:?} {how:?}: off by {worst}");
    }

    #[test]
    fn blocks_give_the_attention_of_each_row_alone() {
        tch::manual_seed(3);
        let mut config = ModelConfig::read(&Fixture::path("tiny-llama")).unwrap();
        for (shape, kind) in SHAPES.into_iter().flat_map(|shape| [(shape, Kind::Float), (shape, Kind::BFloat16)]) {
            let (heads, kv_heads, head_dim, window, cap) = shape;
            (config.kv_heads, config.head_dim) = (kv_heads, head_dim);
            let scale = 1.0 / (head_dim as f64).sqrt();
            let how = Attention { head_dim: head_dim as i64, window, scale, cap, dropout: 0.0, seed: 0 };
            let drawn = |tokens: i64, width: i64| Tensor::randn([tokens, width], (Kind::Float, DEVICE)).to_kind(kind);
            let drawn_row = |tokens: i64| {
                let width = (kv_heads * head_dim) as i64;
                [drawn(tokens, heads * head_dim as i64), drawn(tokens, width), drawn(tokens, width)]
            };
            let (long, rest) = (drawn_row(70), drawn_row(33));
            // Begins as the first does, with 37 tokens.
            let alike = [0, 1, 2].map(|i| Tensor::cat(&[&long[i].narrow(0, 0, 37), &rest[i]], 0));
            let [long, short, alike] = [long, drawn_row(36), alike].map(|qkv| Row::new(qkv, &how));
            let ids =
                |from: i64, own: i64| (0..70).map(|i| if i < 37 { from + i } else { own + i }).collect::<Vec<_>>();
            let (long_ids, short_ids, alike_ids) = (ids(0, 0), ids(500, 500), ids(0, 900));
            for pass_kind in [Pass::INFERENCE, PLAIN] {
                let blocks = Blocks::new(&config, kind, 14);
                let mut cache = blocks.cache(blocks.root());
                // Two prompts at once, one of a single token; then tokens, across the edges of blocks.
                cache.open(&long_ids[..47]).unwrap();
                cache.open(&short_ids[..1]).unwrap();
                let mut spans = vec![Span::whole(47), Span::whole(1)];
                pass(&cache, &[&long, &short], &spans, &how, kind, pass_kind);
                cache.was_read(&spans);
                for step in 0..20 {
                    spans = cache.next().unwrap();
                    pass(&cache, &[&long, &short], &spans, &how, kind, pass_kind);
                    cache.advance(&[long_ids[47 + step], short_ids[1 + step]]);
                }
                // One that begins like the first joins while both go on.
                let mut joining = blocks.cache(None);
                joining.root = cache.root;
                joining.open(&alike_ids[..60]).unwrap();
                spans = joining.unread(&[alike_ids[..60].to_vec()]);
                assert_eq!((spans[0].first, spans[0].count), (32, 28));
                pass(&joining, &[&alike], &spans, &how, kind, pass_kind);
                joining.was_read(&spans);
                cache.join(joining);
                cache.keep(&[2, 1]);
                for step in 0..10 {
                    spans = cache.next().unwrap();
                    pass(&cache, &[&alike, &short], &spans, &how, kind, pass_kind);
                    cache.advance(&[alike_ids[60 + step], short_ids[21 + step]]);
                }
                assert_eq!(blocks.fill().used, 5 + 2);
                drop(cache);
                assert_eq!((blocks.fill().used, blocks.fill().free), (0, 14));
            }
        }
    }
}
