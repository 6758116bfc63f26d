//! 4-bit NormalFloat and 4-bit float weights exactly as bitsandbytes holds them (Dettmers et al., arXiv 2305.14314).
//!
//! Blocks of 64 weights share a scale; with double quantisation the scales themselves become 8-bit codes in blocks of
//! 256, around their mean. Quantising and dequantising are bit-equal to bitsandbytes 0.50.2 on the CPU, so adapters
//! trained on either see the same base. Nothing here knows layers or files.

use std::sync::OnceLock;

use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::kernels::{self, Instructions};
use crate::shim;

/// Weights that share one scale.
pub const BLOCK: usize = 64;
/// Scales that share one scale of their own.
pub const SCALE_BLOCK: usize = 256;

/// The sixteen values: quantiles of a normal distribution scaled to [-1, 1], with an exact zero (arXiv 2305.14314,
/// appendix E).
pub const CODEBOOK: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The sixteen 4-bit floats (sign, two bits of exponent, one of fraction) over their largest, in the order of their codes.
pub const FP4_CODEBOOK: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    0.5,
    2.0 / 12.0,
    0.25,
    0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -0.5,
    -2.0 / 12.0,
    -0.25,
];

/// Weights that are quantised as one piece of work.
const PART: usize = 64 * 1024;

/// Which sixteen values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Nf4,
    Fp4,
}

impl Format {
    pub fn codebook(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &CODEBOOK,
            Self::Fp4 => &FP4_CODEBOOK,
        }
    }
}

/// A quantised `[rows, columns]` weight.
#[derive(Debug)]
pub struct Nf4 {
    pub format: Format,
    pub rows: i64,
    pub columns: i64,
    /// u8, two weights a byte, the first in the high half.
    pub packed: Tensor,
    pub scales: Scales,
}

/// One scale per block of weights.
#[derive(Debug)]
pub enum Scales {
    /// f32, `[blocks]`.
    Plain(Tensor),
    /// `map[codes] * absmax[block / 256] + offset`.
    Double { codes: Tensor, absmax: Tensor, offset: f32 },
}

impl Nf4 {
    /// Quantises a row-major weight of `rows * columns` values.
    pub fn quantize(format: Format, weight: &[f32], rows: usize, columns: usize, double_quant: bool) -> Self {
        debug_assert_eq!(weight.len(), rows * columns);
        let mut packed = vec![0; weight.len().div_ceil(2)];
        let mut absmax = vec![0.0; weight.len().div_ceil(BLOCK)];
        let parts = packed.par_chunks_mut(PART / 2).zip(absmax.par_chunks_mut(PART / BLOCK));
        weight.par_chunks(PART).zip(parts).for_each(|(weight, (packed, absmax))| {
            kernels::encode(Instructions::best(), format, weight, packed, absmax);
        });
        let scales = if double_quant { quantize_scales(&absmax) } else { Scales::Plain(Tensor::from_slice(&absmax)) };
        Self { format, rows: rows as i64, columns: columns as i64, packed: Tensor::from_slice(&packed), scales }
    }

    /// The weight as `[rows, columns]` of `kind`, f32 or bf16 (rounded once from f32).
    pub fn dequantize(&self, kind: Kind) -> Tensor {
        shim::dequantize(self, kind)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(absmax) => absmax.numel() * 4,
            Scales::Double { codes, absmax, .. } => codes.numel() + absmax.numel() * 4,
        };
        self.packed.numel() + scales
    }
}

/// bitsandbytes' signed dynamic 8-bit map, ascending (Dettmers, arXiv 1511.04561): seven decades, each twice as fine as
/// the one below it, plus zero and one.
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: OnceLock<[f32; 256]> = OnceLock::new();
    MAP.get_or_init(|| dynamic_values(0, |mean| vec![mean, -mean]))
}

/// The unsigned one: the sign's bit makes each decade twice as fine.
pub fn unsigned_dynamic_map() -> &'static [f32; 256] {
    static MAP: OnceLock<[f32; 256]> = OnceLock::new();
    MAP.get_or_init(|| dynamic_values(1, |mean| vec![mean]))
}

fn dynamic_values(finer: i32, signs: impl Fn(f32) -> Vec<f32>) -> [f32; 256] {
    let mut values = Vec::with_capacity(256);
    for decade in 0..7i32 {
        let steps = (1usize << (decade + finer)) + 1;
        let bounds = evenly_spaced(0.1, 1.0, steps);
        let scale = 10f64.powi(decade - 6) as f32;
        values.extend(bounds.windows(2).flat_map(|pair| signs((pair[0] + pair[1]) / 2.0 * scale)));
    }
    values.extend([0.0, 1.0]);
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
}

