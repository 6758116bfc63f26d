//! Intervals by the bootstrap (Efron 1979): rows are drawn again with replacement, the score of each such sample is taken,
//! and the interval holds the middle 95 % of these scores (the percentile method, as sacrebleu's and lm-evaluation-harness's
//! resampling).
//!
//! Draws come from one fixed seed and depend on nothing but the number of rows: equal rows give equal intervals, and two
//! models measured on the same rows are drawn alike.

use super::score::{Formula, Series};

/// Share of the samples within an interval.
const CONFIDENCE: f64 = 0.95;
const SEED: u64 = 0x5EED_0E7A;
/// Beyond this many draws in all, fewer samples are taken: their number matters less than the rows then.
const MOST_DRAWS: usize = 200_000_000;
const FEWEST_SAMPLES: usize = 200;

/// Lower and upper end of the interval around the series' score; `None` for counts, with fewer than two rows, and with
/// `samples` of 0.
pub fn interval(series: &Series, samples: usize) -> Option<[f64; 2]> {
    middle(scores(series, samples)?)
}

/// The same for how much `after` is above `before`, two series of the same rows: every sample is drawn for both, so that
/// what a hard row costs both does not count (the paired bootstrap, Koehn 2004).
pub fn change(before: &Series, after: &Series, samples: usize) -> Option<[f64; 2]> {
    if before.rows() != after.rows() {
        return None;
    }
    let pairs = scores(before, samples)?.into_iter().zip(scores(after, samples)?);
    middle(pairs.map(|(before, after)| after - before).collect())
}

/// The score of each sample, NaN where it has none; equal numbers of rows are drawn alike.
fn scores(series: &Series, samples: usize) -> Option<Vec<f64>> {
    let rows = series.rows();
    if rows < 2 || samples == 0 || series.formula == Formula::Total {
        return None;
    }
    let samples = samples.min((MOST_DRAWS / rows).max(FEWEST_SAMPLES));
    let mut dice = Dice(SEED);
    let mut sums = vec![0.0; series.width()];
    let sample = |_| {
        sums.fill(0.0);
        for _ in 0..rows {
            let row = series.row(dice.below(rows));
            sums.iter_mut().zip(row).for_each(|(sum, own)| *sum += own);
        }
        series.formula.of(&sums).unwrap_or(f64::NAN)
    };
    Some((0..samples).map(sample).collect())
}

fn middle(mut scores: Vec<f64>) -> Option<[f64; 2]> {
    scores.retain(|score| score.is_finite());
    scores.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Some([quantile(&scores, tail)?, quantile(&scores, 1.0 - tail)?])
}

/// A quantile of sorted values, linear between neighbours (numpy's default).
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(if below == above { below } else { below + (above - below) * place.fract() })
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, by the high half of a product (Lemire 2019); its bias, `limit` in 2^64, is nothing here.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }
}
