//! Answers to fixed prompts, step by step: how a model learned to say what it says.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use pipe_engine::event::{Event, Stamped};

use super::chart::{Chart, Series, Style, Unit, chart};
use super::facts::{Developing, Said, Words};
use crate::report::format::{count, percent};

/// Different answers shown of a prompt: the first, the last, and some between.
const SHOWN: usize = 24;
/// Longer answers are not compared word by word.
const COMPARED: usize = 600;
/// Share of repeated runs of four tokens that is worth a word.
const REPETITIVE: f64 = 0.25;

/// An answer of one step.
#[derive(Clone, Debug)]
struct Answer {
    text: String,
    distinct: f64,
    repeated: f64,
}

/// All answers, by prompt and step.
#[derive(Clone, Debug, Default)]
pub struct Samples(IndexMap<String, BTreeMap<u64, Answer>>);

impl Samples {
    /// Of these events; where a step was taken twice, the later one counts.
    pub fn of(events: &[Stamped]) -> Samples {
        let mut samples = Samples::default();
        for stamped in events {
            if let Event::Sample { step, prompt, answer, distinct_2, repeated, .. } = &stamped.event {
                let answer = Answer { text: answer.clone(), distinct: *distinct_2, repeated: *repeated };
                samples.0.entry(prompt.clone()).or_default().insert(*step, answer);
            }
        }
        samples
    }

    /// Each prompt with its answers, equal neighbours as one.
    pub fn developing(&self) -> Vec<Developing> {
        self.0.iter().map(|(prompt, answers)| developing(prompt, answers)).collect()
    }

    /// Means over the prompts of how varied answers are, and how much they repeat themselves.
    pub fn chart(&self) -> Option<Chart> {
        let mut steps: BTreeMap<u64, Vec<&Answer>> = BTreeMap::new();
        for (step, answer) in self.0.values().flatten() {
            steps.entry(*step).or_default().push(answer);
        }
        let mean = |name: &str, number: fn(&Answer) -> f64| Series {
            name: name.to_string(),
            points: steps
                .iter()
                .map(|(step, all)| (*step as f64, all.iter().map(|a| number(a)).sum::<f64>() / all.len() as f64))
                .collect(),
            style: Style::Dots,
        };
        let series = [
            mean("different pairs of tokens", |answer| answer.distinct),
            mean("repeated runs of four tokens", |answer| answer.repeated),
        ];
        chart("how varied the answers are", Unit::Share, &series).filter(|_| steps.len() > 1)
    }
}

fn developing(prompt: &str, answers: &BTreeMap<u64, Answer>) -> Developing {
    // Neighbours with the same text: first step, last step, answer.
    let mut runs: Vec<(u64, u64, &Answer)> = Vec::new();
    for (step, answer) in answers {
        match runs.last_mut().filter(|run| run.2.text == answer.text) {
            Some(run) => run.1 = *step,
            None => runs.push((*step, *step, answer)),
        }
    }
    let kept = spread(runs.len(), SHOWN);
    let left_out = (runs.len() - kept.len()) as u64;
    let mut before = None;
    let said = kept.into_iter().map(|at| {
        let (from, to, answer) = runs[at];
        Said {
            steps: if from == to { count(from) } else { format!("{} to {}", count(from), count(to)) },
            words: marked(before.replace(answer.text.as_str()), &answer.text),
            repeated: if answer.repeated >= REPETITIVE { percent(answer.repeated) } else { String::new() },
        }
    });
    Developing { prompt: prompt.to_string(), said: said.collect(), left_out }
}

/// At most `most` of `n` places: both ends, and others evenly between.
fn spread(n: usize, most: usize) -> Vec<usize> {
    if n <= most {
        return (0..n).collect();
    }
    (0..most).map(|i| i * (n - 1) / (most - 1)).collect()
}

