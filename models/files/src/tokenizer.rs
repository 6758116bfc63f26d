//! Tokenizers: `tokenizer.json` as it lies in a folder, or the same description built from GGUF metadata.
//!
//! A GGUF names its text splitting by a word (`tokenizer.ggml.pre`); the patterns behind the words are llama.cpp's and
//! the tokenizer authors'. A word not known here is an error: a tokenizer that is nearly right ruins training silently.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};
use tokenizers::Tokenizer;

use crate::gguf::{Gguf, Value};
use crate::{FilesError, older_tokenizer};

/// The tokenizer of a Hugging Face folder (its `tokenizer.json`, or an older file), a `tokenizer.json` itself, or a GGUF file.
pub fn tokenizer(path: &Path) -> Result<Tokenizer, FilesError> {
    let bytes = tokenizer_json(path)?;
    Tokenizer::from_bytes(&bytes).map_err(|e| broken(path, e.to_string()))
}

/// The content of `tokenizer.json`: a folder's own bytes, or the description built from older files or GGUF metadata.
pub fn tokenizer_json(path: &Path) -> Result<Vec<u8>, FilesError> {
    if let Some(file) = own_file(path) {
        return std::fs::read(&file).map_err(FilesError::read(&file));
    }
    let description = match path.is_dir() {
        true => older_tokenizer::describe(path)?.ok_or_else(|| {
            let what =
                "the folder has no tokenizer.json; download the model's tokenizer files, or name another tokenizer";
            broken(path, what)
        })?,
        false => describe(&*Gguf::open(path)?)?,
    };
    serde_json::to_vec(&description).map_err(|e| broken(path, e.to_string()))
}

/// The `tokenizer.json` that `path` is or holds.
pub(crate) fn own_file(path: &Path) -> Option<PathBuf> {
    if path.extension().is_some_and(|e| e == "json") {
        return Some(path.to_owned());
    }
    Some(path.join("tokenizer.json")).filter(|file| file.is_file())
}

/// `tokenizer.json` for a GGUF's tokenizer.
pub(crate) fn describe(gguf: &Gguf) -> Result<Json, FilesError> {
    let vocabulary = Vocabulary::read(gguf)?;
    let model = gguf.get("tokenizer.ggml.model").and_then(Value::as_str).unwrap_or("");
    let parts = match model {
        "gpt2" => byte_level(gguf, &vocabulary)?,
        "llama" => sentence_piece(gguf, &vocabulary)?,
        other => {
            let what = format!(
                "its kind {other:?} cannot be built from GGUF metadata (gpt2 and llama can); use the model's Hugging \
                 Face folder"
            );
            return Err(broken(&gguf.path, what));
        }
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": edges(gguf, &vocabulary),
        "decoder": parts.decoder,
        "model": parts.model,
    }))
}

/// Whether a GGUF's tokenizer puts a BOS in front: what its metadata says, else its kind's custom.
pub(crate) fn adds_bos(gguf: &Gguf) -> bool {
    let text = |key: &str| gguf.get(key).and_then(Value::as_str).unwrap_or("");
    let custom = text("tokenizer.ggml.model") == "llama" || WHOLE_WORDS.contains(&text("tokenizer.ggml.pre"));
    gguf.get("tokenizer.ggml.add_bos_token").and_then(Value::as_bool).unwrap_or(custom)
}

/// Byte-level kinds that take a split that is a token as it is, without merging; they also start with a BOS.
const WHOLE_WORDS: [&str; 5] = ["llama-bpe", "llama3", "llama-v3", "smaug-bpe", "tekken"];

struct Parts {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    model: Json,
}

/// GGUF token types.
pub(crate) const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
pub(crate) const CONTROL: i64 = 3;
pub(crate) const USER_DEFINED: i64 = 4;
pub(crate) const UNUSED: i64 = 5;

