//! Stages as stand-alone verbs: a small recipe is written for them, compiled like any other, and its one node is run on
//! existing folders. Same code, same options, same messages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use indexmap::IndexMap;
use pipe_engine::event::Sink;
use pipe_engine::plan::{NodeName, Plan};
use pipe_engine::schedule::{self, Options};
use pipe_engine::state::Selection;
use pipe_engine::store::Store;
use pipe_engine::task::{Cancel, Context, Summary};
use serde_json::Value;

use crate::args::{RecipeArgs, StoreArgs};
use crate::failure::{Failure, Outcome};
use crate::open::{self, Opened};
use crate::report::{self, plain::Plain, progress::Live};

/// A recipe that lives as long as the verb.
pub struct Made {
    pub folder: tempfile::TempDir,
    pub opened: Opened,
}

/// Compiles the recipe `keys` with `set` on top. Paths in it must be absolute.
pub fn recipe(keys: &Value, set: &[(String, String)]) -> Result<Made, Failure> {
    recipe_in(None, keys, set)
}

/// The same with a store that outlives the verb, where one is named.
pub fn recipe_in(store: Option<&Path>, keys: &Value, set: &[(String, String)]) -> Result<Made, Failure> {
    let failed = |e: std::io::Error| Failure::stage(format!("cannot make a temporary folder: {e}"));
    let folder = tempfile::tempdir().map_err(failed)?;
    let path = folder.path().join("verb.yml");
    std::fs::write(&path, keys.to_string()).map_err(failed)?;
    let own = || folder.path().join("store");
    let store = StoreArgs { cache_dir: Some(store.map_or_else(own, Path::to_path_buf)) };
    let opened = open::open(&RecipeArgs { recipe: path, set: set.to_vec(), store })?;
    Ok(Made { folder, opened })
}

/// Runs one node's task on `inputs`, writing to the new folder `out`.
pub fn run(plan: &Plan, stage: &str, inputs: &[(&str, &Path)], out: &Path, scratch: &Path) -> Result<Summary, Failure> {
    let node = plan.nodes().iter().find(|node| node.name.stage() == stage);
    let node = node.ok_or_else(|| Failure::stage(format!("there is no {stage} to run")))?;
    std::fs::create_dir_all(out).map_err(|e| Failure::invalid(format!("cannot write {}: {e}", out.display())))?;
    let (sink, live) = display();
    let cancel = interruptible()?;
    let context = Context {
        node: node.name.clone(),
        inputs: inputs.iter().map(|(role, path)| (role.to_string(), path.to_path_buf())).collect::<IndexMap<_, _>>(),
        files: node.task.files().into_iter().map(|file| (file.role, file.path)).collect(),
        earlier: None,
        out: out.to_path_buf(),
        work: scratch.to_path_buf(),
        kept: scratch.join("kept"),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        cancel,
        sink,
        read: Mutex::new(BTreeMap::new()),
    };
    let result = node.task.run(&context);
    if let Some(live) = live {
        live.clear();
    }
    Ok(result?)
}

/// A wish to stop that Ctrl-C raises; a process may ask for one.
pub fn interruptible() -> Result<Cancel, Failure> {
    let cancel = Cancel::default();
    let stop = cancel.clone();
    ctrlc::set_handler(move || stop.cancel()).map_err(|e| Failure::stage(format!("cannot listen for Ctrl-C: {e}")))?;
    Ok(cancel)
}

/// Runs a plan's nodes up to those of `stage`, silently but for `sink`; their folders.
pub fn until(
    plan: &Plan,
    store: &Arc<Store>,
    stage: &str,
    sink: Arc<dyn Sink>,
    cancel: &Cancel,
) -> Result<IndexMap<NodeName, PathBuf>, Failure> {
    let selection = Selection { until: vec![stage.to_string()], ..Selection::default() };
    let options = Options { selection, ..Options::default() };
    let ended = schedule::run(plan, store, &options, sink, cancel).map_err(|e| Failure::stage(e.to_string()))?;
    if ended.interrupted {
        return Err(Failure::interrupted());
    }
    if let Some(failure) = ended.failures.first() {
        let input = failure.kind == schedule::FailureKind::Input;
        let told = format!("{}: {}", failure.node, failure.error);
        return Err(if input { Failure::invalid(told) } else { Failure::stage(told) });
    }
    Ok(ended.finished.outputs)
}

/// A path as the temporary recipe needs it; it must exist.
pub fn existing(path: &Path) -> Result<PathBuf, Failure> {
    let absolute = path.canonicalize();
    absolute.map_err(|e| Failure::invalid(format!("cannot read {}: {e}", path.display())))
}

/// `adapter_config.json` of a PEFT folder; `None` where a path is no such folder.
pub fn adapter_config(folder: &Path) -> Result<Option<Value>, Failure> {
    let path = folder.join("adapter_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let wrong = |e: &dyn std::fmt::Display| Failure::invalid(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(&e))?;
    serde_json::from_str(&text).map(Some).map_err(|e| wrong(&e))
}

/// The model that an adapter belongs to: the one `named`, else the one that its configuration names.
pub fn base_of(config: &Value, named: Option<&Path>) -> Result<PathBuf, Failure> {
    let own = config.get("base_model_name_or_path").and_then(Value::as_str).filter(|name| !name.is_empty());
    let hint = "name the adapter's base model with --base-model";
    let base =
        named.or(own.map(Path::new)).ok_or_else(|| Failure::invalid("the adapter names no base model").hint(hint))?;
    existing(base).map_err(|failure| failure.hint(hint))
}

/// A folder to write to, which must be new or empty.
pub fn vacant(path: &Path) -> Result<&Path, Failure> {
    let taken = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) || path.is_file();
    if taken {
        return Err(Failure::invalid(format!("{} exists already", path.display())).hint("name a new or empty folder"));
    }
    Ok(path)
}

/// Copies a file, or a folder with all below it: what they hold and not their permissions, for a store's are read-only.
pub fn copy(from: &Path, to: &Path) -> Outcome {
    let failed = |what: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |e: std::io::Error| Failure::stage(format!("cannot {what} {}: {e}", path.display()))
    };
    if from.is_dir() {
        std::fs::create_dir_all(to).map_err(failed("write", to))?;
        for entry in std::fs::read_dir(from).map_err(failed("read", from))? {
            let entry = entry.map_err(failed("read", from))?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    let mut content = std::fs::File::open(from).map_err(failed("read", from))?;
    let mut place = std::fs::File::create(to).map_err(failed("write", to))?;
    std::io::copy(&mut content, &mut place).map_err(failed("write", to)).map(drop)
}

fn display() -> (Arc<dyn Sink>, Option<Arc<Live>>) {
    if report::is_live() {
        let live = Arc::new(Live::new());
        return (live.clone(), Some(live));
    }
    (Arc::new(Plain::new(1)), None)
}
