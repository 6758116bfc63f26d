//! Plain lines for pipes, logs and CI: what starts, what ends, and a sign of life now and then.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pipe_engine::event::{Event, NodeOutcome, Sink};
use pipe_engine::plan::NodeName;

use super::lines;

/// Writes one line per event worth a line to standard error.
pub struct Plain {
    last: Mutex<HashMap<NodeName, Instant>>,
    every: Duration,
    logging_steps: u64,
}

impl Plain {
    /// Metric lines come every `logging_steps` steps, other progress at most every ten seconds.
    pub fn new(logging_steps: u64) -> Plain {
        Plain { last: Mutex::new(HashMap::new()), every: Duration::from_secs(10), logging_steps: logging_steps.max(1) }
    }

    fn is_worth_a_line(&self, event: &Event) -> bool {
        match event {
            Event::NodeFinished(done) => done.outcome == NodeOutcome::Executed,
            Event::NodeStarted { node, .. } => self.is_due(node, Duration::MAX),
            Event::NodeProgress { node, .. } => self.is_due(node, self.every),
            Event::Metric { step, total_steps, .. } => {
                *step == 1 || step == total_steps || step.is_multiple_of(self.logging_steps)
            }
            _ => true,
        }
    }

    /// Whether `every` has passed since this node's last line; the first one only starts the clock unless `every` is
    /// endless.
    fn is_due(&self, node: &NodeName, every: Duration) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.get(node).map_or(every == Duration::MAX, |then| then.elapsed() >= every);
        if due || !last.contains_key(node) {
            last.insert(node.clone(), Instant::now());
        }
        due
    }
}

impl Sink for Plain {
    fn emit(&self, event: Event) {
        if self.is_worth_a_line(&event) {
            super::error_lines(&lines::of(&event));
        }
    }
}

/// Failures and warnings only; for `--quiet`.
pub struct OnlyTrouble;

impl Sink for OnlyTrouble {
    fn emit(&self, event: Event) {
        match &event {
            Event::NodeFailed { .. } | Event::Warning { .. } => super::error_lines(&lines::of(&event)),
            Event::NodeFinished(done) if done.outcome == NodeOutcome::Executed => {
                super::error_lines(&lines::with_warnings(done)[1..]);
            }
            _ => {}
        }
    }
}
