//! The one shape that every data format becomes at ingest and keeps until it is rendered.
//!
//! A row of data is an [`Example`], stored as one JSON text per row with key order kept, because chat templates can see
//! the order and any extra keys of a message. A row's name is made here too: [`Content`] says what the row is,
//! [`RowIds`] tells equal rows apart.

use std::collections::HashMap;

use pipe_engine::digest::{write_canonical, write_canonical_map, write_canonical_text};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One training example, before any template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "shape", rename_all = "snake_case")]
pub enum Example {
    /// A conversation. Each message has `role`, usually `content`, and whatever else the template reads
    /// (`tool_calls`, `name`, `reasoning_content`, ...); training flags sit under `train` and `train_detail`.
    Chat {
        messages: Vec<Map<String, Value>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tools: Option<Value>,
    },
    /// Instruction, optional input and answer, rendered by a prompt style instead of a chat template.
    Instruct {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        system: Option<String>,
        instruction: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        input: String,
        output: String,
    },
    /// Plain text, all of it trained.
    Completion { text: String },
    /// Pieces of text, each trained or not, joined without anything between.
    Segments { segments: Vec<Segment> },
    /// Already tokenised; labels are -100 where masked.
    Tokens { input_ids: Vec<i64>, labels: Vec<i64> },
}

/// A piece of an `input_output` row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    pub label: bool,
    pub text: String,
}

/// What a row says, as 96 bits of BLAKE3 over its canonical JSON. Equal content has equal digests whatever the order of
/// keys, the spacing, or the file it came from; unequal content does not collide in practice (chance 10⁻¹³ at 10⁸ rows).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content([u8; 12]);

/// Names rows: 24 hex digits of content, then 8 of how many equal rows came before. So a row keeps its name when others
/// are added, removed or moved, and a row id alone tells which rows are equal.
#[derive(Default)]
pub struct RowIds {
    seen: HashMap<Content, u32>,
}

impl Example {
    /// Reads the `data` column's JSON. Several times faster than serde's derived reading of tagged enums.
    pub fn parse(data: &str) -> Result<Example, String> {
        let value: Map<String, Value> = serde_json::from_str(data).map_err(|e| e.to_string())?;
        from_map(value)
    }

    /// The `data` column's JSON.
    pub fn to_data(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Every text that a person wrote, in order: what length rules measure and normalisation changes.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Example::Chat { messages, .. } => messages.iter().flat_map(message_texts).collect(),
            Example::Instruct { system, instruction, input, output } => {
                let system = system.as_deref().into_iter();
                system.chain([instruction.as_str(), input.as_str(), output.as_str()]).collect()
            }
            Example::Completion { text } => vec![text],
            Example::Segments { segments } => segments.iter().map(|segment| segment.text.as_str()).collect(),
            Example::Tokens { .. } => Vec::new(),
        }
    }

    /// The same texts, to be changed in place.
    pub fn texts_mut(&mut self) -> Vec<&mut String> {
        match self {
            Example::Chat { messages, .. } => messages.iter_mut().flat_map(message_texts_mut).collect(),
            Example::Instruct { system, instruction, input, output } => {
                system.iter_mut().chain([instruction, input, output]).collect()
            }
            Example::Completion { text } => vec![text],
            Example::Segments { segments } => segments.iter_mut().map(|segment| &mut segment.text).collect(),
            Example::Tokens { .. } => Vec::new(),
        }
    }
}

impl Content {
    /// Of an example's canonical JSON.
    pub fn of(example: &Example) -> Content {
        let mut out = String::with_capacity(1024);
        write_example(example, &mut out);
        Content::of_bytes(out.as_bytes())
    }

    /// Of bytes that say it all already.
    pub fn of_bytes(bytes: &[u8]) -> Content {
        let mut digest = [0; 12];
        digest.copy_from_slice(&blake3::hash(bytes).as_bytes()[..12]);
        Content(digest)
    }

    /// The content that a row id names.
    pub fn of_row_id(row_id: &str) -> Option<Content> {
        let hex = row_id.get(..24)?;
        let mut digest = [0; 12];
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Content(digest))
    }

    pub fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// The id of the row with this content that has `before` equal rows before it.
    pub fn row_id(&self, before: u32) -> String {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut out = String::with_capacity(32);
        for byte in self.0.iter().chain(&before.to_be_bytes()) {
            out.push(HEX[usize::from(byte >> 4)] as char);
            out.push(HEX[usize::from(byte & 15)] as char);
        }
        out
    }
}

impl RowIds {
    /// The next row with this content.
    pub fn name(&mut self, content: Content) -> String {
        content.row_id(self.count(content))
    }

    /// How many rows with this content were counted before; counts this one.
    pub fn count(&mut self, content: Content) -> u32 {
        let seen = self.seen.entry(content).or_insert(0);
        *seen += 1;
        *seen - 1
    }

    /// Whether a row with this content was named before.
    pub fn has(&self, content: Content) -> bool {
        self.seen.contains_key(&content)
    }
}

