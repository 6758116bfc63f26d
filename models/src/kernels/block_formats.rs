//! How GGUF's blocks hold their weights: per format the scales of a part of 32 weights and its integers, once for any
//! processor and once for AVX2. The layouts are those that `pipe_files::blocks` decodes.

use half::f16;

use super::rows::PART;

/// Two times sixteen 16-bit integers.
#[cfg(target_arch = "x86_64")]
type Pair = [std::arch::x86_64::__m256i; 2];

/// A row of blocks, arranged for the kernels: where blocks hold 32 weights, the f16 numbers that they begin with come
/// first, those of one kind together, then the rest of each block. Larger blocks stay as they are in the file.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// `stride` f16 numbers of each kind.
    pub heads: &'a [u8],
    pub bodies: &'a [u8],
    pub stride: usize,
}

/// Blocks of `32 * PARTS` weights, each `d * q + m`.
pub trait Format {
    /// Bytes of a block in a file.
    const BYTES: usize;
    /// Bytes of a block's f16 numbers where they are put in front, two each.
    const HEAD: usize;
    const PARTS: usize;
    /// Whether `m` can be other than 0.
    const MINIMUM: bool;
    const BODY: usize = Self::BYTES - Self::HEAD;

    /// `d` and `m` of the row's part `at`.
    fn scale(row: &Row<'_>, at: usize) -> (f32, f32);

    /// The integers of a part of the block with this body.
    fn part(body: &[u8], part: usize, out: &mut [i16; PART]);

    /// `d` and `m` of the row's eight parts from `at` on, a multiple of eight.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2];

    /// A part's integers.
    ///
    /// # Safety
    /// A whole body lies at `body`, and the processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn part_avx2(body: *const u8, part: usize) -> Pair;
}

pub struct Q8_0;
pub struct Q4_0;
pub struct Q4_1;
pub struct Q5_0;
pub struct Q5_1;
pub struct Iq4Nl;
pub struct Q4K;
pub struct Q5K;
pub struct Q6K;

/// The f16 at byte `at`.
fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

impl Row<'_> {
    /// A block's number of this kind.
    fn head(&self, kind: usize, block: usize) -> f32 {
        half(self.heads, 2 * (kind * self.stride + block))
    }

    /// Those of eight blocks.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn heads_avx2(&self, kind: usize, block: usize) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        let place = 2 * (kind * self.stride + block);
        debug_assert!(place + 16 <= self.heads.len());
        // SAFETY: the stride is a multiple of eight, as `block` is.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(self.heads.as_ptr().add(place).cast())) }
    }

    /// `d` and `m` of a block that holds `d` alone: `m` is 0.
    fn one(&self, block: usize) -> (f32, f32) {
        (self.head(0, block), 0.0)
    }

    /// Of one whose weights are `d * (q + by)`.
    fn shifted(&self, block: usize, by: f32) -> (f32, f32) {
        let d = self.head(0, block);
        (d, d * by)
    }

    /// Of one that holds both.
    fn both(&self, block: usize) -> (f32, f32) {
        (self.head(0, block), self.head(1, block))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn one_avx2(&self, block: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: as above.
        unsafe { [self.heads_avx2(0, block), std::arch::x86_64::_mm256_setzero_ps()] }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn shifted_avx2(&self, block: usize, by: f32) -> [std::arch::x86_64::__m256; 2] {
        use std::arch::x86_64::*;
        // SAFETY: as above.
        unsafe {
            let d = self.heads_avx2(0, block);
            [d, _mm256_mul_ps(d, _mm256_set1_ps(by))]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn both_avx2(&self, block: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: as above.
        unsafe { [self.heads_avx2(0, block), self.heads_avx2(1, block)] }
    }
}

/// Sixteen bytes as 16-bit integers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn wide(at: *const u8) -> std::arch::x86_64::__m256i {
    use std::arch::x86_64::*;
    // SAFETY: the callers' contract: sixteen bytes lie there.
    unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(at.cast())) }
}

