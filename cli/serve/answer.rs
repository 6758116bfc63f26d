//! One answer in the making: tokens become text, stop texts and calls of tools are found, limits of time are kept.
//!
//! Dropping an [`Answer`] gives its place in the running batch back; that is all that a client who goes away costs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::http::StatusCode;
use pipe_stages::generator::{AnswerEnd, Heard, Sampling, Ticket};
use pipe_stages::prompter::AnswerText;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::app::{App, Model};
use super::error::ApiError;
use super::request::{Input, Wanted};
use super::stops::Stops;
use super::tools;

/// What comes of an answer.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Text(String),
    Calls(Vec<Value>),
    /// OpenAI's `finish_reason`.
    Done(&'static str),
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub prompt: usize,
    pub answer: usize,
}

pub struct Answer {
    app: Arc<App>,
    heard: UnboundedReceiver<Heard>,
    ticket: Option<Ticket>,
    reader: AnswerText,
    stops: Stops,
    /// Names of the tools that may be called, and the text so far, of which `sent` bytes have been given.
    offered: Vec<String>,
    text: String,
    sent: usize,
    prompt: usize,
    /// The field with the prompt.
    asked: &'static str,
    began: Instant,
    finished: bool,
    /// What comes after the piece just given.
    next: Vec<Piece>,
    _place: OwnedSemaphorePermit,
}

impl Answer {
    /// Renders, tokenises and hands the request to the worker.
    pub async fn begin(
        app: Arc<App>,
        wanted: Wanted,
        place: OwnedSemaphorePermit,
        began: Instant,
    ) -> Result<Answer, ApiError> {
        let model = app.model(&wanted.model)?;
        let offered = offered(&wanted.input);
        let asked = wanted.input.field();
        let generator = app.generator()?;
        let (rendering, Wanted { input, sampling, stop, max_tokens, .. }) = (model.clone(), wanted);
        // A long conversation takes a while, in which others are served.
        let ids = tokio::task::spawn_blocking(move || tokens(&rendering, &input)).await;
        let ids =
            ids.map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the prompt was not rendered"))??;
        let room = generator.context.min(generator.cache_tokens).saturating_sub(ids.len());
        if room == 0 {
            return Err(ApiError::too_long(
                asked,
                format!(
                    "the prompt has {} tokens; the model was made for {} and the cache holds {}",
                    ids.len(),
                    generator.context,
                    generator.cache_tokens
                ),
            ));
        }
        let most = max_tokens.unwrap_or(app.limits.max_tokens).min(app.limits.max_tokens).min(room);
        let sampling = Sampling { max_new_tokens: most, stop: model.prompter.stops.clone(), ..sampling };
        let (send, heard) = unbounded_channel();
        let prompt = ids.len();
        let sink = Box::new(move |heard| drop(send.send(heard)));
        let ticket = generator.ask(model.adapter.clone(), ids, sampling, sink);
        let ticket = ticket.map_err(|error| ApiError::unavailable(error.to_string()))?;
        app.metrics.prompt_tokens.fetch_add(prompt as u64, Ordering::Relaxed);
        app.metrics.open.fetch_add(1, Ordering::Relaxed);
        Ok(Answer {
            reader: model.prompter.reader(!offered.is_empty()),
            app,
            heard,
            ticket: Some(ticket),
            stops: Stops::new(stop),
            offered,
            text: String::new(),
            sent: 0,
            prompt,
            asked,
            began,
            finished: false,
            next: Vec::new(),
            _place: place,
        })
    }

    pub fn usage(&self) -> Usage {
        Usage { prompt: self.prompt, answer: self.reader.tokens() }
    }

