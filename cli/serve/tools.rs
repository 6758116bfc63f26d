//! Calls of tools in an answer's text, in the shapes that models are trained to write.
//!
//! `<tool_call>{"name", "arguments"}</tool_call>` (Hermes, Qwen), `[TOOL_CALLS][{…}]` (Mistral), `<|python_tag|>{…}` and a
//! bare object `{"name", "parameters"}` (Llama 3). What is in none of these shapes stays text.

use serde_json::{Value, json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
const TAG: &str = "<|python_tag|>";

/// An answer taken apart.
#[derive(Debug, PartialEq)]
pub struct Parsed {
    /// What is said besides the calls.
    pub text: String,
    /// As OpenAI has them, without ids: `{"name", "arguments"}`, arguments a string of JSON.
    pub calls: Vec<Value>,
}

/// Finds the calls of the tools that were offered.
pub fn parse(answer: &str, offered: &[String]) -> Parsed {
    let whole = || Parsed { text: answer.to_string(), calls: Vec::new() };
    let known = |calls: Vec<Value>| {
        let fits = |call: &Value| call["name"].as_str().is_some_and(|name| offered.iter().any(|other| other == name));
        (!calls.is_empty() && calls.iter().all(fits)).then_some(calls)
    };
    if answer.contains(OPEN) {
        let (text, calls) = tagged(answer);
        return calls.and_then(known).map_or_else(whole, |calls| Parsed { text, calls });
    }
    for (mark, strict) in [(LIST, false), (TAG, false), ("", true)] {
        let Some((before, rest)) = answer.split_once(mark) else { continue };
        if strict && !rest.trim_start().starts_with('{') {
            continue;
        }
        if let Some(calls) = objects(rest.trim()).and_then(known) {
            return Parsed { text: before.trim_end().to_string(), calls };
        }
    }
    whole()
}

/// How much of an answer in the making is surely text and can be sent.
pub fn settled(answer: &str) -> usize {
    if answer.trim_start().starts_with('{') {
        return 0;
    }
    let marks = [OPEN, LIST, TAG];
    if let Some(at) = marks.iter().filter_map(|mark| answer.find(mark)).min() {
        return at;
    }
    answer.len() - super::stops::overlap(answer, &marks)
}

fn tagged(answer: &str) -> (String, Option<Vec<Value>>) {
    let (mut text, mut calls, mut rest) = (String::new(), Vec::new(), answer);
    while let Some((before, after)) = rest.split_once(OPEN) {
        text.push_str(before.trim_end());
        // The last one may lack its end where the answer was cut behind it.
        let (inner, behind) = after.split_once(CLOSE).unwrap_or((after, ""));
        match objects(inner.trim()) {
            Some(found) => calls.extend(found),
            None => return (String::new(), None),
        }
        rest = behind;
    }
    text.push_str(rest.trim_end());
    (text, Some(calls))
}

/// One call or a list of calls.
fn objects(text: &str) -> Option<Vec<Value>> {
    let value: Value = serde_json::from_str(text).ok()?;
    match value {
        Value::Array(items) => items.iter().map(call).collect(),
        one => Some(vec![call(&one)?]),
    }
}

fn call(value: &Value) -> Option<Value> {
    let name = value.get("name")?.as_str()?;
    let arguments = match value.get("arguments").or(value.get("parameters")) {
        Some(Value::String(text)) => text.clone(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        None => "{}".to_string(),
        Some(_) => return None,
    };
    Some(json!({ "name": name, "arguments": arguments }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(answer: &str) -> (String, Vec<(String, String)>) {
        let parsed = parse(answer, &["look".to_string(), "run".to_string()]);
        let pair = |call: &Value| {
            (call["name"].as_str().unwrap().to_string(), call["arguments"].as_str().unwrap().to_string())
        };
        (parsed.text.clone(), parsed.calls.iter().map(pair).collect())
    }

    #[test]
    fn the_common_shapes_are_read() {
        let look = ("look".to_string(), r#"{"at":1}"#.to_string());
        let run = ("run".to_string(), "{}".to_string());
        for (answer, text, found) in [
            (r#"<tool_call>{"name":"look","arguments":{"at":1}}</tool_call>"#, "", vec![look.clone()]),
            (
                "I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": 1}}\n</tool_call>\n<tool_call>{\"name\":\"run\"}</tool_call>",
                "I look.",
                vec![look.clone(), run.clone()],
            ),
            (
                r#"[TOOL_CALLS][{"name":"look","arguments":{"at":1}},{"name":"run","arguments":{}}]"#,
                "",
                vec![look.clone(), run],
            ),
            (r#"<|python_tag|>{"name":"look","parameters":{"at":1}}"#, "", vec![look.clone()]),
            (r#"{"name":"look","parameters":{"at":1}}"#, "", vec![look]),
            (r#"{"name":"other","parameters":{"at":1}}"#, r#"{"name":"other","parameters":{"at":1}}"#, vec![]),
            ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", vec![]),
            ("plain", "plain", vec![]),
        ] {
            assert_eq!(calls(answer), (text.to_string(), found), "{answer}");
        }
    }

    #[test]
    fn text_before_a_call_can_be_sent_at_once() {
        assert_eq!(settled("so I <tool_c"), 5);
        assert_eq!(settled("so <tool_call>{"), 3);
        assert_eq!(settled(" {\"na"), 0);
        assert_eq!(settled("a < b"), 5);
    }
}
