//! Encoding of ggml's k-quants: super-blocks of 256 values with two levels of scales.
//!
//! The bytes are llama.cpp's, with and without importance. Layouts: `kquants`.

use crate::blocks::{TensorType, half_at};
use crate::encode::put_half;
use crate::fits::{
    Affine, LANES, Lanes, Symmetric, Trials, descended, extreme, nearest, pairwise, positive, side_by_side, sums,
    within,
};
use crate::kquants::{scale_min, three_bit_scale};

/// Encodes one row of whole super-blocks.
pub(crate) fn encode(kind: TensorType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let mut importance = importance.map(|all| all.chunks_exact(256));
    for (src, dst) in src.chunks_exact(256).zip(dst.chunks_exact_mut(kind.block().1)) {
        let own = importance.as_mut().and_then(Iterator::next);
        match kind {
            TensorType::Q2K => two(src, own, dst),
            TensorType::Q3K => three(src, own, dst),
            TensorType::Q4K => ranged(src, own, dst, 4),
            TensorType::Q5K => ranged(src, own, dst, 5),
            _ => six(src, own, dst),
        }
    }
}

/// Eight sub-blocks of `N` values from number `first` on, side by side.
fn sub_blocks<const N: usize>(all: &[f32], first: usize) -> [Lanes; N] {
    let mut out = [[0f32; LANES]; N];
    side_by_side(&all[first * N..(first + LANES) * N], &mut out);
    out
}

/// A value's weight: its importance, more for values that are large beside `floor`, a mean square.
fn weighted<const N: usize>(x: &[Lanes; N], importance: &[f32], first: usize, floor: f32) -> [Lanes; N] {
    pairwise(x, &sub_blocks(importance, first), |x, importance| importance * (floor + x * x).sqrt())
}

fn square_sum(src: &[f32]) -> f32 {
    src.iter().fold(0f32, |sum, v| sum + v * v)
}

fn largest(all: &[f32]) -> f32 {
    all.iter().fold(0f32, |most, v| if *v > most { *v } else { most })
}

/// Codes of scales and minima as shares of the largest, and the two factors.
fn shares<const N: usize>(scales: &[f32; N], mins: &[f32; N], top: f32) -> ([u8; N], [u8; N], f32, f32) {
    let code = |all: &[f32; N]| {
        let most = largest(all);
        let by = if most > 0.0 { top / most } else { 0.0 };
        (all.map(|v| within(nearest(by * v), 0.0, top) as u8), most / top)
    };
    let ((scales, d), (mins, dmin)) = (code(scales), code(mins));
    (scales, mins, d, dmin)
}

/// 16 sub-blocks with 4-bit scale and minimum.
fn two(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let (mut scales, mut mins, mut weight_sums) = ([0f32; 16], [0f32; 16], [0f32; 16]);
    let mut codes = [0u8; 256];
    let floor = square_sum(src) / 256.0;
    for first in [0, 8] {
        let x = sub_blocks::<16>(src, first);
        let (weights, from, step, steps) = match importance {
            Some(importance) => (weighted(&x, importance, first, floor), -0.9, 0.05, 36),
            None => (x.map(|x| x.map(f32::abs)), -0.5, 0.1, 15),
        };
        let fit = Affine::fit(&x, &weights, Trials { top: 3.0, from, step, steps, absolute: importance.is_none() });
        scales[first..first + LANES].copy_from_slice(&fit.scale);
        mins[first..first + LANES].copy_from_slice(&fit.min);
        weight_sums[first..first + LANES].copy_from_slice(&sums(&weights));
        let own = &src[first * 16..(first + LANES) * 16];
        codes[first * 16..].iter_mut().zip(own).enumerate().for_each(|(i, (c, v))| *c = fit.code(i / 16, *v));
    }
    let (scale_codes, min_codes, d, dmin) = match importance {
        Some(_) => fitted_shares(&scales, &mins, &weight_sums, 15.0),
        None => shares(&scales, &mins, 15.0),
    };
    let (d, dmin) = (put_half(dst, 80, d), put_half(dst, 82, dmin));
    for sub in 0..16 {
        dst[sub] = scale_codes[sub] | (min_codes[sub] << 4);
        let (scale, min) = (d * f32::from(scale_codes[sub]), dmin * f32::from(min_codes[sub]));
        recode(&src[sub * 16..][..16], &mut codes[sub * 16..][..16], |v| (v + min) / scale, (0.0, 3.0), scale);
    }
    pack_pairs(&codes, &mut dst[16..80]);
}

