//! Older tokenizer files as the `tokenizer.json` that transformers makes of them: SentencePiece models, tiktoken's ranks, and
//! GPT-2's vocabulary with its merges.
//!
//! Which normalisation and splitting go with a file is said by `tokenizer_class` in `tokenizer_config.json`. A class that is
//! not known here is an error: a tokenizer that is nearly right ruins training silently.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Map, Value as Json, json};

use crate::FilesError;
use crate::special::{json_file, optional_json};
use crate::tokenizer::{broken, byte_letters, bytes, modern};

/// Classes whose text is prepared as `LlamaTokenizer` prepares it.
const LLAMA: [&str; 2] = ["LlamaTokenizer", "LlamaTokenizerFast"];
/// Classes that follow the SentencePiece model's own settings.
const PLAIN: [&str; 9] = [
    "",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "InternLMTokenizer",
    "InternLM2Tokenizer",
    "InternLM2TokenizerFast",
    "BaichuanTokenizer",
    "XverseTokenizer",
    "YiTokenizer",
];
const GPT2: [&str; 2] = ["GPT2Tokenizer", "GPT2TokenizerFast"];
const QWEN2: [&str; 2] = ["Qwen2Tokenizer", "Qwen2TokenizerFast"];

/// SentencePiece's `ModelProto`, as far as it decides tokens (sentencepiece_model.proto).
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    /// 1 unigram, 2 BPE, 3 words, 4 characters.
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(string, optional, tag = "45", default = "<unk>")]
    unk_piece: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_spaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_spaces: Option<bool>,
}

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// A token that is matched in raw text: id, text, and what transformers' `AddedToken` says of it.
struct Added {
    id: u64,
    text: String,
    flags: Json,
}

/// `tokenizer.json` for a folder that has only older files; `None` where it has none of them either.
///
/// # Errors
/// The files are damaged, or of a kind or class that is not known here.
pub(crate) fn describe(folder: &Path) -> Result<Option<Json>, FilesError> {
    let config = optional_json(&folder.join("tokenizer_config.json"))?;
    let class = config.get("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
    let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    if let Some(path) = file("tokenizer.model").or_else(|| file("spm.model")).or_else(|| file("tiktoken.model")) {
        let content = std::fs::read(&path).map_err(FilesError::read(&path))?;
        let description = match ranks(&content) {
            Some(ranks) => tiktoken(&path, ranks, &config)?,
            None => sentence_piece(&path, &content, class, &config)?,
        };
        return finish(folder, description, &config).map(Some);
    }
    match (file("vocab.json"), file("merges.txt")) {
        (Some(vocab), Some(merges)) => {
            let description = byte_level(&vocab, &merges, class, &config)?;
            finish(folder, description, &config).map(Some)
        }
        _ => Ok(None),
    }
}

fn unknown_class(path: &Path, class: &str) -> FilesError {
    let what = format!(
        "the folder has only an older tokenizer file, and how `{class}` prepares text for it is not known here; load it once \
         with transformers' AutoTokenizer and save_pretrained it, which writes tokenizer.json"
    );
    broken(path, what)
}

fn sentence_piece(path: &Path, content: &[u8], class: &str, config: &Json) -> Result<Json, FilesError> {
    let model = Model::decode(content)
        .map_err(|e| broken(path, format!("this is neither a SentencePiece model nor tiktoken's ranks: {e}")))?;
    let kind = model.trainer.as_ref().map_or(1, Trainer::model_type);
    if model.pieces.is_empty() || !matches!(kind, 1 | 2) {
        return Err(broken(path, "only SentencePiece models of kind BPE and unigram can be read"));
    }
    match (kind, LLAMA.contains(&class), PLAIN.contains(&class)) {
        (2, true, _) => Ok(llama(&model, config)),
        (_, _, true) => Ok(plain(&model, kind == 1, config)),
        _ => Err(unknown_class(path, class)),
    }
}

/// As transformers' `LlamaTokenizer` makes it.
fn llama(model: &Model, config: &Json) -> Json {
    let flag = |key: &str, default: bool| config.get(key).and_then(Json::as_bool).unwrap_or(default);
    let prefix = flag("add_prefix_space", true);
    let scheme = match (prefix, flag("legacy", false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let texts: Vec<&str> = model.pieces.iter().map(Piece::text).collect();
    // Pieces are merged in the order of their ids, whatever their scores.
    let mut merges = joins(&texts, |_| true);
    merges.sort_by_key(|join| (join.made, join.left.chars().count(), join.right.chars().count()));
    let mut decoders = vec![replace_text("▁", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "added_tokens": model.added(&[CONTROL, USER_DEFINED]),
        "normalizer": null,
        "pre_tokenizer": metaspace(scheme),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": bpe(&texts, &merges, json!({"fuse_unk": true, "byte_fallback": true})),
    })
}

/// As the model's own settings say, which is what SentencePiece itself does.
fn plain(model: &Model, unigram: bool, config: &Json) -> Json {
    let trainer = model.trainer.clone().unwrap_or_default();
    let settings = model.normalizer.clone().unwrap_or_default();
    let (prefix, legacy) = (settings.dummy_prefix(), config.get("legacy").and_then(Json::as_bool).unwrap_or(true));
    let fallback = trainer.byte_fallback();
    let user: Vec<&str> = model.pieces.iter().filter(|piece| piece.kind() == USER_DEFINED).map(Piece::text).collect();
    let mut decoders = vec![replace_text("▁", " ")];
    decoders.extend(fallback.then(|| json!({"type": "ByteFallback"})));
    decoders.extend((fallback || prefix).then(|| json!({"type": "Fuse"})));
    decoders.extend(prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0})));
    json!({
        "added_tokens": model.added(&[CONTROL]),
        "normalizer": {"type": "Sequence", "normalizers": normalizers(&settings, prefix && legacy)},
        "pre_tokenizer": splitting(prefix, legacy, &user),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": if unigram { model.unigram(&trainer, fallback) } else { model.by_score(&trainer, fallback, !user.is_empty()) },
    })
}

