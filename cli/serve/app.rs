//! What all requests share: the models by name, the worker behind them, limits, counts.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use pipe_engine::task::TaskError;
use pipe_stages::chat::Loading;
use pipe_stages::generator::{CacheFill, Generator, ServeJob};
use pipe_stages::prompter::{Prompter, SamplingDefaults};
use pipe_stages::worker::Worker;
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::metrics::Metrics;
use crate::failure::Failure;
use crate::http::Stop;
use crate::report;

/// A worker that lived shorter than this after it was ready died of what it was asked.
const SHORT: Duration = Duration::from_secs(60);
/// Short lives in a row after which the server gives up.
const LIVES: usize = 3;

/// A model that can be asked for: the base, or the base with an adapter.
pub struct Model {
    pub name: String,
    /// The adapter's name in the worker.
    pub adapter: Option<String>,
    pub prompter: Prompter,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub body: usize,
    /// Tokens of an answer.
    pub max_tokens: usize,
    /// From a request to its last token.
    pub time: Duration,
}

pub struct App {
    /// The base first.
    pub models: Vec<Arc<Model>>,
    pub defaults: SamplingDefaults,
    pub limits: Limits,
    /// Requests that may be open.
    pub places: Arc<Semaphore>,
    pub key: Option<String>,
    pub metrics: Metrics,
    /// Seconds since 1970 when the server began.
    pub created: u64,
    state: RwLock<State>,
    failed: Mutex<Option<TaskError>>,
}

enum State {
    Loading,
    Ready(Generator),
    Gone(String),
}

impl App {
    pub fn new(
        models: Vec<Arc<Model>>,
        defaults: SamplingDefaults,
        limits: Limits,
        most: usize,
        key: Option<String>,
    ) -> App {
        App {
            models,
            defaults,
            limits,
            places: Arc::new(Semaphore::new(most)),
            key,
            metrics: Metrics::default(),
            created: now(),
            state: RwLock::new(State::Loading),
            failed: Mutex::default(),
        }
    }

    /// The model of this name.
    pub fn model(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        self.models.iter().find(|model| model.name == name).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
            ApiError::no_model(format!("there is no model `{name}`; there are {}", names.join(", ")))
        })
    }

    pub fn generator(&self) -> Result<Generator, ApiError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Ready(generator) => Ok(generator.clone()),
            State::Loading => Err(ApiError::unavailable("the model is being loaded")),
            State::Gone(why) => Err(ApiError::unavailable(why.clone())),
        }
    }

    /// How full the worker's cache is; empty while there is none.
    pub fn cache(&self) -> CacheFill {
        self.generator().map(|generator| generator.cache()).unwrap_or_default()
    }

    /// What ended the server, where it was not asked to.
    pub fn failure(&self) -> Option<Failure> {
        self.failed().take().map(Failure::from)
    }

    /// Lets go of the worker, which ends with that.
    pub fn close(&self) {
        self.become_(State::Gone("the server is stopping".to_string()));
    }

    fn failed(&self) -> MutexGuard<'_, Option<TaskError>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn become_(&self, state: State) {
        let mut held = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*held, State::Gone(_)) {
            *held = state;
        }
    }

    fn is_closed(&self) -> bool {
        matches!(*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Gone(_))
    }
}

/// Loads the model, and loads it again when its worker dies; raises `stop` when that is no use. Must run on a thread that
/// lives as long as the program, since workers die with the thread that starts them.
pub fn keep_loaded(app: &App, worker: &Worker, job: &ServeJob, on_ready: impl Fn(), stop: &Stop) {
    let mut lives = 0;
    loop {
        let (send, gone) = channel();
        let generator = match Generator::start(worker, job.clone(), Box::new(move |why| drop(send.send(why)))) {
            Ok(generator) => generator,
            Err(error) => return give_up(app, error, stop),
        };
        app.become_(State::Ready(generator));
        on_ready();
        let ready = Instant::now();
        let why = gone.recv().unwrap_or_default();
        if app.is_closed() {
            return;
        }
        app.become_(State::Loading);
        lives = if ready.elapsed() < SHORT { lives + 1 } else { 1 };
        if lives >= LIVES {
            return give_up(app, TaskError::Failed(format!("{why}\n{LIVES} times in a row; this is given up")), stop);
        }
        report::note(&format!("warning: {why}; the model is loaded again"));
        app.metrics.restarts.fetch_add(1, Ordering::Relaxed);
    }
}

fn give_up(app: &App, error: TaskError, stop: &Stop) {
    if !app.is_closed() {
        app.become_(State::Gone(error.to_string()));
        *app.failed() = Some(error);
        stop.raise();
    }
}

/// Models as requests name them, and the adapters that the worker is to hold.
pub type Named = (Vec<Arc<Model>>, Vec<(String, PathBuf)>);

/// The base and its adapters under the names that requests use.
pub fn models(loading: &Loading, name: Option<&str>, adapters: &[(Option<String>, PathBuf)]) -> Result<Named, Failure> {
    let base = Prompter::open(&loading.model, loading.template.as_deref())?;
    let own = loading.model.file_stem().filter(|_| loading.model.is_file()).or(loading.model.file_name());
    let own = own.map_or("model".to_string(), |name| name.to_string_lossy().into_owned());
    let mut seen = BTreeSet::new();
    let mut models = Vec::new();
    let mut held = Vec::new();
    let base_name = name.map_or(own, str::to_string);
    seen.insert(base_name.clone());
    for (given, folder) in adapters {
        let name = given.clone().unwrap_or_else(|| folder_name(folder));
        if !seen.insert(name.clone()) {
            let hint = "name each: --adapter NAME=DIR, and --name NAME for the base";
            return Err(Failure::invalid(format!("two models are called `{name}`")).hint(hint));
        }
        let prompter = base.adapted(folder, &loading.model, loading.template.as_deref())?;
        models.push(Arc::new(Model { name: name.clone(), adapter: Some(name.clone()), prompter }));
        held.push((name, folder.clone()));
    }
    models.insert(0, Arc::new(Model { name: base_name, adapter: None, prompter: base }));
    models.iter().filter_map(|model| model.prompter.warning.as_deref()).for_each(report::warning);
    Ok((models, held))
}

/// A recipe's `outputs/TASK/adapter` is called TASK.
fn folder_name(folder: &std::path::Path) -> String {
    let last = |path: &std::path::Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let own = last(folder).filter(|name| name != "adapter");
    own.or_else(|| folder.parent().and_then(last)).unwrap_or_else(|| "adapter".to_string())
}

/// A number that nobody can foresee.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
