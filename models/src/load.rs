//! From model files to a decoder in memory, one tensor at a time.
//!
//! Never more than the finished part and one tensor is resident: pages of the files are dropped as soon as they are
//! read, and NF4 weights are quantised the moment they arrive.

use std::path::Path;

use half::bf16;
use pipe_files::{ModelConfig, ModelFiles};
use pipe_job::{BaseWeights, Compute};
use tch::{Kind, Tensor};

use crate::attention::Rotary;
use crate::decoder::{Decoder, Layer, Replaced};
use crate::events::Events;
use crate::int8::Int8;
use crate::linear::{Linear, Weight};
use crate::nf4::{Format, Nf4};
use crate::{ModelError, Result};

/// The libtorch type of a compute type.
pub fn kind_of(compute: Compute) -> Result<Kind> {
    match compute {
        Compute::F32 => Ok(Kind::Float),
        Compute::Bf16 => Ok(Kind::BFloat16),
        Compute::F16 => Err(ModelError::input(
            "f16 arithmetic needs a GPU, and this worker runs on the CPU; set bf16: auto or leave fp16 out",
        )),
    }
}

/// Loads the model at `path` without adapters.
pub fn load(path: &Path, base: BaseWeights, compute: Compute, events: &Events) -> Result<Decoder> {
    let files = ModelFiles::open(path)?;
    let reader = Reader { files: &files, base, kind: kind_of(compute)? };
    let config = files.config().clone();
    let embedding = reader.dense("model.embed_tokens.weight")?;
    let mut layers = Vec::with_capacity(config.layers);
    for index in 0..config.layers {
        events.check()?;
        layers.push(reader.layer(index)?);
        events.progress("load", "layers", index as u64 + 1, config.layers as u64);
    }
    let norm = reader.dense("model.norm.weight")?;
    let untied_head = if config.tied_embeddings { None } else { Some(reader.dense("lm_head.weight")?) };
    crate::device::release_memory();
    let rotary = rotary(&config);
    Ok(Decoder {
        compute: reader.kind,
        embedding,
        layers,
        norm,
        untied_head,
        replaced: Replaced::default(),
        rotary,
        neftune_alpha: 0.0,
        config,
    })
}

fn rotary(config: &ModelConfig) -> Rotary {
    Rotary::new(&config.inverse_frequencies())
}

struct Reader<'a> {
    files: &'a ModelFiles,
    base: BaseWeights,
    kind: Kind,
}

impl Reader<'_> {
    fn layer(&self, index: usize) -> Result<Layer> {
        let part = |part: &str| format!("model.layers.{index}.{part}");
        let norm = |name: &str| self.dense(&format!("{}.weight", part(name)));
        let linear = |name: &str| self.linear(part(name));
        Ok(Layer {
            attention_norm: norm("input_layernorm")?,
            q: linear("self_attn.q_proj")?,
            k: linear("self_attn.k_proj")?,
            v: linear("self_attn.v_proj")?,
            o: linear("self_attn.o_proj")?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate: linear("mlp.gate_proj")?,
            up: linear("mlp.up_proj")?,
            down: linear("mlp.down_proj")?,
        })
    }

    fn linear(&self, name: String) -> Result<Linear> {
        let weight_name = format!("{name}.weight");
        let weight = match self.base {
            BaseWeights::Dense => Weight::Dense(self.dense(&weight_name)?),
            BaseWeights::Nf4 { double_quant } => self.four_bit(Format::Nf4, &weight_name, double_quant)?,
            BaseWeights::Fp4 { double_quant } => self.four_bit(Format::Fp4, &weight_name, double_quant)?,
            BaseWeights::Int8 => {
                let (values, rows, columns) = self.to_quantize(&weight_name)?;
                Weight::Int8(Int8::quantize(&values, rows, columns))
            }
        };
        let bias_name = format!("{name}.bias");
        let bias = match self.files.shape(&bias_name) {
            Some(_) => Some(self.dense(&bias_name)?),
            None => None,
        };
        Ok(Linear { name, weight, bias, lora: None })
    }

    fn four_bit(&self, format: Format, name: &str, double_quant: bool) -> Result<Weight> {
        let (values, rows, columns) = self.to_quantize(name)?;
        Ok(Weight::Nf4(Nf4::quantize(format, &values, rows, columns, double_quant)))
    }

    fn to_quantize(&self, name: &str) -> Result<(Vec<f32>, usize, usize)> {
        let shape = self.shape(name)?;
        let mut values = Vec::new();
        self.files.read_f32(name, &mut values)?;
        self.files.release(name);
        // The base passes through the compute type first, as transformers loads it before bitsandbytes quantises it.
        if self.kind == Kind::BFloat16 {
            values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
        Ok((values, shape[0], shape[1]))
    }

    fn dense(&self, name: &str) -> Result<Tensor> {
        let shape: Vec<i64> = self.shape(name)?.iter().map(|&size| size as i64).collect();
        let tensor = if self.kind == Kind::BFloat16 {
            let mut values = Vec::new();
            self.files.read_bf16(name, &mut values)?;
            // tch 0.26 gives a slice of bf16 the type f16; the bits are right, so only the type is set.
            Tensor::from_slice(&values).view_dtype(Kind::BFloat16)
        } else {
            let mut values = Vec::new();
            self.files.read_f32(name, &mut values)?;
            Tensor::from_slice(&values).to_kind(self.kind)
        };
        self.files.release(name);
        Ok(tensor.reshape(shape))
    }

    fn shape(&self, name: &str) -> Result<&[usize]> {
        self.files.shape(name).ok_or_else(|| {
            ModelError::input(format!(
                "{} has no tensor {name}; the checkpoint is incomplete",
                self.files.path().display()
            ))
        })
    }
}
