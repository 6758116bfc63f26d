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
use crate::mixture::{GgufKind, Mixture, Wanted};
use crate::parts::Part;
use crate::template_fingerprint::TemplateFingerprint;
use crate::{FilesError, Importance, ModelConfig, ModelFiles, Source, gguf_config, gguf_names, gguf_tokenizer};

const ALIGNMENT: usize = 32;

/// An entry of the tensor table.
pub(crate) struct Listed {
    pub name: String,
    /// Slowest first.
    pub shape: Vec<usize>,
    pub kind: TensorType,
}

/// One tensor to write.
struct Planned {
    listed: Listed,
    /// Names to read by; their rows follow one another.
    sources: Vec<String>,
    /// For each row of the file, its place among the rows read; `None` where the order is the same.
    order: Option<Vec<usize>>,
    /// Added to every value.
    excess: f32,
}

/// Writes `model` as a GGUF of `kind` to `out`, guided by the weights' importance where it was measured. `go_on` hears (tensors done, of how many) and stops the work by
/// answering false; then nothing is left behind and the answer is false.
pub fn write_gguf(
    model: &ModelFiles,
    kind: GgufKind,
    importance: Option<&Importance>,
    out: &Path,
    go_on: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<bool, FilesError> {
    if let Some(why) = gguf_config::inexpressible(model.config()) {
        let what = format!("{} cannot be written as GGUF: {why}; use the merged folder", model.config().architecture);
        return Err(FilesError::unsupported(model.path(), what));
    }
    let metadata = metadata(model, kind, importance)?;
    let factors = gguf_config::rope_tensors(model.config());
    let tensors = plan(model.config(), &Mixture::new(kind, model.config(), importance.is_some()));
    let mut partial = out.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let file = File::create(partial).map_err(FilesError::write(partial))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let done = (|| {
        file.write_all(&head(&metadata, &tensors, &factors)).map_err(FilesError::write(partial))?;
        write_tensors((model, importance), &tensors, &factors, &mut file, partial, go_on)
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
    (model, importance): (&ModelFiles, Option<&Importance>),
    tensors: &[Planned],
    factors: &IndexMap<&'static str, Vec<f32>>,
    file: &mut impl Write,
    path: &Path,
    go_on: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<bool, FilesError> {
    let mut put = |bytes: Vec<u8>| file.write_all(&padded(bytes)).map_err(FilesError::write(path));
    for divisors in factors.values() {
        let bytes: Vec<u8> = divisors.iter().flat_map(|f| f.to_le_bytes()).collect();
        put(bytes)?;
    }
    let (mut values, mut part) = (Vec::new(), Vec::new());
    for (done, tensor) in tensors.iter().enumerate() {
        if !go_on(done as u64, tensors.len() as u64) {
            return Ok(false);
        }
        values.clear();
        for source in &tensor.sources {
            model.read_f32(source, &mut part)?;
            model.release(source);
            values.extend(part.iter().map(|value| value + tensor.excess));
        }
        let experts = if tensor.listed.shape.len() == 3 { tensor.listed.shape[0] } else { 1 };
        let inputs = tensor.listed.shape.last().copied().unwrap_or(1);
        let importance = importance.and_then(|importance| importance.of(&tensor.listed.name, experts, inputs));
        put(encode_rows(tensor, &values, importance.as_deref()))?;
    }
    go_on(tensors.len() as u64, tensors.len() as u64);
    Ok(true)
}

/// Encodes a tensor on all threads, a few rows at a time. `importance` is `[experts, inputs]`.
fn encode_rows(tensor: &Planned, values: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let Listed { shape, kind, .. } = &tensor.listed;
    let turned = shape.len() == 1 && tensor.order.is_some();
    let width = if turned { 1 } else { shape.last().copied().unwrap_or(1) };
    let stride = kind.bytes(width);
    let mut bytes = vec![0; kind.bytes(shape.iter().product())];
    // Rows of one expert share its importance.
    let share = importance.map_or(1, |all| values.len() / width / (all.len() / width).max(1));
    bytes.par_chunks_mut(stride).with_min_len(4).enumerate().for_each(|(row, dst)| {
        let from = tensor.order.as_ref().map_or(row, |order| order[row]);
        let importance = importance.map(|all| &all[from / share * width..][..width]);
        encode(*kind, &values[from * width..(from + 1) * width], importance, dst);
    });
    bytes
}

/// Every tensor in writing order with its type.
fn plan(config: &ModelConfig, mixture: &Mixture) -> Vec<Planned> {
    let tied = config.tied_embeddings;
    let split = gguf_names::is_split(config);
    let mut planned: IndexMap<String, Planned> = IndexMap::new();
    for place in config.tensors() {
        let spot = gguf_names::spot(config, &place, split);
        if let Some((_, count)) = spot.share {
            // Copies are stacked in the order in which they come.
            let own = planned.entry(spot.names[0].clone()).or_insert_with(|| {
                let shape = [&[count], place.shape.as_slice()].concat();
                let (name, excess) = (spot.names[0].clone(), if spot.plus_one { 1.0 } else { 0.0 });
                let wanted = Wanted { name: &name, part: place.part, head: false, layer: place.layer, shape: &shape };
                let kind = mixture.choose(&wanted);
                Planned { listed: Listed { name, shape, kind }, sources: Vec::new(), order: None, excess }
            });
            own.sources.push(place.name);
            continue;
        }
        let rows = spot.order.map(|order| inverse(&order));
        let mut first = 0;
        for (index, name) in spot.names.iter().enumerate() {
            let mut shape = place.shape.clone();
            let mut order = rows.clone();
            if spot.names.len() > 1 {
                let heads = if index == 0 { config.heads } else { config.kv_heads };
                shape[0] = heads * config.head_dim;
                let all = rows.clone().unwrap_or_else(|| (0..place.shape[0]).collect());
                order = Some(all[first..first + shape[0]].to_vec());
                first += shape[0];
            }
            let head = place.part == Part::Head || (tied && place.part == Part::Embedding);
            let wanted = Wanted { name, part: place.part, head, layer: place.layer, shape: &shape };
            let kind = mixture.choose(&wanted);
            let excess = if spot.plus_one { 1.0 } else { 0.0 };
            let sources = vec![place.name.clone()];
            let listed = Listed { name: name.clone(), shape, kind };
            planned.insert(name.clone(), Planned { listed, sources, order, excess });
        }
    }
    planned.into_values().collect()
}

/// The order that undoes `order`.
fn inverse(order: &[usize]) -> Vec<usize> {
    let mut out = vec![0; order.len()];
    order.iter().enumerate().for_each(|(row, place)| out[*place] = row);
    out
}

/// Header, metadata and tensor table: the model's own rotary divisors first.
fn head(
    metadata: &IndexMap<String, Value>,
    tensors: &[Planned],
    factors: &IndexMap<&'static str, Vec<f32>>,
) -> Vec<u8> {
    let divisors = factors.iter().map(|(name, divisors)| Listed {
        name: (*name).to_owned(),
        shape: vec![divisors.len()],
        kind: TensorType::F32,
    });
    let divisors: Vec<Listed> = divisors.collect();
    header(metadata, &divisors.iter().chain(tensors.iter().map(|tensor| &tensor.listed)).collect::<Vec<_>>())
}

/// Header, metadata and tensor table, padded so that data may follow.
pub(crate) fn header(metadata: &IndexMap<String, Value>, tensors: &[&Listed]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        out.extend(value.code().to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for Listed { name, shape, kind } in tensors {
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|d| out.extend((*d as u64).to_le_bytes()));
        out.extend(kind.code().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let size = kind.bytes(shape.iter().product());
        offset += (size + gap(size)) as u64;
    }
    padded(out)
}

/// With zeros up to where the next part may begin.
pub(crate) fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len() + gap(bytes.len()), 0);
    bytes
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
fn metadata(
    model: &ModelFiles,
    kind: GgufKind,
    importance: Option<&Importance>,
) -> Result<IndexMap<String, Value>, FilesError> {
    let mut all = match model.source() {
        Source::Gguf(gguf) => {
            let mut own = gguf.metadata.clone();
            own.retain(|key, _| {
                !key.starts_with("split.") && !key.starts_with("quantize.imatrix.") && key != "general.alignment"
            });
            own
        }
        Source::Folder => described(model)?,
    };
    all.insert("general.file_type".to_owned(), Value::U32(kind.file_type()));
    all.insert("general.quantization_version".to_owned(), Value::U32(2));
    if let Some(importance) = importance {
        let count = |n: usize| Value::I32(i32::try_from(n).unwrap_or(i32::MAX));
        all.insert("quantize.imatrix.entries_count".to_owned(), count(importance.len()));
        all.insert("quantize.imatrix.chunks_count".to_owned(), count(importance.chunks() as usize));
    }
    Ok(all)
}

fn described(model: &ModelFiles) -> Result<IndexMap<String, Value>, FilesError> {
    let config = model.config();
    let tokenizer = gguf_tokenizer::metadata(model.path(), config.vocab)?;
    let fingerprint = TemplateFingerprint::read(model.path())?.map(TemplateFingerprint::metadata);
    let described = gguf_config::metadata(config).into_iter().chain(tokenizer);
    Ok(described.chain(fingerprint.into_iter().flatten()).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value as Json;

    use super::{Mixture, plan};
    use crate::blocks::TensorType;
    use crate::{GgufKind, ModelConfig};

    fn text(value: &Json) -> String {
        value.as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn every_tensor_gets_llama_cpps_type() -> Result<(), Box<dyn std::error::Error>> {
        let cases: Json = serde_json::from_str(include_str!("../../../tests/fixtures/gguf/mixtures.json"))?;
        let mut compared = 0;
        for (name, case) in cases.as_object().ok_or("cases")? {
            let object = case["config"].as_object().ok_or("config")?;
            let config = ModelConfig::from_object(Path::new(name), object)?;
            for (kind, ways) in case["kinds"].as_object().ok_or("kinds")? {
                for (way, want) in ways.as_object().ok_or("ways")? {
                    let own = GgufKind::named(kind).ok_or("kind")?;
                    let planned = plan(&config, &Mixture::new(own, &config, way == "guided"));
                    let matrices =
                        planned.iter().filter(|t| t.listed.shape.len() > 1 && t.listed.kind != TensorType::F32);
                    let mut count = 0;
                    for tensor in matrices {
                        let listed = |names: &Json| {
                            names.as_array().is_some_and(|all| all.iter().any(|n| n == &tensor.listed.name))
                        };
                        let other = want["others"].as_object().ok_or("others")?.iter().find(|(_, names)| listed(names));
                        let kind_there = other.map_or_else(|| text(&want["main"]), |(kind, _)| kind.clone());
                        let kind_here = format!("{:?}", tensor.listed.kind).to_ascii_lowercase().replace('_', "");
                        assert_eq!(
                            kind_here,
                            kind_there.to_ascii_lowercase().replace('_', ""),
                            "{name} {kind} {way} {}",
                            tensor.listed.name
                        );
                        count += 1;
                    }
                    assert_eq!(Json::from(count), want["count"], "{name} {kind} {way}");
                    compared += count;
                }
            }
        }
        assert!(compared > 10_000, "{compared}");
        Ok(())
    }
}
