//! 4-bit codes to bf16: the sixteen values are scaled and rounded once per block, so each weight is one table look-up.

use half::bf16;

use super::Instructions;
use crate::nf4::{BLOCK, SCALE_BLOCK, dynamic_map};

/// 4-bit weights as plain slices.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    pub bytes: &'a [u8],
    pub scale_codes: Option<&'a [u8]>,
    pub absmax: &'a [f32],
    pub offset: f32,
    /// Weights in all.
    pub count: usize,
    /// The sixteen values.
    pub codebook: &'static [f32; 16],
}

impl Packed<'_> {
    /// The scale of a block, as bitsandbytes computes it: a product, then a sum, each rounded.
    #[inline]
    fn scale(&self, block: usize) -> f32 {
        match self.scale_codes {
            Some(codes) => dynamic_map()[codes[block] as usize] * self.absmax[block / SCALE_BLOCK] + self.offset,
            None => self.absmax[block],
        }
    }
}

/// Writes the weights from block `first` on as bf16 bits until `out` is full.
pub fn decode(instructions: Instructions, weights: &Packed<'_>, first: usize, out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if instructions == Instructions::Avx512 {
        let (whole, rest) = out.as_chunks_mut::<BLOCK>();
        let after = first + whole.len();
        // SAFETY: `Instructions::all` offers this only where the processor has the instructions.
        unsafe { blocks_avx512(weights, first, whole) };
        return decode_each(Instructions::Scalar, weights, after, rest);
    }
    decode_each(instructions, weights, first, out);
}

fn decode_each(instructions: Instructions, weights: &Packed<'_>, first: usize, out: &mut [u16]) {
    for (place, block) in out.chunks_mut(BLOCK).zip(first..) {
        let table = scaled_table(weights.codebook, weights.scale(block));
        let bytes = &weights.bytes[block * BLOCK / 2..][..place.len().div_ceil(2)];
        match (instructions, <&mut [u16; BLOCK]>::try_from(&mut *place), <&[u8; BLOCK / 2]>::try_from(bytes)) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Instructions::all` offers this only where the processor has the instructions.
            (Instructions::Avx2, Ok(place), Ok(bytes)) => unsafe { block_avx2(&table, bytes, place) },
            _ => block_scalar(&table, bytes, place),
        }
    }
}

/// Writes the weights from block `first` on as f32 until `out` is full.
pub fn decode_f32(instructions: Instructions, weights: &Packed<'_>, first: usize, out: &mut [f32]) {
    for (place, block) in out.chunks_mut(BLOCK).zip(first..) {
        let scale = weights.scale(block);
        let table: [f32; 16] = std::array::from_fn(|i| weights.codebook[i] * scale);
        let bytes = &weights.bytes[block * BLOCK / 2..][..place.len().div_ceil(2)];
        match (instructions, <&mut [f32; BLOCK]>::try_from(&mut *place), <&[u8; BLOCK / 2]>::try_from(bytes)) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Instructions::all` offers these only where the processor has the instructions; one with AVX-512 has AVX2.
            (Instructions::Avx512 | Instructions::Avx2, Ok(place), Ok(bytes)) => unsafe {
                wide_avx2(&table, bytes, place)
            },
            _ => wide_scalar(&table, bytes, place),
        }
    }
}

fn wide_scalar(table: &[f32; 16], bytes: &[u8], out: &mut [f32]) {
    for (pair, byte) in out.chunks_mut(2).zip(bytes) {
        pair[0] = table[usize::from(byte >> 4)];
        if let Some(second) = pair.get_mut(1) {
            *second = table[usize::from(byte & 15)];
        }
    }
}

fn scaled_table(codebook: &[f32; 16], scale: f32) -> [u16; 16] {
    std::array::from_fn(|i| bf16::from_f32(codebook[i] * scale).to_bits())
}

fn block_scalar(table: &[u16; 16], bytes: &[u8], out: &mut [u16]) {
    for (pair, byte) in out.chunks_mut(2).zip(bytes) {
        pair[0] = table[usize::from(byte >> 4)];
        if let Some(second) = pair.get_mut(1) {
            *second = table[usize::from(byte & 15)];
        }
    }
}

