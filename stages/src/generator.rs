//! A loaded model in a worker of its own that answers many requests at one time.
//!
//! Requests go in as lines and come back as tokens, each to the sink that was given with it. A worker that dies loses the
//! answers in the making and nothing else: every sink hears why. Nothing here knows texts, templates or HTTP.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pipe_engine::task::TaskError;
use pipe_job::{Ask, End, Event, Job, Task};
pub use pipe_job::{BaseWeights, CacheFill, Compute, End as AnswerEnd, ModelSource, Sampling, ServeJob};

use crate::worker::{Worker, crash_message, keep_last_lines};

/// What a sink hears of its answer: tokens, then one of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Token(u32),
    Ended(End),
    /// The worker is gone, and why.
    Lost(String),
}

/// Where an answer goes. It is called from the thread that reads the worker, so it must not wait.
pub type Sink = Box<dyn FnMut(Heard) + Send>;

/// A model that answers. The worker goes when the last handle to it does.
#[derive(Clone)]
pub struct Generator {
    shared: Arc<Shared>,
    /// Tokens the model was made for.
    pub context: usize,
    /// Tokens that all answers together may hold.
    pub cache_tokens: usize,
}

/// A request that was made. Dropping it tells the worker that the answer is no longer wanted.
pub struct Ticket {
    shared: Arc<Shared>,
    id: u64,
}

struct Shared {
    stdin: Mutex<Option<ChildStdin>>,
    table: Mutex<Table>,
    next: AtomicU64,
}

#[derive(Default)]
struct Table {
    sinks: HashMap<u64, Sink>,
    attaching: HashMap<String, Sender<Option<String>>>,
    cache: CacheFill,
    /// Why nothing is answered any more.
    gone: Option<String>,
}

impl Generator {
    /// Starts the worker and waits until the model is in memory. The worker dies with the thread that calls this. `on_gone`
    /// hears, once, how a worker that had been ready ended.
    ///
    /// # Errors
    /// As [`Worker::run`]; a model that cannot be loaded is the input's fault or the machine's, as the worker says.
    pub fn start(
        worker: &Worker,
        job: ServeJob,
        on_gone: Box<dyn FnOnce(String) + Send>,
    ) -> Result<Generator, TaskError> {
        let mut child = worker.start()?;
        let none = || TaskError::Failed("the worker has no input or output".into());
        let (stdin, stdout) = (child.stdin.take().ok_or_else(none)?, child.stdout.take().ok_or_else(none)?);
        let log = keep_last_lines(child.stderr.take());
        let next = AtomicU64::new(1);
        let shared = Arc::new(Shared { stdin: Mutex::new(Some(stdin)), table: Mutex::default(), next });
        // A worker that died at once closes the pipe; its exit status tells more than this error would.
        let _ = shared.send(&Job { task: Task::Serve(Box::new(job)), threads: 0 });
        let mut events = BufReader::new(stdout);
        match until_ready(&mut events) {
            Some(Event::Ready { context, cache_tokens }) => {
                // Weak: the last handle that goes closes the worker's input, and with that ends it.
                let heard = Arc::downgrade(&shared);
                std::thread::spawn(move || {
                    let mut last = None;
                    for event in events_of(&mut events) {
                        let Some(shared) = heard.upgrade() else { break };
                        last = shared.hear(event).or(last);
                    }
                    let why = ended(&mut child, last, log);
                    if let Some(shared) = heard.upgrade() {
                        shared.lose(&why);
                    }
                    on_gone(why);
                });
                Ok(Generator { shared, context, cache_tokens })
            }
            Some(Event::Failed { message, input }) => {
                let _ = child.wait();
                Err(if input { TaskError::Input(message) } else { TaskError::Failed(message) })
            }
            _ => Err(TaskError::Failed(ended(&mut child, None, log))),
        }
    }

