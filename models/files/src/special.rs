//! What a tokenizer says about itself beyond splitting text: special tokens, chat template, what ends an answer.

use std::path::Path;

use serde_json::Value as Json;

use crate::FilesError;
use crate::gguf::{Gguf, Value};
use crate::tokenizer;

/// A special token: its text and its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialToken {
    pub text: String,
    pub id: u32,
}

/// Special tokens and the chat template of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerInfo {
    pub bos: Option<SpecialToken>,
    pub eos: Option<SpecialToken>,
    pub pad: Option<SpecialToken>,
    pub unk: Option<SpecialToken>,
    /// Jinja source.
    pub chat_template: Option<String>,
    /// Whether encoding with special tokens puts a BOS in front.
    pub add_bos: bool,
    /// Ids that end a generated answer: EOS and what the generation settings name besides.
    pub stops: Vec<u32>,
}

/// What a chat template needs of a tokenizer: texts, which a folder may tell without the tokenizer itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateTexts {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
    /// Jinja source.
    pub chat_template: Option<String>,
}

impl TemplateTexts {
    /// Reads a Hugging Face folder or a GGUF file.
    pub fn read(path: &Path) -> Result<Self, FilesError> {
        if !path.is_dir() {
            let info = TokenizerInfo::read(path)?;
            let [bos, eos, pad, unk] = [info.bos, info.eos, info.pad, info.unk].map(|token| token.map(|t| t.text));
            return Ok(Self { bos, eos, pad, unk, chat_template: info.chat_template });
        }
        let folder = Folder::texts(path)?;
        let text = |key: &str| folder.text(key).map(str::to_owned);
        Ok(Self {
            bos: text("bos_token"),
            eos: text("eos_token"),
            pad: text("pad_token"),
            unk: text("unk_token"),
            chat_template: folder.chat_template()?,
        })
    }
}

/// Special tokens and chat template of a folder or GGUF file; the same as [`TokenizerInfo::read`].
pub fn tokenizer_info(path: &Path) -> Result<TokenizerInfo, FilesError> {
    TokenizerInfo::read(path)
}

impl TokenizerInfo {
    /// Ids that end a generated answer, as job descriptions hold ids.
    pub fn stop_ids(&self) -> Vec<i64> {
        self.stops.iter().map(|id| i64::from(*id)).collect()
    }

    /// Reads a Hugging Face folder or a GGUF file; the weights are not touched.
    pub fn read(path: &Path) -> Result<Self, FilesError> {
        if path.is_dir() { Folder::open(path)?.info() } else { Self::from_gguf(&*Gguf::open(path)?) }
    }

    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, FilesError> {
        let tokens = gguf.get("tokenizer.ggml.tokens").and_then(Value::as_array).unwrap_or(&[]);
        let token = |key: &str| {
            let id = gguf.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(Value::as_i64)?;
            let id = u32::try_from(id).ok()?;
            let text = tokens.get(id as usize)?.as_str()?.to_owned();
            Some(SpecialToken { text, id })
        };
        let bos = token("bos");
        let eos = token("eos");
        let mut stops: Vec<u32> = eos.iter().map(|t| t.id).collect();
        stops.extend(token("eot").map(|t| t.id).filter(|id| eos.as_ref().is_none_or(|e| e.id != *id)));
        let add_bos = bos.is_some() && tokenizer::adds_bos(gguf);
        Ok(Self {
            add_bos,
            bos,
            eos,
            pad: token("padding"),
            unk: token("unknown"),
            chat_template: gguf.get("tokenizer.chat_template").and_then(Value::as_str).map(str::to_owned),
            stops,
        })
    }
}

/// The tokenizer files of a folder.
struct Folder<'a> {
    path: &'a Path,
    tokenizer: Json,
    config: Json,
    map: Json,
}

impl<'a> Folder<'a> {
    fn open(path: &'a Path) -> Result<Self, FilesError> {
        let bytes = tokenizer::tokenizer_json(path)?;
        let tokenizer =
            serde_json::from_slice(&bytes).map_err(|e| FilesError::damaged(path, format!("not valid JSON ({e})")))?;
        Ok(Self { tokenizer, ..Self::texts(path)? })
    }

    /// Without the tokenizer: tokens have texts and no ids.
    fn texts(path: &'a Path) -> Result<Self, FilesError> {
        let config = optional_json(&path.join("tokenizer_config.json"))?;
        let map = optional_json(&path.join("special_tokens_map.json"))?;
        Ok(Self { path, tokenizer: Json::Null, config, map })
    }

