//! `split_thinking`: what an answer thinks before it speaks becomes a property of its own.
//!
//! ```text
//! <think>Two and two.</think>\n\nFour.   ->   reasoning_content: "Two and two.", content: "Four."
//! ```

use serde_json::{Map, Value};

/// Opening and closing tags of thinking, in the order in which they are looked for.
const THINKING: [(&str, &str); 3] =
    [("<think>", "</think>"), ("<reasoning>", "</reasoning>"), ("<|begin_of_thought|>", "<|end_of_thought|>")];
const SOLUTION: (&str, &str) = ("<|begin_of_solution|>", "<|end_of_solution|>");

/// Cuts the thinking out of an assistant's content and keeps it under `key`.
pub fn split(message: &mut Map<String, Value>, key: &str) {
    if message.get("role").and_then(Value::as_str) != Some("assistant") {
        return;
    }
    let Some(content) = message.get("content").and_then(Value::as_str) else { return };
    let Some((thinking, rest)) = THINKING.iter().find_map(|tags| between(content, *tags)) else { return };
    let rest = rest.trim_start();
    let answer = between(rest, SOLUTION).map_or(rest, |(solution, _)| solution.trim());
    let (thinking, answer) = (thinking.trim().to_string(), answer.to_string());
    message.insert(key.to_string(), thinking.into());
    message.insert("content".into(), answer.into());
}

/// What lies between the first opening and the first closing tag, and what follows.
fn between<'a>(text: &'a str, (open, close): (&str, &str)) -> Option<(&'a str, &'a str)> {
    let (start, end) = (text.find(open)? + open.len(), text.find(close)?);
    Some((text.get(start..end).unwrap_or_default(), &text[end + close.len()..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn after(content: &str) -> (Option<String>, String) {
        let mut message = json!({"role": "assistant", "content": content}).as_object().unwrap().clone();
        split(&mut message, "thoughts");
        let text = |key: &str| message.get(key).and_then(Value::as_str).map(str::to_string);
        (text("thoughts"), text("content").unwrap())
    }

    #[test]
    fn thinking_is_cut_out_of_answers() {
        let made = |thinking: &str, answer: &str| (Some(thinking.to_string()), answer.to_string());
        assert_eq!(after("<think>\n a \n</think>\n\nb \n"), made("a", "b \n"));
        assert_eq!(after("x<reasoning>a</reasoning>b"), made("a", "b"));
        let long = "<|begin_of_thought|>a<|end_of_thought|> <|begin_of_solution|> b <|end_of_solution|>c";
        assert_eq!(after(long), made("a", "b"));
        assert_eq!(after("<think>never closed"), (None, "<think>never closed".to_string()));
    }
}
