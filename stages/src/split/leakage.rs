//! Leakage: training rows that ask what a held-out row asks.
//!
//! ```text
//! val     Translate "good morning" to French    -> Bonjour
//! train   translate 'good morning' to french!   -> Bonjour !          (the same prompt)
//! ```
//! Equal rows never straddle splits; rows whose prompts are equal, letter case and punctuation aside, or share four of five
//! runs of three words, may. They are found here, counted, and written to `leakage.json`.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use pipe_engine::task::{Context, Summary, TaskError};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Part, ROWS_PER_BATCH, Split};
use crate::alike::{Index, Likeness, Sketch, mix, words};
use crate::clean::contamination::asked;
use crate::conversation::Example;
use crate::rows::{batches, text_column};

/// The file beside the parts. No stage reads it.
const LEAKAGE_FILE: &str = "leakage.json";
const NEAR: f64 = 0.8;
const RUN_WORDS: usize = 3;
/// A prompt of fewer words is too common to tell anything.
const FEWEST_WORDS: usize = 3;
const SAMPLES: usize = 5;

/// What happens to training rows that leak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Leakage {
    Ignore,
    #[default]
    Report,
    Drop,
}

/// Prompts of held-out rows, and the training rows found to ask the same.
pub struct Leaks {
    action: Leakage,
    held: Option<Held>,
    same: u64,
    near: u64,
    samples: Vec<Value>,
}

struct Held {
    likeness: Likeness,
    /// Which held-out row asks this.
    prompts: HashMap<u64, usize>,
    index: Index,
    rows: Vec<(String, Part)>,
}

struct Prompt {
    hash: u64,
    sketch: Sketch,
}

enum Found {
    Same(usize),
    Near(usize, f64),
}

impl Leaks {
    /// Reads the prompts of what `parts` holds out; nothing is read where nothing is held out, or nobody asks.
    pub fn start(
        split: &Split,
        ctx: &Context,
        parts: impl Fn(&RecordBatch) -> Result<Vec<Option<Part>>, TaskError>,
    ) -> Result<Leaks, TaskError> {
        let mut leaks = Leaks { action: split.leakage, held: None, same: 0, near: 0, samples: Vec::new() };
        let holds = split.all_to.is_none() && !(split.val.is_zero() && split.test.is_zero());
        if !holds || split.leakage == Leakage::Ignore {
            return Ok(leaks);
        }
        let likeness = Likeness::new(NEAR, RUN_WORDS);
        let mut held = Held { likeness, prompts: HashMap::new(), index: Index::new(likeness), rows: Vec::new() };
        for batch in batches(ctx.input("rows")?, &["row_id", "data", "meta"], ROWS_PER_BATCH)? {
            ctx.cancel.check()?;
            let batch = batch?;
            let (ids, data) = (text_column(&batch, "row_id")?, text_column(&batch, "data")?);
            for (i, part) in parts(&batch)?.into_iter().enumerate() {
                let Some(part) = part.filter(|part| *part != Part::Train) else { continue };
                if let Some(prompt) = prompt(likeness, data.value(i))? {
                    held.add(prompt, ids.value(i), part);
                }
            }
        }
        leaks.held = Some(held);
        Ok(leaks)
    }

    /// Looks at a batch's training rows; with `drop`, those that leak lose their part.
    pub fn find(&mut self, batch: &RecordBatch, parts: &mut [Option<Part>]) -> Result<(), TaskError> {
        let Some(held) = self.held.as_ref().filter(|held| !held.rows.is_empty()) else { return Ok(()) };
        let (ids, data) = (text_column(batch, "row_id")?, text_column(batch, "data")?);
        let one = |i: usize| -> Result<Option<Found>, TaskError> {
            if parts[i] != Some(Part::Train) {
                return Ok(None);
            }
            Ok(prompt(held.likeness, data.value(i))?.and_then(|prompt| held.find(&prompt)))
        };
        let found: Vec<Option<Found>> = (0..parts.len()).into_par_iter().map(one).collect::<Result<_, _>>()?;
        for (i, found) in found.into_iter().enumerate() {
            let (other, alike) = match found {
                None => continue,
                Some(Found::Same(other)) => {
                    self.same += 1;
                    (other, 1.0)
                }
                Some(Found::Near(other, alike)) => {
                    self.near += 1;
                    (other, alike)
                }
            };
            if self.samples.len() < SAMPLES {
                let (row_id, part) = &held.rows[other];
                self.samples.push(json!({
                    "row_id": ids.value(i), "held_out": row_id, "part": part.name(), "alike": (alike * 100.0).round() / 100.0,
                }));
            }
            if self.action == Leakage::Drop {
                parts[i] = None;
            }
        }
        Ok(())
    }

    /// Says what was found.
    pub fn finish(self, ctx: &Context, summary: &mut Summary) -> Result<(), TaskError> {
        let Some(held) = &self.held else { return Ok(()) };
        let page = json!({
            "held_out": held.rows.len(), "same_prompt": self.same, "near_prompt": self.near,
            "dropped": self.action == Leakage::Drop, "samples": self.samples,
        });
        let path = ctx.out().join(LEAKAGE_FILE);
        let text = serde_json::to_string_pretty(&page).map_err(|e| TaskError::Failed(e.to_string()))?;
        std::fs::write(&path, text + "\n").map_err(TaskError::io(format!("cannot write {}", path.display())))?;
        summary.stats.insert("leaks_same_prompt".into(), self.same.into());
        summary.stats.insert("leaks_near_prompt".into(), self.near.into());
        let leaks = self.same + self.near;
        if leaks == 0 {
            return Ok(());
        }
        summary.stats.insert("samples_leaks".into(), self.samples.into());
        match self.action {
            Leakage::Drop => {
                summary.stats.insert("dropped_leaks".into(), leaks.into());
            }
            _ => summary.warnings.push(format!(
                "{leaks} training rows ask what a held-out row asks ({} the same, {} nearly), so scores look better than they \
                 are; `split.leakage: drop` takes them out, `split.group_by` keeps rows of a kind together",
                self.same, self.near
            )),
        }
        Ok(())
    }
}

impl Held {
    fn add(&mut self, prompt: Prompt, row_id: &str, part: Part) {
        let number = self.rows.len();
        self.prompts.entry(prompt.hash).or_insert(number);
        self.index.add(&prompt.sketch);
        self.rows.push((row_id.to_string(), part));
    }

    fn find(&self, prompt: &Prompt) -> Option<Found> {
        if let Some(&number) = self.prompts.get(&prompt.hash) {
            return Some(Found::Same(number));
        }
        self.index.find(&prompt.sketch).map(|(number, alike)| Found::Near(number, alike))
    }
}

/// What a row asks; `None` where it asks nothing, or too little to tell.
fn prompt(likeness: Likeness, data: &str) -> Result<Option<Prompt>, TaskError> {
    let example = Example::parse(data).map_err(|e| TaskError::Failed(format!("a row between stages: {e}")))?;
    let asked = asked(&example);
    let words = words(asked.iter().copied());
    if words.len() < FEWEST_WORDS {
        return Ok(None);
    }
    let hash = words.iter().fold(0, |hash, &word| mix(hash ^ word));
    Ok(Some(Prompt { hash, sketch: likeness.sketch(asked) }))
}