struct Vocabulary<'a> {
    /// Text and type, by id.
    tokens: Vec<(&'a str, i64)>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self, FilesError> {
        let tokens = gguf
            .get("tokenizer.ggml.tokens")
            .and_then(Value::as_array)
            .ok_or_else(|| broken(&gguf.path, "the file has no tokenizer metadata; name a tokenizer folder"))?;
        let types = gguf.get("tokenizer.ggml.token_type").and_then(Value::as_array).unwrap_or(&[]);
        let kind = |id: usize| types.get(id).and_then(Value::as_i64).unwrap_or(1);
        let tokens = tokens.iter().enumerate().map(|(id, t)| (t.as_str().unwrap_or(""), kind(id))).collect();
        Ok(Self { tokens })
    }

    fn text(&self, id: i64) -> Option<&'a str> {
        usize::try_from(id).ok().and_then(|id| self.tokens.get(id)).map(|(text, _)| *text)
    }

    /// Tokens that are matched in raw text before any splitting.
    fn added(&self) -> Vec<Json> {
        let whole = self.tokens.iter().enumerate().filter(|(_, (_, k))| matches!(*k, UNKNOWN | CONTROL | USER_DEFINED));
        whole
            .map(|(id, (text, kind))| {
                json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != USER_DEFINED,
                })
            })
            .collect()
    }

    fn map(&self) -> Map<String, Json> {
        let used = self.tokens.iter().enumerate().filter(|(_, (_, kind))| *kind != UNUSED);
        used.map(|(id, (text, _))| ((*text).to_owned(), Json::from(id))).collect()
    }
}

/// GPT-2 style byte-level BPE.
fn byte_level(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Parts, FilesError> {
    let word = gguf.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("default");
    let merges = gguf
        .get("tokenizer.ggml.merges")
        .and_then(Value::as_array)
        .ok_or_else(|| broken(&gguf.path, "the metadata has no merges"))?;
    // Byte-level tokens hold no space, so the first one separates the pair.
    let merges: Vec<Json> =
        merges.iter().filter_map(Value::as_str).filter_map(|m| m.split_once(' ')).map(|(a, b)| json!([a, b])).collect();
    let Some((pre_tokenizer, normalizer)) = splitting(word) else {
        let what = format!(
            "its text splitting {word:?} is not known here, and guessing would change token ids; use the model's \
             Hugging Face folder, or name its tokenizer folder"
        );
        return Err(broken(&gguf.path, what));
    };
    let whole_words = WHOLE_WORDS.contains(&word);
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
        "vocab": vocabulary.map(), "merges": merges,
    });
    Ok(Parts { normalizer, pre_tokenizer, decoder: bytes(true), model })
}

/// The byte-level splitter and decoder.
pub(crate) fn bytes(splits: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits})
}

/// The pre-tokenizer and normalizer behind a GGUF's word for text splitting.
fn splitting(word: &str) -> Option<(Json, Json)> {
    let by_pattern = |pattern: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    Some(match word {
        "gpt-2" | "mpt" | "olmo" | "jais" => (bytes(true), Json::Null),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), Json::Null)
        }
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "dbrx" => (by_pattern(&modern(r"\p{N}{1,3}")), Json::Null),
        "qwen2" | "deepseek-r1-qwen" => (by_pattern(&modern(r"\p{N}")), json!({"type": "NFC"})),
        "tekken" => (by_pattern(TEKKEN), Json::Null),
        "default" => (default_split(&bytes(false)), Json::Null),
        _ => return None,
    })
}

/// GGUF's word for the text splitting of a `tokenizer.json`.
pub(crate) fn split_word(path: &Path, tokenizer: &Json) -> Result<&'static str, FilesError> {
    let own = tokenizer.get("pre_tokenizer").map(essence).unwrap_or_default();
    let words = ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "default"];
    let same = |word: &&str| splitting(word).is_some_and(|(known, _)| essence(&known) == own);
    words.into_iter().find(same).ok_or_else(|| {
        let what = "GGUF has no name for its text splitting that is known here, so llama.cpp could not repeat it";
        broken(path, what)
    })
}

/// The steps of a pre-tokenizer that decide where text is split.
fn essence(pre_tokenizer: &Json) -> Vec<String> {
    let steps = pre_tokenizer.get("pretokenizers").and_then(Json::as_array);
    let steps = steps.map_or_else(|| vec![pre_tokenizer], |s| s.iter().collect());
    let keys = ["type", "pattern", "individual_digits", "use_regex", "add_prefix_space", "behavior", "invert"];
    steps.iter().map(|s| keys.map(|k| s.get(k).map(Json::to_string).unwrap_or_default()).join(" ")).collect()
}

