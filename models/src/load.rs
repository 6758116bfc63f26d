//! From model files to a decoder in memory, one tensor at a time.
//!
//! Never more than the finished part and one tensor is resident: pages of the files are dropped as soon as they are
//! read, and NF4 weights are quantised the moment they arrive.

use std::cell::Cell;
use std::path::Path;

use half::bf16;
use pipe_files::{ModelConfig, ModelFiles, NormStyle, Part, Place, TensorType};
use pipe_job::{BaseWeights, Compute};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::attention::Rotary;
use crate::decoder::{Decoder, Replaced};
use crate::events::Events;
use crate::gguf_blocks::GgufBlocks;
use crate::int8::Int8;
use crate::kernels::rows;
use crate::layer::{Layer, Projections};
use crate::linear::{Linear, Weight};
use crate::mlp::{Mixture, Mlp};
use crate::nf4::{Format, Nf4};
use crate::norm::Norm;
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
    all(&Loader::open(path, base, compute)?, events)
}

/// The same for decoding alone: weights that are to be dense stay as the files have them, where there are kernels for
/// their types. Decoding reads every weight for every token, and so fewer bytes.
pub fn load_stored(path: &Path, base: BaseWeights, compute: Compute, events: &Events) -> Result<Decoder> {
    let loader = Loader { stored: base == BaseWeights::Dense, ..Loader::open(path, base, compute)? };
    all(&loader, events)
}

fn all(loader: &Loader, events: &Events) -> Result<Decoder> {
    let mut decoder = loader.outside()?;
    let layers = decoder.config.layers;
    for index in 0..layers {
        events.check()?;
        decoder.layers.push(loader.layer(index)?);
        events.progress("load", "layers", index as u64 + 1, layers as u64);
    }
    // Before free memory is given back, or it would stay with the process.
    drop(loader.room.take());
    crate::device::release_memory();
    pipe_files::release_code();
    Ok(decoder)
}

/// Tensors by role: those of one layer, or those outside the layers.
struct Places(Vec<Place>);

impl Places {
    fn outside(config: &ModelConfig) -> Self {
        let outer = |place: &Place| place.part.is_table() || place.part == Part::FinalNorm;
        Self(config.tensors().into_iter().filter(outer).collect())
    }

    fn has(&self, part: Part) -> bool {
        self.0.iter().any(|place| place.part == part)
    }

    fn find(&self, part: Part, copy: usize, bias: bool) -> Option<&Place> {
        self.0.iter().find(|place| place.part == part && place.copy == copy && place.bias == bias)
    }

    fn weight(&self, part: Part) -> Option<&Place> {
        self.find(part, 0, false)
    }

    fn bias(&self, part: Part) -> Option<&Place> {
        self.find(part, 0, true)
    }
}

/// Reads a model's parts.
pub struct Loader {
    files: ModelFiles,
    base: BaseWeights,
    kind: Kind,
    /// Whether matrices may stay in the type of the files.
    stored: bool,
    /// Memory for a matrix before it is quantised, used again for the next.
    room: Cell<Vec<f32>>,
}

impl Loader {
    /// Opens the model at `path`, to be held as `base` and computed with in `compute`.
    pub fn open(path: &Path, base: BaseWeights, compute: Compute) -> Result<Self> {
        Ok(Self { files: ModelFiles::open(path)?, base, kind: kind_of(compute)?, stored: false, room: Cell::default() })
    }

    /// A decoder that has everything but its layers.
    pub fn outside(&self) -> Result<Decoder> {
        let config = self.files.config().clone();
        let outer = Places::outside(&config);
        let embedding = self.table(&outer, Part::Embedding)?;
        let positions = outer.weight(Part::Positions).map(|place| self.dense(&place.name)).transpose()?;
        let norm = self.norm(&outer, Part::FinalNorm, config.norm)?;
        let untied_head = outer.has(Part::Head).then(|| self.table(&outer, Part::Head)).transpose()?;
        let head_bias = outer.bias(Part::Head).map(|place| self.dense(&place.name)).transpose()?;
        let rotary = config.ropes.iter().map(Rotary::new).collect();
        Ok(Decoder {
            compute: self.kind,
            embedding,
            positions,
            layers: Vec::new(),
            norm,
            untied_head,
            head_bias,
            replaced: Replaced::default(),
            rotary,
            neftune_alpha: 0.0,
            config,
        })
    }

