//! Answers as OpenAI's clients read them, whole and in chunks.

use serde_json::{Value, json};

use super::answer::{Piece, Usage};
use super::request::Endpoint;

/// What all parts of one answer have in common.
pub struct Shape {
    pub endpoint: Endpoint,
    pub id: u64,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
}

impl Shape {
    /// The answer to a request that does not stream.
    pub fn whole(&self, text: &str, calls: Vec<Value>, reason: &str, usage: Usage) -> Value {
        let choice = match self.endpoint {
            Endpoint::Completions => json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": reason }),
            Endpoint::Chat if calls.is_empty() => {
                let message = json!({ "role": "assistant", "content": text, "refusal": null });
                json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reason })
            }
            Endpoint::Chat => {
                let content = if text.is_empty() { Value::Null } else { json!(text) };
                let message = json!({ "role": "assistant", "content": content, "refusal": null, "tool_calls": calls });
                json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reason })
            }
        };
        let object = if self.endpoint == Endpoint::Chat { "chat.completion" } else { "text_completion" };
        let mut whole = self.envelope(object, json!([choice]));
        whole["usage"] = counts(usage);
        whole
    }

    /// The chunk that says who speaks.
    pub fn opening(&self, with_usage: bool) -> Value {
        self.delta(json!({ "role": "assistant", "content": "" }), Value::Null, with_usage)
    }

    pub fn chunk(&self, piece: Piece, with_usage: bool) -> Value {
        match (self.endpoint, piece) {
            (Endpoint::Chat, Piece::Text(text)) => self.delta(json!({ "content": text }), Value::Null, with_usage),
            (Endpoint::Chat, Piece::Calls(calls)) => {
                let numbered = |(i, mut call): (usize, Value)| {
                    call["index"] = json!(i);
                    call
                };
                let calls: Vec<Value> = calls.into_iter().enumerate().map(numbered).collect();
                self.delta(json!({ "tool_calls": calls }), Value::Null, with_usage)
            }
            (Endpoint::Chat, Piece::Done(reason)) => self.delta(json!({}), json!(reason), with_usage),
            (Endpoint::Completions, Piece::Text(text)) => self.text(&text, Value::Null, with_usage),
            (Endpoint::Completions, Piece::Calls(_)) => self.text("", Value::Null, with_usage),
            (Endpoint::Completions, Piece::Done(reason)) => self.text("", json!(reason), with_usage),
        }
    }

    /// The last chunk of a stream that was asked for its usage.
    pub fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.envelope(self.chunk_object(), json!([]));
        chunk["usage"] = counts(usage);
        chunk
    }

    fn delta(&self, delta: Value, reason: Value, with_usage: bool) -> Value {
        let choice = json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason });
        self.part(choice, with_usage)
    }

    fn text(&self, text: &str, reason: Value, with_usage: bool) -> Value {
        self.part(json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": reason }), with_usage)
    }

    fn part(&self, choice: Value, with_usage: bool) -> Value {
        let mut chunk = self.envelope(self.chunk_object(), json!([choice]));
        if with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn chunk_object(&self) -> &'static str {
        if self.endpoint == Endpoint::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    fn envelope(&self, object: &str, choices: Value) -> Value {
        let prefix = if self.endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
        json!({
            "id": format!("{prefix}-{:016x}", self.id),
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("pipe-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }
}

fn counts(usage: Usage) -> Value {
    let (prompt, answer) = (usage.prompt, usage.answer);
    json!({ "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer })
}
