//! Products of a few rows with GGUF blocks as they lie in the file: integers times integers, scaled part by part.
//!
//! A weight is `d * q + m` with a small integer `q`; 32 weights share `d` and `m`. The input's rows are 16-bit integers
//! with a scale per 32 (see `rows`), so a part's sum is exact in 32 bits. Layouts: ggml's `ggml-common.h`, and decoded to
//! numbers in `pipe_files::blocks`. A sum's order depends on its columns alone.

use pipe_files::TensorType;

use super::block_formats::{Format, Iq4Nl, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Row};
use super::rows::{PART, Rows, total};

/// Whether there is a kernel for blocks of this type.
pub fn is_known(dtype: TensorType) -> bool {
    by_format(dtype, |_| ()).is_some()
}

/// What differs between formats, chosen once per call.
struct Kernel {
    head: usize,
    scalar: fn(&[u8], &Rows<'_>, &mut [f32]),
    decode: fn(&[u8], &mut [f32]),
    #[cfg(target_arch = "x86_64")]
    avx2: unsafe fn(&[u8], &Rows<'_>, &mut [f32]),
    #[cfg(target_arch = "x86_64")]
    decode_avx2: unsafe fn(&[u8], &mut [f32]),
}

fn kernel<F: Format>() -> Kernel {
    Kernel {
        head: F::HEAD,
        scalar: scalar::<F>,
        decode: decode_scalar::<F>,
        #[cfg(target_arch = "x86_64")]
        avx2: avx2::<F>,
        #[cfg(target_arch = "x86_64")]
        decode_avx2: decode_avx2::<F>,
    }
}

fn by_format<T>(dtype: TensorType, f: impl FnOnce(Kernel) -> T) -> Option<T> {
    Some(f(match dtype {
        TensorType::Q8_0 => kernel::<Q8_0>(),
        TensorType::Q4_0 => kernel::<Q4_0>(),
        TensorType::Q4_1 => kernel::<Q4_1>(),
        TensorType::Q5_0 => kernel::<Q5_0>(),
        TensorType::Q5_1 => kernel::<Q5_1>(),
        TensorType::Iq4Nl => kernel::<Iq4Nl>(),
        TensorType::Q4K => kernel::<Q4K>(),
        TensorType::Q5K => kernel::<Q5K>(),
        TensorType::Q6K => kernel::<Q6K>(),
        _ => return None,
    }))
}

/// Numbers of one kind in front of a row.
fn stride(columns: usize) -> usize {
    (columns / PART).next_multiple_of(8)
}

/// Bytes of a row as it is arranged, where there is a kernel for the type.
pub fn row_bytes(dtype: TensorType, columns: usize) -> Option<usize> {
    let gap = stride(columns) - columns / PART;
    by_format(dtype, |kernel| dtype.bytes(columns) + gap * kernel.head)
}

/// Arranges a row of blocks that lies as the file holds it.
pub fn arrange(dtype: TensorType, columns: usize, file: &[u8], arranged: &mut [u8]) {
    let (size, stride) = (dtype.block().1, stride(columns));
    let head = by_format(dtype, |kernel| kernel.head).unwrap_or_default();
    let (heads, bodies) = arranged.split_at_mut(stride * head);
    for (i, block) in file.chunks_exact(size).enumerate() {
        let (own, rest) = block.split_at(head);
        bodies[i * rest.len()..][..rest.len()].copy_from_slice(rest);
        for (kind, number) in own.chunks_exact(2).enumerate() {
            heads[2 * (kind * stride + i)..][..2].copy_from_slice(number);
        }
    }
}

/// The numbers that an arranged row stands for, bit for bit those of [`TensorType::decode`].
pub fn decode(fast: bool, dtype: TensorType, bytes: &[u8], out: &mut [f32]) {
    by_format(dtype, |kernel| {
        #[cfg(target_arch = "x86_64")]
        if fast {
            // SAFETY: `fast` says that the processor has the instructions; `bytes` is a row of as many weights as `out`.
            return unsafe { (kernel.decode_avx2)(bytes, out) };
        }
        let _ = fast;
        (kernel.decode)(bytes, out);
    });
}

/// Products with the matrix's rows from `first` on, as many as `out` has room for; see [`super::Matrix::times`].
pub fn times(fast: bool, dtype: TensorType, bytes: &[u8], first: usize, rows: &Rows<'_>, out: &mut [f32]) {
    let row = row_bytes(dtype, rows.columns()).unwrap_or_default();
    let bytes = &bytes[first * row..][..out.len() / rows.count() * row];
    by_format(dtype, |kernel| {
        #[cfg(target_arch = "x86_64")]
        if fast {
            // SAFETY: `fast` says that the processor has the instructions; the slice holds a row for every output.
            return unsafe { (kernel.avx2)(bytes, rows, out) };
        }
        let _ = fast;
        (kernel.scalar)(bytes, rows, out);
    });
}

fn row_of<F: Format>(bytes: &[u8], parts: usize, stride: usize) -> Row<'_> {
    debug_assert_eq!(bytes.len(), stride * F::HEAD + parts / F::PARTS * F::BODY);
    let (heads, bodies) = bytes.split_at(stride * F::HEAD);
    Row { heads, bodies, stride }
}

fn scalar<F: Format>(bytes: &[u8], rows: &Rows<'_>, out: &mut [f32]) {
    let (count, x) = (rows.count(), rows.integers());
    let parts = rows.columns() / PART;
    let mut q = [0i16; PART];
    let size = x.stride * F::HEAD + parts / F::PARTS * F::BODY;
    for (bytes, out) in bytes.chunks_exact(size).zip(out.chunks_mut(count)) {
        let row = row_of::<F>(bytes, parts, x.stride);
        for (n, out) in out.iter_mut().enumerate() {
            let (mut sums, mut minima) = ([0f32; 8], [0f32; 8]);
            for at in 0..parts {
                F::part(&row.bodies[at / F::PARTS * F::BODY..][..F::BODY], at % F::PARTS, &mut q);
                let (d, m) = F::scale(&row, at);
                let scale = d * x.scales[n * x.stride + at];
                let values = &x.values[(n * parts + at) * PART..][..PART];
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let pair = |i: usize| i32::from(q[i]) * i32::from(values[i]);
                    let i = 2 * lane;
                    let whole = pair(i) + pair(i + 1) + pair(i + 16) + pair(i + 17);
                    *sum = (whole as f32).mul_add(scale, *sum);
                }
                if F::MINIMUM {
                    minima[at % 8] = m.mul_add(x.sums[n * x.stride + at], minima[at % 8]);
                }
            }
            *out = total(std::array::from_fn(|i| sums[i] + minima[i]));
        }
    }
}

