//! The bytes on which each use of a model depends, so that a cache key covers exactly those.
//!
//! A changed chat template must not re-train a model that never saw it; changed weights must not re-tokenise. Nothing is
//! hashed here: callers own their hash.

use std::path::{Path, PathBuf};

use crate::gguf::{Gguf, Value};
use crate::{FilesError, TokenizerInfo, shards, tokenizer};

/// What decides token ids: the tokenizer's description and the special tokens.
pub fn tokenizer_bytes(path: &Path) -> Result<Vec<u8>, FilesError> {
    if path.is_dir() || tokenizer::own_file(path).is_some() {
        let mut bytes = tokenizer::tokenizer_json(path)?;
        if path.is_dir() {
            let info = TokenizerInfo { chat_template: None, ..TokenizerInfo::read(path)? };
            bytes.extend(format!("{info:?}").bytes());
        }
        return Ok(bytes);
    }
    let gguf = Gguf::open(path)?;
    let mut keys: Vec<_> = gguf
        .metadata
        .iter()
        .filter(|(k, _)| k.starts_with("tokenizer.") && !k.starts_with("tokenizer.chat_template"))
        .collect();
    keys.sort_by_key(|(k, _)| *k);
    let mut bytes = Vec::new();
    for (key, value) in keys {
        text(&mut bytes, key);
        put(&mut bytes, value);
    }
    Ok(bytes)
}

/// What decides a rendered conversation: the chat template, empty if the model has none.
pub fn chat_template_bytes(path: &Path) -> Result<Vec<u8>, FilesError> {
    Ok(TokenizerInfo::read(path)?.chat_template.unwrap_or_default().into_bytes())
}

/// The files that hold a model's weights; a folder's `config.json` is not among them.
pub fn weight_files(path: &Path) -> Result<Vec<PathBuf>, FilesError> {
    if !path.exists() {
        return Err(FilesError::Missing { path: path.to_owned() });
    }
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    shards::weight_files(path)
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    bytes.extend(value.code().to_le_bytes());
    match value {
        Value::Str(s) => text(bytes, s),
        Value::Array(code, items) => {
            bytes.extend(code.to_le_bytes());
            bytes.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|v| put(bytes, v));
        }
        Value::F32(v) => bytes.extend(v.to_le_bytes()),
        Value::F64(v) => bytes.extend(v.to_le_bytes()),
        Value::Bool(v) => bytes.push(u8::from(*v)),
        other => bytes.extend(other.as_i64().unwrap_or(-1).to_le_bytes()),
    }
}

fn text(bytes: &mut Vec<u8>, s: &str) {
    bytes.extend((s.len() as u64).to_le_bytes());
    bytes.extend(s.bytes());
}
