//! Rotary positions, attention within documents, and the cache for generation.
//!
//! Scores are only ever formed within a document, so no `[tokens, tokens]` mask exists. Nothing here has weights.

use pipe_files::{ModelConfig, Rope};
use tch::{Kind, Tensor};

use crate::decoder::DEVICE;
use crate::linear::Pass;
use crate::random;
use crate::shim::{self, Attention};

/// Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Hugging Face.
#[derive(Debug)]
pub struct Rotary {
    rope: Rope,
    /// `[rotated / 2]`, radians per position, f32; for schemes that do not look at the sequence's length.
    frequencies: Tensor,
}

/// Cosines and sines for some tokens, `[tokens, rotated / 2]` each, f32.
#[derive(Debug)]
pub struct Angles {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Neighbouring tokens of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Position of the first.
    pub first: i64,
    pub count: i64,
    /// Tokens of the document up to the last one known: some schemes stretch frequencies by it.
    pub length: i64,
}

/// Keys and values of the tokens read so far. Rows have their own lengths; there is no padding to mask on the left.
#[derive(Debug)]
pub struct Cache {
    /// Per layer, `[rows * kv_heads, capacity, head_dim]`.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    /// Tokens held by each row.
    pub lengths: Vec<i64>,
    capacity: i64,
    /// Tokens a row will ever hold; room is never made for more.
    most: i64,
}

impl Span {
    /// A document from its start.
    pub fn whole(length: i64) -> Self {
        Self { first: 0, count: length, length }
    }
}

impl Rotary {
    pub fn new(rope: &Rope) -> Self {
        let frequencies = Tensor::from_slice(&rope.inverse_frequencies(0)).to_device(DEVICE);
        Self { rope: rope.clone(), frequencies }
    }

    /// Angles at the tokens of `spans`, laid end to end.
    pub fn at(&self, spans: &[Span]) -> Angles {
        let positions: Vec<i64> = spans.iter().flat_map(|span| span.first..span.first + span.count).collect();
        let positions = Tensor::from_slice(&positions).to_kind(Kind::Float).unsqueeze(1);
        let angle = if self.rope.depends_on_length() {
            let rows = spans.iter().map(|span| {
                let own = Tensor::from_slice(&self.rope.inverse_frequencies(span.length as usize));
                own.unsqueeze(0).expand([span.count, -1], false)
            });
            positions * Tensor::cat(&rows.collect::<Vec<_>>(), 0)
        } else {
            positions * self.frequencies.unsqueeze(0)
        };
        let factor = self.rope.attention_factor();
        if factor == 1.0 {
            return Angles { cos: angle.cos(), sin: angle.sin() };
        }
        Angles { cos: angle.cos() * factor, sin: angle.sin() * factor }
    }
}

/// Rotates every head of `x` `[tokens, heads * head_dim]`, as many of its elements as there are angles for.
pub fn rotate(x: &Tensor, angles: &Angles, head_dim: usize, pass: Pass) -> Tensor {
    let half = angles.cos.size()[1];
    let (dim, tokens) = (head_dim as i64, x.size()[0]);
    if pass.fused && 2 * half == dim {
        return shim::rotate(x, &angles.cos, &angles.sin);
    }
    let heads = x.reshape([tokens, -1, dim]);
    let turned = heads.narrow(2, 0, 2 * half).to_kind(Kind::Float);
    let (cos, sin) = (angles.cos.unsqueeze(1), angles.sin.unsqueeze(1));
    let (low, high) = (turned.narrow(2, 0, half), turned.narrow(2, half, half));
    let turned = [&low * &cos - &high * &sin, &high * &cos + &low * &sin].map(|part| part.to_kind(x.kind()));
    let [low, high] = turned;
    let rest = heads.narrow(2, 2 * half, dim - 2 * half);
    Tensor::cat(&[low, high, rest], 2).reshape_as(x)
}

/// How a layer of this model attends.
pub fn of_layer(config: &ModelConfig, layer: usize, pass: Pass) -> Attention {
    let seed =
        pass.training.map(|seed| random::mix(random::mix(seed, random::name_key("attention weights")), layer as u64));
    Attention {
        head_dim: config.head_dim as i64,
        window: config.window(layer).map_or(0, |window| window as i64),
        scale: config.attention_scale(layer),
        cap: config.attention_softcap.unwrap_or(0.0),
        dropout: seed.map_or(0.0, |_| config.dropout.attention),
        seed: seed.unwrap_or(0),
    }
}

