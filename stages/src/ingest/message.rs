//! The insides of a message that data writes in more than one way: parts of content, reasoning, tool calls, tools.

use serde_json::{Map, Value, json};

use super::format::{flag, kind};

/// Content in parts as one text, and which of its characters are trained where the parts say so (`train`, or `weight`).
pub fn plain_content(parts: &[Value]) -> Result<(String, Option<Value>), String> {
    let mut whole = String::new();
    let mut details = Vec::new();
    let (mut offset, mut said) = (0, false);
    for (i, part) in parts.iter().enumerate() {
        let text = match part {
            Value::String(text) => text.as_str(),
            Value::Object(part) => part_text(part).map_err(|why| format!("has content whose part {} {why}", i + 1))?,
            other => return Err(format!("has content whose part {} is {}, not an object", i + 1, kind(other))),
        };
        let own = part.get("train").or_else(|| part.get("weight")).filter(|value| !value.is_null()).and_then(flag);
        said |= own.is_some();
        let length = text.chars().count();
        if length > 0 {
            let (from, to) = (offset, offset + length - 1);
            details.push(json!({"begin_offset": from, "end_offset": to, "train": own.unwrap_or(true)}));
            offset += length;
        }
        whole.push_str(text);
    }
    Ok((whole, said.then_some(Value::Array(details))))
}

fn part_text(part: &Map<String, Value>) -> Result<&str, String> {
    let found = ["text", "content", "value"].iter().find_map(|name| part.get(*name).filter(|value| !value.is_null()));
    match (found, part.get("type").and_then(Value::as_str)) {
        (Some(Value::String(text)), _) => Ok(text),
        (Some(other), _) => Err(format!("has a text that is {}", kind(other))),
        (None, None | Some("text")) => Ok(""),
        (None, Some(other)) => Err(format!(
            "is of type `{other}`; only text is trained here: leave such rows out, or describe it in words"
        )),
    }
}

/// Tags that hold reasoning, in the order they are looked for.
const THINKING: [(&str, &str); 3] =
    [("<think>", "</think>"), ("<reasoning>", "</reasoning>"), ("<|begin_of_thought|>", "<|end_of_thought|>")];
const SOLUTION: (&str, &str) = ("<|begin_of_solution|>", "<|end_of_solution|>");

/// Moves tagged reasoning out of an assistant's content, to the property that templates read it from.
pub fn split_thinking(message: &mut Map<String, Value>, property: &str) {
    let Some(Value::String(content)) = message.get("content") else { return };
    for (open, close) in THINKING {
        let (Some(start), Some(end)) = (content.find(open), content.find(close)) else { continue };
        let thought = content.get(start + open.len()..end).unwrap_or("").trim().to_string();
        let rest = content[end + close.len()..].trim_start();
        let answer = match (rest.find(SOLUTION.0), rest.find(SOLUTION.1)) {
            (Some(from), Some(to)) => rest.get(from + SOLUTION.0.len()..to).unwrap_or("").trim(),
            _ => rest,
        };
        let answer = answer.to_string();
        message.insert("content".into(), Value::String(answer));
        message.insert(property.to_string(), Value::String(thought));
        return;
    }
}

/// Arguments of tool calls that are JSON in a text become what they say, as templates expect.
pub fn parse_arguments(message: &mut Map<String, Value>) -> Result<(), String> {
    let Some(Value::Array(calls)) = message.get_mut("tool_calls") else { return Ok(()) };
    for call in calls {
        let Some(Value::Object(function)) = call.get_mut("function") else { continue };
        let name = function.get("name").and_then(Value::as_str).unwrap_or("without a name").to_string();
        if let Some(arguments) = function.get_mut("arguments")
            && let Value::String(text) = arguments
        {
            *arguments = match text.trim() {
                "" => json!({}),
                text => serde_json::from_str(text)
                    .map_err(|e| format!("calls the tool `{name}` with arguments that are not JSON: {e}"))?,
            };
        }
    }
    Ok(())
}

/// The tools of a row: a list, or its JSON text; parameters may be JSON text again. Nothing and an empty list are none.
pub fn parse_tools(tools: Value) -> Result<Option<Value>, String> {
    let mut tools = match tools {
        Value::Null => return Ok(None),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => serde_json::from_str(&text).map_err(|e| format!("is a text that is not JSON: {e}"))?,
        other => other,
    };
    let Value::Array(items) = &mut tools else {
        return Err(format!("is {}, not a list of tools", kind(&tools)));
    };
    for tool in items.iter_mut() {
        if let Some(parameters) = tool.get_mut("function").and_then(|function| function.get_mut("parameters"))
            && let Value::String(text) = parameters
        {
            *parameters = serde_json::from_str(text).map_err(|e| format!("has parameters that are not JSON: {e}"))?;
        }
    }
    Ok(if items.is_empty() { None } else { Some(tools) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn parts_become_one_text_with_their_flags() {
        let parts =
            [json!({"type": "text", "text": "hé"}), json!("y"), json!({"type": "text", "value": " z", "weight": 0})];
        let (text, details) = plain_content(&parts).unwrap();
        assert_eq!(text, "héy z");
        let expected = json!([
            {"begin_offset": 0, "end_offset": 1, "train": true},
            {"begin_offset": 2, "end_offset": 2, "train": true},
            {"begin_offset": 3, "end_offset": 4, "train": false}
        ]);
        assert_eq!(details, Some(expected));
        assert_eq!(plain_content(&[json!({"text": "a"})]).unwrap(), ("a".to_string(), None));
        let image = plain_content(&[json!({"type": "image_url", "image_url": {}})]).unwrap_err();
        assert!(image.contains("part 1 is of type `image_url`"), "{image}");
    }

    #[test]
    fn reasoning_is_cut_out() {
        let mut message = map(json!({"role": "assistant", "content": "<think>\nwhy\n</think>\n\nso"}));
        split_thinking(&mut message, "reasoning_content");
        assert_eq!(Value::Object(message), json!({"role": "assistant", "content": "so", "reasoning_content": "why"}));
        let text = "<|begin_of_thought|>a<|end_of_thought|> <|begin_of_solution|> b <|end_of_solution|>";
        let mut message = map(json!({ "content": text }));
        split_thinking(&mut message, "t");
        assert_eq!(Value::Object(message), json!({"content": "b", "t": "a"}));
        let mut message = map(json!({"content": "</think> <think>"}));
        split_thinking(&mut message, "t");
        assert_eq!(message["t"], "");
    }

    #[test]
    fn json_in_texts_is_read() {
        let mut message =
            map(json!({"tool_calls": [{"function": {"name": "f", "arguments": "{\"b\": 1, \"a\": 2.0}"}}]}));
        parse_arguments(&mut message).unwrap();
        assert_eq!(message["tool_calls"][0]["function"]["arguments"], json!({"b": 1, "a": 2.0}));
        let mut message = map(json!({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}));
        assert!(parse_arguments(&mut message).unwrap_err().contains("`f` with arguments that are not JSON"));
        let tools = parse_tools(json!("[{\"function\": {\"parameters\": \"{}\"}}]")).unwrap();
        assert_eq!(tools, Some(json!([{"function": {"parameters": {}}}])));
        assert_eq!(parse_tools(json!("[]")).unwrap(), None);
        assert!(parse_tools(json!("x")).unwrap_err().contains("not JSON"));
        assert!(parse_tools(json!({"a": 1})).unwrap_err().contains("an object, not a list"));
    }
}
