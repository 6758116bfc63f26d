//! A model as transformers saves one that bitsandbytes quantised, so that it loads there as it is.
//!
//! Matrices inside the blocks are quantised, one tensor in memory at a time; embedding, head and norms keep the model's
//! type. Codes and scales are those of [`Nf4`] and [`Int8`]. This module knows the layout only, no arithmetic.

use std::path::Path;

use half::{bf16, f16};
use pipe_files::{
    ModelFiles, Place, ShardWriter, Source, StoredTensor, TensorType, floats, write_config, write_tokenizer,
};
use rayon::prelude::*;
use serde_json::{Value, json};
use tch::Tensor;

use crate::events::Events;
use crate::int8::Int8;
use crate::nf4::{BLOCK, CODEBOOK, Format, Nf4, SCALE_BLOCK, Scales, dynamic_map};
use crate::{ModelError, Result};

/// Largest shard, as transformers' own.
const SHARD_BYTES: u64 = 5_000_000_000;
/// Room for a weight's description; JSON may end in spaces, and its length must be known before its numbers are.
const STATE_BYTES: usize = 256;

/// Which of bitsandbytes' two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// 4-bit NormalFloat with quantised scales, as QLoRA holds its base.
    Nf4,
    /// LLM.int8().
    Int8,
}

impl Saved {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "nf4" => Some(Self::Nf4),
            "int8" => Some(Self::Int8),
            _ => None,
        }
    }
}

/// Writes `files` as a folder with weights, configuration, tokenizer and chat template.
///
/// # Errors
/// An input error for models whose matrices transformers does not hold as linear layers.
pub fn write(files: &ModelFiles, saved: Saved, name: &str, out: &Path, events: &Events) -> Result<()> {
    let tensors = files.config().tensors();
    if let Some(place) =
        tensors.iter().find(|place| place.is_quantised() && (place.part.is_expert() || place.transposed))
    {
        let why = format!(
            "{} cannot be written in bitsandbytes' layout: transformers does not quantise {}; choose a GGUF type",
            files.config().architecture,
            place.name
        );
        return Err(ModelError::input(why));
    }
    let kind = own_type(files)?;
    let stored = tensors.iter().flat_map(|place| stored(place, saved, kind)).collect();
    let mut writer = ShardWriter::create(out, stored, SHARD_BYTES)?;
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    for (done, place) in tensors.iter().enumerate() {
        events.check()?;
        files.read_f32(&place.name, &mut values)?;
        files.release(&place.name);
        if place.is_quantised() {
            round(&mut values, kind);
            write_quantised(&mut writer, place, saved, kind, &values)?;
        } else {
            floats(kind, &values, &mut bytes);
            writer.write(&place.name, &bytes)?;
        }
        events.progress(name, "tensors", done as u64 + 1, tensors.len() as u64);
    }
    writer.finish()?;
    write_config(files, kind, out)?;
    write_tokenizer(files.path(), out)?;
    describe(&out.join("config.json"), saved, kind)
}

/// The type of the model's own files; bf16 for a GGUF.
fn own_type(files: &ModelFiles) -> Result<TensorType> {
    let Source::Folder = files.source() else { return Ok(TensorType::Bf16) };
    let config = read_json(&files.path().join("config.json"))?;
    let named = ["dtype", "torch_dtype"].iter().find_map(|key| config.get(*key).and_then(Value::as_str));
    Ok(match named {
        Some("float32") => TensorType::F32,
        Some("float16") => TensorType::F16,
        _ => TensorType::Bf16,
    })
}

fn type_name(kind: TensorType) -> &'static str {
    match kind {
        TensorType::F32 => "float32",
        TensorType::F16 => "float16",
        _ => "bfloat16",
    }
}

fn round(values: &mut [f32], kind: TensorType) {
    match kind {
        TensorType::Bf16 => values.par_iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        TensorType::F16 => values.par_iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        _ => {}
    }
}

