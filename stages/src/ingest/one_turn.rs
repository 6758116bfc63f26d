//! Rows of a prompt and its answer: which columns make them.

use serde::Serialize;
use serde_json::{Map, Value};

use super::format::{DatasetKeys, Misfit, flag, kind, text_of};
use crate::conversation::Example;
use crate::recipe::format::{Input, OneTurn};
use crate::template::pattern::Pattern;

/// Where an instruction and its answer lie.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OneTurnColumns {
    pub system: Option<String>,
    pub instruction: Pattern,
    pub input: Option<InputColumn>,
    /// The first whose columns are all there.
    pub output: Vec<Pattern>,
}

/// The column of a prompt's second part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InputColumn {
    pub name: String,
    pub required: bool,
    /// A list of choices, each on a line of its own.
    pub choices: bool,
}

impl OneTurnColumns {
    /// A format's columns, or those that the recipe names instead. A chat template renders a `system` column wherever
    /// there is one; fixed words only where they have a place for it.
    pub fn new(columns: &OneTurn, keys: &DatasetKeys, chat: bool) -> OneTurnColumns {
        let system = if chat && columns.system.is_empty() { "system" } else { columns.system };
        let input = |name: &str, required, choices| Some(InputColumn { name: name.to_string(), required, choices });
        let own = |key: &Option<String>| key.as_ref().map(|name| Pattern::place(name));
        OneTurnColumns {
            system: keys.field_system.clone().or(Some(system.to_string())).filter(|name| !name.is_empty()),
            instruction: own(&keys.field_instruction).unwrap_or_else(|| pattern(columns.instruction)),
            input: match (&keys.field_input, columns.input) {
                (Some(name), _) => input(name, false, false).filter(|column| !column.name.is_empty()),
                (None, Input::None) => None,
                (None, Input::Maybe(name)) => input(name, false, false),
                (None, Input::Must(name)) => input(name, true, false),
                (None, Input::Choices(name)) => input(name, true, true),
            },
            output: match own(&keys.field_output) {
                Some(own) => vec![own],
                None => columns.output.iter().map(|text| pattern(text)).collect(),
            },
        }
    }

    /// `type:` as a map; unset fields are named as alpaca's and `system`.
    pub fn user_defined(keys: &DatasetKeys) -> OneTurnColumns {
        let columns =
            OneTurn { system: "system", instruction: "instruction", input: Input::Maybe("input"), output: &["output"] };
        OneTurnColumns::new(&columns, keys, false)
    }

    /// How many of a row's columns this reads; `None` when it lacks one.
    pub fn read_of(&self, row: &Map<String, Value>) -> Option<usize> {
        let has = |name: &str| row.contains_key(name);
        let complete = |pattern: &Pattern| pattern.places().all(has);
        let output = self.output.iter().find(|pattern| complete(pattern))?;
        let input = self.input.as_ref().filter(|column| has(&column.name));
        let lacks_input = self.input.as_ref().is_some_and(|column| column.required) && input.is_none();
        let system = self.system.as_deref().filter(|name| has(name));
        if !complete(&self.instruction) || lacks_input {
            return None;
        }
        let places = self.instruction.places().count() + output.places().count();
        Some(places + usize::from(input.is_some()) + usize::from(system.is_some()))
    }

    /// Whether this column's values become text.
    pub fn reads(&self, column: &str) -> bool {
        let in_output = self.output.iter().flat_map(Pattern::places).any(|place| place == column);
        let in_input = self.input.as_ref().is_some_and(|input| input.name == column && !input.choices);
        in_output
            || in_input
            || self.system.as_deref() == Some(column)
            || self.instruction.places().any(|p| p == column)
    }

