//! Fits of block scales with least weighted squared error, eight blocks at a time.
//!
//! A lane is a block. Each lane's sums run over its values in order, so that its result is the one that a loop over a
//! single block gives (llama.cpp's, bit for bit), while the compiler makes vector instructions of the lanes. Nothing here
//! may be rewritten with fused multiply-add.

pub(crate) const LANES: usize = 8;

/// One value of each of eight blocks.
pub(crate) type Lanes = [f32; LANES];

/// Blocks whose largest magnitude is below this are zeros.
const NOTHING: f32 = 1e-15;

/// The nearest integer, ties to even. Exact below 2^22; larger values stay larger than any code.
#[inline(always)]
pub(crate) fn nearest(value: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction.
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

/// `value` brought into a range; what is no number becomes `low`.
#[inline(always)]
pub(crate) fn within(value: f32, low: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

/// Lays blocks of `out.len()` values side by side; lanes without a block are zeros.
pub(crate) fn side_by_side(src: &[f32], out: &mut [Lanes]) {
    let width = out.len();
    out.fill([0.0; LANES]);
    for (lane, block) in src.chunks_exact(width).take(LANES).enumerate() {
        block.iter().zip(&mut *out).for_each(|(value, lanes)| lanes[lane] = *value);
    }
}

/// `f` of each pair of values.
pub(crate) fn pairwise<const N: usize>(a: &[Lanes; N], b: &[Lanes; N], f: impl Fn(f32, f32) -> f32) -> [Lanes; N] {
    std::array::from_fn(|i| std::array::from_fn(|l| f(a[i][l], b[i][l])))
}

/// The sum of each lane.
pub(crate) fn sums(values: &[Lanes]) -> Lanes {
    let mut all = [0f32; LANES];
    for lanes in values {
        (0..LANES).for_each(|l| all[l] += lanes[l]);
    }
    all
}

/// The value of largest magnitude, with its sign; the first of several.
pub(crate) fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |most, v| if v.abs() > most.abs() { *v } else { most })
}

fn extremes(x: &[Lanes]) -> Lanes {
    let mut most = [0f32; LANES];
    for lanes in x {
        (0..LANES).for_each(|l| most[l] = if lanes[l].abs() > most[l].abs() { lanes[l] } else { most[l] });
    }
    most
}

/// A fit of `q * scale`, `q` in `-range..range`. Lanes of zeros have `by` zero.
pub(crate) struct Symmetric {
    pub scale: Lanes,
    by: Lanes,
    range: f32,
}

impl Symmetric {
    /// Trial factors around the obvious one fix the codes; least squares then gives the scale for those codes.
    pub(crate) fn fit(x: &[Lanes], weights: &[Lanes], range: f32) -> Self {
        let peaks = extremes(x);
        let mut by = peaks.map(|peak| -range / peak);
        let (product, square) = symmetric_sums(x, weights, range, &by);
        let mut scale: Lanes = std::array::from_fn(|l| if square[l] > 0.0 { product[l] / square[l] } else { 0.0 });
        let mut gain: Lanes = std::array::from_fn(|l| scale[l] * product[l]);
        for step in (-9i8..=9).filter(|step| *step != 0) {
            let trial = peaks.map(|peak| -(range + 0.1 * f32::from(step)) / peak);
            let (product, square) = symmetric_sums(x, weights, range, &trial);
            for l in 0..LANES {
                if square[l] > 0.0 && product[l] * product[l] > gain[l] * square[l] {
                    scale[l] = product[l] / square[l];
                    gain[l] = scale[l] * product[l];
                    by[l] = trial[l];
                }
            }
        }
        for l in (0..LANES).filter(|l| peaks[*l].abs() < NOTHING) {
            (scale[l], by[l]) = (0.0, 0.0);
        }
        Self { scale, by, range }
    }

    /// The code of a value of lane `lane`, counted from the lowest.
    pub(crate) fn code(&self, lane: usize, value: f32) -> u8 {
        let (by, range) = (self.by[lane], self.range);
        if by == 0.0 { 0 } else { (within(nearest(by * value), -range, range - 1.0) + range) as u8 }
    }
}

/// Weighted sums of value times code and of code squared.
fn symmetric_sums(x: &[Lanes], weights: &[Lanes], range: f32, by: &Lanes) -> (Lanes, Lanes) {
    let (mut product, mut square) = ([0f32; LANES], [0f32; LANES]);
    for (x, w) in x.iter().zip(weights) {
        for l in 0..LANES {
            let q = within(nearest(by[l] * x[l]), -range, range - 1.0);
            product[l] += w[l] * x[l] * q;
            square[l] += w[l] * q * q;
        }
    }
    (product, square)
}

