//! How much memory training will take, from the model's shape and the recipe's settings, before anything is loaded.
//!
//! An estimate for people and for the scheduler; it reads the model's configuration, never its weights. What counts is the
//! worker's resident size at its fullest moment: a backward pass over the longest chunk of tokens, with everything else held.

mod known;
pub mod shape;

use std::path::Path;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use shape::Shape;

use crate::size::Fullest;

/// Bytes by purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// The base model, as held during training: trained weights in f32.
    pub weights_bytes: u64,
    /// Adapter weights; none where the base itself is trained.
    pub adapter_bytes: u64,
    pub gradients_bytes: u64,
    pub optimizer_bytes: u64,
    /// What one chunk of tokens keeps for the backward pass, and the weight that is unpacked for a product.
    pub activations_bytes: u64,
    /// Logits of the positions that are predicted together.
    pub loss_bytes: u64,
    /// libtorch itself and its buffers.
    pub runtime_bytes: u64,
    /// The sum.
    pub total_bytes: u64,
    /// The same, under the name it had first.
    pub peak_bytes: u64,
    /// Weights that get gradients.
    pub trainable_parameters: u64,
    pub parameters: u64,
    /// Tokens that go through the network together.
    pub chunk_tokens: u64,
    /// The model's name, where the shape was taken from it because its configuration is not on this machine.
    pub assumed_from_name: Option<String>,
}

/// How many tokens go through the network together.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    pub sequence_len: u64,
    /// The longest row and the fullest pack, if they are known; else any row may fill a sequence.
    pub fullest: Option<Fullest>,
    pub recompute: Recompute,
}

/// What the backward pass computes again instead of keeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    Nothing,
    Layers,
}

/// Resident size of the worker with libtorch loaded and a model of no size, measured on Linux with the CPU build, and the
/// gaps between tensors that its allocator cannot use.
const RUNTIME: u64 = 141_000_000 + (32 << 20);
/// What the backward pass holds beside what was kept for it, measured over chunks of 128 to 512 tokens.
const IN_FLIGHT: f64 = 0.12;
/// Positions whose logits are held at once by head and loss.
const HEAD_ROWS: u64 = 256;
/// Whole rows are gathered up to this number of tokens; a longer row goes alone.
const CHUNK_TOKENS: u64 = 512;
/// Queries that attend together.
const QUERY_BLOCK: u64 = 512;

/// The estimate for training with the stage parameters `train` the model at `model`, or one of the known shape of `id`;
/// `None` when neither tells the model's shape.
pub fn estimate(model: &Path, id: &str, train: &Value, tokens: Tokens) -> Option<Estimate> {
    let read = Shape::read(model);
    let assumed = read.is_none().then(|| id.to_string());
    let shape = read.or_else(|| known::shape(id))?;
    Some(Estimate { assumed_from_name: assumed, ..of_shape(&shape, train, tokens) })
}

fn of_shape(shape: &Shape, train: &Value, tokens: Tokens) -> Estimate {
    let width = width(train);
    let micro = train.pointer("/batching/micro_batch").and_then(Value::as_u64).unwrap_or(1).max(1);
    let full = Fullest { row: tokens.sequence_len, pack: tokens.sequence_len };
    let fullest = tokens.fullest.unwrap_or(full);
    let chunk = CHUNK_TOKENS.max(fullest.row).min(micro * fullest.pack);
    let trained = trained(shape, train);
    let kept = trained.adapter + trained.base;
    let unpacked = if is_dense(train) || held_dense(shape, train, width) { 0 } else { shape.largest_module() * width };
    let mut out = Estimate {
        weights_bytes: weights(shape, train, width) + trained.base * (4 - width),
        adapter_bytes: trained.adapter * 4,
        gradients_bytes: kept * 4,
        optimizer_bytes: (kept as f64 * state_bytes(train)) as u64,
        activations_bytes: activations(shape, train, chunk, width, tokens.recompute)
            + unpacked
            + cast(shape, &trained, width, tokens.recompute),
        loss_bytes: HEAD_ROWS.min(chunk) * shape.vocab * width + chunk * shape.hidden * width,
        runtime_bytes: RUNTIME,
        trainable_parameters: trained.adapter + trained.base,
        parameters: shape.parameters,
        chunk_tokens: chunk,
        ..Estimate::default()
    };
    out.total_bytes = out.weights_bytes
        + out.adapter_bytes
        + out.gradients_bytes
        + out.optimizer_bytes
        + out.activations_bytes
        + out.loss_bytes
        + out.runtime_bytes;
    out.peak_bytes = out.total_bytes;
    out
}

