//! What a stage must offer to be a node, and what it is given when it runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::event::{Event, Sink};
use crate::plan::NodeName;

/// A node's work. Everything that can change the output's bytes is in `version`, `params`, `files` and the inputs.
pub trait Task: Send + Sync {
    /// Stage name, as in the contract's list.
    fn stage(&self) -> &'static str;

    /// Changes whenever the code (or a library whose version can change output bytes) would give other bytes.
    fn version(&self) -> String;

    /// Canonical parameters, defaults filled in; never paths, labels, thread counts or anything that cannot change
    /// the output.
    fn params(&self) -> Value;

    /// Files outside the store that are read. Cheap: called on every plan; digests are memoised by the engine.
    fn files(&self) -> Vec<SourceFile> {
        Vec::new()
    }

    fn resources(&self) -> Resources {
        Resources::default()
    }

    /// Expected peak of its memory, 0 when small; asked when its inputs lie in the store, each under its role.
    fn memory_bytes(&self, _inputs: &IndexMap<String, PathBuf>) -> u64 {
        0
    }

    /// Whether it can take over the results of single rows from an earlier output of its own, and wants to be offered one.
    fn reuses_rows(&self) -> bool {
        false
    }

    /// Does the work: reads `ctx.input(..)` and `ctx.file(..)`, writes files under `ctx.out()`. Nothing written there is
    /// visible to anyone until this returns `Ok`.
    fn run(&self, ctx: &Context) -> Result<Summary, TaskError>;
}

/// A file outside the store, or a part of one, that a node depends on.
#[derive(Clone)]
pub struct SourceFile {
    /// Unique within the node; part of the key.
    pub role: String,
    pub path: PathBuf,
    pub view: View,
}

/// Which bytes of a file a node depends on.
#[derive(Clone, Copy)]
pub enum View {
    /// All of them.
    Whole,
    /// A derived part, such as the tokenizer inside a GGUF file: `digest` reads the file and returns the part's bytes.
    /// `name` distinguishes parts of one file in the memo.
    Part { name: &'static str, bytes: fn(&Path) -> Result<Vec<u8>, String> },
}

impl View {
    /// Tells the parts of one file apart; empty for all of it.
    pub fn name(self) -> &'static str {
        match self {
            View::Whole => "",
            View::Part { name, .. } => name,
        }
    }
}

/// What a node occupies while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Cores it can keep busy.
    pub cores: usize,
    /// At most; a machine with fewer runs it all the same.
    pub gpus: usize,
    /// Relative cost, for longest path first.
    pub weight: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Resources { cores: 1, gpus: 0, weight: 1 }
    }
}

/// What a finished task says of its work; kept with the key, not part of the output's digest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub rows: Option<u64>,
    pub rows_computed: Option<u64>,
    pub rows_reused: Option<u64>,
    /// Peak memory of a child process that did the work, 0 when there was none.
    pub child_peak_rss_bytes: u64,
    /// Counts and measures by name, such as rows dropped per rule.
    pub stats: IndexMap<String, Value>,
    pub warnings: Vec<String>,
}

/// Why a task did not finish.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// What was given is wrong (exit code 2): says what, where (file:row), why and what to do.
    #[error("{0}")]
    Input(String),
    /// The work failed (exit code 1).
    #[error("{0}")]
    Failed(String),
    /// Stopped because cancellation was asked for.
    #[error("interrupted")]
    Cancelled,
    #[error("{context}: {source}")]
    Io { context: String, source: std::io::Error },
    /// The store did not do its part; made by the engine.
    #[error("{message}")]
    Store { message: String, hint: String },
    /// The task panicked; made by the engine.
    #[error("{0}")]
    Bug(String),
}

impl TaskError {
    pub fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> TaskError {
        let context = context.into();
        move |source| TaskError::Io { context, source }
    }
}

/// A flag that asks running tasks to stop.
#[derive(Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// `Err(TaskError::Cancelled)` once asked to stop; call it every few thousand rows.
    pub fn check(&self) -> Result<(), TaskError> {
        if self.is_cancelled() { Err(TaskError::Cancelled) } else { Ok(()) }
    }
}

/// An earlier output of the same node: same code, parameters and files, other inputs. Its bytes have been verified.
pub struct Earlier {
    pub output: PathBuf,
    /// What it was made of, by role.
    pub inputs: IndexMap<String, PathBuf>,
}

/// What a running task is given.
pub struct Context {
    pub node: NodeName,
    /// Verified input files (or folders) by role.
    pub inputs: IndexMap<String, PathBuf>,
    /// Source files by role.
    pub files: IndexMap<String, PathBuf>,
    /// Only for a task that [`Task::reuses_rows`], when there is one.
    pub earlier: Option<Earlier>,
    /// Draft folder to write the output to.
    pub out: PathBuf,
    /// Folder that belongs to this node's key and outlives a killed run (training checkpoints); removed once published.
    pub work: PathBuf,
    /// Folder of the store that outlives keys and runs: what was bought from outside and must not be bought twice.
    pub kept: PathBuf,
    /// Threads the task may use.
    pub threads: usize,
    pub cancel: Cancel,
    pub sink: Arc<dyn Sink>,
    /// Digests of source files as actually read, by role; overrides what planning saw.
    pub read: Mutex<BTreeMap<String, Digest>>,
}

impl Context {
    /// The input wired to `role`.
    pub fn input(&self, role: &str) -> Result<&Path, TaskError> {
        self.inputs
            .get(role)
            .map(PathBuf::as_path)
            .ok_or_else(|| TaskError::Failed(format!("node {} has no input `{role}`", self.node)))
    }

    /// The input wired to `role`, if there is one.
    pub fn input_opt(&self, role: &str) -> Option<&Path> {
        self.inputs.get(role).map(PathBuf::as_path)
    }

    pub fn file(&self, role: &str) -> Result<&Path, TaskError> {
        self.files
            .get(role)
            .map(PathBuf::as_path)
            .ok_or_else(|| TaskError::Failed(format!("node {} has no source file `{role}`", self.node)))
    }

    pub fn out(&self) -> &Path {
        &self.out
    }

    pub fn emit(&self, event: Event) {
        self.sink.emit(event);
    }

    pub fn progress(&self, done: u64, total: u64, unit: &str) {
        self.emit(Event::NodeProgress { node: self.node.clone(), done, total, unit: unit.to_string() });
    }

    /// Says which bytes of a whole source file were really read, when the task hashed them on the way. The result is then
    /// filed under these, even if the file was edited after planning.
    pub fn report_read(&self, role: &str, digest: Digest) {
        if let Ok(mut read) = self.read.lock() {
            read.insert(role.to_string(), digest);
        }
    }
}
