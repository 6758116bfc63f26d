//! BLEU (Papineni et al. 2002) as sacrebleu 2 computes it: tokens of mteval-v13a, four orders, exponential smoothing.
//!
//! Numbers are compared with sacrebleu's in tests/fixtures/scores.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::text::words;

/// Longest n-gram.
pub const ORDER: usize = 4;
/// Sums of a row: words of the answer, words of the reference, n-grams that match, n-grams of the answer.
pub const WIDTH: usize = 2 + 2 * ORDER;

/// mteval-v13a's rules for Western languages, in their order.
static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let rules = [
        (r"([\x7b-\x7e\x5b-\x60 -&(-+:-@/])", " $1 "),
        (r"([^0-9])([.,])", "$1 $2 "),
        (r"([.,])([^0-9])", " $1 $2"),
        (r"([0-9])(-)", "$1 $2 "),
    ];
    rules.into_iter().filter_map(|(rule, with)| Some((Regex::new(rule).ok()?, with))).collect()
});

/// The tokens of mteval-v13a.
pub fn tokens(text: &str) -> Vec<String> {
    let mut text = text.trim_end_matches(super::text::is_space).to_string();
    for (from, to) in [("<skipped>", ""), ("-\n", ""), ("\n", " ")] {
        text = text.replace(from, to);
    }
    if text.contains('&') {
        for (from, to) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            text = text.replace(from, to);
        }
    }
    let mut text = format!(" {text} ");
    for (rule, with) in RULES.iter() {
        text = rule.replace_all(&text, *with).into_owned();
    }
    words(&text).map(str::to_string).collect()
}

/// What one answer adds to the corpus's sums.
pub fn sums(answer: &str, reference: &str) -> [f64; WIDTH] {
    let (answer, reference) = (tokens(answer), tokens(reference));
    let mut sums = [0.0; WIDTH];
    (sums[0], sums[1]) = (answer.len() as f64, reference.len() as f64);
    for order in 1..=ORDER {
        let mut left: HashMap<&[String], u64> = HashMap::new();
        reference.windows(order).for_each(|gram| *left.entry(gram).or_default() += 1);
        for gram in answer.windows(order) {
            sums[1 + ORDER + order] += 1.0;
            if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
                *count -= 1;
                sums[1 + order] += 1.0;
            }
        }
    }
    sums
}

/// BLEU of a corpus, from 0 to 100.
pub fn score(sums: &[f64]) -> f64 {
    let (answer, reference) = (sums[0], sums[1]);
    let (matched, totals) = (&sums[2..2 + ORDER], &sums[2 + ORDER..WIDTH]);
    if matched.iter().all(|count| *count == 0.0) {
        return 0.0;
    }
    let brevity = if answer < reference { (1.0 - reference / answer).exp() } else { 1.0 };
    let mut smooth = 1.0;
    let mut logs = 0.0;
    for (matched, total) in matched.iter().zip(totals) {
        // Answers too short for this order, and so for every longer one.
        if *total == 0.0 {
            return 0.0;
        }
        let precision = if *matched == 0.0 {
            smooth *= 2.0;
            100.0 / (smooth * total)
        } else {
            100.0 * matched / total
        };
        logs += precision.ln();
    }
    brevity * (logs / ORDER as f64).exp()
}
