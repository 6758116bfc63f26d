//! One node's work, on a thread of its own: wait for its key, check its inputs, run it, publish what it made.
//!
//! Nothing here decides what runs; whatever goes wrong, a panic included, becomes a [`Report`].

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Instant;

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::earlier::family;
use crate::event::{Event, NodeOutcome, Sink};
use crate::key::{Ingredients, Origin};
use crate::lock::Lock;
use crate::memory::Resident;
use crate::outline::Outline;
use crate::plan::NodeName;
use crate::record::Record;
use crate::store::{Condition, Depth, FULL_HINT, Lookup, Store, StoreError, is_full};
use crate::task::{Cancel, Context, SourceFile, Summary, Task, TaskError, View};

/// A node that did not finish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub node: NodeName,
    pub kind: FailureKind,
    pub error: String,
    pub hint: Option<String>,
}

/// Whose mistake it was; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// What was given is wrong.
    Input,
    /// The work failed.
    Failed,
    /// The store or the disk did not do its part.
    Store,
    /// The stage panicked.
    Bug,
}

/// Everything a node's thread needs.
pub(crate) struct Job {
    pub store: Arc<Store>,
    pub node: NodeName,
    pub task: Arc<dyn Task>,
    pub key: Digest,
    pub ingredients: Ingredients,
    pub origin: Origin,
    pub inputs: Vec<JobInput>,
    /// An output whose rows may be taken over, pinned by the scheduler.
    pub earlier: Option<Record>,
    pub threads: usize,
    /// Run even if the output is stored.
    pub forced: bool,
    /// A reader found the stored bytes wrong: look at all of them.
    pub suspect: bool,
    pub reason: String,
    pub sink: Arc<dyn Sink>,
    pub stop: Cancel,
    /// Highest resident memory seen while it ran; the scheduler samples.
    pub peak: Arc<AtomicU64>,
}

pub(crate) struct JobInput {
    pub role: String,
    pub file: Option<String>,
    /// Position of the upstream node in the plan.
    pub from: usize,
    pub record: Arc<Record>,
}

/// How a node's thread ended.
pub(crate) enum Report {
    Finished {
        record: Box<Record>,
        outcome: NodeOutcome,
        seconds: f64,
    },
    /// A source file was edited while it was read, and nobody knows what the output was made of.
    SourceChanged {
        what: String,
    },
    /// An upstream output is not what was stored; it has to be made again.
    InputDamaged {
        from: usize,
        what: String,
    },
    Failed(Failure),
    Cancelled,
    /// The shared store was asked for a key; what it had is in this store now.
    Asked {
        key: Digest,
        record: Option<Box<Record>>,
    },
}

/// Does a node's work.
pub(crate) fn execute(job: &Job) -> Report {
    match attempt(job) {
        Ok(report) => report,
        Err(TaskError::Cancelled) => Report::Cancelled,
        Err(error) => Report::Failed(Failure::new(job.node.clone(), error)),
    }
}

