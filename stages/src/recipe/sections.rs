//! Sections that Axolotl has no key for, except clean, split, augment, mix and eval, which live with their stages.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::Toggle;

/// The three parts of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SplitName {
    Train,
    Val,
    Test,
}

/// An adapter that is folded in beside the recipe's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MergeAdapter {
    /// Its PEFT folder.
    pub path: Option<String>,
    /// What its change of the weights is multiplied with.
    #[schemars(extend("default" = 1.0))]
    pub weight: Option<f64>,
}

/// Fold the adapter into the base weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MergeSection {
    /// Type of the written weights; the base's own when unset.
    pub dtype: Option<Dtype>,
    /// Largest file, such as `5GB`.
    #[schemars(regex(pattern = "^[0-9]+(\\.[0-9]+)?\\s*([KMGT]i?)?B?$"), extend("default" = "5GB"))]
    pub max_shard_size: Option<String>,
    /// Which base the adapter is folded into.
    #[schemars(extend("default" = "as_trained"))]
    pub base: Option<MergeOnto>,
    /// Further adapters of the same base. The merged weights are the base's plus the sum of `weight * scale * B A`, as PEFT's
    /// `add_weighted_adapter` has it for `combination_type: cat`.
    pub adapters: Option<Vec<MergeAdapter>>,
    /// What the change of the adapter that is trained here, or of `lora_model_dir`, is multiplied with.
    #[schemars(extend("default" = 1.0))]
    pub weight: Option<f64>,
    /// Where the base was quantised: held-out rows, such as 8, on which the merged model is compared with base and adapter, loss and
    /// logits, by a node of its own. None with `eval: false`.
    #[schemars(extend("default" = 0))]
    pub agreement_rows: Option<u64>,
}

/// Which base weights a merge uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MergeOnto {
    /// As training saw them: dequantised where the base was quantised.
    AsTrained,
    /// As the model's files hold them.
    Original,
}

/// Types of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Dtype {
    #[serde(rename = "float32")]
    Float32,
    #[serde(rename = "float16")]
    Float16,
    #[serde(rename = "bfloat16")]
    Bfloat16,
    #[serde(rename = "fp32")]
    Fp32,
    #[serde(rename = "fp16")]
    Fp16,
    #[serde(rename = "bf16")]
    Bf16,
}

/// The adapter as a PEFT folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConvertSection {
    /// Type of the written adapter weights.
    #[schemars(extend("default" = "float32"))]
    pub dtype: Option<Dtype>,
}

/// Smaller copies of the merged model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizeSection {
    /// One output per type; `[q8_0]` when unset.
    pub types: Option<Vec<QuantType>>,
    /// Held-out rows on which every output is compared with the model it was made of: perplexity of both, and how far the logits
    /// are apart, by a node of its own. The first rows, such as 32, of the test split, or of the validation split where there is
    /// none. None with `eval: false`.
    #[schemars(extend("default" = 0))]
    pub agreement_rows: Option<u64>,
    /// Measures on training rows which columns of the weights count most, and keeps those best in the GGUF types that have few bits
    /// (an importance matrix). The other types come out as without.
    pub importance: Option<Toggle<ImportanceSection>>,
}

/// Where the importance of weights is taken from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImportanceSection {
    /// Training rows it is measured on, the first ones.
    #[schemars(extend("default" = 128), range(min = 1))]
    pub rows: Option<u64>,
    /// An importance matrix that is there already: a GGUF file of llama-imatrix, or of an earlier run.
    pub file: Option<String>,
}

/// GGUF types, and bitsandbytes' two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuantType {
    F32,
    F16,
    Bf16,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_0")]
    Q4_0,
    #[serde(rename = "q4_1")]
    Q4_1,
    #[serde(rename = "q5_0")]
    Q5_0,
    #[serde(rename = "q5_1")]
    Q5_1,
    #[serde(rename = "q2_k")]
    Q2K,
    #[serde(rename = "q3_k_m")]
    Q3KM,
    #[serde(rename = "q4_k_m")]
    Q4KM,
    #[serde(rename = "q4_k_s")]
    Q4KS,
    #[serde(rename = "q5_k_m")]
    Q5KM,
    #[serde(rename = "q6_k")]
    Q6K,
    #[serde(rename = "iq4_nl")]
    Iq4Nl,
    /// bitsandbytes' 4-bit NormalFloat.
    Nf4,
    /// bitsandbytes' LLM.int8().
    Int8,
}

/// The closing report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReportSection {
    /// Heading of the page.
    pub title: Option<String>,
    /// Sample answers shown.
    #[schemars(extend("default" = 3))]
    pub samples: Option<u64>,
}

/// What a run may use of the machine; never changes results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourcesSection {
    /// Cores to use; all when unset.
    #[schemars(range(min = 1))]
    pub cores: Option<u64>,
    /// Memory that the run's stages may plan with, such as `8GB`.
    #[schemars(regex(pattern = "^[0-9]+(\\.[0-9]+)?\\s*([KMGT]i?)?B?$"))]
    pub memory: Option<String>,
    /// Graphics processors to use; all when unset.
    pub gpus: Option<u64>,
}

impl Dtype {
    pub fn weight_type(self) -> pipe_job::WeightType {
        match self {
            Dtype::Float32 | Dtype::Fp32 => pipe_job::WeightType::F32,
            Dtype::Float16 | Dtype::Fp16 => pipe_job::WeightType::F16,
            Dtype::Bfloat16 | Dtype::Bf16 => pipe_job::WeightType::Bf16,
        }
    }
}

impl QuantType {
    /// The name written in recipes and file names.
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => String::new(),
        }
    }

    /// Whether the output is a GGUF file; otherwise a Hugging Face folder in bitsandbytes' layout.
    pub fn is_gguf(self) -> bool {
        !matches!(self, QuantType::Nf4 | QuantType::Int8)
    }
}

/// Bytes of a size such as `5GB` (powers of 1000) or `5GiB` (powers of 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim().trim_end_matches('B');
    let scale: f64 = match unit {
        "" => 1.0,
        "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some((number * scale) as u64)
}