/// The splitting pattern of newer byte-level tokenizers; they differ in how digits group.
pub(crate) fn modern(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// Mistral's Tekken.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What llama.cpp does for files that do not name their splitting: three patterns, one after the other.
fn default_split(bytes: &Json) -> Json {
    let patterns = [
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ];
    let mut steps: Vec<Json> = patterns
        .iter()
        .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}))
        .collect();
    steps.push(bytes.clone());
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// SentencePiece BPE (Llama 2, Mistral 7B): merges are implied by the scores.
fn sentence_piece(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Parts, FilesError> {
    let scores = gguf
        .get("tokenizer.ggml.scores")
        .and_then(Value::as_array)
        .ok_or_else(|| broken(&gguf.path, "the metadata has no token scores"))?;
    let scores: Vec<f64> = scores.iter().map(|s| s.as_f64().unwrap_or(0.0)).collect();
    let unknown = gguf.get("tokenizer.ggml.unknown_token_id").and_then(Value::as_i64).unwrap_or(0);
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": vocabulary.text(unknown), "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary.map(), "merges": implied_merges(vocabulary, &scores),
    });
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let prefix = gguf.get("tokenizer.ggml.add_space_prefix").and_then(Value::as_bool).unwrap_or(true);
    let (mut normalizers, mut decoders) = (vec![], vec![]);
    if prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
    }
    normalizers.push(replace(" ", "▁"));
    decoders.extend([replace("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})]);
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Json::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model,
    })
}

/// Every way to join two tokens into a third, best score first, as SentencePiece would choose them.
fn implied_merges(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<Json> {
    let ids: std::collections::HashMap<&str, usize> =
        vocabulary.tokens.iter().enumerate().map(|(id, (text, _))| (*text, id)).collect();
    let mut merges = Vec::new();
    for (id, (text, kind)) in vocabulary.tokens.iter().enumerate() {
        if *kind != 1 && *kind != USER_DEFINED {
            continue;
        }
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut pairs: Vec<_> = cuts.filter_map(|(a, b)| Some((*ids.get(a)?, *ids.get(b)?, a, b))).collect();
        pairs.sort_unstable();
        merges.extend(pairs.into_iter().map(|(_, _, a, b)| (scores.get(id).copied().unwrap_or(0.0), a, b)));
    }
    let length = |s: &str| s.chars().count();
    merges.sort_by(|x, y| y.0.total_cmp(&x.0).then(length(y.1).cmp(&length(x.1))).then(length(y.2).cmp(&length(x.2))));
    merges.into_iter().map(|(_, a, b)| json!([a, b])).collect()
}

/// The post-processor that adds BOS and EOS where the metadata asks for them.
fn edges(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Json {
    let token = |key: &str, wanted: bool| {
        let id = gguf.get(&format!("tokenizer.ggml.{key}_token_id")).and_then(Value::as_i64)?;
        vocabulary.text(id).filter(|_| wanted).map(|text| (text, id))
    };
    let ends = gguf.get("tokenizer.ggml.add_eos_token").and_then(Value::as_bool).unwrap_or(false);
    let owned = |token: Option<(&str, i64)>| Some((token?.0.to_owned(), u64::try_from(token?.1).ok()?));
    around(owned(token("bos", adds_bos(gguf))), owned(token("eos", ends)))
}

/// The post-processor that puts these tokens before and after a text.
pub(crate) fn around(bos: Option<(String, u64)>, eos: Option<(String, u64)>) -> Json {
    if bos.is_none() && eos.is_none() {
        return Json::Null;
    }
    let special =
        |t: &Option<(String, u64)>| t.as_ref().map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": 0}}));
    let sequence = |name: &str| Some(json!({"Sequence": {"id": name, "type_id": 0}}));
    let join = |parts: Vec<Option<Json>>| parts.into_iter().flatten().collect::<Vec<_>>();
    let listed = [&bos, &eos].into_iter().flatten();
    let tokens: Map<String, Json> =
        listed.map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}))).collect();
    json!({
        "type": "TemplateProcessing",
        "single": join(vec![special(&bos), sequence("A"), special(&eos)]),
        "pair": join(vec![special(&bos), sequence("A"), special(&eos), special(&bos), sequence("B"), special(&eos)]),
        "special_tokens": tokens,
    })
}

/// The letter that stands for each byte in byte-level vocabularies.
pub(crate) fn byte_letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    let mut next = 256;
    for (byte, letter) in letters.iter_mut().enumerate() {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        *letter = if printable { byte as u8 as char } else { char::from_u32(next).unwrap_or(' ') };
        next += u32::from(!printable);
    }
    letters
}

pub(crate) fn broken(path: &Path, what: impl Into<String>) -> FilesError {
    FilesError::Tokenizer { path: path.to_owned(), what: what.into() }
}
