//! An OpenAI-style endpoint: one request per row, answers kept, failures retried.
//!
//! Every answer is stored under the digest of its request before anything else happens, in a folder that outlives runs and
//! keys. So a killed run goes on where it was, an answer is never paid for twice, and output depends on stored answers alone.
//! The API key is read from the environment when a request is sent, and goes nowhere else. This file alone waits and looks at
//! the clock; neither reaches an output.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pipe_engine::digest::Digest;
use pipe_engine::task::{Cancel, TaskError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::section::Endpoint;

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(50);
/// An answer's text that an error may quote.
const QUOTED: usize = 300;
const LARGEST_ANSWER: u64 = 64 << 20;

/// One request: what is asked, and the seed of its copy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Request {
    pub system: String,
    pub user: String,
    pub seed: u64,
}

/// What the model wrote, and how many tokens that took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub text: String,
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// The endpoint in use.
pub struct Client<'a> {
    endpoint: &'a Endpoint,
    agent: ureq::Agent,
    key: Option<String>,
    answers: PathBuf,
    cancel: &'a Cancel,
    gate: Mutex<Instant>,
    bill: Mutex<Bill>,
}

/// What was sent and what it cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bill {
    pub requests: u64,
    pub cached: u64,
    pub retries: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

/// Why one try gave no answer.
enum Trouble {
    /// Another try may help; the wait that the endpoint asks for.
    Passing(String, Option<Duration>),
    Lasting(String),
}

