//! Products of a few rows with a dense matrix at rest: each weight is read once, widened and multiplied into f32 sums.
//!
//! A sum's order depends on its columns alone, not on how many rows or outputs are computed together.

use super::rows::Rows;

/// Weights that are taken together, and half as many sums as that go on side by side.
pub const CHUNK: usize = 16;

/// A dense element type.
pub trait Element: Copy + Default {
    /// Outputs that are computed together for a single row of input: with more, a wide type's sums wait for each other
    /// less; with one, the weights are one stream from memory.
    const TOGETHER: usize;

    /// The input in the order in which this type's weights are widened.
    fn input<'a>(rows: &'a Rows<'_>) -> &'a [f32];

    /// Sixteen weights as two times eight.
    fn widen(weights: &[Self; CHUNK]) -> [[f32; 8]; 2];

    /// The same; `weights` points to sixteen of them.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn widen_avx2(weights: *const Self) -> [std::arch::x86_64::__m256; 2];
}

impl Element for f32 {
    const TOGETHER: usize = 4;

    fn input<'a>(rows: &'a Rows<'_>) -> &'a [f32] {
        rows.plain()
    }

    fn widen(weights: &[f32; CHUNK]) -> [[f32; 8]; 2] {
        [std::array::from_fn(|i| weights[i]), std::array::from_fn(|i| weights[i + 8])]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen_avx2(weights: *const f32) -> [std::arch::x86_64::__m256; 2] {
        use std::arch::x86_64::*;
        // SAFETY: sixteen weights lie there.
        unsafe { [_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(8))] }
    }
}

/// bf16 as it lies in memory.
impl Element for u16 {
    const TOGETHER: usize = 1;

    fn input<'a>(rows: &'a Rows<'_>) -> &'a [f32] {
        rows.paired()
    }

