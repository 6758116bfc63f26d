//! Writing answers: batched decoding with a cache, greedy or sampled.
//!
//! A row's answer depends on its prompt, the settings and its place in the list, never on which rows share its batch
//! (but for rounding in the matrix products). Nothing here knows tokenizers or files.

use pipe_job::Generation;
use tch::{Kind, Tensor};

use crate::decoder::Decoder;
use crate::events::Events;
use crate::lanes::{self, Shared};
use crate::linear::Pass;
use crate::{Result, random};

/// Prompt tokens read in one go at most, whatever the batch: bounds the memory of long prompts.
const PROMPT_TOKENS: usize = 8192;

/// Answers `prompts`, in their order, without the prompt and without the token that ended them. `done` hears how many
/// rows are finished.
pub fn answer(
    decoder: &Decoder,
    prompts: &[Vec<i64>],
    settings: &Generation,
    pass: Pass,
    events: &Events,
    done: &mut (dyn FnMut(usize) + Send),
) -> Result<Vec<Vec<i64>>> {
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut finished = 0;
    let shared = Shared::new(decoder);
    let work = |_: usize, batch: &Vec<usize>| {
        let mut rows: Vec<Row> = batch.iter().map(|&index| Row::new(index, &prompts[index])).collect();
        decode(shared.get(), &mut rows, settings, pass, events, &mut |_, _| {})?;
        Ok(rows)
    };
    let lanes = lanes::suited(decoder.config.hidden);
    let batches = batches(prompts, even(prompts.len(), settings.batch.max(1), lanes));
    lanes::in_order(lanes, &batches, work, |rows| {
        finished += rows.len();
        for row in rows {
            answers[row.index] = row.answer().to_vec();
        }
        done(finished);
        Ok(())
    })?;
    Ok(answers)
}

/// Answers one prompt, handing over each token as it is chosen.
pub fn stream(
    decoder: &Decoder,
    prompt: &[i64],
    settings: &Generation,
    pass: Pass,
    events: &Events,
    token: &mut dyn FnMut(i64),
) -> Result<Vec<i64>> {
    let mut rows = vec![Row::new(0, prompt)];
    decode(decoder, &mut rows, settings, pass, events, &mut |_, id| token(id))?;
    Ok(rows.swap_remove(0).answer().to_vec())
}

/// One row being answered.
struct Row {
    index: usize,
    prompt: usize,
    /// Prompt and answer so far.
    ids: Vec<i64>,
}

impl Row {
    fn new(index: usize, prompt: &[i64]) -> Self {
        Self { index, prompt: prompt.len(), ids: prompt.to_vec() }
    }

    fn answer(&self) -> &[i64] {
        &self.ids[self.prompt..]
    }
}

/// The size of batches of at most `most` rows that keeps all lanes at work to the end.
fn even(rows: usize, most: usize, lanes: usize) -> usize {
    rows.div_ceil(rows.div_ceil(most).next_multiple_of(lanes).max(1)).max(1)
}

/// Row numbers in batches of like length, longest first so that memory peaks at once and not an hour in.
fn batches(prompts: &[Vec<i64>], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(prompts[i].len()), i));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for index in order {
        let length = prompts[index].len();
        match batches.last_mut() {
            Some(batch) if batch.len() < most && tokens + length <= PROMPT_TOKENS => batch.push(index),
            _ => {
                batches.push(vec![index]);
                tokens = 0;
            }
        }
        tokens += length;
    }
    batches
}

