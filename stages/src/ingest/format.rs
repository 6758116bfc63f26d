//! Dataset formats: how the columns of a source row become an [`Example`].
//!
//! A format is data: column names and a few switches, resolved once from the recipe's `type` and field keys. Nothing here
//! reads files; nothing here renders or tokenises.

mod thinking;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::conversation::{Example, Segment};
use crate::recipe::dataset::Dataset;
use crate::recipe::values::DatasetType;

/// The field keys of a dataset as written in a recipe; unset ones take the format's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatasetKeys {
    pub field: Option<String>,
    pub field_messages: Option<String>,
    pub field_tools: Option<String>,
    pub field_system: Option<String>,
    pub field_instruction: Option<String>,
    pub field_input: Option<String>,
    pub field_output: Option<String>,
    pub message_field_training: Option<String>,
    pub message_field_training_detail: Option<String>,
    /// Target property to source key.
    pub message_property_mappings: IndexMap<String, String>,
    /// Role to the names that mean it.
    pub roles: IndexMap<String, Vec<String>>,
    pub drop_system_message: bool,
    pub field_thinking: Option<String>,
    pub template_thinking_key: Option<String>,
    pub split_thinking: bool,
    /// `system_prompt` of a `user_defined` type: the system text of rows that have none.
    pub system_prompt: Option<String>,
}

/// How to read a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum RowFormat {
    Chat(Box<ChatColumns>),
    /// Instruction and answer, for a prompt style to render.
    Instruct(InstructColumns),
    /// The same columns as a conversation of one exchange, for a chat template to render.
    InstructChat(InstructColumns),
    /// `instruction` and `instances: [{input, output}]`; the first instance is read.
    SelfInstruct,
    Completion {
        field: String,
    },
    InputOutput,
    Tokens,
    /// Told from the columns of the first row.
    Auto,
}

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
    pub drop_system_message: bool,
    /// Where thinking goes that is cut out of answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
}

/// Where an instruction and its answer lie.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstructColumns {
    pub system: Option<String>,
    pub instruction: String,
    pub input: Option<String>,
    pub output: String,
    pub system_prompt: Option<String>,
    pub answer: Answer,
}

/// How the answer is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The output column as it is.
    Plain,
    /// A quiz answer, put as a question.
    WhatIs,
    /// A thought, a reflection on it, and the corrected answer.
    Reflected,
}

/// Why a row does not fit its format.
#[derive(Debug, PartialEq)]
pub enum Misfit {
    /// None of these columns is there.
    NoColumn(Vec<String>),
    /// A column holds something else than it should.
    Wrong(String),
}

/// Single-turn types: name, system, instruction, input, output.
const SINGLE_TURN: &[(&str, &str, &str, &str, &str)] = &[
    ("alpaca", "system", "instruction", "input", "output"),
    ("alpaca_instruct", "system", "instruction", "input", "output"),
    ("alpaca_chat", "system", "instruction", "input", "output"),
    ("alpaca_chat.load_concise", "system", "instruction", "input", "output"),
    ("alpaca_chat.load_qa", "system", "question", "", "answer"),
    ("alpaca_chat.load_camel_ai", "", "message_1", "", "message_2"),
    ("alpaca_w_system", "system", "instruction", "input", "output"),
    ("alpaca_w_system.load_open_orca", "system_prompt", "question", "", "response"),
    ("alpaca_w_system.load_open_orca_chatml", "system_prompt", "question", "", "response"),
    ("jeopardy", "", "question", "category", "answer"),
    ("reflection", "", "instruction", "input", "output"),
    ("explainchoice", "", "question", "choices", "explanation"),
    ("concisechoice", "", "question", "choices", "solution"),
    ("orcamini", "system", "instruction", "input", "output"),
    ("gpteacher", "", "instruction", "input", "response"),
    ("oasst", "", "INSTRUCTION", "", "RESPONSE"),
    ("summarizetldr", "", "article", "", "summary"),
    ("dolly", "", "instruction", "context", "response"),
    ("prompt_completion", "system", "prompt", "", "completion"),
    ("question_answer", "", "question", "", "answer"),
    ("user_defined", "system", "instruction", "input", "output"),
];