/// Bytes of a number in the arithmetic type.
fn width(train: &Value) -> u64 {
    match train["compute"].as_str() {
        Some("bf16" | "f16") => 2,
        _ => 4,
    }
}

fn is_dense(train: &Value) -> bool {
    matches!(train.pointer("/base/kind").and_then(Value::as_str), None | Some("dense"))
}

/// Whether the worker trains an adapter on a quantised base that it holds unpacked.
fn held_dense(shape: &Shape, train: &Value, width: u64) -> bool {
    train["adapter"]["kind"] == "lora" && width == 4 && shape.parameters * 4 <= pipe_job::UNPACKED_TRAINING_BYTES
}

/// Copies of trained weights in a narrower arithmetic type, kept for the backward pass; with recomputation those of one
/// layer and of the tables.
fn cast(shape: &Shape, trained: &Trained, width: u64, recompute: Recompute) -> u64 {
    let copied = match recompute {
        _ if width == 4 => 0,
        Recompute::Nothing => trained.base,
        Recompute::Layers => {
            let linear: u64 = shape.modules.iter().map(shape::Module::size).sum();
            trained.base.min(linear / shape.layers.max(1) + shape.parameters.saturating_sub(linear))
        }
    };
    copied * width
}

fn weights(shape: &Shape, train: &Value, width: u64) -> u64 {
    let linear: u64 = shape.modules.iter().map(shape::Module::size).sum();
    let double = train.pointer("/base/double_quant").and_then(Value::as_bool).unwrap_or(true);
    let bits = match train.pointer("/base/kind").and_then(Value::as_str) {
        // A small model is unpacked once where arithmetic is f32.
        Some(_) if held_dense(shape, train, width) => 32.0,
        // Blocks of 64 codes with a scale, and blocks of 256 scales with one of their own.
        Some("nf4" | "fp4") if double => 4.0 + 8.0 / 64.0 + 32.0 / (64.0 * 256.0),
        Some("nf4" | "fp4") => 4.0 + 32.0 / 64.0,
        Some("int8") => 8.0,
        _ => width as f64 * 8.0,
    };
    (linear as f64 * bits / 8.0) as u64 + (shape.parameters - linear) * width
}

/// Bytes of optimizer state for each trained number.
fn state_bytes(train: &Value) -> f64 {
    match train.pointer("/optimizer/kind").and_then(Value::as_str) {
        Some("adam_w8bit") => 2.0 + 8.0 / 256.0,
        Some("lion" | "muon") => 4.0,
        Some("sgd") if train.pointer("/optimizer/momentum").and_then(Value::as_f64).unwrap_or(0.0) == 0.0 => 0.0,
        Some("sgd") => 4.0,
        // Sums over rows and columns only.
        Some("adafactor") => 0.05,
        _ => 8.0,
    }
}

/// What gets gradients: the adapter's own numbers, and the base's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Trained {
    adapter: u64,
    base: u64,
}

fn trained(shape: &Shape, train: &Value) -> Trained {
    let adapter = &train["adapter"];
    match adapter["kind"].as_str() {
        Some("lora") => {
            let modules = shape.modules.iter().filter(|module| is_target(adapter, &module.name));
            let extra = |module: &shape::Module| if adapter["dora"] == true { module.outputs } else { 0 };
            let count = modules.map(|m| rank(adapter, &m.name) * (m.inputs + m.outputs) + extra(m)).sum();
            Trained { adapter: count, base: saved(shape, adapter) }
        }
        Some("freeze") => Trained { adapter: 0, base: unfrozen(shape, adapter) },
        _ => Trained { adapter: 0, base: shape.parameters },
    }
}

/// The adapted modules of a shape, for those who want to name them.
pub fn targets<'a>(shape: &'a Shape, train: &'a Value) -> Vec<&'a shape::Module> {
    match train["adapter"]["kind"].as_str() {
        Some("lora") => shape.modules.iter().filter(|module| is_target(&train["adapter"], &module.name)).collect(),
        _ => Vec::new(),
    }
}

/// PEFT's rules: a whole name, or its end after a dot; a pattern must match the whole name.
fn is_target(adapter: &Value, name: &str) -> bool {
    let value = &adapter["targets"]["value"];
    match adapter["targets"]["kind"].as_str() {
        Some("names") => {
            let names = value.as_array().into_iter().flatten().filter_map(Value::as_str);
            names.into_iter().any(|n| n == name || name.ends_with(&format!(".{n}")))
        }
        Some("regex") => {
            let pattern = value.as_str().unwrap_or_default();
            Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|pattern| pattern.is_match(name))
        }
        // The router of a mixture is only adapted when it is named.
        _ => !name.ends_with("mlp.gate") && !name.ends_with("block_sparse_moe.gate"),
    }
}

