//! Equality with `tokenizers`, token for token and byte for byte.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tokenizers::Tokenizer;

use super::*;

/// A vocabulary of a few hundred tokens, merged in the order of a made-up corpus.
fn description(pre_tokenizer: Json, normalizer: Json, ignore_merges: bool) -> Json {
    let letters = byte_letters();
    let mut vocab = serde_json::Map::new();
    for letter in letters {
        vocab.insert(letter.to_string(), vocab.len().into());
    }
    let words = [
        "Ġthe", "Ġan", "and", "ing", "Ġin", "hello", "Hello", "World", "Ġworld", "''", "'s", "'ll", "Ġ'", "123", "Ġ1",
        "ĠĠĠĠ", "ĊĊ", "ĠĊ", "....", "Ġ...", "Ã©", "ä¸Ń", "ðŁĺĢ", "Ġdef", "HTTP", "ab", "bc", "abc", "cab", "==",
    ];
    let mut merges = Vec::new();
    for word in words {
        let symbols: Vec<char> = word.chars().collect();
        for end in 2..=symbols.len() {
            let (left, right) = (symbols[..end - 1].iter().collect::<String>(), symbols[end - 1].to_string());
            let made = format!("{left}{right}");
            if !vocab.contains_key(&made) {
                vocab.insert(made, vocab.len().into());
                merges.push(json!([left, right]));
            }
        }
    }
    // A token that no merge makes: whole pieces only.
    vocab.insert("Ġwhole".into(), vocab.len().into());
    let first = vocab.len();
    let token = |n: usize, text: &str, special: bool| {
        json!({"id": first + n, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null,
        "added_tokens": [token(0, "<s>", true), token(1, "<|end|>", true), token(2, "<|end", true), token(3, "<tool>", false)],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges},
    })
}

fn descriptions() -> Vec<Json> {
    let bytes = |splits: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let modern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = json!({"type": "Split", "pattern": {"Regex": modern}, "behavior": "Isolated", "invert": false});
    // As SmolLM2's: bytes that its corpus did not have are no tokens, and are dropped from a text.
    let mut lacking = description(bytes(true), json!(null), false);
    let vocab = lacking.pointer_mut("/model/vocab").unwrap().as_object_mut().unwrap();
    for byte in [0x04, 0xc0, 0xf1] {
        let id = vocab.remove(&byte_letters()[byte].to_string()).unwrap();
        vocab.insert(format!("in place of {byte}"), id);
    }
    vec![
        description(bytes(true), json!(null), false),
        description(json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), json!(null), true),
        description(json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]}), json!({"type": "NFC"}), false),
        lacking,
    ]
}

fn texts() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        " the",
        "and",
        " and",
        "ing",
        "hello",
        "Hello World",
        "'s",
        "'ll",
        "'",
        " ",
        "    ",
        "\n",
        "\n\n",
        "\t",
        "1",
        "123",
        "é",
        "e\u{301}",
        "中",
        "文",
        "😀",
        "...",
        " whole",
        "whole",
        "abcab",
        "cab",
        "=====",
        "<s>",
        "<|end|>",
        "<|end",
        "<|en",
        "<tool>",
        "<",
        "|>",
        "\0",
        "\u{4}",
        "\u{40000}",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabcabcabcabcabc",
        "Ⅷ",
        "\u{a0}",
    ]);
    prop_oneof![4 => prop::collection::vec(pieces, 0..30).prop_map(|p| p.concat()), 1 => any::<String>()]
}

/// Offsets as `tokenizers` gives them: grown to whole characters.
fn grown(text: &str, token: &Token) -> (usize, usize) {
    let start = (0..=token.start).rev().find(|&at| text.is_char_boundary(at)).unwrap();
    let end = (token.end..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap();
    (start, end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn tokens_are_those_of_tokenizers(texts in prop::collection::vec(texts(), 1..6)) {
        for description in descriptions() {
            let plain = Tokenizer::from_bytes(description.to_string()).unwrap();
            let mut literal = plain.clone();
            literal.set_encode_special_tokens(true);
            let bpe = Bpe::read(&description).unwrap();
            let mut scratch = Scratch::default();
            // The same texts again: from the cache this time.
            for text in texts.iter().chain(&texts) {
                for (theirs, as_text) in [(&plain, false), (&literal, true)] {
                    let mut tokens = Vec::new();
                    if !bpe.encode(text, as_text, &mut scratch, &mut tokens) {
                        continue;
                    }
                    let expected = theirs.encode(text.as_str(), false).unwrap();
                    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
                    prop_assert_eq!(ids, expected.get_ids(), "{:?}", text);
                    let offsets: Vec<_> = tokens.iter().map(|token| grown(text, token)).collect();
                    prop_assert_eq!(offsets, expected.get_offsets(), "{:?}", text);
                }
            }
        }
    }
}

#[test]
fn what_is_covered_is_claimed_and_nothing_else() {
    for description in descriptions() {
        let tokenizer = Tokenizer::from_bytes(description.to_string()).unwrap();
        assert!(Bpe::new(&description, &tokenizer).is_some());
    }
    let refused: [(&str, Json); 6] = [
        ("/model/byte_fallback", json!(true)),
        ("/model/dropout", json!(0.1)),
        ("/model/end_of_word_suffix", json!("</w>")),
        ("/normalizer", json!({"type": "Lowercase"})),
        ("/added_tokens/0/lstrip", json!(true)),
        (
            "/pre_tokenizer",
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        ),
    ];
    for (place, value) in refused {
        let mut description = descriptions().remove(0);
        *description.pointer_mut(place).unwrap() = value;
        assert!(Bpe::read(&description).is_none(), "{place}");
    }
    // A description that does not belong to the tokenizer is found out.
    let tokenizer = Tokenizer::from_bytes(descriptions()[1].to_string()).unwrap();
    assert!(Bpe::new(&descriptions()[0], &tokenizer).is_none());
}

#[test]
fn texts_on_which_unicode_versions_differ_are_left_alone() {
    let bpe = Bpe::read(&descriptions()[2]).unwrap();
    let mut tokens = Vec::new();
    assert!(!bpe.encode("e\u{301}", false, &mut Scratch::default(), &mut tokens), "not in NFC");
    assert!(!bpe.encode("'\u{17f}", false, &mut Scratch::default(), &mut tokens), "the long s");
    assert!(tokens.is_empty());
}

#[test]
fn texts_with_bytes_that_are_no_token_are_left_alone() {
    let bpe = Bpe::read(&descriptions()[3]).unwrap();
    let encoded = |text: &str| bpe.encode(text, false, &mut Scratch::default(), &mut Vec::new());
    assert!(encoded("hello \0 world \u{1f600}"));
    assert!(!encoded("hello \u{4}") && !encoded("\u{40000}"));
}
