//! Dataset formats: how the columns of a source row become [`Example`]s.
//!
//! A format is data: column names and a few switches, resolved once from the recipe's `type` and field keys. Nothing here
//! reads files; nothing here renders or tokenises.

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value};

use super::chat::{ChatColumns, Roles};
use super::one_turn::OneTurnColumns;
use crate::conversation::{Example, Segment};
use crate::recipe::dataset::Dataset;
use crate::recipe::format::{Format, Reads, Words};
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
    pub field_thinking: Option<String>,
    pub template_thinking_key: Option<String>,
    pub split_thinking: bool,
    pub message_field_training: Option<String>,
    pub message_field_training_detail: Option<String>,
    /// Target property to source key.
    pub message_property_mappings: IndexMap<String, String>,
    /// Role to the names that mean it.
    pub roles: IndexMap<String, Vec<String>>,
    pub drop_system_message: bool,
}

/// How to read a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum RowFormat {
    Chat(Box<ChatColumns>),
    /// Instruction and answer, for fixed words to render.
    OneTurn(OneTurnColumns),
    /// The same columns as a conversation of one exchange, for a chat template to render.
    OneTurnChat(OneTurnColumns),
    /// `instruction` and `instances: [{input, output}]`, each instance an example.
    SelfInstruct {
        chat: bool,
    },
    Completion {
        field: String,
    },
    InputOutput,
    Tokens,
    /// Told from the columns of the first row.
    Auto,
}

/// Why a row does not fit its format.
#[derive(Debug, PartialEq)]
pub enum Misfit {
    /// None of these columns is there.
    NoColumn(Vec<String>),
    /// This column holds something else than it should.
    Column(String, String),
    /// The row as a whole is wrong.
    Row(String),
}

impl RowFormat {
    /// The format of a recipe's dataset entry.
    pub fn of_dataset(dataset: &Dataset) -> Result<RowFormat, String> {
        let keys = DatasetKeys::of(dataset);
        match &dataset.kind {
            Some(DatasetType::Named(format)) => Ok(RowFormat::of_format(*format, &keys)),
            Some(DatasetType::UserDefined(_)) => Ok(RowFormat::OneTurn(OneTurnColumns::user_defined(&keys))),
            None => Ok(RowFormat::Tokens),
        }
    }

    /// The format that a recipe's `type` names. An error says which types there are.
    pub fn of_type(name: &str, keys: &DatasetKeys) -> Result<RowFormat, String> {
        match Format::named(name) {
            Some(format) => Ok(RowFormat::of_format(format, keys)),
            None => Err(format!("there is no dataset type `{name}`; there are {}", type_names())),
        }
    }

    fn of_format(format: Format, keys: &DatasetKeys) -> RowFormat {
        let chat = format.uses_chat_template();
        match format.reads() {
            Reads::Chat => {
                let roles = match format.words() {
                    Words::Pygmalion => Roles::AsWritten,
                    _ => Roles::Usual,
                };
                RowFormat::Chat(Box::new(ChatColumns::new(keys, roles)))
            }
            Reads::OneTurn(columns) if chat => RowFormat::OneTurnChat(OneTurnColumns::new(&columns, keys, chat)),
            Reads::OneTurn(columns) => RowFormat::OneTurn(OneTurnColumns::new(&columns, keys, chat)),
            Reads::SelfInstruct => RowFormat::SelfInstruct { chat },
            Reads::Text => RowFormat::Completion { field: keys.field.clone().unwrap_or_else(|| "text".into()) },
            Reads::Segments => RowFormat::InputOutput,
            Reads::Tokens => RowFormat::Tokens,
            Reads::Auto => RowFormat::Auto,
        }
    }

