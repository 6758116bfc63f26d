//! What training will be, as far as it is known before it runs: for `plan`.

use pipe_engine::state::NodeState;
use pipe_stages::compile::base_model;
use pipe_stages::memory::{self, Estimate};
use pipe_stages::recipe::Checkpointing;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::open::Opened;

/// Training's resolved settings with the number of optimizer steps, and the memory it will take.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Forecast {
    /// Empty when the recipe trains nothing.
    pub train: Map<String, Value>,
    pub memory: Map<String, Value>,
}

impl Forecast {
    pub fn of(opened: &Opened, states: &[NodeState]) -> Forecast {
        let train = opened.plan.nodes().iter().find(|node| node.name.stage() == "train");
        let Some(Value::Object(mut settings)) = train.map(|node| node.task.params()) else {
            return Forecast::default();
        };
        let packs =
            states.iter().find(|state| state.node.as_str() == "pack.train").and_then(|state| state.record.as_ref());
        if let Some(record) = packs {
            let rows = record.summary.rows.unwrap_or(0);
            settings.insert("sequences".to_string(), json!(rows));
            for name in ["tokens", "trained_tokens"] {
                if let Some(value) = record.summary.stats.get(name) {
                    settings.insert(name.to_string(), value.clone());
                }
            }
            settings.insert("steps".to_string(), json!(steps(rows, settings.get("batching"))));
        }
        let memory = estimate(opened, &Value::Object(settings.clone()));
        let memory = memory.and_then(|estimate| serde_json::to_value(estimate).ok());
        let memory = memory.and_then(|value| value.as_object().cloned()).unwrap_or_default();
        Forecast { train: settings, memory }
    }

    pub fn steps(&self) -> Option<u64> {
        self.train.get("steps")?.as_u64()
    }
}

fn estimate(opened: &Opened, train: &Value) -> Option<Estimate> {
    let recipe = &opened.recipe;
    let model = base_model(recipe, &opened.project)?;
    let checkpointing = recipe.gradient_checkpointing == Some(Checkpointing::On);
    memory::estimate(&model.path, train, recipe.sequence_len.unwrap_or(512), checkpointing)
}

/// Optimizer steps: each epoch's windows, its last one possibly short; a fraction of an epoch rounds up; max_steps caps.
fn steps(rows: u64, batching: Option<&Value>) -> u64 {
    let number = |name: &str| batching.and_then(|batching| batching.get(name)).and_then(Value::as_f64);
    let window = (number("micro_batch").unwrap_or(1.0) * number("accumulation").unwrap_or(1.0)).max(1.0) as u64;
    let per_epoch = rows.div_ceil(window) as f64;
    let all = (per_epoch * number("epochs").unwrap_or(1.0)).ceil() as u64;
    number("max_steps").map_or(all, |most| all.min(most as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_count_short_windows_and_heed_the_cap() {
        let batching = json!({"micro_batch": 2, "accumulation": 4, "epochs": 3.0, "max_steps": null});
        assert_eq!(steps(17, Some(&batching)), 9);
        let batching = json!({"micro_batch": 1, "accumulation": 1, "epochs": 0.5, "max_steps": 4});
        assert_eq!(steps(9, Some(&batching)), 4);
    }
}
