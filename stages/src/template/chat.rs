//! A chat template: parsed once, rendered for many conversations from many threads.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value as Native};
use serde_json::{Map, Value as Json};

use super::bridge;
use super::function;
use super::parser::parse;
use super::render::{SpecialTexts, TemplateError};
use super::run::Run;
use super::text::{Mark, Part, Text};
use super::transpile::{GENERATION, transpile};
use super::value::{Dict, Value};

/// Instructions that minijinja may spend on one conversation.
const FUEL: u64 = 50_000_000;
/// Steps of copying that our own functions may spend.
const BUDGET: u64 = 50_000_000;

/// A parsed chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTexts,
    marks_generation: bool,
}

const PLAIN: &str = "chat_template";
const MARKED: &str = "chat_template_with_spans";

impl ChatTemplate {
    /// Parses a template's Jinja source.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with the line, also for tags that would read other files.
    pub fn parse(source: &str, special: &SpecialTexts) -> Result<ChatTemplate, TemplateError> {
        let template = parse(source)?;
        let mut environment = Environment::empty();
        if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(|out, _, value| bridge::print(value, out));
        environment.set_recursion_limit(100);
        function::install(&mut environment);
        for (name, events) in [(PLAIN, false), (MARKED, true)] {
            let made = transpile(&template, events);
            environment.add_template_owned(name, made).map_err(|error| TemplateError::Syntax {
                line: error.line().unwrap_or(0) as u32,
                message: error.detail().unwrap_or("the template cannot be read").to_string(),
            })?;
        }
        let marks_generation = transpile(&template, true).contains(GENERATION);
        Ok(ChatTemplate { environment, special: special.clone(), marks_generation })
    }

    /// From here on `strftime_now` shows the midnight that this day began with.
    pub fn set_day(&mut self, day: &str) {
        self.environment.add_global(function::DAY, Native::from(day));
    }

    /// Whether the template says itself what is trained, by `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// The text that transformers' `apply_chat_template(..., tokenize=False)` gives; `kwargs` are further template
    /// variables such as `enable_thinking`.
    pub fn render(
        &self,
        messages: &[Map<String, Json>],
        tools: Option<&Json>,
        kwargs: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let values = messages.iter().map(Value::from_json_object).map(with_reasoning_names).collect();
        self.run(PLAIN, values, size(messages), tools, kwargs, add_generation_prompt)
    }