/// In SentencePiece's order.
fn normalizers(settings: &Normalizer, doubled: bool) -> Vec<Json> {
    let replace = |pattern: &str, by: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": by});
    let mut steps = Vec::new();
    if let Some(map) = settings.charsmap.as_ref().filter(|map| !map.is_empty()) {
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map)}));
    }
    if settings.remove_spaces() {
        // Spaces only: other white space stays.
        steps.extend([replace(r"\A +| +\z", ""), replace(" {2,}", " ")]);
    }
    if settings.escape_spaces() {
        steps.push(replace_text(" ", "▁"));
    }
    if doubled {
        // Metaspace puts nothing before a text that begins with its mark; SentencePiece does.
        steps.push(replace(r"\A▁", "▁▁"));
    }
    steps
}

/// The prefix, then pieces that users defined, each for itself.
fn splitting(prefix: bool, legacy: bool, user: &[&str]) -> Json {
    let mut steps = Vec::new();
    if prefix {
        steps.push(metaspace(if legacy { "always" } else { "first" }));
    }
    if !user.is_empty() {
        let mut longest = user.to_vec();
        longest.sort_by_key(|text| std::cmp::Reverse(text.chars().count()));
        let pattern = longest.into_iter().map(regex_syntax::escape).collect::<Vec<_>>().join("|");
        steps.push(json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}));
    }
    if steps.is_empty() { Json::Null } else { json!({"type": "Sequence", "pretokenizers": steps}) }
}

impl Model {
    fn added(&self, kinds: &[i32]) -> Vec<Json> {
        let pieces = self.pieces.iter().enumerate().filter(|(_, piece)| kinds.contains(&piece.kind()));
        let added = pieces.map(|(id, piece)| {
            let flags = json!({"special": piece.kind() == CONTROL});
            Added { id: id as u64, text: piece.text().to_owned(), flags }.json()
        });
        added.collect()
    }

    fn unigram(&self, trainer: &Trainer, fallback: bool) -> Json {
        let vocab: Vec<Json> =
            self.pieces.iter().map(|piece| json!([piece.text(), f64::from(piece.score())])).collect();
        json!({"type": "Unigram", "unk_id": trainer.unk_id(), "vocab": vocab, "byte_fallback": fallback})
    }

