//! A few rows of input in the orders and number types that the kernels want, and the matrices they are multiplied with.

use std::borrow::Cow;
use std::sync::OnceLock;

use half::bf16;
use pipe_files::TensorType;

use super::{block_rows, dense_rows};

/// Bytes ahead of the weights in use that are asked for.
pub const AHEAD: usize = 1024;

/// Values that share a scale where the input is made integers, as in the files' blocks.
pub const PART: usize = 32;

/// A matrix at rest, row-major. Whole rows, whole blocks.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    F32(&'a [f32]),
    /// bf16 bits.
    Bf16(&'a [u16]),
    /// GGUF's blocks, each row arranged by [`block_rows::arrange`].
    Blocks(TensorType, &'a [u8]),
}

/// Input to products: `count` rows of `columns` numbers. Each form is made when it is first asked for.
#[derive(Debug)]
pub struct Rows<'a> {
    columns: usize,
    count: usize,
    plain: Cow<'a, [f32]>,
    paired: OnceLock<Vec<f32>>,
    integers: OnceLock<Integers>,
}

/// Rows as 16-bit integers with a scale per 32 of them: precise enough that what is lost is what a different order of
/// summation would lose, and as quick to multiply on AVX2 as 8-bit ones.
#[derive(Debug)]
pub struct Integers {
    /// `[count, columns]`
    pub values: Vec<i16>,
    /// `[count, stride]`: the scales of each row, zeros after them.
    pub scales: Vec<f32>,
    /// Sums of the scaled values, for blocks that add a minimum to all of theirs.
    pub sums: Vec<f32>,
    /// Parts of a row, rounded up to eight.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// `values` is row-major, at least one row.
    pub fn new(values: Cow<'a, [f32]>, columns: usize) -> Self {
        let (count, padded) = (values.len() / columns, columns.next_multiple_of(dense_rows::CHUNK));
        let plain = match padded == columns {
            true => values,
            false => {
                let mut all = vec![0.0; count * padded];
                for (to, from) in all.chunks_mut(padded).zip(values.chunks(columns)) {
                    to[..columns].copy_from_slice(from);
                }
                all.into()
            }
        };
        Self { columns, count, plain, paired: OnceLock::new(), integers: OnceLock::new() }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Numbers from one row to the next in [`Rows::plain`] and [`Rows::paired`]; zeros after the columns.
    pub fn padded(&self) -> usize {
        self.plain.len() / self.count
    }

    pub fn plain(&self) -> &[f32] {
        &self.plain
    }

    /// Of every sixteen the even ones, then the odd ones: the order in which pairs of bf16 are widened.
    pub fn paired(&self) -> &[f32] {
        self.paired.get_or_init(|| {
            let mut out = vec![0.0; self.plain.len()];
            for (to, from) in out.chunks_exact_mut(16).zip(self.plain.chunks_exact(16)) {
                for i in 0..8 {
                    (to[i], to[i + 8]) = (from[2 * i], from[2 * i + 1]);
                }
            }
            out
        })
    }

    /// Columns must be a multiple of 32.
    pub fn integers(&self) -> &Integers {
        self.integers.get_or_init(|| Integers::new(&self.plain, self.columns))
    }
}

impl Integers {
    fn new(plain: &[f32], columns: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if fast() {
            // SAFETY: `fast` says that the processor has the instructions.
            return unsafe { Self::made_avx2(plain, columns) };
        }
        Self::made(plain, columns)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn made_avx2(plain: &[f32], columns: usize) -> Self {
        Self::made(plain, columns)
    }

    #[inline(always)]
    fn made(plain: &[f32], columns: usize) -> Self {
        let (count, stride) = (plain.len() / columns, (columns / PART).next_multiple_of(8));
        let none = || vec![0f32; count * stride];
        let mut all = Self { values: vec![0; plain.len()], scales: none(), sums: none(), stride };
        for (row, (to, from)) in all.values.chunks_mut(columns).zip(plain.chunks(columns)).enumerate() {
            for (part, (to, from)) in to.chunks_mut(PART).zip(from.chunks(PART)).enumerate() {
                let at = row * stride + part;
                (all.scales[at], all.sums[at]) = integers(from, to);
            }
        }
        all
    }
}

/// Writes numbers as integers; says their scale and their scaled sum.
#[inline(always)]
fn integers(from: &[f32], to: &mut [i16]) -> (f32, f32) {
    // Adding and taking 1.5 * 2^23 rounds to the nearest integer, ties to even.
    const SHIFT: f32 = 12_582_912.0;
    let (mut tops, mut none) = ([0f32; 8], [0f32; 8]);
    for from in from.chunks_exact(8) {
        for ((top, none), x) in tops.iter_mut().zip(&mut none).zip(from) {
            *top = if x.abs() > *top { x.abs() } else { *top };
            // What is not a number stays none: 0 times infinity, and a sum with NaN.
            *none += x * 0.0;
        }
    }
    let top = tops.into_iter().fold(0f32, |top, x| if x > top { x } else { top });
    let none: f32 = none.into_iter().sum();
    let share = 32767.0 / top;
    if !share.is_finite() {
        // Zeros, or so small that they count as such.
        to.fill(0);
        return (none, none);
    }
    let mut sum = 0;
    for (to, from) in to.iter_mut().zip(from) {
        let nearest = (from * share + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i32;
        *to = nearest as i16;
        sum += nearest;
    }
    let scale = top / 32767.0 + none;
    (scale, scale * sum as f32)
}

/// Whether this processor has the kernels' instructions. Without them the products are better left to libtorch.
pub fn fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    let fast = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    let fast = false;
    fast
}

/// Whether libtorch multiplies bf16 with instructions of this processor.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let native = is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let native = true;
    native
}

impl Matrix<'_> {
    /// Makes the form of the input that this matrix is multiplied with, before several threads ask for it.
    pub fn prepare(&self, rows: &Rows<'_>) {
        match self {
            Self::F32(_) => {}
            Self::Bf16(_) => {
                rows.paired();
            }
            Self::Blocks(..) => {
                rows.integers();
            }
        }
    }

