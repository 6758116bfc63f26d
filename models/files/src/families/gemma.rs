//! Gemma 1 to 3 (text): scaled embeddings and norm weights that count from one; from 2 on norms after each part, caps on
//! scores and alternating windows; in 3 normed queries and keys, and two rotary bases.

use serde_json::{Map, Value as Json, json};

use super::{Family, GgufNames, OUTER, PARTS};
use crate::config::Activation;
use crate::fields::{Fields, RopeDefaults};
use crate::gguf::{Gguf, Value};
use crate::parts::Part;
use crate::{FilesError, ModelConfig};

pub(super) const GEMMA: Family = Family {
    architecture: "GemmaForCausalLM",
    model_type: "gemma",
    outer: OUTER,
    layers: "model.layers",
    parts: PARTS,
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        activation: Activation::GeluTanh,
        biases: &[("attention_bias", Part::Query)],
        ..GgufNames::plain("gemma")
    },
    read: gemma,
};

pub(super) const GEMMA2: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    outer: OUTER,
    layers: "model.layers",
    parts: &[
        (Part::AttentionNorm, "input_layernorm"),
        (Part::Query, "self_attn.q_proj"),
        (Part::Key, "self_attn.k_proj"),
        (Part::Value, "self_attn.v_proj"),
        (Part::Output, "self_attn.o_proj"),
        (Part::AttentionPostNorm, "post_attention_layernorm"),
        (Part::MlpNorm, "pre_feedforward_layernorm"),
        (Part::Gate, "mlp.gate_proj"),
        (Part::Up, "mlp.up_proj"),
        (Part::Down, "mlp.down_proj"),
        (Part::MlpPostNorm, "post_feedforward_layernorm"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        activation: Activation::GeluTanh,
        biases: &[("attention_bias", Part::Query)],
        keys: &[
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ],
        besides: query_scalar,
        window_pattern: 2,
        ..GgufNames::plain("gemma2")
    },
    read: gemma2,
};

pub(super) const GEMMA3: Family = Family {
    architecture: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
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
        (Part::AttentionPostNorm, "post_attention_layernorm"),
        (Part::MlpNorm, "pre_feedforward_layernorm"),
        (Part::Gate, "mlp.gate_proj"),
        (Part::Up, "mlp.up_proj"),
        (Part::Down, "mlp.down_proj"),
        (Part::MlpPostNorm, "post_feedforward_layernorm"),
    ],
    conv1d: false,
    pads: true,
    gguf: GgufNames {
        activation: Activation::GeluTanh,
        biases: &[("attention_bias", Part::Query)],
        keys: &[("rope_local_base_freq", "rope.freq_base_swa"), ("final_logit_softcapping", "final_logit_softcapping")],
        besides: query_scalar,
        window_pattern: 6,
        ..GgufNames::plain("gemma3")
    },
    read: gemma3,
};

fn gemma(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    // The first files say "gelu" and mean the approximation by tanh.
    let activation = match f.activation(&["hidden_act"], Activation::GeluTanh)? {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    let c = shared(f, c, Some(16), 8192)?;
    Ok(ModelConfig { activation, ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults::PLAIN)?], ..c })
}

fn gemma2(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let mut c = shared(f, c, Some(4), 8192)?;
    windows(f, &mut c, 2)?;
    c.scales.attention = query_scale(f);
    let cap = |key: &str, silent: f64| if f.object.contains_key(key) { f.float(key) } else { Some(silent) };
    Ok(ModelConfig {
        activation: f.activation(&["hidden_activation"], Activation::GeluTanh)?,
        ropes: vec![f.rope(c.head_dim, c.max_positions, RopeDefaults::PLAIN)?],
        attention_softcap: cap("attn_logit_softcapping", 50.0),
        final_softcap: cap("final_logit_softcapping", 30.0),
        ..c
    })
}

