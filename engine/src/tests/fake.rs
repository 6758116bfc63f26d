//! A stage that joins its inputs, files and parameters into one text, with switches for everything that can go wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indexmap::IndexMap;
use serde_json::{Value, json};

use crate::digest::{Digest, canonical_json};
use crate::event::{Event, Silent, Sink};
use crate::plan::{Input, Kind, Node, NodeName, Plan, plan};
use crate::schedule::{Options, Outcome, run};
use crate::state::Selection;
use crate::store::Store;
use crate::task::{Cancel, Context, Resources, SourceFile, Summary, Task, TaskError, View};

pub const TEXT: Kind = Kind("text");

/// What a fake does besides its work.
#[derive(Clone, Default)]
pub enum Twist {
    #[default]
    None,
    Fail,
    Panic,
    /// Waits this long, looking for cancellation.
    Slow(Duration),
    /// Never looks.
    Deaf(Duration),
    /// Keeps only the sorted distinct lines: many inputs, one output.
    Normalise,
    /// Counts to this number through checkpoints in the work folder, taking up where it was killed.
    Steps(u32),
    /// Writes this many bytes more.
    Big(usize),
    /// Gives other bytes every time.
    Unsteady,
    /// Edits its own source file after reading it, and says (or not) what it read.
    EditWhileReading {
        says: bool,
    },
    /// Edits its own source file before reading it, and says what it read.
    EditBeforeReading,
    /// Adds to its own source file every time.
    KeepEditing,
}

/// A fake stage.
#[derive(Clone)]
pub struct Fake {
    pub stage: &'static str,
    pub version: &'static str,
    pub params: Value,
    pub file: Option<PathBuf>,
    pub twist: Twist,
    pub resources: Resources,
    pub memory_bytes: u64,
    pub ran: Arc<AtomicUsize>,
    pub busy: Arc<Busy>,
}

/// How many fakes ran at once.
#[derive(Default)]
pub struct Busy {
    now: AtomicUsize,
    pub most: AtomicUsize,
}

