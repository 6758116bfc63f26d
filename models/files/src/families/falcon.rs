//! Falcon: one packed projection with few key-value heads; parallel blocks with one norm or two.

use serde_json::{Map, Value as Json, json};

use super::{Family, GgufNames, no_output_bias};
use crate::config::{Activation, Dropout, NormStyle};
use crate::fields::{Fields, RopeDefaults};
use crate::gguf::{Gguf, Value};
use crate::parts::{Part, QkvLayout};
use crate::{FilesError, ModelConfig};

pub(super) const FALCON: Family = Family {
    architecture: "FalconForCausalLM",
    model_type: "falcon",
    outer: &[
        (Part::Embedding, "transformer.word_embeddings"),
        (Part::FinalNorm, "transformer.ln_f"),
        (Part::Head, "lm_head"),
    ],
    layers: "transformer.h",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::MlpNorm, "post_attention_layernorm"),
        (Part::QueryKeyValue, "self_attention.query_key_value"),
        (Part::Output, "self_attention.dense"),
        (Part::Up, "mlp.dense_h_to_4h"),
        (Part::Down, "mlp.dense_4h_to_h"),
    ],
    conv1d: false,
    pads: false,
    gguf: GgufNames {
        activation: Activation::Gelu,
        keys: &[
            ("num_kv_heads", "attention.head_count_kv"),
            ("ffn_hidden_size", "feed_forward_length"),
            ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
        ],
        biases: &[("bias", Part::QueryKeyValue)],
        besides: shape,
        two_norms: &[(Part::AttentionNorm, "attn_norm_2"), (Part::MlpNorm, "attn_norm")],
        lacks: no_output_bias,
        ..GgufNames::plain("falcon")
    },
    read: falcon,
};

fn falcon(f: &Fields<'_>, mut c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let alibi = "is true; Falcon models with ALiBi positions are not supported, those with rotary ones are";
    f.refuse("alibi", f.flag("alibi", false), alibi)?;
    let new = f.flag("new_decoder_architecture", false);
    let parallel = f.flag("parallel_attn", true);
    f.refuse(
        "parallel_attn",
        new && !parallel,
        "is false in a model of the new decoder architecture, which has parallel blocks",
    )?;
    let norms = f.optional_size(&["num_ln_in_parallel_attn"])?.unwrap_or(if new { 2 } else { 1 });
    if !new && parallel && norms == 2 {
        return Err(
            f.wrong("num_ln_in_parallel_attn", "is 2 without new_decoder_architecture, which no model has".to_owned())
        );
    }
    if parallel {
        c.parts.retain(|(part, _)| *part != Part::MlpNorm || norms == 2);
    }
    if norms == 2 && parallel {
        for (part, name) in &mut c.parts {
            match part {
                Part::AttentionNorm => *name = "ln_attn",
                Part::MlpNorm => *name = "ln_mlp",
                _ => {}
            }
        }
    }
    if !new {
        c.kv_heads = if f.flag("multi_query", true) { 1 } else { c.heads };
    }
    let bias = f.flag("bias", false);
    let hidden = f.float("hidden_dropout").unwrap_or(0.0);
    let attention = f.float("attention_dropout").unwrap_or(0.0);
    Ok(ModelConfig {
        norm: NormStyle { centred: true, eps: f.float("layer_norm_epsilon").unwrap_or(1e-5), bias: true, ..c.norm },
        activation: f.activation(&["activation"], Activation::Gelu)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults::PLAIN)?],
        parallel,
        qkv_layout: QkvLayout::Grouped,
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: bias,
        tied_embeddings: f.flag("tie_word_embeddings", true),
        // Transformers drops no attention weights here; one mask falls on the sum of a parallel block's parts.
        dropout: Dropout {
            attention: 0.0,
            attention_output: if parallel { hidden } else { attention },
            mlp_output: hidden,
            ..Dropout::default()
        },
        ..c
    })
}

/// The three shapes differ in their norms and in how many keys and values they have.
fn shape(gguf: &Gguf, config: &mut Map<String, Json>) {
    let size = |key: &str| gguf.arch(key).and_then(Value::as_i64).unwrap_or(1);
    let (heads, kv_heads) = (size("attention.head_count"), size("attention.head_count_kv"));
    let two_norms = gguf.tensors.iter().any(|tensor| tensor.name == "blk.0.attn_norm_2.weight");
    let new = two_norms || (kv_heads != 1 && kv_heads != heads);
    config.insert("new_decoder_architecture".to_owned(), json!(new));
    config.insert("multi_query".to_owned(), json!(kv_heads == 1));
    if new {
        config.insert("num_ln_in_parallel_attn".to_owned(), json!(if two_norms { 2 } else { 1 }));
    }
}
