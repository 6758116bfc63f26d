//! From scores to a token: penalties, cuts and the draw. Knows no model and no batch.

use std::collections::BTreeMap;

/// What of a distribution is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// Above 0.
    pub temperature: f64,
    pub top_p: f64,
    /// 0 for all.
    pub top_k: usize,
}

/// Lowers the score of every token seen so far (Keskar et al., arXiv 1909.05858).
pub fn penalise(scores: &mut [f32], seen: &[i64], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut seen: Vec<usize> = seen.iter().filter_map(|&id| usize::try_from(id).ok()).collect();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(score) = scores.get_mut(id) {
            *score = if *score < 0.0 { *score * penalty as f32 } else { *score / penalty as f32 };
        }
    }
}

/// Lowers the score of every token of the answer once, and by each of its occurrences (OpenAI's two penalties).
pub fn discourage(scores: &mut [f32], answer: &[i64], presence: f64, frequency: f64) {
    if presence == 0.0 && frequency == 0.0 {
        return;
    }
    let mut counts = BTreeMap::<i64, u32>::new();
    answer.iter().for_each(|&id| *counts.entry(id).or_default() += 1);
    for (id, count) in counts {
        if let Some(score) = usize::try_from(id).ok().and_then(|id| scores.get_mut(id)) {
            *score -= (presence + frequency * f64::from(count)) as f32;
        }
    }
}

/// The first largest score.
pub fn largest(scores: &[f32]) -> i64 {
    let better = |best: usize, i: usize| if scores[i] > scores[best] { i } else { best };
    (0..scores.len()).fold(0, better) as i64
}

/// Draws from the softmax at a temperature, cut to the `top_k` likeliest and then to the fewest that hold `top_p` of
/// the probability. `draw` is uniform in [0, 1).
pub fn draw(scores: &[f32], cut: Cut, draw: f64) -> i64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let descending = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if cut.top_k > 0 && cut.top_k < order.len() {
        order.select_nth_unstable_by(cut.top_k - 1, descending);
        order.truncate(cut.top_k);
    }
    order.sort_unstable_by(descending);
    let peak = f64::from(scores[order[0]]);
    let mut weights: Vec<f64> =
        order.iter().map(|&i| ((f64::from(scores[i]) - peak) / cut.temperature).exp()).collect();
    if cut.top_p < 1.0 {
        let total: f64 = weights.iter().sum();
        let mut held = 0.0;
        let inside = |w: &&f64| {
            let more = held < cut.top_p * total;
            held += **w;
            more
        };
        let count = weights.iter().take_while(inside).count().max(1);
        weights.truncate(count);
    }
    let mut left = draw * weights.iter().sum::<f64>();
    for (weight, &id) in weights.iter().zip(&order) {
        left -= weight;
        if left < 0.0 {
            return id as i64;
        }
    }
    order[weights.len() - 1] as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Cut = Cut { temperature: 1.0, top_p: 1.0, top_k: 0 };

    #[test]
    fn sampling_follows_the_probabilities_and_their_cuts() {
        let scores = [0.0f32, 3f32.ln(), f32::NEG_INFINITY, 6f32.ln()];
        let counts = |cut: Cut| {
            let mut counts = [0; 4];
            (0..1000).for_each(|i| counts[draw(&scores, cut, f64::from(i) / 1000.0) as usize] += 1);
            counts
        };
        let [a, b, c, d] = counts(ALL);
        assert!(
            (a - 100i32).abs() <= 1 && (b - 300i32).abs() <= 1 && c == 0 && (d - 600i32).abs() <= 1,
            "{a} {b} {c} {d}"
        );
        assert_eq!(counts(Cut { top_k: 1, ..ALL }), [0, 0, 0, 1000]);
        let [a, b, c, d] = counts(Cut { top_p: 0.7, ..ALL });
        assert!(a == 0 && c == 0 && (b - 333i32).abs() <= 1 && (d - 667i32).abs() <= 1, "{a} {b} {c} {d}");
    }

    #[test]
    fn penalty_lowers_seen_tokens_once_whatever_their_sign() {
        let mut scores = [2.0, -2.0, 1.0];
        penalise(&mut scores, &[0, 1, 0, 99], 2.0);
        assert_eq!(scores, [1.0, -4.0, 1.0]);
        assert_eq!(largest(&scores), 0);
    }

    #[test]
    fn an_answers_own_tokens_are_discouraged_by_their_number() {
        let mut scores = [0.0, 1.0, 2.0];
        discourage(&mut scores, &[1, 2, 1, 7], 0.5, 0.25);
        assert_eq!(scores, [0.0, 0.0, 1.25]);
    }
}
