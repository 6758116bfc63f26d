//! Rotary positions, attention within documents, and the cache for generation.
//!
//! Scores are only ever formed within a document, so no `[tokens, tokens]` mask exists. Nothing here has weights.

use pipe_files::ModelConfig;
use tch::{Kind, Tensor};

use crate::decoder::DEVICE;
use crate::linear::Pass;
use crate::shim;

/// Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split layout of Hugging Face.
#[derive(Debug)]
pub struct Rotary {
    /// `[head_dim / 2]`, radians per position, f32.
    frequencies: Tensor,
}

/// Cosines and sines for some tokens, `[tokens, head_dim / 2]` each, f32.
#[derive(Debug)]
pub struct Angles {
    pub cos: Tensor,
    pub sin: Tensor,
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
}

impl Rotary {
    /// From inverse frequencies, `head_dim / 2` of them.
    pub fn new(frequencies: &[f32]) -> Self {
        Self { frequencies: Tensor::from_slice(frequencies).to_device(DEVICE) }
    }

    /// Angles at `positions` `[tokens]`.
    pub fn at(&self, positions: &Tensor) -> Angles {
        let angle = positions.to_kind(Kind::Float).unsqueeze(1) * self.frequencies.unsqueeze(0);
        Angles { cos: angle.cos(), sin: angle.sin() }
    }
}

/// Rotates every head of `x` `[tokens, heads * head_dim]`.
pub fn rotate(x: &Tensor, angles: &Angles, pass: Pass) -> Tensor {
    if pass.fused {
        return shim::rotate(x, &angles.cos, &angles.sin);
    }
    let half = angles.cos.size()[1];
    let heads = x.reshape([x.size()[0], -1, 2 * half]).to_kind(Kind::Float);
    let (cos, sin) = (angles.cos.unsqueeze(1), angles.sin.unsqueeze(1));
    let (low, high) = (heads.narrow(2, 0, half), heads.narrow(2, half, half));
    let rotated = Tensor::cat(&[&low * &cos - &high * &sin, &high * &cos + &low * &sin], 2);
    rotated.to_kind(x.kind()).reshape_as(x)
}

/// Causal attention within each document. `q` is `[tokens, heads * head_dim]`, `k` and `v` `[tokens, kv_heads *
/// head_dim]`; `lengths` are the documents' tokens in order.
pub fn packed(q: &Tensor, k: &Tensor, v: &Tensor, config: &ModelConfig, lengths: &[i64], pass: Pass) -> Tensor {
    let window = config.sliding_window.map_or(0, |window| window as i64);
    if pass.fused {
        return shim::attention(q, k, v, config.head_dim as i64, lengths, window);
    }
    let split = |x: &Tensor, start: i64, length: i64| {
        x.narrow(0, start, length).reshape([length, -1, config.head_dim as i64]).transpose(0, 1).unsqueeze(0)
    };
    let mut start = 0;
    let mut outputs = Vec::with_capacity(lengths.len());
    for &length in lengths {
        let (q, k, v) = (split(q, start, length), split(k, start, length), split(v, start, length));
        let mask = (window > 0 && length > window).then(|| window_mask(length, window));
        let out =
            Tensor::scaled_dot_product_attention(&q, &k, &v, mask.as_ref(), 0.0, mask.is_none(), None::<f64>, true);
        outputs.push(out.squeeze_dim(0).transpose(0, 1).reshape([length, -1]));
        start += length;
    }
    Tensor::cat(&outputs, 0)
}

impl Cache {
    pub(crate) fn new(layers: usize) -> Self {
        Self { keys: Vec::with_capacity(layers), values: Vec::with_capacity(layers), lengths: Vec::new(), capacity: 0 }
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
        self.capacity = lengths.iter().max().copied().unwrap_or(0) + 64;
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
        let more = self.capacity.max(64);
        for held in self.keys.iter_mut().chain(self.values.iter_mut()) {
            let room = Tensor::zeros([held.size()[0], more, config.head_dim as i64], (held.kind(), held.device()));
            *held = Tensor::cat(&[&*held, &room], 1);
        }
        self.capacity += more;
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
        let q = q.reshape([rows * kv_heads, -1, dim]) * (1.0 / (dim as f64).sqrt());
        let scores = q.bmm(&keys.transpose(1, 2)).to_kind(Kind::Float).reshape([rows, -1, longest]);
        let weights = (scores + self.unread(longest, config)).softmax(-1, Kind::Float).to_kind(q.kind());
        weights.reshape([rows * kv_heads, -1, longest]).bmm(&values).reshape([rows, -1])
    }

    pub(crate) fn advance(&mut self) {
        self.lengths.iter_mut().for_each(|length| *length += 1);
    }

    /// `[rows, 1, longest]`: minus infinity where a row holds nothing, or nothing within its window.
    fn unread(&self, longest: i64, config: &ModelConfig) -> Tensor {
        let columns = Tensor::arange(longest, (Kind::Int64, DEVICE)).unsqueeze(0);
        let last = Tensor::from_slice(&self.lengths).unsqueeze(1);
        let mut hidden = columns.gt_tensor(&last);
        if let Some(window) = config.sliding_window {
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

/// `[length, length]`, true where a query may look: at itself and the `window - 1` tokens before it.
fn window_mask(length: i64, window: i64) -> Tensor {
    Tensor::ones([length, length], (Kind::Bool, DEVICE)).tril(0).triu(1 - window)
}