/// Fills the rows' answers. Finished rows leave the batch at once.
fn decode(
    decoder: &Decoder,
    rows: &mut [Row],
    settings: &Generation,
    pass: Pass,
    events: &Events,
    chosen: &mut dyn FnMut(usize, i64),
) -> Result<()> {
    if settings.max_new_tokens == 0 {
        return Ok(());
    }
    let mut cache = decoder.cache();
    let prompts: Vec<Vec<i64>> = rows.iter().map(|row| row.ids.clone()).collect();
    let mut logits = decoder.prefill(&prompts, &mut cache, pass)?;
    let mut open: Vec<usize> = (0..rows.len()).collect();
    loop {
        events.check()?;
        let tokens = choose(&logits, rows, &open, settings)?;
        let mut kept = Vec::new();
        for (place, (&row, &token)) in open.iter().zip(&tokens).enumerate() {
            if settings.stop.contains(&token) {
                continue;
            }
            rows[row].ids.push(token);
            chosen(row, token);
            if rows[row].answer().len() < settings.max_new_tokens {
                kept.push(place);
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
        let next: Vec<i64> = kept.iter().map(|&place| tokens[place]).collect();
        if kept.len() < open.len() {
            cache.keep(&kept);
            open = kept.iter().map(|&place| open[place]).collect();
        }
        logits = decoder.step(&next, &mut cache, pass)?;
    }
}

/// The next token of each open row from logits `[rows, vocabulary]`.
fn choose(logits: &Tensor, rows: &[Row], open: &[usize], settings: &Generation) -> Result<Vec<i64>> {
    if settings.temperature <= 0.0 && settings.repetition_penalty == 1.0 {
        return Ok(Vec::try_from(logits.argmax(1, false))?);
    }
    let pick = |(place, &row): (usize, &usize)| {
        let mut scores = Vec::<f32>::try_from(logits.get(place as i64).to_kind(Kind::Float))?;
        penalise(&mut scores, &rows[row].ids, settings.repetition_penalty);
        if settings.temperature <= 0.0 {
            return Ok(largest(&scores));
        }
        let key = random::mix(settings.seed, rows[row].index as u64);
        Ok(sample(&scores, settings, random::unit(key, rows[row].answer().len() as u64)))
    };
    open.iter().enumerate().map(pick).collect()
}

/// Lowers the score of every token seen so far (Keskar et al., arXiv 1909.05858).
fn penalise(scores: &mut [f32], seen: &[i64], penalty: f64) {
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

/// The first largest score.
fn largest(scores: &[f32]) -> i64 {
    let better = |best: usize, i: usize| if scores[i] > scores[best] { i } else { best };
    (0..scores.len()).fold(0, better) as i64
}

/// Draws from the softmax at a temperature, cut to the `top_k` likeliest and then to the fewest that hold `top_p` of
/// the probability. `draw` is uniform in [0, 1).
fn sample(scores: &[f32], settings: &Generation, draw: f64) -> i64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let descending = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if settings.top_k > 0 && settings.top_k < order.len() {
        order.select_nth_unstable_by(settings.top_k - 1, descending);
        order.truncate(settings.top_k);
    }
    order.sort_unstable_by(descending);
    let peak = f64::from(scores[order[0]]);
    let mut weights: Vec<f64> =
        order.iter().map(|&i| ((f64::from(scores[i]) - peak) / settings.temperature).exp()).collect();
    if settings.top_p < 1.0 {
        let total: f64 = weights.iter().sum();
        let mut held = 0.0;
        let inside = |w: &&f64| {
            let more = held < settings.top_p * total;
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

    fn settings() -> Generation {
        Generation {
            max_new_tokens: 8,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 1,
            stop: vec![],
            batch: 4,
        }
    }

    #[test]
    fn batches_hold_every_row_once_within_both_limits() {
        let prompts: Vec<Vec<i64>> = (0..50).map(|i| vec![1; (i * 37) % 700 + 1]).collect();
        let batches = batches(&prompts, 16);
        let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        for batch in &batches {
            assert!(batch.len() <= 16);
            assert!(batch.iter().map(|&i| prompts[i].len()).sum::<usize>() <= PROMPT_TOKENS);
        }
        assert_eq!(super::batches(&[vec![1; 9000], vec![1]], 16), [vec![0], vec![1]]);
    }

    #[test]
    fn no_lane_is_left_with_a_short_batch() {
        assert_eq!([even(220, 64, 2), even(220, 64, 1), even(3, 32, 2), even(1, 32, 2)], [55, 55, 2, 1]);
        assert_eq!([even(0, 32, 2), even(64, 32, 4)], [1, 16]);
    }

    #[test]
    fn sampling_follows_the_probabilities_and_their_cuts() {
        let scores = [0.0f32, 3f32.ln(), f32::NEG_INFINITY, 6f32.ln()];
        let counts = |s: &Generation| {
            let mut counts = [0; 4];
            (0..1000).for_each(|i| counts[sample(&scores, s, f64::from(i) / 1000.0) as usize] += 1);
            counts
        };
        let [a, b, c, d] = counts(&settings());
        assert!(
            (a - 100i32).abs() <= 1 && (b - 300i32).abs() <= 1 && c == 0 && (d - 600i32).abs() <= 1,
            "{a} {b} {c} {d}"
        );
        assert_eq!(counts(&Generation { top_k: 1, ..settings() }), [0, 0, 0, 1000]);
        let [a, b, c, d] = counts(&Generation { top_p: 0.7, ..settings() });
        assert!(a == 0 && c == 0 && (b - 333i32).abs() <= 1 && (d - 667i32).abs() <= 1, "{a} {b} {c} {d}");
    }

    #[test]
    fn penalty_lowers_seen_tokens_once_whatever_their_sign() {
        let mut scores = [2.0, -2.0, 1.0];
        penalise(&mut scores, &[0, 1, 0, 99], 2.0);
        assert_eq!(scores, [1.0, -4.0, 1.0]);
        assert_eq!(largest(&scores), 0);
    }
}