    fn widen(weights: &[u16; CHUNK]) -> [[f32; 8]; 2] {
        let wide = |i: usize| f32::from_bits(u32::from(weights[i]) << 16);
        [std::array::from_fn(|i| wide(2 * i)), std::array::from_fn(|i| wide(2 * i + 1))]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen_avx2(weights: *const u16) -> [std::arch::x86_64::__m256; 2] {
        use std::arch::x86_64::*;
        // SAFETY: sixteen weights lie there.
        unsafe {
            let pairs = _mm256_loadu_si256(weights.cast());
            let even = _mm256_slli_epi32(pairs, 16);
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(-65536));
            [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
        }
    }
}

/// Products with the matrix's rows from `first` on, as many as `out` has room for; see [`Matrix::times`].
pub fn times<T: Element>(fast: bool, weights: &[T], first: usize, rows: &Rows<'_>, out: &mut [f32]) {
    let columns = rows.columns();
    let weights = &weights[first * columns..][..out.len() / rows.count() * columns];
    #[cfg(target_arch = "x86_64")]
    if fast {
        // SAFETY: `fast` says that the processor has the instructions; the slice holds a row for every output.
        return unsafe { avx2(weights, rows, out) };
    }
    let _ = fast;
    scalar(weights, rows, out);
}

fn scalar<T: Element>(weights: &[T], rows: &Rows<'_>, out: &mut [f32]) {
    let (columns, padded) = (rows.columns(), rows.padded());
    for (weights, out) in weights.chunks(columns).zip(out.chunks_mut(rows.count())) {
        for (x, out) in T::input(rows).chunks(padded).zip(out) {
            let mut sums = [[0f32; 8]; 2];
            for (weights, x) in weights.chunks(CHUNK).zip(x.chunks(CHUNK)) {
                let mut whole = [T::default(); CHUNK];
                whole[..weights.len()].copy_from_slice(weights);
                for ((wide, x), sums) in T::widen(&whole).iter().zip(x.chunks(8)).zip(&mut sums) {
                    for ((w, x), sum) in wide.iter().zip(x).zip(sums) {
                        *sum = w.mul_add(*x, *sum);
                    }
                }
            }
            *out = super::rows::total(std::array::from_fn(|i| sums[0][i] + sums[1][i]));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<T: Element>(weights: &[T], rows: &Rows<'_>, out: &mut [f32]) {
    let (columns, padded, count) = (rows.columns(), rows.padded(), rows.count());
    let outputs = out.len() / count;
    let mut first = 0;
    while first < count {
        let together = (count - first).min(4);
        let x = T::input(rows)[first * padded..].as_ptr();
        let mut output = 0;
        while output < outputs {
            let (w, place) = (weights[output * columns..].as_ptr(), &mut out[output * count + first..]);
            // SAFETY: `w` begins as many rows of weights as are taken together, `x` as many of the input.
            output += unsafe {
                match (together, outputs - output) {
                    (1, 4..) if T::TOGETHER == 4 => block::<T, 4, 1>(w, x, columns, place, count),
                    (1, _) => block::<T, 1, 1>(w, x, columns, place, count),
                    (2, 2..) => block::<T, 2, 2>(w, x, columns, place, count),
                    (2, _) => block::<T, 1, 2>(w, x, columns, place, count),
                    (3, _) => block::<T, 1, 3>(w, x, columns, place, count),
                    _ => block::<T, 1, 4>(w, x, columns, place, count),
                }
            };
        }
        first += together;
    }
}

/// `M` outputs of `N` rows; says `M`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn block<T: Element, const M: usize, const N: usize>(
    w: *const T,
    x: *const f32,
    columns: usize,
    out: &mut [f32],
    stride: usize,
) -> usize {
    use std::arch::x86_64::*;
    let (padded, whole) = (columns.next_multiple_of(CHUNK), columns / CHUNK * CHUNK);
    // SAFETY: every load lies within `M` rows of weights and `N` rows of input; the latter are padded.
    unsafe {
        let mut sums = [[[_mm256_setzero_ps(); 2]; N]; M];
        let add = |sums: &mut [[__m256; 2]; N], wide: [__m256; 2], at: usize| {
            for (n, sums) in sums.iter_mut().enumerate() {
                let x = x.add(n * padded + at);
                sums[0] = _mm256_fmadd_ps(wide[0], _mm256_loadu_ps(x), sums[0]);
                sums[1] = _mm256_fmadd_ps(wide[1], _mm256_loadu_ps(x.add(8)), sums[1]);
            }
        };
        for at in (0..whole).step_by(CHUNK) {
            for (m, sums) in sums.iter_mut().enumerate() {
                let w = w.add(m * columns + at);
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_byte_add(super::rows::AHEAD).cast());
                add(sums, T::widen_avx2(w), at);
            }
        }
        if whole < columns {
            for (m, sums) in sums.iter_mut().enumerate() {
                let mut rest = [T::default(); CHUNK];
                std::ptr::copy_nonoverlapping(w.add(m * columns + whole), rest.as_mut_ptr(), columns - whole);
                add(sums, T::widen_avx2(rest.as_ptr()), whole);
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sums) in sums.iter().enumerate() {
                out[m * stride + n] = super::rows::total_avx2(_mm256_add_ps(sums[0], sums[1]));
            }
        }
    }
    M
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernels::rows::{Matrix, check};
    use crate::random;

    #[test]
    fn every_shape_equals_the_scalar_twin_and_the_plain_sum() {
        for columns in [1, 7, 8, 15, 16, 17, 40, 64, 100, 576, 577] {
            for count in [1, 2, 3, 4, 5, 7, 8, 16] {
                let draw = |i: usize, key: u64| (random::unit(key, i as u64) * 2.0 - 1.0) as f32;
                let x: Vec<f32> = (0..count * columns).map(|i| draw(i, 1)).collect();
                let rows = Rows::new(x.as_slice().into(), columns);
                let outputs = 11;
                let wide: Vec<f32> = (0..outputs * columns).map(|i| draw(i, 2)).collect();
                let narrow: Vec<u16> = wide.iter().map(|w| bf16::from_f32(*w).to_bits()).collect();
                let rounded: Vec<f32> = narrow.iter().map(|w| bf16::from_bits(*w).to_f32()).collect();
                for (matrix, values) in [(Matrix::F32(&wide), &wide), (Matrix::Bf16(&narrow), &rounded)] {
                    check(&matrix, values, &rows, &x, outputs, 4e-7);
                }
            }
        }
    }
}
