//! Byte-level BPE, several times faster than the `tokenizers` crate and equal to it token for token.
//!
//! Text is split by loops instead of a regular expression, and every piece is merged once and then remembered. A
//! configuration that is not covered exactly is refused, as is one whose ids for a set of probing texts differ from those
//! of `tokenizers`: the caller then uses that crate. Single texts with characters on which the Unicode tables of the two
//! disagree are refused too.

mod added;
mod cache;
mod classes;
mod merges;
mod splits;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde_json::Value as Json;
use tokenizers::Tokenizer;
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use self::added::Added;
use self::cache::{Cache, SHORT};
use self::classes::Classes;
use self::merges::{Merges, Work};
use self::splits::Splitting;
use crate::tokenizer::byte_letters;

/// A token and the bytes of the text it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: u32,
    pub start: usize,
    pub end: usize,
}

/// A byte-level BPE tokenizer.
pub struct Bpe {
    classes: Classes,
    splitting: Splitting,
    /// Texts are brought to NFC first, so only texts that are in it already are ours.
    nfc: bool,
    /// Added tokens that are special, and those that are matched in text that is read literally too.
    added: Added,
    plain_added: Added,
    byte_ids: [u32; 256],
    /// Bytes that are no token, where there are any; texts with them are left to `tokenizers`.
    lacking: Option<[bool; 256]>,
    /// Bytes that each token stands for.
    lengths: Vec<u32>,
    merges: Merges,
    /// Whole pieces that are tokens whatever the merges say; only where the tokenizer asks for them.
    whole: HashMap<Box<[u8]>, u32>,
}

/// What one thread keeps from text to text.
#[derive(Default)]
pub struct Scratch {
    cache: Cache,
    work: Work,
    ids: Vec<u32>,
}

impl Bpe {
    /// The tokenizer that this `tokenizer.json` describes, if it is one that is covered exactly.
    pub fn new(description: &Json, tokenizer: &Tokenizer) -> Option<Bpe> {
        let bpe = Bpe::read(description)?;
        bpe.agrees(tokenizer).then_some(bpe)
    }

    fn read(description: &Json) -> Option<Bpe> {
        let model = description.get("model")?;
        let unset = |key: &str| match model.get(key) {
            None | Some(Json::Null) => true,
            Some(Json::String(text)) => text.is_empty(),
            Some(_) => false,
        };
        let flag = |key: &str| model.get(key).and_then(Json::as_bool).unwrap_or(false);
        let plain = model.get("type").is_none_or(|kind| kind == "BPE")
            && ["dropout", "continuing_subword_prefix", "end_of_word_suffix"].into_iter().all(unset)
            && !flag("byte_fallback");
        let nfc = match description.get("normalizer") {
            None | Some(Json::Null) => false,
            Some(normalizer) if normalizer.get("type")? == "NFC" => true,
            Some(_) => return None,
        };
        if !plain {
            return None;
        }
        let (added, plain_added) = added(description)?;
        let vocabulary = model.get("vocab")?.as_object()?;
        let id = |text: &str| vocabulary.get(text).and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok());
        let letters = byte_letters();
        let found = letters.map(|letter| id(letter.encode_utf8(&mut [0; 4])));
        let byte_ids = found.map(Option::unwrap_or_default);
        let lacking = found.contains(&None).then(|| found.map(|id| id.is_none()));
        let bytes: HashMap<char, u8> = letters.iter().enumerate().map(|(byte, &letter)| (letter, byte as u8)).collect();
        let mut lengths = Vec::new();
        let mut whole = HashMap::new();
        for (text, id) in vocabulary {
            let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|&id| id < 1 << 24)?;
            lengths.resize(lengths.len().max(id + 1), 0);
            lengths[id] = text.chars().count() as u32;
            if flag("ignore_merges") {
                let piece: Option<Vec<u8>> = text.chars().map(|letter| bytes.get(&letter).copied()).collect();
                whole.extend(piece.map(|piece| (piece.into_boxed_slice(), id as u32)));
            }
        }
        let pair = |merge: &Json| {
            let (left, right) = match merge {
                Json::String(text) => text.split_once(' ')?,
                Json::Array(two) => (two.first()?.as_str()?, two.get(1)?.as_str()?),
                _ => return None,
            };
            Some((id(left)?, id(right)?, id(&format!("{left}{right}"))?))
        };
        let pairs: Vec<_> = model.get("merges")?.as_array()?.iter().map(pair).collect::<Option<_>>()?;
        Some(Bpe {
            classes: Classes::new(),
            splitting: Splitting::of(description.get("pre_tokenizer")?)?,
            nfc,
            added,
            plain_added,
            byte_ids,
            lacking,
            lengths,
            merges: Merges::new(&pairs),
            whole,
        })
    }

    /// The tokens of a text, appended to `out`; false, and nothing appended, where the text is left to `tokenizers`.
    /// With `literal`, special tokens are read as ordinary text.
    pub fn encode(&self, text: &str, literal: bool, scratch: &mut Scratch, out: &mut Vec<Token>) -> bool {
        let ours = text.is_ascii()
            || self.classes.agree(text.as_bytes()) && (!self.nfc || is_nfc_quick(text.chars()) == IsNormalized::Yes);
        let lacks = |lacking: &[bool; 256]| text.bytes().any(|byte| lacking[usize::from(byte)]);
        if !ours || self.lacking.as_ref().is_some_and(lacks) {
            return false;
        }
        let bytes = text.as_bytes();
        let added = if literal { &self.plain_added } else { &self.added };
        let mut at = 0;
        while let Some((start, end, id)) = added.find(bytes, at) {
            self.stretch(bytes, at, start, scratch, out);
            out.push(Token { id, start, end });
            at = end;
        }
        self.stretch(bytes, at, bytes.len(), scratch, out);
        true
    }

    /// Text without added tokens.
    fn stretch(&self, text: &[u8], from: usize, to: usize, scratch: &mut Scratch, out: &mut Vec<Token>) {
        let stretch = &text[from..to];
        self.splitting.split(&self.classes, stretch, |start, end| {
            let mut at = from + start;
            if end - start <= SHORT {
                let (key, hash) = Cache::key(stretch, start, end);
                if let Some(found) = scratch.cache.get(&key, hash) {
                    self.place(found, &mut at, out);
                    return;
                }
                scratch.ids.clear();
                self.piece(&stretch[start..end], &mut scratch.work, &mut scratch.ids);
                scratch.cache.put(key, hash, &scratch.ids);
            } else {
                scratch.ids.clear();
                self.piece(&stretch[start..end], &mut scratch.work, &mut scratch.ids);
            }
            self.place(&scratch.ids, &mut at, out);
        });
    }

    #[inline]
    fn place(&self, ids: &[u32], at: &mut usize, out: &mut Vec<Token>) {
        for &id in ids {
            let end = *at + self.lengths[id as usize] as usize;
            out.push(Token { id, start: *at, end });
            *at = end;
        }
    }

    fn piece(&self, piece: &[u8], work: &mut Work, out: &mut Vec<u32>) {
        match self.whole.get(piece) {
            Some(&id) => out.push(id),
            None => self.merges.apply(piece.iter().map(|&byte| self.byte_ids[usize::from(byte)]), work, out),
        }
    }

    /// Whether both give the same for texts that probe every branch.
    fn agrees(&self, tokenizer: &Tokenizer) -> bool {
        let mut scratch = Scratch::default();
        let mut literal = tokenizer.clone();
        literal.set_encode_special_tokens(true);
        let mut probes: Vec<String> = PROBES.iter().map(|&text| text.to_owned()).collect();
        let mut decoder: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        decoder.sort_by_key(|(id, _)| *id);
        let names: Vec<&str> = decoder.iter().take(64).map(|(_, token)| token.content.as_str()).collect();
        probes.push(names.concat());
        probes.push(names.join(" \n"));
        probes.iter().all(|text| {
            [(tokenizer, false), (&literal, true)].into_iter().all(|(theirs, literal)| {
                let mut ours = Vec::new();
                if !self.encode(text, literal, &mut scratch, &mut ours) {
                    return true;
                }
                let expected = theirs.encode_fast(text.as_str(), false);
                expected.is_ok_and(|expected| expected.get_ids().iter().eq(ours.iter().map(|token| &token.id)))
            })
        })
    }
}

