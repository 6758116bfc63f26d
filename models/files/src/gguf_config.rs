//! A model's configuration between GGUF metadata and `config.json`.
//!
//! Reading makes the `config.json` that transformers would have, so that a family is read in one place only, and a folder
//! written from a GGUF loads anywhere. Writing takes the resolved configuration.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json, json};

use crate::families::Family;
use crate::gguf::{Gguf, Value};
use crate::gguf_names::part_name;
use crate::parts::Part;
use crate::{FilesError, ModelConfig, Rope, RopeScaling};

/// `config.json` keys and metadata keys (without the architecture) that most families share.
const KEYS: &[(&str, &str)] = &[
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("sliding_window", "attention.sliding_window"),
];

/// The `config.json` of a GGUF file's model.
pub(crate) fn folder_config(gguf: &Gguf) -> Result<Map<String, Json>, FilesError> {
    let family = family(gguf)?;
    let has = |name: &str| gguf.tensors.iter().any(|t| t.name == name);
    let mut config = Map::new();
    config.insert("architectures".to_owned(), json!([family.architecture]));
    config.insert("model_type".to_owned(), json!(family.model_type));
    let own = family.gguf.keys;
    let common = KEYS.iter().filter(|(_, key)| own.iter().all(|(_, other)| other != key));
    for (name, key) in common.chain(own) {
        if let Some(value) = gguf.arch(key).and_then(number) {
            config.insert((*name).to_owned(), value);
        }
    }
    if gguf.arch("attention.sliding_window").and_then(Value::as_i64) == Some(0) {
        config.shift_remove("sliding_window");
    }
    let size = |key: &str| gguf.arch(key).and_then(Value::as_i64).and_then(|v| usize::try_from(v).ok());
    let (hidden, heads) = (size("embedding_length").unwrap_or(0), size("attention.head_count").unwrap_or(1).max(1));
    let rotated = size("rope.dimension_count");
    let head_dim = size("attention.key_length").or(rotated.filter(|_| family.gguf.partial.is_none()));
    let head_dim = head_dim.unwrap_or(hidden / heads);
    config.shift_remove("head_dim");
    if let (Some(key), Some(rotated)) = (family.gguf.partial, rotated) {
        config.insert(key.to_owned(), json!(rotated as f64 / head_dim as f64));
    }
    let embedding = gguf.tensors.iter().find(|t| t.name == "token_embd.weight");
    if let Some(rows) = embedding.and_then(|t| t.shape.first().copied()).or(size("vocab_size")) {
        config.insert("vocab_size".to_owned(), json!(rows));
    }
    for (key, part) in family.gguf.biases {
        config.insert((*key).to_owned(), json!(has(&format!("blk.0.{}.bias", part_name(*part)))));
    }
    config.insert("tie_word_embeddings".to_owned(), json!(!has("output.weight")));
    let theta = gguf.arch("rope.freq_base").and_then(Value::as_f64).unwrap_or(10_000.0);
    let max_positions = size("context_length").unwrap_or(2048);
    let rope = Rope { theta, dim: rotated.unwrap_or(head_dim), max_positions, scaling: None };
    if let Some(scaling) = scaling(gguf, &rope)? {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        let id = gguf.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(Value::as_i64);
        config.insert(key.to_owned(), json!(id));
    }
    (family.gguf.besides)(gguf, &mut config);
    // Said only where the family would take another size: not every class of transformers has a place for it.
    if !ModelConfig::from_object(&gguf.path, &config).is_ok_and(|c| c.head_dim == head_dim) {
        config.insert("head_dim".to_owned(), json!(head_dim));
    }
    Ok(config)
}

