//! The optimizer and the course of its learning rate, fully resolved.

use serde::{Deserialize, Serialize};

/// The optimizer and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    pub kind: OptimizerKind,
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// On matrices; biases and the weights of norms have none, as in transformers.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no clipping.
    pub max_grad_norm: f64,
    /// SGD's and Muon's.
    #[serde(default)]
    pub momentum: f64,
    #[serde(default)]
    pub lora_plus: Option<LoraPlus>,
}

/// Learning rates of their own for an adapter's B matrices and for embeddings (arXiv 2402.12354).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraPlus {
    /// Rate of B divided by that of A.
    pub ratio: f64,
    /// Rate of trained embeddings; as that of A when `None`.
    pub embedding_lr: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    AdamW,
    /// AdamW with bitsandbytes' blockwise 8-bit state.
    AdamW8bit,
    /// transformers' Adafactor with a fixed learning rate (arXiv 1804.04235).
    Adafactor,
    /// Sign of an interpolated momentum (arXiv 2302.06675).
    Lion,
    Sgd,
    /// torch.optim.Muon on the matrices of the layers, AdamW on everything else.
    Muon,
}

/// The learning rate over steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub warmup: Warmup,
    /// Warm up along a parabola instead of a line.
    #[serde(default)]
    pub quadratic_warmup: bool,
}

/// Warm-up length. Ratios become steps when the worker knows the number of steps: `ceil(ratio * steps)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Warmup {
    Steps(u64),
    Ratio(f64),
    /// Axolotl's default: min(3% of steps, 100), and 1 becomes 2.
    Auto,
}

/// Courses as transformers, PyTorch (one cycle) and Axolotl (rex, floors) define them; ratios are shares of the peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ScheduleKind {
    Constant,
    Linear,
    /// Half a wave (`cycles` 0.5) down to `min_ratio`, reached after the share `until` of all steps.
    Cosine {
        min_ratio: f64,
        until: f64,
        cycles: f64,
    },
    CosineRestarts {
        cycles: f64,
    },
    Polynomial {
        end: f64,
        power: f64,
    },
    InverseSqrt {
        timescale: Option<f64>,
    },
    /// torch's OneCycleLR; rises during the share `rise`, or during the warm-up.
    OneCycle {
        rise: Option<f64>,
        cosine: bool,
        div: f64,
        final_div: f64,
    },
    /// Reflected exponential (arXiv 2107.04197).
    Rex {
        min_ratio: f64,
    },
}