    /// BPE whose normal pieces are merged best score first.
    fn by_score(&self, trainer: &Trainer, fallback: bool, whole: bool) -> Json {
        let texts: Vec<&str> = self.pieces.iter().map(Piece::text).collect();
        let mut merges = joins(&texts, |id| self.pieces[id].kind() == NORMAL);
        let score = |join: &Join<'_>| self.pieces[join.made].score();
        merges.sort_by(|a, b| {
            let places = a.made.cmp(&b.made).then(a.left.cmp(b.left)).then(a.right.cmp(b.right));
            score(b).total_cmp(&score(a)).then(places)
        });
        let settings = json!({"unk_token": trainer.unk_piece(), "fuse_unk": true, "byte_fallback": fallback, "ignore_merges": whole});
        bpe(&texts, &merges, settings)
    }
}

impl Added {
    fn json(&self) -> Json {
        let flag = |key: &str| self.flags.get(key).and_then(Json::as_bool).unwrap_or(false);
        json!({
            "id": self.id, "content": self.text, "single_word": flag("single_word"), "lstrip": flag("lstrip"),
            "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
        })
    }
}

/// Two tokens that make a third.
struct Join<'a> {
    made: usize,
    left: &'a str,
    right: &'a str,
}

/// Every way to join two tokens into a third, by the ids of the third, the first and the second.
fn joins<'a>(texts: &[&'a str], takes_part: impl Fn(usize) -> bool) -> Vec<Join<'a>> {
    let ids: HashMap<&str, usize> =
        texts.iter().enumerate().filter(|(id, _)| takes_part(*id)).map(|(id, text)| (*text, id)).collect();
    let mut found = Vec::new();
    for (made, text) in texts.iter().enumerate().filter(|(id, text)| ids.get(*text) == Some(id)) {
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut own: Vec<_> =
            cuts.filter_map(|(left, right)| Some((ids.get(left)?, ids.get(right)?, left, right))).collect();
        own.sort_unstable();
        found.extend(own.into_iter().map(|(_, _, left, right)| Join { made, left, right }));
    }
    found
}

fn bpe(texts: &[&str], merges: &[Join<'_>], settings: Json) -> Json {
    let vocab: Map<String, Json> = texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), id.into())).collect();
    let merges: Vec<Json> = merges.iter().map(|join| json!([join.left, join.right])).collect();
    bpe_of(vocab, merges, settings)
}

fn bpe_of(vocab: Map<String, Json>, merges: Vec<Json>, settings: Json) -> Json {
    let mut model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    });
    if let (Some(model), Json::Object(settings)) = (model.as_object_mut(), settings) {
        model.extend(settings);
        model.insert("vocab".to_owned(), Json::Object(vocab));
        model.insert("merges".to_owned(), Json::Array(merges));
    }
    model
}

fn metaspace(scheme: &str) -> Json {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false})
}

fn replace_text(from: &str, to: &str) -> Json {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

/// tiktoken's file: a line for each token, its bytes in base64 and its rank.
fn ranks(content: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    let text = std::str::from_utf8(content).ok()?;
    let line = |line: &str| {
        let (token, rank) = line.trim_end().split_once(' ')?;
        Some((STANDARD.decode(token).ok()?, rank.parse().ok()?))
    };
    let ranks: Option<Vec<_>> = text.lines().filter(|text| !text.trim().is_empty()).map(line).collect();
    ranks.filter(|ranks| !ranks.is_empty())
}

/// With the splitting of Llama 3, which transformers takes for every such file.
fn tiktoken(path: &Path, ranks: Vec<(Vec<u8>, u64)>, config: &Json) -> Result<Json, FilesError> {
    let letters = byte_letters();
    let spelled = |token: &[u8]| token.iter().map(|&byte| letters[usize::from(byte)]).collect::<String>();
    let by_bytes: HashMap<&[u8], u64> = ranks.iter().map(|(token, rank)| (token.as_slice(), *rank)).collect();
    let mut merges = Vec::new();
    for (token, rank) in &ranks {
        let cuts = (1..token.len()).map(|at| token.split_at(at));
        let pairs = cuts.filter_map(|(a, b)| Some((*by_bytes.get(a)?, *by_bytes.get(b)?, a, b)));
        merges.extend(pairs.map(|(left, right, a, b)| (*rank, left, right, a, b)));
    }
    merges.sort_unstable();
    let merges: Vec<Json> = merges.iter().map(|(.., a, b)| json!([spelled(a), spelled(b)])).collect();
    let vocab: Map<String, Json> = ranks.iter().map(|(token, rank)| (spelled(token), (*rank).into())).collect();
    if vocab.len() != ranks.len() {
        return Err(broken(path, "a token is listed twice"));
    }
    let split =
        json!({"type": "Split", "pattern": {"Regex": modern(r"\p{N}{1,3}")}, "behavior": "Isolated", "invert": false});
    Ok(json!({
        "added_tokens": beyond(ranks.len() as u64, config),
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes(false)]},
        "decoder": bytes(true),
        "model": bpe_of(vocab, merges, json!({"ignore_merges": true})),
    }))
}

