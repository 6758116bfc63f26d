//! Chat templates through minijinja, set up to render as transformers' Jinja does.
//!
//! transformers (5.x, `chat_template_utils`) uses an immutable sandbox with `trim_blocks` and `lstrip_blocks`, loop
//! controls, its own `tojson`, `raise_exception` and `strftime_now`. Templates here cannot load files and cannot loop for
//! ever: fuel bounds the work.

use std::path::{Path, PathBuf};

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value as Json};

use super::python;

/// Instructions a template may execute on one conversation; real ones need some ten thousand per message.
const FUEL: u64 = 50_000_000;
const NAME: &str = "chat_template";

/// The special tokens a template may name, empty where the tokenizer has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTexts {
    pub bos: String,
    pub eos: String,
    pub pad: String,
    pub unk: String,
}

/// A parsed chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTexts,
}

/// Why a template cannot be had or does not render.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the chat template does not parse: {0}")]
    Syntax(String),
    /// The template itself refused the conversation with `raise_exception`.
    #[error("the chat template refuses this conversation: {0}")]
    Raised(String),
    #[error("the chat template fails: {0}")]
    Render(String),
    #[error("{what} has no chat template; name one with chat_template (such as chatml), or a .jinja file")]
    None { what: String },
    #[error("no chat template `{name}`: it is no built-in name, and no file or folder of that name exists{hint}")]
    Unknown { name: String, hint: String },
    #[error("cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
}

impl ChatTemplate {
    /// Parses template text.
    pub fn parse(source: &str, special: &SpecialTexts) -> Result<ChatTemplate, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        python::install(&mut environment);
        let source = python::without_generation_tags(source);
        let added = environment.add_template_owned(NAME, source);
        added.map_err(|error| TemplateError::Syntax(located(&error)))?;
        Ok(ChatTemplate { environment, special: special.clone() })
    }

    /// Renders a conversation; `kwargs` are further template variables such as `enable_thinking`.
    pub fn render(
        &self,
        messages: &[Map<String, Json>],
        tools: Option<&Json>,
        kwargs: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut variables: Vec<(String, Value)> = vec![
            ("messages".into(), Value::from_serialize(messages)),
            ("tools".into(), tools.map_or(Value::from(()), Value::from_serialize)),
            ("documents".into(), Value::from(())),
            ("add_generation_prompt".into(), add_generation_prompt.into()),
        ];
        let named = [
            ("bos_token", &self.special.bos),
            ("eos_token", &self.special.eos),
            ("pad_token", &self.special.pad),
            ("unk_token", &self.special.unk),
        ];
        variables.extend(named.map(|(name, text)| (name.to_string(), Value::from(text.as_str()))));
        variables.extend(kwargs.iter().map(|(name, value)| (name.clone(), Value::from_serialize(value))));
        let template = self.environment.get_template(NAME).map_err(|e| TemplateError::Syntax(located(&e)))?;
        template.render(Value::from_iter(variables)).map_err(explain)
    }
}

/// The template that `source` names, with the special tokens that go with it: a built-in name, a `.jinja` file, a
/// model or tokenizer folder, or a GGUF file.
pub fn find(source: &str) -> Result<(String, SpecialTexts), TemplateError> {
    if let Some(text) = super::builtin::text(source) {
        return Ok((text.to_string(), SpecialTexts::default()));
    }
    let path = Path::new(source);
    if !path.exists() {
        let nearest = super::builtin::names().max_by(|a, b| {
            strsim::jaro_winkler(source, a).total_cmp(&strsim::jaro_winkler(source, b))
        });
        let hint = nearest.map_or(String::new(), |name| format!("; the nearest built-in name is `{name}`"));
        return Err(TemplateError::Unknown { name: source.to_string(), hint });
    }
    let is_model = path.is_dir() || path.extension().is_some_and(|extension| extension == "gguf");
    if !is_model {
        let text = std::fs::read_to_string(path)
            .map_err(|error| TemplateError::Unreadable { path: path.to_path_buf(), why: error.to_string() })?;
        return Ok((text, SpecialTexts::default()));
    }
    let info = pipe_files::TokenizerInfo::read(path)
        .map_err(|error| TemplateError::Unreadable { path: path.to_path_buf(), why: error.to_string() })?;
    let special = special_texts(&info);
    let text = info.chat_template.ok_or_else(|| TemplateError::None { what: source.to_string() })?;
    Ok((text, special))
}

/// The special tokens of the tokenizer in a folder or GGUF file.
pub fn specials(path: &Path) -> Result<SpecialTexts, TemplateError> {
    let info = pipe_files::TokenizerInfo::read(path);
    let info = info.map_err(|error| TemplateError::Unreadable { path: path.to_path_buf(), why: error.to_string() })?;
    Ok(special_texts(&info))
}

/// The special tokens of a tokenizer as templates see them.
pub fn special_texts(info: &pipe_files::TokenizerInfo) -> SpecialTexts {
    let text = |token: &Option<pipe_files::SpecialToken>| token.as_ref().map(|t| t.text.clone()).unwrap_or_default();
    SpecialTexts { bos: text(&info.bos), eos: text(&info.eos), pad: text(&info.pad), unk: text(&info.unk) }
}

fn explain(error: Error) -> TemplateError {
    // An error inside a macro or an include arrives wrapped; the template's own word is the innermost one.
    let mut innermost: &(dyn std::error::Error + 'static) = &error;
    loop {
        if let Some(raised) = innermost.downcast_ref::<python::Raised>() {
            return TemplateError::Raised(raised.0.clone());
        }
        match innermost.source() {
            Some(source) => innermost = source,
            None => break,
        }
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::Render("it does not come to an end".into());
    }
    TemplateError::Render(located(&error))
}

fn located(error: &Error) -> String {
    match (error.line(), error.detail()) {
        (Some(line), Some(detail)) => format!("line {line}: {}: {detail}", error.kind()),
        (Some(line), None) => format!("line {line}: {}", error.kind()),
        (None, Some(detail)) => format!("{}: {detail}", error.kind()),
        (None, None) => error.kind().to_string(),
    }
}