impl RowFormat {
    /// The format of a recipe's dataset entry.
    pub fn of_dataset(dataset: &Dataset) -> Result<RowFormat, String> {
        let keys = DatasetKeys::of(dataset);
        match &dataset.kind {
            Some(DatasetType::Named(format)) => RowFormat::of_type(&format.name(), &keys),
            Some(DatasetType::UserDefined(_)) => RowFormat::of_type("user_defined", &keys),
            None => Ok(RowFormat::Tokens),
        }
    }

    /// The format that a recipe's `type` names. A suffix after `:` chooses a prompt style, which is no concern of ingest,
    /// except that `:chat_template` makes conversations. An error says which types there are.
    pub fn of_type(name: &str, keys: &DatasetKeys) -> Result<RowFormat, String> {
        match name {
            "chat_template" | "messages" | "openai" => return Ok(RowFormat::Chat(Box::new(ChatColumns::new(keys)))),
            "sharegpt" => return Ok(RowFormat::Chat(Box::new(ChatColumns::new(keys)))),
            "completion" | "pretrain" | "text" => {
                return Ok(RowFormat::Completion { field: keys.field.clone().unwrap_or_else(|| "text".into()) });
            }
            "input_output" => return Ok(RowFormat::InputOutput),
            "tokens" | "pretokenized" | "" => return Ok(RowFormat::Tokens),
            "self_instruct" => return Ok(RowFormat::SelfInstruct),
            "auto" => return Ok(RowFormat::Auto),
            _ => {}
        }
        let (base, style) = name.split_once(':').unwrap_or((name, ""));
        let base = base.strip_suffix(".load").unwrap_or(base);
        let Some(row) = SINGLE_TURN.iter().find(|row| row.0 == base) else {
            return Err(format!("there is no dataset type `{name}`; there are {}", type_names().join(", ")));
        };
        let columns = InstructColumns::new(*row, keys);
        Ok(if style == "chat_template" { RowFormat::InstructChat(columns) } else { RowFormat::Instruct(columns) })
    }

    /// The format whose columns these are, and the `type` to write for it.
    pub fn detect(row: &Map<String, Value>, keys: &DatasetKeys) -> Option<(&'static str, RowFormat)> {
        let has = |name: &str| row.contains_key(name);
        let name = if has("messages") || has("conversations") || has("conversation") {
            "chat_template"
        } else if has("segments") {
            "input_output"
        } else if has("input_ids") {
            "tokens"
        } else if has("instruction") && has("instances") {
            "self_instruct"
        } else {
            let mut fitting = SINGLE_TURN.iter().filter(|row| has(row.2) && has(row.4));
            let single = fitting
                .find(|row| row.3.is_empty() || has(row.3))
                .or_else(|| SINGLE_TURN.iter().find(|row| has(row.2) && has(row.4)));
            match single {
                Some(row) => row.0,
                None if has("text") => "completion",
                None => return None,
            }
        };
        RowFormat::of_type(name, keys).ok().map(|format| (name, format))
    }

    /// Reads one row. Its values are moved out, its keys stay.
    pub fn example(&self, row: &mut Map<String, Value>) -> Result<Example, Misfit> {
        match self {
            RowFormat::Chat(columns) => columns.example(row),
            RowFormat::Instruct(columns) => columns.example(row),
            RowFormat::InstructChat(columns) => Ok(as_chat(columns.example(row)?)),
            RowFormat::SelfInstruct => self_instruct(row),
            RowFormat::Completion { field } => Ok(Example::Completion { text: required(row, field)? }),
            RowFormat::InputOutput => input_output(row),
            RowFormat::Tokens => tokens(row),
            RowFormat::Auto => Err(Misfit::Wrong("its format is not known yet".into())),
        }
    }
}

