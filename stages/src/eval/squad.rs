//! Match and token F1 as SQuAD's evaluation has them (Rajpurkar et al. 2016): letter case, ASCII punctuation, articles and
//! white space do not count.
//!
//! Numbers are compared with torchmetrics' in tests/fixtures/scores.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::text::words;

/// A whole word, as Python's `\b` bounds it: letters and numbers, without combining marks.
static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").ok());

/// The text without what does not count.
pub fn normalized(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let bare = |found: &Captures<'_>| match &found[0] {
        "a" | "an" | "the" => " ".to_string(),
        word => word.to_string(),
    };
    let plain = WORD.as_ref().map_or(plain.clone(), |word| word.replace_all(&plain, bare).into_owned());
    words(&plain).collect::<Vec<_>>().join(" ")
}

/// Whether the normalised texts are the same.
pub fn same(answer: &str, reference: &str) -> bool {
    normalized(answer) == normalized(reference)
}

/// Harmonic mean of precision and recall of the normalised texts' words, from 0 to 1; 1 where both have none.
pub fn token_f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (normalized(answer), normalized(reference));
    let (answer, reference): (Vec<&str>, Vec<&str>) = (words(&answer).collect(), words(&reference).collect());
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let mut left: HashMap<&str, u64> = HashMap::new();
    reference.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let mut common = 0.0;
    for word in &answer {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1.0;
        }
    }
    let (precision, recall) = (common / answer.len() as f64, common / reference.len() as f64);
    if common == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}
