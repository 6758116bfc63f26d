//! Where each message's content lies in the rendered text.
//!
//! The conversation is rendered once plain; that text is what is tokenised. To find contents, it is rendered again with
//! every content marked by a pair of private-use characters that no row may hold itself. If taking the marks out gives
//! the plain text back, the marks' places are the spans, proven. Otherwise the contents are searched in order, and a
//! content that occurs in more than one place is reported, never guessed.

use serde_json::{Map, Value};

use super::render::{ChatTemplate, TemplateError};

/// First of the marks: plane 15, private use.
const FIRST_MARK: u32 = 0xF0000;
/// Messages that can be marked, two marks each.
const MOST_MESSAGES: usize = 0x7000;

/// The content of one message in the rendered text, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub end: usize,
    /// Position of the message in the conversation.
    pub message: usize,
}

/// A rendered conversation and where its contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    pub spans: Vec<Span>,
    /// Messages with content whose place could not be proven.
    pub lost: Vec<usize>,
}

/// How marks are put around a content.
#[derive(Clone, Copy)]
enum Placement {
    /// Around all of it.
    Outside,
    /// Inside its own leading and trailing white space, for templates that trim.
    Inside,
}

/// Renders a conversation and finds its contents.
pub fn render(
    template: &ChatTemplate,
    messages: &[Map<String, Value>],
    tools: Option<&Value>,
    kwargs: &Map<String, Value>,
) -> Result<Rendered, TemplateError> {
    let text = template.render(messages, tools, kwargs, false)?;
    let markable = messages.len() <= MOST_MESSAGES && !messages.iter().any(has_marks);
    for placement in [Placement::Outside, Placement::Inside] {
        if !markable {
            break;
        }
        let marked: Vec<_> = messages.iter().enumerate().map(|(i, message)| mark(message, i, placement)).collect();
        // A template that looks into contents may refuse marked ones; then this placement proves nothing.
        let Ok(marked) = template.render(&marked, tools, kwargs, false) else { continue };
        if let Some(spans) = unmark(&marked, &text, messages) {
            return Ok(Rendered { text, spans, lost: Vec::new() });
        }
    }
    let (spans, lost) = search(&text, messages);
    Ok(Rendered { text, spans, lost })
}

/// The content of a message, where it is plain text.
pub fn content(message: &Map<String, Value>) -> Option<&str> {
    message.get("content").and_then(Value::as_str)
}

fn has_marks(message: &Map<String, Value>) -> bool {
    content(message).is_some_and(|text| text.chars().any(|c| (c as u32) >= FIRST_MARK))
}

fn mark(message: &Map<String, Value>, i: usize, placement: Placement) -> Map<String, Value> {
    let Some(text) = content(message) else { return message.clone() };
    let (start, end) = marks(i);
    let core = match placement {
        Placement::Outside => text,
        Placement::Inside => text.trim(),
    };
    let before = text.len() - text.trim_start().len();
    let (head, tail) = match placement {
        Placement::Outside => ("", ""),
        Placement::Inside if core.is_empty() => (text, ""),
        Placement::Inside => (&text[..before], &text[before + core.len()..]),
    };
    let mut marked = message.clone();
    marked.insert("content".into(), Value::from(format!("{head}{start}{core}{end}{tail}")));
    marked
}

fn marks(i: usize) -> (char, char) {
    let at = |n: u32| char::from_u32(FIRST_MARK + n).unwrap_or('\u{F0000}');
    (at(2 * i as u32), at(2 * i as u32 + 1))
}

/// Takes the marks out; `None` unless what remains is `plain` and every marked message shows up exactly once, whole.
fn unmark(marked: &str, plain: &str, messages: &[Map<String, Value>]) -> Option<Vec<Span>> {
    let mut text = String::with_capacity(plain.len());
    let mut starts: Vec<Option<usize>> = vec![None; messages.len()];
    let mut spans: Vec<Span> = Vec::new();
    for c in marked.chars() {
        let Some(n) = (c as u32).checked_sub(FIRST_MARK) else {
            text.push(c);
            continue;
        };
        let message = (n / 2) as usize;
        if n % 2 == 0 {
            // A content that is rendered twice has no one place.
            if starts.get_mut(message)?.replace(text.len()).is_some() {
                return None;
            }
        } else {
            spans.push(Span { start: (*starts.get(message)?)?, end: text.len(), message });
        }
    }
    let opened = starts.iter().filter(|start| start.is_some()).count();
    let assistants = messages.iter().enumerate().filter(|(_, m)| is_role(m, "assistant") && content(m).is_some());
    let whole = assistants.map(|(i, _)| i).all(|i| starts[i].is_some());
    (text == plain && opened == spans.len() && whole).then_some(spans)
}

fn is_role(message: &Map<String, Value>, role: &str) -> bool {
    message.get("role").and_then(Value::as_str) == Some(role)
}

/// Contents found from front to back, each accepted only where it occurs once between its neighbours.
fn search(text: &str, messages: &[Map<String, Value>]) -> (Vec<Span>, Vec<usize>) {
    let (mut spans, mut lost) = (Vec::new(), Vec::new());
    let mut from = 0;
    for (message, fields) in messages.iter().enumerate() {
        let Some(content) = content(fields).map(str::trim) else { continue };
        let mut places = text[from..].match_indices(content).map(|(at, _)| from + at);
        match (content.is_empty(), places.next(), places.next()) {
            (false, Some(start), None) => {
                from = start + content.len();
                spans.push(Span { start, end: from, message });
            }
            (true, ..) => {}
            _ => lost.push(message),
        }
    }
    (spans, lost)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::template::render::SpecialTexts;
    use serde_json::json;

    fn conversation(turns: &[(&str, &str)]) -> Vec<Map<String, Value>> {
        turns.iter().map(|(role, text)| json!({"role": role, "content": text}).as_object().unwrap().clone()).collect()
    }

    fn contents(source: &str, turns: &[(&str, &str)]) -> Vec<String> {
        let template = ChatTemplate::parse(source, &SpecialTexts::default()).unwrap();
        let rendered = render(&template, &conversation(turns), None, &Map::new()).unwrap();
        assert_eq!(rendered.lost, Vec::<usize>::new());
        rendered.spans.iter().map(|span| rendered.text[span.start..span.end].to_string()).collect()
    }

    #[test]
    fn contents_are_found_where_the_template_puts_them() {
        let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}";
        let turns = [("user", "yes"), ("assistant", "yes"), ("user", " no "), ("assistant", "")];
        assert_eq!(contents(source, &turns), ["yes", "yes", " no ", ""]);
    }

    #[test]
    fn contents_survive_a_template_that_trims() {
        let source = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}";
        assert_eq!(contents(source, &[("user", " a "), ("assistant", "\nb\n")]), ["a", "b"]);
    }

    #[test]
    fn a_content_that_could_be_in_two_places_is_reported() {
        let source = "{% for m in messages %}{{ m.content | upper | lower }} {{ m.content | replace('\u{F0002}', '') }}{% endfor %}";
        let template = ChatTemplate::parse(source, &SpecialTexts::default()).unwrap();
        let rendered = render(&template, &conversation(&[("user", "x"), ("assistant", "yes")]), None, &Map::new()).unwrap();
        assert!(rendered.lost.contains(&1));
    }
}
