//! MLflow's tracking server over HTTP. Answers are waited for a few seconds: a run must not stand still for its copy.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use super::files::tags;
use super::{Credentials, Number, RunToBe, Store};
use crate::track::TrackError;

const PATIENCE: Duration = Duration::from_secs(10);
/// The most of each that one request may hold.
const NUMBERS: usize = 1000;
const PARAMS: usize = 100;
/// Longest value of a parameter that servers take, in characters.
const LONGEST: usize = 500;
const LARGEST_ANSWER: u64 = 1 << 20;

/// A server, and the run that is written to.
pub(super) struct Server {
    url: String,
    authorization: Option<String>,
    agent: ureq::Agent,
    run: Option<String>,
}

impl Server {
    pub fn new(url: String, credentials: Credentials) -> Server {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .user_agent(concat!("pipe/", env!("CARGO_PKG_VERSION")));
        let basic = |name: &String| {
            let password = credentials.password.clone().unwrap_or_default();
            format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")))
        };
        let token = credentials.token.as_ref().map(|token| format!("Bearer {token}"));
        let authorization = token.or(credentials.username.as_ref().map(basic));
        Server { url, authorization, agent: config.build().into(), run: None }
    }

    /// What may be shown of the address: nothing before an `@`.
    fn shown(&self) -> String {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        rest.rsplit_once('@').map_or(rest, |(_, host)| host).to_string()
    }

    fn trouble(&self, what: impl Into<String>) -> TrackError {
        TrackError::Server { server: self.shown(), what: what.into() }
    }

    /// Status and answer of a request.
    fn ask(&self, path: &str, body: &Value) -> Result<(u16, Value), TrackError> {
        let url = format!("{}/api/2.0/mlflow/{path}", self.url);
        let mut request = self.agent.post(&url).header("content-type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let silent = |e: ureq::Error| self.trouble(format!("does not answer: {e}"));
        let mut response = request.send(body.to_string()).map_err(silent)?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_string().map_err(silent)?;
        Ok((status, serde_json::from_str(&text).unwrap_or_default()))
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, TrackError> {
        match self.ask(path, body)? {
            (200..=299, answer) => Ok(answer),
            (status, answer) => {
                let said = answer.get("message").and_then(Value::as_str).unwrap_or("without a word");
                Err(self.trouble(format!("refuses {path} with {status}: {said}")))
            }
        }
    }

    /// The experiment of this name, made if there is none.
    fn experiment(&self, name: &str) -> Result<String, TrackError> {
        let id = |answer: &Value, at: &str| answer.pointer(at).and_then(Value::as_str).map(str::to_string);
        // A search is the only way to ask by name with a body; the name is quoted as SQL quotes.
        let filter = format!("name = '{}'", name.replace('\'', "''"));
        let found = self.post("experiments/search", &json!({"max_results": 1, "filter": filter}))?;
        if let Some(id) = id(&found, "/experiments/0/experiment_id") {
            return Ok(id);
        }
        let made = self.post("experiments/create", &json!({ "name": name }))?;
        id(&made, "/experiment_id").ok_or_else(|| self.trouble("answers without an experiment"))
    }
}

impl Store for Server {
    fn begin(&mut self, run: &RunToBe) -> Result<(), TrackError> {
        let experiment = self.experiment(&run.experiment)?;
        let tags: Vec<Value> = tags(run).into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        let body = json!({
            "experiment_id": experiment, "run_name": run.name, "start_time": run.facts.started, "tags": tags,
        });
        let made = self.post("runs/create", &body)?;
        let id = made.pointer("/run/info/run_id").and_then(Value::as_str);
        let id = id.ok_or_else(|| self.trouble("answers without a run"))?.to_string();
        for params in run.facts.params.chunks(PARAMS) {
            let cut = |value: &String| value.chars().take(LONGEST).collect::<String>();
            let params: Vec<Value> = params.iter().map(|(k, v)| json!({"key": k, "value": cut(v)})).collect();
            self.post("runs/log-batch", &json!({"run_id": id, "params": params}))?;
        }
        self.run = Some(id);
        Ok(())
    }

    fn log(&mut self, numbers: &[Number]) -> Result<(), TrackError> {
        let Some(run) = &self.run else { return Ok(()) };
        // JSON has no word for what is not a finite number.
        let finite: Vec<&Number> = numbers.iter().filter(|number| number.value.is_finite()).collect();
        for part in finite.chunks(NUMBERS) {
            let metric = |n: &&Number| json!({"key": n.key, "value": n.value, "timestamp": n.time, "step": n.step});
            let metrics: Vec<Value> = part.iter().map(metric).collect();
            self.post("runs/log-batch", &json!({"run_id": run, "metrics": metrics}))?;
        }
        Ok(())
    }

    fn end(&mut self, ok: bool, time: i64) -> Result<(), TrackError> {
        let Some(run) = self.run.take() else { return Ok(()) };
        let status = if ok { "FINISHED" } else { "FAILED" };
        self.post("runs/update", &json!({"run_id": run, "status": status, "end_time": time})).map(|_| ())
    }
}