/// A text in stretches: words that are new since `before`, and words that were there.
fn marked(before: Option<&str>, text: &str) -> Vec<Words> {
    let whole = |is_new| vec![Words { text: text.to_string(), is_new }];
    let Some(before) = before else { return whole(false) };
    let old: Vec<&str> = before.split_whitespace().collect();
    let new: Vec<&str> = text.split_inclusive(char::is_whitespace).collect();
    if old.len().max(new.len()) > COMPARED {
        return whole(true);
    }
    let kept = common(&old, &new.iter().map(|word| word.trim()).collect::<Vec<_>>());
    let mut stretches: Vec<Words> = Vec::new();
    for (word, was_there) in new.iter().zip(kept) {
        // White space alone is no word, new or old.
        let is_new = if word.trim().is_empty() { stretches.last().is_some_and(|s| s.is_new) } else { !was_there };
        match stretches.last_mut().filter(|stretch| stretch.is_new == is_new) {
            Some(stretch) => stretch.text.push_str(word),
            None => stretches.push(Words { text: (*word).to_string(), is_new }),
        }
    }
    stretches
}

/// Which words of `new` belong to the longest common subsequence with `old`.
fn common(old: &[&str], new: &[&str]) -> Vec<bool> {
    // The length for every pair of ends, from the last words to the first.
    let mut longest = vec![vec![0u16; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i][j] = match old[i] == new[j] {
                true => longest[i + 1][j + 1] + 1,
                false => longest[i + 1][j].max(longest[i][j + 1]),
            };
        }
    }
    let (mut i, mut j, mut kept) = (0, 0, vec![false; new.len()]);
    while i < old.len() && j < new.len() {
        if old[i] == new[j] {
            kept[j] = true;
            (i, j) = (i + 1, j + 1);
        } else if longest[i + 1][j] >= longest[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use pipe_engine::plan::NodeName;
    use pipe_engine::runs::stamp;

    fn sampled(step: u64, prompt: &str, answer: &str, repeated: f64) -> Stamped {
        let (prompt, answer) = (prompt.to_string(), answer.to_string());
        stamp(Event::Sample { node: NodeName::new("train"), step, prompt, answer, distinct_2: 1.0, repeated })
    }

    #[test]
    fn answers_are_told_by_prompt_with_what_is_new() {
        let events = [
            sampled(0, "list", "I am sorry", 0.0),
            sampled(0, "stop", "no", 0.0),
            sampled(10, "list", "use docker ps", 0.0),
            sampled(20, "list", "use docker ps", 0.0),
            sampled(30, "list", "use docker ps -a -a", 0.5),
            // Taken anew after an interruption.
            sampled(30, "list", "use docker  container ps -a", 0.3),
        ];
        let told = Samples::of(&events).developing();
        assert_eq!(told.iter().map(|d| d.prompt.as_str()).collect::<Vec<_>>(), ["list", "stop"]);
        let lines: Vec<String> = told[0]
            .said
            .iter()
            .map(|said| {
                let words = said.words.iter().map(|w| if w.is_new { format!("[{}]", w.text) } else { w.text.clone() });
                format!("{} {}{}", said.steps, said.repeated, words.collect::<String>())
            })
            .collect();
        assert_eq!(
            lines,
            ["0 I am sorry", "10 to 20 [use docker ps]", "30 30.0 %use docker  [container ]ps [-a]"],
            "words are compared, not letters"
        );
    }

    #[test]
    fn many_answers_keep_both_ends() {
        let events: Vec<Stamped> = (0..100).map(|step| sampled(step, "p", &step.to_string(), 0.0)).collect();
        let told = &Samples::of(&events).developing()[0];
        assert_eq!((told.said.len(), told.left_out), (SHOWN, 100 - SHOWN as u64));
        assert_eq!((told.said[0].steps.as_str(), told.said[SHOWN - 1].steps.as_str()), ("0", "99"));
        let drawn = Samples::of(&events).chart().map(|chart| chart.lines.len());
        assert_eq!((drawn, Samples::of(&events[..1]).chart().map(|_| ())), (Some(2), None));
    }
}