fn gemma3(f: &Fields<'_>, c: ModelConfig) -> Result<ModelConfig, FilesError> {
    let mut c = shared(f, c, Some(4), 131_072)?;
    let pattern = f.optional_size(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(6).max(1);
    windows(f, &mut c, pattern)?;
    // The first rope is the global layers', the second that of layers with a window.
    c.layer_kinds.iter_mut().for_each(|kind| kind.rope = usize::from(kind.window.is_some()));
    c.scales.attention = query_scale(f);
    let kinds = f.get(&["rope_parameters"]).and_then(Json::as_object);
    let of = |kind: &str| kinds.and_then(|k| k.get(kind)).and_then(Json::as_object).cloned().unwrap_or_default();
    let mut global = of("full_attention");
    if let Some(scaling) = f.get(&["rope_scaling"]).and_then(Json::as_object) {
        global.extend(scaling.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let rope = |object: &Map<String, Json>, theta: f64, theta_key: &'static str| {
        f.rope_of(object, c.head_dim, c.max_positions, RopeDefaults { theta, theta_key, ..RopeDefaults::PLAIN })
    };
    let ropes = vec![rope(&global, 1e6, "rope_theta")?, rope(&of("sliding_attention"), 1e4, "rope_local_base_freq")?];
    Ok(ModelConfig {
        activation: f.activation(&["hidden_activation"], Activation::GeluTanh)?,
        ropes,
        // Gemma 3 has the key for a cap on scores too, but transformers does not apply it.
        final_softcap: f.float("final_logit_softcapping"),
        ..c
    })
}

fn shared(f: &Fields<'_>, mut c: ModelConfig, kv: Option<usize>, positions: usize) -> Result<ModelConfig, FilesError> {
    let both_ways = f.flag("use_bidirectional_attention", false);
    f.refuse(
        "use_bidirectional_attention",
        both_ways,
        "is true: such a model encodes text and cannot be trained to write",
    )?;
    c.kv_heads = f.kv_heads(c.heads, kv)?;
    c.head_dim = f.optional_size(&["head_dim"])?.unwrap_or(256);
    c.scales.attention = 1.0 / (c.head_dim as f64).sqrt();
    c.scales.embedding = (c.hidden as f64).sqrt();
    c.scales.embedding_rounded = true;
    c.max_positions = f.optional_size(&["max_position_embeddings"])?.unwrap_or(positions);
    c.norm.from_one = true;
    let bias = f.flag("attention_bias", false);
    Ok(ModelConfig { qkv_bias: bias, output_bias: bias, tied_embeddings: f.flag("tie_word_embeddings", true), ..c })
}

/// Every layer has the window but each `pattern`-th.
fn windows(f: &Fields<'_>, c: &mut ModelConfig, pattern: usize) -> Result<(), FilesError> {
    let window =
        if f.object.contains_key("sliding_window") { f.optional_size(&["sliding_window"])? } else { Some(4096) };
    let listed = f.sliding_layers(c.layers)?;
    let sliding = listed.unwrap_or_else(|| (1..=c.layers).map(|layer| !layer.is_multiple_of(pattern)).collect());
    for (kind, sliding) in c.layer_kinds.iter_mut().zip(sliding) {
        kind.window = window.filter(|_| sliding);
    }
    Ok(())
}

fn query_scale(f: &Fields<'_>) -> f64 {
    1.0 / f.float("query_pre_attn_scalar").unwrap_or(256.0).sqrt()
}

/// llama.cpp has no key for it: the 27B models divide by hidden / heads, all others by the head's size.
fn query_scalar(gguf: &Gguf, config: &mut Map<String, Json>) {
    let size = |key: &str| gguf.arch(key).and_then(Value::as_i64).unwrap_or(0);
    let large = matches!((gguf.architecture(), size("block_count")), ("gemma2", 46) | ("gemma3", 62));
    let by_hidden = size("embedding_length") / size("attention.head_count").max(1);
    let scalar = if large { by_hidden } else { size("attention.key_length") };
    config.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
}