/// Causal attention within each document. `q` is `[tokens, heads * head_dim]`, `k` and `v` `[tokens, kv_heads *
/// head_dim]`; `lengths` are the documents' tokens in order.
pub fn packed(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &[i64], how: &Attention, pass: Pass) -> Tensor {
    // Masks of dropped weights are made by the kernel alone.
    if pass.fused || how.dropout > 0.0 {
        return shim::attention(q, k, v, lengths, how);
    }
    let split = |x: &Tensor, start: i64, length: i64| {
        x.narrow(0, start, length).reshape([length, -1, how.head_dim]).transpose(0, 1)
    };
    let mut start = 0;
    let mut outputs = Vec::with_capacity(lengths.len());
    for &length in lengths {
        let (q, k, v) = (split(q, start, length), split(k, start, length), split(v, start, length));
        let group = q.size()[0] / k.size()[0];
        let (k, v) = (k.repeat_interleave_self_int(group, 0, None), v.repeat_interleave_self_int(group, 0, None));
        let scores = capped(&(q.matmul(&k.transpose(1, 2)) * how.scale), how.cap).to_kind(Kind::Float);
        let weights = scores.masked_fill(&unseen(length, how.window), f64::NEG_INFINITY).softmax(-1, Kind::Float);
        let out = weights.to_kind(v.kind()).matmul(&v);
        outputs.push(out.transpose(0, 1).reshape([length, -1]));
        start += length;
    }
    Tensor::cat(&outputs, 0)
}

/// `cap * tanh(x / cap)`, or `x` where there is no cap.
pub fn capped(x: &Tensor, cap: f64) -> Tensor {
    if cap > 0.0 { (x / cap).tanh() * cap } else { x.shallow_clone() }
}

impl Cache {
    pub(crate) fn new(layers: usize) -> Self {
        let (keys, values) = (Vec::with_capacity(layers), Vec::with_capacity(layers));
        Self { keys, values, lengths: Vec::new(), capacity: 0, most: i64::MAX }
    }

    /// Promises that no row will hold more than `most` tokens, so that no room is made for more.
    pub fn bound(&mut self, most: i64) {
        self.most = most;
    }

    /// Takes the rows of another cache behind its own.
    pub fn join(&mut self, other: Cache, config: &ModelConfig) {
        if self.lengths.is_empty() {
            *self = other;
            return;
        }
        let capacity = self.capacity.max(other.capacity);
        let mine = self.keys.iter_mut().chain(self.values.iter_mut());
        for (held, joined) in mine.zip(other.keys.into_iter().chain(other.values)) {
            let rows = [widened(held, capacity, config), widened(&joined, capacity, config)];
            *held = Tensor::cat(&rows, 0);
        }
        self.lengths.extend(other.lengths);
        self.capacity = capacity;
        self.most = self.most.max(other.most);
    }

    /// Keeps only `rows`, in that order: finished answers stop costing time.
    pub fn keep(&mut self, rows: &[usize]) {
        let count = self.lengths.len() as i64;
        let index = Tensor::from_slice(&rows.iter().map(|&row| row as i64).collect::<Vec<_>>());
        for held in self.keys.iter_mut().chain(self.values.iter_mut()) {
            let size = held.size();
            let kept = held.reshape([count, -1]).index_select(0, &index);
            *held = kept.reshape([-1, size[1], size[2]]);
        }
        self.lengths = rows.iter().map(|&row| self.lengths[row]).collect();
    }

    pub(crate) fn start(&mut self, lengths: &[i64]) {
        self.keys.clear();
        self.values.clear();
        self.lengths = lengths.to_vec();
        // Room to write before the first growth; growth doubles.
        let longest = lengths.iter().max().copied().unwrap_or(0);
        self.capacity = (longest + 64).min(self.most).max(longest);
    }

    /// Takes the keys and values of whole prompts laid end to end, `[tokens, kv_heads * head_dim]`.
    pub(crate) fn fill(&mut self, layer: usize, k: &Tensor, v: &Tensor, config: &ModelConfig) {
        debug_assert_eq!(layer, self.keys.len());
        let (keys, values) = (self.spread(k, config), self.spread(v, config));
        self.keys.push(keys);
        self.values.push(values);
    }