/// The nibbles of sixteen bytes, the low ones first.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> Pair {
    use std::arch::x86_64::*;
    // SAFETY: as above.
    unsafe {
        let bytes = wide(at);
        [_mm256_and_si256(bytes, _mm256_set1_epi16(15)), _mm256_srli_epi16::<4>(bytes)]
    }
}

/// The nibbles that follow 32 fifth bits, with those.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn nibbles_with_fifths(at: *const u8) -> Pair {
    use std::arch::x86_64::*;
    // SAFETY: the callers' contract: twenty bytes lie there.
    unsafe {
        let (low, fifth) = (nibbles(at.add(4)), fifths(at));
        [0, 1].map(|i| _mm256_or_si256(low[i], fifth[i]))
    }
}

/// 16 where the fifth bit of a weight is set; 32 bits lie at `at`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn fifths(at: *const u8) -> Pair {
    use std::arch::x86_64::*;
    // SAFETY: as above.
    unsafe {
        let bits = at.cast::<i32>().read_unaligned();
        let each = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
        let spread = |bits: i32| {
            let own = _mm256_and_si256(_mm256_set1_epi16(bits as i16), each);
            _mm256_and_si256(_mm256_cmpeq_epi16(own, each), _mm256_set1_epi16(16))
        };
        [spread(bits), spread(bits >> 16)]
    }
}

fn nibbles_of(bytes: &[u8], out: &mut [i16; PART]) {
    for (i, byte) in bytes[..16].iter().enumerate() {
        (out[i], out[i + 16]) = (i16::from(byte & 15), i16::from(byte >> 4));
    }
}

/// 32 fifth bits, then the nibbles.
fn nibbles_with_fifths_of(bytes: &[u8], out: &mut [i16; PART]) {
    nibbles_of(&bytes[4..], out);
    for (i, q) in out.iter_mut().enumerate() {
        *q |= i16::from((bytes[i / 8] >> (i % 8)) & 1) << 4;
    }
}

impl Format for Q8_0 {
    const BYTES: usize = 34;
    const HEAD: usize = 2;
    const PARTS: usize = 1;
    const MINIMUM: bool = false;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        row.one(at)
    }

    fn part(body: &[u8], _: usize, out: &mut [i16; PART]) {
        out.iter_mut().zip(body).for_each(|(q, byte)| *q = i16::from(*byte as i8));
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { row.one_avx2(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, _: usize) -> Pair {
        use std::arch::x86_64::*;
        // SAFETY: the trait's contract.
        unsafe { [0, 16].map(|at| _mm256_cvtepi8_epi16(_mm_loadu_si128(body.add(at).cast()))) }
    }
}

impl Format for Q4_0 {
    const BYTES: usize = 18;
    const HEAD: usize = 2;
    const PARTS: usize = 1;
    const MINIMUM: bool = true;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        row.shifted(at, -8.0)
    }

    fn part(body: &[u8], _: usize, out: &mut [i16; PART]) {
        nibbles_of(body, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { row.shifted_avx2(at, -8.0) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, _: usize) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { nibbles(body) }
    }
}

impl Format for Q4_1 {
    const BYTES: usize = 20;
    const HEAD: usize = 4;
    const PARTS: usize = 1;
    const MINIMUM: bool = true;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        row.both(at)
    }

    fn part(body: &[u8], _: usize, out: &mut [i16; PART]) {
        nibbles_of(body, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { row.both_avx2(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, _: usize) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { nibbles(body) }
    }
}

impl Format for Q5_0 {
    const BYTES: usize = 22;
    const HEAD: usize = 2;
    const PARTS: usize = 1;
    const MINIMUM: bool = true;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        row.shifted(at, -16.0)
    }

    fn part(body: &[u8], _: usize, out: &mut [i16; PART]) {
        nibbles_with_fifths_of(body, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { row.shifted_avx2(at, -16.0) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, _: usize) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { nibbles_with_fifths(body) }
    }
}

impl Format for Q5_1 {
    const BYTES: usize = 24;
    const HEAD: usize = 4;
    const PARTS: usize = 1;
    const MINIMUM: bool = true;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        row.both(at)
    }

    fn part(body: &[u8], _: usize, out: &mut [i16; PART]) {
        nibbles_with_fifths_of(body, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { row.both_avx2(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, _: usize) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { nibbles_with_fifths(body) }
    }
}

impl Format for Iq4Nl {
    const BYTES: usize = 18;
    const HEAD: usize = 2;
    const PARTS: usize = 1;
    const MINIMUM: bool = false;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        row.one(at)
    }

    fn part(body: &[u8], _: usize, out: &mut [i16; PART]) {
        nibbles_of(body, out);
        out.iter_mut().for_each(|q| *q = i16::from(pipe_files::IQ4_NL[*q as usize]));
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { row.one_avx2(at) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, _: usize) -> Pair {
        use std::arch::x86_64::*;
        // SAFETY: the trait's contract.
        unsafe {
            let bytes = _mm_loadu_si128(body.cast());
            let (table, mask) = (_mm_loadu_si128(pipe_files::IQ4_NL.as_ptr().cast()), _mm_set1_epi8(15));
            let codes = [_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask)];
            codes.map(|codes| _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, codes)))
        }
    }
}