    /// The layer of this number, from 0.
    pub fn layer(&self, index: usize) -> Result<Layer> {
        let config = self.files.config();
        let places = Places(config.layer_tensors(index));
        if index + 1 < config.layers {
            config.layer_tensors(index + 1).iter().for_each(|place| self.files.fetch(&place.name));
        }
        let norm = |part: Part| config.has(index, part).then(|| self.norm(&places, part, config.norm)).transpose();
        let qk_norm = |part: Part| {
            // Whether queries and keys are centred goes with the other norms; their bias does not.
            let style = NormStyle { weight: true, bias: config.qk_norm_bias, ..config.norm };
            config.has(index, part).then(|| self.norm(&places, part, style)).transpose()
        };
        let linear = |part: Part| self.linear(&places, part, 0);
        let projections = match places.has(Part::QueryKeyValue) {
            true => Projections::Packed(linear(Part::QueryKeyValue)?),
            false => Projections::Separate(Box::new([linear(Part::Query)?, linear(Part::Key)?, linear(Part::Value)?])),
        };
        Ok(Layer {
            index,
            attention_norm: norm(Part::AttentionNorm)?,
            projections,
            query_norm: qk_norm(Part::QueryNorm)?,
            key_norm: qk_norm(Part::KeyNorm)?,
            output: linear(Part::Output)?,
            attention_post_norm: norm(Part::AttentionPostNorm)?,
            mlp_norm: norm(Part::MlpNorm)?,
            mlp: self.mlp(&places)?,
            mlp_post_norm: norm(Part::MlpPostNorm)?,
        })
    }

    fn mlp(&self, places: &Places) -> Result<Mlp> {
        let linear = |part: Part| self.linear(places, part, 0);
        if let (Some(how), true) = (&self.files.config().experts, places.has(Part::Router)) {
            let parts = [Part::ExpertGate, Part::ExpertUp, Part::ExpertDown];
            let expert = |copy: usize| -> Result<[Linear; 3]> {
                let [gate, up, down] = parts.map(|part| self.linear(places, part, copy));
                Ok([gate?, up?, down?])
            };
            let experts = (0..how.count).map(expert).collect::<Result<Vec<_>>>()?;
            return Ok(Mlp::Mixture(Mixture { router: linear(Part::Router)?, experts, how: how.clone() }));
        }
        Ok(match (places.has(Part::GateUp), places.has(Part::Gate)) {
            (true, _) => Mlp::Packed { gate_up: linear(Part::GateUp)?, down: linear(Part::Down)? },
            (_, true) => Mlp::Gated { gate: linear(Part::Gate)?, up: linear(Part::Up)?, down: linear(Part::Down)? },
            _ => Mlp::Plain { up: linear(Part::Up)?, down: linear(Part::Down)? },
        })
    }

    /// A norm; where each head has its own, their weights in one tensor.
    fn norm(&self, places: &Places, part: Part, style: NormStyle) -> Result<Norm> {
        let own = |bias: bool| places.0.iter().filter(move |place| place.part == part && place.bias == bias);
        let stacked = |bias: bool| -> Result<Option<Tensor>> {
            let all = own(bias).map(|place| self.dense(&place.name)).collect::<Result<Vec<_>>>()?;
            Ok(match all.len() {
                0 => None,
                1 => all.into_iter().next(),
                _ => Some(Tensor::stack(&all, 0)),
            })
        };
        let name = own(false).next().map_or_else(String::new, |place| place.module().to_owned());
        Ok(Norm { name, style, weight: stacked(false)?, bias: stacked(true)? })
    }

