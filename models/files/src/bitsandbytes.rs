//! Weights that bitsandbytes quantised, as transformers saves them, read as the numbers they stand for.
//!
//! Four bits: codes two to a byte, a scale for each block, the scales perhaps codes themselves (arXiv 2305.14314). Eight
//! bits: codes and the largest magnitude of each row (arXiv 2208.07339). Nothing is quantised here.

use std::collections::HashMap;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use serde_json::Value as Json;

use crate::blocks::TensorType;
use crate::mapped::Mapped;
use crate::parts::Place;

/// A tensor of a folder's files that is no floating-point weight.
#[derive(Clone, Debug)]
pub(crate) struct Coded {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub file: usize,
    pub offset: usize,
    pub len: usize,
}

/// One quantised weight: where its codes are, and what they stand for.
#[derive(Debug)]
pub(crate) struct Quantised {
    pub codes: Coded,
    /// One for each block of four-bit codes, or for each row.
    scales: Vec<f32>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// `values[code] * scale`, rounded to the type that the model computes in.
    FourBit { values: [f32; 16], block: usize, rounded: TensorType },
    /// `code * scale`
    EightBit { columns: usize },
}

/// Codes and what goes with them, by name, and the plain tensors beside them.
pub(crate) struct Folder<'a> {
    pub files: &'a [Mapped],
    pub coded: &'a HashMap<String, Coded>,
    /// The values of a floating-point tensor.
    pub floats: &'a dyn Fn(&str) -> Option<Vec<f32>>,
}

impl Folder<'_> {
    /// The weight at `place`, where the folder holds it in one of the two forms and whole.
    pub fn find(&self, place: &Place) -> Option<Quantised> {
        let codes = self.coded.get(&place.name)?.clone();
        let elements: usize = place.shape.iter().product();
        let (scales, kind) = match codes.dtype {
            Dtype::U8 => self.four_bit(&place.name)?,
            Dtype::I8 if codes.shape == place.shape => {
                let tops = (self.floats)(&format!("{}.SCB", place.module()))?;
                let scales = tops.into_iter().map(|top| top * (1.0f64 / 127.0) as f32).collect();
                (scales, Kind::EightBit { columns: *place.shape.last()? })
            }
            _ => return None,
        };
        let (bytes, groups) = match &kind {
            Kind::FourBit { block, .. } => (elements.div_ceil(2), elements.div_ceil(*block)),
            Kind::EightBit { columns } => (elements, elements / (*columns).max(1)),
        };
        (codes.len == bytes && scales.len() == groups).then_some(Quantised { codes, scales, kind })
    }

    fn four_bit(&self, name: &str) -> Option<(Vec<f32>, Kind)> {
        let states = ["nf4", "fp4"].map(|kind| format!("{name}.quant_state.bitsandbytes__{kind}"));
        let state = states.iter().find_map(|name| self.coded.get(name))?;
        let state: Json = serde_json::from_slice(self.bytes(state)).ok()?;
        let number = |key: &str| state.get(key).and_then(Json::as_u64).map(|n| n as usize).filter(|n| *n > 0);
        let values = (self.floats)(&format!("{name}.quant_map"))?.try_into().ok()?;
        let scales = match self.coded.get(&format!("{name}.absmax")) {
            None => (self.floats)(&format!("{name}.absmax"))?,
            Some(codes) => {
                let map = (self.floats)(&format!("{name}.nested_quant_map")).filter(|map| map.len() == 256)?;
                let tops = (self.floats)(&format!("{name}.nested_absmax"))?;
                let (block, offset) = (number("nested_blocksize")?, state.get("nested_offset")?.as_f64()? as f32);
                let scale = |(i, code): (usize, &u8)| Some(map[usize::from(*code)] * tops.get(i / block)? + offset);
                self.bytes(codes).iter().enumerate().map(scale).collect::<Option<_>>()?
            }
        };
        let rounded = match state.get("dtype").and_then(Json::as_str)? {
            "bfloat16" => TensorType::Bf16,
            "float16" => TensorType::F16,
            _ => TensorType::F32,
        };
        Some((scales, Kind::FourBit { values, block: number("blocksize").filter(|n| n.is_multiple_of(2))?, rounded }))
    }

    fn bytes(&self, coded: &Coded) -> &[u8] {
        &self.files[coded.file].bytes()[coded.offset..coded.offset + coded.len]
    }
}

impl Quantised {
    /// The weight row by row; `out` has its length.
    pub fn decode(&self, files: &[Mapped], out: &mut [f32]) {
        let codes = &files[self.codes.file].bytes()[self.codes.offset..self.codes.offset + self.codes.len];
        match &self.kind {
            Kind::EightBit { columns } => {
                let rows = out.par_chunks_mut(*columns).zip(codes.par_chunks(*columns)).zip(&self.scales);
                rows.for_each(|((out, codes), scale)| {
                    out.iter_mut().zip(codes).for_each(|(v, code)| *v = f32::from(*code as i8) * scale);
                });
            }
            Kind::FourBit { values, block, rounded } => {
                let blocks = out.par_chunks_mut(*block).zip(codes.par_chunks(block / 2)).zip(&self.scales);
                blocks.with_min_len(64).for_each(|((out, codes), scale)| {
                    for (i, v) in out.iter_mut().enumerate() {
                        // The first of two is in the high half.
                        let code = (codes[i / 2] >> (4 * (1 - i % 2))) & 15;
                        *v = round(values[usize::from(code)] * scale, *rounded);
                    }
                });
            }
        }
    }
}

fn round(value: f32, kind: TensorType) -> f32 {
    match kind {
        TensorType::Bf16 => bf16::from_f32(value).to_f32(),
        TensorType::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}
