//! Values of the interpreter, with Python's truth, equality, order and spelling.

use std::cmp::Ordering;
use std::fmt::Write;
use std::sync::{Arc, LazyLock, Mutex};

use regex::Regex;
use serde_json::Value as Json;

use super::text::{Part, Text};

/// A Python value as far as chat templates know them. Lists and dicts are immutable, as in transformers' sandbox.
#[derive(Clone)]
pub enum Value {
    /// The text says what is undefined.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    Seq(Arc<Seq>),
    Dict(Arc<Dict>),
    /// Yields its items once.
    Generator(Arc<Mutex<Option<Vec<Value>>>>),
    /// A method bound to its object.
    Method(Arc<(Value, &'static str)>),
    /// What minijinja itself made: a macro, a namespace, the loop variable.
    Native(minijinja::Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqKind {
    List,
    Tuple,
    Range,
    Keys,
    Values,
    Items,
}

pub struct Seq {
    pub kind: SeqKind,
    pub items: Vec<Value>,
    pub origin: Option<u32>,
}

pub struct Dict {
    pub entries: Vec<(Value, Value)>,
    /// Which message this is, or of which one's tool calls it is a part.
    pub origin: Option<Origin>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Message(u32),
    ToolCalls(u32),
}

impl Dict {
    pub fn get(&self, key: &Value) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| k.equals(key)).map(|(_, v)| v)
    }

    pub fn get_str(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| matches!(k, Value::Str(k) if *k.text == *key)).map(|(_, v)| v)
    }
}

impl Value {
    pub fn str(text: impl Into<Arc<str>>) -> Value {
        Value::Str(Text::new(text))
    }

    pub fn seq(kind: SeqKind, items: Vec<Value>) -> Value {
        Value::Seq(Arc::new(Seq { kind, items, origin: None }))
    }

    pub fn list(items: Vec<Value>) -> Value {
        Value::seq(SeqKind::List, items)
    }

    pub fn tuple(items: Vec<Value>) -> Value {
        Value::seq(SeqKind::Tuple, items)
    }

    pub fn dict(entries: Vec<(Value, Value)>) -> Value {
        Value::Dict(Arc::new(Dict { entries, origin: None }))
    }

    pub fn generator(items: Vec<Value>) -> Value {
        Value::Generator(Arc::new(Mutex::new(Some(items))))
    }

    pub fn undefined(what: &str) -> Value {
        Value::Undefined(what.into())
    }

    /// From JSON, order of keys kept.
    pub fn from_json(json: &Json) -> Value {
        Value::from_json_with(json, &|text| Value::str(text), None)
    }

    /// From a JSON object.
    pub fn from_json_object(map: &serde_json::Map<String, Json>) -> Value {
        Value::dict(map.iter().map(|(key, value)| (Value::str(key.as_str()), Value::from_json(value))).collect())
    }

    /// A message, its fields marked with where they come from.
    pub fn message(fields: &serde_json::Map<String, Json>, index: u32) -> Value {
        let entries = fields.iter().map(|(key, value)| {
            let content = |text: &str| Value::Str(Text::origin(text, index, Part::Content));
            let made = match (key.as_str(), value) {
                ("content", Json::String(text)) => content(text),
                ("content", Json::Array(parts)) => {
                    Value::list(parts.iter().map(|part| content_part(part, &content)).collect())
                }
                ("reasoning_content" | "reasoning" | "thinking", Json::String(text)) => {
                    Value::Str(Text::origin(text, index, Part::Reasoning))
                }
                ("tool_calls", value) => {
                    let made = |text: &str| Value::Str(Text::origin(text, index, Part::ToolCalls));
                    Value::from_json_with(value, &made, Some(index))
                }
                (_, value) => Value::from_json(value),
            };
            (Value::str(key.as_str()), made)
        });
        Value::Dict(Arc::new(Dict { entries: entries.collect(), origin: Some(Origin::Message(index)) }))
    }

    fn from_json_with(json: &Json, string: &dyn Fn(&str) -> Value, origin: Option<u32>) -> Value {
        match json {
            Json::Null => Value::None,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Value::Int(value.into()),
                (None, Some(value)) => Value::Int(value.into()),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => string(text),
            Json::Array(items) => Value::Seq(Arc::new(Seq {
                kind: SeqKind::List,
                items: items.iter().map(|item| Value::from_json_with(item, string, origin)).collect(),
                origin,
            })),
            Json::Object(map) => Value::Dict(Arc::new(Dict {
                entries: map
                    .iter()
                    .map(|(key, value)| (Value::str(key.as_str()), Value::from_json_with(value, string, origin)))
                    .collect(),
                origin: origin.map(Origin::ToolCalls),
            })),
        }
    }

    /// Of which message's tool calls this is a part.
    pub fn tool_origin(&self) -> Option<u32> {
        match self {
            Value::Seq(seq) => seq.origin,
            Value::Dict(dict) => match dict.origin {
                Some(Origin::ToolCalls(message)) => Some(message),
                _ => None,
            },
            _ => None,
        }
    }

