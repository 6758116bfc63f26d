//! Mixtures of experts: Mixtral and Qwen3-MoE.
//!
//! Experts are named one by one, as the checkpoints on the hub and adapters made for them do; a checkpoint that holds all
//! experts of a layer in one tensor reads the same.

use serde_json::{Map, Value as Json, json};

use super::{Family, GgufNames, OUTER, no_output_bias};
use crate::config::{Activation, Experts};
use crate::fields::{Fields, RopeDefaults};
use crate::gguf::{Gguf, Value};
use crate::parts::Part;
use crate::{FilesError, ModelConfig};

pub(super) const MIXTRAL: Family = Family {
    architecture: "MixtralForCausalLM",
    model_type: "mixtral",
    outer: OUTER,
    layers: "model.layers",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::Query, "self_attn.q_proj"),
        (Part::Key, "self_attn.k_proj"),
        (Part::Value, "self_attn.v_proj"),
        (Part::Output, "self_attn.o_proj"),
        (Part::MlpNorm, "post_attention_layernorm"),
        (Part::Router, "block_sparse_moe.gate"),
        (Part::ExpertGate, "block_sparse_moe.experts.{}.w1"),
        (Part::ExpertUp, "block_sparse_moe.experts.{}.w3"),
        (Part::ExpertDown, "block_sparse_moe.experts.{}.w2"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames { interleaved: true, besides: experts, ..GgufNames::plain("llama") },
    read: mixtral,
};

pub(super) const QWEN3_MOE: Family = Family {
    architecture: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
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
        (Part::Router, "mlp.gate"),
        (Part::ExpertGate, "mlp.experts.{}.gate_proj"),
        (Part::ExpertUp, "mlp.experts.{}.up_proj"),
        (Part::ExpertDown, "mlp.experts.{}.down_proj"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        biases: &[("attention_bias", Part::Query)],
        lacks: no_output_bias,
        besides: experts,
        ..GgufNames::plain("qwen3moe")
    },
    read: qwen3_moe,
};

fn mixtral(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    c.max_positions = f.optional_size(&["max_position_embeddings"])?.unwrap_or(131_072);
    c.norm.eps = f.float("rms_norm_eps").unwrap_or(1e-5);
    let theta = RopeDefaults { theta: 1e6, ..RopeDefaults::PLAIN };
    Ok(ModelConfig {
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        kv_heads: f.kv_heads(c.heads, Some(8))?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, theta)?],
        experts: Some(Experts {
            count: f.optional_size(&["num_local_experts", "num_experts"])?.unwrap_or(8),
            per_token: f.optional_size(&["num_experts_per_tok"])?.unwrap_or(2),
            intermediate: c.intermediate,
            normalise: true,
            dense_layers: Vec::new(),
            balance: balance(f),
            jitter: f.float("router_jitter_noise").unwrap_or(0.0),
        }),
        ..c
    }
    .windowed(f.optional_size(&["sliding_window"])?))
}

fn qwen3_moe(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    c.max_positions = f.optional_size(&["max_position_embeddings"])?.unwrap_or(32_768);
    let bias = f.flag("attention_bias", false);
    let count = f.optional_size(&["num_experts", "num_local_experts"])?.unwrap_or(128);
    let step = f.optional_size(&["decoder_sparse_step"])?.unwrap_or(1).max(1);
    let listed = f.get(&["mlp_only_layers"]).and_then(Json::as_array).into_iter().flatten();
    let listed: Vec<u64> = listed.filter_map(Json::as_u64).collect();
    let dense = |layer: &usize| listed.contains(&(*layer as u64)) || count == 0 || !(layer + 1).is_multiple_of(step);
    let window =
        if f.flag("use_sliding_window", false) { f.optional_size(&["sliding_window"])?.or(Some(4096)) } else { None };
    Ok(ModelConfig {
        activation: f.activation(&["hidden_act"], Activation::Silu)?,
        kv_heads: f.kv_heads(c.heads, Some(4))?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults::PLAIN)?],
        qkv_bias: bias,
        output_bias: bias,
        experts: Some(Experts {
            count,
            per_token: f.optional_size(&["num_experts_per_tok"])?.unwrap_or(8),
            intermediate: f.optional_size(&["moe_intermediate_size"])?.unwrap_or(768),
            normalise: f.flag("norm_topk_prob", false),
            dense_layers: (0..c.layers).filter(dense).collect(),
            balance: balance(f),
            jitter: 0.0,
        }),
        ..c
    }
    .windowed(window))
}

/// Transformers adds the load-balancing loss only where the router's scores are asked for.
fn balance(f: &Fields<'_>) -> f64 {
    if f.flag("output_router_logits", false) { f.float("router_aux_loss_coef").unwrap_or(0.001) } else { 0.0 }
}

fn experts(gguf: &Gguf, config: &mut Map<String, Json>) {
    super::qwen::window(gguf, config);
    let size = |key: &str| gguf.arch(key).and_then(Value::as_i64);
    let count = size("expert_count");
    config.extend(["num_local_experts", "num_experts"].map(|key| (key.to_owned(), json!(count))));
    config.insert("num_experts_per_tok".to_owned(), json!(size("expert_used_count")));
    if let Some(wide) = size("expert_feed_forward_length") {
        config.insert("moe_intermediate_size".to_owned(), json!(wide));
        // llama.cpp scales the shares of this family's experts to sum to one.
        config.insert("norm_topk_prob".to_owned(), json!(true));
        config.insert("decoder_sparse_step".to_owned(), json!(1));
    }
}