impl DatasetKeys {
    /// As the recipe says, with the older `message_field_*` spellings folded in.
    pub fn of(dataset: &Dataset) -> DatasetKeys {
        let mut mappings = dataset.message_property_mappings.clone().unwrap_or_default();
        let older = [("role", &dataset.message_field_role), ("content", &dataset.message_field_content)];
        for (target, source) in older {
            if let Some(source) = source {
                mappings.entry(target.to_string()).or_insert_with(|| source.clone());
            }
        }
        let mut keys = DatasetKeys {
            field: dataset.field.clone(),
            field_messages: dataset.field_messages.clone(),
            field_tools: dataset.field_tools.clone(),
            field_system: dataset.field_system.clone(),
            message_field_training: dataset.message_field_training.clone(),
            message_field_training_detail: dataset.message_field_training_detail.clone(),
            message_property_mappings: mappings,
            roles: dataset.roles.clone().unwrap_or_default(),
            drop_system_message: dataset.drop_system_message == Some(true),
            field_thinking: dataset.field_thinking.clone(),
            template_thinking_key: dataset.template_thinking_key.clone(),
            split_thinking: dataset.split_thinking == Some(true),
            field_instruction: dataset.field_human.clone(),
            field_output: dataset.field_model.clone(),
            ..DatasetKeys::default()
        };
        if let Some(DatasetType::UserDefined(user)) = &dataset.kind {
            keys.field_system = user.field_system.clone();
            keys.field_instruction = user.field_instruction.clone();
            keys.field_input = user.field_input.clone();
            keys.field_output = user.field_output.clone();
            keys.system_prompt = user.system_prompt.clone();
        }
        keys
    }
}

/// Every name that `type` may have.
pub fn type_names() -> Vec<&'static str> {
    let others = ["chat_template", "completion", "input_output", "tokens", "self_instruct", "auto"];
    let mut names: Vec<&str> = others.into_iter().chain(SINGLE_TURN.iter().map(|row| row.0)).collect();
    names.sort_unstable();
    names
}

impl ChatColumns {
    fn new(keys: &DatasetKeys) -> ChatColumns {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let mut properties = keys.message_property_mappings.clone();
        let mut names = |target: &str, defaults: &[&str]| match properties.shift_remove(target) {
            Some(source) => vec![source],
            None => owned(defaults),
        };
        let role = names("role", &["role", "from"]);
        let content = names("content", &["content", "value"]);
        let thinking_key = keys.template_thinking_key.clone().unwrap_or_else(|| "reasoning_content".into());
        match &keys.field_thinking {
            Some(field) => {
                properties.entry(thinking_key.clone()).or_insert_with(|| field.clone());
            }
            // A key of the template's own reads what the data calls by the usual name.
            None if keys.template_thinking_key.is_some() => {
                properties.entry(thinking_key.clone()).or_insert_with(|| "reasoning_content".into());
            }
            None => {}
        }
        let mut roles = IndexMap::new();
        for (role, aliases) in &keys.roles {
            roles.extend(aliases.iter().map(|alias| (alias.clone(), role.clone())));
        }
        if keys.roles.is_empty() {
            let aliases = [("human", "user"), ("gpt", "assistant")];
            roles.extend(aliases.map(|(alias, role)| (alias.to_string(), role.to_string())));
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
            drop_system_message: keys.drop_system_message,
            thinking: keys.split_thinking.then_some(thinking_key),
        }
    }