    /// The `type` to write for a row with these columns.
    pub fn fitting(row: &Map<String, Value>) -> Option<Format> {
        let has = |name: &str| row.contains_key(name);
        if has("messages") || has("conversations") || has("conversation") {
            return Format::named("chat_template");
        }
        for (column, name) in
            [("segments", "input_output"), ("input_ids", "pretokenized"), ("instances", "self_instruct")]
        {
            if has(column) {
                return Format::named(name);
            }
        }
        // The more of a row's columns a format reads, the better it fits; of equals the first of the table.
        let mut best: Option<(usize, Format)> = None;
        for format in Format::all() {
            let (Reads::OneTurn(columns), Words::Prompt(..)) = (format.reads(), format.words()) else { continue };
            let read = OneTurnColumns::new(&columns, &DatasetKeys::default(), false).read_of(row);
            if let Some(read) = read
                && best.is_none_or(|(most, _)| read > most)
            {
                best = Some((read, format));
            }
        }
        best.map(|(_, format)| format).or_else(|| has("text").then(|| Format::named("completion")).flatten())
    }

    /// How `type: auto` reads rows with these columns: as conversations, where they are any.
    pub fn detect(row: &Map<String, Value>, keys: &DatasetKeys) -> Option<(Format, RowFormat)> {
        let format = RowFormat::fitting(row)?;
        let read = match format.reads() {
            Reads::Chat => RowFormat::Chat(Box::new(ChatColumns::new(keys, Roles::Guessed))),
            Reads::OneTurn(columns) => RowFormat::OneTurnChat(OneTurnColumns::new(&columns, keys, true)),
            Reads::SelfInstruct => RowFormat::SelfInstruct { chat: true },
            _ => RowFormat::of_format(format, keys),
        };
        Some((format, read))
    }

    /// Reads one row. Its values are moved out, its keys stay.
    pub fn examples(&self, row: &mut Map<String, Value>) -> Result<Vec<Example>, Misfit> {
        let one = match self {
            RowFormat::Chat(columns) => columns.example(row)?,
            RowFormat::OneTurn(columns) => columns.example(row)?,
            RowFormat::OneTurnChat(columns) => columns.conversation(row)?,
            RowFormat::SelfInstruct { chat } => return self_instruct(row, *chat),
            RowFormat::Completion { field } => Example::Completion { text: required(row, field)? },
            RowFormat::InputOutput => input_output(row)?,
            RowFormat::Tokens => tokens(row)?,
            RowFormat::Auto => return Err(Misfit::Row("its format is not known yet".into())),
        };
        Ok(vec![one])
    }

    /// Whether this column's values become text of the example.
    pub fn reads(&self, column: &str) -> bool {
        match self {
            RowFormat::OneTurn(columns) | RowFormat::OneTurnChat(columns) => columns.reads(column),
            RowFormat::Chat(columns) => columns.system == column,
            RowFormat::SelfInstruct { .. } => column == "instruction",
            RowFormat::Completion { field } => field == column,
            RowFormat::InputOutput | RowFormat::Tokens | RowFormat::Auto => false,
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
            field_thinking: dataset.field_thinking.clone(),
            template_thinking_key: dataset.template_thinking_key.clone(),
            split_thinking: dataset.split_thinking == Some(true),
            message_field_training: dataset.message_field_training.clone(),
            message_field_training_detail: dataset.message_field_training_detail.clone(),
            message_property_mappings: mappings,
            roles: dataset.roles.clone().unwrap_or_default(),
            drop_system_message: dataset.drop_system_message == Some(true),
            field_instruction: dataset.field_human.clone(),
            field_output: dataset.field_model.clone(),
            ..DatasetKeys::default()
        };
        if let Some(DatasetType::UserDefined(user)) = &dataset.kind {
            keys.field_system = user.field_system.clone();
            keys.field_instruction = user.field_instruction.clone();
            keys.field_input = user.field_input.clone();
            keys.field_output = user.field_output.clone();
        }
        keys
    }
}

/// Every name that `type` may have, without the suffixes that only choose words.
pub fn type_names() -> String {
    let names: Vec<&str> = Format::all().map(Format::name).filter(|name| !name.contains(':')).collect();
    names.join(", ")
}