/// Codes of scales and minima with least error, and the two factors.
fn fitted_shares<const N: usize>(
    scales: &[f32; N],
    mins: &[f32; N],
    weights: &[f32; N],
    top: f32,
) -> ([u8; N], [u8; N], f32, f32) {
    let (mut scale_codes, mut min_codes) = ([0u8; N], [0u8; N]);
    let d = positive(scales, weights, top, &mut scale_codes);
    let dmin = positive(mins, weights, top, &mut min_codes);
    (scale_codes, min_codes, d, dmin)
}

/// Codes again for the scale as it is stored; where that is zero they stay.
fn recode(src: &[f32], codes: &mut [u8], place: impl Fn(f32) -> f32, (low, high): (f32, f32), scale: f32) {
    if scale == 0.0 {
        return;
    }
    for (v, code) in src.iter().zip(codes) {
        *code = (within(nearest(place(*v)), low, high) - low) as u8;
    }
}

/// 2-bit codes: 128 values share 32 bytes.
fn pack_pairs(codes: &[u8; 256], dst: &mut [u8]) {
    for (codes, dst) in codes.chunks_exact(128).zip(dst.chunks_exact_mut(32)) {
        for (i, d) in dst.iter_mut().enumerate() {
            *d = (codes[i] & 3) | ((codes[i + 32] & 3) << 2) | ((codes[i + 64] & 3) << 4) | ((codes[i + 96] & 3) << 6);
        }
    }
}

/// 16 sub-blocks with signed 6-bit scales.
fn three(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let mut codes = [0u8; 256];
    let factors = match importance {
        Some(importance) => three_weighted(src, importance, &mut codes, dst),
        None => three_plain(src, &mut codes, dst),
    };
    dst[96..108].fill(0);
    for (sub, factor) in factors.into_iter().enumerate() {
        dst[96 + sub % 8] |= (factor & 15) << (4 * (sub / 8));
        dst[104 + sub % 4] |= (factor >> 4) << (2 * (sub / 4));
    }
    let d = half_at(dst, 108);
    for sub in 0..16 {
        let scale = d * f32::from(three_bit_scale(&dst[96..108], sub));
        recode(&src[sub * 16..][..16], &mut codes[sub * 16..][..16], |v| v / scale, (-4.0, 3.0), scale);
    }
    for (i, d) in dst[..32].iter_mut().enumerate() {
        *d = (0..8).fold(0, |all, bit| all | ((codes[bit * 32 + i] >> 2) << bit));
    }
    pack_pairs(&codes, &mut dst[32..96]);
}

/// Codes of values and scales, weighted by squared values; writes the factor.
fn three_plain(src: &[f32], codes: &mut [u8; 256], dst: &mut [u8]) -> [u8; 16] {
    let mut scales = [0f32; 16];
    for first in [0, 8] {
        let (scale, found) = descended(&sub_blocks(src, first), 4.0);
        scales[first..first + LANES].copy_from_slice(&scale);
        for (i, code) in codes[first * 16..(first + LANES) * 16].iter_mut().enumerate() {
            *code = found[i % 16][i / 16] as u8;
        }
    }
    let most = extreme(&scales);
    if most == 0.0 {
        put_half(dst, 108, 0.0);
        return [0; 16];
    }
    let by = -32.0 / most;
    put_half(dst, 108, 1.0 / by);
    scales.map(|scale| (within(nearest(by * scale), -32.0, 31.0) + 32.0) as u8)
}

