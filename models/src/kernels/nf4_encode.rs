//! f32 weights to 4-bit codes: a code is how many of the fifteen bounds lie below, counted for a whole block at once.

use super::Instructions;
use crate::nf4::{BLOCK, Format};

/// Bounds between neighbouring values in ascending order, and the code of each value.
struct Order {
    bounds: [f32; 15],
    codes: [u8; 16],
    /// A value's code is its place.
    is_identity: bool,
}

impl Order {
    fn of(format: Format) -> Self {
        let codes = match format {
            Format::Nf4 => std::array::from_fn(|i| i as u8),
            Format::Fp4 => [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
        };
        let value = |place: usize| format.codebook()[usize::from(codes[place])];
        Self {
            bounds: std::array::from_fn(|i| (value(i) + value(i + 1)) / 2.0),
            codes,
            is_identity: format == Format::Nf4,
        }
    }

    fn code(&self, value: f32) -> u8 {
        self.codes[self.bounds.iter().filter(|&&bound| bound < value).count()]
    }
}

/// Quantises whole blocks, and a shorter one at the end: two codes to a byte of `packed`, a scale to a block of `scales`.
pub fn encode(instructions: Instructions, format: Format, weights: &[f32], packed: &mut [u8], scales: &mut [f32]) {
    let order = Order::of(format);
    let (blocks, rest) = weights.as_chunks::<BLOCK>();
    let (bytes, last) = packed.split_at_mut(blocks.len() * BLOCK / 2);
    let (bytes, _) = bytes.as_chunks_mut::<{ BLOCK / 2 }>();
    match instructions {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Instructions::all` offers these only where the processor has them.
        Instructions::Avx512 => unsafe { blocks_avx512(&order, blocks, bytes, scales) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Instructions::Avx2 => unsafe { blocks_avx2(&order, blocks, bytes, scales) },
        _ => blocks_plain(&order, blocks, bytes, scales),
    }
    if let (false, Some(scale)) = (rest.is_empty(), scales.get_mut(blocks.len())) {
        *scale = encode_short(&order, rest, last);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
unsafe fn blocks_avx512(order: &Order, weights: &[[f32; BLOCK]], packed: &mut [[u8; BLOCK / 2]], scales: &mut [f32]) {
    blocks_plain(order, weights, packed, scales);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn blocks_avx2(order: &Order, weights: &[[f32; BLOCK]], packed: &mut [[u8; BLOCK / 2]], scales: &mut [f32]) {
    blocks_plain(order, weights, packed, scales);
}

/// Compiled into each of its callers, with their instructions; all arithmetic is the same.
#[inline(always)]
fn blocks_plain(order: &Order, weights: &[[f32; BLOCK]], packed: &mut [[u8; BLOCK / 2]], scales: &mut [f32]) {
    for ((block, bytes), scale) in weights.iter().zip(packed).zip(scales) {
        *scale = largest(block);
        // A whole block is multiplied by the reciprocal, as in bitsandbytes, to the bit.
        let share = 1.0 / scale.max(1e-38);
        let scaled: [f32; BLOCK] = std::array::from_fn(|i| block[i] * share);
        let mut below = [0u32; BLOCK];
        for bound in order.bounds {
            for (below, value) in below.iter_mut().zip(&scaled) {
                *below += u32::from(bound < *value);
            }
        }
        if !order.is_identity {
            below = below.map(|count| u32::from(order.codes[count as usize & 15]));
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(below.as_chunks::<2>().0) {
            *byte = (high << 4 | low) as u8;
        }
    }
}

/// The largest magnitude; what is no number does not count.
#[inline(always)]
fn largest(block: &[f32; BLOCK]) -> f32 {
    const WIDTH: usize = 16;
    let mut lanes = [0f32; WIDTH];
    for some in block.as_chunks::<WIDTH>().0 {
        for (lane, value) in lanes.iter_mut().zip(some) {
            *lane = if value.abs() > *lane { value.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// A block that is not whole, divided by its scale; a second weight that a byte lacks counts as zero.
fn encode_short(order: &Order, block: &[f32], packed: &mut [u8]) -> f32 {
    let least = block.iter().fold(0.0f32, |most, value| most.max(value.abs())).max(1e-38);
    for (byte, pair) in packed.iter_mut().zip(block.chunks(2)) {
        let low = pair.get(1).map_or_else(|| order.code(0.0), |value| order.code(value / least));
        *byte = order.code(pair[0] / least) << 4 | low;
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    #[test]
    fn every_instruction_set_gives_the_code_of_the_nearest_value() {
        let mut weights: Vec<f32> = (0..64 * 40 + 33).map(|i| random::unit(3, i) as f32 - 0.5).collect();
        let odd = [0.0, -0.0, f32::NAN, f32::INFINITY, 1e-42, f32::MAX, f32::MIN_POSITIVE];
        weights[64..64 + odd.len()].copy_from_slice(&odd);
        weights[128..192].fill(0.0);
        for format in [Format::Nf4, Format::Fp4] {
            let order = Order::of(format);
            let by = |instructions| {
                let (mut packed, mut scales) = (vec![0u8; weights.len().div_ceil(2)], vec![0f32; 41]);
                encode(instructions, format, &weights, &mut packed, &mut scales);
                (packed, scales.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>())
            };
            let expected = by(Instructions::Scalar);
            for (i, &value) in weights.iter().enumerate().take(64 * 40).filter(|(_, value)| value.is_finite()) {
                let scale = f32::from_bits(expected.1[i / 64]).max(1e-38);
                let code = expected.0[i / 2] >> (4 * (1 - i % 2)) & 15;
                assert_eq!(code, order.code(value * (1.0 / scale)), "{format:?}, weight {i}: {value}");
            }
            for instructions in Instructions::all() {
                assert_eq!(by(instructions), expected, "{format:?} by {instructions:?}");
            }
        }
    }
}
