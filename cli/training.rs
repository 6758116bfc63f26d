//! What a run will be, as far as it is known before it runs: rows and tokens of each node, training's steps and memory.
//!
//! Numbers of stored outputs are exact; the others are estimated from the data's files, and marked so.

mod points;
mod rows;

use pipe_engine::state::{NodeState, State};
use pipe_stages::compile::{EvalPoints, base_model};
use pipe_stages::memory::{self, Estimate, Recompute, Tokens};
use pipe_stages::recipe::Checkpointing;
use pipe_stages::size::{self, Fullest};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::open::Opened;
pub use points::Points;
pub use rows::{Amount, Rows};

/// Training's resolved settings with the number of optimizer steps, and the memory it will take.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Forecast {
    /// Empty when the recipe trains nothing.
    pub train: Map<String, Value>,
    pub memory: Map<String, Value>,
    #[serde(skip)]
    pub rows: Rows,
    #[serde(skip)]
    pub estimate: Option<Estimate>,
    #[serde(skip)]
    pub steps: Option<Steps>,
}

/// Training's length, and what happens on the way.
#[derive(Clone, Debug)]
pub struct Steps {
    pub sequences: Amount,
    pub total: u64,
    pub per_epoch: u64,
    pub evaluations: Points,
    pub saves: Points,
}

impl Forecast {
    pub fn of(opened: &Opened, states: &[NodeState]) -> Forecast {
        let rows = Rows::of(opened, states);
        let train = opened.plan.nodes().iter().find(|node| node.name.stage() == "train");
        let Some(Value::Object(mut settings)) = train.map(|node| node.task.params()) else {
            return Forecast { rows, ..Forecast::default() };
        };
        let steps = rows.sequences.map(|sequences| Steps::of(sequences, &settings, opened));
        if let Some(steps) = &steps {
            steps.tell(&rows, &mut settings);
        }
        let estimate = estimate(opened, states, &rows, &Value::Object(settings.clone()));
        if let Some(estimate) = &estimate {
            settings.insert("trainable_parameters".to_string(), json!(estimate.trainable_parameters));
            settings.insert("parameters".to_string(), json!(estimate.parameters));
        }
        let memory = estimate.as_ref().and_then(|estimate| serde_json::to_value(estimate).ok());
        let memory = memory.and_then(|value| value.as_object().cloned()).unwrap_or_default();
        Forecast { train: settings, memory, rows, estimate, steps }
    }
}

impl Steps {
    fn of(sequences: Amount, settings: &Map<String, Value>, opened: &Opened) -> Steps {
        let batching = settings.get("batching");
        let (total, per_epoch) = steps(sequences.n, batching);
        let recipe = &opened.recipe;
        let evaluates = settings.get("eval").cloned().and_then(|points| serde_json::from_value(points).ok());
        let saves = pipe_stages::compile::save_points(recipe);
        Steps {
            sequences,
            total,
            per_epoch,
            evaluations: Points::of(evaluates.unwrap_or(EvalPoints::Never), total, per_epoch),
            // The end of training is the result itself, not a checkpoint.
            saves: Points::of(saves, total, per_epoch).before(total),
        }
    }

    fn tell(&self, rows: &Rows, settings: &mut Map<String, Value>) {
        let mut set = |key: &str, value: Value| settings.insert(key.to_string(), value);
        set("sequences", json!(self.sequences.n));
        for (key, amount) in [("tokens", rows.tokens), ("trained_tokens", rows.trained_tokens)] {
            if let Some(amount) = amount {
                set(key, json!(amount.n));
            }
        }
        set("estimated", json!(!self.sequences.exact));
        set("steps", json!(self.total));
        set("steps_per_epoch", json!(self.per_epoch));
        set("evaluations", json!(self.evaluations.steps));
        set("saves", json!(self.saves.steps));
    }
}

fn estimate(opened: &Opened, states: &[NodeState], rows: &Rows, train: &Value) -> Option<Estimate> {
    let recipe = &opened.recipe;
    let model = base_model(recipe, &opened.project)?;
    let packs = states.iter().find(|state| state.node.as_str() == "pack.train" && state.state == State::Cached);
    let packed = packs.and_then(|state| state.output.as_ref()).map(|folder| folder.join("packs.parquet"));
    let sequence_len = recipe.sequence_len.unwrap_or(512);
    // Row lengths vary widely around their mean; the longest is taken to be some times as long.
    let guessed =
        rows.tokens_per_row.map(|mean| Fullest { row: ((mean * 5.0) as u64).min(sequence_len), pack: sequence_len });
    let tokens = Tokens {
        sequence_len,
        fullest: packed.and_then(|file| size::fullest(&file)).or(guessed),
        recompute: match recipe.gradient_checkpointing {
            None | Some(Checkpointing::Off) => Recompute::Nothing,
            Some(_) => Recompute::Layers,
        },
    };
    memory::estimate(&model.path, &model.written, train, tokens)
}

/// Optimizer steps in all and in an epoch: each epoch's windows, its last one possibly short; a fraction of an epoch rounds
/// up; max_steps caps.
fn steps(rows: u64, batching: Option<&Value>) -> (u64, u64) {
    let number = |name: &str| batching.and_then(|batching| batching.get(name)).and_then(Value::as_f64);
    let window = (number("micro_batch").unwrap_or(1.0) * number("accumulation").unwrap_or(1.0)).max(1.0) as u64;
    let per_epoch = rows.div_ceil(window);
    let all = (per_epoch as f64 * number("epochs").unwrap_or(1.0)).ceil() as u64;
    (number("max_steps").map_or(all, |most| most as u64), per_epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_count_short_windows_and_heed_the_cap() {
        let batching = json!({"micro_batch": 2, "accumulation": 4, "epochs": 3.0, "max_steps": null});
        assert_eq!(steps(17, Some(&batching)), (9, 3));
        let batching = json!({"micro_batch": 1, "accumulation": 1, "epochs": 0.5, "max_steps": 4});
        assert_eq!(steps(9, Some(&batching)), (4, 9));
    }
}
