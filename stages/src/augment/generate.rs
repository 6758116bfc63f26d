//! Rows written by a model: what it is asked for each task, and what its answers become.

use serde_json::{Map, Value, json};

use super::endpoint::Request;
use super::section::{Endpoint, EndpointTask};
use super::wording;
use crate::clean::contamination::asked;
use crate::conversation::Example;

const REPHRASE: &str = "Reword the request below. Keep its meaning, its language, and every name, number and piece of code in \
                        it. Reply with the reworded request alone.\n\n{request}";
const SELF_INSTRUCT: &str = "Here is a request and its answer, as an example of a kind of task.\n\nRequest:\n{request}\n\nAnswer:\n\
                             {answer}\n\nWrite one new request of the same kind about something else, and its answer. Reply with one \
                             JSON object: {\"request\": \"...\", \"answer\": \"...\"}";
const DIALOGUE: &str = "Write a conversation between a user who wants to know about the text below and an assistant who answers \
                        from it. Four to eight messages, the user first, in the language of the text. Reply with one JSON list: \
                        [{\"role\": \"user\", \"content\": \"...\"}, {\"role\": \"assistant\", \"content\": \"...\"}]\n\n{text}";

/// What is sent for a row; `None` where the task has nothing to work on.
pub fn request(endpoint: &Endpoint, example: &Example, seed: u64) -> Option<Request> {
    let mut copy = example.clone();
    let request = wording::request(&mut copy).cloned();
    let answer = answer(example);
    let text = example.texts().join("\n\n");
    let own = match endpoint.task {
        EndpointTask::Rephrase => REPHRASE,
        EndpointTask::SelfInstruct => SELF_INSTRUCT,
        EndpointTask::Dialogue => DIALOGUE,
    };
    let fits = match endpoint.task {
        EndpointTask::Rephrase => request.is_some(),
        EndpointTask::SelfInstruct => request.is_some() && answer.is_some(),
        // Other shapes have no roles to write for.
        EndpointTask::Dialogue => matches!(example, Example::Chat { .. }) && !text.trim().is_empty(),
    };
    if !fits {
        return None;
    }
    let parts = [("{request}", request.as_deref()), ("{answer}", answer.as_deref()), ("{text}", Some(text.as_str()))];
    let user = filled(endpoint.prompt.as_deref().unwrap_or(own), &parts);
    Some(Request { system: String::new(), user, seed })
}

/// The row that an answer makes.
///
/// # Errors
/// What is wrong with the answer, for the samples.
pub fn row(endpoint: &Endpoint, example: &Example, answer: &str) -> Result<Example, String> {
    let answer = answer.trim();
    if answer.is_empty() {
        return Err("the answer is empty".to_string());
    }
    match endpoint.task {
        EndpointTask::Rephrase => {
            let mut copy = example.clone();
            let request = wording::request(&mut copy).ok_or("the row has no request")?;
            let reworded = unquoted(answer);
            if reworded == request.trim() {
                return Err("the request came back as it was".to_string());
            }
            *request = reworded.to_string();
            Ok(copy)
        }
        EndpointTask::SelfInstruct => {
            let made = json_in(answer, '{', '}').ok_or("no JSON object in the answer")?;
            let part =
                |name: &str| made.get(name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
            let (request, answer) =
                part("request").zip(part("answer")).ok_or("no `request` and `answer` in the answer")?;
            Ok(fresh(example, request, answer))
        }
        EndpointTask::Dialogue => {
            let made = json_in(answer, '[', ']').ok_or("no JSON list in the answer")?;
            let turns: Option<Vec<Map<String, Value>>> =
                made.as_array().and_then(|turns| turns.iter().map(turn).collect());
            let turns = turns.filter(|turns| alternates(turns)).ok_or("no alternating messages in the answer")?;
            let system = system(example);
            Ok(Example::Chat { messages: system.into_iter().chain(turns).collect(), tools: None })
        }
    }
}

/// A row of the same shape and system prompt that says something else.
fn fresh(example: &Example, request: &str, answer: &str) -> Example {
    match example {
        Example::Instruct { system, .. } => Example::Instruct {
            system: system.clone(),
            instruction: request.to_string(),
            input: String::new(),
            output: answer.to_string(),
        },
        _ => {
            let said = |role: &str, text: &str| {
                Map::from_iter([("role".to_string(), json!(role)), ("content".to_string(), json!(text))])
            };
            let turns = [said("user", request), said("assistant", answer)];
            Example::Chat { messages: system(example).into_iter().chain(turns).collect(), tools: None }
        }
    }
}

fn system(example: &Example) -> Option<Map<String, Value>> {
    let Example::Chat { messages, .. } = example else { return None };
    messages.first().filter(|message| message.get("role").and_then(Value::as_str) == Some("system")).cloned()
}

/// The last answer of a row.
fn answer(example: &Example) -> Option<String> {
    match example {
        Example::Instruct { output, .. } => Some(output.clone()),
        Example::Chat { messages, .. } => {
            let answers = messages.iter().rev().filter(|m| m.get("role").and_then(Value::as_str) == Some("assistant"));
            answers.filter_map(|m| m.get("content")?.as_str()).find(|text| !text.is_empty()).map(str::to_string)
        }
        _ => None,
    }
    .filter(|text| !text.trim().is_empty() && !asked(example).is_empty())
}

/// Fills in parts in one pass, so that a part that holds braces fills nothing.
fn filled(template: &str, parts: &[(&str, Option<&str>)]) -> String {
    let mut out = String::with_capacity(template.len() + 256);
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        match parts.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, part)) => {
                out.push_str(part.unwrap_or_default());
                rest = &rest[name.len()..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

/// Models like to put a text into quotes.
fn unquoted(text: &str) -> &str {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    inner.filter(|inner| !inner.contains('"')).unwrap_or(text).trim()
}

/// The JSON from the first opening bracket to the last closing one: models like to talk around it.
fn json_in(text: &str, open: char, close: char) -> Option<Value> {
    let (start, end) = (text.find(open)?, text.rfind(close)?);
    serde_json::from_str(text.get(start..=end)?).ok()
}

fn turn(value: &Value) -> Option<Map<String, Value>> {
    let (role, text) = (value.get("role")?.as_str()?, value.get("content")?.as_str()?.trim());
    let known = matches!(role, "user" | "assistant") && !text.is_empty();
    known.then(|| Map::from_iter([("role".to_string(), json!(role)), ("content".to_string(), json!(text))]))
}

fn alternates(turns: &[Map<String, Value>]) -> bool {
    let wanted = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    turns.len() >= 2
        && turns.len().is_multiple_of(2)
        && turns.iter().enumerate().all(|(i, turn)| turn.get("role").and_then(Value::as_str) == Some(wanted(i)))
}
