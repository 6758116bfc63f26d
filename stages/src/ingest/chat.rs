//! Rows that are conversations: where the messages lie, and how each becomes a message that templates read.
//!
//! What the recipe's keys say is followed to the letter, as Axolotl does. Only `type: auto` guesses at the roles of other
//! tools.

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value};

use super::format::{DatasetKeys, Misfit, flag, kind, names};
use super::message::{parse_arguments, parse_tools, plain_content, split_thinking};
use super::one_turn::message;
use crate::conversation::Example;

/// Where a conversation lies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatColumns {
    /// First of these that the row has.
    pub messages: Vec<String>,
    pub tools: String,
    pub system: String,
    /// Names of `role`, first found wins; of `content` likewise.
    pub role: Vec<String>,
    pub content: Vec<String>,
    /// Further properties: target to source.
    pub properties: IndexMap<String, String>,
    pub training: Option<String>,
    pub training_detail: Option<String>,
    /// Name in the data to role.
    pub roles: IndexMap<String, String>,
    /// Turns of other tools become tool calls and results.
    pub guessed: bool,
    pub drop_system_message: bool,
    /// The property that holds reasoning text, as templates call it.
    pub thinking: String,
    /// Reasoning in tags is cut out of the content.
    pub split_thinking: bool,
}

/// How roles are understood that the recipe does not map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roles {
    /// human and gpt, as Axolotl does; others stay as they are.
    Usual,
    /// Those of other tools too.
    Guessed,
    AsWritten,
}

