//! The one linear layer: dense or NF4 weights, with or without a low-rank adapter.
//!
//! Full fine-tuning, LoRA and QLoRA differ only in the values held here. Nothing in this file knows families or loops.

use tch::{Kind, Tensor};

use crate::nf4::Nf4;
use crate::random;
use crate::shim;

/// The weight of a linear layer, `[outputs, inputs]`.
#[derive(Debug)]
pub enum Weight {
    /// In the compute type, or f32 when it is trained.
    Dense(Tensor),
    /// 4-bit NormalFloat, dequantised on the fly.
    Nf4(Nf4),
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
}

/// A linear layer by its Hugging Face name without `.weight`, such as `model.layers.0.self_attn.q_proj`.
#[derive(Debug)]
pub struct Linear {
    pub name: String,
    pub weight: Weight,
    /// `[outputs]`
    pub bias: Option<Tensor>,
    pub lora: Option<Lora>,
}

/// How a forward pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// `Some(seed)` in training: dropout and noise are drawn from it. `None` everywhere else.
    pub training: Option<u64>,
    /// Whether the fused kernels are used; `false` is the plain libtorch path they are compared with.
    pub fused: bool,
    /// Recompute each layer in backward instead of keeping its activations.
    pub checkpointing: bool,
    /// Leave the adapters out: the base model's answer.
    pub base_only: bool,
}

impl Pass {
    /// Inference with the fused kernels and the adapters.
    pub const INFERENCE: Self = Self { training: None, fused: true, checkpointing: false, base_only: false };

    /// Inference as if no adapter were there.
    pub const BASE: Self = Self { base_only: true, ..Self::INFERENCE };
}

impl Linear {
    /// `x` is `[rows, inputs]` in the compute type; the answer is `[rows, outputs]` in the same type.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        let lora = self.lora.as_ref().filter(|_| !pass.base_only);
        let seed = pass.training.map(|seed| random::mix(seed, random::name_key(&self.name)));
        if pass.fused && !self.weight_is_trained() {
            return shim::linear(x, &self.weight, self.bias.as_ref(), lora, seed);
        }
        let mut y = x.matmul(&self.dense(x.kind()).tr());
        if let Some(bias) = &self.bias {
            y += bias.to_kind(x.kind());
        }
        if let Some(lora) = lora {
            let dropped = match seed {
                Some(seed) if lora.dropout > 0.0 => shim::dropout(x, lora.dropout, seed),
                _ => x.shallow_clone(),
            };
            let low = dropped.matmul(&lora.a.to_kind(x.kind()).tr());
            y += low.matmul(&(&lora.b * lora.scale).to_kind(x.kind()).tr());
        }
        y
    }

    /// The base weight as a dense `[outputs, inputs]` tensor of `kind`, without the adapter.
    pub fn dense(&self, kind: Kind) -> Tensor {
        match &self.weight {
            Weight::Dense(weight) => weight.to_kind(kind),
            Weight::Nf4(weight) => weight.dequantize(kind),
        }
    }

    /// What the adapter adds to the weight, `scale * B A` in f32, or `None` without one.
    pub fn delta(&self) -> Option<Tensor> {
        let lora = self.lora.as_ref()?;
        Some(tch::no_grad(|| lora.b.matmul(&lora.a) * lora.scale))
    }

    /// `[outputs, inputs]`
    pub fn shape(&self) -> (i64, i64) {
        match &self.weight {
            Weight::Dense(weight) => (weight.size()[0], weight.size()[1]),
            Weight::Nf4(weight) => (weight.rows, weight.columns),
        }
    }

    fn weight_is_trained(&self) -> bool {
        matches!(&self.weight, Weight::Dense(weight) if weight.requires_grad())
    }
}

impl Lora {
    /// PEFT's default start: `A` uniform in ±1/sqrt(inputs) (kaiming with a = sqrt 5), `B` zero. Drawn from the seed and
    /// the layer's name alone, so adding or leaving out one layer changes no other.
    pub fn new(linear: &Linear, r: i64, scale: f64, dropout: f64, seed: u64) -> Self {
        let (outputs, inputs) = linear.shape();
        let bound = 1.0 / (inputs as f64).sqrt();
        let key = random::mix(seed, random::name_key(&linear.name));
        let draws: Vec<f32> =
            (0..r * inputs).map(|i| ((random::unit(key, i as u64) * 2.0 - 1.0) * bound) as f32).collect();
        let a = Tensor::from_slice(&draws).reshape([r, inputs]).set_requires_grad(true);
        let b = Tensor::zeros([outputs, r], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        Self { a, b, scale, dropout }
    }
}
