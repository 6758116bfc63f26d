//! Element types of stored tensors, and decoding of the plain and 32-value block types to f32.
//!
//! Decoding multiplies and adds in the order of the `gguf` Python package, so values agree bit for bit; nothing here may
//! be rewritten with fused multiply-add. Block layouts: ggml's `ggml-common.h`.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::kquants;

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
}

impl TensorType {
    /// The GGUF type code.
    pub fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Iq4Nl => 20,
            Self::Bf16 => 30,
        }
    }

    pub fn from_code(code: u32) -> Option<Self> {
        const ALL: [TensorType; 14] = [
            TensorType::F32,
            TensorType::F16,
            TensorType::Bf16,
            TensorType::Q4_0,
            TensorType::Q4_1,
            TensorType::Q5_0,
            TensorType::Q5_1,
            TensorType::Q8_0,
            TensorType::Q2K,
            TensorType::Q3K,
            TensorType::Q4K,
            TensorType::Q5K,
            TensorType::Q6K,
            TensorType::Iq4Nl,
        ];
        ALL.into_iter().find(|t| t.code() == code)
    }

    /// Elements and bytes of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Bytes of `elements` values; `elements` must be whole blocks.
    pub fn bytes(self, elements: usize) -> usize {
        let (n, size) = self.block();
        elements / n * size
    }

    /// Decodes whole blocks: `src.len() == self.bytes(dst.len())`.
    pub fn decode(self, src: &[u8], dst: &mut [f32]) {
        let (n, size) = self.block();
        let pairs = src.chunks_exact(size).zip(dst.chunks_exact_mut(n));
        match self {
            Self::F32 => src.as_chunks::<4>().0.iter().zip(dst).for_each(|(s, d)| *d = f32::from_le_bytes(*s)),
            Self::F16 => halves(src, dst),
            Self::Bf16 => src.as_chunks::<2>().0.iter().zip(dst).for_each(|(s, d)| *d = bf16_at(*s)),
            Self::Q4_0 => pairs.for_each(|(s, d)| q4_0(s, d)),
            Self::Q4_1 => pairs.for_each(|(s, d)| q4_1(s, d)),
            Self::Q5_0 => pairs.for_each(|(s, d)| q5_0(s, d)),
            Self::Q5_1 => pairs.for_each(|(s, d)| q5_1(s, d)),
            Self::Q8_0 => pairs.for_each(|(s, d)| q8_0(s, d)),
            Self::Iq4Nl => pairs.for_each(|(s, d)| iq4_nl(s, d)),
            Self::Q2K => pairs.for_each(|(s, d)| kquants::q2(s, d)),
            Self::Q3K => pairs.for_each(|(s, d)| kquants::q3(s, d)),
            Self::Q4K => pairs.for_each(|(s, d)| kquants::q4(s, d)),
            Self::Q5K => pairs.for_each(|(s, d)| kquants::q5(s, d)),
            Self::Q6K => pairs.for_each(|(s, d)| kquants::q6(s, d)),
        }
    }
}

/// A bf16 is the upper half of an f32.
fn bf16_at(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// f16 to f32, some at a time, with the processor's instruction for it.
fn halves(src: &[u8], dst: &mut [f32]) {
    const SOME: usize = 256;
    for (src, dst) in src.chunks(2 * SOME).zip(dst.chunks_mut(SOME)) {
        let mut some = [f16::ZERO; SOME];
        let some = &mut some[..dst.len()];
        some.iter_mut().zip(src.as_chunks::<2>().0).for_each(|(half, bytes)| *half = f16::from_le_bytes(*bytes));
        some.convert_to_f32_slice(dst);
    }
}

/// The f16 at byte `at`.
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The 16 values of the non-linear 4-bit code, from ggml.
pub const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn q4_0(s: &[u8], d: &mut [f32]) {
    let scale = half_at(s, 0);
    let (low, high) = d.split_at_mut(16);
    for ((q, l), h) in s[2..].iter().zip(low).zip(high) {
        *l = scale * f32::from((q & 15) as i8 - 8);
        *h = scale * f32::from((q >> 4) as i8 - 8);
    }
}

fn q4_1(s: &[u8], d: &mut [f32]) {
    let (scale, min) = (half_at(s, 0), half_at(s, 2));
    let (low, high) = d.split_at_mut(16);
    for ((q, l), h) in s[4..].iter().zip(low).zip(high) {
        *l = scale * f32::from(q & 15) + min;
        *h = scale * f32::from(q >> 4) + min;
    }
}

/// The fifth bits of a block's 32 values.
fn fifth_bits(s: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([s[at], s[at + 1], s[at + 2], s[at + 3]])
}

fn q5_0(s: &[u8], d: &mut [f32]) {
    let (scale, bits) = (half_at(s, 0), fifth_bits(s, 2));
    let (low, high) = d.split_at_mut(16);
    for (j, ((q, l), h)) in s[6..].iter().zip(low).zip(high).enumerate() {
        *l = scale * f32::from(((q & 15) | (((bits >> j) & 1) << 4) as u8) as i8 - 16);
        *h = scale * f32::from(((q >> 4) | (((bits >> (j + 16)) & 1) << 4) as u8) as i8 - 16);
    }
}

fn q5_1(s: &[u8], d: &mut [f32]) {
    let (scale, min, bits) = (half_at(s, 0), half_at(s, 2), fifth_bits(s, 4));
    let (low, high) = d.split_at_mut(16);
    for (j, ((q, l), h)) in s[8..].iter().zip(low).zip(high).enumerate() {
        *l = scale * f32::from((q & 15) | (((bits >> j) & 1) << 4) as u8) + min;
        *h = scale * f32::from((q >> 4) | (((bits >> (j + 16)) & 1) << 4) as u8) + min;
    }
}

fn q8_0(s: &[u8], d: &mut [f32]) {
    let scale = half_at(s, 0);
    for (q, v) in s[2..].iter().zip(d) {
        *v = f32::from(*q as i8) * scale;
    }
}

fn iq4_nl(s: &[u8], d: &mut [f32]) {
    let scale = half_at(s, 0);
    let (low, high) = d.split_at_mut(16);
    for ((q, l), h) in s[2..].iter().zip(low).zip(high) {
        *l = scale * f32::from(IQ4_NL[usize::from(q & 15)]);
        *h = scale * f32::from(IQ4_NL[usize::from(q >> 4)]);
    }
}