/// The scale and minimum of a part of a q4_k or q5_k block: six bits each, times the block's.
fn eight(block: &[u8], part: usize) -> (f32, f32) {
    let (packed, i) = (&block[4..16], part % 4);
    let (scale, minimum, both) = (packed[i], packed[i + 4], packed[i + 8]);
    let (scale, minimum) = match part {
        0..4 => (scale & 63, minimum & 63),
        _ => ((both & 15) | ((scale >> 2) & 48), (both >> 4) | ((minimum >> 2) & 48)),
    };
    (half(block, 0) * f32::from(scale), -(half(block, 2) * f32::from(minimum)))
}

/// The same for all eight parts of a block.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn eight_avx2(block: *const u8) -> [std::arch::x86_64::__m256; 2] {
    use std::arch::x86_64::*;
    let whole = |low: u32, high: u32| (u64::from(low) | (u64::from(high) << 32)) as i64;
    // SAFETY: the callers' contract: a whole block lies there.
    unsafe {
        let [scale, minimum, both] = [4, 8, 12].map(|at| block.add(at).cast::<u32>().read_unaligned());
        let top = |bits: u32| (bits >> 2) & 0x3030_3030;
        let scales = whole(scale & 0x3f3f_3f3f, (both & 0x0f0f_0f0f) | top(scale));
        let minima = whole(minimum & 0x3f3f_3f3f, ((both >> 4) & 0x0f0f_0f0f) | top(minimum));
        let pair = _mm_cvtph_ps(_mm_cvtsi32_si128(block.cast::<i32>().read_unaligned()));
        let times = |codes: i64, by: __m128| {
            let codes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(codes));
            _mm256_mul_ps(_mm256_cvtepi32_ps(codes), _mm256_broadcastss_ps(by))
        };
        let below = _mm_xor_ps(_mm_movehdup_ps(pair), _mm_set1_ps(-0.0));
        [times(scales, pair), times(minima, below)]
    }
}

impl Format for Q4K {
    const BYTES: usize = 144;
    const HEAD: usize = 0;
    const PARTS: usize = 8;
    const MINIMUM: bool = true;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        eight(&row.bodies[at / 8 * Self::BYTES..], at % 8)
    }

    fn part(body: &[u8], part: usize, out: &mut [i16; PART]) {
        let values = &body[16 + part / 2 * 32..];
        out.iter_mut().zip(values).for_each(|(q, byte)| *q = i16::from((byte >> (4 * (part % 2))) & 15));
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { eight_avx2(row.bodies.as_ptr().add(at / 8 * Self::BYTES)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, part: usize) -> Pair {
        // SAFETY: the trait's contract.
        unsafe { long_nibbles(body.add(16 + part / 2 * 32), part) }
    }
}

/// The low nibbles of 32 bytes for an even part, the high ones for an odd one.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn long_nibbles(at: *const u8, part: usize) -> Pair {
    use std::arch::x86_64::*;
    // SAFETY: the callers' contract: 32 bytes lie there.
    unsafe {
        [0, 16].map(|half| match part % 2 {
            0 => _mm256_and_si256(wide(at.add(half)), _mm256_set1_epi16(15)),
            _ => _mm256_srli_epi16::<4>(wide(at.add(half))),
        })
    }
}

