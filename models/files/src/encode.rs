//! Encoding rows of f32 values into GGUF types: the plain types and those with blocks of 32 values.
//!
//! Each encoder gives the bytes that llama.cpp's own gives, with and without importance. Loops run over fixed-size blocks
//! so that the compiler can vectorise them; callers spread rows over threads.

use half::{bf16, f16};

use crate::blocks::{IQ4_NL, TensorType};
use crate::encode_k;
use crate::fits::{Affine, LANES, Lanes, Symmetric, Trials, extreme, nearest, side_by_side, within};

/// Encodes one row; `dst.len() == kind.bytes(src.len())`. `importance` has a weight for each of the row's values: the
/// mean square of what the model multiplies it with.
pub(crate) fn encode(kind: TensorType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let (n, size) = kind.block();
    let pairs = src.chunks_exact(n).zip(dst.chunks_exact_mut(size));
    match (kind, importance) {
        (TensorType::F32, _) => pairs.for_each(|(s, d)| d.copy_from_slice(&s[0].to_le_bytes())),
        (TensorType::F16, _) => pairs.for_each(|(s, d)| d.copy_from_slice(&f16::from_f32(s[0]).to_le_bytes())),
        (TensorType::Bf16, _) => pairs.for_each(|(s, d)| d.copy_from_slice(&bf16::from_f32(s[0]).to_le_bytes())),
        (TensorType::Q8_0, _) => pairs.for_each(|(s, d)| q8_0(s, d)),
        (TensorType::Q4_0, None) => pairs.for_each(|(s, d)| symmetric(s, d, 4)),
        (TensorType::Q5_0, None) => pairs.for_each(|(s, d)| symmetric(s, d, 5)),
        (TensorType::Q4_1, None) => pairs.for_each(|(s, d)| ranged(s, d, 4)),
        (TensorType::Q5_1, None) => pairs.for_each(|(s, d)| ranged(s, d, 5)),
        (TensorType::Q4_0, Some(importance)) => weighted_symmetric(src, importance, dst, 4),
        (TensorType::Q5_0, Some(importance)) => weighted_symmetric(src, importance, dst, 5),
        (TensorType::Q4_1, Some(importance)) => weighted_ranged(src, importance, dst, 4),
        (TensorType::Q5_1, Some(importance)) => weighted_ranged(src, importance, dst, 5),
        (TensorType::Iq4Nl, _) => iq4_nl(src, importance, dst),
        (TensorType::Q2K | TensorType::Q3K | TensorType::Q4K | TensorType::Q5K | TensorType::Q6K, _) => {
            encode_k::encode(kind, src, importance, dst);
        }
    }
}

