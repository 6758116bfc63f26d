//! A folder's tokenizer as GGUF metadata: the reverse of `tokenizer`.
//!
//! GGUF names text splitting by a word. The word is found by comparing the splitting with every one known here; an
//! unknown one is an error, because llama.cpp would then split differently in silence.

use std::path::Path;

use serde_json::Value as Json;

use crate::gguf::Value;
use crate::tokenizer::{CONTROL, NORMAL, UNUSED, USER_DEFINED, broken, split_word};
use crate::{FilesError, TokenizerInfo, tokenizer_json};

/// GGUF type codes of array elements.
const I32: u32 = 5;
const F32: u32 = 6;
const STRING: u32 = 8;
/// The token type of SentencePiece's byte tokens.
const BYTE: i32 = 6;

/// The `tokenizer.*` metadata for the tokenizer in `folder`, for a model of `vocab` embedding rows.
pub(crate) fn metadata(folder: &Path, vocab: usize) -> Result<Vec<(String, Value)>, FilesError> {
    let json: Json = serde_json::from_slice(&tokenizer_json(folder)?).map_err(|e| broken(folder, e.to_string()))?;
    let info = TokenizerInfo::read(folder)?;
    let model = json.get("model").ok_or_else(|| broken(folder, "tokenizer.json has no model"))?;
    if model.get("type").and_then(Json::as_str).is_some_and(|t| t != "BPE") {
        return Err(broken(folder, "only BPE tokenizers can be written to GGUF"));
    }
    let (texts, mut kinds) = tokens(folder, &json, model, vocab)?;
    let pieces = model.get("byte_fallback").and_then(Json::as_bool).unwrap_or(false);
    let mut all = Vec::new();
    let mut put = |key: &str, value: Value| all.push((format!("tokenizer.{key}"), value));
    if pieces {
        mark_bytes(&texts, &mut kinds);
        put("ggml.model", Value::Str("llama".to_owned()));
        put("ggml.scores", Value::Array(F32, scores(&kinds)));
        let prefix = json.get("normalizer").is_some_and(|n| n.to_string().contains("\"Prepend\""));
        put("ggml.add_space_prefix", Value::Bool(prefix));
    } else {
        put("ggml.model", Value::Str("gpt2".to_owned()));
        put("ggml.pre", Value::Str(split_word(folder, &json)?.to_owned()));
        put("ggml.merges", Value::Array(STRING, merges(model)));
        put("ggml.add_space_prefix", Value::Bool(false));
    }
    put("ggml.tokens", Value::Array(STRING, texts.into_iter().map(Value::Str).collect()));
    put("ggml.token_type", Value::Array(I32, kinds.into_iter().map(Value::I32).collect()));
    let ids = [("bos", &info.bos), ("eos", &info.eos), ("padding", &info.pad), ("unknown", &info.unk)];
    for (key, token) in ids {
        if let Some(token) = token {
            put(&format!("ggml.{key}_token_id"), Value::U32(token.id));
        }
    }
    put("ggml.add_bos_token", Value::Bool(info.add_bos));
    if let Some(template) = info.chat_template {
        put("chat_template", Value::Str(template));
    }
    Ok(all)
}

/// Token texts and types by id; ids without a token are marked unused.
fn tokens(folder: &Path, json: &Json, model: &Json, vocab: usize) -> Result<(Vec<String>, Vec<i32>), FilesError> {
    let mut texts: Vec<String> = (0..vocab).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED as i32; vocab];
    let mut set = |id: Option<u64>, text: &str, kind: i64| {
        let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < vocab).ok_or_else(|| {
            broken(
                folder,
                format!("token {text:?} lies outside the model's {vocab} embedding rows; resize the embeddings"),
            )
        })?;
        texts[id] = text.to_owned();
        kinds[id] = kind as i32;
        Ok::<(), FilesError>(())
    };
    for (text, id) in model.get("vocab").and_then(Json::as_object).into_iter().flatten() {
        set(id.as_u64(), text, NORMAL)?;
    }
    for token in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
        let special = token.get("special").and_then(Json::as_bool).unwrap_or(false);
        let text = token.get("content").and_then(Json::as_str).unwrap_or("");
        set(token.get("id").and_then(Json::as_u64), text, if special { CONTROL } else { USER_DEFINED })?;
    }
    Ok((texts, kinds))
}

fn merges(model: &Json) -> Vec<Value> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(two) => Some(format!("{} {}", two.first()?.as_str()?, two.get(1)?.as_str()?)),
        _ => None,
    };
    model.get("merges").and_then(Json::as_array).into_iter().flatten().filter_map(pair).map(Value::Str).collect()
}

fn mark_bytes(texts: &[String], kinds: &mut [i32]) {
    for (text, kind) in texts.iter().zip(kinds) {
        if text.len() == 6 && text.starts_with("<0x") && text.ends_with('>') {
            *kind = BYTE;
        }
    }
}

/// SentencePiece's BPE gives ids in the order of merging, so earlier ids score higher.
fn scores(kinds: &[i32]) -> Vec<Value> {
    let score = |(id, kind): (usize, &i32)| {
        if i64::from(*kind) == NORMAL { -(id as f32) } else { 0.0 }
    };
    kinds.iter().enumerate().map(score).map(Value::F32).collect()
}