    /// The next piece; after [`Piece::Done`] there is none.
    pub async fn next(&mut self) -> Result<Piece, ApiError> {
        loop {
            if !self.next.is_empty() {
                return Ok(self.next.remove(0));
            }
            let left = self.app.limits.time.saturating_sub(self.began.elapsed());
            let heard = tokio::time::timeout(left, self.heard.recv()).await.map_err(|_| {
                let limit = self.app.limits.time.as_secs();
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, format!("the answer took longer than {limit} s"))
            })?;
            match heard {
                Some(Heard::Token(id)) => self.take(id),
                Some(Heard::Ended(AnswerEnd::Refused { message })) => return Err(ApiError::field(self.asked, message)),
                Some(Heard::Ended(end)) => {
                    let rest = self.reader.finish();
                    let (mut text, stopped) = self.stops.push(&rest);
                    text.push_str(&self.stops.finish());
                    self.say(&text);
                    self.end(if end == AnswerEnd::Length && !stopped { "length" } else { "stop" });
                }
                Some(Heard::Lost(why)) => {
                    return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the model is gone: {why}")));
                }
                None => return Err(ApiError::unavailable("the server is stopping")),
            }
        }
    }

    fn take(&mut self, id: u32) {
        if self.reader.tokens() == 0 {
            self.app.metrics.first_token(self.began.elapsed());
        }
        self.app.metrics.answer_tokens.fetch_add(1, Ordering::Relaxed);
        let more = self.reader.push(id);
        let (text, stopped) = self.stops.push(&more);
        self.say(&text);
        if stopped {
            self.ticket = None;
            self.end("stop");
        }
    }

    /// Passes text on, but for what may turn out to be a call of a tool.
    fn say(&mut self, more: &str) {
        if self.offered.is_empty() {
            if !more.is_empty() {
                self.next.push(Piece::Text(more.to_string()));
            }
            return;
        }
        self.text.push_str(more);
        let settled = tools::settled(&self.text);
        if settled > self.sent {
            self.next.push(Piece::Text(self.text[self.sent..settled].to_string()));
            self.sent = settled;
        }
    }

    fn end(&mut self, reason: &'static str) {
        let mut reason = reason;
        if !self.offered.is_empty() {
            let parsed = tools::parse(&self.text, &self.offered);
            if let Some(rest) = parsed.text.get(self.sent..).filter(|rest| !rest.is_empty()) {
                self.next.push(Piece::Text(rest.to_string()));
            }
            if !parsed.calls.is_empty() {
                self.next.push(Piece::Calls(with_ids(parsed.calls)));
                reason = "tool_calls";
            }
        }
        self.next.push(Piece::Done(reason));
        self.finished = true;
        self.ticket = None;
        self.app.metrics.finished(self.began.elapsed());
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.app.metrics.open.fetch_sub(1, Ordering::Relaxed);
        if !self.finished {
            self.app.metrics.gone.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn tokens(model: &Model, input: &Input) -> Result<Vec<i64>, ApiError> {
    let refused = |message: String| ApiError::field("messages", message);
    match input {
        Input::Tokens(ids) => Ok(ids.clone()),
        Input::Text(text) => model.prompter.text(text).map_err(|message| ApiError::field("prompt", message)),
        Input::Chat { messages, tools: None, kwargs } => {
            model.prompter.conversation(messages, None, kwargs).map_err(refused)
        }
        Input::Chat { messages, tools, kwargs } => {
            let with = model.prompter.conversation(messages, tools.as_ref(), kwargs).map_err(refused)?;
            let without = model.prompter.conversation(messages, None, kwargs);
            match without.is_ok_and(|without| without == with) {
                true => Err(ApiError::field("tools", "`tools`: this model's chat template has no place for them")),
                false => Ok(with),
            }
        }
    }
}

fn offered(input: &Input) -> Vec<String> {
    let Input::Chat { tools: Some(Value::Array(tools)), .. } = input else { return Vec::new() };
    let name = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str).map(str::to_string);
    tools.iter().filter_map(name).collect()
}

fn with_ids(calls: Vec<Value>) -> Vec<Value> {
    let called = |call: Value| json!({ "id": format!("call_{:016x}", super::app::random()), "type": "function", "function": call });
    calls.into_iter().map(called).collect()
}