const USUAL: &[(&str, &str)] = &[("human", "user"), ("gpt", "assistant")];
const GUESSED: &[(&str, &str)] = &[
    ("human", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bot", "assistant"),
    ("model", "assistant"),
    ("ai", "assistant"),
    ("prompter", "user"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("tool_response", "tool"),
    ("tool_result", "tool"),
];
/// Roles whose text is the call of a tool, as JSON.
const CALLS: &[&str] = &["function_call", "tool_call"];

impl ChatColumns {
    pub fn new(keys: &DatasetKeys, unmapped: Roles) -> ChatColumns {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let thinking = keys.template_thinking_key.clone().unwrap_or_else(|| "reasoning_content".into());
        let mut properties = keys.message_property_mappings.clone();
        let mut names = |target: &str, defaults: &[&str]| match properties.shift_remove(target) {
            Some(source) => vec![source],
            None => owned(defaults),
        };
        let role = names("role", &["role", "from"]);
        let content = names("content", &["content", "value"]);
        let source = keys.field_thinking.clone().unwrap_or_else(|| "reasoning_content".into());
        if source != thinking && !properties.contains_key(&thinking) {
            properties.insert(thinking.clone(), source);
        }
        let mut roles = IndexMap::new();
        for (role, aliases) in &keys.roles {
            roles.extend(aliases.iter().map(|alias| (alias.clone(), role.clone())));
        }
        if keys.roles.is_empty() {
            let aliases = match unmapped {
                Roles::Usual => USUAL,
                Roles::Guessed => GUESSED,
                Roles::AsWritten => &[],
            };
            roles.extend(aliases.iter().map(|(alias, role)| (alias.to_string(), role.to_string())));
        }
        ChatColumns {
            messages: keys
                .field_messages
                .clone()
                .map_or_else(|| owned(&["messages", "conversations", "conversation"]), |field| vec![field]),
            tools: keys.field_tools.clone().unwrap_or_else(|| "tools".into()),
            system: keys.field_system.clone().unwrap_or_else(|| "system".into()),
            role,
            content,
            properties,
            training: keys.message_field_training.clone(),
            training_detail: keys.message_field_training_detail.clone(),
            roles,
            guessed: unmapped == Roles::Guessed && keys.roles.is_empty(),
            drop_system_message: keys.drop_system_message,
            thinking,
            split_thinking: keys.split_thinking,
        }
    }

    pub fn example(&self, row: &mut Map<String, Value>) -> Result<Example, Misfit> {
        let Some(column) = self.messages.iter().find(|name| row.contains_key(*name)) else {
            return Err(Misfit::NoColumn(self.messages.clone()));
        };
        let wrong = |why: String| Misfit::Column(column.clone(), why);
        let items = match row.get_mut(column).map(Value::take) {
            Some(Value::Array(items)) => items,
            Some(Value::String(text)) => serde_json::from_str(&text)
                .map_err(|e| wrong(format!("is a text that is not a JSON list of messages: {e}")))?,
            Some(Value::Null) | None => Vec::new(),
            Some(other) => return Err(wrong(format!("is {}, not a list of messages", kind(&other)))),
        };
        let mut messages = Vec::with_capacity(items.len() + 1);
        for (i, item) in items.into_iter().enumerate() {
            let message = match item {
                // Bare texts take turns, the user first.
                Value::String(text) => Ok(message(if i % 2 == 0 { "user" } else { "assistant" }, text)),
                item => self.message(item),
            };
            messages.push(message.map_err(|why| wrong(format!("has a message {} that {why}", i + 1)))?);
        }
        self.add_system(row, &mut messages);
        let tools = row.get_mut(&self.tools).map(Value::take).unwrap_or_default();
        let tools = parse_tools(tools).map_err(|why| Misfit::Column(self.tools.clone(), why))?;
        Ok(Example::Chat { messages, tools })
    }

    /// A `system` column becomes the first turn, unless the conversation has one.
    fn add_system(&self, row: &mut Map<String, Value>, messages: &mut Vec<Map<String, Value>>) {
        let is_system = |message: &Map<String, Value>| message.get("role").and_then(Value::as_str) == Some("system");
        if let Some(Value::String(text)) = row.get_mut(&self.system).map(Value::take)
            && !text.is_empty()
            && !messages.is_empty()
            && !messages.first().is_some_and(is_system)
        {
            messages.insert(0, message("system", text));
        }
        if self.drop_system_message && messages.first().is_some_and(is_system) {
            messages.remove(0);
        }
    }

    fn message(&self, item: Value) -> Result<Map<String, Value>, String> {
        let Value::Object(mut source) = item else {
            return Err(format!("is {}, not an object with a role and content", kind(&item)));
        };
        let mut find = |names: &[String]| {
            let name = names.iter().find(|name| source.contains_key(*name))?;
            source.shift_remove(name)
        };
        let (role, content) = (find(&self.role), find(&self.content));
        let Some(role) = role else {
            return Err(format!("has no `{}`; it has {}", self.role.join("` or `"), names(&source)));
        };
        let Value::String(written) = role else {
            return Err(format!("has a role that is {}, not a text", kind(&role)));
        };
        let mut out = Map::with_capacity(source.len() + 2);
        if self.guessed && CALLS.contains(&written.as_str()) {
            return Ok(call(content, source));
        }
        let role = self.roles.get(&written).cloned().unwrap_or(written);
        out.insert("role".into(), Value::String(role));
        match content {
            Some(content) => {
                out.insert("content".into(), content);
            }
            None if source.is_empty() => return Err(format!("has no `{}`", self.content.join("` or `"))),
            None => {}
        }
        let training = self.flag(&mut source)?;
        let detail = self.training_detail.as_ref().and_then(|name| source.shift_remove(name));
        // Only what the recipe names as training flags may act as such.
        source.shift_remove("train");
        source.shift_remove("train_detail");
        source.shift_remove("reasoning_train_detail");
        for (target, name) in &self.properties {
            if let Some(value) = source.shift_remove(name) {
                out.insert(target.clone(), value);
            }
        }
        out.extend(source);
        let flags = [("train", training.map(Value::Bool)), ("train_detail", detail)];
        out.extend(
            flags.into_iter().filter_map(|(key, value)| {
                value.filter(|value| !value.is_null()).map(|value| (key.to_string(), value))
            }),
        );
        self.finish(out)
    }

    /// Whether the row itself says that this turn is trained.
    fn flag(&self, source: &mut Map<String, Value>) -> Result<Option<bool>, String> {
        let Some(name) = &self.training else { return Ok(None) };
        match source.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match flag(&value) {
                Some(on) => Ok(Some(on)),
                None => Err(format!("has a `{name}` that is {}, not true or false", kind(&value))),
            },
        }
    }

    /// Content in parts becomes one text, reasoning is cut out, and arguments written as JSON text are read.
    fn finish(&self, mut out: Map<String, Value>) -> Result<Map<String, Value>, String> {
        for (property, detail) in [("content", "train_detail"), (self.thinking.as_str(), "reasoning_train_detail")] {
            if let Some(Value::Array(parts)) = out.get(property) {
                let (text, details) = plain_content(parts)?;
                out.insert(property.to_string(), Value::String(text));
                if let Some(details) = details {
                    out.insert(detail.to_string(), details);
                }
            }
        }
        if self.split_thinking && out.get("role").and_then(Value::as_str) == Some("assistant") {
            split_thinking(&mut out, &self.thinking);
        }
        parse_arguments(&mut out)?;
        Ok(out)
    }
}

/// A turn that calls a tool, written as a text of its own.
fn call(content: Option<Value>, rest: Map<String, Value>) -> Map<String, Value> {
    let text = match content {
        Some(Value::String(text)) => text,
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let calls: Vec<Value> = match serde_json::from_str(&text) {
        Ok(Value::Array(calls)) => calls,
        Ok(one @ Value::Object(_)) => vec![one],
        _ => Vec::new(),
    };
    if calls.is_empty() || calls.iter().any(|call| call.get("name").is_none()) {
        return message("assistant", text);
    }
    let calls = calls.into_iter().map(|call| serde_json::json!({"type": "function", "function": call}));
    let mut out = message("assistant", String::new());
    out.insert("tool_calls".into(), calls.collect());
    out.extend(rest);
    out
}
