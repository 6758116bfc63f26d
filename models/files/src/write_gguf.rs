//! Writing GGUF files that llama.cpp loads: metadata, tokenizer, chat template and tensors of one kind.
//!
//! Tensors stream through one buffer; equal input gives equal bytes. The file appears under its name only when whole.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use indexmap::IndexMap;
use rayon::prelude::*;

use crate::blocks::TensorType;
use crate::encode::encode;
use crate::gguf::Value;
use crate::mixture::GgufKind;
use crate::model::{LAYER_PARTS, OUTER_PARTS, interleaved_row};
use crate::{FilesError, ModelConfig, ModelFiles, RopeScaling, Source, gguf_tokenizer};

const ALIGNMENT: usize = 32;

/// One tensor to write.
struct Planned {
    /// Hugging Face's name to read by.
    source: String,
    name: String,
    shape: Vec<usize>,
    kind: TensorType,
    /// Heads whose rotary halves must alternate in the file.
    heads: Option<usize>,
}

/// Writes `model` as a GGUF of `kind` to `out`. `go_on` hears (tensors done, of how many) and stops the work by
/// answering false; then nothing is left behind and the answer is false.
pub fn write_gguf(
    model: &ModelFiles,
    kind: GgufKind,
    out: &Path,
    go_on: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<bool, FilesError> {
    let metadata = metadata(model, kind)?;
    let factors = rope_factors(model.config());
    let tensors = plan(model.config(), kind);
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let file = File::create(partial).map_err(FilesError::write(partial))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let done = (|| {
        file.write_all(&head(&metadata, &tensors, factors.as_deref())).map_err(FilesError::write(partial))?;
        write_tensors(model, &tensors, factors.as_deref(), &mut file, partial, go_on)
    })();
    let finished = match done {
        Ok(true) => {
            let file = file.into_inner().map_err(|e| FilesError::write(partial)(e.into_error()))?;
            file.sync_all().map_err(FilesError::write(partial))?;
            std::fs::rename(partial, out).map_err(FilesError::write(out))?;
            return Ok(true);
        }
        other => other,
    };
    drop(file);
    // Best effort: the error or the cancellation is the news, not a left-over file.
    let _ = std::fs::remove_file(partial);
    finished
}

fn write_tensors(
    model: &ModelFiles,
    tensors: &[Planned],
    factors: Option<&[f32]>,
    file: &mut impl Write,
    path: &Path,
    go_on: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<bool, FilesError> {
    let mut put = |bytes: &[u8]| {
        file.write_all(bytes)
            .and_then(|()| file.write_all(&[0; ALIGNMENT][..gap(bytes.len())]))
            .map_err(FilesError::write(path))
    };
    if let Some(factors) = factors {
        let bytes: Vec<u8> = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
        put(&bytes)?;
    }
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    for (done, tensor) in tensors.iter().enumerate() {
        if !go_on(done as u64, tensors.len() as u64) {
            return Ok(false);
        }
        model.read_f32(&tensor.source, &mut values)?;
        model.release(&tensor.source);
        encode_rows(tensor, &values, &mut bytes);
        put(&bytes)?;
    }
    go_on(tensors.len() as u64, tensors.len() as u64);
    Ok(true)
}

/// Encodes a tensor on all threads, a few rows at a time.
fn encode_rows(tensor: &Planned, values: &[f32], bytes: &mut Vec<u8>) {
    let bias = tensor.shape.len() == 1 && tensor.heads.is_some();
    let width = if bias { 1 } else { tensor.shape.last().copied().unwrap_or(1) };
    let stride = tensor.kind.bytes(width);
    bytes.clear();
    bytes.resize(tensor.kind.bytes(values.len()), 0);
    let head = tensor.heads.map(|heads| tensor.shape[0] / heads);
    bytes.par_chunks_mut(stride).with_min_len(4).enumerate().for_each(|(row, dst)| {
        let from = head.map_or(row, |head| separated_row(row, head)) * width;
        encode(tensor.kind, &values[from..from + width], dst);
    });
}

/// The row of Hugging Face's order that GGUF keeps at `row`: the reverse of [`interleaved_row`].
fn separated_row(row: usize, head: usize) -> usize {
    let (base, within) = (row / head * head, row % head);
    let separated = base + within % 2 * (head / 2) + within / 2;
    debug_assert_eq!(interleaved_row(separated, head), row);
    separated
}

/// Every tensor in writing order with its type.
fn plan(config: &ModelConfig, kind: GgufKind) -> Vec<Planned> {
    let tied = config.tied_embeddings;
    let planned = config.tensors().into_iter().filter_map(|(source, shape)| {
        let (stem, suffix) = source.rsplit_once('.')?;
        let (layer, part, name) = match stem.strip_prefix("model.layers.").and_then(|s| s.split_once('.')) {
            Some((layer, own)) => {
                let part = LAYER_PARTS.iter().find(|(_, name)| *name == own)?.0;
                (layer.parse().ok()?, part, format!("blk.{layer}.{part}.{suffix}"))
            }
            None => {
                let part = OUTER_PARTS.iter().find(|(_, name)| *name == stem)?.0;
                (0, part, format!("{part}.{suffix}"))
            }
        };
        let head = part == "output" || (tied && part == "token_embd");
        let heads = match part {
            "attn_q" => Some(config.heads),
            "attn_k" => Some(config.kv_heads),
            _ => None,
        };
        let kind = kind.choose(part, head, layer, config.layers, &shape);
        Some(Planned { source, name, shape, kind, heads })
    });
    planned.collect()
}

/// Header, metadata and tensor table, padded so that data may follow.
fn head(metadata: &IndexMap<String, Value>, tensors: &[Planned], factors: Option<&[f32]>) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64 + u64::from(factors.is_some())).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        out.extend(value.code().to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    let mut entry = |name: &str, shape: &[usize], kind: TensorType| {
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|d| out.extend((*d as u64).to_le_bytes()));
        out.extend(kind.code().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let size = kind.bytes(shape.iter().product());
        offset += (size + gap(size)) as u64;
    };
    if let Some(factors) = factors {
        entry("rope_freqs.weight", &[factors.len()], TensorType::F32);
    }
    tensors.iter().for_each(|t| entry(&t.name, &t.shape, t.kind));
    out.resize(out.len() + gap(out.len()), 0);
    out
}

fn gap(size: usize) -> usize {
    size.next_multiple_of(ALIGNMENT) - size
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => put_text(out, v),
        Value::Array(code, items) => {
            out.extend(code.to_le_bytes());
            out.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|v| put_value(out, v));
        }
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

/// The file's metadata: a GGUF source's own, or written from the configuration and tokenizer of a folder.
fn metadata(model: &ModelFiles, kind: GgufKind) -> Result<IndexMap<String, Value>, FilesError> {
    let mut all = match model.source() {
        Source::Gguf(gguf) => {
            let mut own = gguf.metadata.clone();
            own.retain(|key, _| !key.starts_with("split.") && key != "general.alignment");
            own
        }
        Source::Folder => described(model)?,
    };
    all.insert("general.file_type".to_owned(), Value::U32(kind.file_type()));
    all.insert("general.quantization_version".to_owned(), Value::U32(2));
    Ok(all)
}

fn described(model: &ModelFiles) -> Result<IndexMap<String, Value>, FilesError> {
    let c = model.config();
    let mut all = IndexMap::new();
    let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
    let size = |v: usize| Value::U32(u32::try_from(v).unwrap_or(u32::MAX));
    put("general.architecture", Value::Str("llama".to_owned()));
    put("general.type", Value::Str("model".to_owned()));
    put("llama.block_count", size(c.layers));
    put("llama.context_length", size(c.max_positions));
    put("llama.embedding_length", size(c.hidden));
    put("llama.feed_forward_length", size(c.intermediate));
    put("llama.attention.head_count", size(c.heads));
    put("llama.attention.head_count_kv", size(c.kv_heads));
    put("llama.attention.key_length", size(c.head_dim));
    put("llama.attention.value_length", size(c.head_dim));
    put("llama.attention.layer_norm_rms_epsilon", Value::F32(c.rms_eps as f32));
    put("llama.rope.freq_base", Value::F32(c.rope_theta as f32));
    put("llama.rope.dimension_count", size(c.head_dim));
    put("llama.vocab_size", size(c.vocab));
    if let Some(window) = c.sliding_window {
        put("llama.attention.sliding_window", size(window));
    }
    if let Some(RopeScaling::Linear { factor }) = c.rope_scaling {
        put("llama.rope.scaling.type", Value::Str("linear".to_owned()));
        put("llama.rope.scaling.factor", Value::F32(factor as f32));
    }
    for (key, value) in gguf_tokenizer::metadata(model.path(), c.vocab)? {
        put(&key, value);
    }
    Ok(all)
}

/// Per-frequency divisors, for schemes that GGUF has no keys for.
fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    match &config.rope_scaling {
        Some(RopeScaling::Factors(factors)) => Some(factors.clone()),
        Some(RopeScaling::Llama3 { .. }) => {
            let plain = ModelConfig { rope_scaling: None, ..config.clone() };
            let scaled = config.inverse_frequencies();
            Some(plain.inverse_frequencies().into_iter().zip(scaled).map(|(p, s)| p / s).collect())
        }
        _ => None,
    }
}