fn decode_scalar<F: Format>(bytes: &[u8], out: &mut [f32]) {
    let row = row_of::<F>(bytes, out.len() / PART, stride(out.len()));
    let mut q = [0i16; PART];
    for (at, out) in out.chunks_exact_mut(PART).enumerate() {
        F::part(&row.bodies[at / F::PARTS * F::BODY..][..F::BODY], at % F::PARTS, &mut q);
        let (d, m) = F::scale(&row, at);
        for (out, q) in out.iter_mut().zip(q) {
            *out = if F::MINIMUM { d * f32::from(q) + m } else { d * f32::from(q) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_avx2<F: Format>(bytes: &[u8], out: &mut [f32]) {
    use std::arch::x86_64::*;
    let row = row_of::<F>(bytes, out.len() / PART, stride(out.len()));
    let (mut d, mut m) = ([0f32; 8], [0f32; 8]);
    for (at, out) in out.chunks_exact_mut(PART).enumerate() {
        let body = &row.bodies[at / F::PARTS * F::BODY..][..F::BODY];
        // SAFETY: `body` is a whole one, the row's heads are padded to eights, and 32 numbers fit into `out`.
        unsafe {
            if at % 8 == 0 {
                let scales = F::scales_avx2(&row, at);
                _mm256_storeu_ps(d.as_mut_ptr(), scales[0]);
                _mm256_storeu_ps(m.as_mut_ptr(), scales[1]);
            }
            let (d, m) = (_mm256_set1_ps(d[at % 8]), _mm256_set1_ps(m[at % 8]));
            for (i, half) in F::part_avx2(body.as_ptr(), at % F::PARTS).into_iter().enumerate() {
                let quarters = [_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half)];
                for (j, quarter) in quarters.into_iter().enumerate() {
                    let value = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(quarter)), d);
                    // Not fused: rounded twice, as the plain decoding is.
                    let value = if F::MINIMUM { _mm256_add_ps(value, m) } else { value };
                    _mm256_storeu_ps(out.as_mut_ptr().add(16 * i + 8 * j), value);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<F: Format>(bytes: &[u8], rows: &Rows<'_>, out: &mut [f32]) {
    let (count, parts, x) = (rows.count(), rows.columns() / PART, rows.integers());
    let size = x.stride * F::HEAD + parts / F::PARTS * F::BODY;
    // One row of weights after the other is one stream from memory.
    for (bytes, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(count)) {
        let w = row_of::<F>(bytes, parts, x.stride);
        for (i, out) in out.chunks_mut(4).enumerate() {
            let first = 4 * i;
            let input = Input {
                values: x.values[first * parts * PART..].as_ptr(),
                scales: x.scales[first * x.stride..].as_ptr(),
                sums: x.sums[first * x.stride..].as_ptr(),
                parts,
                stride: x.stride,
            };
            // SAFETY: `input` begins as many rows of input as `out` has room for.
            unsafe {
                match out {
                    [a] => [*a] = dots::<F, 1>(&w, &input),
                    [a, b] => [*a, *b] = dots::<F, 2>(&w, &input),
                    [a, b, c] => [*a, *b, *c] = dots::<F, 3>(&w, &input),
                    _ => out.copy_from_slice(&dots::<F, 4>(&w, &input)),
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
struct Input {
    values: *const i16,
    scales: *const f32,
    sums: *const f32,
    /// Parts of a row.
    parts: usize,
    /// Scales from one row to the next.
    stride: usize,
}

/// The products of a row of blocks with `N` rows of input.
#[cfg(target_arch = "x86_64")]
// Counting is what becomes registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn dots<F: Format, const N: usize>(w: &Row<'_>, x: &Input) -> [f32; N] {
    use std::arch::x86_64::*;
    // SAFETY: every load lies within the row of blocks and `N` rows of input; scales are padded to eights.
    unsafe {
        let mut scales = [[0f32; 8]; N];
        let (mut sums, mut minima) = ([_mm256_setzero_ps(); N], [_mm256_setzero_ps(); N]);
        for first in (0..x.parts).step_by(8) {
            let [d, m] = F::scales_avx2(w, first);
            for n in 0..N {
                let at = n * x.stride + first;
                let scale = _mm256_mul_ps(d, _mm256_loadu_ps(x.scales.add(at)));
                _mm256_storeu_ps(scales[n].as_mut_ptr(), scale);
                if F::MINIMUM {
                    minima[n] = _mm256_fmadd_ps(m, _mm256_loadu_ps(x.sums.add(at)), minima[n]);
                }
            }
            let bodies = w.bodies.as_ptr().add(first / F::PARTS * F::BODY);
            let count = if F::PARTS == 8 { 8 } else { (x.parts - first).min(8) };
            for i in 0..count {
                let body = bodies.add(i / F::PARTS * F::BODY);
                let ahead = super::rows::AHEAD + i % F::PARTS * (F::BODY / F::PARTS);
                _mm_prefetch::<_MM_HINT_T0>(body.wrapping_add(ahead).cast());
                let [low, high] = F::part_avx2(body, i % F::PARTS);
                for n in 0..N {
                    let values = x.values.add((n * x.parts + first + i) * PART).cast::<__m256i>();
                    let one = _mm256_madd_epi16(low, _mm256_loadu_si256(values));
                    let two = _mm256_madd_epi16(high, _mm256_loadu_si256(values.add(1)));
                    let whole = _mm256_cvtepi32_ps(_mm256_add_epi32(one, two));
                    sums[n] = _mm256_fmadd_ps(whole, _mm256_broadcast_ss(&scales[n][i]), sums[n]);
                }
            }
        }
        std::array::from_fn(|n| super::rows::total_avx2(_mm256_add_ps(sums[n], minima[n])))
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::kernels::rows::{Matrix, check, fast};
    use crate::random;

    #[test]
    fn every_format_equals_the_scalar_twin_and_what_its_blocks_stand_for() {
        use TensorType::*;
        for dtype in [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Iq4Nl, Q4K, Q5K, Q6K] {
            let (step, size) = dtype.block();
            for columns in [step, 3 * step, 5 * step] {
                let outputs = 11;
                let mut bytes: Vec<u8> =
                    (0..(dtype.bytes(columns) * outputs) as u64).map(|i| random::scatter(i * 7 + 3) as u8).collect();
                // Scales that are numbers, of either sign.
                for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
                    let scales: &[usize] = match dtype {
                        Q6K => &[208],
                        Q4_1 | Q5_1 | Q4K | Q5K => &[0, 2],
                        _ => &[0],
                    };
                    for (j, at) in scales.iter().enumerate() {
                        let scale = f16::from_f64(random::unit(i as u64, j as u64) * 0.2 - 0.1);
                        block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    }
                }
                let mut values = vec![0f32; outputs * columns];
                dtype.decode(&bytes, &mut values);
                let row = row_bytes(dtype, columns).unwrap();
                let mut arranged = vec![0; row * outputs];
                for (own, file) in arranged.chunks_mut(row).zip(bytes.chunks(dtype.bytes(columns))) {
                    arrange(dtype, columns, file, own);
                }
                for (fast, row) in [false, fast()].into_iter().flat_map(|fast| (0..outputs).map(move |row| (fast, row)))
                {
                    let mut found = vec![0f32; columns];
                    decode(
                        fast,
                        dtype,
                        &arranged[row * arranged.len() / outputs..][..arranged.len() / outputs],
                        &mut found,
                    );
                    let expected = &values[row * columns..][..columns];
                    let same =
                        found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits() || (*a == 0.0 && *b == 0.0));
                    assert!(same, "{dtype:?}, row {row}");
                }
                for count in [1, 2, 3, 4, 5, 8, 16] {
                    let draw = |i: usize| (random::unit(5, i as u64) * 2.0 - 1.0) as f32;
                    let x: Vec<f32> = (0..count * columns).map(draw).collect();
                    let rows = Rows::new(x.as_slice().into(), columns);
                    check(&Matrix::Blocks(dtype, &arranged), &values, &rows, &x, outputs, 2e-5);
                }
            }
        }
    }
}
