//! Writing answers: batched decoding with a cache, greedy or sampled.
//!
//! A row's answer depends on its prompt, the settings and its place in the list, never on which rows share its batch
//! (but for rounding in the matrix products). Nothing here knows tokenizers or files.

use pipe_job::Generation;
use tch::{Kind, Tensor};

use crate::cache::Blocks;
use crate::decoder::Decoder;
use crate::events::Events;
use crate::lanes::{self, Shared};
use crate::linear::Pass;
use crate::sample::{self, Cut};
use crate::{Result, random};

/// Prompt tokens read in one go at most, whatever the batch: bounds the memory of long prompts.
const PROMPT_TOKENS: usize = 8192;

/// Answers `prompts`, in their order, without the prompt and without the token that ended them. `ended` says of an answer
/// so far that its last token completes it; `done` hears how many rows are finished.
pub fn answer(
    decoder: &Decoder,
    prompts: &[Vec<i64>],
    settings: &Generation,
    pass: Pass,
    events: &Events,
    ended: &(dyn Fn(&[i64]) -> bool + Sync),
    done: &mut (dyn FnMut(usize) + Send),
) -> Result<Vec<Vec<i64>>> {
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut finished = 0;
    let shared = Shared::new(decoder);
    let work = |_: usize, batch: &Vec<usize>| {
        let mut rows: Vec<Row> = batch.iter().map(|&index| Row::new(index, &prompts[index])).collect();
        decode(shared.get(), &mut rows, settings, pass, events, ended)?;
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
    ended: &(dyn Fn(&[i64]) -> bool + Sync),
) -> Result<()> {
    if settings.max_new_tokens == 0 {
        return Ok(());
    }
    let blocks = Blocks::new(&decoder.config, decoder.compute, usize::MAX);
    let mut cache = blocks.cache(blocks.root());
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
            if rows[row].answer().len() < settings.max_new_tokens && !ended(rows[row].answer()) {
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
        sample::penalise(&mut scores, &rows[row].ids, settings.repetition_penalty);
        if settings.temperature <= 0.0 {
            return Ok(sample::largest(&scores));
        }
        let key = random::mix(settings.seed, rows[row].index as u64);
        let cut = Cut { temperature: settings.temperature, top_p: settings.top_p, top_k: settings.top_k };
        Ok(sample::draw(&scores, cut, random::unit(key, rows[row].answer().len() as u64)))
    };
    open.iter().enumerate().map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
