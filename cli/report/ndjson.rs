//! `--json` of a run: one event per line on standard output, flushed at once.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use pipe_engine::event::{Event, Sink, Stamped};

/// Writes stamped events; lines never interleave.
pub struct Ndjson {
    out: Mutex<std::io::Stdout>,
    stamp: fn(Event) -> Stamped,
}

impl Ndjson {
    /// `stamp` gives an event the time it has now.
    pub fn new(stamp: fn(Event) -> Stamped) -> Ndjson {
        Ndjson { out: Mutex::new(std::io::stdout()), stamp }
    }
}

impl Sink for Ndjson {
    fn emit(&self, event: Event) {
        let stamped = (self.stamp)(event);
        let Ok(mut line) = serde_json::to_vec(&stamped) else { return };
        line.push(b'\n');
        let out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = out.lock();
        // A reader that went away is no reason to stop the run: its record is complete on disk.
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}
