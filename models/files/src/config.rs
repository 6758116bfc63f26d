//! A model's architecture as data, read from `config.json` or GGUF metadata.
//!
//! No behaviour hangs on a family beyond what is spelled out here as fields; the decoder reads the fields.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::FilesError;
use crate::gguf::{Gguf, Value};

/// Networks this program knows. Mistral is the same network as Llama with an optional sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions divided by `factor`.
    Linear { factor: f64 },
    /// Llama 3.1: long wavelengths stretched, short ones kept, a ramp between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_positions: f64 },
    /// Each frequency divided by its own factor, as GGUF's `rope_freqs` tensor stores it.
    Factors(Vec<f32>),
}

/// One linear module: its name without `.weight`, and its weight's shape `[outputs, inputs]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub name: String,
    pub outputs: usize,
    pub inputs: usize,
}

/// Everything the decoder must know about a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// As `architectures[0]` spells it.
    pub architecture: String,
    pub family: Family,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub rms_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    pub tied_embeddings: bool,
    pub max_positions: usize,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub attention_dropout: f64,
    /// Tokens a query sees at most, itself included.
    pub sliding_window: Option<usize>,
    pub bos: Option<u32>,
    /// Ids that end a sequence; several in newer models.
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
}

impl RopeScaling {
    /// The scheme behind a GGUF's per-frequency divisors: Llama 3's where the numbers are its numbers.
    pub(crate) fn recognise(config: &ModelConfig, factors: Vec<f32>) -> Self {
        let plain = ModelConfig { rope_scaling: None, ..config.clone() };
        for factor in [8.0, 32.0, 16.0, 4.0] {
            let (low_freq_factor, high_freq_factor, original_max_positions) = (1.0, 4.0, 8192.0);
            let scheme = Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions };
            let scaled = ModelConfig { rope_scaling: Some(scheme.clone()), ..config.clone() }.inverse_frequencies();
            let close = |((p, s), f): ((f32, f32), &f32)| (p / s / f - 1.0).abs() < 1e-3;
            if factors.len() == scaled.len()
                && plain.inverse_frequencies().into_iter().zip(scaled).zip(&factors).all(close)
            {
                return scheme;
            }
        }
        Self::Factors(factors)
    }
}

