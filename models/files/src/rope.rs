//! Rotary frequencies and the schemes that stretch them, computed as transformers does.

use std::f64::consts::TAU;

/// The rotary positions of some layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// Elements of a head that are rotated; the rest pass unchanged.
    pub dim: usize,
    /// The longest sequence the model is said to take; dynamic scaling starts beyond it.
    pub max_positions: usize,
    pub scaling: Option<RopeScaling>,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions divided by `factor`.
    Linear { factor: f64 },
    /// The base grows with the sequence once it is longer than the model's positions.
    Dynamic { factor: f64 },
    /// Low frequencies stretched, high ones kept, a ramp between (Peng et al., arXiv 2309.00071).
    Yarn { factor: f64, original: f64, attention_factor: f64, beta_fast: f64, beta_slow: f64, truncate: bool },
    /// Llama 3.1: long wavelengths stretched, short ones kept, a ramp between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_positions: f64 },
    /// One divisor per frequency, one set for short and one for long sequences (Ding et al., arXiv 2402.13753).
    LongRope { short: Vec<f32>, long: Vec<f32>, original: usize, attention_factor: f64 },
}

impl Rope {
    /// Inverse frequencies for a sequence of `length` tokens, `dim / 2` of them.
    pub fn inverse_frequencies(&self, length: usize) -> Vec<f32> {
        let plain = self.plain(self.theta);
        match &self.scaling {
            None => plain,
            Some(RopeScaling::Linear { factor }) => plain.into_iter().map(|f| f / *factor as f32).collect(),
            Some(RopeScaling::Dynamic { factor }) => {
                let (dim, most) = (self.dim as f64, self.max_positions as f64);
                let stretch = factor * (length as f64).max(most) / most - (factor - 1.0);
                self.plain(self.theta * stretch.powf(dim / (dim - 2.0)))
            }
            Some(RopeScaling::LongRope { short, long, original, .. }) => {
                let factors = if length > *original { long } else { short };
                plain.into_iter().zip(factors).map(|(f, by)| f / by).collect()
            }
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions }) => {
                let ramp = |f: f32| {
                    let f = f64::from(f);
                    let turns = original_max_positions * f / TAU;
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    ((1.0 - smooth) * f / factor + smooth * f) as f32
                };
                plain.into_iter().map(ramp).collect()
            }
            Some(RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. }) => {
                let (low, high) = self.yarn_range(*original, *beta_fast, *beta_slow, *truncate);
                let blend = |(i, f): (usize, f32)| {
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    let f = f64::from(f);
                    (f / factor * stretched + f * (1.0 - stretched)) as f32
                };
                plain.into_iter().enumerate().map(blend).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            Some(RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. }) => {
                *attention_factor
            }
            _ => 1.0,
        }
    }

    /// Whether the frequencies hang on the sequence's length.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, Some(RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. }))
    }

    /// Powers are taken in f64 and rounded once; the exponent is f32's, as in transformers.
    fn plain(&self, theta: f64) -> Vec<f32> {
        let power = |i: usize| f64::from(theta as f32).powf(f64::from((2 * i) as f32 / self.dim as f32)) as f32;
        (0..self.dim.div_ceil(2)).map(|i| 1.0 / power(i)).collect()
    }

    /// Between which frequencies YaRN's ramp lies.
    fn yarn_range(&self, original: f64, beta_fast: f64, beta_slow: f64, truncate: bool) -> (f64, f64) {
        let dim = self.dim as f64;
        let place = |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (place(beta_fast), place(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // A ramp of no width would divide by zero.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_scaling_leaves_short_sequences_alone() {
        let scaling = Some(RopeScaling::Dynamic { factor: 2.0 });
        let rope = Rope { theta: 10_000.0, dim: 8, max_positions: 64, scaling };
        let plain = Rope { scaling: None, ..rope.clone() };
        assert_eq!(rope.inverse_frequencies(64), plain.inverse_frequencies(0));
        assert!(rope.inverse_frequencies(65)[3] < plain.inverse_frequencies(0)[3]);
    }
}
