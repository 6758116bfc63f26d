//! chrF (Popović 2015) as sacrebleu 2 computes it: six orders of characters without white space, beta 2, orders averaged
//! over those that both sides have.
//!
//! Numbers are compared with sacrebleu's in tests/fixtures/scores.

use std::collections::HashMap;

use super::text::is_space;

/// Longest n-gram, in characters.
pub const ORDER: usize = 6;
/// Sums of a row: for each order the n-grams of the answer, of the reference, and those that match.
pub const WIDTH: usize = 3 * ORDER;
/// Recall counts this much more than precision.
const BETA: f64 = 2.0;

/// What one answer adds to the corpus's sums.
pub fn sums(answer: &str, reference: &str) -> [f64; WIDTH] {
    let characters = |text: &str| text.chars().filter(|c| !is_space(*c)).collect::<Vec<char>>();
    let (answer, reference) = (characters(answer), characters(reference));
    let mut sums = [0.0; WIDTH];
    for order in 1..=ORDER {
        let place = 3 * (order - 1);
        let mut left: HashMap<&[char], u64> = HashMap::new();
        for gram in reference.windows(order) {
            *left.entry(gram).or_default() += 1;
            sums[place + 1] += 1.0;
        }
        // Where the reference is too short for an order, the answer's n-grams are no mistakes.
        if left.is_empty() {
            continue;
        }
        for gram in answer.windows(order) {
            sums[place] += 1.0;
            if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
                *count -= 1;
                sums[place + 2] += 1.0;
            }
        }
    }
    sums
}

/// chrF of a corpus, from 0 to 100.
pub fn score(sums: &[f64]) -> f64 {
    let both = sums.chunks_exact(3).filter(|order| order[0] > 0.0 && order[1] > 0.0);
    let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
    for order in both {
        precision += order[2] / order[0];
        recall += order[2] / order[1];
        orders += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall, weight) = (precision / orders, recall / orders, BETA * BETA);
    100.0 * (1.0 + weight) * precision * recall / (weight * precision + recall)
}
