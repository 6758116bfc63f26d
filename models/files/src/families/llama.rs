//! Llama 1 to 3 and its kin (SmolLM2, Yi, Vicuna, TinyLlama), and Mistral, which adds a sliding window.

use super::{Family, GgufNames, OUTER, PARTS};
use crate::config::Activation;
use crate::fields::{Fields, RopeDefaults};
use crate::parts::Part;
use crate::{FilesError, ModelConfig};

pub(super) const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    outer: OUTER,
    layers: "model.layers",
    parts: PARTS,
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        interleaved: true,
        biases: &[("attention_bias", Part::Query), ("mlp_bias", Part::Up)],
        ..GgufNames::plain("llama")
    },
    read: llama,
};

pub(super) const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    outer: OUTER,
    layers: "model.layers",
    parts: PARTS,
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        interleaved: true,
        biases: &[("attention_bias", Part::Query), ("mlp_bias", Part::Up)],
        ..GgufNames::plain("llama")
    },
    read: mistral,
};

pub(super) fn llama(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let bias = f.flag("attention_bias", false);
    Ok(ModelConfig {
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults::PLAIN)?],
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: f.flag("mlp_bias", false),
        ..c
    })
}

fn mistral(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let max_positions = f.optional_size(&["max_position_embeddings"])?.unwrap_or(131_072);
    let window = match f.object.contains_key("sliding_window") {
        true => f.optional_size(&["sliding_window"])?,
        false => Some(4096),
    };
    Ok(ModelConfig {
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        kv_heads: f.kv_heads(c.heads, Some(8))?,
        max_positions,
        ropes: vec![f.rope(c.head_dim, max_positions, RopeDefaults::PLAIN)?],
        ..c
    }
    .windowed(window))
}