/// The metadata, with the architecture in front of each key, of a configuration.
pub(crate) fn metadata(c: &ModelConfig) -> Vec<(String, Value)> {
    let arch = c.family.gguf.architecture;
    let mut all = vec![
        ("general.architecture".to_owned(), Value::Str(arch.to_owned())),
        ("general.type".to_owned(), Value::Str("model".to_owned())),
    ];
    let mut put = |key: &str, value: Value| all.push((format!("{arch}.{key}"), value));
    let size = |v: usize| Value::U32(u32::try_from(v).unwrap_or(u32::MAX));
    let float = |v: f64| Value::F32(v as f32);
    put("block_count", size(c.layers));
    put("context_length", size(context_length(c)));
    put("embedding_length", size(c.hidden));
    put("feed_forward_length", size(c.intermediate));
    put("attention.head_count", size(c.heads));
    put("attention.head_count_kv", size(c.kv_heads));
    put("attention.key_length", size(c.head_dim));
    put("attention.value_length", size(c.head_dim));
    let epsilon = if c.norm.centred { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    put(epsilon, float(c.norm.eps));
    put("vocab_size", size(c.vocab));
    if let Some(window) = c.layer_kinds.iter().find_map(|kind| kind.window) {
        put("attention.sliding_window", size(window));
    }
    if let Some(rope) = c.ropes.first() {
        put("rope.freq_base", float(rope.theta));
        put("rope.dimension_count", size(rope.dim));
        rope_scaling(&rope.scaling, &mut put);
    }
    if let Some(local) = c.ropes.get(1) {
        put("rope.freq_base_swa", float(local.theta));
    }
    if let Some(experts) = &c.experts {
        put("expert_count", size(experts.count));
        put("expert_used_count", size(experts.per_token));
        put("expert_feed_forward_length", size(experts.intermediate));
    }
    for (key, cap) in [
        ("attn_logit_softcapping", c.attention_softcap),
        ("final_logit_softcapping", c.final_softcap),
        ("attention.clamp_kqv", c.clip_qkv),
    ] {
        if let Some(cap) = cap {
            put(key, float(cap));
        }
    }
    if c.family.gguf.keys.iter().any(|(_, key)| *key == "use_parallel_residual") {
        put("use_parallel_residual", Value::Bool(c.parallel));
    }
    if c.family.gguf.keys.iter().any(|(_, key)| *key == "logit_scale") {
        put("embedding_scale", float(c.scales.embedding));
        put("attention.scale", float(c.scales.attention));
        put("residual_scale", float(c.scales.residual));
        put("logit_scale", float(1.0 / c.scales.logits));
    }
    if c.family.gguf.keys.iter().any(|(name, _)| *name == "ffn_hidden_size") {
        put("tensor_data_layout", Value::Str("jploski".to_owned()));
    }
    all
}

/// How many tokens a model may see there: most architectures attend to all of them, whatever the window.
fn context_length(c: &ModelConfig) -> usize {
    let window = c.layer_kinds.iter().find_map(|kind| kind.window).filter(|_| c.family.gguf.window_pattern == 0);
    window.map_or(c.max_positions, |window| window.min(c.max_positions))
}

/// Why llama.cpp would compute another network from a configuration, if it would: what its files have no keys for.
pub(crate) fn inexpressible(c: &ModelConfig) -> Option<String> {
    let says_scale = c.family.gguf.keys.iter().any(|(_, key)| *key == "attention.scale");
    let by_head = 1.0 / (c.head_dim as f64).sqrt();
    let large = matches!((c.family.gguf.architecture, c.layers), ("gemma2", 46) | ("gemma3", 62));
    let expected = if large { 1.0 / (c.hidden as f64 / c.heads as f64).sqrt() } else { by_head };
    if !says_scale && ((c.scales.attention / expected - 1.0).abs() > 1e-6 || c.scales.attention_by_layer) {
        return Some("its attention scores are scaled in a way that GGUF has no key for".to_owned());
    }
    match c.ropes.first().and_then(|rope| rope.scaling.as_ref()) {
        Some(RopeScaling::Dynamic { .. }) => return Some("dynamic rope scaling has no counterpart in GGUF".to_owned()),
        Some(RopeScaling::Yarn { truncate: false, .. }) => {
            return Some("llama.cpp rounds the corners of yarn's ramp".to_owned());
        }
        _ => {}
    }
    if let Some(why) = (c.family.gguf.lacks)(c) {
        return Some(why.to_owned());
    }
    if c.experts.as_ref().is_some_and(|experts| !experts.dense_layers.is_empty()) {
        return Some("llama.cpp knows this architecture with experts in every layer only".to_owned());
    }
    if c.experts.as_ref().is_some_and(|experts| !experts.normalise) {
        return Some("llama.cpp always scales the shares of the chosen experts to sum to one".to_owned());
    }
    if !c.family.gguf.two_norms.is_empty() && !c.parallel {
        return Some("llama.cpp knows this architecture with parallel blocks only".to_owned());
    }
    let caps = c.family.gguf.keys.iter().any(|(_, key)| *key == "attn_logit_softcapping");
    if caps && (c.attention_softcap.is_none() || c.final_softcap.is_none()) {
        return Some("llama.cpp always caps this architecture's scores".to_owned());
    }
    let pattern = c.family.gguf.window_pattern;
    let windowed = c.layer_kinds.iter().any(|kind| kind.window.is_some());
    let usual = |layer: usize| windowed && (pattern == 0 || !(layer + 1).is_multiple_of(pattern));
    if c.layer_kinds.iter().enumerate().any(|(layer, kind)| kind.window.is_some() != usual(layer)) {
        return Some("its windows follow another pattern over the layers than llama.cpp takes for granted".to_owned());
    }
    if c.activation != c.family.gguf.activation {
        return Some("llama.cpp computes another activation in this architecture".to_owned());
    }
    let fused = c.has(0, Part::QueryNorm) && c.family.gguf.architecture == "phi2";
    fused.then(|| "llama.cpp's phi2 has no norm of queries and keys".to_owned())
}

/// The family behind `general.architecture`: several share a name there.
fn family(gguf: &Gguf) -> Result<&'static Family, FilesError> {
    let size = |key: &str| gguf.arch(key).and_then(Value::as_i64).unwrap_or(0);
    let kin = Family::ALL.into_iter().filter(|family| family.gguf.architecture == gguf.architecture());
    let mixture = size("expert_count") > 0;
    let windowed = size("attention.sliding_window") > 0;
    let mut fitting = kin.filter(|family| {
        let experts = family.parts.iter().any(|(part, _)| *part == Part::Router);
        experts == mixture
            && (family.model_type != "mistral" || windowed)
            && (family.model_type != "llama" || !windowed)
    });
    fitting.next().ok_or_else(|| FilesError::Architecture {
        path: gguf.path.clone(),
        architecture: gguf.architecture().to_owned(),
        supported: Family::ALL.iter().map(|family| family.architecture.to_owned()).collect(),
    })
}