    /// Makes room for one more token in every row.
    pub(crate) fn grow(&mut self, config: &ModelConfig) {
        if self.lengths.iter().max().copied().unwrap_or(0) < self.capacity {
            return;
        }
        let wider = (2 * self.capacity).max(64).min(self.most).max(self.capacity + 1);
        for held in self.keys.iter_mut().chain(self.values.iter_mut()) {
            *held = widened(held, wider, config);
        }
        self.capacity = wider;
    }

    /// Stores one token's keys and values per row and attends over everything held; `[rows, heads * head_dim]`.
    pub(crate) fn append_and_attend(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        config: &ModelConfig,
    ) -> Tensor {
        let (kv_heads, dim) = (config.kv_heads as i64, config.head_dim as i64);
        let rows = self.lengths.len() as i64;
        let places: Vec<i64> =
            (0..rows * kv_heads).map(|i| i * self.capacity + self.lengths[(i / kv_heads) as usize]).collect();
        let places = Tensor::from_slice(&places);
        let _ = self.keys[layer].view([-1, dim]).index_copy_(0, &places, &k.reshape([-1, dim]));
        let _ = self.values[layer].view([-1, dim]).index_copy_(0, &places, &v.reshape([-1, dim]));
        let longest = self.lengths.iter().max().copied().unwrap_or(0) + 1;
        let keys = self.keys[layer].narrow(1, 0, longest);
        let values = self.values[layer].narrow(1, 0, longest);
        let q = q.reshape([rows * kv_heads, -1, dim]) * config.attention_scale(layer);
        let scores = capped(&q.bmm(&keys.transpose(1, 2)), config.attention_softcap.unwrap_or(0.0));
        let scores = scores.to_kind(Kind::Float).reshape([rows, -1, longest]);
        let weights = (scores + self.unread(longest, config.window(layer))).softmax(-1, Kind::Float).to_kind(q.kind());
        weights.reshape([rows * kv_heads, -1, longest]).bmm(&values).reshape([rows, -1])
    }

    pub(crate) fn advance(&mut self) {
        self.lengths.iter_mut().for_each(|length| *length += 1);
    }

    /// `[rows, 1, longest]`: minus infinity where a row holds nothing, or nothing within its window.
    fn unread(&self, longest: i64, window: Option<usize>) -> Tensor {
        let columns = Tensor::arange(longest, (Kind::Int64, DEVICE)).unsqueeze(0);
        let last = Tensor::from_slice(&self.lengths).unsqueeze(1);
        let mut hidden = columns.gt_tensor(&last);
        if let Some(window) = window {
            hidden = hidden.logical_or(&columns.le_tensor(&(&last - window as i64)));
        }
        Tensor::zeros(hidden.size(), (Kind::Float, DEVICE)).masked_fill(&hidden, f64::NEG_INFINITY).unsqueeze(1)
    }

    /// `[tokens, kv_heads * head_dim]` of documents end to end to `[rows * kv_heads, capacity, head_dim]`.
    fn spread(&self, x: &Tensor, config: &ModelConfig) -> Tensor {
        let (kv_heads, dim) = (config.kv_heads as i64, config.head_dim as i64);
        let held = Tensor::zeros([self.lengths.len() as i64, kv_heads, self.capacity, dim], (x.kind(), x.device()));
        let mut start = 0;
        for (row, &length) in self.lengths.iter().enumerate() {
            let own = x.narrow(0, start, length).reshape([length, kv_heads, dim]).transpose(0, 1);
            held.get(row as i64).narrow(1, 0, length).copy_(&own);
            start += length;
        }
        held.reshape([-1, self.capacity, dim])
    }
}

/// `held` `[rows * kv_heads, capacity, head_dim]` with more room behind each row.
fn widened(held: &Tensor, capacity: i64, config: &ModelConfig) -> Tensor {
    let size = held.size();
    if size[1] >= capacity {
        return held.shallow_clone();
    }
    let room = Tensor::zeros([size[0], capacity - size[1], config.head_dim as i64], (held.kind(), held.device()));
    Tensor::cat(&[held, &room], 1)
}

/// `[length, length]`, true where a query may not look: after itself, and further back than its window (0 for none).
fn unseen(length: i64, window: i64) -> Tensor {
    let seen = Tensor::ones([length, length], (Kind::Bool, DEVICE)).tril(0);
    let seen = if window > 0 { seen.triu(1 - window) } else { seen };
    seen.logical_not()
}
