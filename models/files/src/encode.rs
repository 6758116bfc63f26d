//! Encoding f32 values into GGUF block types.
//!
//! Each encoder minimises the squared error of its format the way llama.cpp's does, so quality matches files made
//! there. Loops run over fixed-size blocks so that the compiler can vectorise them; callers spread rows over threads.

use half::{bf16, f16};

use crate::blocks::TensorType;
use crate::kquants::scale_min;

/// Encodes whole blocks; `dst.len() == kind.bytes(src.len())`. Types that are only read (q2_k, q3_k, iq4_nl) are not
/// encoded: `false` is returned and nothing is written.
pub(crate) fn encode(kind: TensorType, src: &[f32], dst: &mut [u8]) -> bool {
    let (n, size) = kind.block();
    let pairs = src.chunks_exact(n).zip(dst.chunks_exact_mut(size));
    match kind {
        TensorType::F32 => pairs.for_each(|(s, d)| d.copy_from_slice(&s[0].to_le_bytes())),
        TensorType::F16 => pairs.for_each(|(s, d)| d.copy_from_slice(&f16::from_f32(s[0]).to_le_bytes())),
        TensorType::Bf16 => pairs.for_each(|(s, d)| d.copy_from_slice(&bf16::from_f32(s[0]).to_le_bytes())),
        TensorType::Q8_0 => pairs.for_each(|(s, d)| q8_0(s, d)),
        TensorType::Q4_0 => pairs.for_each(|(s, d)| symmetric(s, d, 4)),
        TensorType::Q5_0 => pairs.for_each(|(s, d)| symmetric(s, d, 5)),
        TensorType::Q4_1 => pairs.for_each(|(s, d)| ranged(s, d, 4)),
        TensorType::Q5_1 => pairs.for_each(|(s, d)| ranged(s, d, 5)),
        TensorType::Q4K => pairs.for_each(|(s, d)| k_ranged(s, d, 4)),
        TensorType::Q5K => pairs.for_each(|(s, d)| k_ranged(s, d, 5)),
        TensorType::Q6K => pairs.for_each(|(s, d)| q6_k(s, d)),
        TensorType::Q2K | TensorType::Q3K | TensorType::Iq4Nl => return false,
    }
    true
}

/// Stores `value` as f16 at byte `at`, and returns what a reader will see.
fn put_half(dst: &mut [u8], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    dst[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

fn q8_0(src: &[f32], dst: &mut [u8]) {
    let largest = src.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = largest / 127.0;
    let by = inverse(scale);
    put_half(dst, 0, scale);
    for (v, q) in src.iter().zip(&mut dst[2..]) {
        *q = (v * by).round() as i8 as u8;
    }
}

/// The value of largest magnitude, with its sign.
fn extreme(src: &[f32]) -> f32 {
    src.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m })
}

/// q4_0 and q5_0: a scale chosen so that the extreme value lands on the code with the larger range.
fn symmetric(src: &[f32], dst: &mut [u8], bits: u32) {
    let half_range = (1 << (bits - 1)) as f32;
    let scale = extreme(src) / -half_range;
    let by = inverse(scale);
    put_half(dst, 0, scale);
    let top = (1u8 << bits) - 1;
    let code = |v: f32| ((v * by + half_range + 0.5) as u8).min(top);
    nibbles(src, &mut dst[2..], bits, code);
}

/// q4_1 and q5_1: a scale and the minimum.
fn ranged(src: &[f32], dst: &mut [u8], bits: u32) {
    let (low, high) = src.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    let top = (1u8 << bits) - 1;
    let scale = (high - low) / f32::from(top);
    let by = inverse(scale);
    put_half(dst, 0, scale);
    put_half(dst, 2, low);
    let code = |v: f32| (((v - low) * by + 0.5) as u8).min(top);
    nibbles(src, &mut dst[4..], bits, code);
}