    pub fn example(&self, row: &mut Map<String, Value>) -> Result<Example, Misfit> {
        let missing = |row: &Map<String, Value>, pattern: &Pattern| {
            pattern.places().find(|name| !row.contains_key(*name)).map(str::to_string)
        };
        if let Some(name) = missing(row, &self.instruction) {
            return Err(Misfit::NoColumn(vec![name]));
        }
        let Some(output) = self.output.iter().find(|pattern| missing(row, pattern).is_none()) else {
            return Err(Misfit::NoColumn(self.output.iter().filter_map(|pattern| missing(row, pattern)).collect()));
        };
        // A column may stand in more than one place; only one that stands alone can be moved out.
        let system = match &self.system {
            Some(name) if row.contains_key(name) => Some(take(row, name)?),
            _ => None,
        };
        let input = match &self.input {
            Some(column) if row.contains_key(&column.name) && column.choices => choices(row, &column.name)?,
            Some(column) if row.contains_key(&column.name) => take(row, &column.name)?,
            Some(column) if column.required => return Err(Misfit::NoColumn(vec![column.name.clone()])),
            _ => String::new(),
        };
        Ok(Example::Instruct {
            system,
            instruction: filled(row, &self.instruction)?,
            input,
            output: filled(row, output)?,
        })
    }

    /// The row as a conversation. Prompt and completion may be lists of messages already.
    pub fn conversation(&self, row: &mut Map<String, Value>) -> Result<Example, Misfit> {
        let lists = (self.instruction.only_place(), self.output.first().and_then(Pattern::only_place));
        if let (Some(prompt), Some(answer)) = lists
            && let (Some(Value::Array(before)), Some(Value::Array(after))) = (row.get(prompt), row.get(answer))
        {
            return joined(prompt, before, answer, after);
        }
        self.example(row).map(as_chat)
    }
}

/// The messages of a prompt, untrained, and those of its completion.
fn joined(prompt: &str, before: &[Value], answer: &str, after: &[Value]) -> Result<Example, Misfit> {
    let mut messages = Vec::with_capacity(before.len() + after.len());
    for (column, items, train) in [(prompt, before, false), (answer, after, true)] {
        for item in items {
            let Value::Object(message) = item else {
                return Err(Misfit::Column(column.into(), format!("holds {}, not a message", kind(item))));
            };
            let mut message = message.clone();
            if !message.contains_key("role") {
                return Err(Misfit::Column(column.into(), "holds a message without `role`".into()));
            }
            let assistant = message.get("role").and_then(Value::as_str) == Some("assistant");
            let own = message.get("train").and_then(flag);
            if assistant || own.is_some() {
                message.insert("train".into(), Value::Bool(own.unwrap_or(train)));
            }
            messages.push(message);
        }
    }
    Ok(Example::Chat { messages, tools: None })
}

/// One exchange, after a system turn where there is a system text.
pub fn as_chat(example: Example) -> Example {
    let Example::Instruct { system, instruction, input, output } = example else {
        return example;
    };
    let user = if input.is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
    let mut messages = Vec::from_iter(system.filter(|text| !text.is_empty()).map(|text| message("system", text)));
    messages.extend([message("user", user), message("assistant", output)]);
    Example::Chat { messages, tools: None }
}

/// A message with nothing but its role and text.
pub fn message(role: &str, content: String) -> Map<String, Value> {
    Map::from_iter([("role".to_string(), Value::from(role)), ("content".to_string(), Value::from(content))])
}

fn pattern(text: &str) -> Pattern {
    // A bare name is a column; anything else is a text, with columns in braces.
    let bare = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if bare { Pattern::place(text) } else { Pattern::known(text) }
}

fn take(row: &mut Map<String, Value>, name: &str) -> Result<String, Misfit> {
    text_of(name, row.get_mut(name).map_or(Value::Null, Value::take))
}

fn filled(row: &mut Map<String, Value>, pattern: &Pattern) -> Result<String, Misfit> {
    if let Some(name) = pattern.only_place() {
        return take(row, name);
    }
    let values: Vec<(&str, String)> = pattern
        .places()
        .map(|name| Ok((name, text_of(name, row.get(name).cloned().unwrap_or(Value::Null))?)))
        .collect::<Result<_, Misfit>>()?;
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Ok(pattern.fill(&values))
}

fn choices(row: &mut Map<String, Value>, name: &str) -> Result<String, Misfit> {
    let items = match row.get_mut(name).map(Value::take) {
        Some(Value::Array(items)) => items,
        Some(other) => return Err(Misfit::Column(name.to_string(), format!("is {}, not a list", kind(&other)))),
        None => return Err(Misfit::NoColumn(vec![name.to_string()])),
    };
    let lines: Result<Vec<String>, Misfit> =
        items.into_iter().map(|item| Ok(format!("- \"{}\"", text_of(name, item)?))).collect();
    Ok(lines?.join("\n"))
}
