//! Conversations in fixed words, for models that were tuned before chat templates: Llama 2's and Pygmalion's turns, as
//! Axolotl writes them.

use serde_json::{Map, Value};

use super::prompts::PromptStyle;
use super::{Row, joined};

/// The role of a span that ends a turn: trained, and no content.
pub const END: &str = "end";

const LLAMA2_SYSTEM: &str = "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. Your \
     answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please \
     ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make any sense, \
     or is not factually coherent, explain why instead of answering something not correct. If you don't know the answer \
     to a question, please don't share false information.";

/// The conversation as a row; `None` when the style is for prompts.
///
/// # Errors
/// Names the turn that the words have no place for.
pub fn row(style: &PromptStyle, messages: &[Map<String, Value>]) -> Option<Result<Row, String>> {
    match style {
        PromptStyle::Llama2 => Some(llama2(messages)),
        PromptStyle::Pygmalion { eos } => Some(pygmalion(messages, eos)),
        PromptStyle::Prompt(_) => None,
    }
}

/// Role and text of a message.
fn turn(message: &Map<String, Value>) -> (&str, &str) {
    let text = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or("");
    (text("role"), text("content"))
}

fn llama2(messages: &[Map<String, Value>]) -> Result<Row, String> {
    let mut turns: Vec<(&str, &str)> = messages.iter().map(turn).collect();
    let mut system = LLAMA2_SYSTEM;
    if let Some(("system", text)) = turns.first().copied() {
        system = text;
        turns.remove(0);
    }
    if turns.first().is_some_and(|(role, _)| *role == "assistant") {
        turns.remove(0);
    }
    if turns.len() < 2 {
        return Err("llama2_chat needs a user's turn and an answer".into());
    }
    // A last question without an answer teaches nothing.
    if turns.len() % 2 == 1 {
        turns.pop();
    }
    let mut pieces = Vec::new();
    for (i, (role, text)) in turns.iter().enumerate() {
        let wanted = ["user", "assistant"][i % 2];
        if *role != wanted {
            return Err(format!("llama2_chat takes turns of user and assistant, and turn {} is of `{role}`", i + 1));
        }
        let text = text.trim();
        if i == 0 {
            pieces.push((format!("[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{text}[/INST]"), "user", 0));
        } else if i % 2 == 0 {
            pieces.push((format!("[INST] {text} [/INST]"), "user", 0));
        } else {
            pieces.push((format!(" {text}"), "assistant", 1));
            pieces.push((" </s>".to_string(), END, 1));
            pieces.push(("<s>".to_string(), "user", 0));
        }
    }
    let mut row = joined(&pieces);
    // One text, tokenised once; its end-of-sequence tokens are written in it.
    row.piece_ends = vec![row.text.len() as i32];
    row.spans.retain(|span| span.train == 1);
    Ok(Row { bos: true, ..row })
}