    /// `out[o * count + r]` becomes the product of the matrix's row `first + o` with the input's row `r`, for as many
    /// outputs as there is room for.
    pub fn times(&self, fast: bool, first: usize, rows: &Rows<'_>, out: &mut [f32]) {
        match *self {
            Self::F32(weights) => dense_rows::times(fast, weights, first, rows, out),
            Self::Bf16(weights) => dense_rows::times(fast, weights, first, rows, out),
            Self::Blocks(dtype, bytes) => block_rows::times(fast, dtype, bytes, first, rows, out),
        }
    }
}

/// bf16 bits, rounded to nearest even.
pub fn narrow(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

/// The number that bf16 bits stand for.
pub fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Eight sums as one.
pub fn total(lanes: [f32; 8]) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|i| lanes[i] + lanes[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The same.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn total_avx2(lanes: std::arch::x86_64::__m256) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: the contract above.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// Asserts that both twins of `matrix` agree bit for bit, with the plain sums of `values`, and on any cut of the outputs.
#[cfg(test)]
pub fn check(matrix: &Matrix<'_>, values: &[f32], rows: &Rows<'_>, x: &[f32], outputs: usize, tolerance: f64) {
    let (columns, count) = (rows.columns(), rows.count());
    let mut found = [vec![0f32; outputs * count], vec![0f32; outputs * count]];
    for (fast, found) in [false, fast()].into_iter().zip(&mut found) {
        matrix.times(fast, 0, rows, found);
    }
    let bits = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&found[0]), bits(&found[1]), "{columns} columns, {count} rows");
    let mut part = vec![0f32; 3 * count];
    matrix.times(fast(), 5, rows, &mut part);
    assert_eq!(bits(&part), bits(&found[0][5 * count..8 * count]), "{columns} columns, {count} rows, a cut");
    let alone = Rows::new(x[(count - 1) * columns..].into(), columns);
    let mut single = vec![0f32; outputs];
    matrix.times(fast(), 0, &alone, &mut single);
    for o in 0..outputs {
        let terms = (0..columns).map(|c| f64::from(values[o * columns + c]) * f64::from(x[(count - 1) * columns + c]));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        assert_eq!(
            single[o].to_bits(),
            found[0][o * count + count - 1].to_bits(),
            "a row alone is the row among others"
        );
        assert!(
            (f64::from(single[o]) - sum).abs() <= tolerance * size,
            "{columns} columns: {} is not {sum}",
            single[o]
        );
    }
}