    fn info(&self) -> Result<TokenizerInfo, FilesError> {
        let bos = self.token("bos_token");
        let eos = self.token("eos_token");
        let mut stops: Vec<u32> = eos.iter().map(|t| t.id).collect();
        for file in ["generation_config.json", "config.json"] {
            let ids = optional_json(&self.path.join(file))?;
            for id in id_list(ids.get("eos_token_id")) {
                if !stops.contains(&id) {
                    stops.push(id);
                }
            }
        }
        Ok(TokenizerInfo {
            add_bos: starts_with(&self.tokenizer, bos.as_ref()),
            bos,
            eos,
            pad: self.token("pad_token"),
            unk: self.token("unk_token"),
            chat_template: self.chat_template()?,
            stops,
        })
    }

    /// A special token by its key, from `tokenizer_config.json` or `special_tokens_map.json`.
    fn token(&self, key: &str) -> Option<SpecialToken> {
        let text = self.text(key)?;
        Some(SpecialToken { text: text.to_owned(), id: self.id(text)? })
    }

    fn text(&self, key: &str) -> Option<&str> {
        [&self.config, &self.map].into_iter().find_map(|file| {
            let value = file.get(key)?;
            value.as_str().or_else(|| value.get("content").and_then(Json::as_str))
        })
    }

    fn id(&self, text: &str) -> Option<u32> {
        let added = self.tokenizer.get("added_tokens").and_then(Json::as_array);
        let found = added.into_iter().flatten().find(|t| t.get("content").and_then(Json::as_str) == Some(text));
        let id = found.and_then(|t| t.get("id")).or_else(|| self.tokenizer.get("model")?.get("vocab")?.get(text));
        let listed = || {
            let pieces = self.tokenizer.get("model")?.get("vocab")?.as_array()?;
            pieces.iter().position(|piece| piece[0] == *text).map(|id| id as u64)
        };
        id.and_then(Json::as_u64).or_else(listed).and_then(|id| u32::try_from(id).ok())
    }

    /// `chat_template.jinja`, else the `chat_template` key: a string, or named templates of which `default` counts.
    fn chat_template(&self) -> Result<Option<String>, FilesError> {
        let file = self.path.join("chat_template.jinja");
        if file.is_file() {
            return std::fs::read_to_string(&file).map(Some).map_err(FilesError::read(&file));
        }
        let legacy = optional_json(&self.path.join("chat_template.json"))?;
        let value = self.config.get("chat_template").or_else(|| legacy.get("chat_template"));
        Ok(match value {
            Some(Json::String(text)) => Some(text.clone()),
            Some(Json::Array(named)) => {
                let default = named.iter().find(|t| t.get("name").and_then(Json::as_str) == Some("default"));
                default.and_then(|t| t.get("template")).and_then(Json::as_str).map(str::to_owned)
            }
            _ => None,
        })
    }
}

/// Whether a `tokenizer.json` puts `bos` in front of a single text.
fn starts_with(tokenizer: &Json, bos: Option<&SpecialToken>) -> bool {
    let Some(bos) = bos else { return false };
    let Some(processor) = tokenizer.get("post_processor") else {
        return false;
    };
    let nested = processor.get("processors").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    std::iter::once(processor).chain(nested).any(|p| {
        let first = p.get("single").and_then(|s| s.get(0)).and_then(|s| s.get("SpecialToken"));
        first.and_then(|t| t.get("id")).and_then(Json::as_str) == Some(bos.text.as_str())
    })
}

fn id_list(value: Option<&Json>) -> Vec<u32> {
    let one = |v: &Json| v.as_u64().and_then(|v| u32::try_from(v).ok());
    match value {
        Some(Json::Array(items)) => items.iter().filter_map(one).collect(),
        Some(v) => one(v).into_iter().collect(),
        None => Vec::new(),
    }
}

pub(crate) fn json_file(path: &Path) -> Result<Json, FilesError> {
    let bytes = std::fs::read(path).map_err(FilesError::read(path))?;
    serde_json::from_slice(&bytes).map_err(|e| FilesError::damaged(path, format!("not valid JSON ({e})")))
}

/// A JSON file's content, or null where there is no such file.
pub(crate) fn optional_json(path: &Path) -> Result<Json, FilesError> {
    if path.is_file() { json_file(path) } else { Ok(Json::Null) }
}
