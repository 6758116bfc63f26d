//! A chat template: parsed once, rendered for many conversations from many threads.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value as Native};
use serde_json::{Map, Value as Json};

use super::TemplateError;
use super::bridge;
use super::function;
use super::parser::parse;
use super::run::Run;
use super::text::{Mark, Part, Text};
use super::transpile::transpile;
use super::value::Value;

/// Instructions that minijinja may spend on one conversation.
const FUEL: u64 = 50_000_000;
/// Steps of copying that our own functions may spend.
const BUDGET: u64 = 50_000_000;

/// The special tokens that a template may name, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialText {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

/// A conversation and what else a template can see.
#[derive(Clone, Copy, Default)]
pub struct Conversation<'a> {
    pub messages: &'a [Map<String, Json>],
    pub tools: Option<&'a Json>,
    pub documents: Option<&'a Json>,
    /// Template arguments such as `enable_thinking`.
    pub kwargs: Option<&'a Map<String, Json>>,
    pub add_generation_prompt: bool,
}

/// A byte range of the rendered text.
pub type Span = Mark;

/// Rendered text and what its parts are: ranges of [`Part::Content`], [`Part::Reasoning`], [`Part::ToolCalls`],
/// [`Part::Turn`] and [`Part::Generation`], in order of their starts.
#[derive(Clone, Debug)]
pub struct Rendered {
    pub text: String,
    pub spans: Vec<Span>,
}

/// A parsed chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialText,
    source: Arc<str>,
    /// Whether it says itself what is trained, by `{% generation %}`.
    pub marks_generation: bool,
}

const PLAIN: &str = "chat_template";
const MARKED: &str = "chat_template_with_spans";

impl ChatTemplate {
    /// Parses a template's Jinja source.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with the line, also for tags that would read other files.
    pub fn parse(source: &str, special: &SpecialText) -> Result<ChatTemplate, TemplateError> {
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
        let marks_generation = source.contains("generation") && transpile(&template, true).contains("generation_begin");
        Ok(ChatTemplate { environment, special: special.clone(), source: source.into(), marks_generation })
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn special(&self) -> &SpecialText {
        &self.special
    }

    /// The text that transformers' `apply_chat_template(..., tokenize=False)` gives.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        let messages = conversation.messages.iter().map(|message| Value::from_json_object(message));
        self.run(PLAIN, conversation, messages.collect())
    }

    /// The same text with its spans.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; and [`TemplateError::Marker`] when the conversation holds characters that spans are
    /// carried in.
    pub fn render_spans(&self, conversation: &Conversation<'_>) -> Result<Rendered, TemplateError> {
        if conversation.messages.iter().any(has_marker) {
            return Err(TemplateError::Marker);
        }
        let messages = conversation.messages.iter().enumerate();
        let messages = messages.map(|(i, message)| Value::message(message, i as u32)).collect();
        let out = bridge::decode(&self.run(MARKED, conversation, messages)?);
        Ok(Rendered { spans: spans(&out), text: out.text.to_string() })
    }

    fn run(&self, name: &str, conversation: &Conversation<'_>, messages: Vec<Value>) -> Result<String, TemplateError> {
        let json = |value: Option<&Json>| value.map_or(Native::from(()), |value| bridge::to_native(&Value::from_json(value)));
        let mut context: Vec<(&str, Native)> = vec![
            ("messages", bridge::to_native(&Value::list(messages))),
            ("tools", json(conversation.tools)),
            ("documents", json(conversation.documents)),
            ("add_generation_prompt", conversation.add_generation_prompt.into()),
        ];
        let special = [
            ("bos_token", &self.special.bos),
            ("eos_token", &self.special.eos),
            ("unk_token", &self.special.unk),
            ("pad_token", &self.special.pad),
        ];
        for (name, text) in special {
            if let Some(text) = text {
                context.push((name, bridge::to_native(&Value::str(text.as_str()))));
            }
        }
        for (name, value) in conversation.kwargs.into_iter().flatten() {
            context.push((name, bridge::to_native(&Value::from_json(value))));
        }
        let bytes: usize = conversation.messages.iter().flat_map(Map::values).map(size).sum();
        Run::begin(BUDGET + bytes as u64);
        let template = self.environment.get_template(name).map_err(|error| explain(&error))?;
        template.render(Native::from_pairs(context)).map_err(|error| explain(&error))
    }
}

fn size(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(size).sum(),
        Json::Object(map) => map.values().map(size).sum(),
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
fn spans(text: &Text) -> Vec<Span> {
    let mut out: Vec<Span> = Vec::new();
    // For each open loop, where it stands.
    let mut loops: Vec<Option<(usize, u32, Part)>> = Vec::new();
    let mut generation = None;
    let close = |open: Option<(usize, u32, Part)>, end: usize, out: &mut Vec<Span>| {
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
    out.sort_by_key(|span| (span.start, span.end));
    out
}
