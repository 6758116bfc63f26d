//! Answers to fixed prompts during training, and the alarm when they collapse.
//!
//! A model that learns too fast, or from rows that are all alike, soon repeats itself or says the same to everything; the
//! loss tells that late. Sampling reads the weights and nothing else: what is trained does not depend on it.

use std::collections::HashSet;

use pipe_job::{Event, TrainSamples};

use crate::decoder::Decoder;
use crate::events::Events;
use crate::linear::Pass;
use crate::{Result, generate};

/// Shorter answers cannot be told to repeat themselves.
const FEWEST_TOKENS: usize = 16;
/// Repeated 4-grams from here on, and this much more than before training, are a collapse.
const MOST_REPEATED: f64 = 0.5;
const MOST_RISEN: f64 = 0.25;

/// Answers so far.
pub struct Sampler<'a> {
    job: &'a TrainSamples,
    tokenizer: pipe_files::Tokenizer,
    /// The first look, before the alarm has anything to compare.
    first: Option<Look>,
    is_told: bool,
}

/// What the answers of one step have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Look {
    /// Mean share of repeated 4-grams, over answers that are long enough.
    repeated: f64,
    /// All prompts have the same answer, and there are several.
    alike: bool,
}

impl<'a> Sampler<'a> {
    pub fn new(job: &'a TrainSamples) -> Result<Sampler<'a>> {
        let tokenizer = pipe_files::tokenizer(&job.tokenizer)?;
        Ok(Sampler { job, tokenizer, first: None, is_told: false })
    }

    /// Whether the prompts are answered after so many steps.
    pub fn is_due(&self, step: u64, total: u64) -> bool {
        step.is_multiple_of(self.job.every.max(1)) || step == total
    }

    /// Answers the prompts and tells what came of it; warns once of a collapse.
    pub fn sample(&mut self, decoder: &Decoder, step: u64, pass: Pass, events: &Events) -> Result<()> {
        let prompts: Vec<Vec<i64>> = self.job.prompts.iter().map(|(_, ids)| ids.clone()).collect();
        let answers = generate::answer(decoder, &prompts, &self.job.generation, pass, events, &|_| false, &mut |_| {})?;
        for ((prompt, _), ids) in self.job.prompts.iter().zip(&answers) {
            let text: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
            events.send(&Event::Sample {
                step,
                prompt: prompt.clone(),
                answer: self.tokenizer.decode(&text, true).unwrap_or_default().trim().to_string(),
                distinct_2: distinct(ids, 2),
                repeated: repeated(ids),
            });
        }
        let look = Look::of(&answers);
        let first = *self.first.get_or_insert(look);
        if let Some(why) = look.collapse(first).filter(|_| !self.is_told) {
            self.is_told = true;
            events.warn(format!(
                "step {step}: {why}. Look at the samples; a lower learning_rate, fewer epochs or more varied rows help"
            ));
        }
        Ok(())
    }
}

impl Look {
    fn of(answers: &[Vec<i64>]) -> Look {
        let shares: Vec<f64> =
            answers.iter().filter(|ids| ids.len() >= FEWEST_TOKENS).map(|ids| repeated(ids)).collect();
        let repeated = if shares.is_empty() { 0.0 } else { shares.iter().sum::<f64>() / shares.len() as f64 };
        Look { repeated, alike: answers.len() > 1 && answers.windows(2).all(|pair| pair[0] == pair[1]) }
    }

    /// Why these answers are a collapse beside the first ones.
    fn collapse(self, first: Look) -> Option<String> {
        if self.alike && !first.alike {
            return Some("every prompt gets the same answer".to_string());
        }
        let share = |share: f64| format!("{:.0} %", 100.0 * share);
        (self.repeated >= MOST_REPEATED && self.repeated >= first.repeated + MOST_RISEN).then(|| {
            let (now, before) = (share(self.repeated), share(first.repeated));
            format!(
                "answers repeat themselves: {now} of their runs of four tokens were there before ({before} at first)"
            )
        })
    }
}

/// Different n-grams by all n-grams (distinct-n, Li et al. 2016, arXiv 1510.03055); 1 where there are none.
fn distinct(ids: &[i64], n: usize) -> f64 {
    let all = ids.windows(n).count();
    let different: HashSet<&[i64]> = ids.windows(n).collect();
    if all == 0 { 1.0 } else { different.len() as f64 / all as f64 }
}

/// Share of 4-grams that were there before (seq-rep-4, Welleck et al. 2019, arXiv 1908.04319).
fn repeated(ids: &[i64]) -> f64 {
    1.0 - distinct(ids, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_papers() {
        // "a b a b a b": bigrams ab ba ab ba ab, two of five differ; 4-grams abab baba abab, one of three is repeated.
        let ids = [1, 2, 1, 2, 1, 2];
        assert!((distinct(&ids, 2) - 0.4).abs() < 1e-12);
        assert!((repeated(&ids) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!((distinct(&[7], 2), repeated(&[1, 2, 3])), (1.0, 0.0));
    }

    #[test]
    fn a_collapse_is_what_was_not_there_at_first() {
        let varied = Look::of(&[(0..40).collect(), (50..90).collect()]);
        let looped = Look::of(&[vec![3; 40], vec![4; 40]]);
        let same = Look::of(&[vec![1, 2, 3], vec![1, 2, 3]]);
        assert_eq!(varied, Look { repeated: 0.0, alike: false });
        assert!(looped.collapse(varied).is_some_and(|why| why.contains("97 %")), "{looped:?}");
        assert!(same.collapse(varied).is_some_and(|why| why.contains("same answer")));
        assert_eq!([varied.collapse(varied), looped.collapse(looped), same.collapse(same)], [None, None, None]);
        assert_eq!(Look::of(&[vec![3; 8]]).repeated, 0.0, "too short to tell");
    }
}
