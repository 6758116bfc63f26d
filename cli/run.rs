//! `pipe run`: compile, then run what is not cached.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clap::Args;
use pipe_engine::bucket::BucketError;
use pipe_engine::event::{Event, NodeFinished, NodeOutcome, RunFinished, Sink};
use pipe_engine::remote::Remote;
use pipe_engine::schedule::{self, About, Budget, FailureKind, Options, RunError};
use pipe_engine::state::Selection;
use pipe_engine::store::Store;
use pipe_engine::task::Cancel;
use pipe_stages::recipe::{Recipe, parse_size};

use crate::args::RecipeArgs;
use crate::failure::{self, Failure, Kind, Outcome};
use crate::fetch;
use crate::open::{self, Opened};
use crate::outputs;
use crate::page;
use crate::process;
use crate::report::summary::Summary;
use crate::report::{self, ndjson::Ndjson, plain::Plain, progress::Live, scores};
use crate::trackers::Trackers;

/// Run a recipe: whatever is cached is not run again.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Nodes at once; default: as many as cores and memory allow.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// Share results with other stores through s3://bucket/prefix, gs://…, az://… or file:///folder; default
    /// PIPE_REMOTE_CACHE.
    #[arg(long, value_name = "URL")]
    remote: Option<String>,
    /// Stop everything at the first failure.
    #[arg(long)]
    fail_fast: bool,
    /// Events on standard output, one JSON object per line.
    #[arg(long)]
    json: bool,
    /// Say nothing but what went wrong.
    #[arg(long, short)]
    quiet: bool,
    /// Show what would run, and run nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Which nodes to run.
#[derive(Args, Debug, Clone, Default)]
pub struct SelectionArgs {
    /// Stop after this stage or node. Repeatable.
    #[arg(long, value_name = "STAGE")]
    pub until: Vec<String>,
    /// Run this stage or node and all below it, cached or not. Repeatable.
    #[arg(long, value_name = "STAGE")]
    pub from: Vec<String>,
    /// Run this stage or node even if cached; what lies below only where bytes changed. Repeatable.
    #[arg(long, value_name = "STAGE")]
    pub force: Vec<String>,
    /// Re-hash every stored output that is used.
    #[arg(long)]
    pub verify: bool,
}

impl SelectionArgs {
    pub fn selection(&self) -> Selection {
        let SelectionArgs { until, from, force, verify } = self.clone();
        Selection { until, from, force, verify }
    }
}

pub fn run(args: RunArgs) -> Outcome {
    if args.dry_run {
        return crate::plan::show(&args.recipe, &args.selection.selection(), crate::plan::form(args.json));
    }
    let remote = remote(&args)?;
    let opened = if args.quiet || args.json { open::open_quietly(&args.recipe)?.0 } else { open::open(&args.recipe)? };
    let opened = fetch::ensure(&args.recipe, opened, &args.selection.selection(), args.quiet)?;
    let store = opened.store()?;
    let display = Display::of(&args, opened.recipe.logging_steps.unwrap_or(1));
    let trackers = Trackers::start(&opened, display.sink());
    let recorder = Arc::new(Recorder::new(display.sink(), trackers));
    let options = Options { remote, ..options(&args, &opened) };
    let cancel = Cancel::default();
    stop_on_signal(&cancel, &display)?;
    let outcome = schedule::run(&opened.plan, &store, &options, recorder.clone(), &cancel);
    let outcome = outcome.map_err(|error| {
        display.clear();
        match error {
            RunError::UnknownNode(error) => open::unknown_node(&error),
            RunError::Store(error) => open::store_failure(error),
        }
    })?;
    recorder.finish_trackers();
    let published = publish(&opened, &store, &outcome.finished);
    let reported = reported(&opened, &store, &outcome);
    recorder.release();
    display.clear();
    let mut published = published?;
    published.extend(reported);
    if display.is_for_people() && (outcome.finished.ok || !outcome.finished.executed.is_empty()) {
        let summary = summary(&opened, &outcome.finished, recorder.nodes(), &published);
        report::print(&summary.render(report::width()));
    }
    verdict(&outcome)
}

