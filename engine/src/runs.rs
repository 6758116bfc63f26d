//! The record of runs: what was asked, what happened, on which machine. Written as it happens, so that a run that died has
//! its record too.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::digest::Digest;
use crate::event::{Event, NodeFinished, RunFinished, Sink, Stamped};
use crate::execute::Failure;
use crate::lock::Lock;
use crate::memory;
use crate::plan::{NodeName, Plan};
use crate::secret::{hidden, hidden_text};
use crate::store::{Store, StoreError, unique, write_whole};

/// What a run is about, given by the caller.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct About {
    /// The recipe as the user names it; also tells nodes of different recipes apart when explaining what changed.
    pub recipe: String,
    pub project: PathBuf,
    /// Anything worth keeping: the recipe's text, the resolved configuration, versions.
    pub document: Value,
}

/// One recorded run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    pub id: String,
    /// RFC 3339, UTC.
    pub started: String,
    #[serde(flatten)]
    pub about: About,
    pub plan: Vec<PlannedNode>,
    pub machine: Machine,
    /// Absent while it runs, and for ever when it was killed.
    #[serde(default)]
    pub finished: Option<Finished>,
    /// Somebody is running it now.
    #[serde(default)]
    pub live: bool,
}

/// A node of a recorded plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedNode {
    pub node: NodeName,
    pub stage: String,
    pub version: String,
    pub inputs: Vec<NodeName>,
    pub params: Value,
}

/// Where a run took place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub os: String,
    pub arch: String,
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finished {
    pub ended: String,
    pub interrupted: bool,
    pub failures: Vec<Failure>,
    pub nodes: Vec<NodeFinished>,
    pub result: RunFinished,
}

/// All runs of a store, oldest first.
pub fn list(store: &Store) -> Vec<Run> {
    let Ok(entries) = fs::read_dir(store.runs()) else {
        return Vec::new();
    };
    let mut runs: Vec<Run> = entries.flatten().filter_map(|entry| read(&entry.path())).collect();
    runs.sort_by(|a, b| a.id.cmp(&b.id));
    runs
}

/// The run whose id is `id`, else the latest whose id starts or ends with it. `last` is the latest of all.
pub fn find(store: &Store, id: &str) -> Option<Run> {
    let matches = |run: &Run| id == "last" || run.id.starts_with(id) || run.id.ends_with(id);
    open(store, id).or_else(|| list(store).into_iter().rev().find(matches))
}

/// The run in the folder `id`.
pub fn open(store: &Store, id: &str) -> Option<Run> {
    let is_name = !id.is_empty() && !id.contains(['/', '\0']) && id != "." && id != "..";
    is_name.then(|| read(&store.runs().join(id))).flatten()
}

/// What of a run can be seen without reading its record: equal pulses, equal records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pulse {
    pub id: String,
    /// Bytes of its events so far.
    pub events: u64,
    /// Outputs that it has or uses so far, in bytes of their list.
    pub pins: u64,
    pub finished: bool,
    pub live: bool,
}

/// The pulses of all runs, in no order.
pub fn pulses(store: &Store) -> Vec<Pulse> {
    let entries = fs::read_dir(store.runs()).into_iter().flatten().flatten();
    entries.filter_map(|entry| pulse(store, &entry.file_name().to_string_lossy())).collect()
}

/// The pulse of the run in the folder `id`.
pub fn pulse(store: &Store, id: &str) -> Option<Pulse> {
    let folder = store.runs().join(id);
    let size = |name: &str| folder.join(name).metadata().map(|metadata| metadata.len());
    size("run.json").ok()?;
    // In this order: who finishes writes that down, and only then lets go of the lock.
    let live = Lock::is_held(&folder.join("lock"));
    let finished = size("finished.json").is_ok();
    let (events, pins) = (size("events.jsonl").unwrap_or(0), size("pins").unwrap_or(0));
    Some(Pulse { id: id.to_string(), events, pins, finished, live: live && !finished })
}