    fn table(&self, places: &Places, part: Part) -> Result<Weight> {
        let place = places.weight(part).ok_or_else(|| self.absent(part))?;
        self.matrix(&place.name)
    }

    /// A matrix in the compute type, or as it is stored.
    fn matrix(&self, name: &str) -> Result<Weight> {
        let (dtype, columns) = (self.files.dtype(name), self.shape(name)?.last().copied().unwrap_or_default());
        match dtype.filter(|_| self.stored) {
            Some(TensorType::Bf16) if rows::fast() => Ok(Weight::Dense(self.tensor(name, Kind::BFloat16)?)),
            Some(dtype) if GgufBlocks::suit(dtype, columns) => {
                let mut bytes = Vec::new();
                let Some(dtype) = self.files.read_blocks(name, &mut bytes)? else {
                    return Ok(Weight::Dense(self.dense(name)?));
                };
                self.files.release(name);
                Ok(Weight::Blocks(GgufBlocks::new(dtype, columns, &bytes)))
            }
            _ => Ok(Weight::Dense(self.dense(name)?)),
        }
    }

    fn linear(&self, places: &Places, part: Part, copy: usize) -> Result<Linear> {
        let place = places.find(part, copy, false).ok_or_else(|| self.absent(part))?;
        let weight = match self.base {
            BaseWeights::Nf4 { double_quant } if place.is_quantised() => {
                self.four_bit(Format::Nf4, &place.name, double_quant)?
            }
            BaseWeights::Fp4 { double_quant } if place.is_quantised() => {
                self.four_bit(Format::Fp4, &place.name, double_quant)?
            }
            BaseWeights::Int8 if place.is_quantised() => Weight::Int8(self.quantized(&place.name, Int8::quantize)?),
            _ => self.matrix(&place.name)?,
        };
        let bias = places.find(part, copy, true).map(|place| self.dense(&place.name)).transpose()?;
        Ok(Linear { name: place.module().to_owned(), weight, bias, lora: None, heard: None })
    }

    fn absent(&self, part: Part) -> ModelError {
        ModelError::work(format!("{} has no place for {part:?}", self.files.config().architecture))
    }

    fn four_bit(&self, format: Format, name: &str, double_quant: bool) -> Result<Weight> {
        let quantize = |values: &[f32], rows, columns| Nf4::quantize(format, values, rows, columns, double_quant);
        Ok(Weight::Nf4(self.quantized(name, quantize)?))
    }

    /// What `quantize` makes of a matrix's values, rows and columns.
    fn quantized<T>(&self, name: &str, quantize: impl FnOnce(&[f32], usize, usize) -> T) -> Result<T> {
        let shape = self.shape(name)?;
        let mut values = self.room.take();
        self.files.read_f32(name, &mut values)?;
        self.files.release(name);
        // The base passes through the compute type first, as transformers loads it before bitsandbytes quantises it.
        if self.kind == Kind::BFloat16 && self.files.dtype(name) != Some(TensorType::Bf16) {
            values.par_iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
        let weight = quantize(&values, shape[0], shape[1]);
        self.room.set(values);
        Ok(weight)
    }

    fn dense(&self, name: &str) -> Result<Tensor> {
        self.tensor(name, self.kind)
    }

    fn tensor(&self, name: &str, kind: Kind) -> Result<Tensor> {
        let shape: Vec<i64> = self.shape(name)?.iter().map(|&size| size as i64).collect();
        let tensor = if kind == Kind::BFloat16 {
            let mut values = Vec::new();
            self.files.read_bf16(name, &mut values)?;
            // tch 0.26 gives a slice of bf16 the type f16; the bits are right, so only the type is set.
            Tensor::from_slice(&values).view_dtype(Kind::BFloat16)
        } else {
            let mut values = Vec::new();
            self.files.read_f32(name, &mut values)?;
            Tensor::from_slice(&values).to_kind(kind)
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