fn attempt(job: &Job) -> Result<Report, TaskError> {
    let store_failed = |error: StoreError| job.store_error(&error);
    let Some(_lock) = wait_for_key(job)? else {
        return Err(TaskError::Cancelled);
    };
    let depth = if job.suspect { Depth::Bytes } else { Depth::Stat };
    match job.store.lookup(job.key, depth) {
        Lookup::Hit(record) if !job.forced => {
            return Ok(Report::Finished { record, outcome: NodeOutcome::Cached, seconds: 0.0 });
        }
        Lookup::Damaged(record, _) => job.store.quarantine(record.output).map_err(store_failed)?,
        _ => {}
    }
    let began = Instant::now();
    let before = Resident::read();
    let mut inputs = IndexMap::new();
    for input in &job.inputs {
        match job.store.verified(&input.record, input.file.as_deref()) {
            Ok(path) => inputs.insert(input.role.clone(), path),
            Err(condition) => {
                return Ok(Report::InputDamaged { from: input.from, what: describe(&condition) });
            }
        };
    }
    job.sink.emit(Event::NodeStarted { node: job.node.clone(), reason: job.reason.clone() });
    let draft = job.store.draft(job.key).map_err(store_failed)?;
    let work = job.store.take_work(job.key).map_err(store_failed)?;
    let files = job.task.files();
    let context = job.context(inputs, &files, draft.path().to_path_buf(), work);
    let summary = guarded(job.task.as_ref(), &context)?;
    let read = context.read.into_inner().unwrap_or_default();
    let ingredients = match job.as_read(&files, &read) {
        Ok(ingredients) => ingredients,
        Err(what) => return Ok(Report::SourceChanged { what }),
    };
    let manifest = job.store.seal(&draft).map_err(store_failed)?;
    let record = job.record(ingredients, manifest, summary, began.elapsed().as_secs_f64(), before);
    warn_if_unrepeatable(job, &record);
    job.store.publish(draft, &record).map_err(store_failed)?;
    if job.task.reuses_rows() {
        job.store.note_latest(family(&job.node, &record.ingredients), record.key);
    }
    let _ = std::fs::remove_dir_all(job.store.work(job.key));
    Ok(Report::Finished {
        record: Box::new(record),
        outcome: NodeOutcome::Executed,
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Takes the key's lock, saying so when another run has it.
fn wait_for_key(job: &Job) -> Result<Option<Lock>, TaskError> {
    let path = job.store.lock_path(job.key);
    let failed = |source| job.store_error(&StoreError::io("lock", &path)(source));
    if let Some(lock) = Lock::try_take(&path).map_err(failed)? {
        return Ok(Some(lock));
    }
    let message = "another run is computing this; waiting for it".to_string();
    job.sink.emit(Event::Warning { node: job.node.clone(), message });
    Lock::take(&path, || job.stop.is_cancelled()).map_err(failed)
}

impl Job {
    fn context(&self, inputs: IndexMap<String, PathBuf>, files: &[SourceFile], out: PathBuf, work: PathBuf) -> Context {
        Context {
            node: self.node.clone(),
            inputs,
            files: files.iter().map(|file| (file.role.clone(), file.path.clone())).collect(),
            earlier: self.earlier.as_ref().and_then(|record| self.store.earlier(record)),
            out,
            work,
            kept: self.store.kept(),
            threads: self.threads,
            cancel: self.stop.clone(),
            sink: self.sink.clone(),
            read: Mutex::new(BTreeMap::new()),
        }
    }

    /// The ingredients that were really used. A file that was edited meanwhile counts as what the task says it read; if it
    /// does not say, the output cannot be kept.
    fn as_read(&self, files: &[SourceFile], read: &BTreeMap<String, Digest>) -> Result<Ingredients, String> {
        let mut ingredients = self.ingredients.clone();
        for file in files {
            let planned = ingredients.files.get(&file.role).copied();
            let reported = read.get(&file.role).filter(|_| matches!(file.view, View::Whole));
            if let Some(&digest) = reported {
                ingredients.files.insert(file.role.clone(), digest);
                continue;
            }
            let now = self.store.memo().digest(&file.path, file.view).ok();
            if now.is_none() || now != planned {
                return Err(format!("{} changed while {} was reading it", file.path.display(), self.node));
            }
        }
        Ok(ingredients)
    }

    fn record(
        &self,
        ingredients: Ingredients,
        manifest: crate::manifest::Manifest,
        summary: Summary,
        seconds: f64,
        before: Resident,
    ) -> Record {
        let after = Resident::read();
        self.peak.fetch_max(before.now.max(after.now), Ordering::Relaxed);
        if after.peak > before.peak {
            self.peak.fetch_max(after.peak, Ordering::Relaxed);
        }
        let own = self.peak.load(Ordering::Relaxed);
        let inputs = self.inputs.iter().flat_map(|input| input.record.manifest.entries(input.file.as_deref()));
        let sources: u64 = self.origin.files.values().map(|fact| fact.size).sum();
        Record {
            key: ingredients.key(),
            origin: self.outlined(&ingredients),
            ingredients,
            node: self.node.clone(),
            output: manifest.digest(),
            bytes_read: inputs.map(|entry| entry.size).sum::<u64>() + sources,
            bytes_written: manifest.bytes(),
            manifest,
            seconds,
            peak_rss_bytes: if summary.child_peak_rss_bytes > 0 { summary.child_peak_rss_bytes } else { own },
            summary,
            created: Timestamp::now().to_string(),
            evicted: false,
        }
    }

    /// With outlines of the source files that are still as they were read.
    fn outlined(&self, read: &Ingredients) -> Origin {
        let mut origin = self.origin.clone();
        for file in self.task.files().iter().filter(|file| matches!(file.view, View::Whole)) {
            let now = self.store.memo().digest(&file.path, file.view).ok();
            let fact = origin.files.get_mut(&file.role).filter(|_| now.as_ref() == read.files.get(&file.role));
            if let Some(fact) = fact {
                fact.outline = Outline::of(&file.path);
            }
        }
        origin
    }

    fn store_error(&self, error: &StoreError) -> TaskError {
        TaskError::Store { message: error.to_string(), hint: error.hint().to_string() }
    }
}

impl Failure {
    pub(crate) fn new(node: NodeName, error: TaskError) -> Failure {
        let (kind, hint) = match &error {
            TaskError::Input(_) => (FailureKind::Input, None),
            TaskError::Store { hint, .. } => (FailureKind::Store, Some(hint.clone())),
            TaskError::Bug(_) => (FailureKind::Bug, Some("this is a mistake in pipe; please report it".to_string())),
            TaskError::Io { source, .. } => (FailureKind::Failed, is_full(source).then(|| FULL_HINT.to_string())),
            TaskError::Failed(_) | TaskError::Cancelled => (FailureKind::Failed, None),
        };
        Failure { node, kind, error: error.to_string(), hint }
    }
}

/// Equal ingredients must give equal bytes; when they do not, what lies below runs for nothing, and the user should know.
fn warn_if_unrepeatable(job: &Job, record: &Record) {
    if let Some(earlier) = job.store.record(record.key)
        && earlier.output != record.output
    {
        let message = "it gave other bytes than the last time with the same inputs".to_string();
        job.sink.emit(Event::Warning { node: job.node.clone(), message });
    }
}

fn describe(condition: &Condition) -> String {
    match condition {
        Condition::Sound => "sound".to_string(),
        Condition::Missing => "the stored output was removed".to_string(),
        Condition::Damaged(what) => format!("the stored output is damaged: {what}"),
    }
}

/// Tasks now running; while there are any, a panic away from the main thread is theirs and is not printed.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Where the latest of their panics was; a task's own threads pass a panic on to it.
static PANIC_PLACE: Mutex<Option<String>> = Mutex::new(None);

/// Runs the task, turning a panic into an error that names its place.
fn guarded(task: &dyn Task, context: &Context) -> Result<Summary, TaskError> {
    silence_panics();
    RUNNING.fetch_add(1, Ordering::SeqCst);
    let result = panic::catch_unwind(AssertUnwindSafe(|| task.run(context)));
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    result.unwrap_or_else(|payload| {
        let place = PANIC_PLACE
            .lock()
            .ok()
            .and_then(|mut place| place.take())
            .map_or_else(String::new, |place| format!(" at {place}"));
        Err(TaskError::Bug(format!("the stage {} broke{place}: {}", task.stage(), panic_message(payload.as_ref()))))
    })
}

fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let on_main = std::thread::current().name() == Some("main");
            if RUNNING.load(Ordering::SeqCst) == 0 || on_main {
                return loud(info);
            }
            let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
            if let Ok(mut latest) = PANIC_PLACE.lock() {
                *latest = place;
            }
        }));
    });
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