impl Task for Fake {
    fn stage(&self) -> &'static str {
        self.stage
    }

    fn version(&self) -> String {
        self.version.to_string()
    }

    fn params(&self) -> Value {
        self.params.clone()
    }

    fn files(&self) -> Vec<SourceFile> {
        let source = |path: &PathBuf| SourceFile { role: "source".into(), path: path.clone(), view: View::Whole };
        self.file.iter().map(source).collect()
    }

    fn resources(&self) -> Resources {
        self.resources
    }

    fn memory_bytes(&self, inputs: &IndexMap<String, PathBuf>) -> u64 {
        assert!(inputs.values().all(|path| path.exists()), "asked before the inputs are there");
        self.memory_bytes
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        self.ran.fetch_add(1, Ordering::SeqCst);
        let now = self.busy.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.busy.most.fetch_max(now, Ordering::SeqCst);
        let result = self.work(ctx);
        self.busy.now.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

impl Fake {
    /// What a run without mishaps makes: the whole of its output is a function of this.
    pub fn text(&self, source: &str, inputs: &[String]) -> String {
        let mut text = source.to_string() + &inputs.concat();
        match self.twist {
            Twist::Normalise => {
                let lines: std::collections::BTreeSet<&str> = text.lines().map(str::trim).collect();
                text = lines.into_iter().map(|line| format!("{line}\n")).collect();
            }
            Twist::Steps(steps) => text += &(0..steps).map(|step| format!("step {step}\n")).collect::<String>(),
            _ => {}
        }
        if self.params != Value::Null {
            text += &format!("{} {} {}\n", self.stage, self.bytes_version(), canonical_json(&self.params));
        }
        text
    }

    /// Version "1b" is new code that gives the bytes of "1".
    fn bytes_version(&self) -> &str {
        self.version.trim_end_matches('b')
    }

    fn work(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let mut source = String::new();
        if let Some(path) = &self.file {
            if matches!(self.twist, Twist::EditBeforeReading) {
                fs::write(path, "edited\n").map_err(TaskError::io("editing"))?;
                ctx.report_read("source", Digest::of(b"edited\n"));
            }
            source = fs::read_to_string(path).map_err(TaskError::io("reading the source"))?;
            if let Twist::EditWhileReading { says } = self.twist {
                fs::write(path, "edited\n").map_err(TaskError::io("editing"))?;
                if says {
                    ctx.report_read("source", Digest::of(source.as_bytes()));
                }
            }
        }
        if let (Twist::KeepEditing, Some(path)) = (&self.twist, &self.file) {
            fs::write(path, source.clone() + "more\n").map_err(TaskError::io("editing"))?;
        }
        let mut inputs = Vec::new();
        for path in ctx.inputs.values() {
            let names = ["text", "length"].map(|name| path.join(name));
            let path = names.into_iter().find(|path| path.is_file()).unwrap_or_else(|| path.clone());
            inputs.push(fs::read_to_string(path).map_err(TaskError::io("reading an input"))?);
        }
        self.mishap(ctx)?;
        let mut text = self.text(&source, &inputs);
        if let Twist::Unsteady = self.twist {
            text += &format!("time {}\n", self.ran.load(Ordering::SeqCst));
        }
        fs::create_dir(ctx.out().join("more")).map_err(TaskError::io("writing"))?;
        fs::write(ctx.out().join("more/length"), text.len().to_string()).map_err(TaskError::io("writing"))?;
        if let Twist::Big(bytes) = self.twist {
            fs::write(ctx.out().join("more/big"), vec![b'x'; bytes]).map_err(TaskError::io("writing"))?;
        }
        fs::write(ctx.out().join("text"), &text).map_err(TaskError::io("writing"))?;
        Ok(Summary { rows: Some(text.lines().count() as u64), ..Summary::default() })
    }

    fn mishap(&self, ctx: &Context) -> Result<(), TaskError> {
        match &self.twist {
            Twist::Fail => return Err(TaskError::Failed("told to fail".into())),
            Twist::Panic => panic!("told to panic"),
            Twist::Slow(time) => {
                let began = std::time::Instant::now();
                while began.elapsed() < *time {
                    ctx.cancel.check()?;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Twist::Deaf(time) => std::thread::sleep(*time),
            Twist::Steps(steps) => {
                let (checkpoint, draft) = (ctx.work.join("step"), ctx.work.join("draft"));
                let done = fs::read_to_string(&checkpoint).map_or(0, |text| text.parse().unwrap());
                for step in done..*steps {
                    std::thread::sleep(Duration::from_millis(2));
                    fs::write(&draft, (step + 1).to_string()).map_err(TaskError::io("writing a checkpoint"))?;
                    fs::rename(&draft, &checkpoint).map_err(TaskError::io("writing a checkpoint"))?;
                }
            }
            Twist::None | Twist::Normalise | Twist::Big(_) | Twist::Unsteady => {}
            Twist::EditWhileReading { .. } | Twist::EditBeforeReading | Twist::KeepEditing => {}
        }
        Ok(())
    }
}

/// What a node reads: upstream names, and the one file of each if not all.
type Wires = Vec<(String, Option<String>)>;

/// A small world: a folder with source files, a store, and nodes to change.
pub struct World {
    pub folder: tempfile::TempDir,
    pub nodes: BTreeMap<usize, (String, Fake, Wires)>,
    pub busy: Arc<Busy>,
}

impl World {
    pub fn new() -> World {
        // Thousands of flushes are quick in memory.
        let memory = Path::new("/dev/shm");
        World::at(if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() })
    }

    /// A world below this folder.
    pub fn at(parent: impl AsRef<Path>) -> World {
        World { folder: tempfile::tempdir_in(parent).unwrap(), nodes: BTreeMap::new(), busy: Arc::default() }
    }

    /// Two data sets, each ingested and cleaned, packed together, trained and evaluated.
    pub fn pipeline() -> World {
        World::new().with_pipeline()
    }

    pub fn with_pipeline(self) -> World {
        let mut world = self;
        for name in ["a", "b"] {
            world.write(name, &format!("{name} two\n{name} one\n"));
            world.source(&format!("ingest.{name}"), "ingest", name);
            world.node(&format!("clean.{name}"), "clean", json!(null), &[&format!("ingest.{name}")]);
            world.fake(&format!("clean.{name}")).twist = Twist::Normalise;
            world.node(&format!("tokenize.{name}"), "tokenize", json!({"len": 8}), &[&format!("clean.{name}")]);
        }
        world.node("pack.train", "pack", json!({"size": 16}), &["tokenize.a", "tokenize.b"]);
        world.node("train", "train", json!({"lr": 0.1}), &["pack.train"]);
        world.node("eval", "eval", json!({"metric": "loss"}), &["train", "pack.train"]);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn source(&mut self, node: &str, stage: &'static str, file: &str) {
        self.node(node, stage, Value::Null, &[]);
        self.fake(node).file = Some(self.path(file));
    }

    /// `inputs` are node names, or `node/file`.
    pub fn node(&mut self, name: &str, stage: &'static str, params: Value, inputs: &[&str]) {
        let fake = Fake {
            stage,
            version: "1",
            params,
            file: None,
            twist: Twist::None,
            resources: Resources::default(),
            memory_bytes: 0,
            ran: Arc::default(),
            busy: self.busy.clone(),
        };
        let inputs = inputs.iter().map(|input| match input.split_once('/') {
            Some((node, file)) => (node.to_string(), Some(file.to_string())),
            None => (input.to_string(), None),
        });
        self.nodes.insert(self.nodes.len(), (name.to_string(), fake, inputs.collect()));
    }

    pub fn fake(&mut self, name: &str) -> &mut Fake {
        &mut self.nodes.values_mut().find(|(node, ..)| node == name).unwrap().1
    }

    pub fn plan(&self) -> Plan {
        let node = |(name, fake, inputs): &(String, Fake, Vec<(String, Option<String>)>)| Node {
            name: NodeName::new(name.as_str()),
            kind: TEXT,
            inputs: (inputs.iter().enumerate())
                .map(|(i, (from, file))| Input {
                    role: format!("{i}"),
                    from: NodeName::new(from.as_str()),
                    file: file.clone(),
                    kind: TEXT,
                })
                .collect(),
            task: Arc::new(fake.clone()),
        };
        plan(self.nodes.values().map(node).collect()).unwrap()
    }

    pub fn store(&self) -> Arc<Store> {
        Arc::new(Store::open(self.path(".pipe")).unwrap())
    }

    /// Runs everything with a store opened anew, as a new process would.
    pub fn run(&self) -> Outcome {
        self.run_with(&Options::default())
    }

    pub fn run_with(&self, options: &Options) -> Outcome {
        self.run_watched(options, Arc::new(Silent), &Cancel::default())
    }

    pub fn run_watched(&self, options: &Options, sink: Arc<dyn Sink>, cancel: &Cancel) -> Outcome {
        run(&self.plan(), &self.store(), options, sink, cancel).unwrap()
    }

    /// Names of the nodes that run, joined by spaces; panics when anything fails.
    pub fn executed(&self) -> String {
        self.executed_with(Selection::default())
    }

    pub fn executed_with(&self, selection: Selection) -> String {
        let outcome = self.run_with(&Options { selection, ..Options::default() });
        assert_eq!(outcome.failures, Vec::new());
        assert!(outcome.finished.ok);
        names(&outcome.finished.executed)
    }

    /// The text a node made in the last run.
    pub fn text(outcome: &Outcome, node: &str) -> String {
        fs::read_to_string(outcome.finished.outputs[&NodeName::new(node)].join("text")).unwrap()
    }
}

pub fn names(nodes: &[NodeName]) -> String {
    nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(" ")
}

/// Keeps all events.
#[derive(Default)]
pub struct Recorder(pub Mutex<Vec<Event>>);

impl Sink for Recorder {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

/// Overwrites a stored, read-only file.
pub fn overwrite(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}
