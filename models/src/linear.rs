//! The one linear layer: dense, 4-bit or 8-bit weights, with or without a low-rank adapter.
//!
//! Full fine-tuning, LoRA and QLoRA differ only in the values held here. Nothing in this file knows families or loops.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};

use crate::importance::Heard;
use crate::int8::Int8;
use crate::nf4::Nf4;
use crate::random;
use crate::shim;

/// The weight of a linear layer, `[outputs, inputs]`.
#[derive(Debug)]
pub enum Weight {
    /// In the compute type, or f32 when it is trained.
    Dense(Tensor),
    /// 4-bit NormalFloat or float, dequantised on the fly.
    Nf4(Nf4),
    /// 8-bit integers, dequantised on the fly.
    Int8(Int8),
}

/// A low-rank adapter: `y += scale * (dropout(x) A^T) B^T`. Both matrices are f32 leaves.
#[derive(Debug)]
pub struct Lora {
    /// `[r, inputs]`
    pub a: Tensor,
    /// `[outputs, r]`
    pub b: Tensor,
    pub scale: f64,
    /// Share of inputs dropped in training.
    pub dropout: f64,
    pub dora: Option<Dora>,
    /// What the matrices began as, where the base gave that part of its weight away (PiSSA): the saved adapter holds the
    /// difference, so that it fits the untouched base.
    pub start: Option<(Tensor, Tensor)>,
}

/// Weight-decomposed adaptation (arXiv 2402.09353) as PEFT computes it: each output of `W + scale * B A` is brought to a
/// trained length.
#[derive(Debug)]
pub struct Dora {
    /// `[outputs]`, f32 leaf.
    pub magnitude: Tensor,
    /// Lengths of `W + scale * B A`, kept while nothing is trained.
    pub lengths: Option<Tensor>,
}

/// A linear layer by its Hugging Face name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
#[derive(Debug)]
pub struct Linear {
    pub name: String,
    pub weight: Weight,
    /// `[outputs]`
    pub bias: Option<Tensor>,
    pub lora: Option<Lora>,
    /// Where it is set, what the layer is given is added up there.
    pub heard: Option<Box<Mutex<Heard>>>,
}

/// How a forward pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// `Some(seed)` in training: dropout and noise are drawn from it. `None` everywhere else.
    pub training: Option<u64>,
    /// Whether the fused kernels are used; `false` is the plain libtorch path they are compared with.
    pub fused: bool,
    /// Recompute layers in backward, in groups of this many, instead of keeping their activations; 0 keeps them.
    pub recompute: usize,
    /// Leave the adapters out: the base model's answer.
    pub base_only: bool,
}

impl Pass {
    /// Inference with the fused kernels and the adapters.
    pub const INFERENCE: Self = Self { training: None, fused: true, recompute: 0, base_only: false };

    /// Inference as if no adapter were there.
    pub const BASE: Self = Self { base_only: true, ..Self::INFERENCE };
}

impl Linear {
    /// `x` is `[rows, inputs]` in the compute type; the answer is `[rows, outputs]` in the same type.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        if let Some(heard) = &self.heard {
            heard.lock().unwrap_or_else(PoisonError::into_inner).add(x);
        }
        let lora = self.lora.as_ref().filter(|_| !pass.base_only);
        let seed = pass.training.map(|seed| random::mix(seed, random::name_key(&self.name)));
        if let Some(lora) = lora
            && let Some(dora) = &lora.dora
        {
            return self.decomposed(x, lora, dora, seed, pass);
        }
        if pass.fused && !self.weight_is_trained() {
            return shim::linear(x, &self.weight, self.bias.as_ref(), lora, seed);
        }
        let mut y = x.matmul(&self.dense(x.kind()).tr());
        if let Some(bias) = &self.bias {
            y += bias.to_kind(x.kind());
        }
        if let Some(lora) = lora {
            y += lora.product(&lora.dropped(x, seed));
        }
        y
    }

    /// PEFT's DoRA: `m / |W + s B A|` times the adapted product. With dropout the base's share of the change sees the
    /// dropped input too, as there.
    fn decomposed(&self, x: &Tensor, lora: &Lora, dora: &Dora, seed: Option<u64>, pass: Pass) -> Tensor {
        let lengths = dora.lengths.as_ref().map_or_else(|| self.lengths(lora), Tensor::shallow_clone);
        let factor = (&dora.magnitude / lengths).to_kind(x.kind()).unsqueeze(0);
        let dropped = lora.dropped(x, seed);
        let whole = self.product(x, pass);
        let base = if lora.dropout > 0.0 && seed.is_some() {
            whole + self.product(&dropped, pass) * (&factor - 1.0)
        } else {
            whole * &factor
        };
        let y = base + lora.product(&dropped) * &factor;
        match &self.bias {
            Some(bias) => y + bias.to_kind(x.kind()),
            None => y,
        }
    }

    /// What was added up, which ends with that.
    pub fn take_heard(&mut self) -> Option<Heard> {
        self.heard.take().map(|heard| heard.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// `x W^T` alone.
    fn product(&self, x: &Tensor, pass: Pass) -> Tensor {
        match pass.fused && !self.weight_is_trained() {
            true => shim::linear(x, &self.weight, None, None, None),
            false => x.matmul(&self.dense(x.kind()).tr()),
        }
    }

    /// The length of each output's weights with the adapter added, `[outputs]` f32, without gradient.
    pub fn lengths(&self, lora: &Lora) -> Tensor {
        let sum = tch::no_grad(|| self.dense(Kind::Float) + lora.b.matmul(&lora.a) * lora.scale);
        tch::no_grad(|| sum.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).sqrt())
    }

    /// The base weight as a dense `[outputs, inputs]` tensor of `kind`, without the adapter.
    pub fn dense(&self, kind: Kind) -> Tensor {
        match &self.weight {
            Weight::Dense(weight) => weight.to_kind(kind),
            Weight::Nf4(weight) => weight.dequantize(kind),
            Weight::Int8(weight) => weight.dequantize(kind),
        }
    }

    /// The weight, unless it is quantised, and the bias, by name.
    pub fn weights_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = Vec::with_capacity(2);
        if let Weight::Dense(weight) = &mut self.weight {
            all.push((format!("{}.weight", self.name), weight));
        }
        all.extend(self.bias.as_mut().map(|bias| (format!("{}.bias", self.name), bias)));
        all
    }

    /// `[outputs, inputs]`
    pub fn shape(&self) -> (i64, i64) {
        match &self.weight {
            Weight::Dense(weight) => (weight.size()[0], weight.size()[1]),
            Weight::Nf4(weight) => (weight.rows, weight.columns),
            Weight::Int8(weight) => (weight.rows, weight.columns),
        }
    }

    fn weight_is_trained(&self) -> bool {
        matches!(&self.weight, Weight::Dense(weight) if weight.requires_grad())
    }
}

impl Lora {
    /// The input as the adapter sees it in training.
    fn dropped(&self, x: &Tensor, seed: Option<u64>) -> Tensor {
        match seed {
            Some(seed) if self.dropout > 0.0 => shim::dropout(x, self.dropout, seed),
            _ => x.shallow_clone(),
        }
    }

    /// `scale * x A^T B^T`
    fn product(&self, x: &Tensor) -> Tensor {
        let low = x.matmul(&self.a.to_kind(x.kind()).tr());
        low.matmul(&(&self.b * self.scale).to_kind(x.kind()).tr())
    }
}