fn number(value: &Value) -> Option<Json> {
    match value {
        Value::Bool(flag) => Some(json!(flag)),
        Value::F32(_) | Value::F64(_) => value.as_f64().map(|v| json!(v)),
        // One number per layer, where all layers are alike.
        Value::Array(_, items) => {
            items.first().filter(|first| items.iter().all(|item| item == *first)).and_then(number)
        }
        other => other.as_i64().map(|v| json!(v)),
    }
}

/// `rope_scaling` from metadata and per-frequency divisors.
fn scaling(gguf: &Gguf, rope: &Rope) -> Result<Option<Json>, FilesError> {
    let kind = gguf.arch("rope.scaling.type").and_then(Value::as_str).unwrap_or("none");
    let float = |key: &str| gguf.arch(&format!("rope.scaling.{key}")).and_then(Value::as_f64);
    let original = gguf.arch("rope.scaling.original_context_length").and_then(Value::as_i64);
    let factors = |name: &str| gguf.rope_factors.get(name);
    if let Some(divisors) = factors("rope_freqs.weight") {
        return Ok(Some(divided(rope, divisors)));
    }
    if let (Some(long), Some(short)) = (factors("rope_factors_long.weight"), factors("rope_factors_short.weight")) {
        return Ok(Some(json!({
            "rope_type": "longrope", "long_factor": long, "short_factor": short,
            "original_max_position_embeddings": original, "attention_factor": float("attn_factor"),
        })));
    }
    match kind {
        "none" => Ok(None),
        "linear" => Ok(float("factor").map(|factor| json!({"rope_type": "linear", "factor": factor}))),
        "yarn" => {
            let mut scaling = json!({"rope_type": "yarn", "factor": float("factor").unwrap_or(1.0)});
            if let Some(share) = float("attn_factor") {
                scaling["attention_factor"] = json!(share * yarn_attention(float("factor").unwrap_or(1.0)));
            }
            if let Some(original) = original {
                scaling["original_max_position_embeddings"] = json!(original);
            }
            for (key, name) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
                if let Some(value) = float(key) {
                    scaling[name] = json!(value);
                }
            }
            Ok(Some(scaling))
        }
        other => {
            let what = format!("rope scaling {other:?} is not supported (linear, yarn, longrope and rope_freqs are)");
            Err(FilesError::unsupported(&gguf.path, what))
        }
    }
}