/// Writes 32 codes: for 5 bits first the fifth bits, then the first half in low nibbles and the second in high ones.
fn nibbles(src: &[f32], dst: &mut [u8], bits: u32, code: impl Fn(f32) -> u8) {
    let mut codes = [0u8; 32];
    for (c, v) in codes.iter_mut().zip(src) {
        *c = code(*v);
    }
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

/// q4_k and q5_k: 8 sub-blocks of 32 with 6-bit scales and minima under two f16 factors.
fn k_ranged(src: &[f32], dst: &mut [u8], bits: u32) {
    let top = (1u8 << bits) - 1;
    let (start, steps) = if bits == 4 { (-1.0, 20) } else { (-0.5, 15) };
    let (mut scales, mut mins) = ([0f32; 8], [0f32; 8]);
    for (sub, values) in src.chunks_exact(32).enumerate() {
        let mean_square = values.iter().map(|v| v * v).sum::<f32>() / 32.0;
        let floor = mean_square.sqrt();
        let weights: [f32; 32] = std::array::from_fn(|i| floor + values[i].abs());
        (scales[sub], mins[sub]) = affine_fit(values, &weights, f32::from(top), start, steps);
    }
    let largest = |all: &[f32; 8]| all.iter().fold(0f32, |m, v| m.max(*v));
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let code = |v: f32, max: f32| (63.0 * inverse(max) * v).round_ties_even().min(63.0) as u8;
    dst[4..16].fill(0);
    for sub in 0..8 {
        put_scale_min(&mut dst[4..16], sub, code(scales[sub], max_scale), code(mins[sub], max_min));
    }
    let (d, dmin) = (put_half(dst, 0, max_scale / 63.0), put_half(dst, 2, max_min / 63.0));
    let mut codes = [0u8; 256];
    for (sub, (values, codes)) in src.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        let (sc, m) = scale_min(&dst[4..16], sub);
        let (scale, min) = (d * f32::from(sc), dmin * f32::from(m));
        if scale == 0.0 {
            continue;
        }
        for (v, c) in values.iter().zip(codes) {
            *c = ((v + min) / scale).round_ties_even().clamp(0.0, f32::from(top)) as u8;
        }
    }
    let low = if bits == 5 { 48 } else { 16 };
    for (i, d) in dst[low..].iter_mut().enumerate() {
        let at = i / 32 * 64 + i % 32;
        *d = (codes[at] & 15) | ((codes[at + 32] & 15) << 4);
    }
    if bits == 5 {
        for (i, d) in dst[16..48].iter_mut().enumerate() {
            *d = (0..8).fold(0, |all, sub| all | ((codes[sub * 32 + i] >> 4) << sub));
        }
    }
}

/// The scale and (negated) minimum of `q * scale - min`, `q` in `0..=top`, with least weighted squared error: trial
/// scales around the obvious one fix the codes, least squares then fixes scale and minimum for those codes.
fn affine_fit(x: &[f32], weights: &[f32; 32], top: f32, start: f32, steps: usize) -> (f32, f32) {
    let low = x.iter().fold(0f32, |m, v| m.min(*v));
    let high = x.iter().fold(f32::MIN, |m, v| m.max(*v));
    if high <= low {
        return (0.0, -low);
    }
    let (mut sum_w, mut sum_x) = (0f32, 0f32);
    for (w, v) in weights.iter().zip(x) {
        sum_w += w;
        sum_x += w * v;
    }
    let codes_at =
        |by: f32| -> [f32; 32] { std::array::from_fn(|i| (by * (x[i] - low)).round_ties_even().clamp(0.0, top)) };
    let error = |codes: &[f32; 32], scale: f32, min: f32| -> f32 {
        (0..32).map(|i| weights[i] * (scale * codes[i] + min - x[i]).powi(2)).sum()
    };
    let plain = (high - low) / top;
    let mut best = (error(&codes_at(1.0 / plain), plain, low), plain, low);
    for step in 0..=steps {
        let codes = codes_at((start + 0.1 * step as f32 + top) / (high - low));
        let (mut sum_q, mut sum_q2, mut sum_xq) = (0f32, 0f32, 0f32);
        for i in 0..32 {
            sum_q += weights[i] * codes[i];
            sum_q2 += weights[i] * codes[i] * codes[i];
            sum_xq += weights[i] * codes[i] * x[i];
        }
        let determinant = sum_w * sum_q2 - sum_q * sum_q;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
        let mut min = (sum_q2 * sum_x - sum_q * sum_xq) / determinant;
        if min > 0.0 {
            // The format only subtracts; the best without an offset is next.
            min = 0.0;
            scale = sum_xq / sum_q2;
        }
        let found = error(&codes, scale, min);
        if found < best.0 {
            best = (found, scale, min);
        }
    }
    (best.1, -best.2)
}

