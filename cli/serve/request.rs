//! What a client asks: the JSON of OpenAI's two endpoints, checked field by field.
//!
//! A field that would change the answer and is not honoured is refused by name; one that cannot change it is ignored.

use pipe_stages::generator::Sampling;
use pipe_stages::prompter::{Message, SamplingDefaults};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::messages;

/// A checked request.
#[derive(Debug)]
pub struct Wanted {
    pub model: String,
    pub input: Input,
    /// `None`: as long as the server lets it become.
    pub max_tokens: Option<usize>,
    /// Its `stop` and `max_new_tokens` are filled in by the server.
    pub sampling: Sampling,
    /// Texts that end the answer; not part of it.
    pub stop: Vec<String>,
    pub stream: bool,
    pub include_usage: bool,
}

/// What is to be answered.
#[derive(Debug)]
pub enum Input {
    Chat { messages: Vec<Message>, tools: Option<Value>, kwargs: Map<String, Value> },
    Text(String),
    Tokens(Vec<i64>),
}

impl Input {
    /// The field it came in.
    pub fn field(&self) -> &'static str {
        if matches!(self, Input::Chat { .. }) { "messages" } else { "prompt" }
    }
}

/// Which endpoint was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
}

/// Fields that change no answer, or not here.
const HARMLESS: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "prediction",
];

/// Fields with values that are what happens anyway.
const FIXED: &[(&str, &[&str])] = &[
    ("n", &["1"]),
    ("best_of", &["1"]),
    ("logprobs", &["false"]),
    ("top_logprobs", &["0"]),
    ("echo", &["false"]),
    ("suffix", &["\"\""]),
    ("logit_bias", &["{}"]),
    ("modalities", &["[\"text\"]"]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("min_p", &["0", "0.0"]),
    ("ignore_eos", &["false"]),
    ("add_generation_prompt", &["true"]),
];

impl Wanted {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 with the field's name.
    pub fn parse(endpoint: Endpoint, body: &[u8], defaults: SamplingDefaults, random: u64) -> Result<Wanted, ApiError> {
        let value: Value = serde_json::from_slice(body).map_err(|e| {
            ApiError::new(axum::http::StatusCode::BAD_REQUEST, format!("the body is not valid JSON: {e}"))
        })?;
        let Value::Object(fields) = value else {
            return Err(ApiError::new(axum::http::StatusCode::BAD_REQUEST, "the body is not a JSON object"));
        };
        let mut fields = Fields(fields);
        let input = match endpoint {
            Endpoint::Chat => chat(&mut fields)?,
            Endpoint::Completions => completion(&mut fields)?,
        };
        let wanted = Wanted {
            model: fields.text("model")?.ok_or_else(|| missing("model"))?,
            input,
            max_tokens: max_tokens(&mut fields)?,
            sampling: sampling(&mut fields, defaults, random)?,
            stop: stop(&mut fields)?,
            stream: fields.flag("stream")?,
            include_usage: include_usage(&mut fields)?,
        };
        fields.finish()?;
        Ok(wanted)
    }
}

fn chat(fields: &mut Fields) -> Result<Input, ApiError> {
    let messages = messages::messages(fields.take("messages").ok_or_else(|| missing("messages"))?)?;
    let tools = messages::tools(fields.take("tools"), fields.take("tool_choice"))?;
    let kwargs = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(kwargs)) => kwargs,
        Some(_) => return Err(wrong("chat_template_kwargs", "an object")),
    };
    const OWN: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];
    if let Some(name) = OWN.iter().find(|name| kwargs.contains_key(**name)) {
        return Err(ApiError::field("chat_template_kwargs", format!("`{name}` is the request's own to say")));
    }
    Ok(Input::Chat { messages, tools, kwargs })
}

fn completion(fields: &mut Fields) -> Result<Input, ApiError> {
    let expected = || wrong("prompt", "a text, a list of one text, or a list of tokens");
    match fields.take("prompt").ok_or_else(|| missing("prompt"))? {
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(items) => match items.as_slice() {
            [Value::String(text)] => Ok(Input::Text(text.clone())),
            [Value::String(_), ..] => Err(ApiError::field("prompt", "one prompt at a time: send a request for each")),
            tokens if !tokens.is_empty() => {
                let ids: Option<Vec<i64>> = tokens.iter().map(Value::as_i64).collect();
                ids.map(Input::Tokens).ok_or_else(expected)
            }
            _ => Err(expected()),
        },
        _ => Err(expected()),
    }
}

fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let old = fields.count("max_tokens")?;
    let new = fields.count("max_completion_tokens")?;
    match new.or(old) {
        Some(0) => Err(wrong("max_tokens", "at least 1")),
        most => Ok(most),
    }
}

