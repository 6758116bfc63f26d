//! The training job, fully resolved.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Adapter, Generation, ModelSource, Optimizer, Schedule};

/// Train an adapter (or the whole model) on packed rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainJob {
    /// `model.adapter`, when set, is a PEFT adapter to go on training.
    pub model: ModelSource,
    pub adapter: Adapter,
    /// Packed Parquet file (`input_ids, labels, position_ids, segment_ids, row_ids, lengths, sources`).
    pub train: PathBuf,
    /// Packed rows to evaluate on during training.
    pub val: Option<PathBuf>,
    /// Names of the datasets that the numbers in the packs' `sources` column stand for.
    pub sources: Vec<String>,
    pub batching: Batching,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub eval: EvalPoints,
    pub save: SavePoints,
    pub stopping: Stopping,
    pub watchdog: Option<Watchdog>,
    /// Prompts that are answered during training; changes nothing that is trained.
    pub sampling: Option<TrainSamples>,
    pub recompute: Recompute,
    /// Noise scale of NEFTune on the embeddings (arXiv 2310.05914), 0 for none.
    pub neftune_alpha: f64,
    /// Weight of the squared log of the softmax's denominator in the objective (arXiv 2204.02311), 0 for none.
    pub z_loss: f64,
    pub seed: u64,
    /// `false` runs the plain libtorch path instead of the fused kernels.
    pub kernels: bool,
    /// Folder for the result: a PEFT adapter or a model folder, and `metrics.jsonl`.
    pub output: PathBuf,
    /// Folder that outlives a killed run; checkpoints live here and the newest whole one is resumed.
    pub checkpoints: PathBuf,
    /// A checkpoint folder of this very run to go on from, instead of the newest.
    pub resume: Option<PathBuf>,
}

/// Answers to fixed prompts during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSamples {
    /// Optimizer steps between two looks; there is one before the first step and one after the last as well.
    pub every: u64,
    /// Prompts, already tokenised: (name, ids).
    pub prompts: Vec<(String, Vec<i64>)>,
    pub generation: Generation,
    /// Where the tokenizer is.
    pub tokenizer: PathBuf,
}

/// How frozen linear weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BaseWeights {
    /// In the compute type.
    Dense,
    /// 4-bit NormalFloat in bitsandbytes' layout, block 64; `double_quant` quantises the scales too (block 256).
    Nf4 { double_quant: bool },
    /// 4-bit floats (E2M1) in the same layout.
    Fp4 { double_quant: bool },
    /// 8-bit integers with a scale per output, as bitsandbytes' LLM.int8 holds them (arXiv 2208.07339).
    Int8,
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
    pub order: Order,
}

/// The order of packs within an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As they are stored.
    #[default]
    Stored,
    /// Shuffled anew each epoch, from the seed.
    Shuffled,
    /// Shuffled, then sorted by length within stretches of some batches, as transformers' `LengthGroupedSampler` does it.
    ByLength,
}

/// When to evaluate during training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum EvalPoints {
    Never,
    EverySteps(u64),
    /// Each time this share of all steps is done, rounded up to whole steps as transformers does, and after the last step.
    EveryShare(f64),
    /// At the end of each epoch, and after the last step.
    EveryEpoch,
}

impl EvalPoints {
    /// Whether something is due after `done` steps of `total`.
    pub fn is_due(&self, done: u64, per_epoch: u64, total: u64) -> bool {
        let last = done == total;
        match *self {
            _ if done == 0 => false,
            Self::Never => false,
            Self::EverySteps(every) => every > 0 && done.is_multiple_of(every),
            Self::EveryShare(share) => last || done.is_multiple_of(((share * total as f64).ceil() as u64).max(1)),
            Self::EveryEpoch => last || done.is_multiple_of(per_epoch.max(1)),
        }
    }
}

/// When to write checkpoints, and how many to keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavePoints {
    pub every: EvalPoints,
    pub keep: usize,
}

/// What evaluations during training decide. Better is a lower loss, which is a lower perplexity too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stopping {
    /// Stop after this many evaluations in a row that are no better than the best so far.
    pub patience: Option<u64>,
    /// The result is the weights of the best evaluation instead of the last ones.
    pub best: bool,
}

/// Stops a run whose loss stays high.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Watchdog {
    pub threshold: f64,
    /// Steps in a row above the threshold.
    pub patience: u64,
}

/// Activation checkpointing: what is computed again in the backward pass instead of kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Recompute {
    #[default]
    Nothing,
    /// Layers in groups of this many; one input per group is kept.
    Layers(usize),
}