/// What happened in a run; a torn last line is left out.
pub fn events(store: &Store, id: &str) -> Vec<Stamped> {
    let text = fs::read_to_string(store.runs().join(id).join("events.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// An event with the time it has now.
pub fn stamp(event: Event) -> Stamped {
    Stamped { time: now(), event }
}

/// The record of the run in progress; passes events on to the caller's sink.
pub(crate) struct RunLog {
    pub id: String,
    folder: PathBuf,
    inner: Arc<dyn Sink>,
    state: Mutex<LogState>,
    _lock: Option<Lock>,
}

struct LogState {
    events: File,
    pins: File,
    nodes: Vec<NodeFinished>,
}

impl RunLog {
    pub fn create(store: &Store, plan: &Plan, about: &About, inner: Arc<dyn Sink>) -> Result<RunLog, StoreError> {
        let started = Timestamp::now();
        let id = format!("{}-{}", started.strftime("%Y%m%dT%H%M%S%3f"), &unique()[..4]);
        let folder = store.runs().join(&id);
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StoreError::io("create", &path)(source)
        };
        fs::create_dir(&folder).map_err(failed(&folder))?;
        let lock = Lock::try_take(&folder.join("lock")).map_err(failed(&folder))?;
        let file = |name: &str| File::create(folder.join(name)).map_err(failed(&folder.join(name)));
        let state = LogState { events: file("events.jsonl")?, pins: file("pins")?, nodes: Vec::new() };
        let run = Run {
            id: id.clone(),
            started: started.to_string(),
            about: About { document: hidden(&about.document), ..about.clone() },
            plan: plan.nodes().iter().map(planned).collect(),
            machine: Machine::here(),
            finished: None,
            live: false,
        };
        save(&folder.join("run.json"), &run)?;
        Ok(RunLog { id, folder, inner, state: Mutex::new(state), _lock: lock })
    }

    /// Keeps the garbage collector away from an output while this run lives.
    pub fn pin(&self, output: Digest) {
        if let Ok(mut state) = self.state.lock() {
            // One write to a line: whoever trims the store meanwhile never reads half of one.
            let _ = state.pins.write_all(format!("{output}\n").as_bytes());
        }
    }

    pub fn finish(&self, result: &RunFinished, failures: &[Failure], interrupted: bool) -> Result<(), StoreError> {
        let nodes = self.state.lock().map(|mut state| std::mem::take(&mut state.nodes)).unwrap_or_default();
        let hide = |failure: &Failure| Failure { error: hidden_text(&failure.error), ..failure.clone() };
        let failures = failures.iter().map(hide).collect();
        save(
            &self.folder.join("finished.json"),
            &Finished { ended: now(), interrupted, failures, nodes, result: result.clone() },
        )
    }
}

impl Sink for RunLog {
    fn emit(&self, event: Event) {
        let event = without_secrets(event);
        // Held until the event was shown: the record and the display tell of concurrent nodes in one order.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Event::NodeFinished(finished) = &event {
            state.nodes.push((**finished).clone());
        }
        let stamped = stamp(event.clone());
        if let Ok(mut line) = serde_json::to_vec(&stamped) {
            line.push(b'\n');
            let _ = state.events.write_all(&line);
        }
        self.inner.emit(event);
    }
}

/// A message may quote an address or a setting.
fn without_secrets(event: Event) -> Event {
    match event {
        Event::NodeFailed { node, error, hint } => Event::NodeFailed { node, error: hidden_text(&error), hint },
        Event::Warning { node, message } => Event::Warning { node, message: hidden_text(&message) },
        Event::NodeStarted { node, reason } => Event::NodeStarted { node, reason: hidden_text(&reason) },
        other => other,
    }
}

/// The outputs that live runs use.
pub(crate) fn pinned(store: &Store) -> Vec<Digest> {
    let Ok(entries) = fs::read_dir(store.runs()) else { return Vec::new() };
    let live = entries.flatten().filter(|entry| Lock::is_held(&entry.path().join("lock")));
    live.flat_map(|entry| pins(store, &entry.file_name().to_string_lossy())).collect()
}

/// The outputs that a run used or made.
pub(crate) fn pins(store: &Store, id: &str) -> Vec<Digest> {
    let text = fs::read_to_string(store.runs().join(id).join("pins")).unwrap_or_default();
    text.lines().filter_map(Digest::parse).collect()
}

impl Machine {
    fn here() -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Machine {
            os: std::env::consts::OS.to_string(),
            arch: std::env::consts::ARCH.to_string(),
            cpu: model.map_or_else(String::new, |(_, name)| name.trim().to_string()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory::installed(),
        }
    }
}

fn planned(node: &crate::plan::Node) -> PlannedNode {
    PlannedNode {
        node: node.name.clone(),
        stage: node.task.stage().to_string(),
        version: node.task.version(),
        inputs: node.inputs.iter().map(|input| input.from.clone()).collect(),
        params: node.task.params(),
    }
}

fn read(folder: &Path) -> Option<Run> {
    let mut run: Run = serde_json::from_slice(&fs::read(folder.join("run.json")).ok()?).ok()?;
    // Its folder is what it is found by, whatever is written inside.
    run.id = folder.file_name()?.to_string_lossy().into_owned();
    // The lock first: who finishes writes that down before letting go of it.
    let is_held = Lock::is_held(&folder.join("lock"));
    let finished = fs::read(folder.join("finished.json")).ok();
    run.finished = finished.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    run.live = run.finished.is_none() && is_held;
    Some(run)
}

fn save(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(&json!(value)).map_err(|error| StoreError::io("write", path)(error.into()))?;
    write_whole(path, &bytes)
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
