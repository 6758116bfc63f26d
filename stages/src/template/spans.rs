//! Where each message's text lies in the rendered conversation, as the renderer carried it; nothing is searched for.

use serde_json::{Map, Value};

use super::render::{ChatTemplate, TemplateError};
use super::text::{Mark, Part};

/// What one message put into the rendered text, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub end: usize,
    /// Position of the message in the conversation.
    pub message: usize,
    /// Where the message's turn ends: what ends the turn lies before this.
    pub limit: usize,
}

/// A rendered conversation and where its contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// In the order of the text; none overlap.
    pub spans: Vec<Span>,
    /// Messages with text of which the rendering shows nothing that could be traced.
    pub lost: Vec<usize>,
    /// Stretches of contents that were copied unchanged, in the order of the text.
    pub pieces: Vec<Piece>,
}

/// A stretch of a message's content in the rendered text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub message: usize,
    pub start: usize,
    pub end: usize,
    /// Where it starts in the content, in bytes.
    pub source: usize,
}

/// Renders a conversation with the places of its contents.
pub fn render(
    template: &ChatTemplate,
    messages: &[Map<String, Value>],
    tools: Option<&Value>,
    kwargs: &Map<String, Value>,
) -> Result<Rendered, TemplateError> {
    let (text, marks) = match template.render_marked(messages, tools, kwargs, false) {
        // Without marks nothing can be proven, and every content counts as lost.
        Err(TemplateError::Marker) => (template.render(messages, tools, kwargs, false)?, Vec::new()),
        other => other?,
    };
    let spans = match template.marks_generation() {
        true => generated(&marks),
        false => messages.iter().enumerate().filter_map(|(i, _)| hull(&marks, i, text.len())).collect(),
    };
    let lost = (0..messages.len()).filter(|&i| has_text(&messages[i]) && !marks.iter().any(|mark| traces(mark, i)));
    let lost = lost.collect();
    let spans = disjoint(spans);
    let pieces = pieces(&marks, &spans);
    Ok(Rendered { spans, text, lost, pieces })
}

fn pieces(marks: &[Mark], spans: &[Span]) -> Vec<Piece> {
    let inside = |mark: &Mark| {
        spans
            .iter()
            .any(|span| span.message == mark.message as usize && span.start <= mark.start && mark.end <= span.end)
    };
    let copied = marks.iter().filter(|mark| mark.part == Part::Content && inside(mark));
    let piece = |mark: &Mark| {
        let source = mark.source?;
        Some(Piece { message: mark.message as usize, start: mark.start, end: mark.end, source })
    };
    copied.filter_map(piece).collect()
}

fn has_text(message: &Map<String, Value>) -> bool {
    match message.get("content") {
        Some(Value::String(text)) => !text.trim().is_empty(),
        Some(Value::Array(parts)) => !parts.is_empty(),
        _ => false,
    }
}

fn traces(mark: &Mark, message: usize) -> bool {
    mark.message as usize == message && matches!(mark.part, Part::Content | Part::Reasoning | Part::ToolCalls)
}

/// From the first byte that a message's fields gave to the last.
fn hull(marks: &[Mark], message: usize, text_end: usize) -> Option<Span> {
    let own = || marks.iter().filter(|mark| traces(mark, message));
    // A content that is printed twice, as in a preview, has no one place: its longest stretch counts.
    let turn = marks.iter().filter(|mark| mark.part == Part::Turn && mark.message as usize == message);
    let turn = turn.max_by_key(|mark| mark.end - mark.start);
    let inside = |mark: &&Mark| turn.is_none_or(|turn| turn.start <= mark.start && mark.end <= turn.end);
    let (start, end) = match own().any(|mark| inside(&mark)) {
        true => (own().filter(inside).map(|mark| mark.start).min()?, own().filter(inside).map(|mark| mark.end).max()?),
        false => {
            let longest = own().max_by_key(|mark| mark.end - mark.start)?;
            (longest.start, longest.end)
        }
    };
    let limit = turn.filter(|turn| turn.end >= end).map_or(text_end, |turn| turn.end);
    Some(Span { start, end, message, limit })
}