fn self_instruct(row: &mut Map<String, Value>, chat: bool) -> Result<Vec<Example>, Misfit> {
    let wrong = |why: String| Misfit::Column("instances".into(), why);
    let instances = match row.get_mut("instances").map(Value::take) {
        Some(Value::Array(items)) if !items.is_empty() => items,
        Some(Value::Array(_)) => return Err(wrong("is an empty list".into())),
        Some(other) => return Err(wrong(format!("is {}, not a list", kind(&other)))),
        None => return Err(Misfit::NoColumn(vec!["instances".into()])),
    };
    let instruction = required(row, "instruction")?;
    let mut examples = Vec::with_capacity(instances.len());
    for (i, instance) in instances.into_iter().enumerate() {
        let Value::Object(mut instance) = instance else {
            return Err(wrong(format!("holds {} as item {}, not an object", kind(&instance), i + 1)));
        };
        let mut take = |name: &str| text_of(name, instance.get_mut(name).map_or(Value::Null, Value::take));
        let (input, output) = (take("input")?, take("output")?);
        let example = Example::Instruct { system: None, instruction: instruction.clone(), input, output };
        examples.push(if chat { super::one_turn::as_chat(example) } else { example });
    }
    Ok(examples)
}

fn input_output(row: &mut Map<String, Value>) -> Result<Example, Misfit> {
    let wrong = |why: String| Misfit::Column("segments".into(), why);
    let segments = match row.get_mut("segments").map(Value::take) {
        Some(Value::String(text)) => {
            serde_json::from_str(&text).map_err(|e| wrong(format!("is a text that is not a JSON list: {e}")))?
        }
        Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong(format!("is {}, not a list", kind(&other)))),
        None => return Err(Misfit::NoColumn(vec!["segments".into()])),
    };
    let segment = |(i, item): (usize, Value)| match (item.get("label").and_then(flag), item.get("text")) {
        (Some(label), Some(Value::String(text))) => Ok(Segment { label, text: text.clone() }),
        _ => Err(wrong(format!("has an item {} that is not {{label: true|false, text: ...}}", i + 1))),
    };
    Ok(Example::Segments { segments: segments.into_iter().enumerate().map(segment).collect::<Result<_, _>>()? })
}

fn tokens(row: &mut Map<String, Value>) -> Result<Example, Misfit> {
    let mut ids = |name: &str| -> Result<Option<Vec<i64>>, Misfit> {
        let wrong = |e: serde_json::Error| Misfit::Column(name.into(), format!("is not a list of token ids: {e}"));
        match row.get_mut(name).map(Value::take) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => serde_json::from_str(&text).map(Some).map_err(wrong),
            Some(other) => serde_json::from_value(other).map(Some).map_err(wrong),
        }
    };
    let Some(mut input_ids) = ids("input_ids")? else {
        return Err(Misfit::NoColumn(vec!["input_ids".into()]));
    };
    let mut labels = ids("labels")?.unwrap_or_else(|| input_ids.clone());
    let mask = ids("attention_mask")?;
    for (name, other) in [("labels", Some(&labels)), ("attention_mask", mask.as_ref())] {
        if let Some(other) = other.filter(|other| other.len() != input_ids.len()) {
            let (ids, others) = (input_ids.len(), other.len());
            let why = format!("has {others} entries, and `input_ids` has {ids}; they must be equal");
            return Err(Misfit::Column(name.into(), why));
        }
    }
    if let Some(mask) = mask.filter(|mask| mask.contains(&0)) {
        // Padding is no part of the row; packs have none of their own making either.
        let mut kept = mask.iter().map(|&bit| bit != 0);
        input_ids.retain(|_| kept.next().unwrap_or(true));
        let mut kept = mask.iter().map(|&bit| bit != 0);
        labels.retain(|_| kept.next().unwrap_or(true));
    }
    Ok(Example::Tokens { input_ids, labels })
}

/// The text of a column that must be there.
pub fn required(row: &mut Map<String, Value>, name: &str) -> Result<String, Misfit> {
    let value = row.get_mut(name).ok_or_else(|| Misfit::NoColumn(vec![name.to_string()]))?.take();
    text_of(name, value)
}

/// Texts as they are, numbers and booleans as written, null as empty.
pub fn text_of(name: &str, value: Value) -> Result<String, Misfit> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        other => Err(Misfit::Column(name.to_string(), format!("is {}, not a text", kind(&other)))),
    }
}

/// A switch in data: true, false, 1 or 0.
pub fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(on) => Some(*on),
        Value::Number(number) => number.as_f64().map(|number| number != 0.0),
        _ => None,
    }
}

/// What a value is, for a message.
pub fn kind(value: &Value) -> &'static str {
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
