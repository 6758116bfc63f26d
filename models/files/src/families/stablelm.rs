//! StableLM: LayerNorms, partly rotated heads, and in the larger ones parallel blocks and a norm per head.

use serde_json::{Map, Value as Json, json};

use super::{Family, GgufNames, OUTER, untied};
use crate::config::{Activation, Dropout, NormStyle};
use crate::fields::{Fields, RopeDefaults};
use crate::gguf::Gguf;
use crate::parts::{Part, QkNorm};
use crate::{FilesError, ModelConfig};

pub(super) const STABLELM: Family = Family {
    architecture: "StableLmForCausalLM",
    model_type: "stablelm",
    outer: OUTER,
    layers: "model.layers",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::Query, "self_attn.q_proj"),
        (Part::Key, "self_attn.k_proj"),
        (Part::Value, "self_attn.v_proj"),
        (Part::QueryNorm, "self_attn.q_layernorm.norms.{}"),
        (Part::KeyNorm, "self_attn.k_layernorm.norms.{}"),
        (Part::Output, "self_attn.o_proj"),
        (Part::MlpNorm, "post_attention_layernorm"),
        (Part::Gate, "mlp.gate_proj"),
        (Part::Up, "mlp.up_proj"),
        (Part::Down, "mlp.down_proj"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        keys: &[("layer_norm_eps", "attention.layer_norm_epsilon"), ("use_parallel_residual", "use_parallel_residual")],
        biases: &[("use_qkv_bias", Part::Query)],
        partial: Some("partial_rotary_factor"),
        lacks: untied,
        besides: head_norms,
        ..GgufNames::plain("stablelm")
    },
    read: stablelm,
};

fn stablelm(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let parallel = f.flag("use_parallel_residual", false);
    let normed = f.flag("qk_layernorm", false);
    c.parts.retain(|(part, _)| match part {
        Part::QueryNorm | Part::KeyNorm => normed,
        Part::MlpNorm => !parallel,
        _ => true,
    });
    c.max_positions = f.optional_size(&["max_position_embeddings"])?.unwrap_or(4096);
    Ok(ModelConfig {
        kv_heads: f.kv_heads(c.heads, Some(32))?,
        norm: NormStyle { centred: true, eps: f.float("layer_norm_eps").unwrap_or(1e-5), bias: true, ..c.norm },
        qk_norm: QkNorm::PerHead,
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        ropes: vec![f.rope(
            c.head_dim,
            c.max_positions,
            RopeDefaults { partial: Some(0.25), ..RopeDefaults::PLAIN },
        )?],
        parallel,
        qkv_bias: f.flag("use_qkv_bias", false),
        dropout: Dropout { mlp_output: f.float("hidden_dropout").unwrap_or(0.0), ..c.dropout },
        ..c
    })
}

fn head_norms(gguf: &Gguf, config: &mut Map<String, Json>) {
    let normed = gguf.tensors.iter().any(|tensor| tensor.name == "blk.0.attn_q_norm.weight");
    config.insert("qk_layernorm".to_owned(), json!(normed));
}