/// What `{% generation %}` blocks wrote, each given to the message in whose turn it lies.
fn generated(marks: &[Mark]) -> Vec<Span> {
    let blocks = marks.iter().filter(|mark| mark.part == Part::Generation);
    let made = blocks.filter_map(|block| {
        let around = |mark: &&Mark| mark.part == Part::Turn && mark.start <= block.start && block.end <= mark.end;
        let turn = marks.iter().filter(around).min_by_key(|mark| mark.end - mark.start)?;
        Some(Span { start: block.start, end: block.end, message: turn.message as usize, limit: block.end })
    });
    made.collect()
}

fn disjoint(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| (span.start, span.end));
    let mut end = 0;
    spans.retain(|span| {
        let apart = span.start >= end;
        end = end.max(span.end);
        apart
    });
    spans
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::template::render::SpecialTexts;
    use serde_json::json;

    fn rendered(source: &str, messages: Value) -> (Rendered, Vec<String>) {
        let template = ChatTemplate::parse(source, &SpecialTexts::default()).unwrap();
        let messages: Vec<Map<String, Value>> = serde_json::from_value(messages).unwrap();
        let plain = template.render(&messages, None, &Map::new(), false).unwrap();
        let out = render(&template, &messages, None, &Map::new()).unwrap();
        assert_eq!(plain, out.text);
        let pieces = out.spans.iter().map(|span| out.text[span.start..span.end].to_string()).collect();
        (out, pieces)
    }

    fn turns(turns: &[(&str, &str)]) -> Value {
        turns.iter().map(|(role, text)| json!({"role": role, "content": text})).collect()
    }

    const TURNS: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>\n{% endfor %}";

    #[test]
    fn contents_are_found_where_the_template_puts_them() {
        let (out, pieces) =
            rendered(TURNS, turns(&[("user", "yes"), ("assistant", " yes "), ("user", "<s>"), ("assistant", "")]));
        assert_eq!(pieces, ["yes", "yes", "<s>", ""]);
        assert_eq!(&out.text[out.spans[3].start..out.spans[3].limit], "</s>\n");
        assert!(out.lost.is_empty());
    }

    #[test]
    fn contents_survive_what_templates_do_to_strings() {
        let source = "{% macro show(x) %}[{{ x.split('</think>')[-1].lstrip('\\n') }}]{% endmacro %}\
                      {% for m in messages %}{% set c = show(m['content']) %}{{ '#' ~ c + '!' }}{% endfor %}";
        let (_, pieces) = rendered(source, turns(&[("user", "a"), ("assistant", "<think>b</think>\n\nc é")]));
        assert_eq!(pieces, ["a", "c é"]);
    }

    #[test]
    fn generation_blocks_say_what_is_trained() {
        let source = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<e>{% endgeneration %}\
                      {% else %}{{ m.content }}{% endif %}|{% endfor %}";
        let (_, pieces) = rendered(source, turns(&[("user", "q"), ("assistant", "r")]));
        assert_eq!(pieces, ["r<e>"]);
    }

    #[test]
    fn tool_calls_belong_to_the_answer() {
        let source = "{% for m in messages %}<a>{{ m.content or '' }}{% for c in m.tool_calls %}<call>{{ c | tojson }}</call>\
                      {% endfor %}<e>{% endfor %}";
        let messages = json!([{"role": "assistant", "content": null, "tool_calls": [{"name": "f"}]}]);
        let (_, pieces) = rendered(source, messages);
        assert_eq!(pieces, [r#"<call>{"name": "f"}</call>"#]);
    }

    #[test]
    fn a_content_that_cannot_be_traced_is_reported() {
        let source = "{% for m in messages %}{{ 'x' if m.content }}{% endfor %}";
        let (out, _) = rendered(source, turns(&[("assistant", "b")]));
        assert_eq!(out.lost, [0]);
        let (out, _) = rendered(TURNS, turns(&[("assistant", "b\u{fdd0}")]));
        assert_eq!(out.lost, [0]);
    }
}