/// The scheme behind per-frequency divisors: Llama 3's where the numbers are its numbers, else the numbers themselves.
fn divided(rope: &Rope, divisors: &[f32]) -> Json {
    let plain = rope.inverse_frequencies(0);
    for factor in [8.0, 32.0, 16.0, 4.0] {
        let scaling =
            RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192.0 };
        let scaled = Rope { scaling: Some(scaling), ..rope.clone() }.inverse_frequencies(0);
        let close = |((p, s), f): ((&f32, &f32), &f32)| (p / s / f - 1.0).abs() < 1e-3;
        if divisors.len() == scaled.len() && plain.iter().zip(&scaled).zip(divisors).all(close) {
            return json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            });
        }
    }
    json!({"rope_type": "longrope", "long_factor": divisors, "short_factor": divisors, "attention_factor": 1.0})
}

/// The attention factor that yarn has by itself, which `attn_factor` is a share of.
fn yarn_attention(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

fn rope_scaling(scaling: &Option<RopeScaling>, put: &mut impl FnMut(&str, Value)) {
    let text = |v: &str| Value::Str(v.to_owned());
    let float = |v: f64| Value::F32(v as f32);
    match scaling {
        Some(RopeScaling::Linear { factor }) => {
            put("rope.scaling.type", text("linear"));
            put("rope.scaling.factor", float(*factor));
        }
        Some(RopeScaling::Yarn { factor, original, attention_factor, beta_fast, beta_slow, .. }) => {
            put("rope.scaling.type", text("yarn"));
            put("rope.scaling.factor", float(*factor));
            put("rope.scaling.original_context_length", Value::U32(*original as u32));
            let share = attention_factor / yarn_attention(*factor);
            if (share - 1.0).abs() > 1e-6 {
                put("rope.scaling.attn_factor", float(share));
            }
            if (*beta_fast, *beta_slow) != (32.0, 1.0) {
                put("rope.scaling.yarn_beta_fast", float(*beta_fast));
                put("rope.scaling.yarn_beta_slow", float(*beta_slow));
            }
        }
        Some(RopeScaling::LongRope { original, attention_factor, short, long }) if short != long => {
            put("rope.scaling.type", text("longrope"));
            put("rope.scaling.original_context_length", Value::U32(*original as u32));
            put("rope.scaling.attn_factor", float(*attention_factor));
        }
        _ => {}
    }
}

/// Per-frequency divisors that GGUF keeps as tensors, by tensor name.
pub(crate) fn rope_tensors(c: &ModelConfig) -> IndexMap<&'static str, Vec<f32>> {
    let mut all = IndexMap::new();
    match c.ropes.first().and_then(|rope| rope.scaling.as_ref().map(|scaling| (rope, scaling))) {
        Some((rope, RopeScaling::Llama3 { .. })) => {
            let plain = Rope { scaling: None, ..rope.clone() }.inverse_frequencies(0);
            let scaled = rope.inverse_frequencies(0);
            all.insert("rope_freqs.weight", plain.into_iter().zip(scaled).map(|(p, s)| p / s).collect());
        }
        // One set for all lengths is what the older name means.
        Some((_, RopeScaling::LongRope { short, long, .. })) if short == long => {
            all.insert("rope_freqs.weight", short.clone());
        }
        Some((_, RopeScaling::LongRope { short, long, .. })) => {
            all.insert("rope_factors_long.weight", long.clone());
            all.insert("rope_factors_short.weight", short.clone());
        }
        _ => {}
    }
    all
}
