//! Jobs that read a model: evaluation, merging, quantising.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{BaseWeights, Compute};

/// A model on disk: a Hugging Face folder or a GGUF file, optionally with a PEFT adapter folder on top.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSource {
    pub path: PathBuf,
    pub adapter: Option<PathBuf>,
    pub base: BaseWeights,
    pub compute: Compute,
}

/// Element type of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightType {
    F32,
    F16,
    Bf16,
}

/// Measure loss on packed rows and generate answers for rows of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalJob {
    pub model: ModelSource,
    /// A model folder whose weights were trained whole: it is measured as the tuned model, and `model` is its base.
    pub whole: Option<PathBuf>,
    /// Also measure the base model without the adapter, in the same process.
    pub baseline: bool,
    /// Packed Parquet files to measure loss on: (split, file).
    pub packs: Vec<(String, PathBuf)>,
    /// Rows to answer.
    pub answers: Vec<Asked>,
    pub generation: Generation,
    /// Where the tokenizer is; needed for stop texts alone.
    pub tokenizer: Option<PathBuf>,
    /// Prompts, already tokenised, for free samples: (name, ids).
    pub samples: Vec<(String, Vec<i64>)>,
    /// Folder to write to: `losses.parquet` (`model, split, source, row_id, loss_sum, tokens, trained_tokens`, one line per
    /// document), `answers.parquet` (`model, split, source, row_id, output_ids`) and `samples.json`.
    pub output: PathBuf,
}

/// Rows whose prompts are answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub split: String,
    /// Which dataset of the split the rows are from; returned with their answers.
    pub source: u16,
    /// Token Parquet file (`row_id, input_ids, labels, length`); a prompt is the ids before the first trained label.
    pub rows: PathBuf,
    /// Asked of the base model alone, whose answers are then filed under this name.
    pub base_as: Option<String>,
}

/// How to generate. Greedy when `temperature` is 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    pub max_new_tokens: usize,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: usize,
    pub repetition_penalty: f64,
    pub seed: u64,
    /// Ids that end an answer; not part of it.
    pub stop: Vec<i64>,
    /// Texts that end an answer; they, and what the last token has behind them, are still part of it.
    #[serde(default)]
    pub stop_texts: Vec<String>,
    /// Rows decoded together at most.
    pub batch: usize,
}

/// Which weights an adapter is merged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeBase {
    /// The weights as training saw them: dequantised from the quantised base.
    AsTrained,
    /// The weights as the base model's files hold them.
    Original,
}

/// An adapter and how much of it is merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weighted {
    pub path: PathBuf,
    /// What its change of the weights is multiplied with; 1 for all of it.
    pub weight: f64,
}

/// Merge adapters into their base; writes a Hugging Face folder's weights and `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeJob {
    /// The base; its `adapter` is `None`.
    pub model: ModelSource,
    pub adapters: Vec<Weighted>,
    pub base: MergeBase,
    pub dtype: WeightType,
    /// Largest shard in bytes.
    pub max_shard_bytes: u64,
    pub output: PathBuf,
}

/// Compare models with one of which they should be as good as copies, on the same rows, at the trained positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgreementJob {
    /// What the others are compared with, and its name.
    pub reference: (String, ModelSource),
    pub others: Vec<(String, ModelSource)>,
    /// Packed Parquet file.
    pub packs: PathBuf,
    /// Documents at most.
    pub rows: usize,
    /// JSON to write: `rows`, `trained_tokens`, `reference` and, by `models`' names, `loss`, `perplexity` and for the others
    /// `kl_divergence`, `same_top`, `mean_logit_difference` and `max_logit_difference`.
    pub output: PathBuf,
}

/// Quantise a model folder or GGUF to one file or folder per type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizeJob {
    pub model: PathBuf,
    /// GGUF type name in lower case (`q8_0`, `q4_k_m`, `f16`...) and the file to write, or `nf4` or `int8` and the folder.
    pub outputs: Vec<(String, PathBuf)>,
    /// An importance matrix as llama.cpp has it, which guides the GGUF types that have few bits.
    #[serde(default)]
    pub importance: Option<PathBuf>,
}

/// Measure the importance of a model's weights on rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportanceJob {
    pub model: ModelSource,
    /// Packed Parquet file.
    pub packs: PathBuf,
    /// Documents at most.
    pub rows: usize,
    /// The importance matrix to write.
    pub output: PathBuf,
}
