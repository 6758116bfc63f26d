//! 8-bit weights as bitsandbytes' LLM.int8 holds them (Dettmers et al., arXiv 2208.07339).
//!
//! Each output has a scale of its own. In training bitsandbytes multiplies by the dequantised weights on a CPU, and so does
//! this; what it does with outliers concerns the quantised inputs that only its GPU kernels have. Nothing here knows layers
//! or files.

use half::f16;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::shim;

/// A quantised `[rows, columns]` weight.
#[derive(Debug)]
pub struct Int8 {
    pub rows: i64,
    pub columns: i64,
    /// i8, `[rows, columns]`.
    pub codes: Tensor,
    /// Largest magnitude of each row, f32, `[rows]`: bitsandbytes' SCB.
    pub absmax: Tensor,
    /// What a code is multiplied by, f32, `[rows]`.
    pub factors: Tensor,
}

impl Int8 {
    /// Quantises a row-major weight of `rows * columns` values.
    pub fn quantize(weight: &[f32], rows: usize, columns: usize) -> Self {
        debug_assert_eq!(weight.len(), rows * columns);
        let (mut codes, mut absmax) = (vec![0i8; weight.len()], vec![0f32; rows]);
        let each = columns.max(1);
        let parts = weight.par_chunks(each).zip(codes.par_chunks_mut(each)).zip(&mut absmax);
        parts.with_min_len(16).for_each(|((row, codes), absmax)| {
            // bitsandbytes quantises what the weights are in half precision.
            let row: Vec<f32> = row.iter().map(|value| f16::from_f32(*value).to_f32()).collect();
            let top = row.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            // PyTorch divides a number by a tensor as the number times reciprocals.
            let share = (1.0 / top) * 127.0;
            codes.iter_mut().zip(&row).for_each(|(code, value)| *code = (value * share).round_ties_even() as i8);
            *absmax = top;
        });
        let factors: Vec<f32> = absmax.iter().map(|top| top * (1.0f64 / 127.0) as f32).collect();
        Self {
            rows: rows as i64,
            columns: columns as i64,
            codes: Tensor::from_slice(&codes).reshape([rows as i64, columns as i64]),
            absmax: Tensor::from_slice(&absmax),
            factors: Tensor::from_slice(&factors),
        }
    }

    /// The weight as `[rows, columns]` of `kind`, f32 or bf16 (rounded once from f32).
    pub fn dequantize(&self, kind: Kind) -> Tensor {
        shim::dequantize_int8(self, kind)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.numel() + self.absmax.numel() * 8
    }
}