    fn example(&self, row: &mut Map<String, Value>) -> Result<Example, Misfit> {
        let Some(column) = self.messages.iter().find(|name| row.contains_key(*name)) else {
            return Err(Misfit::NoColumn(self.messages.clone()));
        };
        let items = match row.get_mut(column).map(Value::take) {
            Some(Value::Array(items)) => items,
            Some(Value::String(text)) => serde_json::from_str(&text)
                .map_err(|e| Misfit::Wrong(format!("`{column}` is a text that is not a JSON list of messages: {e}")))?,
            Some(Value::Null) | None => Vec::new(),
            Some(other) => {
                return Err(Misfit::Wrong(format!("`{column}` is {}, not a list of messages", kind(&other))));
            }
        };
        let mut messages = Vec::with_capacity(items.len() + 1);
        for (i, item) in items.into_iter().enumerate() {
            messages.push(
                self.message(item).map_err(|why| Misfit::Wrong(format!("message {} of `{column}` {why}", i + 1)))?,
            );
        }
        self.add_system(row, &mut messages);
        let tools = match row.get_mut(&self.tools).map(Value::take) {
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(Value::String(text)) => Some(
                serde_json::from_str(&text)
                    .map_err(|e| Misfit::Wrong(format!("`{}` is a text that is not JSON: {e}", self.tools)))?,
            ),
            Some(Value::Null) | None => None,
            Some(Value::Array(items)) if items.is_empty() => None,
            Some(tools) => Some(tools),
        };
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
        let mut out = Map::with_capacity(source.len() + 2);
        let Some(role) = role else {
            return Err(format!("has no `{}`; it has {}", self.role.join("` or `"), names(&source)));
        };
        let Value::String(role) = role else {
            return Err(format!("has a role that is {}, not a text", kind(&role)));
        };
        let role = self.roles.get(&role).cloned().unwrap_or(role);
        out.insert("role".into(), Value::String(role));
        match content {
            Some(content) => {
                out.insert("content".into(), content);
            }
            None if source.is_empty() => return Err(format!("has no `{}`", self.content.join("` or `"))),
            None => {}
        }
        let training = self.training.as_ref().and_then(|name| source.shift_remove(name));
        let detail = self.training_detail.as_ref().and_then(|name| source.shift_remove(name));
        // Only what the recipe names as training flags may act as such.
        source.shift_remove("train");
        source.shift_remove("train_detail");
        for (target, name) in &self.properties {
            if let Some(value) = source.shift_remove(name) {
                out.insert(target.clone(), value);
            }
        }
        out.extend(source);
        if let Some(key) = &self.thinking {
            thinking::split(&mut out, key);
        }
        out.extend(
            [("train", training), ("train_detail", detail)].into_iter().filter_map(|(key, value)| {
                value.filter(|value| !value.is_null()).map(|value| (key.to_string(), value))
            }),
        );
        Ok(out)
    }
}

impl InstructColumns {
    fn new(row: (&str, &str, &str, &str, &str), keys: &DatasetKeys) -> InstructColumns {
        let (name, system, instruction, input, output) = row;
        let optional = |key: &Option<String>, name: &str| match key {
            Some(key) => Some(key.clone()).filter(|key| !key.is_empty()),
            None => Some(name.to_string()).filter(|name| !name.is_empty()),
        };
        InstructColumns {
            answer: match name {
                "jeopardy" => Answer::WhatIs,
                "reflection" => Answer::Reflected,
                _ => Answer::Plain,
            },
            system: optional(&keys.field_system, system),
            instruction: keys.field_instruction.clone().unwrap_or_else(|| instruction.into()),
            input: optional(&keys.field_input, input),
            output: keys.field_output.clone().unwrap_or_else(|| output.into()),
            system_prompt: keys.system_prompt.clone().filter(|text| !text.is_empty()),
        }
    }

    fn example(&self, row: &mut Map<String, Value>) -> Result<Example, Misfit> {
        let missing = [&self.instruction, &self.output].into_iter().filter(|name| !row.contains_key(*name));
        let missing: Vec<String> = missing.cloned().collect();
        if let Some(first) = missing.into_iter().next() {
            return Err(Misfit::NoColumn(vec![first]));
        }
        let mut optional = |name: &Option<String>| match name {
            Some(name) => text_of(name, row.get_mut(name).map_or(Value::Null, Value::take)),
            None => Ok(String::new()),
        };
        let system = optional(&self.system)?;
        let input = optional(&self.input)?;
        Ok(Example::Instruct {
            system: Some(system).filter(|text| !text.is_empty()).or_else(|| self.system_prompt.clone()),
            instruction: optional(&Some(self.instruction.clone()))?,
            input,
            output: match self.answer {
                Answer::Plain => optional(&Some(self.output.clone()))?,
                Answer::WhatIs => format!("what is {}", optional(&Some(self.output.clone()))?),
                Answer::Reflected => {
                    let mut part = |name: &str| optional(&Some(name.to_string()));
                    let (thought, reflection, corrected) =
                        (part(&self.output)?, part("reflection")?, part("corrected")?);
                    format!("{thought}\n\n### Agent Reflection:\n{reflection}\n\n### Final Response:\n{corrected}")
                }
            },
        })
    }
}

