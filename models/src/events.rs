//! The worker's line to its parent: events out, cancellation in.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pipe_job::{Command, Event};

use crate::{ModelError, Result};

/// How long a worker may go on after its parent is gone.
const ORPHAN_GRACE: Duration = Duration::from_secs(8);

/// Where events go and where the wish to stop comes from. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    out: Arc<Mutex<Box<dyn Write + Send>>>,
    cancelled: Arc<AtomicBool>,
}

impl Events {
    /// Events to this writer, one JSON object per line, flushed each time.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self { out: Arc::new(Mutex::new(Box::new(out))), cancelled: Arc::default() }
    }

    /// Sends one event. A reader that is gone is noticed on standard input, not here.
    pub fn send(&self, event: &Event) {
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        if let Ok(mut out) = self.out.lock() {
            let _ = out.write_all(&line).and_then(|()| out.flush());
        }
    }

    /// Sends a warning.
    pub fn warn(&self, message: impl Into<String>) {
        self.send(&Event::Warning { message: message.into() });
    }

    /// Sends a number worth keeping.
    pub fn fact(&self, name: &str, value: f64) {
        self.send(&Event::Fact { name: name.to_string(), value });
    }

    /// Sends how far a phase has come.
    pub fn progress(&self, phase: &str, unit: &str, done: u64, total: u64) {
        self.send(&Event::Progress { done, total, unit: unit.to_string(), phase: phase.to_string() });
    }

    /// Whether someone asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// `Err(Cancelled)` once someone asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(ModelError::Cancelled) } else { Ok(()) }
    }

    /// Asks to stop.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Reads commands from `input` on a thread of its own. Its end means the parent is gone: stop at the next safe point,
    /// and in any case soon. Commands other than `cancel` arrive at the receiver.
    pub fn listen(&self, input: impl BufRead + Send + 'static) -> Receiver<Command> {
        let (sender, receiver) = channel();
        let events = self.clone();
        std::thread::spawn(move || events.follow(input, sender));
        receiver
    }

    fn follow(&self, input: impl BufRead, others: Sender<Command>) {
        for line in input.lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(Command::Cancel) => self.cancel(),
                Ok(other) => drop(others.send(other)),
                Err(_) => {}
            }
        }
        self.cancel();
        // Whoever waits for a command learns that none will come.
        drop(others);
        std::thread::sleep(ORPHAN_GRACE);
        std::process::exit(1);
    }
}
