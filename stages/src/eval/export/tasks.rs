//! Task files: YAML, and the rows as JSONL beside it.

use std::path::Path;

use pipe_engine::task::TaskError;
use serde_json::{Map, Value, json};

use super::{Task, make_folder, write_text};

/// All exported tasks together, for `--tasks`.
const TAG: &str = "pipe";
/// The harness resolves names of files against the folder that it is started in; this is how a task finds its rows beside it.
const LOADER: (&str, &str) = ("rows.py", include_str!("rows.py"));
const INCLUDE: (&str, &str) = (
    "_rows_yaml",
    "# Reads `dataset_kwargs.data_files` from this folder, wherever it lies.\ncustom_dataset: !function rows.load\n",
);

/// A task's settings by the harness' names, in its order.
pub(super) fn config(task: &Task) -> Map<String, Value> {
    let mut config = Map::new();
    config.insert("task".into(), json!(task.name));
    config.insert("tag".into(), json!([TAG]));
    config.insert("dataset_path".into(), json!("json"));
    config.insert("dataset_kwargs".into(), json!({ "data_files": { "test": format!("{}.jsonl", task.name) } }));
    config.insert("test_split".into(), json!("test"));
    config.extend(task.config.iter().map(|(key, value)| (key.to_string(), value.clone())));
    config.insert("num_fewshot".into(), json!(0));
    config.insert("metadata".into(), json!({ "version": 1 }));
    config
}

/// Writes tasks and rows.
pub(super) fn write(tasks: &[Task], folder: &Path) -> Result<(), TaskError> {
    make_folder(folder)?;
    for (name, text) in [LOADER, INCLUDE] {
        write_text(&folder.join(name), text)?;
    }
    for task in tasks {
        let mut text = format!("# lm_eval --include_path THIS_FOLDER --tasks {} --model hf ...\n", task.name);
        text.push_str(&format!("include: {}\n", INCLUDE.0));
        config(task).iter().for_each(|(key, value)| text.push_str(&format!("{key}: {}\n", flow(value))));
        write_text(&folder.join(format!("{}.yaml", task.name)), &text)?;
        let rows: String = task.docs.iter().map(|doc| format!("{}\n", doc.columns)).collect();
        write_text(&folder.join(format!("{}.jsonl", task.name)), &rows)?;
    }
    Ok(())
}

/// A value on one line of YAML 1.1, which the harness reads.
pub(super) fn flow(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| format!("{}: {}", quoted(key), flow(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::String(text) => quoted(text),
        // YAML 1.1 takes `1e-7` for a text.
        Value::Number(number) if number.is_f64() => number.as_f64().unwrap_or_default().to_string(),
        other => other.to_string(),
    }
}

/// A text in double quotes, all but printable ASCII escaped.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            ' '..='~' => out.push(c),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out + "\""
}