fn sampling(fields: &mut Fields, own: SamplingDefaults, random: u64) -> Result<Sampling, ApiError> {
    Ok(Sampling {
        max_new_tokens: 0,
        temperature: fields.number("temperature", 0.0, 2.0)?.or(own.temperature).unwrap_or(1.0),
        top_p: fields.number("top_p", 0.0, 1.0)?.or(own.top_p).unwrap_or(1.0),
        top_k: match fields.take("top_k") {
            // vLLM's word for all.
            Some(value) if value.as_i64() == Some(-1) => 0,
            Some(value) => value.as_u64().ok_or_else(|| wrong("top_k", "a whole number"))? as usize,
            None => own.top_k.unwrap_or(0),
        },
        repetition_penalty: fields.number("repetition_penalty", 1e-3, 1e3)?.or(own.repetition_penalty).unwrap_or(1.0),
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        seed: match fields.take("seed") {
            None => random,
            Some(value) => {
                let seed = value.as_u64().or(value.as_i64().map(|seed| seed as u64));
                seed.ok_or_else(|| wrong("seed", "a whole number"))?
            }
        },
        stop: Vec::new(),
    })
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let expected = || wrong("stop", "a text, or a list of up to 16 texts, none of them empty");
    let texts = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_string));
            texts.collect::<Option<Vec<_>>>().ok_or_else(expected)?
        }
        Some(_) => return Err(expected()),
    };
    if texts.len() > 16 || texts.iter().any(String::is_empty) {
        return Err(expected());
    }
    Ok(texts)
}

fn include_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    let Value::Object(options) = options else { return Err(wrong("stream_options", "an object")) };
    match options.get("include_usage") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(wrong("stream_options.include_usage", "true or false")),
    }
}

/// The fields that have not been read yet; null is as good as absent.
struct Fields(Map<String, Value>);

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(name, "a text")),
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(wrong(name, "true or false")),
        }
    }

    fn count(&mut self, name: &str) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_u64().map(|count| Some(count as usize)).ok_or_else(|| wrong(name, "a whole number"))
    }

    fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| wrong(name, &format!("a number from {least} to {most}")))
    }

    /// Refuses what is left over.
    fn finish(mut self) -> Result<(), ApiError> {
        for name in HARMLESS {
            self.take(name);
        }
        for (name, values) in FIXED {
            if let Some(value) = self.take(name)
                && !values.contains(&value.to_string().as_str())
            {
                return Err(ApiError::field(*name, format!("`{name}`: {value} is not supported here; leave it out")));
            }
        }
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(ApiError::field(&name, format!("`{name}` is not a field that this server knows"))
                .code("unknown_parameter")),
            None => Ok(()),
        }
    }
}

fn missing(name: &str) -> ApiError {
    ApiError::field(name, format!("`{name}` is missing")).code("missing_required_parameter")
}

/// A field that is not what it should be.
pub fn wrong(name: &str, expected: &str) -> ApiError {
    ApiError::field(name, format!("`{name}` must be {expected}")).code("invalid_value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Wanted, String> {
        let wanted = Wanted::parse(Endpoint::Chat, body.as_bytes(), SamplingDefaults::default(), 7);
        wanted.map_err(|error| error.body()["error"]["param"].as_str().unwrap_or_default().to_string())
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        let with =
            |field: &str| parse(&format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],{field}}}"#));
        for (field, name) in [
            (r#""n":2"#, "n"),
            (r#""logprobs":true"#, "logprobs"),
            (r#""response_format":{"type":"json_object"}"#, "response_format"),
            (r#""temperature":3"#, "temperature"),
            (r#""max_tokens":0"#, "max_tokens"),
            (r#""max_tokens":"9""#, "max_tokens"),
            (r#""stop":["a",""]"#, "stop"),
            (r#""tool_choice":"required""#, "tool_choice"),
            (r#""colour":1"#, "colour"),
            (r#""stream_options":{"include_usage":1}"#, "stream_options.include_usage"),
        ] {
            assert_eq!(with(field).unwrap_err(), name, "{field}");
        }
        for field in [r#""n":1"#, r#""user":"u""#, r#""logprobs":false"#, r#""colour":null"#, r#""logit_bias":{}"#] {
            assert!(with(field).is_ok(), "{field}");
        }
    }

    #[test]
    fn the_newer_limit_wins_and_a_negative_seed_is_one() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":5,"max_completion_tokens":3,"seed":-1}"#;
        let wanted = parse(body).unwrap();
        assert_eq!((wanted.max_tokens, wanted.sampling.seed), (Some(3), u64::MAX));
    }
}
