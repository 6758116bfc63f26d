//! Results and samples of one model, as the harness writes them with `--output_path` and `--log_samples`.

use std::path::Path;

use pipe_engine::task::TaskError;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::tasks::config;
use super::{Outcome, Task, make_folder, write_text};
use crate::hex::hex;

/// Equal evaluations are equal files, so all are of one time.
const DATE: &str = "1970-01-01T00-00-00.000000";
const SOURCE: &str = "pipe";

/// Writes the files of `model`.
pub(super) fn write(tasks: &[Task], model: &str, folder: &Path) -> Result<(), TaskError> {
    make_folder(folder)?;
    let mut hashes = Map::new();
    for task in tasks {
        let Some(outcome) = task.outcomes.get(model) else { continue };
        let samples = samples(task, outcome);
        let all: String =
            samples.iter().flat_map(|sample| HASHES.map(|key| sample[key].as_str().unwrap_or(""))).collect();
        hashes.insert(task.name.clone(), json!(hash(&all)));
        let lines: String = samples.iter().map(|sample| format!("{sample}\n")).collect();
        write_text(&folder.join(format!("samples_{}_{DATE}.jsonl", task.name)), &lines)?;
    }
    let results = results(tasks, model, hashes);
    let text = serde_json::to_string_pretty(&results).map_err(|e| TaskError::Failed(e.to_string()))?;
    write_text(&folder.join(format!("results_{DATE}.json")), &text)
}

/// The keys whose values a task's hash is made of, in this order.
const HASHES: [&str; 3] = ["doc_hash", "prompt_hash", "target_hash"];

fn samples(task: &Task, outcome: &Outcome) -> Vec<Value> {
    let rows = task.docs.iter().zip(&outcome.samples).enumerate();
    let sample = |(place, (doc, sample)): (usize, (&super::Doc, &super::Sample))| {
        let arguments: Map<String, Value> = sample
            .requests
            .iter()
            .enumerate()
            .map(|(i, [first, second])| (format!("gen_args_{i}"), json!({ "arg_0": first, "arg_1": second })))
            .collect();
        let names: Vec<&str> = sample.metrics.iter().map(|(name, _)| *name).collect();
        let mut told = json!({
            "doc_id": place,
            "doc": doc.columns,
            "target": doc.target,
            "arguments": arguments,
            "resps": sample.resps,
            "filtered_resps": sample.filtered,
            "filter": task.filter,
            "metrics": names,
            "doc_hash": hash(&serde_json::to_string_pretty(&doc.columns).unwrap_or_default()),
            "prompt_hash": hash(&doc.prompt),
            "target_hash": hash(&doc.target),
        });
        for (name, value) in &sample.metrics {
            told[*name] = value.clone();
        }
        told
    };
    rows.map(sample).collect()
}

fn results(tasks: &[Task], model: &str, hashes: Map<String, Value>) -> Value {
    let own: Vec<(&Task, &Outcome)> = tasks.iter().filter_map(|task| Some((task, task.outcomes.get(model)?))).collect();
    let by_task = |value: &dyn Fn(&Task, &Outcome) -> Value| -> Map<String, Value> {
        own.iter().map(|(task, outcome)| (task.name.clone(), value(task, outcome))).collect()
    };
    let count = |task: &Task| task.docs.len();
    json!({
        "results": by_task(&scores),
        "group_subtasks": {},
        "configs": by_task(&|task, _| Value::Object(config(task))),
        "versions": by_task(&|_, _| json!(1)),
        "n-shot": by_task(&|_, _| json!(0)),
        "higher_is_better": by_task(&|_, outcome| {
            outcome.scores.iter().map(|score| (score.metric.to_string(), json!(true))).collect()
        }),
        "n-samples": by_task(&|task, _| json!({ "original": count(task), "effective": count(task) })),
        "config": { "model": SOURCE, "model_args": { "model": model }, "limit": null, "gen_kwargs": null },
        "git_hash": null,
        "date": 0.0,
        "task_hashes": hashes,
        "model_source": SOURCE,
        "model_name": model,
        "model_name_sanitized": model,
        "system_instruction": null,
        "system_instruction_sha": null,
        "fewshot_as_multiturn": false,
        "chat_template": null,
        "chat_template_sha": null,
        "start_time": 0.0,
        "end_time": 0.0,
        "total_evaluation_time_seconds": "0.0",
    })
}

fn scores(task: &Task, outcome: &Outcome) -> Value {
    let mut told = json!({ "name": task.name, "alias": task.name, "sample_len": task.docs.len() });
    for score in &outcome.scores {
        told[format!("{},{}", score.metric, task.filter)] = json!(score.value);
        let error = score.error.map_or_else(|| json!("N/A"), |error| json!(error));
        told[format!("{}_stderr,{}", score.metric, task.filter)] = error;
    }
    told
}

/// SHA-256 in hexadecimal.
pub(super) fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}
