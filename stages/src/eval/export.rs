//! What was asked and answered, for EleutherAI's lm-evaluation-harness: tasks that it runs, and outputs as it writes them.
//!
//! ```text
//! tasks/pipe_test.yaml    a task for each split with answers, and for each file of choices
//! tasks/pipe_test.jsonl   its rows: prompts as the model was given them, and what should follow
//! outputs/base/results_DATE.json, samples_pipe_test_DATE.jsonl
//! ```
//! Tasks name no folder: they find their rows beside themselves, wherever they are moved to. Formats:
//! <https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md> and, of outputs,
//! `lm_eval/loggers/evaluation_tracker.py`. Both are compared with version 0.4.13 in tests/fixtures/lm_eval.

mod chosen;
mod outputs;
mod tasks;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pipe_engine::task::TaskError;
use pipe_job::Asked;
use serde_json::Value;

use super::Eval;
use super::answers::Decoder;
use super::losses::Loss;
use super::questions::Questions;

/// Folder within the stage's output.
const FOLDER: &str = "lm_eval";

/// A task as the harness has it.
struct Task {
    name: String,
    /// What its file says besides its name and its rows, in order.
    config: Vec<(&'static str, Value)>,
    /// Name of the filter that answers go through before they are scored.
    filter: &'static str,
    docs: Vec<Doc>,
    /// By model.
    outcomes: BTreeMap<String, Outcome>,
}

/// A row.
struct Doc {
    columns: Value,
    prompt: String,
    target: String,
}

/// What a model made of a task.
struct Outcome {
    /// One for each row.
    samples: Vec<Sample>,
    scores: Vec<Score>,
}

/// What a model made of a row. Requests are one, or one for each choice.
struct Sample {
    /// Both arguments of each request.
    requests: Vec<[Value; 2]>,
    /// What came back for each, as text within lists.
    resps: Vec<Value>,
    filtered: Vec<Value>,
    metrics: Vec<(&'static str, Value)>,
}

struct Score {
    metric: &'static str,
    value: f64,
    /// Standard error of a mean; `None` for scores of a whole corpus.
    error: Option<f64>,
}

/// Where the answers are.
pub(super) struct Source<'a> {
    pub asked: &'a [Asked],
    /// The worker's answers; there are none where nothing was asked.
    pub answers: &'a Path,
    pub decoder: &'a Decoder<'a>,
    pub losses: &'a BTreeMap<(String, String), Vec<Loss>>,
    pub questions: &'a Questions,
}

/// Writes tasks and outputs into the stage's output; what is to be said of them.
pub(super) fn write(eval: &Eval, source: &Source<'_>, out: &Path) -> Result<Vec<String>, TaskError> {
    let (mut tasks, mut warnings) = written::tasks(eval, source)?;
    tasks.extend(chosen::tasks(source));
    tasks.retain(|task| !task.docs.is_empty());
    if tasks.is_empty() {
        warnings.push("eval.export: no row was answered, so there is nothing to export".to_string());
        return Ok(warnings);
    }
    distinct(&mut tasks);
    let folder = out.join(FOLDER);
    tasks::write(&tasks, &folder.join("tasks"))?;
    let models: BTreeSet<&String> = tasks.iter().flat_map(|task| task.outcomes.keys()).collect();
    for model in models {
        outputs::write(&tasks, model, &folder.join("outputs").join(model))?;
    }
    Ok(warnings)
}

/// The task of a split or of a file of choices. The harness takes commas and `*` for lists of tasks, and the name is part of
/// file names.
fn task_name(own: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    format!("pipe_{}", own.chars().map(plain).collect::<String>())
}

/// Gives tasks of one name different ones.
fn distinct(tasks: &mut [Task]) {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for task in tasks {
        let own = task.name.clone();
        let mut number = 2;
        while !taken.insert(task.name.clone()) {
            task.name = format!("{own}_{number}");
            number += 1;
        }
    }
}

/// The mean of a metric over rows, and its standard error.
fn mean(metric: &'static str, values: &[f64]) -> Score {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let spread: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (values.len() > 1).then(|| (spread / (count - 1.0)).sqrt() / count.sqrt());
    Score { metric, value: mean, error }
}

/// A task's metrics as its file lists them.
fn metric_list(metrics: &[(&str, &str)]) -> Value {
    let one = |(metric, aggregation): &(&str, &str)| serde_json::json!({ "metric": metric, "aggregation": aggregation, "higher_is_better": true });
    metrics.iter().map(one).collect()
}

fn write_text(path: &Path, text: &str) -> Result<(), TaskError> {
    std::fs::write(path, text).map_err(TaskError::io(format!("writing {}", path.display())))
}

fn make_folder(path: &Path) -> Result<(), TaskError> {
    std::fs::create_dir_all(path).map_err(TaskError::io(format!("making {}", path.display())))
}

#[cfg(test)]
mod tests;