impl Family {
    /// Each supported family with the name `architectures[0]` has for it.
    pub const ALL: [(Self, &'static str); 2] =
        [(Self::Llama, "LlamaForCausalLM"), (Self::Mistral, "MistralForCausalLM")];

    fn named(path: &Path, architecture: &str) -> Result<Self, FilesError> {
        let found = Self::ALL.iter().find(|(_, name)| *name == architecture).map(|(family, _)| *family);
        found.ok_or_else(|| unsupported(path, architecture))
    }
}

impl ModelConfig {
    /// Reads the configuration alone, from a folder's `config.json` or a GGUF file's metadata; weights may be absent.
    pub fn read(path: &Path) -> Result<Self, FilesError> {
        if path.is_dir() { Self::from_json(&path.join("config.json")) } else { Self::from_gguf(&Gguf::open(path)?) }
    }

    pub(crate) fn from_json(path: &Path) -> Result<Self, FilesError> {
        let text = std::fs::read_to_string(path).map_err(FilesError::read(path))?;
        let json: Json =
            serde_json::from_str(&text).map_err(|e| FilesError::damaged(path, format!("not valid JSON ({e})")))?;
        let object = json.as_object().ok_or_else(|| FilesError::damaged(path, "not a JSON object"))?;
        Fields { path, object }.config()
    }

    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, FilesError> {
        let path = gguf.path.as_path();
        if gguf.architecture() != "llama" {
            return Err(unsupported(path, gguf.architecture()));
        }
        let size = |key: &str| gguf.arch(key).and_then(Value::as_i64).and_then(|v| usize::try_from(v).ok());
        let need = |key: &str| size(key).filter(|v| *v > 0).ok_or_else(|| missing(path, &format!("llama.{key}")));
        let float = |key: &str| gguf.arch(key).and_then(Value::as_f64);
        let token = |key: &str| {
            gguf.get(&format!("tokenizer.ggml.{key}_token_id"))
                .and_then(Value::as_i64)
                .and_then(|v| u32::try_from(v).ok())
        };
        let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
        let has = |name: &str| gguf.tensors.iter().any(|t| t.name == name);
        let embedding = gguf.tensors.iter().find(|t| t.name == "token_embd.weight");
        let config = Self {
            architecture: "LlamaForCausalLM".to_owned(),
            family: Family::Llama,
            hidden,
            intermediate: need("feed_forward_length")?,
            layers: need("block_count")?,
            heads,
            kv_heads: size("attention.head_count_kv").unwrap_or(heads),
            head_dim: size("attention.key_length").or(size("rope.dimension_count")).unwrap_or(hidden / heads),
            vocab: embedding.map_or_else(|| need("vocab_size"), |t| Ok(t.shape.first().copied().unwrap_or(0)))?,
            rms_eps: float("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
            rope_theta: float("rope.freq_base").unwrap_or(10000.0),
            rope_scaling: gguf_scaling(gguf)?,
            tied_embeddings: !has("output.weight"),
            max_positions: size("context_length").unwrap_or(2048),
            attention_bias: has("blk.0.attn_q.bias"),
            mlp_bias: has("blk.0.ffn_gate.bias"),
            attention_dropout: 0.0,
            sliding_window: size("attention.sliding_window").filter(|w| *w > 0),
            bos: token("bos"),
            eos: token("eos").into_iter().collect(),
            pad: token("padding"),
        };
        config.check(path)
    }

    /// Every linear module except the output head, in layer order, named as PEFT names them.
    pub fn modules(&self) -> Vec<Module> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (h, i) = (self.hidden, self.intermediate);
        let parts = [
            ("self_attn.q_proj", q, h),
            ("self_attn.k_proj", kv, h),
            ("self_attn.v_proj", kv, h),
            ("self_attn.o_proj", h, q),
            ("mlp.gate_proj", i, h),
            ("mlp.up_proj", i, h),
            ("mlp.down_proj", h, i),
        ];
        let layer = |l: usize| {
            parts.iter().map(move |(part, outputs, inputs)| Module {
                name: format!("model.layers.{l}.{part}"),
                outputs: *outputs,
                inputs: *inputs,
            })
        };
        (0..self.layers).flat_map(layer).collect()
    }

    /// Every tensor the network needs, with its shape, in a folder's usual order.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden])];
        for (l, modules) in self.modules().chunks(7).enumerate() {
            let norm = |part: &str| (format!("model.layers.{l}.{part}.weight"), vec![self.hidden]);
            all.push(norm("input_layernorm"));
            for module in modules {
                all.push((format!("{}.weight", module.name), vec![module.outputs, module.inputs]));
                let biased = if module.name.contains("self_attn") { self.attention_bias } else { self.mlp_bias };
                if biased {
                    all.push((format!("{}.bias", module.name), vec![module.outputs]));
                }
            }
            all.push(norm("post_attention_layernorm"));
        }
        all.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        if !self.tied_embeddings {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab, self.hidden]));
        }
        all
    }

    /// Number of parameters; tied embeddings count once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().map(|d| *d as u64).product::<u64>()).sum()
    }

    /// Rotary inverse frequencies, `head_dim / 2` of them, computed in f32 as transformers does.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| 1.0 / (self.rope_theta as f32).powf((2 * i) as f32 / self.head_dim as f32));
        match &self.rope_scaling {
            None => plain.collect(),
            Some(RopeScaling::Linear { factor }) => plain.map(|f| f / *factor as f32).collect(),
            Some(RopeScaling::Factors(factors)) => plain.zip(factors).map(|(f, by)| f / by).collect(),
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions }) => {
                let ramp = |f: f32| {
                    let f = f64::from(f);
                    let turns = original_max_positions * f / std::f64::consts::TAU;
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    ((1.0 - smooth) * f / factor + smooth * f) as f32
                };
                plain.map(ramp).collect()
            }
        }
    }

    /// Refuses numbers that cannot be a network.
    fn check(self, path: &Path) -> Result<Self, FilesError> {
        let wrong = |key: &str, what: String| FilesError::Config { path: path.to_owned(), key: key.to_owned(), what };
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let what = format!("is {}, which does not divide the {} attention heads", self.kv_heads, self.heads);
            return Err(wrong("num_key_value_heads", what));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(wrong("head_dim", format!("is {}, but rotary positions need an even number", self.head_dim)));
        }
        if let Some(RopeScaling::Factors(f)) = &self.rope_scaling
            && f.len() != self.head_dim / 2
        {
            let what = format!("has {} values for a head of {}", f.len(), self.head_dim);
            return Err(wrong("rope_freqs.weight", what));
        }
        Ok(self)
    }
}

/// `config.json`'s fields, read with transformers' defaults.
struct Fields<'a> {
    path: &'a Path,
    object: &'a Map<String, Json>,
}