fn rank(adapter: &Value, name: &str) -> u64 {
    let own = adapter["rank_pattern"].as_array().into_iter().flatten().find_map(|pair| {
        let pattern = pair.get(0).and_then(Value::as_str)?;
        let found = Regex::new(&format!("(^|.*\\.)(?:{pattern})$")).is_ok_and(|pattern| pattern.is_match(name));
        if found { pair.get(1).and_then(Value::as_u64) } else { None }
    });
    own.or(adapter["r"].as_u64()).unwrap_or(0)
}

/// Modules that are trained whole beside an adapter.
fn saved(shape: &Shape, adapter: &Value) -> u64 {
    let names = adapter["modules_to_save"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let table = shape.vocab * shape.hidden;
    names
        .into_iter()
        .map(|name| match name {
            "embed_tokens" | "wte" | "embed_in" | "word_embeddings" | "tok_embeddings" | "lm_head" | "output" => table,
            _ => shape.modules.iter().filter(|m| m.name.ends_with(&format!(".{name}"))).map(shape::Module::size).sum(),
        })
        .sum()
}

/// Axolotl's `unfrozen_parameters` match from the start of a weight's name; `last_layers` counts whole layers.
fn unfrozen(shape: &Shape, adapter: &Value) -> u64 {
    let last = adapter["last_layers"].as_u64().unwrap_or(0);
    let first = shape.layers.saturating_sub(last);
    let patterns: Vec<Regex> = adapter["unfrozen"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter_map(|pattern| Regex::new(&format!("^(?:{})", pattern.split('[').next()?.replace('.', "\\."))).ok())
        .collect();
    let named = |name: &str| patterns.iter().any(|pattern| pattern.is_match(&format!("{name}.weight")));
    let modules = shape.modules.iter().filter(|m| (last > 0 && m.layer() >= Some(first)) || named(&m.name));
    let tables = [("model.embed_tokens", true), ("lm_head", !shape.tied)];
    let tables = tables.iter().filter(|(name, there)| *there && named(name)).count() as u64;
    modules.map(shape::Module::size).sum::<u64>() + tables * shape.vocab * shape.hidden + last * 2 * shape.hidden
}

/// Per token a layer keeps: the residual before each norm and the norm after it, what goes into attention and out of it,
/// and what goes into the gate and out of it, less what the kernels make again; each adapted module its narrow product. With
/// recomputation only each layer's input, and one layer in full. Layers below the first that learns keep nothing.
fn activations(shape: &Shape, train: &Value, chunk: u64, width: u64, recompute: Recompute) -> u64 {
    let adapted = targets(shape, train);
    let narrow: f64 =
        adapted.iter().map(|m| rank(&train["adapter"], &m.name) as f64 * shape.share(&m.name)).sum::<f64>();
    let again = made_again(shape, train);
    let norms = if again.norms { 2 } else { 4 };
    let wide: f64 = shape.modules.iter().map(|m| m.kept(again) as f64 * shape.share(&m.name)).sum();
    let lowest = adapted.iter().filter_map(|module| module.layer()).min().filter(|_| trained(shape, train).base == 0);
    let layers = shape.layers.saturating_sub(lowest.unwrap_or(0)).max(1) as f64;
    let layer = (norms * shape.hidden) as f64 + wide / shape.layers.max(1) as f64 + narrow / layers;
    let scores = (shape.heads * QUERY_BLOCK.min(chunk) * chunk * 2 * width) as f64;
    let per_token = match recompute {
        Recompute::Nothing => layer * layers,
        Recompute::Layers => shape.hidden as f64 * layers + layer,
    };
    (chunk as f64 * per_token * width as f64 * (1.0 + IN_FLIGHT) + scores) as u64
}

/// Adapters on frozen weights alone, and not where a plain or a decomposed product takes the kernels' place.
fn made_again(shape: &Shape, train: &Value) -> shape::Again {
    let adapter = &train["adapter"];
    let kernels = train["kernels"].as_bool().unwrap_or(true);
    if kernels && adapter["kind"] == "lora" && adapter["dora"] != true { shape.again } else { shape::Again::default() }
}

#[cfg(test)]
mod tests;