impl<'a> Client<'a> {
    /// Reads the API key from the environment; `answers` is where answers are kept.
    pub fn new(endpoint: &'a Endpoint, answers: &Path, cancel: &'a Cancel) -> Result<Client<'a>, TaskError> {
        let key = match &endpoint.api_key_env {
            None => None,
            Some(name) => match std::env::var(name) {
                Ok(key) if !key.trim().is_empty() => Some(key.trim().to_string()),
                _ => {
                    return Err(TaskError::Input(format!(
                        "{}api_key_env: the environment variable {name} is not set; set it to the API key",
                        endpoint.place
                    )));
                }
            },
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(endpoint.timeout)))
            .http_status_as_error(false)
            .user_agent(concat!("pipe/", env!("CARGO_PKG_VERSION")));
        fs::create_dir_all(answers).map_err(TaskError::io(format!("cannot make {}", answers.display())))?;
        Ok(Client {
            endpoint,
            agent: config.build().into(),
            key,
            answers: answers.to_path_buf(),
            cancel,
            gate: Mutex::new(Instant::now()),
            bill: Mutex::new(Bill::default()),
        })
    }

    /// The answers to all requests, in order. The first failure stops the rest; what was answered is kept.
    pub fn ask(&self, requests: &[Request], tell: impl Fn(usize) + Sync) -> Result<Vec<Answer>, TaskError> {
        let next = AtomicUsize::new(0);
        let done = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let found: Mutex<HashMap<usize, Result<Answer, TaskError>>> = Mutex::new(HashMap::new());
        let work = || {
            while !stop.load(Ordering::SeqCst) {
                let i = next.fetch_add(1, Ordering::SeqCst);
                let Some(request) = requests.get(i) else { break };
                let answer = self.answer(request);
                if answer.is_err() {
                    stop.store(true, Ordering::SeqCst);
                }
                found.lock().unwrap_or_else(PoisonError::into_inner).insert(i, answer);
                tell(done.fetch_add(1, Ordering::SeqCst) + 1);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.endpoint.parallel.min(requests.len()).max(1) {
                scope.spawn(work);
            }
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut failed: Vec<usize> = found.iter().filter(|(_, answer)| answer.is_err()).map(|(&i, _)| i).collect();
        failed.sort_unstable();
        if let Some(Err(error)) = failed.first().and_then(|first| found.remove(first)) {
            return Err(error);
        }
        let missing = || TaskError::Failed("a request was left unanswered".to_string());
        (0..requests.len()).map(|i| found.remove(&i).ok_or_else(missing)?).collect()
    }

    /// What has been sent so far.
    pub fn bill(&self) -> Bill {
        let mut bill = self.locked_bill().clone();
        bill.cost = self.cost(&bill);
        bill
    }

    fn answer(&self, request: &Request) -> Result<Answer, TaskError> {
        let body = self.body(request);
        let identity = json!({"url": self.endpoint.url, "body": body});
        let name = Digest::of_canonical(&identity).to_string();
        let path = self.answers.join(&name[..2]).join(format!("{name}.json"));
        if let Some(answer) = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            self.locked_bill().cached += 1;
            return Ok(answer);
        }
        self.check_budget()?;
        let answer = self.send(&body)?;
        keep(&path, &answer)?;
        Ok(answer)
    }

    fn body(&self, request: &Request) -> Value {
        let mut messages = Vec::new();
        if !request.system.is_empty() {
            messages.push(json!({"role": "system", "content": request.system}));
        }
        messages.push(json!({"role": "user", "content": request.user}));
        json!({
            "model": self.endpoint.model, "messages": messages, "temperature": self.endpoint.temperature,
            // Half of the range is what every server's integers hold.
            "max_tokens": self.endpoint.max_tokens, "seed": request.seed >> 33,
        })
    }

    fn send(&self, body: &Value) -> Result<Answer, TaskError> {
        let mut wait = FIRST_WAIT;
        for attempt in 0.. {
            self.await_turn()?;
            let trouble = match self.once(body) {
                Ok(answer) => {
                    let mut bill = self.locked_bill();
                    bill.requests += 1;
                    bill.input_tokens += answer.input_tokens;
                    bill.output_tokens += answer.output_tokens;
                    return Ok(answer);
                }
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Passing(_, asked) if attempt < self.endpoint.retries => {
                    self.locked_bill().retries += 1;
                    self.sleep(asked.unwrap_or(wait).min(LONGEST_WAIT))?;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
                Trouble::Passing(why, _) => {
                    let tries = attempt + 1;
                    return Err(self.failure(&format!(
                        "{why}, {tries} times in a row; what was answered is kept, run again to go on"
                    )));
                }
                Trouble::Lasting(why) => return Err(self.failure(&why)),
            }
        }
        Err(self.failure("no try was made"))
    }

    fn once(&self, body: &Value) -> Result<Answer, Trouble> {
        let url = format!("{}/chat/completions", self.endpoint.url);
        let mut request = self.agent.post(&url).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let passing = |e: ureq::Error| Trouble::Passing(e.to_string(), None);
        let mut response = request.send(body.to_string()).map_err(passing)?;
        let status = response.status().as_u16();
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let text = response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_string().map_err(passing)?;
        match status {
            200..=299 => read(&text)
                .ok_or_else(|| Trouble::Lasting(format!("it answered what is no chat completion: {}", quoted(&text)))),
            408 | 409 | 425 | 429 | 500.. => {
                Trouble::Passing(format!("status {status}: {}", quoted(&text)), after.map(Duration::from_secs))
                    .into_err()
            }
            401 | 403 => {
                let unset = format!("{}api_key_env, which is unset", self.endpoint.place);
                let whose = self.endpoint.api_key_env.as_deref().unwrap_or(&unset);
                Trouble::Lasting(format!(
                    "status {status}, the API key is refused (it comes from {whose}): {}",
                    quoted(&text)
                ))
                .into_err()
            }
            _ => Trouble::Lasting(format!("status {status}: {}", quoted(&text))).into_err(),
        }
    }

    /// Waits until another request may be sent.
    fn await_turn(&self) -> Result<(), TaskError> {
        let Some(rate) = self.endpoint.requests_per_minute else { return self.cancel.check() };
        let own = {
            let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            let own = (*gate).max(Instant::now());
            *gate = own + Duration::from_secs_f64(60.0 / rate as f64);
            own
        };
        self.sleep(own.saturating_duration_since(Instant::now()))
    }

    fn sleep(&self, time: Duration) -> Result<(), TaskError> {
        let until = Instant::now() + time;
        loop {
            self.cancel.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    fn check_budget(&self) -> Result<(), TaskError> {
        let spent = self.cost(&self.locked_bill()).unwrap_or(0.0);
        match self.endpoint.max_cost {
            Some(most) if spent >= most => Err(self.failure(&format!(
                "{spent:.4} of {}max_cost ({most}) is spent; what was answered is kept, raise it and run again to go on",
                self.endpoint.place
            ))),
            _ => Ok(()),
        }
    }

    fn cost(&self, bill: &Bill) -> Option<f64> {
        let (input, output) = (self.endpoint.input_price, self.endpoint.output_price);
        (input.is_some() || output.is_some()).then(|| {
            (bill.input_tokens as f64 * input.unwrap_or(0.0) + bill.output_tokens as f64 * output.unwrap_or(0.0)) / 1e6
        })
    }

    fn failure(&self, why: &str) -> TaskError {
        // A server may quote what it was sent.
        let why = match &self.key {
            Some(key) => why.replace(key.as_str(), "[KEY]"),
            None => why.to_string(),
        };
        let place = self.endpoint.place.trim_end_matches(['.', ' ']);
        TaskError::Failed(format!("{place} {}: {why}", self.endpoint.url))
    }

    fn locked_bill(&self) -> std::sync::MutexGuard<'_, Bill> {
        self.bill.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trouble {
    fn into_err<T>(self) -> Result<T, Trouble> {
        Err(self)
    }
}

/// Text and usage of a chat completion.
fn read(text: &str) -> Option<Answer> {
    let page: Value = serde_json::from_str(text).ok()?;
    let content = page.pointer("/choices/0/message/content")?.as_str()?.to_string();
    let usage = |name: &str| page.pointer(&format!("/usage/{name}")).and_then(Value::as_u64).unwrap_or(0);
    Some(Answer { text: content, input_tokens: usage("prompt_tokens"), output_tokens: usage("completion_tokens") })
}

/// Writes an answer whole or not at all.
fn keep(path: &Path, answer: &Answer) -> Result<(), TaskError> {
    let failed = || TaskError::io(format!("cannot write {}", path.display()));
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(failed())?;
    let draft = tempfile::NamedTempFile::new_in(folder).map_err(failed())?;
    fs::write(draft.path(), serde_json::to_vec(answer).unwrap_or_default()).map_err(failed())?;
    draft.persist(path).map_err(|e| failed()(e.error))?;
    Ok(())
}

fn quoted(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(QUOTED) {
        Some((at, _)) => text[..at].to_string() + "…",
        None if text.is_empty() => "no text".to_string(),
        None => text,
    }
}
