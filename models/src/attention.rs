//! Rotary positions, and attention within documents.
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

/// `[length, length]`, true where a query may not look: after itself, and further back than its window (0 for none).
fn unseen(length: i64, window: i64) -> Tensor {
    let seen = Tensor::ones([length, length], (Kind::Bool, DEVICE)).tril(0);
    let seen = if window > 0 { seen.triu(1 - window) } else { seen };
    seen.logical_not()
}