fn as_chat(example: Example) -> Example {
    let Example::Instruct { system, instruction, input, output } = example else {
        return example;
    };
    let user = if input.is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
    let mut messages = Vec::from_iter(system.map(|text| message("system", text)));
    messages.extend([message("user", user), message("assistant", output)]);
    Example::Chat { messages, tools: None }
}

fn self_instruct(row: &mut Map<String, Value>) -> Result<Example, Misfit> {
    let instance = match row.get_mut("instances").map(Value::take) {
        Some(Value::Array(items)) => items.into_iter().next(),
        Some(other) => return Err(Misfit::Wrong(format!("`instances` is {}, not a list", kind(&other)))),
        None => return Err(Misfit::NoColumn(vec!["instances".into()])),
    };
    let Some(Value::Object(mut instance)) = instance else {
        return Err(Misfit::Wrong("`instances` holds no object with `input` and `output`".into()));
    };
    let mut take = |name: &str| text_of(name, instance.get_mut(name).map_or(Value::Null, Value::take));
    let (input, output) = (take("input")?, take("output")?);
    Ok(Example::Instruct { system: None, instruction: required(row, "instruction")?, input, output })
}

fn input_output(row: &mut Map<String, Value>) -> Result<Example, Misfit> {
    let Some(segments) = row.get_mut("segments").map(Value::take) else {
        return Err(Misfit::NoColumn(vec!["segments".into()]));
    };
    let segments: Vec<Segment> = match segments {
        Value::String(text) => serde_json::from_str(&text),
        Value::Null => Ok(Vec::new()),
        other => serde_json::from_value(other),
    }
    .map_err(|e| Misfit::Wrong(format!("`segments` is not a list of {{label: true|false, text: ...}}: {e}")))?;
    Ok(Example::Segments { segments })
}

fn tokens(row: &mut Map<String, Value>) -> Result<Example, Misfit> {
    let mut ids = |name: &str| -> Result<Option<Vec<i64>>, Misfit> {
        let wrong = |e: serde_json::Error| Misfit::Wrong(format!("`{name}` is not a list of token ids: {e}"));
        match row.get_mut(name).map(Value::take) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => serde_json::from_str(&text).map(Some).map_err(wrong),
            Some(other) => serde_json::from_value(other).map(Some).map_err(wrong),
        }
    };
    let Some(input_ids) = ids("input_ids")? else {
        return Err(Misfit::NoColumn(vec!["input_ids".into()]));
    };
    let labels = ids("labels")?.unwrap_or_else(|| input_ids.clone());
    if labels.len() != input_ids.len() {
        let (ids, labels) = (input_ids.len(), labels.len());
        return Err(Misfit::Wrong(format!(
            "`input_ids` has {ids} tokens and `labels` has {labels}; they must be equal"
        )));
    }
    Ok(Example::Tokens { input_ids, labels })
}

fn required(row: &mut Map<String, Value>, name: &str) -> Result<String, Misfit> {
    let value = row.get_mut(name).ok_or_else(|| Misfit::NoColumn(vec![name.to_string()]))?.take();
    text_of(name, value)
}

/// Texts as they are, numbers and booleans as written, null as empty.
fn text_of(name: &str, value: Value) -> Result<String, Misfit> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        // Choices of a multiple-choice question.
        Value::Array(items) if name == "choices" => {
            let lines = items
                .iter()
                .map(|item| format!("- {}", item.as_str().map_or_else(|| item.to_string(), str::to_string)));
            Ok(lines.collect::<Vec<_>>().join("\n"))
        }
        other => Err(Misfit::Wrong(format!("`{name}` is {}, not a text", kind(&other)))),
    }
}

fn message(role: &str, content: String) -> Map<String, Value> {
    Map::from_iter([("role".to_string(), Value::from(role)), ("content".to_string(), Value::from(content))])
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The keys of an object, for a message.
pub fn names(row: &Map<String, Value>) -> String {
    let names: Vec<String> = row.keys().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