/// What an [`Affine`] fit tries: factors `(from + step * i + top) / range`, `i` in `0..=steps`.
#[derive(Clone, Copy)]
pub(crate) struct Trials {
    /// Largest code.
    pub top: f32,
    pub from: f32,
    pub step: f32,
    pub steps: u8,
    /// Compare absolute instead of squared errors.
    pub absolute: bool,
}

/// A fit of `q * scale - min`, `q` in `0..=top`, neither scale nor minimum negative. Lanes of one value have `by` zero.
pub(crate) struct Affine {
    pub scale: Lanes,
    pub min: Lanes,
    by: Lanes,
    low: Lanes,
    top: f32,
}

impl Affine {
    /// Trial factors fix the codes; least squares then gives scale and minimum for those codes. Later trials start at the
    /// best minimum so far.
    pub(crate) fn fit<const N: usize>(x: &[Lanes; N], weights: &[Lanes; N], trials: Trials) -> Self {
        let Trials { top, from, step, steps, absolute } = trials;
        let (mut low, mut high, mut sum_w) = (x[0], x[0], weights[0]);
        let mut sum_x: Lanes = std::array::from_fn(|l| weights[0][l] * x[0][l]);
        for (x, w) in x.iter().zip(weights).skip(1) {
            for l in 0..LANES {
                low[l] = if x[l] < low[l] { x[l] } else { low[l] };
                high[l] = if x[l] > high[l] { x[l] } else { high[l] };
                sum_w[l] += w[l];
                sum_x[l] += w[l] * x[l];
            }
        }
        low = low.map(|v| if v > 0.0 { 0.0 } else { v });
        let flat: [bool; LANES] = std::array::from_fn(|l| high[l] <= low[l]);
        let by: Lanes = std::array::from_fn(|l| top / (high[l] - low[l]));
        let mut best = Self { scale: by.map(|by| 1.0 / by), min: low, by, low, top };
        let mut codes = [[0f32; LANES]; N];
        set_codes(x, &best.by, &low, top, &mut codes);
        let mut least = affine_errors(x, weights, &codes, &best.scale, &low, absolute);
        for index in 0..=steps {
            let start = best.min;
            let by: Lanes = std::array::from_fn(|l| (from + step * f32::from(index) + top) / (high[l] - start[l]));
            set_codes(x, &by, &start, top, &mut codes);
            let (scale, min) = solved(x, weights, &codes, &sum_w, &sum_x);
            let errors = affine_errors(x, weights, &codes, &scale, &min, absolute);
            for l in 0..LANES {
                if errors[l] < least[l] {
                    least[l] = errors[l];
                    (best.scale[l], best.min[l], best.by[l], best.low[l]) = (scale[l], min[l], by[l], start[l]);
                }
            }
        }
        for l in (0..LANES).filter(|l| flat[*l]) {
            (best.scale[l], best.min[l], best.by[l], best.low[l]) = (0.0, low[l], 0.0, low[l]);
        }
        best.min = best.min.map(|v| -v);
        best
    }

    /// The code of a value of lane `lane`.
    pub(crate) fn code(&self, lane: usize, value: f32) -> u8 {
        within(nearest(self.by[lane] * (value - self.low[lane])), 0.0, self.top) as u8
    }
}

fn set_codes<const N: usize>(x: &[Lanes; N], by: &Lanes, low: &Lanes, top: f32, codes: &mut [Lanes; N]) {
    for (x, codes) in x.iter().zip(codes) {
        (0..LANES).for_each(|l| codes[l] = within(nearest(by[l] * (x[l] - low[l])), 0.0, top));
    }
}

/// Scale and offset with least squared error for given codes; not a number where the codes leave them open.
fn solved<const N: usize>(
    x: &[Lanes; N],
    weights: &[Lanes; N],
    codes: &[Lanes; N],
    sum_w: &Lanes,
    sum_x: &Lanes,
) -> (Lanes, Lanes) {
    let (mut sum_q, mut sum_q2, mut sum_xq) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for ((x, w), q) in x.iter().zip(weights).zip(codes) {
        for l in 0..LANES {
            sum_q[l] += w[l] * q[l];
            sum_q2[l] += w[l] * q[l] * q[l];
            sum_xq[l] += w[l] * q[l] * x[l];
        }
    }
    let (mut scale, mut min) = ([f32::NAN; LANES], [f32::NAN; LANES]);
    for l in 0..LANES {
        let determinant = sum_w[l] * sum_q2[l] - sum_q[l] * sum_q[l];
        if determinant > 0.0 {
            scale[l] = (sum_w[l] * sum_xq[l] - sum_x[l] * sum_q[l]) / determinant;
            min[l] = (sum_q2[l] * sum_x[l] - sum_q[l] * sum_xq[l]) / determinant;
            if min[l] > 0.0 {
                // The formats only subtract; the best without an offset is next.
                (min[l], scale[l]) = (0.0, sum_xq[l] / sum_q2[l]);
            }
        }
    }
    (scale, min)
}