    /// The same text with marks: ranges of [`Part::Content`], [`Part::Reasoning`], [`Part::ToolCalls`], [`Part::Turn`]
    /// and [`Part::Generation`], in order of their starts.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; and [`TemplateError::Marker`] when the conversation holds characters that marks are
    /// carried in.
    pub fn render_marked(
        &self,
        messages: &[Map<String, Json>],
        tools: Option<&Json>,
        kwargs: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<(String, Vec<Mark>), TemplateError> {
        if messages.iter().any(has_marker) {
            return Err(TemplateError::Marker);
        }
        let values = messages.iter().enumerate().map(|(i, message)| Value::message(message, i as u32));
        let values = values.map(with_reasoning_names).collect();
        let marked = self.run(MARKED, values, size(messages), tools, kwargs, add_generation_prompt)?;
        let text = bridge::decode(&marked);
        Ok((text.text.to_string(), ranges(&text)))
    }

    fn run(
        &self,
        name: &str,
        messages: Vec<Value>,
        bytes: usize,
        tools: Option<&Json>,
        kwargs: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let json =
            |value: Option<&Json>| value.map_or(Native::from(()), |value| bridge::to_native(&Value::from_json(value)));
        let mut context: Vec<(&str, Native)> = vec![
            ("messages", bridge::to_native(&Value::list(messages))),
            ("tools", json(tools)),
            ("documents", json(None)),
            ("add_generation_prompt", add_generation_prompt.into()),
        ];
        let special = [
            ("bos_token", &self.special.bos),
            ("eos_token", &self.special.eos),
            ("unk_token", &self.special.unk),
            ("pad_token", &self.special.pad),
        ];
        context.extend(special.map(|(name, text)| (name, bridge::to_native(&Value::str(text.as_str())))));
        context.extend(kwargs.iter().map(|(name, value)| (name.as_str(), json(Some(value)))));
        Run::begin(BUDGET + bytes as u64);
        let template = self.environment.get_template(name).map_err(|error| explain(&error))?;
        template.render(Native::from_pairs(context)).map_err(|error| explain(&error))
    }
}

/// Reasoning under all the names that templates read, as transformers passes it.
fn with_reasoning_names(message: Value) -> Value {
    let Value::Dict(dict) = &message else { return message };
    let given = |name: &str| dict.get_str(name).filter(|value| !matches!(value, Value::None));
    let Some(reasoning) = ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(given).cloned() else {
        return message;
    };
    let mut entries = dict.entries.clone();
    match entries.iter().position(|(key, _)| matches!(key, Value::Str(key) if &*key.text == "thinking")) {
        Some(at) => entries[..=at].rotate_right(1),
        None => entries.insert(0, (Value::str("thinking"), reasoning.clone())),
    }
    match entries.iter_mut().find(|(key, _)| matches!(key, Value::Str(key) if &*key.text == "reasoning_content")) {
        Some((_, value)) => *value = reasoning,
        None => entries.push((Value::str("reasoning_content"), reasoning)),
    }
    Value::Dict(Arc::new(Dict { entries, origin: dict.origin }))
}

fn size(messages: &[Map<String, Json>]) -> usize {
    messages.iter().flat_map(Map::values).map(bytes).sum()
}

fn bytes(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(bytes).sum(),
        Json::Object(map) => map.values().map(bytes).sum(),
        _ => 1,
    }
}

fn has_marker(message: &Map<String, Json>) -> bool {
    fn any(value: &Json) -> bool {
        match value {
            Json::String(text) => bridge::has_marker(text),
            Json::Array(items) => items.iter().any(any),
            Json::Object(map) => map.iter().any(|(key, value)| bridge::has_marker(key) || any(value)),
            _ => false,
        }
    }
    message.values().any(any)
}

fn explain(error: &minijinja::Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::Fuel;
    }
    let line = error.line().unwrap_or(0) as u32;
    match bridge::cause(error) {
        Some(TemplateError::Runtime { message, .. }) => TemplateError::Runtime { line, message },
        Some(other) => other,
        None => {
            let message = match error.detail() {
                Some(detail) => format!("{}: {detail}", error.kind()),
                None => error.kind().to_string(),
            };
            TemplateError::Runtime { line, message }
        }
    }
}

/// Ranges as they are, and events joined to ranges.
fn ranges(text: &Text) -> Vec<Mark> {
    let mut out: Vec<Mark> = Vec::new();
    // For each open loop, where it stands.
    let mut loops: Vec<Option<(usize, u32, Part)>> = Vec::new();
    let mut generation = None;
    let close = |open: Option<(usize, u32, Part)>, end: usize, out: &mut Vec<Mark>| {
        if let Some((start, message, part)) = open.filter(|(start, ..)| *start < end) {
            out.push(Mark { start, end, message, part, source: None });
        }
    };
    for mark in text.marks() {
        match mark.part {
            Part::LoopBegin => loops.push(None),
            Part::AtMessage | Part::AtToolCall => {
                let part = if mark.part == Part::AtMessage { Part::Turn } else { Part::ToolCalls };
                if let Some(top) = loops.last_mut() {
                    let open = top.replace((mark.start, mark.message, part));
                    close(open, mark.start, &mut out);
                }
            }
            Part::LoopEnd => close(loops.pop().flatten(), mark.start, &mut out),
            Part::GenerationBegin => generation = Some(mark.start),
            Part::GenerationEnd => {
                close(generation.take().map(|start| (start, 0, Part::Generation)), mark.start, &mut out);
            }
            _ => out.push(*mark),
        }
    }
    out.sort_by_key(|mark| (mark.start, mark.end));
    out
}
