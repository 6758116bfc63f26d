//! Conversations turned round: roles exchanged, and a context set apart from its question.

use serde_json::{Map, Value, json};

use crate::conversation::Example;

/// Stands for the row's own answer in the prompt of a swapped row.
const ANSWER: &str = "{answer}";

/// A copy in which who asked answers and who answered asks. Rows of one turn are asked for the request that fits the answer.
/// `None` where there is nothing to exchange: text without roles, or calls to tools.
pub fn swap(example: &Example, prompt: &str) -> Option<Example> {
    match example {
        Example::Instruct { system, instruction, input, output } => {
            let request = if input.is_empty() { instruction.clone() } else { format!("{instruction}\n\n{input}") };
            Some(Example::Instruct {
                system: system.clone(),
                instruction: prompt.replace(ANSWER, output),
                input: String::new(),
                output: request,
            })
        }
        Example::Chat { messages, .. } => {
            swap_chat(messages, prompt).map(|messages| Example::Chat { messages, tools: None })
        }
        _ => None,
    }
}

fn swap_chat(messages: &[Map<String, Value>], prompt: &str) -> Option<Vec<Map<String, Value>>> {
    let turns: Vec<(&str, &str)> = messages.iter().map(said).collect::<Option<_>>()?;
    // The system prompt tells the assistant how to be; it tells nothing about who asks.
    let turns: Vec<(&str, &str)> = turns.into_iter().filter(|(role, _)| *role != "system").collect();
    let alternate =
        turns.iter().enumerate().all(|(i, (role, _))| *role == if i.is_multiple_of(2) { "user" } else { "assistant" });
    if !alternate || turns.len() < 2 {
        return None;
    }
    if turns.len() < 4 {
        return Some(vec![turn("user", &prompt.replace(ANSWER, turns[1].1)), turn("assistant", turns[0].1)]);
    }
    // From the first answer on; an answer at the end has nothing to be answered with.
    let last = turns.len() - turns.len() % 2 - 1;
    let rest = turns[1..last].iter();
    Some(rest.map(|(role, text)| turn(if *role == "user" { "assistant" } else { "user" }, text)).collect())
}

/// A copy in which the paragraphs before the last come first, and the last, the question, after a reply that is not trained.
/// `None` where the first message has one paragraph only.
pub fn dialogue(example: &Example, reply: &str) -> Option<Example> {
    let Example::Chat { messages, tools } = example else { return None };
    let at = messages.iter().position(|message| said(message).is_some_and(|(role, _)| role == "user"))?;
    let (_, text) = said(&messages[at])?;
    let (context, question) = text.trim_end().rsplit_once("\n\n")?;
    if context.trim().is_empty() || question.trim().is_empty() || !has_answer_after(messages, at) {
        return None;
    }
    let mut turns = messages[..at].to_vec();
    let mut between = turn("assistant", reply);
    between.insert("train".to_string(), json!(false));
    let mut asked = messages[at].clone();
    asked.insert("content".to_string(), json!(question.trim()));
    turns.extend([turn("user", context.trim()), between, asked]);
    turns.extend_from_slice(&messages[at + 1..]);
    Some(Example::Chat { messages: turns, tools: tools.clone() })
}

fn has_answer_after(messages: &[Map<String, Value>], at: usize) -> bool {
    messages.get(at + 1).and_then(said).is_some_and(|(role, _)| role == "assistant")
}

/// Role and text of a message that has both, and no calls.
fn said(message: &Map<String, Value>) -> Option<(&str, &str)> {
    let calls = message.get("tool_calls").is_some_and(|calls| !calls.is_null());
    let (role, text) = (message.get("role")?.as_str()?, message.get("content")?.as_str()?);
    (!calls && role != "tool").then_some((role, text))
}

fn turn(role: &str, text: &str) -> Map<String, Value> {
    Map::from_iter([("role".to_string(), json!(role)), ("content".to_string(), json!(text))])
}
