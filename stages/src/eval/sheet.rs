//! The table of an evaluation: what was measured, by model, split and dataset, and how sure it is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::bootstrap;
use super::score::{Formula, Series};

/// Measures of the same rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// Dataset of each row, from 0, within its split.
    pub sources: Vec<u16>,
    /// By name, in the order of the table.
    pub series: Vec<(String, Series)>,
}

/// Everything measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sheet {
    blocks: BTreeMap<(String, String), Vec<Block>>,
}

impl Block {
    /// The rows of one dataset.
    fn of(&self, source: u16) -> Block {
        let keep = |row: usize| self.sources[row] == source;
        let series = self.series.iter().map(|(name, series)| (name.clone(), series.part(keep))).collect();
        Block { sources: self.sources.iter().copied().filter(|own| *own == source).collect(), series }
    }
}

impl Sheet {
    pub fn add(&mut self, model: &str, split: &str, block: Block) {
        self.blocks.entry((model.to_string(), split.to_string())).or_default().push(block);
    }

    /// `models` and `intervals` (`{model: {split: {metric: ...}}}`), `changes` (`{split: {metric: {value, interval}}}`, tuned
    /// less base), and under `tasks` the first two for each dataset, by the names that `labels` has for the datasets of a
    /// split. `samples` are the bootstrap's; 0 for no intervals.
    pub fn to_json(&self, labels: &BTreeMap<String, Vec<String>>, samples: usize) -> Value {
        let mut whole = self.tables(samples);
        whole.insert("changes".into(), self.changes(samples));
        whole.insert("tasks".into(), Value::Object(self.tasks(labels, samples)));
        Value::Object(whole)
    }

    fn changes(&self, samples: usize) -> Value {
        let mut changes = json!({});
        for ((_, split), blocks) in self.blocks.iter().filter(|((model, _), _)| model == "tuned") {
            let before = self.blocks.get(&("base".to_string(), split.clone()));
            let before: Vec<_> = before.into_iter().flatten().flat_map(|block| &block.series).collect();
            for (name, after) in blocks.iter().flat_map(|block| &block.series) {
                let Some((_, before)) = before.iter().find(|(own, _)| own == name) else { continue };
                if let (Some(old), Some(new)) = (before.value(), after.value())
                    && after.formula != Formula::Total
                {
                    let interval = bootstrap::change(before, after, samples);
                    changes[split][name] = json!({ "value": new - old, "interval": interval });
                }
            }
        }
        changes
    }

    fn tasks(&self, labels: &BTreeMap<String, Vec<String>>, samples: usize) -> Map<String, Value> {
        let mut tasks: BTreeMap<&str, Sheet> = BTreeMap::new();
        let mut order: Vec<&str> = Vec::new();
        for ((model, split), blocks) in &self.blocks {
            for block in blocks {
                for source in block.sources.iter().copied().collect::<BTreeSet<u16>>() {
                    let Some(label) = labels.get(split).and_then(|names| names.get(usize::from(source))) else {
                        continue;
                    };
                    if !order.contains(&label.as_str()) {
                        order.push(label);
                    }
                    tasks.entry(label).or_default().add(model, split, block.of(source));
                }
            }
        }
        let table = |label: &str| tasks.get(label).map(|sheet| Value::Object(sheet.tables(samples)));
        order.iter().filter_map(|label| Some((label.to_string(), table(label)?))).collect()
    }

    fn tables(&self, samples: usize) -> Map<String, Value> {
        let (mut models, mut intervals) = (json!({}), json!({}));
        for ((model, split), blocks) in &self.blocks {
            for (name, series) in blocks.iter().flat_map(|block| &block.series) {
                let Some(value) = series.value() else { continue };
                models[model][split][name] = number(value, series);
                if let Some(ends) = bootstrap::interval(series, samples) {
                    intervals[model][split][name] = json!(ends);
                }
            }
        }
        [("models".to_string(), models), ("intervals".to_string(), intervals)].into_iter().collect()
    }
}

/// Counts are whole numbers.
fn number(value: f64, series: &Series) -> Value {
    match series.formula {
        Formula::Total => json!(value as u64),
        _ => json!(value),
    }
}
