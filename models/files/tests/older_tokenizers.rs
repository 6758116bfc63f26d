//! Tokenizers in the formats that came before `tokenizer.json`, against transformers' ids (tests/fixtures/tokenizer/older.py).
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use pipe_files::{TokenizerInfo, tokenizer, write_tokenizer};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizer/older").join(name)
}

fn expected(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join("expected.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

const ALL: [&str; 7] = ["llama", "llama-legacy", "plain", "unigram", "tiktoken", "gpt2", "qwen2"];

#[test]
fn ids_are_those_of_transformers() {
    let mut wrong = Vec::new();
    for name in ALL {
        let (tokenizer, expected) = (tokenizer(&folder(name)).unwrap(), expected(name));
        for row in expected["rows"].as_array().unwrap() {
            let text = row[0].as_str().unwrap();
            let found = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
            if found != ids(&row[1]) {
                wrong.push(format!("{name} {text:?}: {found:?}, not {:?}", ids(&row[1])));
            }
        }
        let around = tokenizer.encode("hello", true).unwrap().get_ids().to_vec();
        assert_eq!(around, ids(&expected["around"]), "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn special_tokens_have_their_ids() {
    let info = TokenizerInfo::read(&folder("unigram")).unwrap();
    assert_eq!(info.eos.map(|token| (token.text, token.id)), Some(("</s>".to_owned(), 2)));
    let info = TokenizerInfo::read(&folder("qwen2")).unwrap();
    let tokens = tokenizer(&folder("qwen2")).unwrap();
    assert_eq!(info.pad.map(|token| token.id), tokens.token_to_id("<|end|>"));
}

#[test]
fn a_copied_tokenizer_has_a_tokenizer_json_as_well() {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer(&folder("plain"), dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    let copied = tokenizer(dir.path()).unwrap().encode("hello world", false).unwrap();
    let own = tokenizer(&folder("plain")).unwrap().encode("hello world", false).unwrap();
    assert_eq!(copied.get_ids(), own.get_ids());
}

#[test]
fn what_cannot_be_read_exactly_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
    put("tokenizer.model", b"\xff\xffno model");
    put("tokenizer_config.json", br#"{"tokenizer_class": "LlamaTokenizer"}"#);
    let said = tokenizer(dir.path()).unwrap_err().to_string();
    assert!(said.contains("neither a SentencePiece model nor tiktoken's ranks"), "{said}");
    put("tokenizer.model", &std::fs::read(folder("llama/tokenizer.model")).unwrap());
    put("tokenizer_config.json", br#"{"tokenizer_class": "T5Tokenizer"}"#);
    let said = tokenizer(dir.path()).unwrap_err().to_string();
    assert!(said.contains("T5Tokenizer") && said.contains("save_pretrained"), "{said}");
}