fn from_map(mut map: Map<String, Value>) -> Result<Example, String> {
    match map.get("shape").and_then(Value::as_str) {
        Some("chat") => {
            let Some(Value::Array(items)) = map.get_mut("messages").map(Value::take) else {
                return Err("a chat row without messages".into());
            };
            let messages = items.into_iter().map(|item| match item {
                Value::Object(message) => Ok(message),
                other => Err(format!("a message that is {other}")),
            });
            Ok(Example::Chat {
                messages: messages.collect::<Result<_, _>>()?,
                tools: map.get_mut("tools").map(Value::take),
            })
        }
        Some("instruct") => {
            let mut take = |key: &str| match map.get_mut(key).map(Value::take) {
                Some(Value::String(text)) => Some(text),
                _ => None,
            };
            Ok(Example::Instruct {
                system: take("system"),
                instruction: take("instruction").unwrap_or_default(),
                input: take("input").unwrap_or_default(),
                output: take("output").unwrap_or_default(),
            })
        }
        _ => serde_json::from_value(Value::Object(map)).map_err(|e| e.to_string()),
    }
}

/// Equal to the engine's canonical JSON of the serialised example, without building it.
fn write_example(example: &Example, out: &mut String) {
    match example {
        Example::Chat { messages, tools } => {
            out.push_str("{\"messages\":[");
            for (i, message) in messages.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical_map(message, out);
            }
            out.push_str("],\"shape\":\"chat\"");
            if let Some(tools) = tools {
                out.push_str(",\"tools\":");
                write_canonical(tools, out);
            }
            out.push('}');
        }
        Example::Instruct { system, instruction, input, output } => {
            out.push('{');
            if !input.is_empty() {
                write_field("input", input, out);
                out.push(',');
            }
            write_field("instruction", instruction, out);
            out.push(',');
            write_field("output", output, out);
            out.push_str(",\"shape\":\"instruct\"");
            if let Some(system) = system {
                out.push(',');
                write_field("system", system, out);
            }
            out.push('}');
        }
        other => write_canonical(&serde_json::to_value(other).unwrap_or_default(), out),
    }
}

fn write_field(key: &str, text: &str, out: &mut String) {
    write_canonical_text(key, out);
    out.push(':');
    write_canonical_text(text, out);
}

/// The texts of a message: its content (a text, or a list of parts with `text`) and its reasoning.
fn message_texts(message: &Map<String, Value>) -> Vec<&str> {
    let mut texts = Vec::new();
    for key in TEXT_KEYS {
        match message.get(key) {
            Some(Value::String(text)) => texts.push(text.as_str()),
            Some(Value::Array(parts)) => {
                texts.extend(parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)));
            }
            _ => {}
        }
    }
    texts
}

fn message_texts_mut(message: &mut Map<String, Value>) -> Vec<&mut String> {
    let mut texts = Vec::new();
    for (key, value) in message.iter_mut() {
        if !TEXT_KEYS.contains(&key.as_str()) {
            continue;
        }
        match value {
            Value::String(text) => texts.push(text),
            Value::Array(parts) => texts.extend(parts.iter_mut().filter_map(|part| match part.get_mut("text") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            })),
            _ => {}
        }
    }
    texts
}

const TEXT_KEYS: [&str; 3] = ["content", "reasoning_content", "thinking"];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use pipe_engine::digest::canonical_json;
    use serde_json::json;

    use super::*;

    fn examples() -> Vec<Example> {
        let chat = json!({"shape": "chat", "messages": [
            {"role": "user", "content": "hi \"there\"\n\u{1F600}", "x": 1.0},
            {"content": [{"type": "text", "text": "a"}], "role": "assistant", "tool_calls": [{"b": 1, "a": 1e-7}]}],
            "tools": [{"name": "f"}]});
        let instruct = json!({"shape": "instruct", "system": "s", "instruction": "i", "input": "x", "output": "o"});
        let short = json!({"shape": "instruct", "instruction": "i", "output": "o"});
        let tokens = json!({"shape": "tokens", "input_ids": [1, 2], "labels": [-100, 2]});
        let segments = json!({"shape": "segments", "segments": [{"label": true, "text": "t"}]});
        [chat, instruct, short, tokens, segments].into_iter().map(|v| serde_json::from_value(v).unwrap()).collect()
    }

    #[test]
    fn data_survives_and_fast_reading_equals_serdes() {
        for example in examples() {
            let data = example.to_data();
            assert_eq!(Example::parse(&data).unwrap(), example);
            assert_eq!(serde_json::from_str::<Example>(&data).unwrap(), example);
        }
        assert!(Example::parse("{}").is_err());
        assert!(Example::parse(r#"{"shape":"chat","messages":3}"#).is_err());
    }

    #[test]
    fn content_is_the_digest_of_canonical_json() {
        for example in examples() {
            let canonical = canonical_json(&serde_json::to_value(&example).unwrap());
            assert_eq!(Content::of(&example), Content::of_bytes(canonical.as_bytes()));
        }
    }

    #[test]
    fn equal_rows_have_equal_content_and_different_ids() {
        let mut ids = RowIds::default();
        let content = Content::of(&examples()[0]);
        let (first, second) = (ids.name(content), ids.name(content));
        assert_eq!(first.len(), 32);
        assert_ne!(first, second);
        assert_eq!(Content::of_row_id(&first), Some(content));
        assert_eq!(Content::of_row_id(&second), Some(content));
        assert_eq!(Content::of_row_id("short"), None);
        assert_eq!(first, content.row_id(0));
    }

    #[test]
    fn texts_are_found_and_changed_in_place() {
        let mut example = examples().remove(0);
        assert_eq!(example.texts(), ["hi \"there\"\n\u{1F600}", "a"]);
        for text in example.texts_mut() {
            text.push('!');
        }
        assert_eq!(example.texts()[1], "a!");
    }
}