fn pygmalion(messages: &[Map<String, Value>], eos: &str) -> Result<Row, String> {
    let mut row = Row { bos: true, ..Row::default() };
    for (i, message) in messages.iter().enumerate() {
        let (role, text) = turn(message);
        let (prefix, text, trained) = match role {
            "system" => {
                let text = text.strip_suffix("\n<START>").unwrap_or(text).trim();
                ("<|system|>", format!("Persona: {text}"), false)
            }
            "human" => ("<|user|>", format!(" {}", text.trim()), false),
            "bot" => ("<|model|>", format!(" {}", text.trim()), true),
            other => {
                return Err(format!(
                    "pygmalion knows turns of system, human and bot, and turn {} is of `{other}`",
                    i + 1
                ));
            }
        };
        let mut pieces = vec![(prefix.to_string(), "user", 0), (text, "assistant", i8::from(trained))];
        if trained {
            pieces.push((eos.to_string(), END, 1));
        }
        let part = joined(&pieces);
        let start = row.text.len() as i32;
        row.text.push_str(&part.text);
        // A turn's mark and its text are tokenised together.
        row.piece_ends.extend(part.piece_ends.iter().skip(1).map(|end| start + end));
        row.spans.extend(part.spans.into_iter().filter(|span| span.train == 1).map(|mut span| {
            (span.start, span.end, span.limit) = (start + span.start, start + span.end, start + span.limit);
            span
        }));
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::conversation::Example;
    use crate::ingest::{DatasetKeys, RowFormat};
    use crate::recipe::{Dataset, DatasetType, Format};

    const EOS: char = '\u{e000}';

    fn style(dataset: &Dataset) -> PromptStyle {
        match dataset.kind.as_ref().unwrap() {
            DatasetType::UserDefined(words) => PromptStyle::user_defined(words).unwrap(),
            DatasetType::Named(format) => PromptStyle::of(format.words(), || EOS.to_string()),
        }
    }

    fn rendered(dataset: &Dataset, row: &Value) -> Row {
        let mut row = row.as_object().unwrap().clone();
        let example = RowFormat::of_dataset(dataset).unwrap().examples(&mut row).unwrap().remove(0);
        match example {
            Example::Chat { messages, .. } => super::row(&style(dataset), &messages).unwrap().unwrap(),
            Example::Instruct { system, instruction, input, output } => {
                style(dataset).row(system.as_deref(), &instruction, &input, output)
            }
            Example::Segments { segments } => {
                let pieces: Vec<_> = segments.into_iter().map(|s| (s.text, "text", i8::from(s.label))).collect();
                joined(&pieces)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Ranges of characters that are trained.
    fn trained(row: &Row) -> Vec<[usize; 2]> {
        let chars = |byte: i32| row.text[..byte as usize].chars().count();
        let is_trained =
            |span: &super::super::RoleSpan| span.train == 1 || span.train == -1 && span.role == "assistant";
        let spans = row.spans.iter().filter(|span| is_trained(span));
        let mut found: Vec<[usize; 2]> = Vec::new();
        let end = row.text.chars().count();
        let eos = row.eos.then_some([end, end + 1]);
        for [from, to] in spans.map(|span| [chars(span.start), chars(span.end)]).chain(eos) {
            match found.last_mut() {
                Some(last) if last[1] == from => last[1] = to,
                _ if from == to => {}
                _ => found.push([from, to]),
            }
        }
        found
    }

    /// Rows that Axolotl's own prompters rendered; see `tests/fixtures/prompts`.
    #[test]
    fn words_and_labels_are_those_of_axolotl() {
        let cases = include_str!("../../../tests/fixtures/prompts/prompts.jsonl");
        let mut types = std::collections::BTreeSet::new();
        for line in cases.lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let dataset: Dataset = serde_json::from_value(json!({"path": "d", "type": case["type"]})).unwrap();
            let row = rendered(&dataset, &case["row"]);
            let text = if row.eos { format!("{}{EOS}", row.text) } else { row.text.clone() };
            assert_eq!(text, case["text"].as_str().unwrap(), "{}", case["type"]);
            if let Ok(expected) = serde_json::from_value::<Vec<[usize; 2]>>(case["trained"].clone()) {
                assert_eq!(trained(&row), expected, "{} {}", case["type"], case["row"]);
            }
            types.insert(case["type"].to_string());
        }
        assert!(types.len() > 40, "{} types", types.len());
    }

    #[test]
    fn every_format_has_words() {
        let keys = DatasetKeys::default();
        for format in Format::all() {
            RowFormat::of_type(format.name(), &keys).unwrap();
            PromptStyle::of(format.words(), String::new).prompt(None, "i", "");
        }
    }

    #[test]
    fn turns_without_a_place_are_errors() {
        let messages = |roles: &[&str]| -> Vec<Map<String, Value>> {
            roles
                .iter()
                .map(|role| Map::from_iter([("role".into(), json!(role)), ("content".into(), json!("x"))]))
                .collect()
        };
        let error = |style: PromptStyle, roles: &[&str]| super::row(&style, &messages(roles)).unwrap().unwrap_err();
        assert!(error(PromptStyle::Llama2, &["user", "user"]).contains("turn 2 is of `user`"));
        assert!(error(PromptStyle::Llama2, &["user"]).contains("an answer"));
        assert!(error(PromptStyle::Pygmalion { eos: "e".into() }, &["user"]).contains("turn 1 is of `user`"));
    }
}