/// All of it in one function, so that nothing of a block but its bytes and its scale comes from memory.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
unsafe fn blocks_avx512(weights: &Packed<'_>, first: usize, out: &mut [[u16; BLOCK]]) {
    use std::arch::x86_64::*;
    let (bytes, _) = weights.bytes.as_chunks::<{ BLOCK / 2 }>();
    // SAFETY: each load and store stays within the array that it names.
    unsafe {
        let codebook = _mm512_loadu_ps(weights.codebook.as_ptr());
        for ((place, bytes), block) in out.iter_mut().zip(&bytes[first..]).zip(first..) {
            let scale = weights.scale(block);
            let table = if scale.is_finite() {
                // Rounded to the nearest, ties to even, as every finite bf16 is.
                let bits = _mm512_castps_si512(_mm512_mul_ps(codebook, _mm512_set1_ps(scale)));
                let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
                let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, half), 16))
            } else {
                _mm256_loadu_si256(scaled_table(weights.codebook, scale).as_ptr().cast())
            };
            // Both halves hold the table, so bit 4 of an index (left over from the byte's other weight) does not matter.
            let table = _mm512_broadcast_i64x4(table);
            for half in 0..2 {
                let packed = _mm_loadu_si128(bytes.as_ptr().add(16 * half).cast());
                // One byte per 32-bit lane pair: word 0 gets the high nibble, word 1 the low one.
                let wide = _mm512_cvtepu8_epi32(packed);
                let words = _mm512_or_si512(_mm512_srli_epi32(wide, 4), _mm512_slli_epi32(wide, 16));
                let values = _mm512_permutexvar_epi16(words, table);
                _mm512_storeu_si512(place.as_mut_ptr().add(32 * half).cast(), values);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn block_avx2(table: &[u16; 16], bytes: &[u8; BLOCK / 2], out: &mut [u16; BLOCK]) {
    use std::arch::x86_64::*;
    let low: [u8; 16] = std::array::from_fn(|i| table[i] as u8);
    let high: [u8; 16] = std::array::from_fn(|i| (table[i] >> 8) as u8);
    // SAFETY: each load and store stays within the arrays named in the signature.
    unsafe {
        let low = _mm_loadu_si128(low.as_ptr().cast());
        let high = _mm_loadu_si128(high.as_ptr().cast());
        let mask = _mm_set1_epi8(15);
        for half in 0..2 {
            let packed = _mm_loadu_si128(bytes.as_ptr().add(16 * half).cast());
            let first = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
            let second = _mm_and_si128(packed, mask);
            for (quarter, codes) in
                [_mm_unpacklo_epi8(first, second), _mm_unpackhi_epi8(first, second)].iter().enumerate()
            {
                let (lows, highs) = (_mm_shuffle_epi8(low, *codes), _mm_shuffle_epi8(high, *codes));
                let place = out.as_mut_ptr().add(32 * half + 16 * quarter);
                _mm_storeu_si128(place.cast(), _mm_unpacklo_epi8(lows, highs));
                _mm_storeu_si128(place.add(8).cast(), _mm_unpackhi_epi8(lows, highs));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn wide_avx2(table: &[f32; 16], bytes: &[u8; BLOCK / 2], out: &mut [f32; BLOCK]) {
    use std::arch::x86_64::*;
    // SAFETY: each load and store stays within the arrays named in the signature.
    unsafe {
        let low = _mm256_loadu_ps(table.as_ptr());
        let high = _mm256_loadu_ps(table.as_ptr().add(8));
        for eight in 0..BLOCK / 8 {
            let packed = _mm_cvtsi32_si128(bytes.as_ptr().add(4 * eight).cast::<i32>().read_unaligned());
            let mask = _mm_set1_epi8(15);
            let (first, second) = (_mm_and_si128(_mm_srli_epi16(packed, 4), mask), _mm_and_si128(packed, mask));
            let codes = _mm256_cvtepu8_epi32(_mm_unpacklo_epi8(first, second));
            // A look-up heeds three bits of a code; the fourth chooses the half of the table.
            let half = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
            let (lows, highs) = (_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes));
            _mm256_storeu_ps(out.as_mut_ptr().add(8 * eight), _mm256_blendv_ps(lows, highs, half));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nf4::{CODEBOOK, FP4_CODEBOOK};
    use crate::random;

    #[test]
    fn every_instruction_set_equals_the_scalar_twin() {
        let count = 64 * 300 + 33;
        let bytes: Vec<u8> = (0..count as u64 / 2 + 1).map(|i| random::scatter(i) as u8).collect();
        let codes: Vec<u8> = (0..301u64).map(|i| random::scatter(i + 9_999) as u8).collect();
        let double = Packed {
            bytes: &bytes,
            scale_codes: Some(&codes),
            absmax: &[0.07, 1.3],
            offset: 0.11,
            count,
            codebook: &CODEBOOK,
        };
        all_equal(&double);
        let extreme = [1e-42, f32::INFINITY, 0.0, f32::MAX, f32::NAN, -3.0];
        let scales: Vec<f32> = (0..301).map(|i| extreme[i % extreme.len()]).collect();
        all_equal(&Packed { scale_codes: None, absmax: &scales, codebook: &FP4_CODEBOOK, ..double });
    }

    fn all_equal(weights: &Packed<'_>) {
        for first in [0, 5, 299] {
            let mut expected = vec![0; weights.count - first * BLOCK];
            decode(Instructions::Scalar, weights, first, &mut expected);
            for instructions in Instructions::all() {
                let mut found = vec![0; expected.len()];
                decode(instructions, weights, first, &mut found);
                assert_eq!(found, expected, "{instructions:?} from block {first}");
            }
            let bits = |instructions| {
                let mut found = vec![0f32; expected.len()];
                decode_f32(instructions, weights, first, &mut found);
                found.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let scalar = bits(Instructions::Scalar);
            for instructions in Instructions::all() {
                assert_eq!(bits(instructions), scalar, "{instructions:?} from block {first}");
            }
        }
    }
}