/// The same, weighted by importance.
fn three_weighted(src: &[f32], importance: &[f32], codes: &mut [u8; 256], dst: &mut [u8]) -> [u8; 16] {
    let (mut scales, mut weight_sums) = ([[0f32; LANES]; 16], [[0f32; LANES]; 16]);
    let floor = 2.0 * square_sum(src) / 256.0;
    for first in [0, 8] {
        let x = sub_blocks::<16>(src, first);
        let weights = weighted(&x, importance, first, floor);
        let fit = Symmetric::fit(&x, &weights, 4.0);
        for (lane, sum) in sums(&weights).into_iter().enumerate() {
            (scales[first + lane][0], weight_sums[first + lane][0]) = (fit.scale[lane], sum);
        }
        let own = &src[first * 16..(first + LANES) * 16];
        codes[first * 16..].iter_mut().zip(own).enumerate().for_each(|(i, (c, v))| *c = fit.code(i / 16, *v));
    }
    let fit = Symmetric::fit(&scales, &weight_sums, 32.0);
    put_half(dst, 108, fit.scale[0]);
    scales.map(|scale| fit.code(0, scale[0]))
}

/// q4_k and q5_k: 8 sub-blocks of 32 with 6-bit scales and minima under two f16 factors.
fn ranged(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8], bits: u32) {
    let top = f32::from((1u8 << bits) - 1);
    let x = sub_blocks::<32>(src, 0);
    let (weights, from, step, steps) = match importance {
        Some(importance) => (weighted(&x, importance, 0, 2.0 * square_sum(src) / 256.0), -0.9, 0.05, 36),
        None => {
            let floor = sums(&x.map(|x| x.map(|v| v * v))).map(|sum| (sum / 32.0).sqrt());
            let weights = x.map(|x| std::array::from_fn(|l| floor[l] + x[l].abs()));
            if bits == 4 { (weights, -1.0, 0.1, 20) } else { (weights, -0.5, 0.1, 15) }
        }
    };
    let fit = Affine::fit(&x, &weights, Trials { top, from, step, steps, absolute: false });
    let (scales, mins, d, dmin) = match importance {
        Some(_) => fitted_shares(&fit.scale, &fit.min, &sums(&weights), 63.0),
        None => shares(&fit.scale, &fit.min, 63.0),
    };
    dst[4..16].fill(0);
    for sub in 0..8 {
        put_scale_min(&mut dst[4..16], sub, scales[sub], mins[sub]);
    }
    let (d, dmin) = (put_half(dst, 0, d), put_half(dst, 2, dmin));
    let mut codes = [0u8; 256];
    for (sub, (values, codes)) in src.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        codes.iter_mut().zip(values).for_each(|(code, v)| *code = fit.code(sub, *v));
        let (sc, m) = scale_min(&dst[4..16], sub);
        let (scale, min) = (d * f32::from(sc), dmin * f32::from(m));
        recode(values, codes, |v| (v + min) / scale, (0.0, top), scale);
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

/// 16 sub-blocks of 16 with signed 8-bit scales under one f16 factor; weighted by squared values or by importance.
fn six(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let mut scales = [0f32; 16];
    let mut codes = [0u8; 256];
    for first in [0, 8] {
        let x = sub_blocks::<16>(src, first);
        let weights = importance.map_or_else(|| x.map(|x| x.map(|v| v * v)), |own| sub_blocks(own, first));
        let fit = Symmetric::fit(&x, &weights, 32.0);
        scales[first..first + LANES].copy_from_slice(&fit.scale);
        let own = &src[first * 16..(first + LANES) * 16];
        codes[first * 16..].iter_mut().zip(own).enumerate().for_each(|(i, (c, v))| *c = fit.code(i / 16, *v));
    }
    dst.fill(0);
    let most = extreme(&scales);
    if most.abs() < 1e-15 {
        return;
    }
    let by = -128.0 / most;
    let d = put_half(dst, 208, 1.0 / by);
    for (sub, (values, codes)) in src.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let factor = within(nearest(by * scales[sub]), -128.0, 127.0) as i8;
        dst[192 + sub] = factor as u8;
        let scale = d * f32::from(factor);
        recode(values, codes, |v| v / scale, (-32.0, 31.0), scale);
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