/// Special tokens after the ranks, numbered on; numbers that nothing names are reserved, as in transformers.
fn beyond(first: u64, config: &Json) -> Vec<Json> {
    let decoder = config.get("added_tokens_decoder").and_then(Json::as_object);
    let named: HashMap<u64, &str> = decoder
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token.get("content")?.as_str()?)))
        .collect();
    let last = named.keys().copied().max().filter(|last| *last >= first);
    let mut texts: Vec<String> = (first..last.map_or(first, |last| last + 1))
        .map(|id| named.get(&id).map_or_else(|| format!("<|reserved_token_{id}|>"), |text| (*text).to_owned()))
        .collect();
    let more = match config.get("extra_special_tokens") {
        Some(Json::Object(map)) => map.keys().cloned().collect(),
        Some(Json::Array(list)) => list.iter().filter_map(Json::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    for text in more {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let special = |(text, id): (String, u64)| Added { id, text, flags: json!({"special": true}) }.json();
    texts.into_iter().zip(first..).map(special).collect()
}

/// GPT-2's two files.
fn byte_level(vocab: &Path, merges: &Path, class: &str, config: &Json) -> Result<Json, FilesError> {
    let Json::Object(tokens) = json_file(vocab)? else { return Err(broken(vocab, "this is no map of tokens to ids")) };
    let text = std::fs::read_to_string(merges).map_err(FilesError::read(merges))?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    let pairs: Option<Vec<Json>> = lines.map(|line| line.split_once(' ').map(|(a, b)| json!([a, b]))).collect();
    let pairs = pairs.ok_or_else(|| broken(merges, "a line is not two tokens with a space between"))?;
    let (normalizer, pre_tokenizer) = if GPT2.contains(&class) {
        let prefix = config.get("add_prefix_space").and_then(Json::as_bool).unwrap_or(false);
        let mut splitter = bytes(true);
        splitter["add_prefix_space"] = prefix.into();
        (Json::Null, splitter)
    } else if QWEN2.contains(&class) {
        let pattern = json!({"Regex": modern(r"\p{N}")});
        let split = json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
        (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]}))
    } else {
        return Err(unknown_class(vocab, class));
    };
    Ok(json!({
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "decoder": bytes(true),
        "model": bpe_of(tokens, pairs, json!({})),
    }))
}

/// Adds what the folder's small files say: added tokens, special tokens, and BOS and EOS around a text.
fn finish(folder: &Path, mut description: Json, config: &Json) -> Result<Json, FilesError> {
    let map = optional_json(&folder.join("special_tokens_map.json"))?;
    let mut added: Vec<Json> = description["added_tokens"].as_array().cloned().unwrap_or_default();
    for token in named_tokens(folder, config, &map)? {
        if let Some(id) = token.id {
            rename(&mut description, id, &token.text);
        }
        let id = token.id.or_else(|| id_of(&description, &added, &token.text));
        let id = id.unwrap_or_else(|| 1 + last_id(&description, &added));
        let one = Added { id, text: token.text, flags: token.flags }.json();
        match added.iter_mut().find(|known| known["content"] == one["content"]) {
            // What the configuration says of a token counts; a bare name only makes it special.
            Some(known) if token.id.is_some() => *known = one,
            Some(known) => known["special"] = true.into(),
            None => added.push(one),
        }
    }
    added.sort_by_key(|token| token["id"].as_u64());
    let special = |key: &str| {
        let value = config.get(key).or_else(|| map.get(key))?;
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some((text.to_owned(), id_of(&description, &added, text)?))
    };
    let adds = |key: &str| config.get(key).and_then(Json::as_bool).unwrap_or(false);
    let bos = special("bos_token").filter(|_| adds("add_bos_token"));
    let eos = special("eos_token").filter(|_| adds("add_eos_token"));
    let edges = crate::tokenizer::around(bos, eos);
    description["added_tokens"] = added.into();
    description["post_processor"] = edges;
    description["version"] = "1.0".into();
    description["truncation"] = Json::Null;
    description["padding"] = Json::Null;
    Ok(description)
}

