//! What happens during a run, as data: the display, `--json` and the run's record are all made from these.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::plan::NodeName;

/// One event with its time; serialises flat, as the contract's NDJSON lines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stamped {
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    RunStarted {
        run: String,
        recipe: String,
        project: PathBuf,
        nodes: Vec<NodeName>,
    },
    NodeStarted {
        node: NodeName,
        reason: String,
    },
    NodeProgress {
        node: NodeName,
        done: u64,
        total: u64,
        unit: String,
    },
    NodeFinished(Box<NodeFinished>),
    NodeFailed {
        node: NodeName,
        error: String,
        hint: Option<String>,
    },
    /// A node that did not run because something above it failed or the run was interrupted.
    NodeSkipped {
        node: NodeName,
        reason: String,
    },
    Warning {
        node: NodeName,
        message: String,
    },
    /// One optimizer step.
    Metric {
        node: NodeName,
        step: u64,
        total_steps: u64,
        epoch: f64,
        #[serde(deserialize_with = "number")]
        loss: f64,
        lr: f64,
        #[serde(deserialize_with = "number")]
        grad_norm: f64,
        tokens: u64,
        trained_tokens: u64,
        tokens_per_second: f64,
        #[serde(default)]
        trained_tokens_per_second: f64,
        #[serde(default)]
        perplexity: f64,
        /// Loss by dataset, where there are several.
        #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
        losses: IndexMap<String, f64>,
        /// Arithmetic per second over what a large product of matrices reaches on this machine.
        #[serde(default)]
        mfu: f64,
        rss_bytes: u64,
        #[serde(default)]
        peak_rss_bytes: u64,
        #[serde(default)]
        eta_seconds: f64,
    },
    /// One evaluation during training.
    Eval {
        node: NodeName,
        step: u64,
        split: String,
        #[serde(deserialize_with = "number")]
        loss: f64,
        #[serde(deserialize_with = "number")]
        perplexity: f64,
        trained_tokens: u64,
    },
    /// An answer to a fixed prompt during training.
    Sample {
        node: NodeName,
        step: u64,
        prompt: String,
        answer: String,
        /// Share of different pairs of tokens.
        distinct_2: f64,
        /// Share of runs of four tokens that were there before.
        repeated: f64,
    },
    /// A number worth keeping, such as trainable parameters.
    Fact {
        node: NodeName,
        name: String,
        #[serde(deserialize_with = "number")]
        value: f64,
    },
    RunFinished(Box<RunFinished>),
}

/// How a node came by its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeOutcome {
    Executed,
    Cached,
}

/// A node that has its output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeFinished {
    pub node: NodeName,
    pub outcome: NodeOutcome,
    /// Cached elsewhere, and brought from the shared store.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_remote: bool,
    pub key: Digest,
    pub output: Digest,
    pub seconds: f64,
    pub peak_rss_bytes: u64,
    #[serde(default)]
    pub bytes_read: u64,
    #[serde(default)]
    pub bytes_written: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_computed: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_reused: Option<u64>,
    /// The stage's own counts and measures, such as rows dropped per rule.
    pub stats: IndexMap<String, Value>,
    pub warnings: Vec<String>,
}

/// The last event of every run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFinished {
    pub ok: bool,
    pub run: String,
    pub executed: Vec<NodeName>,
    pub cached: Vec<NodeName>,
    pub skipped: Vec<NodeName>,
    pub failed: Vec<NodeName>,
    pub seconds: f64,
    /// Store folder of every node that has an output, cached ones too.
    pub outputs: IndexMap<NodeName, PathBuf>,
}

/// JSON has no word for what is not a finite number, and writes null.
fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Receives events; called from several threads.
pub trait Sink: Send + Sync {
    fn emit(&self, event: Event);
}

/// Drops everything; for tests and for callers that only want the result.
pub struct Silent;

impl Sink for Silent {
    fn emit(&self, _event: Event) {}
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_from_their_lines() {
        let node = NodeName::new("train");
        let digest = Digest::of(b"x");
        let finished = NodeFinished {
            node: node.clone(),
            outcome: NodeOutcome::Executed,
            from_remote: false,
            key: digest,
            output: digest,
            seconds: 1.5,
            peak_rss_bytes: 1,
            bytes_read: 2,
            bytes_written: 3,
            rows: Some(4),
            rows_computed: None,
            rows_reused: None,
            stats: IndexMap::from([("a".to_string(), 1.into())]),
            warnings: vec!["w".into()],
        };
        let metric = |loss: f64| Event::Metric {
            node: node.clone(),
            step: 1,
            total_steps: 2,
            epoch: 0.5,
            loss,
            lr: 1e-4,
            grad_norm: 0.25,
            tokens: 3,
            trained_tokens: 2,
            tokens_per_second: 10.0,
            trained_tokens_per_second: 5.0,
            perplexity: 1.5,
            losses: IndexMap::from([("a".to_string(), 0.5)]),
            mfu: 0.25,
            rss_bytes: 7,
            peak_rss_bytes: 8,
            eta_seconds: 9.0,
        };
        let events = [
            Event::NodeStarted { node: node.clone(), reason: "it has not run yet".into() },
            Event::NodeProgress { node: node.clone(), done: 1, total: 2, unit: "rows".into() },
            Event::NodeFinished(Box::new(finished)),
            Event::NodeFailed { node: node.clone(), error: "e".into(), hint: None },
            Event::NodeSkipped { node: node.clone(), reason: "r".into() },
            Event::Warning { node: node.clone(), message: "m".into() },
            metric(0.1),
            Event::Fact { node: node.clone(), name: "n".into(), value: 2.0 },
        ];
        let again = |event: &Event| -> Event {
            let line = serde_json::to_string(&Stamped { time: "t".into(), event: event.clone() }).unwrap();
            serde_json::from_str::<Stamped>(&line).unwrap().event
        };
        assert!(events.iter().all(|event| &again(event) == event));
        assert!(matches!(again(&metric(f64::NAN)), Event::Metric { loss, .. } if loss.is_nan()));
    }
}
