//! The one linear layer: dense, 4-bit or 8-bit weights, with or without a low-rank adapter.
//!
//! Full fine-tuning, LoRA and QLoRA differ only in the values held here. Nothing in this file knows families or loops.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};

use crate::few;
use crate::gguf_blocks::GgufBlocks;
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
    /// As a GGUF file holds it, for inference alone.
    Blocks(GgufBlocks),
}

impl Weight {
    /// As a dense `[outputs, inputs]` tensor of `kind`.
    pub fn dense(&self, kind: Kind) -> Tensor {
        match self {
            Self::Dense(weight) => weight.to_kind(kind),
            Self::Nf4(weight) => weight.dequantize(kind),
            Self::Int8(weight) => weight.dequantize(kind),
            Self::Blocks(weight) => weight.dequantize(kind),
        }
    }

    /// Another handle of the same numbers.
    pub fn shared(&self) -> Self {
        match self {
            Self::Dense(weight) => Self::Dense(weight.shallow_clone()),
            Self::Blocks(weight) => Self::Blocks(weight.clone()),
            weight => Self::Dense(weight.dense(Kind::Float)),
        }
    }

    /// The plain tensor, where it is one.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(weight) => Some(weight),
            _ => None,
        }
    }

    /// The plain tensor, where it is one.
    pub fn tensor_mut(&mut self) -> Option<&mut Tensor> {
        match self {
            Self::Dense(weight) => Some(weight),
            _ => None,
        }
    }

    /// `x weight^T` in the type of `x`, for any number of rows.
    pub fn product(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Blocks(weight) => weight.product(x),
            weight => shim::matmul(x, &weight.dense(x.kind()).tr()),
        }
    }

    /// `[outputs, inputs]`
    pub fn shape(&self) -> (i64, i64) {
        match self {
            Self::Dense(weight) => (weight.size()[0], weight.size()[1]),
            Self::Nf4(weight) => (weight.rows, weight.columns),
            Self::Int8(weight) => (weight.rows, weight.columns),
            Self::Blocks(weight) => (weight.rows, weight.columns),
        }
    }
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
        let [y] = Self::forward_all([self], x, pass);
        y
    }

    /// `onto` plus the answer.
    pub fn forward_onto(&self, onto: &Tensor, x: &Tensor, pass: Pass) -> Tensor {
        few::added(self, x, onto, pass).unwrap_or_else(|| onto + self.forward(x, pass))
    }

    /// The answers of several layers to the same input.
    pub fn forward_all<const N: usize>(linears: [&Self; N], x: &Tensor, pass: Pass) -> [Tensor; N] {
        match few::forward(&linears, x, pass).map(<[Tensor; N]>::try_from) {
            Some(Ok(all)) => all,
            _ => Self::forward_many(linears, x, pass),
        }
    }

    fn forward_many<const N: usize>(linears: [&Self; N], x: &Tensor, pass: Pass) -> [Tensor; N] {
        for heard in linears.iter().filter_map(|linear| linear.heard.as_ref()) {
            heard.lock().unwrap_or_else(PoisonError::into_inner).add(x);
        }
        if pass.fused && linears.iter().all(|linear| linear.is_fused() && linear.dora(pass).is_none()) {
            return shim::linears(x, linears.map(|linear| linear.frozen(pass)));
        }
        linears.map(|linear| linear.forward_alone(x, pass))
    }

    /// As the fused product takes it.
    fn frozen(&self, pass: Pass) -> shim::Layer<'_> {
        shim::Layer {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            lora: self.lora.as_ref().filter(|_| !pass.base_only),
            seed: self.seed(pass),
        }
    }

    /// What dropout is drawn from in training.
    fn seed(&self, pass: Pass) -> Option<u64> {
        pass.training.map(|seed| random::mix(seed, random::name_key(&self.name)))
    }

    fn dora(&self, pass: Pass) -> Option<(&Lora, &Dora)> {
        let lora = self.lora.as_ref().filter(|_| !pass.base_only)?;
        Some((lora, lora.dora.as_ref()?))
    }

    fn forward_alone(&self, x: &Tensor, pass: Pass) -> Tensor {
        let seed = self.seed(pass);
        if let Some((lora, dora)) = self.dora(pass) {
            return self.decomposed(x, lora, dora, seed, pass);
        }
        if pass.fused && self.is_fused() {
            let [y] = shim::linears(x, [self.frozen(pass)]);
            return y;
        }
        let lora = self.lora.as_ref().filter(|_| !pass.base_only);
        let mut y = self.product(x, pass);
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
        match pass.fused && self.is_fused() {
            true => {
                let alone = shim::Layer { weight: &self.weight, bias: None, lora: None, seed: None };
                let [y] = shim::linears(x, [alone]);
                y
            }
            false => self.weight.product(x),
        }
    }

    /// The length of each output's weights with the adapter added, `[outputs]` f32, without gradient.
    pub fn lengths(&self, lora: &Lora) -> Tensor {
        let sum = tch::no_grad(|| self.dense(Kind::Float) + lora.b.matmul(&lora.a) * lora.scale);
        tch::no_grad(|| sum.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).sqrt())
    }

    /// The base weight as a dense `[outputs, inputs]` tensor of `kind`, without the adapter.
    pub fn dense(&self, kind: Kind) -> Tensor {
        self.weight.dense(kind)
    }

    /// The weight, unless it is quantised, and the bias, by name.
    pub fn weights_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = Vec::with_capacity(2);
        all.extend(self.weight.tensor_mut().map(|weight| (format!("{}.weight", self.name), weight)));
        all.extend(self.bias.as_mut().map(|bias| (format!("{}.bias", self.name), bias)));
        all
    }

    /// `[outputs, inputs]`
    pub fn shape(&self) -> (i64, i64) {
        self.weight.shape()
    }

    /// Whether the fused product knows this weight: a frozen one that is not in blocks.
    fn is_fused(&self) -> bool {
        match &self.weight {
            Weight::Dense(weight) => !weight.requires_grad(),
            Weight::Nf4(_) | Weight::Int8(_) => true,
            Weight::Blocks(_) => false,
        }
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
        let low = shim::matmul(x, &self.a.to_kind(x.kind()).tr());
        shim::matmul(&low, &(&self.b * self.scale).to_kind(x.kind()).tr())
    }
}