/// Stores `value` as f16 at byte `at`, and returns what a reader will see.
pub(crate) fn put_half(dst: &mut [u8], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    dst[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

fn q8_0(src: &[f32], dst: &mut [u8]) {
    let largest = src.iter().fold(0f32, |m, v| if v.abs() > m { v.abs() } else { m });
    let scale = largest / 127.0;
    let by = inverse(scale);
    put_half(dst, 0, scale);
    for (v, q) in src.iter().zip(&mut dst[2..]) {
        *q = (v * by).round() as i8 as u8;
    }
}

/// q4_0 and q5_0: a scale chosen so that the extreme value lands on the code with the larger range.
fn symmetric(src: &[f32], dst: &mut [u8], bits: u32) {
    let half_range = (1 << (bits - 1)) as f32;
    let scale = extreme(src) / -half_range;
    let by = inverse(scale);
    put_half(dst, 0, scale);
    let (middle, top) = (half_range + 0.5, (1u8 << bits) - 1);
    let codes = src.iter().map(|v| ((v * by + middle) as u8).min(top));
    nibbles(codes, &mut dst[2..], bits);
}

/// q4_1 and q5_1: a scale and the minimum.
fn ranged(src: &[f32], dst: &mut [u8], bits: u32) {
    let (low, high) = src.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    let top = (1u8 << bits) - 1;
    let scale = (high - low) / f32::from(top);
    let by = inverse(scale);
    put_half(dst, 0, scale);
    put_half(dst, 2, low);
    let codes = src.iter().map(|v| (((v - low) * by + 0.5) as u8).min(top));
    nibbles(codes, &mut dst[4..], bits);
}

/// Writes 32 codes: for 5 bits first the fifth bits, then the first half in low nibbles and the second in high ones.
fn nibbles(from: impl Iterator<Item = u8>, dst: &mut [u8], bits: u32) {
    let mut codes = [0u8; 32];
    codes.iter_mut().zip(from).for_each(|(code, value)| *code = value);
    let mut at = 0;
    if bits == 5 {
        let fifth = codes.iter().enumerate().fold(0u32, |all, (i, c)| all | (u32::from(c >> 4) << i));
        dst[..4].copy_from_slice(&fifth.to_le_bytes());
        at = 4;
    }
    for (i, d) in dst[at..].iter_mut().enumerate() {
        *d = (codes[i] & 15) | (codes[i + 16] << 4);
    }
}

/// Up to eight blocks of a row side by side: their values, their weights and the bytes to write.
struct Group<'a> {
    src: &'a [f32],
    x: [Lanes; 32],
    weights: [Lanes; 32],
    dst: std::slice::ChunksExactMut<'a, u8>,
}

/// A row's blocks in groups. A value's weight is its importance, more for larger values.
fn groups<'a>(
    src: &'a [f32],
    importance: &'a [f32],
    dst: &'a mut [u8],
    size: usize,
) -> impl Iterator<Item = Group<'a>> {
    let mean_square = src.iter().fold(0f32, |sum, v| sum + v * v) / src.len() as f32;
    let parts = src.chunks(32 * LANES).zip(importance.chunks(32 * LANES)).zip(dst.chunks_mut(size * LANES));
    parts.map(move |((src, importance), dst)| {
        let (mut x, mut weights) = ([[0f32; LANES]; 32], [[0f32; LANES]; 32]);
        side_by_side(src, &mut x);
        side_by_side(importance, &mut weights);
        for (w, x) in weights.iter_mut().zip(&x) {
            (0..LANES).for_each(|l| w[l] *= (mean_square + x[l] * x[l]).sqrt());
        }
        Group { src, x, weights, dst: dst.chunks_exact_mut(size) }
    })
}

/// q4_0 and q5_0 with least weighted error.
fn weighted_symmetric(src: &[f32], importance: &[f32], dst: &mut [u8], bits: u32) {
    let size = if bits == 5 { 22 } else { 18 };
    for group in groups(src, importance, dst, size) {
        let fit = Symmetric::fit(&group.x, &group.weights, (1 << (bits - 1)) as f32);
        for (lane, (src, dst)) in group.src.chunks_exact(32).zip(group.dst).enumerate() {
            put_half(dst, 0, fit.scale[lane]);
            nibbles(src.iter().map(|v| fit.code(lane, *v)), &mut dst[2..], bits);
        }
    }
}

/// q4_1 and q5_1 with least weighted error.
fn weighted_ranged(src: &[f32], importance: &[f32], dst: &mut [u8], bits: u32) {
    let size = if bits == 5 { 24 } else { 20 };
    let trials = Trials { top: ((1 << bits) - 1) as f32, from: -0.9, step: 0.05, steps: 36, absolute: false };
    for group in groups(src, importance, dst, size) {
        let fit = Affine::fit(&group.x, &group.weights, trials);
        for (lane, (src, dst)) in group.src.chunks_exact(32).zip(group.dst).enumerate() {
            put_half(dst, 0, fit.scale[lane]);
            put_half(dst, 2, -fit.min[lane]);
            nibbles(src.iter().map(|v| fit.code(lane, *v)), &mut dst[4..], bits);
        }
    }
}