fn options(args: &RunArgs, opened: &Opened) -> Options {
    Options {
        about: About {
            recipe: opened.scope.clone(),
            project: opened.project.root.clone(),
            document: serde_json::json!({
                "recipe": std::fs::read_to_string(&args.recipe.recipe).unwrap_or_default(),
                "resolved": opened.recipe,
                "set": crate::args::assignments(&args.recipe.set),
                "sources": fetch::pinned(opened),
                "version": env!("CARGO_PKG_VERSION"),
            }),
        },
        selection: args.selection.selection(),
        jobs: args.jobs.map(|jobs| jobs as usize),
        fail_fast: args.fail_fast,
        budget: budget(&opened.recipe),
        remote: None,
        advise: Some(pipe_stages::show::place_of_row),
    }
}

/// The shared store of --remote, else of PIPE_REMOTE_CACHE.
fn remote(args: &RunArgs) -> Result<Option<Arc<Remote>>, Failure> {
    let named = std::env::var("PIPE_REMOTE_CACHE").ok().filter(|value| !value.trim().is_empty());
    let Some(address) = args.remote.clone().or(named) else { return Ok(None) };
    let wrong = |error: BucketError| Failure::invalid(format!("--remote: {error}")).hint(error.hint());
    Remote::open(address.trim()).map(|remote| Some(Arc::new(remote))).map_err(wrong)
}

/// What the recipe's `resources` leave of the machine.
fn budget(recipe: &Recipe) -> Budget {
    let all = Budget::default();
    let asked = recipe.resources.clone().unwrap_or_default();
    Budget {
        cores: asked.cores.map_or(all.cores, |cores| cores as usize),
        memory_bytes: asked.memory.as_deref().and_then(parse_size).unwrap_or(all.memory_bytes),
        gpus: asked.gpus.map_or(all.gpus, |gpus| gpus as usize),
    }
}

/// The exit code's reason: interrupted, then a stage's failure, then wrong input.
fn verdict(outcome: &schedule::Outcome) -> Outcome {
    if outcome.interrupted {
        return Err(Failure::interrupted());
    }
    if outcome.finished.ok {
        return Ok(());
    }
    let only_input = outcome.failures.iter().all(|failure| failure.kind == FailureKind::Input);
    let input = only_input && !outcome.failures.is_empty();
    Err(Failure::told(if input { Kind::Invalid } else { Kind::Stage }))
}

fn publish(opened: &Opened, store: &Store, finished: &RunFinished) -> Result<Vec<(String, PathBuf)>, Failure> {
    match opened.recipe.output_dir.as_deref() {
        Some(output_dir) => outputs::publish(store, &opened.project.resolve(output_dir), &finished.outputs),
        None => Ok(Vec::new()),
    }
}

/// The run's page. It never fails a run: the warning says what it lacks.
fn reported(opened: &Opened, store: &Store, outcome: &schedule::Outcome) -> Option<(String, PathBuf)> {
    let finished = &outcome.finished;
    let output_dir = opened.recipe.output_dir.as_deref().filter(|_| finished.ok || !finished.executed.is_empty())?;
    let output_dir = opened.project.resolve(output_dir);
    match page::publish(store, &finished.run, &opened.recipe, &output_dir) {
        Ok(path) => path.map(|path| ("report".to_string(), path)),
        Err(failure) => {
            report::warning(&format!("no report: {}", failure.message()));
            None
        }
    }
}

fn summary(opened: &Opened, run: &RunFinished, nodes: Vec<NodeFinished>, published: &[(String, PathBuf)]) -> Summary {
    let eval = nodes.iter().find(|node| node.node.stage() == "eval");
    let shown: Vec<(String, PathBuf)> =
        published.iter().map(|(name, path)| (name.clone(), opened.shown(path))).collect();
    Summary {
        scores: eval.map(|eval| scores::scores(&eval.stats)).unwrap_or_default(),
        samples: eval.map(|eval| scores::samples(&eval.stats)).unwrap_or_default(),
        next: next_steps(opened, run, &shown),
        outputs: shown,
        mixed: report::counts::mixed(&opened.plan),
        run: run.clone(),
        nodes,
    }
}