impl Fields<'_> {
    fn config(&self) -> Result<ModelConfig, FilesError> {
        let architecture = self.architecture();
        let family = Family::named(self.path, &architecture)?;
        self.refuse()?;
        let mistral = family == Family::Mistral;
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        let kv_default = if mistral { 8 } else { heads };
        let config = ModelConfig {
            architecture,
            family,
            hidden,
            intermediate: self.size("intermediate_size")?,
            layers: self.size("num_hidden_layers")?,
            heads,
            kv_heads: self.optional_size("num_key_value_heads").unwrap_or(kv_default),
            head_dim: self.optional_size("head_dim").unwrap_or(hidden / heads),
            vocab: self.size("vocab_size")?,
            rms_eps: self.float("rms_norm_eps").unwrap_or(1e-6),
            rope_theta: self.rope("rope_theta").and_then(Json::as_f64).unwrap_or(10000.0),
            rope_scaling: self.scaling()?,
            tied_embeddings: self.flag("tie_word_embeddings"),
            max_positions: self.optional_size("max_position_embeddings").unwrap_or(if mistral {
                131_072
            } else {
                2048
            }),
            attention_bias: self.flag("attention_bias"),
            mlp_bias: self.flag("mlp_bias"),
            attention_dropout: self.float("attention_dropout").unwrap_or(0.0),
            sliding_window: match self.object.get("sliding_window") {
                None if mistral => Some(4096),
                None | Some(Json::Null) => None,
                Some(_) => mistral.then(|| self.size("sliding_window")).transpose()?,
            },
            bos: self.tokens("bos_token_id").first().copied(),
            eos: self.tokens("eos_token_id"),
            pad: self.tokens("pad_token_id").first().copied(),
        };
        config.check(self.path)
    }

    fn architecture(&self) -> String {
        let listed = self.object.get("architectures").and_then(|a| a.get(0)).and_then(Json::as_str);
        if let Some(name) = listed {
            return name.to_owned();
        }
        match self.object.get("model_type").and_then(Json::as_str) {
            Some("llama") => "LlamaForCausalLM".to_owned(),
            Some("mistral") => "MistralForCausalLM".to_owned(),
            Some(other) => other.to_owned(),
            None => "(none named)".to_owned(),
        }
    }

    /// What would silently be computed wrongly is refused.
    fn refuse(&self) -> Result<(), FilesError> {
        let act = self.object.get("hidden_act").and_then(Json::as_str).unwrap_or("silu");
        if act != "silu" {
            return Err(self.wrong("hidden_act", format!("is {act:?}; only \"silu\" is supported")));
        }
        if let Some(q) = self.object.get("quantization_config").filter(|q| !q.is_null()) {
            let method = q.get("quant_method").and_then(Json::as_str).unwrap_or("unknown");
            let what = format!(
                "says the weights are already quantised ({method}); use the original weights or a GGUF of this model, \
                 and let the recipe's load_in_4bit quantise them"
            );
            return Err(self.wrong("quantization_config", what));
        }
        Ok(())
    }

    /// A rope key from `rope_parameters` (transformers 5), `rope_scaling` or the top level.
    fn rope(&self, key: &str) -> Option<&Json> {
        let nested = |outer: &str| self.object.get(outer).and_then(|r| r.get(key));
        nested("rope_parameters").or_else(|| nested("rope_scaling")).or_else(|| self.object.get(key))
    }

    fn scaling(&self) -> Result<Option<RopeScaling>, FilesError> {
        let kind = self.rope("rope_type").or_else(|| self.rope("type")).and_then(Json::as_str).unwrap_or("default");
        let number = |key: &str| {
            let value = self.rope(key).and_then(Json::as_f64);
            value.ok_or_else(|| self.wrong("rope_scaling", format!("of type {kind} has no number {key}")))
        };
        match kind {
            "default" => Ok(None),
            "linear" => Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
            "llama3" => Ok(Some(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_positions: number("original_max_position_embeddings")?,
            })),
            other => Err(self.wrong(
                "rope_scaling",
                format!("is of type {other:?}; supported are default, linear and llama3. Remove it to use plain rotary positions"),
            )),
        }
    }

    fn size(&self, key: &str) -> Result<usize, FilesError> {
        self.optional_size(key).filter(|v| *v > 0).ok_or_else(|| missing(self.path, key))
    }

    fn optional_size(&self, key: &str) -> Option<usize> {
        self.object.get(key).and_then(Json::as_u64).and_then(|v| usize::try_from(v).ok())
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.object.get(key).and_then(Json::as_f64)
    }

    fn flag(&self, key: &str) -> bool {
        self.object.get(key).and_then(Json::as_bool).unwrap_or(false)
    }

    fn tokens(&self, key: &str) -> Vec<u32> {
        let one = |v: &Json| v.as_u64().and_then(|v| u32::try_from(v).ok());
        match self.object.get(key) {
            Some(Json::Array(items)) => items.iter().filter_map(one).collect(),
            Some(value) => one(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    fn wrong(&self, key: &str, what: String) -> FilesError {
        FilesError::Config { path: self.path.to_owned(), key: key.to_owned(), what }
    }
}

fn gguf_scaling(gguf: &Gguf) -> Result<Option<RopeScaling>, FilesError> {
    let kind = gguf.arch("rope.scaling.type").and_then(Value::as_str).unwrap_or("none");
    match kind {
        "none" => Ok(None),
        "linear" => {
            Ok(gguf.arch("rope.scaling.factor").and_then(Value::as_f64).map(|factor| RopeScaling::Linear { factor }))
        }
        other => {
            let what = format!("rope scaling {other:?} is not supported (none and linear are, and rope_freqs)");
            Err(FilesError::unsupported(&gguf.path, what))
        }
    }
}

fn missing(path: &Path, key: &str) -> FilesError {
    let what = "is missing or not a positive whole number; the file is not a complete model configuration".to_owned();
    FilesError::Config { path: path.to_owned(), key: key.to_owned(), what }
}

fn unsupported(path: &Path, architecture: &str) -> FilesError {
    let supported = Family::ALL.iter().map(|(_, name)| (*name).to_owned()).collect();
    FilesError::Architecture { path: path.to_owned(), architecture: architecture.to_owned(), supported }
}
