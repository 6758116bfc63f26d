//! How many rows there are, where small local files tell at once: splits and batches that leave nothing to train on.

use std::io::Read;
use std::path::Path;

use super::Facts;
use crate::recipe::dataset::{Dataset, is_builder};

/// Larger files have rows enough for any batch.
const MOST_BYTES: u64 = 4 << 20;

pub(super) fn check(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    if recipe.train == Some(false) || !facts.sound(&["datasets"]) {
        return;
    }
    let counts: Option<Vec<u64>> =
        recipe.datasets.iter().flatten().map(|dataset| rows_at_most(facts, dataset)).collect();
    let Some(rows) = counts.map(|all| all.iter().sum::<u64>()).filter(|rows| *rows > 0) else { return };
    let section = recipe.split.clone().unwrap_or_default();
    let (key, val) = match section.val {
        Some(val) => ("split.val", val),
        None => ("val_set_size", recipe.val_set_size.unwrap_or(0.0)),
    };
    let test = section.test.unwrap_or(0.0);
    let held = |size: f64| if size < 1.0 { size * rows as f64 } else { size };
    let out = held(val) + held(test);
    let key = if held(test) > held(val) { "split.test" } else { key };
    if !facts.sound(&["val_set_size", "split", "split.val", "split.test"]) {
        return;
    }
    if out >= rows as f64 {
        let message = format!("`{key}` holds out {out} of {rows} rows, which leaves none to train on");
        facts.error("unfit-value", key, message, Some("0.1".to_string()));
        return;
    }
    batch(facts, rows as f64 - out);
}

/// A batch that all rows together do not fill.
fn batch(facts: &mut Facts<'_>, rows: f64) {
    let recipe = facts.recipe;
    let micro = recipe.micro_batch_size.unwrap_or(1);
    let steps = recipe.gradient_accumulation_steps.unwrap_or(1);
    let batch = recipe.batch_size.unwrap_or(micro.saturating_mul(steps));
    let repeats = recipe.augment.as_ref().and_then(|augment| augment.repeat).unwrap_or(1) as f64;
    let grows = recipe.augment.as_ref().is_some_and(|augment| augment.paraphrase.is_some()) || recipe.mix.is_some();
    let keys = ["batch_size", "micro_batch_size", "gradient_accumulation_steps"];
    if batch as f64 > rows * repeats && !grows && facts.sound(&keys) {
        let key = keys.into_iter().filter(|key| facts.written(key)).max_by_key(|key| match *key {
            "batch_size" => batch,
            "micro_batch_size" => micro,
            _ => steps,
        });
        let rows = rows * repeats;
        let message =
            format!("a step takes {batch} rows, and there are at most {rows:.0}: each epoch is one short step");
        let fits = (rows as u64 / micro.max(1)).max(1);
        let remedy = format!("gradient_accumulation_steps: {fits}");
        facts.warning("few-rows", key.unwrap_or("micro_batch_size"), message, Some(remedy));
    }
}

/// No more rows than this, if the dataset is a small local file.
fn rows_at_most(facts: &Facts<'_>, dataset: &Dataset) -> Option<u64> {
    if dataset.weight.is_some_and(|weight| weight > 1.0) {
        return None;
    }
    let path = dataset.path.as_deref()?;
    let files: Vec<&str> = match &dataset.data_files {
        Some(files) if is_builder(path) => files.0.iter().map(String::as_str).collect(),
        Some(_) => return None,
        None => vec![path],
    };
    let rows: Option<Vec<u64>> =
        files.into_iter().map(|file| file_rows(&facts.project.rows(file, dataset.revision.as_deref()))).collect();
    let all: u64 = rows?.iter().sum();
    Some(dataset.max_rows.map_or(all, |most| most.min(all)))
}

fn file_rows(path: &Path) -> Option<u64> {
    let file = std::fs::File::open(path).ok()?;
    if !file.metadata().ok().is_some_and(|meta| meta.is_file() && meta.len() <= MOST_BYTES) {
        return None;
    }
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    let lines = || text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count() as u64;
    match path.extension()?.to_str()? {
        "jsonl" | "ndjson" | "txt" => Some(lines()),
        // Quoted cells may hold line breaks, so lines are the most there can be; one is the header.
        "csv" | "tsv" => Some(lines().saturating_sub(1)),
        "json" if text.trim_ascii_start().starts_with(b"[") => {
            serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(&text).ok().map(|rows| rows.len() as u64)
        }
        _ => None,
    }
}