const PROBES: [&str; 6] = [
    "",
    "Hello, world! It's 2024-01-31; we'll see 3.14159 and 1000000 'quoted' words_with_underscores, HTTPServer2 & x86.",
    "  leading\n\n\n  indented\ttabs\t\t and trailing   \r\n\r\n mixed \n \n",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n\n\nif __name__ == '__main__':\n    print(f(10))\n",
    "Ünïcödé naïve façade — “quotes” … 中文字符，日本語テキスト、한국어 문장. Привет, мир! مرحبا بالعالم שלום नमस्ते ไทย 🙂👍🏽 ½ Ⅷ ²",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ========================================",
];

/// Added tokens as they are matched, all of them and those that are not special. None where one needs more than a search.
fn added(description: &Json) -> Option<(Added, Added)> {
    let mut tokens = Vec::new();
    let listed = description.get("added_tokens").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let normalized = |token: &Json| token.get("normalized").and_then(Json::as_bool).unwrap_or(false);
    for token in listed {
        let flag = |key: &str| token.get(key).and_then(Json::as_bool).unwrap_or(false);
        if flag("single_word") || flag("lstrip") || flag("rstrip") {
            return None;
        }
        let text = token.get("content")?.as_str()?;
        // Normalised tokens are searched for after the others; together only where that cannot matter.
        let other = |other: &&Json| {
            normalized(other) != normalized(token)
                && other.get("content").and_then(Json::as_str).is_some_and(|other| meet(other, text))
        };
        if normalized(token) && (!text.is_ascii() || listed.iter().any(|token| other(&token))) {
            return None;
        }
        let id = token.get("id")?.as_u64().and_then(|id| u32::try_from(id).ok())?;
        tokens.push((text, id, flag("special")));
    }
    let all = Added::new(tokens.iter().map(|&(text, id, _)| (text, id)));
    // Special tokens that are not to be parsed still hide what they overlap, so they must not overlap the others.
    let (special, plain): (Vec<(&str, u32, bool)>, Vec<_>) = tokens.into_iter().partition(|&(.., special)| special);
    if plain.iter().any(|(text, ..)| special.iter().any(|(other, ..)| meet(text, other))) {
        return None;
    }
    Some((all, Added::new(plain.iter().map(|&(text, id, _)| (text, id)))))
}

/// Whether two texts could overlap in a third: one in the other, or the end of one the start of the other.
fn meet(a: &str, b: &str) -> bool {
    let laps = |a: &str, b: &str| a.char_indices().skip(1).any(|(at, _)| b.starts_with(&a[at..]));
    a.contains(b) || b.contains(a) || laps(a, b) || laps(b, a)
}