fn next_steps(opened: &Opened, run: &RunFinished, outputs: &[(String, PathBuf)]) -> Vec<String> {
    let recipe = opened.path.display();
    let at = |name: &str| outputs.iter().find(|(have, _)| have == name).map(|(_, path)| path.display());
    let mut next = Vec::new();
    match (at("merged"), at("adapter"), fetch::base_model(opened)) {
        (Some(merged), _, _) => next.push(format!("pipe chat {merged}")),
        _ if at("model").is_some() => next.extend(at("model").map(|model| format!("pipe chat {model}"))),
        (None, Some(adapter), Some(base)) => next.push(format!("pipe chat {base} --adapter {adapter}")),
        _ => {}
    }
    if let Some(pack) = run.outputs.keys().find(|node| node.stage() == "pack") {
        next.push(format!("pipe show {recipe} {pack}"));
    }
    next.push(format!("pipe runs {}", run.run));
    next
}

/// How a run is shown.
enum Display {
    Live(Arc<Live>),
    Plain(Arc<Plain>),
    Json(Arc<Ndjson>),
    Quiet(Arc<report::plain::OnlyTrouble>),
}

impl Display {
    fn of(args: &RunArgs, logging_steps: u64) -> Display {
        match (args.json, args.quiet) {
            (true, _) => Display::Json(Arc::new(Ndjson::new(pipe_engine::runs::stamp))),
            (_, true) => Display::Quiet(Arc::new(report::plain::OnlyTrouble)),
            _ if report::is_live() => Display::Live(Arc::new(Live::new())),
            _ => Display::Plain(Arc::new(Plain::new(logging_steps))),
        }
    }

    fn sink(&self) -> Arc<dyn Sink> {
        match self {
            Display::Live(sink) => sink.clone(),
            Display::Plain(sink) => sink.clone(),
            Display::Json(sink) => sink.clone(),
            Display::Quiet(sink) => sink.clone(),
        }
    }

    fn is_for_people(&self) -> bool {
        matches!(self, Display::Live(_) | Display::Plain(_))
    }

    /// Says something beside the display, where there are people to read it.
    fn teller(&self) -> Box<dyn Fn(&str) + Send> {
        match self {
            Display::Live(live) => {
                let live = live.clone();
                Box::new(move |line| live.say(line))
            }
            Display::Plain(_) => Box::new(report::note),
            Display::Json(_) | Display::Quiet(_) => Box::new(|_| {}),
        }
    }

    fn clear(&self) {
        if let Display::Live(live) = self {
            live.clear();
        }
    }
}

/// Passes events on and keeps what the closing text needs. `run_finished` waits until the outputs are in place.
struct Recorder {
    inner: Arc<dyn Sink>,
    nodes: Mutex<Vec<NodeFinished>>,
    last: Mutex<Option<Event>>,
    trackers: Mutex<Option<Trackers>>,
}

impl Recorder {
    fn new(inner: Arc<dyn Sink>, trackers: Option<Trackers>) -> Recorder {
        let trackers = Mutex::new(trackers);
        Recorder { inner, nodes: Mutex::new(Vec::new()), last: Mutex::new(None), trackers }
    }

    fn finish_trackers(&self) {
        if let Some(trackers) = locked(&self.trackers).take() {
            trackers.finish();
        }
    }

    fn nodes(&self) -> Vec<NodeFinished> {
        locked(&self.nodes).clone()
    }

    fn release(&self) {
        let last = locked(&self.last).take();
        if let Some(event) = last {
            self.inner.emit(event);
        }
    }
}

impl Sink for Recorder {
    fn emit(&self, event: Event) {
        if let Some(trackers) = locked(&self.trackers).as_ref() {
            trackers.take(&event);
        }
        match &event {
            Event::RunFinished(_) => return *locked(&self.last) = Some(event),
            Event::NodeFinished(finished) => {
                if finished.outcome == NodeOutcome::Executed {
                    process::give_memory_back();
                }
                locked(&self.nodes).push((**finished).clone());
            }
            _ => {}
        }
        self.inner.emit(event);
    }
}

/// The first signal asks the run to stop, the second ends the process.
fn stop_on_signal(cancel: &Cancel, display: &Display) -> Result<(), Failure> {
    let cancel = cancel.clone();
    let told = AtomicBool::new(false);
    let tell = display.teller();
    let handler = move || {
        if told.swap(true, Ordering::SeqCst) {
            failure::exit_interrupted();
        }
        cancel.cancel();
        tell("stopping; what is finished is kept (once more ends it at once)");
    };
    ctrlc::set_handler(handler).map_err(|e| Failure::stage(format!("cannot listen for Ctrl-C: {e}")))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
