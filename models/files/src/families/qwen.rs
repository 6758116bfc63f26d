//! Qwen2 and 2.5 (biased queries, keys and values) and Qwen3 (normed queries and keys).

use serde_json::{Map, Value as Json, json};

use super::{Family, GgufNames, OUTER, PARTS, no_output_bias};
use crate::config::Activation;
use crate::fields::{Fields, RopeDefaults};
use crate::gguf::Gguf;
use crate::parts::Part;
use crate::{FilesError, ModelConfig};

pub(super) const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    outer: OUTER,
    layers: "model.layers",
    parts: PARTS,
    conv1d: false,
    pads: true,
    gguf: GgufNames { besides: window, ..GgufNames::plain("qwen2") },
    read: qwen2,
};

pub(super) const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    outer: OUTER,
    layers: "model.layers",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::Query, "self_attn.q_proj"),
        (Part::Key, "self_attn.k_proj"),
        (Part::Value, "self_attn.v_proj"),
        (Part::QueryNorm, "self_attn.q_norm"),
        (Part::KeyNorm, "self_attn.k_norm"),
        (Part::Output, "self_attn.o_proj"),
        (Part::MlpNorm, "post_attention_layernorm"),
        (Part::Gate, "mlp.gate_proj"),
        (Part::Up, "mlp.up_proj"),
        (Part::Down, "mlp.down_proj"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        biases: &[("attention_bias", Part::Query)],
        lacks: no_output_bias,
        besides: window,
        ..GgufNames::plain("qwen3")
    },
    read: qwen3,
};

fn qwen2(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    Ok(ModelConfig { qkv_bias: true, ..shared(f, c)? })
}

fn qwen3(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    c.head_dim = f.optional_size(&["head_dim"])?.unwrap_or(128);
    c.scales.attention = 1.0 / (c.head_dim as f64).sqrt();
    let bias = f.flag("attention_bias", false);
    Ok(ModelConfig { qkv_bias: bias, output_bias: bias, ..shared(f, c)? })
}

fn shared(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    c.max_positions = f.optional_size(&["max_position_embeddings"])?.unwrap_or(32_768);
    let window =
        if f.flag("use_sliding_window", false) { f.optional_size(&["sliding_window"])?.or(Some(4096)) } else { None };
    let first = f.optional_size(&["max_window_layers"])?.unwrap_or(28);
    let sliding = f.sliding_layers(c.layers)?.unwrap_or_else(|| (0..c.layers).map(|layer| layer >= first).collect());
    for (kind, sliding) in c.layer_kinds.iter_mut().zip(sliding) {
        kind.window = window.filter(|_| sliding);
    }
    Ok(ModelConfig {
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        kv_heads: f.kv_heads(c.heads, Some(32))?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults::PLAIN)?],
        ..c
    })
}

/// A window is used only where two further keys say so.
pub(super) fn window(_: &Gguf, config: &mut Map<String, Json>) {
    if config.contains_key("sliding_window") {
        config.insert("use_sliding_window".to_owned(), json!(true));
        config.insert("max_window_layers".to_owned(), json!(0));
    }
}
