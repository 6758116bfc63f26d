//! What rules weigh: how long a row is, how much of it is letters, how much of it repeats.

use std::collections::HashSet;

use crate::conversation::Example;

/// A row's measures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measures {
    pub chars: u64,
    pub words: u64,
    /// Share of letters and digits among characters that are no white space; 1 where there are none.
    pub alnum: f64,
    /// How much there is to learn.
    pub answer: u64,
    pub valid: bool,
}

impl Measures {
    pub fn of(example: &Example) -> Measures {
        let (answer, valid) = (answer_size(example), is_valid(example));
        if let Example::Tokens { input_ids, .. } = example {
            // Tokens have no texts; their number stands in.
            let n = input_ids.len() as u64;
            return Measures { chars: n, words: n, alnum: 1.0, answer, valid };
        }
        let texts = example.texts();
        let (mut chars, mut solid, mut alnum) = (0, 0u64, 0u64);
        for c in texts.iter().flat_map(|text| text.chars()) {
            chars += 1;
            solid += u64::from(!c.is_whitespace());
            alnum += u64::from(c.is_alphanumeric());
        }
        let words = texts.iter().map(|text| text.split_whitespace().count() as u64).sum();
        let share = if solid == 0 { 1.0 } else { alnum as f64 / solid as f64 };
        Measures { chars, words, alnum: share, answer, valid }
    }
}

/// Share of a row's runs of three words that were there before, within each text: what one turn quotes of another is no
/// repetition.
pub fn repetition(example: &Example) -> f64 {
    let (mut total, mut repeated) = (0, 0);
    for text in example.texts() {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut seen = HashSet::new();
        for run in words.windows(3) {
            total += 1;
            repeated += u64::from(!seen.insert(run));
        }
    }
    if total == 0 { 0.0 } else { repeated as f64 / total as f64 }
}

/// Characters of answers, or tokens. A message that calls tools says something without text.
fn answer_size(example: &Example) -> u64 {
    let size = |text: &str| text.trim().chars().count() as u64;
    match example {
        Example::Chat { messages, .. } => messages
            .iter()
            .filter(|message| message.get("role").and_then(|role| role.as_str()).is_none_or(|role| role != "system"))
            .map(|message| {
                let texts = message.get("content").map_or(0, |content| match content {
                    serde_json::Value::String(text) => size(text),
                    serde_json::Value::Array(parts) => parts.len() as u64,
                    _ => 0,
                });
                texts + u64::from(message.len() > 2)
            })
            .sum(),
        Example::Instruct { output, .. } => size(output),
        Example::Completion { text } => size(text),
        Example::Segments { segments } => segments.iter().filter(|s| s.label).map(|s| size(&s.text)).sum(),
        Example::Tokens { labels, .. } => labels.iter().filter(|&&label| label != -100).count() as u64,
    }
}

/// Whether the row can be rendered at all: messages have roles, tokens have as many labels and are not negative.
fn is_valid(example: &Example) -> bool {
    match example {
        Example::Chat { messages, .. } => messages
            .iter()
            .all(|message| message.get("role").and_then(|role| role.as_str()).is_some_and(|r| !r.is_empty())),
        Example::Tokens { input_ids, labels } => {
            input_ids.len() == labels.len() && input_ids.iter().all(|&id| (0..=i64::from(i32::MAX)).contains(&id))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Example {
        Example::Completion { text: text.to_string() }
    }

    fn of(text: &str) -> Measures {
        Measures::of(&row(text))
    }

    #[test]
    fn measures_by_hand() {
        let told = of("Hi, you 2!");
        // 10 characters, 8 of them solid, 6 letters and digits: H i y o u 2.
        assert_eq!((told.chars, told.words, told.alnum), (10, 3, 0.75));
        // Runs: abc bca cab abc bca; the last two were there before.
        assert_eq!(repetition(&row("a b c a b c a")), 2.0 / 5.0);
        assert_eq!(repetition(&row("a b")), 0.0);
        assert_eq!(of("").alnum, 1.0);
    }
}