fn quantize_scales(absmax: &[f32]) -> Scales {
    // libtorch's own mean: its order of summation is part of the bits.
    let offset = Tensor::from_slice(absmax).mean(Kind::Float).double_value(&[]) as f32;
    let mut codes = Vec::with_capacity(absmax.len());
    let mut tops = Vec::with_capacity(absmax.len().div_ceil(SCALE_BLOCK));
    for block in absmax.chunks(SCALE_BLOCK) {
        let top = block.iter().fold(0.0f32, |most, scale| most.max((scale - offset).abs()));
        tops.push(top);
        codes.extend(block.iter().map(|scale| if top == 0.0 { 0 } else { nearest((scale - offset) / top) }));
    }
    Scales::Double { codes: Tensor::from_slice(&codes), absmax: Tensor::from_slice(&tops), offset }
}

/// The map's entry nearest to the grid point nearest to `value`: bitsandbytes looks codes up on 65,536 even steps of
/// [-1, 1], which differs from the nearest entry for values close to a midpoint.
fn nearest(value: f32) -> u8 {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let map = dynamic_map();
        let bounds: Vec<f32> = map.windows(2).map(|pair| (pair[0] + pair[1]) * 0.5).collect();
        let point = |i: u32| i as f32 / 65535.0 * 2.0 - 1.0;
        (0..=u32::from(u16::MAX)).map(|i| bounds.partition_point(|&bound| bound < point(i)) as u8).collect()
    });
    table[((value + 1.0) * 0.5 * 65535.0 + 0.5).floor().clamp(0.0, 65535.0) as usize]
}

/// torch.linspace in f32: forwards from the start for the first half, backwards from the end for the second.
fn evenly_spaced(start: f32, end: f32, steps: usize) -> Vec<f32> {
    let step = (end - start) / (steps - 1) as f32;
    (0..steps)
        // Fused, as libtorch's vectorised linspace rounds once.
        .map(|i| match i < steps / 2 {
            true => step.mul_add(i as f32, start),
            false => (-step).mul_add((steps - 1 - i) as f32, end),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    fn check(fixture: &Fixture, format: Format, name: &str) {
        let weight = fixture.f32(&format!("{name}.weight"));
        let shape = fixture.shape(&format!("{name}.weight"));
        for (kind, double) in [("plain", false), ("double", true)] {
            let key = |part: &str| format!("{name}.{kind}.{part}");
            let nf4 = Nf4::quantize(format, &weight, shape[0], shape[1], double);
            assert_eq!(bytes(&nf4.packed), fixture.bytes(&key("packed")), "{name} {kind} codes");
            match &nf4.scales {
                Scales::Plain(absmax) => assert_eq!(floats(absmax), fixture.f32(&key("absmax"))),
                Scales::Double { codes, absmax, offset } => {
                    assert_eq!(*offset, fixture.f32(&key("offset"))[0], "{name} offset");
                    assert_eq!(floats(absmax), fixture.f32(&key("absmax")), "{name} second scales");
                    assert_eq!(bytes(codes), fixture.bytes(&key("scale_codes")), "{name} scale codes");
                }
            }
            assert_eq!(floats(&nf4.dequantize(Kind::BFloat16)), fixture.f32(&key("bf16")), "{name} {kind} bf16");
            if name != "wide" {
                assert_eq!(floats(&nf4.dequantize(Kind::Float)), fixture.f32(&key("f32")), "{name} {kind} f32");
            }
        }
    }

    fn floats(x: &Tensor) -> Vec<f32> {
        Vec::try_from(x.to_kind(Kind::Float).reshape([-1])).unwrap()
    }

    fn bytes(x: &Tensor) -> Vec<u8> {
        Vec::try_from(x.reshape([-1])).unwrap()
    }

    #[test]
    fn equals_bitsandbytes_bit_for_bit() {
        let fixture = Fixture::open("nf4/cases.safetensors");
        assert_eq!(CODEBOOK.to_vec(), fixture.f32("codebook"));
        assert_eq!(dynamic_map().to_vec(), fixture.f32("map"));
        for name in ["wide", "tail", "zero", "outlier"] {
            check(&fixture, Format::Nf4, name);
        }
    }
}
