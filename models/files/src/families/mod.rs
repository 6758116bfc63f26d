//! Model families: for each, the names of its weights and how its `config.json` becomes a [`ModelConfig`].
//!
//! One file per kin. A family is data: a table of parts, and a reading of keys into fields. Adding one means a file here, a
//! line in [`Family::ALL`] and a parity fixture; no code outside this folder names a family.

mod falcon;
mod gemma;
mod gpt2;
mod gpt_neox;
mod granite;
mod internlm2;
mod llama;
mod mixture;
mod olmo;
mod phi;
mod qwen;
mod stablelm;
mod starcoder2;

use serde_json::{Map, Value as Json};

use crate::config::Activation;
use crate::fields::Fields;
use crate::gguf::Gguf;
use crate::parts::Part;
use crate::targets::is_named;
use crate::{FilesError, ModelConfig};

/// One architecture this program knows.
#[derive(Debug)]
pub struct Family {
    /// The name `architectures[0]` has for it.
    pub architecture: &'static str,
    pub model_type: &'static str,
    /// Weights outside the layers: those before them first.
    pub outer: &'static [(Part, &'static str)],
    /// What the names of all layers begin with.
    pub layers: &'static str,
    /// Weights of a layer, as most of the family's models have them. `{}` stands for the expert or head.
    pub parts: &'static [(Part, &'static str)],
    /// Whether matrices are stored as `[inputs, outputs]`.
    pub conv1d: bool,
    /// Whether the embedding of the padding token never learns (PyTorch's `padding_idx`).
    pub pads: bool,
    pub gguf: GgufNames,
    pub(crate) read: fn(&Fields<'_>, ModelConfig) -> Result<ModelConfig, FilesError>,
}

/// How llama.cpp's files spell this family.
#[derive(Clone, Copy, Debug)]
pub struct GgufNames {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Whether the two rotary halves of a query or key head alternate there.
    pub interleaved: bool,
    /// Names of the norms in layers that have one before each half, where they differ from most families'.
    pub two_norms: &'static [(Part, &'static str)],
    /// `config.json` keys that this family spells its own way, with the metadata key for each.
    pub(crate) keys: &'static [(&'static str, &'static str)],
    /// `config.json` flags that say whether some part has a bias.
    pub(crate) biases: &'static [(&'static str, Part)],
    /// The `config.json` key for the share of a head that is rotated, where not all of it is.
    pub(crate) partial: Option<&'static str>,
    /// The function that llama.cpp computes, which its files do not name.
    pub(crate) activation: Activation,
    /// Every layer has the window but each so many-th, as llama.cpp takes for granted; 0 where all layers are alike.
    pub(crate) window_pattern: usize,
    /// Why llama.cpp would not load a configuration, if so.
    pub(crate) lacks: fn(&ModelConfig) -> Option<&'static str>,
    /// What a file of this family needs in `config.json` besides, from metadata and tensors.
    pub(crate) besides: fn(&Gguf, &mut Map<String, Json>),
}

impl GgufNames {
    pub(crate) const fn plain(architecture: &'static str) -> Self {
        Self {
            architecture,
            interleaved: false,
            two_norms: &[],
            keys: &[],
            biases: &[],
            partial: None,
            activation: Activation::Silu,
            window_pattern: 0,
            lacks: |_| None,
            besides: |_, _| {},
        }
    }
}

/// [`GgufNames::lacks`] of an architecture whose loader has no embedding in the head's place.
pub(crate) fn untied(c: &ModelConfig) -> Option<&'static str> {
    c.tied_embeddings.then_some("llama.cpp needs a head of its own in this architecture")
}

/// [`GgufNames::lacks`] of an architecture whose loader knows no bias of the attention's output.
pub(crate) fn no_output_bias(c: &ModelConfig) -> Option<&'static str> {
    c.output_bias.then_some("llama.cpp knows no bias of the attention's output in this architecture")
}

/// [`GgufNames::lacks`] of an architecture whose loader needs every bias.
pub(crate) fn biased(c: &ModelConfig) -> Option<&'static str> {
    (!c.output_bias).then_some("llama.cpp needs biases in this architecture")
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.architecture == other.architecture
    }
}

impl Family {
    /// Every supported family.
    pub const ALL: [&'static Self; 20] = [
        &llama::LLAMA,
        &llama::MISTRAL,
        &mixture::MIXTRAL,
        &qwen::QWEN2,
        &qwen::QWEN3,
        &mixture::QWEN3_MOE,
        &gemma::GEMMA,
        &gemma::GEMMA2,
        &gemma::GEMMA3,
        &phi::PHI,
        &phi::PHI3,
        &gpt2::GPT2,
        &gpt_neox::GPT_NEOX,
        &olmo::OLMO,
        &olmo::OLMO2,
        &stablelm::STABLELM,
        &starcoder2::STARCODER2,
        &granite::GRANITE,
        &falcon::FALCON,
        &internlm2::INTERNLM2,
    ];

    /// The module outside the layers that has the part, as transformers 5 and PEFT name it.
    pub fn in_peft(&self, part: Part) -> &'static str {
        match self.in_files(part) {
            // Files have kept the older name.
            "embed_out" => "lm_head",
            own => own,
        }
    }

    /// The module outside the layers that has the part, as files name it.
    pub fn in_files(&self, part: Part) -> &'static str {
        self.outer.iter().find(|(own, _)| *own == part).map_or("", |(_, name)| *name)
    }

    /// The table, embedding or head, that `module` names, wholly or by its end after a dot. `embed_tokens` and `lm_head` are
    /// understood in every family.
    pub fn table(&self, module: &str) -> Option<Part> {
        let named = |part: Part, common: &str| is_named(self.in_files(part), module) || is_named(common, module);
        let tables = [(Part::Embedding, "model.embed_tokens"), (Part::Head, "lm_head")];
        tables.into_iter().find(|(part, common)| named(*part, common)).map(|(part, _)| part)
    }

    /// The family that a configuration names, by `architectures[0]`, else by `model_type`.
    pub(crate) fn of(fields: &Fields<'_>) -> Result<&'static Self, FilesError> {
        let listed = fields.object.get("architectures").and_then(|a| a.get(0)).and_then(Json::as_str);
        let kind = fields.object.get("model_type").and_then(Json::as_str);
        let found = Self::ALL.into_iter().find(|family| match (listed, kind) {
            (Some(name), _) => family.architecture == name,
            (None, Some(kind)) => family.model_type == kind,
            (None, None) => false,
        });
        found.ok_or_else(|| FilesError::Architecture {
            path: fields.path.to_owned(),
            architecture: listed.or(kind).unwrap_or("(none named)").to_owned(),
            supported: Self::ALL.iter().map(|family| family.architecture.to_owned()).collect(),
        })
    }
}

/// Names outside the layers that most families share.
const OUTER: &[(Part, &str)] =
    &[(Part::Embedding, "model.embed_tokens"), (Part::FinalNorm, "model.norm"), (Part::Head, "lm_head")];

/// Parts of a Llama-like layer.
const PARTS: &[(Part, &str)] = &[
    (Part::AttentionNorm, "input_layernorm"),
    (Part::Query, "self_attn.q_proj"),
    (Part::Key, "self_attn.k_proj"),
    (Part::Value, "self_attn.v_proj"),
    (Part::Output, "self_attn.o_proj"),
    (Part::MlpNorm, "post_attention_layernorm"),
    (Part::Gate, "mlp.gate_proj"),
    (Part::Up, "mlp.up_proj"),
    (Part::Down, "mlp.down_proj"),
];