/// Packs a 6-bit scale and minimum; the reverse of [`scale_min`]. The bytes must start as zeros.
fn put_scale_min(packed: &mut [u8], sub: usize, scale: u8, min: u8) {
    if sub < 4 {
        packed[sub] |= scale;
        packed[sub + 4] |= min;
    } else {
        packed[sub + 4] = (scale & 15) | ((min & 15) << 4);
        packed[sub - 4] |= (scale >> 4) << 6;
        packed[sub] |= (min >> 4) << 6;
    }
}

/// q6_k: 16 sub-blocks of 16 with signed 8-bit scales under one f16 factor.
fn q6_k(src: &[f32], dst: &mut [u8]) {
    let mut scales = [0f32; 16];
    for (scale, values) in scales.iter_mut().zip(src.chunks_exact(16)) {
        *scale = symmetric_fit(values, 32.0);
    }
    dst.fill(0);
    let largest = extreme(&scales);
    if largest.abs() < 1e-15 {
        return;
    }
    let by = -128.0 / largest;
    let d = put_half(dst, 208, 1.0 / by);
    let mut codes = [0u8; 256];
    for (sub, (values, codes)) in src.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let factor = (by * scales[sub]).round_ties_even().min(127.0) as i8;
        dst[192 + sub] = factor as u8;
        let scale = d * f32::from(factor);
        for (v, c) in values.iter().zip(codes) {
            let q = if scale == 0.0 { 0.0 } else { (v / scale).round_ties_even().clamp(-32.0, 31.0) };
            *c = (q as i8 + 32) as u8;
        }
    }
    for (part, codes) in codes.chunks_exact(128).enumerate() {
        for i in 0..32 {
            let [a, b, c, e] = [codes[i], codes[i + 32], codes[i + 64], codes[i + 96]];
            dst[part * 64 + i] = (a & 15) | ((c & 15) << 4);
            dst[part * 64 + 32 + i] = (b & 15) | ((e & 15) << 4);
            dst[128 + part * 32 + i] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6);
        }
    }
}

/// The scale of `q * scale`, `q` in `-range..range`, with least squared error weighted by the squared values.
fn symmetric_fit(x: &[f32], range: f32) -> f32 {
    let peak = extreme(x);
    if peak.abs() < 1e-15 {
        return 0.0;
    }
    let trial = |by: f32| {
        let (mut product, mut square) = (0f32, 0f32);
        for v in x {
            let q = (by * v).round_ties_even().clamp(-range, range - 1.0);
            let weight = v * v;
            product += weight * v * q;
            square += weight * q * q;
        }
        (product, square)
    };
    let (product, square) = trial(-range / peak);
    let mut scale = if square > 0.0 { product / square } else { 0.0 };
    let mut gain = scale * product;
    for step in (-9..=9).filter(|s| *s != 0) {
        let (product, square) = trial(-(range + 0.1 * step as f32) / peak);
        if square > 0.0 && product * product > gain * square {
            scale = product / square;
            gain = scale * product;
        }
    }
    scale
}
