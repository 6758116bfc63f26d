//! What a recipe cannot do without, as the schema says it. The checks say the same with a place and a remedy.

use serde_json::{Value, json};

use super::schema::{BOOLEANS, VARIABLE_REF};

/// Adds the rules to the schema. A recipe that extends others may leave everything to them.
pub(super) fn insert(schema: &mut Value) {
    let rules = [
        json!([written(&["base_model"])]),
        json!([
            filled("datasets"),
            {"allOf": [untrained(), {"anyOf": [filled("test_datasets"), switched_on("merge"), switched_on("quantize")]}]}
        ]),
        json!([untrained(), written(&["rl"]), written(&["learning_rate"])]),
        json!([
            untrained(),
            written(&["rl"]),
            written(&["micro_batch_size", "gradient_accumulation_steps"]),
            written(&["micro_batch_size", "batch_size"]),
            written(&["gradient_accumulation_steps", "batch_size"])
        ]),
    ];
    let rules: Vec<Value> = rules
        .into_iter()
        .map(|rule| {
            let ways = rule.as_array().into_iter().flatten().cloned();
            json!({"anyOf": std::iter::once(written(&["extends"])).chain(ways).collect::<Vec<Value>>()})
        })
        .collect();
    schema["allOf"] = json!(rules);
    for definition in ["Dataset", "MergeAdapter"] {
        if let Some(listed) = schema.pointer_mut(&format!("/$defs/{definition}")) {
            listed["allOf"] = json!([written(&["path"])]);
        }
    }
    if let Some(endpoint) = schema.pointer_mut("/$defs/EndpointSection") {
        endpoint["allOf"] = json!([written(&["url", "model"])]);
    }
}

/// The keys are there and not blank.
fn written(keys: &[&str]) -> Value {
    let filled: serde_json::Map<String, Value> =
        keys.iter().map(|key| (key.to_string(), json!({"not": {"type": "null"}}))).collect();
    json!({"required": keys, "properties": filled})
}

/// The list is there and not empty.
fn filled(key: &str) -> Value {
    json!({"required": [key], "properties": {key: {"anyOf": [{"type": "array", "minItems": 1}, {"$ref": VARIABLE_REF}]}}})
}

/// `train` is false.
fn untrained() -> Value {
    json!({"required": ["train"], "properties": {"train": {"anyOf": [{"enum": off()}, {"$ref": VARIABLE_REF}]}}})
}

/// The section is there, and not switched off.
fn switched_on(key: &str) -> Value {
    let mut off = off();
    off.push(Value::Null);
    json!({"required": [key], "properties": {key: {"not": {"enum": off}}}})
}

fn off() -> Vec<Value> {
    let words = BOOLEANS.iter().filter(|(_, on)| !on).map(|(word, _)| json!(word));
    std::iter::once(json!(false)).chain(words).collect()
}
