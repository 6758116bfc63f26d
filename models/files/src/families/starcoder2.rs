//! StarCoder2: LayerNorms, biases everywhere, a plain feed-forward part.

use super::{Family, GgufNames, OUTER, biased};
use crate::config::{Activation, Dropout, NormStyle};
use crate::fields::{Fields, RopeDefaults};
use crate::parts::Part;
use crate::{FilesError, ModelConfig};

pub(super) const STARCODER2: Family = Family {
    architecture: "Starcoder2ForCausalLM",
    model_type: "starcoder2",
    outer: OUTER,
    layers: "model.layers",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::Query, "self_attn.q_proj"),
        (Part::Key, "self_attn.k_proj"),
        (Part::Value, "self_attn.v_proj"),
        (Part::Output, "self_attn.o_proj"),
        (Part::MlpNorm, "post_attention_layernorm"),
        (Part::Up, "mlp.c_fc"),
        (Part::Down, "mlp.c_proj"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        activation: Activation::GeluTanh,
        keys: &[("norm_epsilon", "attention.layer_norm_epsilon")],
        biases: &[("use_bias", Part::Query)],
        lacks: biased,
        ..GgufNames::plain("starcoder2")
    },
    read: starcoder2,
};

fn starcoder2(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    c.max_positions = f.optional_size(&["max_position_embeddings"])?.unwrap_or(4096);
    let bias = f.flag("use_bias", true);
    let residual = f.float("residual_dropout").unwrap_or(0.0);
    Ok(ModelConfig {
        kv_heads: f.kv_heads(c.heads, Some(2))?,
        norm: NormStyle { centred: true, eps: f.float("norm_epsilon").unwrap_or(1e-5), bias: true, ..c.norm },
        activation: f.activation(&["hidden_act"], Activation::GeluTanh)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults::PLAIN)?],
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        tied_embeddings: f.flag("tie_word_embeddings", true),
        dropout: Dropout {
            embedding: f.float("embedding_dropout").unwrap_or(0.0),
            attention_output: residual,
            mlp_output: residual,
            ..c.dropout
        },
        ..c
    }
    .windowed(f.optional_size(&["sliding_window"])?))
}