/// The non-linear 4-bit code, weighted by squared values or by importance.
fn iq4_nl(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let mut importance = importance.map(|all| all.chunks_exact(32));
    for (src, dst) in src.chunks_exact(32).zip(dst.chunks_exact_mut(18)) {
        let own = importance.as_mut().and_then(Iterator::next);
        let spread = src.iter().fold(0f32, |sum, v| sum + v * v) * (2.0 / 32.0);
        let weights: [f32; 32] = std::array::from_fn(|i| match own {
            Some(own) => own[i] * (spread + src[i] * src[i]).sqrt(),
            None => src[i] * src[i],
        });
        let scale = curve_fit(src, &weights);
        put_half(dst, 0, scale);
        let by = inverse(scale);
        nibbles(src.iter().map(|v| nearest_on_curve(by * v) as u8), &mut dst[2..], 4);
    }
}

/// The scale with least weighted squared error on the non-linear code: trial factors fix the codes.
fn curve_fit(x: &[f32], weights: &[f32; 32]) -> f32 {
    let peak = extreme(x);
    if peak.abs() < 1e-15 {
        return 0.0;
    }
    let first = f32::from(IQ4_NL[0]);
    let sums = |by: f32| {
        x.iter().zip(weights).fold((0f32, 0f32), |(product, square), (v, w)| {
            let q = f32::from(IQ4_NL[nearest_on_curve(by * v)]);
            (product + w * q * v, square + w * q * q)
        })
    };
    let (product, square) = sums(1.0 / (-peak / first));
    let mut scale = product / square;
    let mut gain = scale * product;
    for step in -7i8..=7 {
        let (product, square) = sums((f32::from(step) + first) / peak);
        if square > 0.0 && product * product > gain * square {
            scale = product / square;
            gain = scale * product;
        }
    }
    scale
}

/// The place of the value nearest to `x`; the higher of two equally near.
fn nearest_on_curve(x: f32) -> usize {
    /// For each whole number from -128 on, the place of the largest value that is not above it.
    const BELOW: [u8; 256] = {
        let mut all = [0u8; 256];
        let (mut at, mut place) = (0, 0);
        while at < 256 {
            if place < 15 && at as i32 - 128 >= IQ4_NL[place + 1] as i32 {
                place += 1;
            }
            all[at] = place as u8;
            at += 1;
        }
        all
    };
    let x = within(x, f32::from(IQ4_NL[0]), f32::from(IQ4_NL[15]));
    // The whole number below: nearest rounds up where the fraction is large.
    let near = nearest(x);
    let whole = if near > x { near - 1.0 } else { near };
    let below = usize::from(BELOW[(whole + 128.0) as usize]);
    let above = (below + 1).min(15);
    if x - f32::from(IQ4_NL[below]) < f32::from(IQ4_NL[above]) - x { below } else { above }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::encode;
    use crate::TensorType;

    fn unhex(value: &Value) -> Vec<u8> {
        let text = value.as_str().unwrap_or_default();
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap_or_default()).collect()
    }

    fn floats(value: &Value) -> Vec<f32> {
        unhex(value).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn every_type_is_encoded_to_llama_cpps_bytes() -> Result<(), Box<dyn std::error::Error>> {
        let case: Value = serde_json::from_str(include_str!("../../../tests/fixtures/gguf/encoded.json"))?;
        let (rows, importance) = (floats(&case["rows"]), floats(&case["importance"]));
        let width = importance.len();
        let types = case["types"].as_object().ok_or("types")?;
        assert_eq!(types.len(), 11);
        let mut wrong = Vec::new();
        for (code, want) in types {
            let kind = code.parse().ok().and_then(TensorType::from_code).ok_or("code")?;
            for (way, given) in [("plain", None), ("guided", Some(importance.as_slice()))] {
                let want = unhex(&want[way]);
                let size = kind.bytes(width);
                for (row, (values, want)) in rows.chunks_exact(width).zip(want.chunks_exact(size)).enumerate() {
                    let mut got = vec![0u8; size];
                    encode(kind, values, given, &mut got);
                    let differ = got.iter().zip(want).filter(|(a, b)| a != b).count();
                    if differ > 0 {
                        wrong.push(format!("{kind:?} {way} row {row}: {differ} of {size} bytes"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}
