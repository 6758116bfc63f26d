//! A model's architecture as data, read from `config.json` or GGUF metadata.
//!
//! No behaviour hangs on a family beyond what is spelled out here as fields; the decoder reads the fields.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::families::Family;
use crate::fields::Fields;
use crate::gguf::Gguf;
use crate::parts::{Part, QkNorm, QkvLayout};
use crate::{FilesError, Rope, gguf_config};

/// Everything the decoder must know about a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// As `architectures[0]` spells it.
    pub architecture: String,
    pub family: &'static Family,
    pub hidden: usize,
    /// Of the dense feed-forward part.
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub max_positions: usize,
    /// The parts of a layer with their names inside it.
    pub parts: Vec<(Part, &'static str)>,
    pub norm: NormStyle,
    pub qk_norm: QkNorm,
    pub qk_norm_bias: bool,
    pub activation: Activation,
    /// Rotary positions; several where layers differ, none where positions are learned.
    pub ropes: Vec<Rope>,
    /// One per layer.
    pub layer_kinds: Vec<LayerKind>,
    /// Attention and feed-forward part read the same input, and their outputs are added.
    pub parallel: bool,
    pub qkv_layout: QkvLayout,
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    pub head_bias: bool,
    pub experts: Option<Experts>,
    pub scales: Scales,
    /// Scores become `cap * tanh(score / cap)`.
    pub attention_softcap: Option<f64>,
    /// The same for the logits.
    pub final_softcap: Option<f64>,
    /// Queries, keys and values are clamped to this size.
    pub clip_qkv: Option<f64>,
    pub tied_embeddings: bool,
    pub dropout: Dropout,
    pub bos: Option<u32>,
    /// Ids that end a sequence; several in newer models.
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
}

/// What one layer does differently from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// Tokens a query sees at most, itself included.
    pub window: Option<usize>,
    /// Which of the model's ropes.
    pub rope: usize,
}

/// How a norm is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormStyle {
    /// Subtract the mean (LayerNorm) or not (RMSNorm).
    pub centred: bool,
    pub eps: f64,
    /// The stored weight counts from one: `(1 + w) x`.
    pub from_one: bool,
    pub weight: bool,
    pub bias: bool,
}

/// Constant factors, 1 where a family has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    pub embedding: f64,
    /// Whether that factor is rounded to the arithmetic type first.
    pub embedding_rounded: bool,
    /// Of attention scores.
    pub attention: f64,
    /// Divide attention scores by the layer's number, counted from one.
    pub attention_by_layer: bool,
    /// Of what a block adds.
    pub residual: f64,
    /// Of the logits.
    pub logits: f64,
}

/// Shares of elements dropped in training, as the model's files say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropout {
    pub embedding: f64,
    /// Of attention weights.
    pub attention: f64,
    /// Of what the attention adds.
    pub attention_output: f64,
    /// Of what the feed-forward part adds.
    pub mlp_output: f64,
}

/// A mixture of experts in place of the feed-forward part.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    pub count: usize,
    /// Experts that each token goes to.
    pub per_token: usize,
    pub intermediate: usize,
    /// Whether the chosen experts' shares are scaled to sum to one.
    pub normalise: bool,
    /// Layers that have a plain feed-forward part instead.
    pub dense_layers: Vec<usize>,
    /// Weight of the load-balancing loss, where the configuration turns it on.
    pub balance: f64,
    /// Noise on the router's input in training, as a share.
    pub jitter: f64,
}

/// The function inside the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    Gelu,
    GeluTanh,
    QuickGelu,
    Relu,
    ReluSquared,
}