    /// Asks for an answer to `ids` by an adapter, or by the base when `None`.
    ///
    /// # Errors
    /// `TaskError::Failed` with the reason when the worker is gone.
    pub fn ask(
        &self,
        adapter: Option<String>,
        ids: Vec<i64>,
        sampling: Sampling,
        sink: Sink,
    ) -> Result<Ticket, TaskError> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut table = self.shared.table();
            if let Some(why) = &table.gone {
                return Err(TaskError::Failed(why.clone()));
            }
            table.sinks.insert(id, sink);
        }
        let ticket = Ticket { shared: self.shared.clone(), id };
        let ask = Ask { id, adapter, ids, sampling };
        // A worker that is gone is told to every sink by the thread that notices.
        let _ = self.shared.send(&pipe_job::Command::Ask(Box::new(ask)));
        Ok(ticket)
    }

    /// How full the worker's cache was when it last told.
    pub fn cache(&self) -> CacheFill {
        self.shared.table().cache
    }

    /// Holds one more adapter under `name`, in place of an earlier one of that name; what is being answered goes on.
    pub fn attach(&self, name: &str, path: &Path) -> Result<(), TaskError> {
        let (send, receive) = channel();
        self.shared.table().attaching.insert(name.to_string(), send);
        self.shared
            .send(&pipe_job::Command::Attach { name: name.to_string(), path: path.to_path_buf() })
            .map_err(TaskError::io("talking to the worker"))?;
        match receive.recv() {
            Ok(None) => Ok(()),
            Ok(Some(message)) => Err(TaskError::Input(message)),
            Err(_) => Err(TaskError::Failed("the worker ended".into())),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let wanted = self.shared.table().sinks.remove(&self.id).is_some();
        if wanted {
            let _ = self.shared.send(&pipe_job::Command::Stop { id: self.id });
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, line: &impl serde::Serialize) -> std::io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stdin) = stdin.as_mut() else { return Err(std::io::ErrorKind::BrokenPipe.into()) };
        stdin.write_all(&bytes).and_then(|()| stdin.flush())
    }

    /// Passes an event on to whom it is for; gives back the one that a worker ends with.
    fn hear(&self, event: Event) -> Option<Event> {
        let mut table = self.table();
        match event {
            Event::Tokens { tokens } => {
                for (id, token) in tokens {
                    if let (Some(sink), Ok(token)) = (table.sinks.get_mut(&id), u32::try_from(token)) {
                        sink(Heard::Token(token));
                    }
                }
            }
            Event::Ended { id, end } => {
                if let Some(mut sink) = table.sinks.remove(&id) {
                    sink(Heard::Ended(end));
                }
            }
            Event::Attached { name, refused } => {
                if let Some(waiting) = table.attaching.remove(&name) {
                    let _ = waiting.send(refused);
                }
            }
            Event::Cache(fill) => table.cache = fill,
            last @ Event::Failed { .. } => return Some(last),
            _ => {}
        }
        None
    }

    fn lose(&self, why: &str) {
        let mut table = self.table();
        table.gone = Some(why.to_string());
        table.attaching.clear();
        for (_, mut sink) in table.sinks.drain() {
            sink(Heard::Lost(why.to_string()));
        }
    }
}

fn events_of(out: &mut BufReader<ChildStdout>) -> impl Iterator<Item = Event> {
    out.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok())
}

/// The event that says whether the model was loaded; `None` when the worker ended without one.
fn until_ready(out: &mut BufReader<ChildStdout>) -> Option<Event> {
    events_of(out).find(|event| matches!(event, Event::Ready { .. } | Event::Failed { .. } | Event::Cancelled { .. }))
}

fn ended(
    child: &mut Child,
    last: Option<Event>,
    log: std::thread::JoinHandle<std::collections::VecDeque<String>>,
) -> String {
    if let Some(Event::Failed { message, .. }) = last {
        let _ = child.wait();
        return message;
    }
    match child.wait() {
        Ok(status) => crash_message(status, &log.join().unwrap_or_default(), None),
        Err(error) => format!("waiting for the worker: {error}"),
    }
}
