//! Trackers: what training measures, in the forms in which other programs draw it.
//!
//! The run's record holds every number already; a tracker is a copy, thinned to `logging_steps`. It is fed with events, after
//! they are recorded. It must not change what a run does: a tracker that fails is dropped by whoever feeds it, with a warning.

mod mlflow;
mod section;
mod tensorboard;
mod wandb;

use std::path::PathBuf;

use pipe_engine::event::{Event, Stamped};
use serde_json::Value;
use thiserror::Error;

pub use self::mlflow::{Address, Credentials, Mlflow, address};
pub use self::section::{ReportTo, TrackerName, WandbMode, trackers};
pub use self::tensorboard::TensorBoard;
pub use self::wandb::{Wandb, WandbRun};

/// Numbers of one moment of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub kind: Kind,
    /// Optimizer steps done.
    pub step: u64,
    /// Milliseconds since 1970, UTC.
    pub time: i64,
    /// By name, as events spell them, but for `learning_rate`.
    pub values: Vec<(String, f64)>,
}

/// What measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An optimizer step.
    Train,
    /// An evaluation during training, on this split.
    Eval(String),
    /// Evaluation after training: names are `model/split/measure`.
    Final,
}

/// What a tracker is told of a run before its first point.
#[derive(Clone, Debug, Default)]
pub struct RunFacts {
    pub run: String,
    pub recipe: String,
    /// Milliseconds since 1970, UTC.
    pub started: i64,
    /// Resolved settings, by dotted key.
    pub params: Vec<(String, String)>,
}

/// Why a tracker could not take a point.
#[derive(Debug, Error)]
pub enum TrackError {
    #[error("cannot write {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{server} {what}")]
    Server { server: String, what: String },
}

/// Takes the numbers of one run.
pub trait Tracker: Send {
    /// The name in `report_to`.
    fn name(&self) -> &'static str;

    /// Takes points in order. What is needed for the first is made with it, so that a run without numbers leaves nothing.
    ///
    /// # Errors
    /// The file cannot be written, or the server refuses.
    fn log(&mut self, points: &[Point]) -> Result<(), TrackError>;

    /// The run has ended.
    ///
    /// # Errors
    /// As [`Tracker::log`].
    fn end(&mut self, ok: bool, time: i64) -> Result<(), TrackError>;
}

/// Numbers of an event that say where it stands, not how training goes.
const PLACES: [&str; 3] = ["step", "total_steps", "eta_seconds"];

/// The numbers of an event; `None` for events without any.
pub fn point(stamped: &Stamped, last_step: u64) -> Option<Point> {
    let time = millis(&stamped.time);
    match &stamped.event {
        Event::Metric { step, .. } => {
            Some(Point { kind: Kind::Train, step: *step, time, values: numbers(&stamped.event) })
        }
        Event::Eval { step, split, .. } => {
            Some(Point { kind: Kind::Eval(split.clone()), step: *step, time, values: numbers(&stamped.event) })
        }
        Event::NodeFinished(done) if done.node.stage() == "eval" => {
            let mut values = Vec::new();
            nested("", done.stats.get("models")?, &mut values);
            Some(Point { kind: Kind::Final, step: last_step, time, values })
        }
        _ => None,
    }
}

/// Milliseconds since 1970 of an event's time.
pub fn millis(time: &str) -> i64 {
    time.parse::<jiff::Timestamp>().map_or(0, |time| time.as_millisecond())
}

/// A curve by transformers' names: `train/loss`, `eval/loss`; what stands before the slash groups curves.
fn curve(kind: &Kind, name: &str) -> String {
    match kind {
        Kind::Train => format!("train/{name}"),
        Kind::Eval(split) if split == "val" => format!("eval/{name}"),
        Kind::Eval(split) => format!("eval_{split}/{name}"),
        Kind::Final => format!("final/{name}"),
    }
}

fn numbers(event: &Event) -> Vec<(String, f64)> {
    let Ok(Value::Object(fields)) = serde_json::to_value(event) else { return Vec::new() };
    let mut values = Vec::new();
    for (name, value) in fields.iter().filter(|(name, _)| !PLACES.contains(&name.as_str())) {
        match value {
            Value::Object(_) if name == "losses" => nested("loss", value, &mut values),
            _ => {
                let name = if name == "lr" { "learning_rate" } else { name };
                // A null is a number that is not finite.
                let number = if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
                values.extend(number.map(|number| (name.to_string(), number)));
            }
        }
    }
    values
}

fn nested(path: &str, value: &Value, out: &mut Vec<(String, f64)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}/{key}") };
            nested(&path, value, out);
        }),
        value => out.extend(value.as_f64().map(|number| (path.to_string(), number))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