impl Activation {
    /// Transformers' names; several mean the same function.
    pub const NAMES: [(&'static str, Self); 12] = [
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu", Self::Gelu),
        ("gelu_python", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("gelu_accurate", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("gelu_python_tanh", Self::GeluTanh),
        ("quick_gelu", Self::QuickGelu),
        ("relu", Self::Relu),
        ("relu2", Self::ReluSquared),
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(own, _)| *own == name).map(|(_, activation)| *activation)
    }
}

impl ModelConfig {
    /// Reads the configuration alone, from a folder's `config.json` or a GGUF file's metadata; weights may be absent.
    pub fn read(path: &Path) -> Result<Self, FilesError> {
        if path.is_dir() { Self::from_json(&path.join("config.json")) } else { Self::from_gguf(&*Gguf::open(path)?) }
    }

    pub(crate) fn from_json(path: &Path) -> Result<Self, FilesError> {
        let text = std::fs::read_to_string(path).map_err(FilesError::read(path))?;
        let json: Json =
            serde_json::from_str(&text).map_err(|e| FilesError::damaged(path, format!("not valid JSON ({e})")))?;
        let object = json.as_object().ok_or_else(|| FilesError::damaged(path, "not a JSON object"))?;
        Self::from_object(path, object)
    }

    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, FilesError> {
        Self::from_object(&gguf.path, &gguf_config::folder_config(gguf)?)
    }

    pub(crate) fn from_object(path: &Path, object: &Map<String, Json>) -> Result<Self, FilesError> {
        let fields = Fields { path, object };
        let family = Family::of(&fields)?;
        refuse_quantised(&fields)?;
        (family.read)(&fields, common(&fields, family)?)?.check(path)
    }

    /// The window of a layer, in tokens.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.layer_kinds.get(layer).and_then(|kind| kind.window)
    }

    /// What a layer's attention scores are multiplied by.
    pub fn attention_scale(&self, layer: usize) -> f64 {
        let share = if self.scales.attention_by_layer { (layer + 1) as f64 } else { 1.0 };
        self.scales.attention / share
    }

    /// Gives every layer the same window.
    pub(crate) fn windowed(mut self, window: Option<usize>) -> Self {
        self.layer_kinds.iter_mut().for_each(|kind| kind.window = window);
        self
    }

    /// Refuses numbers that cannot be a network.
    fn check(self, path: &Path) -> Result<Self, FilesError> {
        let wrong = |key: &str, what: String| FilesError::Config { path: path.to_owned(), key: key.to_owned(), what };
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let what = format!("is {}, which does not divide the {} attention heads", self.kv_heads, self.heads);
            return Err(wrong("num_key_value_heads", what));
        }
        if self.head_dim == 0 || (!self.ropes.is_empty() && !self.head_dim.is_multiple_of(2)) {
            return Err(wrong("head_dim", format!("is {}, but rotary positions need an even number", self.head_dim)));
        }
        if self.ropes.iter().any(|rope| rope.dim == 0 || rope.dim > self.head_dim) {
            return Err(wrong("partial_rotary_factor", format!("leaves no valid part of a head of {}", self.head_dim)));
        }
        if self.layer_kinds.iter().any(|kind| kind.window == Some(0)) {
            return Err(wrong("sliding_window", "is 0, so that no token sees anything; remove it".to_owned()));
        }
        if let Some(experts) = &self.experts
            && (experts.per_token == 0 || experts.per_token > experts.count)
        {
            let what = format!("is {}, with {} experts to choose from", experts.per_token, experts.count);
            return Err(wrong("num_experts_per_tok", what));
        }
        Ok(self)
    }
}

/// What most families share, under the keys most of them use; the family's own reading comes after.
fn common(f: &Fields<'_>, family: &'static Family) -> Result<ModelConfig, FilesError> {
    let hidden = f.size(&["hidden_size", "n_embd"])?;
    let heads = f.size(&["num_attention_heads", "n_head"])?;
    let layers = f.size(&["num_hidden_layers", "n_layer"])?;
    let head_dim = f.optional_size(&["head_dim"])?.unwrap_or(hidden / heads);
    Ok(ModelConfig {
        architecture: family.architecture.to_owned(),
        family,
        hidden,
        intermediate: f.optional_size(&["intermediate_size", "n_inner", "ffn_hidden_size"])?.unwrap_or(4 * hidden),
        layers,
        heads,
        kv_heads: f.kv_heads(heads, None)?,
        head_dim,
        vocab: f.size(&["vocab_size"])?,
        max_positions: f.optional_size(&["max_position_embeddings", "n_positions"])?.unwrap_or(2048),
        parts: family.parts.to_vec(),
        norm: NormStyle {
            centred: false,
            eps: f.float("rms_norm_eps").unwrap_or(1e-6),
            from_one: false,
            weight: true,
            bias: false,
        },
        qk_norm: QkNorm::Head,
        qk_norm_bias: false,
        activation: Activation::Silu,
        ropes: Vec::new(),
        layer_kinds: vec![LayerKind { window: None, rope: 0 }; layers],
        parallel: false,
        qkv_layout: QkvLayout::Blocks,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        head_bias: false,
        experts: None,
        scales: Scales {
            embedding: 1.0,
            embedding_rounded: false,
            attention: 1.0 / (head_dim as f64).sqrt(),
            attention_by_layer: false,
            residual: 1.0,
            logits: 1.0,
        },
        attention_softcap: None,
        final_softcap: None,
        clip_qkv: None,
        tied_embeddings: f.flag("tie_word_embeddings", false),
        dropout: Dropout { attention: f.float("attention_dropout").unwrap_or(0.0), ..Dropout::default() },
        bos: f.tokens("bos_token_id").first().copied(),
        eos: f.tokens("eos_token_id"),
        pad: f.tokens("pad_token_id").first().copied(),
    })
}

/// Weights that are quantised in a form that is not read here would silently be computed wrongly.
fn refuse_quantised(f: &Fields<'_>) -> Result<(), FilesError> {
    let Some(q) = f.get(&["quantization_config"]) else { return Ok(()) };
    let method = q.get("quant_method").and_then(Json::as_str).unwrap_or("unknown");
    if method == "bitsandbytes" {
        return Ok(());
    }
    let what = format!(
        "says the weights are already quantised ({method}); use the original weights or a GGUF of this model, \
         and let the recipe's load_in_4bit quantise them"
    );
    Err(f.wrong("quantization_config", what))
}