/// Gives the piece that holds the place of a token its name, as InternLM2 has it; it takes no part in merges.
fn rename(description: &mut Json, id: u64, text: &str) {
    if id_of(description, &[], text).is_some() {
        return;
    }
    let model = &mut description["model"];
    if let Some(piece) = model["vocab"].as_array_mut().and_then(|pieces| pieces.get_mut(usize::try_from(id).ok()?)) {
        piece[0] = text.into();
        return;
    }
    let Some(vocab) = model["vocab"].as_object_mut() else { return };
    let Some(old) = vocab.iter().find(|(_, other)| other.as_u64() == Some(id)).map(|(name, _)| name.clone()) else {
        return;
    };
    vocab.remove(&old);
    vocab.insert(text.to_owned(), id.into());
    if let Some(merges) = model["merges"].as_array_mut() {
        let text_of = |merge: &Json, i: usize| merge[i].as_str().unwrap_or_default().to_owned();
        merges.retain(|merge| {
            let (left, right) = (text_of(merge, 0), text_of(merge, 1));
            left != old && right != old && format!("{left}{right}") != old
        });
    }
}

/// A token that a folder's small files name.
struct Named {
    id: Option<u64>,
    text: String,
    flags: Json,
}

fn named_tokens(folder: &Path, config: &Json, map: &Json) -> Result<Vec<Named>, FilesError> {
    let mut tokens = Vec::new();
    let text_of = |value: &Json| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    let decoder = config.get("added_tokens_decoder").and_then(Json::as_object);
    let listed = decoder.into_iter().flatten();
    tokens.extend(listed.filter_map(|(id, token)| {
        Some(Named { id: Some(id.parse().ok()?), text: text_of(token)?, flags: token.clone() })
    }));
    let path: PathBuf = folder.join("added_tokens.json");
    if let Json::Object(added) = optional_json(&path)? {
        let new = added.into_iter().filter(|(text, _)| !tokens.iter().any(|token| token.text == *text));
        let new: Vec<Named> = new.map(|(text, id)| Named { id: id.as_u64(), text, flags: json!({}) }).collect();
        tokens.extend(new);
    }
    for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        if let Some(text) = config.get(key).or_else(|| map.get(key)).and_then(text_of) {
            tokens.push(Named { id: None, text, flags: json!({"special": true}) });
        }
    }
    let more = map.get("additional_special_tokens").or_else(|| config.get("additional_special_tokens"));
    for text in more.and_then(Json::as_array).into_iter().flatten().filter_map(text_of) {
        tokens.push(Named { id: None, text, flags: json!({"special": true}) });
    }
    Ok(tokens)
}

fn id_of(description: &Json, added: &[Json], text: &str) -> Option<u64> {
    let found = added.iter().find(|token| token["content"] == *text).and_then(|token| token["id"].as_u64());
    let vocab = &description["model"]["vocab"];
    let listed = || vocab.as_array()?.iter().position(|piece| piece[0] == *text).map(|id| id as u64);
    found.or_else(|| vocab.get(text).and_then(Json::as_u64)).or_else(listed)
}

fn last_id(description: &Json, added: &[Json]) -> u64 {
    let vocab = &description["model"]["vocab"];
    let own = match vocab {
        Json::Object(map) => map.values().filter_map(Json::as_u64).max().unwrap_or(0),
        _ => (vocab.as_array().map_or(0, Vec::len) as u64).saturating_sub(1),
    };
    added.iter().filter_map(|token| token["id"].as_u64()).max().unwrap_or(0).max(own)
}