/// The tensors that one of the network's becomes.
fn stored(place: &Place, saved: Saved, kind: TensorType) -> Vec<StoredTensor> {
    if !place.is_quantised() {
        return vec![StoredTensor::of(place, kind)];
    }
    let elements: usize = place.shape.iter().product();
    let blocks = elements.div_ceil(BLOCK);
    let tensor = |name: String, dtype, shape: Vec<usize>, size: usize| {
        let bytes = shape.iter().product::<usize>() * size;
        StoredTensor { name, dtype, shape, bytes }
    };
    let (name, module) = (&place.name, place.module());
    match saved {
        Saved::Nf4 => vec![
            tensor(name.clone(), "U8", vec![elements.div_ceil(2), 1], 1),
            tensor(format!("{name}.absmax"), "U8", vec![blocks], 1),
            tensor(format!("{name}.nested_absmax"), "F32", vec![blocks.div_ceil(SCALE_BLOCK)], 4),
            tensor(format!("{name}.nested_quant_map"), "F32", vec![256], 4),
            tensor(format!("{name}.quant_map"), "F32", vec![16], 4),
            tensor(format!("{name}.quant_state.bitsandbytes__nf4"), "U8", vec![STATE_BYTES], 1),
        ],
        Saved::Int8 => vec![
            tensor(name.clone(), "I8", place.shape.clone(), 1),
            tensor(format!("{module}.SCB"), "F32", vec![place.shape[0]], 4),
            // The only layout that is still in use: rows.
            tensor(format!("{module}.weight_format"), "U8", Vec::new(), 1),
        ],
    }
}

fn write_quantised(
    writer: &mut ShardWriter,
    place: &Place,
    saved: Saved,
    kind: TensorType,
    values: &[f32],
) -> Result<()> {
    let ([rows, columns], name) = ([place.shape[0], place.shape[1]], &place.name);
    match saved {
        Saved::Nf4 => {
            let weight = Nf4::quantize(Format::Nf4, values, rows, columns, true);
            let Scales::Double { codes, absmax, offset } = &weight.scales else {
                return Err(ModelError::work("scales were not quantised"));
            };
            writer.write(name, &bytes_of(&weight.packed)?)?;
            writer.write(&format!("{name}.absmax"), &bytes_of(codes)?)?;
            writer.write(&format!("{name}.nested_absmax"), &float_bytes(&Vec::<f32>::try_from(absmax)?))?;
            writer.write(&format!("{name}.nested_quant_map"), &float_bytes(dynamic_map()))?;
            writer.write(&format!("{name}.quant_map"), &float_bytes(&CODEBOOK))?;
            let state = json!({
                "quant_type": "nf4", "blocksize": BLOCK, "dtype": type_name(kind), "shape": [rows, columns],
                "nested_blocksize": SCALE_BLOCK, "nested_dtype": "float32", "nested_offset": f64::from(*offset),
            });
            let mut text = state.to_string().into_bytes();
            text.resize(STATE_BYTES, b' ');
            writer.write(&format!("{name}.quant_state.bitsandbytes__nf4"), &text)?;
        }
        Saved::Int8 => {
            let weight = Int8::quantize(values, rows, columns);
            let codes = Vec::<i8>::try_from(weight.codes.reshape([-1]))?;
            writer.write(name, &codes.iter().map(|code| *code as u8).collect::<Vec<u8>>())?;
            let module = place.module();
            writer.write(&format!("{module}.SCB"), &float_bytes(&Vec::<f32>::try_from(&weight.absmax)?))?;
            writer.write(&format!("{module}.weight_format"), &[0])?;
        }
    }
    Ok(())
}

fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    Ok(Vec::<u8>::try_from(tensor.reshape([-1]))?)
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Says in a model's configuration how its weights are held.
fn describe(path: &Path, saved: Saved, kind: TensorType) -> Result<()> {
    let mut config = read_json(path)?;
    let four = saved == Saved::Nf4;
    config["quantization_config"] = json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": four, "load_in_8bit": !four, "_load_in_4bit": four, "_load_in_8bit": !four,
        "bnb_4bit_compute_dtype": type_name(kind), "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if four { "nf4" } else { "fp4" }, "bnb_4bit_use_double_quant": four,
        "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": null, "llm_int8_threshold": 6.0,
    });
    std::fs::write(path, format!("{config:#}\n")).map_err(|e| ModelError::io(path, e))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| ModelError::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| ModelError::work(format!("{}: {e}", path.display())))
}