fn affine_errors<const N: usize>(
    x: &[Lanes; N],
    weights: &[Lanes; N],
    codes: &[Lanes; N],
    scale: &Lanes,
    min: &Lanes,
    absolute: bool,
) -> Lanes {
    let mut errors = [0f32; LANES];
    for ((x, w), q) in x.iter().zip(weights).zip(codes) {
        for l in 0..LANES {
            let miss = scale[l] * q[l] + min[l] - x[l];
            errors[l] += w[l] * if absolute { miss.abs() } else { miss * miss };
        }
    }
    errors
}

/// Scales and codes (from the lowest) of `q * scale`, `q` in `-range..range`, weighted by squared values: the obvious
/// codes, then up to five rounds in which each code moves to where the fit is better.
pub(crate) fn descended(x: &[Lanes; 16], range: f32) -> (Lanes, [Lanes; 16]) {
    let peaks = extremes(x);
    let mut codes = [[0f32; LANES]; 16];
    let (mut product, mut square) = ([0f32; LANES], [0f32; LANES]);
    for (x, codes) in x.iter().zip(&mut codes) {
        for l in 0..LANES {
            let w = x[l] * x[l];
            codes[l] = within(nearest(-range / peaks[l] * x[l]), -range, range - 1.0);
            product[l] += w * x[l] * codes[l];
            square[l] += w * codes[l] * codes[l];
        }
    }
    for _ in 0..5 {
        for (x, codes) in x.iter().zip(&mut codes) {
            for l in 0..LANES {
                let w = x[l] * x[l];
                let others = product[l] - w * x[l] * codes[l];
                let squares = square[l] - w * codes[l] * codes[l];
                let moved = within(nearest(x[l] * squares / others), -range, range - 1.0);
                let (new_product, new_square) = (others + w * x[l] * moved, squares + w * moved * moved);
                let better = new_product * new_product * square[l] > product[l] * product[l] * new_square;
                if others > 0.0 && moved != codes[l] && new_square > 0.0 && better {
                    (codes[l], product[l], square[l]) = (moved, new_product, new_square);
                }
            }
        }
    }
    let scale =
        std::array::from_fn(
            |l| {
                if square[l] > 0.0 && peaks[l].abs() >= NOTHING { product[l] / square[l] } else { 0.0 }
            },
        );
    for codes in &mut codes {
        (0..LANES).for_each(|l| codes[l] = if peaks[l].abs() < NOTHING { 0.0 } else { codes[l] + range });
    }
    (scale, codes)
}

/// The scale of `q * scale`, `q` in `0..=top`, for values that are not negative, and their codes: trial factors, then up
/// to five rounds in which each code moves to where the fit is better.
pub(crate) fn positive(x: &[f32], weights: &[f32], top: f32, codes: &mut [u8]) -> f32 {
    let most = x.iter().fold(0f32, |most, v| if *v > most { *v } else { most });
    if most < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let error = |by: f32| {
        let scale = 1.0 / by;
        x.iter().zip(weights).fold(0f32, |sum, (v, w)| {
            let miss = v - scale * within(nearest(by * v), 0.0, top);
            sum + w * miss * miss
        })
    };
    let mut by = top / most;
    let mut least = error(by);
    for step in (-4i8..=4).filter(|step| *step != 0) {
        let trial = (0.1 * f32::from(step) + top) / most;
        let found = error(trial);
        if found < least {
            (least, by) = (found, trial);
        }
    }
    let (mut product, mut square) = (0f32, 0f32);
    for ((v, w), code) in x.iter().zip(weights).zip(&mut *codes) {
        let q = within(nearest(by * v), 0.0, top);
        *code = q as u8;
        product += w * v * q;
        square += w * q * q;
    }
    for _ in 0..5 {
        let mut moved = false;
        for ((v, w), code) in x.iter().zip(weights).zip(&mut *codes) {
            let old = f32::from(*code);
            let (others, squares) = (product - w * v * old, square - w * old * old);
            if others <= 0.0 || squares <= 0.0 {
                continue;
            }
            let new = within(nearest(v * squares / others), 0.0, top);
            let (new_product, new_square) = (others + w * v * new, squares + w * new * new);
            if new != old && new_product * new_product * square > product * product * new_square {
                (*code, product, square, moved) = (new as u8, new_product, new_square, true);
            }
        }
        if !moved {
            break;
        }
    }
    if square > 0.0 { product / square } else { 0.0 }
}
