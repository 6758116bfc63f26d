//! What answers and losses are worth: sums of single rows, and the formulas that make one number of many rows' sums.
//!
//! Every measure is a formula of sums, so that a split's number, a dataset's and a bootstrap sample's come from the same
//! rows in the same way. Pure functions of text; each formula's source is named in its module.

use serde_json::Value;

use super::checks::Checker;
use super::{bleu, chrf, rouge, squad};
use crate::recipe::Metric;

/// How sums over rows become a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Formula {
    /// The first sum by the second.
    Mean,
    /// e to the power of the same: perplexity from nats and tokens.
    ExpMean,
    /// The sum itself; a count, without an interval.
    Total,
    Bleu,
    Chrf,
}

impl Formula {
    /// Sums that a row has.
    pub fn width(self) -> usize {
        match self {
            Formula::Mean | Formula::ExpMean => 2,
            Formula::Total => 1,
            Formula::Bleu => bleu::WIDTH,
            Formula::Chrf => chrf::WIDTH,
        }
    }

    /// The number; `None` where there is nothing to divide by.
    pub fn of(self, sums: &[f64]) -> Option<f64> {
        let number = match self {
            Formula::Mean | Formula::ExpMean if sums[1] == 0.0 => return None,
            Formula::Mean => sums[0] / sums[1],
            Formula::ExpMean => (sums[0] / sums[1]).exp(),
            Formula::Total => sums[0],
            Formula::Bleu => bleu::score(sums),
            Formula::Chrf => chrf::score(sums),
        };
        number.is_finite().then_some(number)
    }
}

/// One measure of many rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub formula: Formula,
    sums: Vec<f64>,
}

impl Series {
    pub fn new(formula: Formula) -> Series {
        Series { formula, sums: Vec::new() }
    }

    /// Adds a row; `sums` are as many as the formula wants.
    pub fn push(&mut self, sums: &[f64]) {
        debug_assert_eq!(sums.len(), self.width());
        self.sums.extend_from_slice(sums);
    }

    pub fn width(&self) -> usize {
        self.formula.width()
    }

    pub fn rows(&self) -> usize {
        self.sums.len() / self.width()
    }

    /// The sums of row `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.sums[i * self.width()..(i + 1) * self.width()]
    }

    /// The measure over all rows.
    pub fn value(&self) -> Option<f64> {
        let mut sums = vec![0.0; self.width()];
        for row in self.sums.chunks_exact(self.width()) {
            sums.iter_mut().zip(row).for_each(|(sum, own)| *sum += own);
        }
        self.formula.of(&sums)
    }

    /// The rows that `keep` wants, by number.
    pub fn part(&self, keep: impl Fn(usize) -> bool) -> Series {
        let mut part = Series::new(self.formula);
        (0..self.rows()).filter(|&i| keep(i)).for_each(|i| part.push(self.row(i)));
        part
    }
}

/// A row's prompt, the answer it should get and the one it got.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    pub prompt: &'a str,
    pub expected: &'a str,
    pub answer: &'a str,
}

/// What answers are measured by.
#[derive(Debug)]
pub enum Measure {
    Metric(Metric, Formula),
    /// A check and its name.
    Check(String, Checker),
}

impl Measure {
    pub fn name(&self) -> String {
        match self {
            Measure::Metric(metric, _) => metric.name(),
            Measure::Check(name, _) => name.clone(),
        }
    }

    pub fn formula(&self) -> Formula {
        match self {
            Measure::Metric(_, formula) => *formula,
            Measure::Check(..) => Formula::Mean,
        }
    }

    /// What one answer adds to the sums.
    ///
    /// # Errors
    /// Why a check made nothing of the answer.
    pub fn sums(&self, row: Answered<'_>) -> Result<Vec<f64>, String> {
        match self {
            Measure::Metric(metric, _) => Ok(metric.sums(row)),
            Measure::Check(name, checker) => match checker.score(row) {
                Ok(score) => Ok(vec![score, 1.0]),
                Err(why) => Err(format!("eval.checks, `{name}`: {why}")),
            },
        }
    }
}

impl Metric {
    /// The name in recipes and tables.
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(Value::String(name)) => name,
            _ => String::new(),
        }
    }

    /// How answers' sums become a number; `None` for what is measured without answers.
    pub fn formula(self) -> Option<Formula> {
        match self {
            Metric::Perplexity => None,
            Metric::Bleu => Some(Formula::Bleu),
            Metric::Chrf => Some(Formula::Chrf),
            Metric::ExactMatch | Metric::NormalizedMatch | Metric::TokenF1 | Metric::RougeL | Metric::JsonValid => {
                Some(Formula::Mean)
            }
        }
    }

    /// What one answer adds to the sums of [`Metric::formula`].
    pub fn sums(self, row: Answered<'_>) -> Vec<f64> {
        let Answered { expected, answer, .. } = row;
        let share = |is: bool| vec![f64::from(u8::from(is)), 1.0];
        match self {
            Metric::Perplexity => Vec::new(),
            Metric::ExactMatch => share(answer == expected),
            Metric::NormalizedMatch => share(squad::same(answer, expected)),
            Metric::JsonValid => share(serde_json::from_str::<serde::de::IgnoredAny>(answer).is_ok()),
            Metric::TokenF1 => vec![squad::token_f1(answer, expected), 1.0],
            Metric::RougeL => vec![rouge::rouge_l(answer, expected), 1.0],
            Metric::Bleu => bleu::sums(answer, expected).to_vec(),
            Metric::Chrf => chrf::sums(answer, expected).to_vec(),
        }
    }
}
