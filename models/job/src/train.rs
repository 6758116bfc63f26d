//! The training job, fully resolved.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ModelSource;

/// Train an adapter (or the whole model) on packed rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainJob {
    /// `model.adapter`, when set, is a PEFT adapter to go on training.
    pub model: ModelSource,
    pub adapter: Adapter,
    /// Packed Parquet file (`input_ids, labels, position_ids, segment_ids, row_ids, lengths`).
    pub train: PathBuf,
    /// Packed rows to evaluate on during training.
    pub val: Option<PathBuf>,
    pub batching: Batching,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub eval: EvalPoints,
    pub save: SavePoints,
    /// Activation checkpointing: recompute each layer in backward.
    pub gradient_checkpointing: bool,
    /// Noise scale of NEFTune on the embeddings (arXiv 2310.05914), 0 for none.
    pub neftune_alpha: f64,
    pub seed: u64,
    /// `false` runs the plain libtorch path instead of the fused kernels.
    pub kernels: bool,
    /// Folder for the result: `adapter_model.safetensors`, `adapter_config.json` and `metrics.jsonl`.
    pub output: PathBuf,
    /// Folder that outlives a killed run; checkpoints live here and the newest whole one is resumed.
    pub checkpoints: PathBuf,
}

/// What receives gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Adapter {
    /// All weights.
    Full,
    Lora(Lora),
}

/// Low-rank adaptation (Hu et al., arXiv 2106.09685): `y = Wx + scale * B A x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    pub r: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub targets: Targets,
    /// Scale `alpha / sqrt(r)` instead of `alpha / r` (arXiv 2312.03732).
    pub rslora: bool,
    /// Weight-decomposed adaptation (arXiv 2402.09353).
    pub dora: bool,
}

/// Which linear modules get an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Targets {
    /// Every linear module except the output head.
    AllLinear,
    /// Module names matched as PEFT does: the whole name or a suffix after a dot.
    Names(Vec<String>),
    /// A regular expression that must match the whole module name.
    Regex(String),
}

/// How frozen linear weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BaseWeights {
    /// In the compute type.
    Dense,
    /// 4-bit NormalFloat in bitsandbytes' layout, block 64; `double_quant` quantises the scales too (block 256).
    Nf4 { double_quant: bool },
}

/// The arithmetic type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    F32,
    Bf16,
    F16,
}

/// How packs become optimizer steps: a step takes `micro_batch * accumulation` packs; the last window of an epoch may be
/// short. Micro-batches only bound memory: the loss is normalised over the whole window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batching {
    pub micro_batch: usize,
    pub accumulation: usize,
    pub epochs: f64,
    pub max_steps: Option<u64>,
    /// Shuffle packs anew each epoch, from the seed; otherwise stored order.
    pub shuffle: bool,
}

/// The optimizer and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    pub kind: OptimizerKind,
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 for no clipping.
    pub max_grad_norm: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    AdamW,
    /// AdamW with bitsandbytes' blockwise 8-bit state.
    AdamW8bit,
    Sgd,
}

/// The learning rate over steps, as transformers' `get_scheduler` defines it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub warmup: Warmup,
    /// Cosine only: the floor as a share of the peak.
    pub min_lr_ratio: f64,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    Constant,
    Linear,
    Cosine,
}

/// When to evaluate during training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum EvalPoints {
    Never,
    EverySteps(u64),
    /// Spread evenly: every `floor(steps per epoch / n)` steps, at least 1, and at the end of each epoch.
    PerEpoch(u64),
}

/// When to write checkpoints, and how many to keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavePoints {
    pub every: EvalPoints,
    pub keep: usize,
}
