//! What is trained: an adapter with its settings, all weights, or some of them.

use serde::{Deserialize, Serialize};

/// What receives gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Adapter {
    /// All weights.
    Full,
    /// The base's own weights that match; the others are frozen.
    Freeze(Freeze),
    Lora(Lora),
}

/// Which of the base's weights are trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Freeze {
    /// Axolotl's patterns: a regular expression from the start of a weight's name, in which a dot is a dot, and after it
    /// perhaps rows, as in `^model.embed_tokens.weight$[:100]`.
    pub unfrozen: Vec<String>,
    /// The last layers, all their weights.
    pub last_layers: usize,
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
    /// Ranks of single modules: PEFT's patterns, the first that matches the end of a name counts.
    #[serde(default)]
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of single modules.
    #[serde(default)]
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules trained whole beside the adapter, such as `embed_tokens` and `lm_head`.
    #[serde(default)]
    pub modules_to_save: Vec<String>,
    #[serde(default)]
    pub init: Init,
}

impl Default for Lora {
    /// PEFT's defaults, on every linear module.
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::AllLinear,
            rslora: false,
            dora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            init: Init::Kaiming,
        }
    }
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

/// What the two matrices hold before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Init {
    /// PEFT's default: A uniform, B zero.
    #[default]
    Kaiming,
    /// A normal with deviation 1/r, B zero.
    Gaussian,
    /// Halves of one orthogonal matrix, so that neither is zero and their product is (PEFT's `orthogonal`).
    Orthogonal,
    /// The weight's first singular directions; the base keeps the rest (arXiv 2404.02948). With `iterations` the
    /// directions are found by that many rounds of a randomised method.
    Pissa { iterations: Option<u32> },
    /// The first singular directions of what quantising the weight loses (arXiv 2310.08659).
    Loftq,
}