    pub fn truthy(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) => !text.text.is_empty(),
            Value::Seq(seq) => !seq.items.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            Value::Native(value) => value.is_true(),
            _ => true,
        }
    }

    /// As Python names the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple => "tuple",
                SeqKind::Range => "range",
                SeqKind::Keys => "dict_keys",
                SeqKind::Values => "dict_values",
                SeqKind::Items => "dict_items",
            },
            Value::Dict(_) => "dict",
            Value::Generator(_) => "generator",
            Value::Method(_) => "builtin_function_or_method",
            Value::Native(_) => "object",
        }
    }

    pub fn as_number(&self) -> Option<f64> {
        match self {
            Value::Bool(value) => Some(f64::from(u8::from(*value))),
            Value::Int(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<i128> {
        match self {
            Value::Bool(value) => Some(i128::from(*value)),
            Value::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub fn equals(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
            (Value::Str(a), Value::Str(b)) => a.text == b.text,
            (Value::Seq(a), Value::Seq(b)) => {
                a.kind == b.kind
                    && a.items.len() == b.items.len()
                    && a.items.iter().zip(&b.items).all(|(a, b)| a.equals(b))
            }
            (Value::Dict(a), Value::Dict(b)) => {
                a.entries.len() == b.entries.len()
                    && a.entries.iter().all(|(key, value)| b.get(key).is_some_and(|other| other.equals(value)))
            }
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_number(), other.as_number()) {
                    (Some(a), Some(b)) => a == b,
                    _ => self.is_same(other),
                },
            },
        }
    }

    /// Python's `is`.
    pub fn is_same(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::None, Value::None) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Str(a), Value::Str(b)) => a.text == b.text,
            (Value::Seq(a), Value::Seq(b)) => Arc::ptr_eq(a, b),
            (Value::Dict(a), Value::Dict(b)) => Arc::ptr_eq(a, b),
            (Value::Generator(a), Value::Generator(b)) => Arc::ptr_eq(a, b),
            (Value::Native(a), Value::Native(b)) => a == b,
            _ => false,
        }
    }

    /// Python's order; `None` where Python raises TypeError.
    pub fn compare(&self, other: &Value) -> Option<Ordering> {
        match (self, other) {
            (Value::Str(a), Value::Str(b)) => Some(a.text.cmp(&b.text)),
            (Value::Seq(a), Value::Seq(b)) if a.kind == b.kind && matches!(a.kind, SeqKind::List | SeqKind::Tuple) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b) {
                        return a.compare(b);
                    }
                }
                Some(a.items.len().cmp(&b.items.len()))
            }
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                // Comparisons with NaN are all false in Python; calling it equal is the nearest order has.
                _ => Some(self.as_number()?.partial_cmp(&other.as_number()?).unwrap_or(Ordering::Equal)),
            },
        }
    }

    /// Python's `str(value)`, marks kept for strings.
    pub fn to_text(&self) -> Text {
        match self {
            Value::Str(text) => text.clone(),
            Value::Undefined(_) => Text::default(),
            other => {
                let text = Text::new(other.repr());
                match other.tool_origin() {
                    Some(message) => Text::origin(&text.text.clone(), message, Part::ToolCalls),
                    None => text,
                }
            }
        }
    }

    /// Python's `repr(value)`.
    pub fn repr(&self) -> String {
        let mut out = String::new();
        self.write_repr(&mut out);
        out
    }

    fn write_repr(&self, out: &mut String) {
        match self {
            Value::Undefined(_) => out.push_str("Undefined"),
            Value::None => out.push_str("None"),
            Value::Bool(true) => out.push_str("True"),
            Value::Bool(false) => out.push_str("False"),
            Value::Int(value) => {
                let _ = write!(out, "{value}");
            }
            Value::Float(value) => out.push_str(&float_repr(*value)),
            Value::Str(text) => write_str_repr(&text.text, out),
            Value::Seq(seq) => write_seq_repr(seq, out),
            Value::Dict(dict) => {
                out.push('{');
                for (i, (key, value)) in dict.entries.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    key.write_repr(out);
                    out.push_str(": ");
                    value.write_repr(out);
                }
                out.push('}');
            }
            Value::Native(value) => {
                let _ = write!(out, "{value}");
            }
            other => {
                let _ = write!(out, "<{} object>", other.type_name());
            }
        }
    }
}

fn content_part(part: &Json, content: &dyn Fn(&str) -> Value) -> Value {
    match part {
        Json::Object(fields) => Value::dict(
            fields
                .iter()
                .map(|(key, value)| match (key.as_str(), value) {
                    ("text" | "content", Json::String(text)) => (Value::str(key.as_str()), content(text)),
                    _ => (Value::str(key.as_str()), Value::from_json(value)),
                })
                .collect(),
        ),
        Json::String(text) => content(text),
        other => Value::from_json(other),
    }
}

fn write_seq_repr(seq: &Seq, out: &mut String) {
    let (open, close) = match seq.kind {
        SeqKind::List => ("[", "]"),
        SeqKind::Tuple => ("(", if seq.items.len() == 1 { ",)" } else { ")" }),
        SeqKind::Range => {
            let first = seq.items.first().and_then(Value::as_int).unwrap_or(0);
            let last = seq.items.last().and_then(Value::as_int).map_or(0, |last| last + 1);
            let _ = write!(out, "range({first}, {last})");
            return;
        }
        SeqKind::Keys => ("dict_keys([", "])"),
        SeqKind::Values => ("dict_values([", "])"),
        SeqKind::Items => ("dict_items([", "])"),
    };
    out.push_str(open);
    for (i, item) in seq.items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        item.write_repr(out);
    }
    out.push_str(close);
}

/// Python's `repr` of a float: the shortest digits that read back, scientific below 1e-4 and from 1e16.
pub fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// Characters that `str.isprintable` denies, the space excepted.
static UNPRINTABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\p{C}\p{Z}]$").ok());

fn write_str_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut buffer = [0u8; 4];
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => {
                let hidden = c.is_ascii()
                    || UNPRINTABLE.as_ref().is_some_and(|pattern| pattern.is_match(c.encode_utf8(&mut buffer)));
                let code = c as u32;
                let _ = match (hidden, code) {
                    (false, _) => write!(out, "{c}"),
                    (true, 0..=0xff) => write!(out, "\\x{code:02x}"),
                    (true, 0x100..=0xffff) => write!(out, "\\u{code:04x}"),
                    (true, _) => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}
