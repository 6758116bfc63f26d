#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, json};

use super::labels::{MASKED, SpanView};
use super::*;
use crate::template::prompts::PromptStyle;
use crate::template::render::{ChatTemplate, SpecialTexts};
use crate::template::{Row, Template, TemplateSource};

fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/labels/tokenizer")
}

fn config() -> Tokenize {
    Tokenize {
        roles_to_train: vec!["assistant".into()],
        train_on_inputs: false,
        train_on_eos: TrainOn::Turn,
        train_on_eot: TrainOn::Turn,
        eot_tokens: Vec::new(),
        added_tokens: Vec::new(),
        eos_token: None,
        special_in_content: SpecialTokensInContent::Parse,
        tokenizer: tokenizer(),
    }
}

fn rendering() -> Template {
    Template {
        source: TemplateSource::Unused,
        tokenizer: None,
        kwargs: Map::new(),
        default_system: None,
        style: PromptStyle::alpaca(),
        special: SpecialTexts::default(),
        day: None,
    }
}

fn special() -> SpecialTexts {
    SpecialTexts { bos: "<s>".into(), eos: "</s>".into(), ..SpecialTexts::default() }
}

fn tokenized(config: &Tokenize, row: &Row) -> Result<(Tokenized, Counts), String> {
    let labeller = Labeller::new(config).unwrap();
    let view = RowView {
        text: &row.text,
        piece_ends: &row.piece_ends,
        spans: row
            .spans
            .iter()
            .map(|span| SpanView {
                start: span.start as usize,
                end: span.end as usize,
                limit: span.limit as usize,
                role: &span.role,
                train: span.train,
            })
            .collect(),
        bos: row.bos,
        eos: row.eos,
        tokens: &row.tokens,
        labels: &row.labels,
    };
    labeller.row(&view, &mut labeller.bench())
}

fn chat(template: &str, messages: Value) -> Row {
    let template = ChatTemplate::parse(template, &special()).unwrap();
    rendering().row(Some(&template), &json!({"shape": "chat", "messages": messages}).to_string()).unwrap()
}

/// The trained tokens as text, one piece per run.
fn trained(config: &Tokenize, row: &Row) -> Vec<String> {
    let (made, _) = tokenized(config, row).unwrap();
    let names = pipe_files::tokenizer(&config.tokenizer).unwrap();
    let mut out: Vec<String> = Vec::new();
    let mut before = MASKED;
    for &label in &made.labels {
        if label != MASKED {
            let text = names.id_to_token(label as u32).unwrap().replace('Ġ', " ").replace('Ċ', "\n");
            match out.last_mut().filter(|_| before != MASKED) {
                Some(last) => last.push_str(&text),
                None => out.push(text),
            }
        }
        before = label;
    }
    out
}

#[derive(Deserialize)]
struct Expected {
    template: String,
    messages: Value,
    input_ids: Vec<i32>,
    labels: Vec<i32>,
}

#[test]
fn ids_and_labels_are_those_of_transformers_and_of_the_pieces() {
    let file = tokenizer().join("../rows.json");
    let rows: Vec<Expected> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(rows.len(), 60);
    for row in rows {
        let (made, counts) = tokenized(&config(), &chat(&row.template, row.messages.clone())).unwrap();
        assert_eq!(made.ids, row.input_ids, "{}", row.messages);
        assert_eq!(made.labels, row.labels, "{}", row.messages);
        assert_eq!(counts.missing_terminators, 0, "{}", row.messages);
    }
}

const CHATML: &str =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}";

fn two_turns() -> Value {
    json!([
        {"role": "user", "content": "wind"}, {"role": "assistant", "content": "north", "train": false},
        {"role": "user", "content": "tide"}, {"role": "assistant", "content": ""}
    ])
}

