//! Phi-1 to 2 (parallel blocks, partly rotated heads, biases everywhere) and Phi-3 and 4 (packed projections).

use serde_json::{Map, Value as Json, json};

use super::{Family, GgufNames, OUTER, untied};
use crate::config::{Activation, Dropout, NormStyle};
use crate::fields::{Fields, RopeDefaults};
use crate::gguf::{Gguf, Value};
use crate::parts::Part;
use crate::{FilesError, ModelConfig};

pub(super) const PHI: Family = Family {
    architecture: "PhiForCausalLM",
    model_type: "phi",
    outer: &[
        (Part::Embedding, "model.embed_tokens"),
        (Part::FinalNorm, "model.final_layernorm"),
        (Part::Head, "lm_head"),
    ],
    layers: "model.layers",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::Query, "self_attn.q_proj"),
        (Part::Key, "self_attn.k_proj"),
        (Part::Value, "self_attn.v_proj"),
        (Part::QueryNorm, "self_attn.q_layernorm"),
        (Part::KeyNorm, "self_attn.k_layernorm"),
        (Part::Output, "self_attn.dense"),
        (Part::Up, "mlp.fc1"),
        (Part::Down, "mlp.fc2"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        activation: Activation::GeluTanh,
        keys: &[("layer_norm_eps", "attention.layer_norm_epsilon")],
        partial: Some("partial_rotary_factor"),
        lacks: untied,
        ..GgufNames::plain("phi2")
    },
    read: phi,
};

pub(super) const PHI3: Family = Family {
    architecture: "Phi3ForCausalLM",
    model_type: "phi3",
    outer: OUTER,
    layers: "model.layers",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::QueryKeyValue, "self_attn.qkv_proj"),
        (Part::Output, "self_attn.o_proj"),
        (Part::MlpNorm, "post_attention_layernorm"),
        (Part::GateUp, "mlp.gate_up_proj"),
        (Part::Down, "mlp.down_proj"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames { partial: Some("partial_rotary_factor"), besides: original, ..GgufNames::plain("phi3") },
    read: phi3,
};

fn phi(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    if !f.flag("qk_layernorm", false) {
        c.parts.retain(|(part, _)| !matches!(part, Part::QueryNorm | Part::KeyNorm));
    }
    let residual = f.float("resid_pdrop").unwrap_or(0.0);
    Ok(ModelConfig {
        norm: NormStyle { centred: true, eps: f.float("layer_norm_eps").unwrap_or(1e-5), bias: true, ..c.norm },
        qk_norm_bias: true,
        activation: f.activation(&["hidden_act"], Activation::GeluTanh)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults { partial: Some(0.5), ..RopeDefaults::PLAIN })?],
        parallel: true,
        qkv_bias: true,
        output_bias: true,
        mlp_bias: true,
        head_bias: true,
        dropout: Dropout {
            embedding: f.float("embd_pdrop").unwrap_or(0.0),
            attention_output: residual,
            mlp_output: residual,
            ..c.dropout
        },
        ..c
    })
}

fn phi3(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    c.max_positions = f.optional_size(&["max_position_embeddings"])?.unwrap_or(4096);
    c.norm.eps = f.float("rms_norm_eps").unwrap_or(1e-5);
    let residual = f.float("resid_pdrop").unwrap_or(0.0);
    let rope = RopeDefaults { partial: Some(1.0), original: Some(4096.0), ..RopeDefaults::PLAIN };
    Ok(ModelConfig {
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, rope)?],
        dropout: Dropout { attention_output: residual, mlp_output: residual, ..c.dropout },
        ..c
    }
    .windowed(f.optional_size(&["sliding_window"])?))
}

/// This family's class has the key outside the rope's parameters, where it takes precedence.
fn original(gguf: &Gguf, config: &mut Map<String, Json>) {
    if let Some(original) = gguf.arch("rope.scaling.original_context_length").and_then(Value::as_i64) {
        config.insert("original_max_position_embeddings".to_owned(), json!(original));
    }
}
