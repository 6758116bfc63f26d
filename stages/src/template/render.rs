//! Where a chat template comes from, what it may name, and why it may fail.

use std::path::{Path, PathBuf};

pub use super::chat::ChatTemplate;

/// The special tokens a template may name, empty where the tokenizer has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTexts {
    pub bos: String,
    pub eos: String,
    pub pad: String,
    pub unk: String,
}

/// Why a template cannot be had or does not render.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("the chat template has a syntax error in line {line}: {message}")]
    Syntax { line: u32, message: String },
    /// The template itself refused the conversation with `raise_exception`.
    #[error("the chat template refuses this conversation: {0}")]
    Raised(String),
    #[error("the chat template fails in line {line}: {message}")]
    Runtime { line: u32, message: String },
    #[error("the chat template was stopped: it does not end within the work that one conversation may take")]
    Fuel,
    #[error("the text holds U+FDD0 or U+FDD1, noncharacters in which spans are carried; remove them from the data")]
    Marker,
    #[error("{what} has no chat template; name one with chat_template (such as chatml), or a .jinja file")]
    None { what: String },
    #[error("no chat template `{name}`: it is no built-in name, and no file or folder of that name exists{hint}")]
    Unknown { name: String, hint: String },
    #[error("cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: String },
}

/// The template that `source` names, with the special tokens that go with it: a built-in name, a `.jinja` file, a
/// model or tokenizer folder, or a GGUF file.
pub fn find(source: &str) -> Result<(String, SpecialTexts), TemplateError> {
    if let Some(text) = super::builtin::text(source) {
        return Ok((text.to_string(), SpecialTexts::default()));
    }
    let path = Path::new(source);
    if !path.exists() {
        let nearest = super::builtin::names()
            .max_by(|a, b| strsim::jaro_winkler(source, a).total_cmp(&strsim::jaro_winkler(source, b)));
        let hint = nearest.map_or(String::new(), |name| format!("; the nearest built-in name is `{name}`"));
        return Err(TemplateError::Unknown { name: source.to_string(), hint });
    }
    let is_model = path.is_dir() || path.extension().is_some_and(|extension| extension == "gguf");
    if !is_model {
        let text = std::fs::read_to_string(path)
            .map_err(|error| TemplateError::Unreadable { path: path.to_path_buf(), why: error.to_string() })?;
        return Ok((text, SpecialTexts::default()));
    }
    let info = pipe_files::TemplateTexts::read(path)
        .map_err(|error| TemplateError::Unreadable { path: path.to_path_buf(), why: error.to_string() })?;
    let special = special_texts(&info);
    let text = info.chat_template.ok_or_else(|| TemplateError::None { what: source.to_string() })?;
    Ok((text, special))
}

/// The special tokens of the tokenizer in a folder or GGUF file.
pub fn specials(path: &Path) -> Result<SpecialTexts, TemplateError> {
    let info = pipe_files::TemplateTexts::read(path);
    let info = info.map_err(|error| TemplateError::Unreadable { path: path.to_path_buf(), why: error.to_string() })?;
    Ok(special_texts(&info))
}

/// The special tokens of a tokenizer as templates see them: a missing one is empty.
pub fn special_texts(texts: &pipe_files::TemplateTexts) -> SpecialTexts {
    let text = |token: &Option<String>| token.clone().unwrap_or_default();
    SpecialTexts { bos: text(&texts.bos), eos: text(&texts.eos), pad: text(&texts.pad), unk: text(&texts.unk) }
}