impl Format for Q5K {
    const BYTES: usize = 176;
    const HEAD: usize = 0;
    const PARTS: usize = 8;
    const MINIMUM: bool = true;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        eight(&row.bodies[at / 8 * Self::BYTES..], at % 8)
    }

    fn part(body: &[u8], part: usize, out: &mut [i16; PART]) {
        let values = body[48 + part / 2 * 32..].iter().zip(&body[16..48]);
        for (q, (byte, high)) in out.iter_mut().zip(values) {
            *q = i16::from(((byte >> (4 * (part % 2))) & 15) | (((high >> part) & 1) << 4));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        // SAFETY: the trait's contract.
        unsafe { eight_avx2(row.bodies.as_ptr().add(at / 8 * Self::BYTES)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, part: usize) -> Pair {
        use std::arch::x86_64::*;
        // SAFETY: the trait's contract.
        unsafe {
            let low = long_nibbles(body.add(48 + part / 2 * 32), part);
            let bit = _mm256_set1_epi16(1 << part);
            let fifth = |at: usize| {
                let set = _mm256_cmpeq_epi16(_mm256_and_si256(wide(body.add(16 + at)), bit), bit);
                _mm256_and_si256(set, _mm256_set1_epi16(16))
            };
            [_mm256_or_si256(low[0], fifth(0)), _mm256_or_si256(low[1], fifth(16))]
        }
    }
}

/// The scales of sixteen weights each are multiplied into the integers, which then have 13 bits.
impl Format for Q6K {
    const BYTES: usize = 210;
    const HEAD: usize = 0;
    const PARTS: usize = 8;
    const MINIMUM: bool = false;

    fn scale(row: &Row<'_>, at: usize) -> (f32, f32) {
        (half(row.bodies, at / 8 * Self::BYTES + 208), 0.0)
    }

    fn part(body: &[u8], part: usize, out: &mut [i16; PART]) {
        let (half, within) = (part / 4, part % 4);
        let low = &body[half * 64 + within % 2 * 32..];
        let high = &body[128 + half * 32..];
        for (i, q) in out.iter_mut().enumerate() {
            let six = ((low[i] >> (within / 2 * 4)) & 15) | (((high[i] >> (2 * within)) & 3) << 4);
            *q = (i16::from(six) - 32) * i16::from(body[192 + 2 * part + i / 16] as i8);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn scales_avx2(row: &Row<'_>, at: usize) -> [std::arch::x86_64::__m256; 2] {
        use std::arch::x86_64::*;
        // SAFETY: the trait's contract.
        unsafe {
            let d = row.bodies.as_ptr().add(at / 8 * Self::BYTES + 208).cast::<u16>().read_unaligned();
            let d = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(d)));
            [_mm256_broadcastss_ps(d), _mm256_setzero_ps()]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn part_avx2(body: *const u8, part: usize) -> Pair {
        use std::arch::x86_64::*;
        let (half, within) = (part / 4, part % 4);
        // SAFETY: the trait's contract.
        unsafe {
            let low = long_nibbles(body.add(half * 64 + within % 2 * 32), within / 2);
            let six = |i: usize| {
                let shift = _mm_cvtsi32_si128(2 * within as i32);
                let high = _mm256_srl_epi16(wide(body.add(128 + half * 32 + 16 * i)), shift);
                let high = _mm256_slli_epi16::<4>(_mm256_and_si256(high, _mm256_set1_epi16(3)));
                let q = _mm256_sub_epi16(_mm256_or_si256(low[i], high), _mm256_set1_epi16(32));
                let scale = *body.add(192 + 2 * part + i) as i8;
                _mm256_mullo_epi16(q, _mm256_set1_epi16(i16::from(scale)))
            };
            [six(0), six(1)]
        }
    }
}
