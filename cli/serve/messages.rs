//! Messages and tools of a request, in the form that chat templates expect.

use pipe_stages::prompter::Message;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::request::wrong;

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool", "function"];

/// The conversation.
pub fn messages(value: Value) -> Result<Vec<Message>, ApiError> {
    let Value::Array(items) = value else { return Err(wrong("messages", "a list")) };
    if items.is_empty() {
        return Err(wrong("messages", "a list of at least one message"));
    }
    items.into_iter().enumerate().map(|(i, item)| message(item, &format!("messages[{i}]"))).collect()
}

fn message(value: Value, place: &str) -> Result<Message, ApiError> {
    let Value::Object(mut message) = value else { return Err(wrong(place, "an object")) };
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default();
    if !ROLES.contains(&role) {
        return Err(wrong(&format!("{place}.role"), &format!("one of {}", ROLES.join(", "))));
    }
    // OpenAI's new name for what templates call the system.
    if role == "developer" {
        message.insert("role".into(), json!("system"));
    }
    let has_calls = message.get("tool_calls").is_some_and(|calls| !calls.is_null());
    let content = match message.remove("content").unwrap_or_default() {
        Value::String(text) => text,
        Value::Array(parts) => text_of(&parts, place)?,
        Value::Null if has_calls => String::new(),
        _ => return Err(wrong(&format!("{place}.content"), "a text or a list of text parts")),
    };
    message.insert("content".into(), json!(content));
    if has_calls {
        let calls = message.remove("tool_calls").unwrap_or_default();
        message.insert("tool_calls".into(), with_parsed_arguments(calls, place)?);
    }
    Ok(message)
}

fn text_of(parts: &[Value], place: &str) -> Result<String, ApiError> {
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(more)) => text.push_str(more),
            _ => {
                return Err(wrong(
                    &format!("{place}.content[{i}]"),
                    "a part of type text: the model reads nothing else",
                ));
            }
        }
    }
    Ok(text)
}

/// OpenAI carries a call's arguments as a string of JSON, templates expect the object.
fn with_parsed_arguments(calls: Value, place: &str) -> Result<Value, ApiError> {
    let Value::Array(mut calls) = calls else { return Err(wrong(&format!("{place}.tool_calls"), "a list")) };
    for (i, call) in calls.iter_mut().enumerate() {
        let place = format!("{place}.tool_calls[{i}].function");
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
            return Err(wrong(&place, "an object"));
        };
        if let Some(Value::String(text)) = function.get("arguments") {
            let arguments: Map<String, Value> = serde_json::from_str(text)
                .map_err(|_| wrong(&format!("{place}.arguments"), "a JSON object, as a text"))?;
            function.insert("arguments".into(), Value::Object(arguments));
        }
    }
    Ok(Value::Array(calls))
}

/// The tools that the template is to show; none where the model is told not to call any.
pub fn tools(tools: Option<Value>, choice: Option<Value>) -> Result<Option<Value>, ApiError> {
    let off = match choice.as_ref().map(|choice| choice.as_str()) {
        None | Some(Some("auto")) => false,
        Some(Some("none")) => true,
        Some(_) => {
            let what = "`tool_choice`: auto and none are supported; the model decides what it calls";
            return Err(ApiError::field("tool_choice", what));
        }
    };
    let Some(tools) = tools else { return Ok(None) };
    let Value::Array(items) = &tools else { return Err(wrong("tools", "a list")) };
    for (i, tool) in items.iter().enumerate() {
        let named = tool.pointer("/function/name").is_some_and(Value::is_string);
        if tool.get("type").and_then(Value::as_str) != Some("function") || !named {
            return Err(wrong(&format!("tools[{i}]"), "an object of type function, with function.name"));
        }
    }
    let none = off || items.is_empty();
    Ok(Some(tools).filter(|_| !none))
}
