//! Decoding of ggml's k-quants: super-blocks of 256 values with two levels of scales.
//!
//! Same rule as `blocks`: the order of operations is the `gguf` Python package's, bit for bit.

use crate::blocks::half_at;

/// 2 bits: 16 sub-blocks with 4-bit scale and minimum. Bytes: 16 scales, 64 values, d, dmin.
pub(crate) fn q2(s: &[u8], out: &mut [f32]) {
    let (scales, values) = (&s[..16], &s[16..80]);
    let (d, dmin) = (half_at(s, 80), half_at(s, 82));
    for (sub, chunk) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[sub] & 15);
        let min = dmin * f32::from(scales[sub] >> 4);
        let (from, shift) = two_bit_place(sub);
        for (v, q) in chunk.iter_mut().zip(&values[from..from + 16]) {
            *v = scale * f32::from((q >> shift) & 3) - min;
        }
    }
}

/// 3 bits: 16 sub-blocks with 6-bit scales. Bytes: 32 high bits, 64 low bits, 12 scales, d.
pub(crate) fn q3(s: &[u8], out: &mut [f32]) {
    let (high, low, packed) = (&s[..32], &s[32..96], &s[96..108]);
    let d = half_at(s, 108);
    for (sub, chunk) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(three_bit_scale(packed, sub));
        let (from, shift) = two_bit_place(sub);
        let bit = sub / 2;
        let high = &high[(sub % 2) * 16..][..16];
        for ((v, q), h) in chunk.iter_mut().zip(&low[from..from + 16]).zip(high) {
            // The high bit is stored inverted: unset means minus four.
            let minus = ((h >> bit) & 1) ^ 1;
            *v = scale * f32::from(((q >> shift) & 3) as i8 - (minus << 2) as i8);
        }
    }
}

/// The signed 6-bit scale of sub-block `sub` (0 to 15) from their 12 packed bytes.
pub(crate) fn three_bit_scale(packed: &[u8], sub: usize) -> i8 {
    let low = (packed[sub % 8] >> (4 * (sub / 8))) & 15;
    let high = (packed[8 + sub % 4] >> (2 * (sub / 4))) & 3;
    (low | (high << 4)) as i8 - 32
}

/// 4 bits: 8 sub-blocks with 6-bit scale and minimum. Bytes: d, dmin, 12 scales, 128 values.
pub(crate) fn q4(s: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(s, 0), half_at(s, 2));
    let values = &s[16..144];
    for (sub, chunk) in out.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min(&s[4..16], sub);
        let (scale, min) = (d * f32::from(sc), dmin * f32::from(m));
        let shift = 4 * (sub % 2);
        for (v, q) in chunk.iter_mut().zip(&values[sub / 2 * 32..]) {
            *v = scale * f32::from((q >> shift) & 15) - min;
        }
    }
}

/// 5 bits: as 4 bits plus one high bit each. Bytes: d, dmin, 12 scales, 32 high bits, 128 values.
pub(crate) fn q5(s: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half_at(s, 0), half_at(s, 2));
    let (high, values) = (&s[16..48], &s[48..176]);
    for (sub, chunk) in out.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_min(&s[4..16], sub);
        let (scale, min) = (d * f32::from(sc), dmin * f32::from(m));
        let shift = 4 * (sub % 2);
        for ((v, q), h) in chunk.iter_mut().zip(&values[sub / 2 * 32..]).zip(high) {
            *v = scale * f32::from(((q >> shift) & 15) | (((h >> sub) & 1) << 4)) - min;
        }
    }
}

/// 6 bits: 16 sub-blocks with signed 8-bit scales. Bytes: 128 low nibbles, 64 high pairs, 16 scales, d.
pub(crate) fn q6(s: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&s[..128], &s[128..192], &s[192..208]);
    let d = half_at(s, 208);
    for (sub, chunk) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[sub] as i8);
        // Values come in halves of 128: two runs of 32 bytes' low nibbles, then the same bytes' high nibbles.
        let (part, at) = (sub / 8, sub % 8 * 16);
        let low = &low[part * 64 + at % 64..][..16];
        let high = &high[part * 32 + at % 32..][..16];
        let (low_shift, high_shift) = (at / 64 * 4, at / 32 * 2);
        for ((v, l), h) in chunk.iter_mut().zip(low).zip(high) {
            let q = ((l >> low_shift) & 15) | (((h >> high_shift) & 3) << 4);
            *v = scale * f32::from(q as i8 - 32);
        }
    }
}

/// First byte and shift of 2-bit sub-block `sub`: 128 values share 32 bytes, 32 per bit pair.
fn two_bit_place(sub: usize) -> (usize, usize) {
    (sub / 8 * 32 + sub % 2 * 16, sub % 8 / 2 * 2)
}

/// The 6-bit scale and minimum of sub-block `sub` (0 to 7) from their 12 packed bytes.
pub(crate) fn scale_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let both = packed[sub + 4];
        ((both & 15) | ((packed[sub - 4] >> 2) & 48), (both >> 4) | ((packed[sub] >> 2) & 48))
    }
}