#[test]
fn flags_and_roles_decide_what_is_trained() {
    assert_eq!(trained(&config(), &chat(CHATML, two_turns())), ["<|im_end|>"]);
    let both = Tokenize { roles_to_train: vec!["user".into(), "assistant".into()], ..config() };
    assert_eq!(trained(&both, &chat(CHATML, two_turns())), ["wind<|im_end|>", "tide<|im_end|>", "<|im_end|>"]);
    let none = Tokenize { train_on_eot: TrainOn::None, ..both.clone() };
    assert_eq!(trained(&none, &chat(CHATML, two_turns())), ["wind", "tide"]);
    let all = Tokenize { train_on_eot: TrainOn::All, ..config() };
    assert_eq!(trained(&all, &chat(CHATML, two_turns())).len(), 4);
}

#[test]
fn the_next_turns_first_token_is_no_terminator() {
    let source = "{% for m in messages %}<|start|>{{ m.content }}{% endfor %}";
    let row = chat(source, json!([{"role": "assistant", "content": "calm"}, {"role": "user", "content": "sea"}]));
    assert_eq!(trained(&config(), &row), ["calm"]);
    assert_eq!(tokenized(&config(), &row).unwrap().1.missing_terminators, 1);
}

#[test]
fn special_text_in_content_is_parsed_escaped_or_refused() {
    let row = || chat(CHATML, json!([{"role": "user", "content": "<s>"}, {"role": "assistant", "content": "calm"}]));
    let (parsed, counts) = tokenized(&config(), &row()).unwrap();
    assert_eq!(counts.special_in_content, 1);
    let escape = Tokenize { special_in_content: SpecialTokensInContent::Escape, ..config() };
    let (escaped, _) = tokenized(&escape, &row()).unwrap();
    assert!(escaped.ids.len() > parsed.ids.len());
    let error = Tokenize { special_in_content: SpecialTokensInContent::Error, ..config() };
    assert!(tokenized(&error, &row()).unwrap_err().contains("`<s>`"));
}

#[test]
fn instructions_are_tokenised_apart_and_completions_end() {
    let row = |data: Value| rendering().row(None, &data.to_string()).unwrap();
    let instruct = row(json!({"shape": "instruct", "instruction": "wind", "output": "north"}));
    assert_eq!(trained(&config(), &instruct), ["north</s>"]);
    let completion = row(json!({"shape": "completion", "text": "the sea"}));
    assert_eq!(trained(&config(), &completion), ["the sea</s>"]);
    let segments = json!([{"label": false, "text": "wind"}, {"label": true, "text": " calm</s>"}]);
    assert_eq!(trained(&config(), &row(json!({"shape": "segments", "segments": segments}))), [" calm</s>"]);
}

#[test]
fn character_ranges_and_flagged_parts_decide_what_of_an_answer_is_trained() {
    let row = |message: Value| chat(CHATML, json!([{"role": "user", "content": "wind"}, message]));
    let ranges = json!([
        {"begin_offset": 0, "end_offset": 4, "train": true}, {"begin_offset": 5, "end_offset": 9, "train": false}
    ]);
    let detailed =
        |flag: Value| row(json!({"role": "assistant", "content": "north wind", "train": flag, "train_detail": ranges}));
    assert_eq!(trained(&config(), &detailed(json!(null))), ["north", "<|im_end|>"]);
    assert!(trained(&config(), &detailed(json!(false))).is_empty());
    let parts = json!([{"type": "text", "text": "north", "weight": 0}, {"type": "text", "text": " wind"}]);
    assert_eq!(trained(&config(), &row(json!({"role": "assistant", "content": parts}))), [" wind<|im_end|>"]);
}

#[test]
fn wrong_ranges_are_refused() {
    let template = ChatTemplate::parse(CHATML, &special()).unwrap();
    let messages = json!([{"role": "assistant", "content": "x", "train_detail": [{"begin": 0}]}]);
    let data = json!({"shape": "chat", "messages": messages}).to_string();
    let error = rendering().row(Some(&template), &data).unwrap_err();
    assert!(error.contains("message 1") && error.contains("begin_offset"), "{error}");
}
