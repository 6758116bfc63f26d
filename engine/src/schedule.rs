//! The scheduler: runs what has no stored output, independent nodes at once, the longest path first.
//!
//! A node is looked at when the outputs above it are known, so a key covers real content: where an output comes out byte-equal,
//! nothing below it runs. Outputs that were let go are made again only for a reader. This file decides; `execute` does.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use crate::digest::Digest;
use crate::earlier::family;
use crate::event::{Event, NodeFinished, NodeOutcome, RunFinished, Sink};
pub use crate::execute::{Failure, FailureKind};
use crate::execute::{Job, JobInput, Report, execute};
use crate::key::Ingredients;
use crate::memory::{self, Resident};
use crate::plan::{Input, Node, NodeName, Plan};
use crate::record::Record;
use crate::remote::Remote;
pub use crate::runs::About;
use crate::runs::RunLog;
use crate::seen::{Past, Seen};
use crate::sharing::Sharing;
use crate::state::{Evaluated, Selection, UnknownNode, Wanted, add_ancestors, causes, evaluate, resolve, warm};
use crate::store::{Depth, Lookup, Store, StoreError};
use crate::task::{Cancel, Task, TaskError};
use crate::why::line;

/// How often memory is sampled and cancellation looked for.
const TICK: Duration = Duration::from_millis(40);
/// How long tasks get to stop before they are left to die with the process.
const GRACE: Duration = Duration::from_millis(1600);
/// How often a node is run anew because its source files changed under it.
const ATTEMPTS: usize = 2;

/// How to run a plan.
#[derive(Clone, Default)]
pub struct Options {
    pub about: About,
    pub selection: Selection,
    /// Nodes at once; as many as the budget allows when absent.
    pub jobs: Option<usize>,
    /// Stop everything at the first failure.
    pub fail_fast: bool,
    pub budget: Budget,
    /// Where results are shared with other stores.
    pub remote: Option<Arc<Remote>>,
    /// Asked for a hint where an error has none.
    pub advise: Option<Advise>,
}

/// A hint for an error, from its text and the nodes above the one that failed, the nearest last.
pub type Advise = fn(&str, &[Above]) -> Option<String>;

/// A node above one that failed.
pub struct Above {
    pub task: Arc<dyn Task>,
    /// The folder of its output.
    pub output: PathBuf,
}

/// What running nodes may occupy together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub cores: usize,
    pub memory_bytes: u64,
    pub gpus: usize,
}

impl Default for Budget {
    /// All cores, nine tenths of the memory and all graphics processors that this process may use.
    fn default() -> Budget {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory_bytes = match memory::allowed() {
            // The system does not say: no limit of ours.
            0 => u64::MAX,
            bytes => bytes / 10 * 9,
        };
        Budget { cores, memory_bytes, gpus: gpus() }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub finished: RunFinished,
    pub failures: Vec<Failure>,
    pub interrupted: bool,
}

/// A run that could not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    UnknownNode(#[from] UnknownNode),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs the plan. Every event, the last one included, goes to `sink` and to the run's record.
pub fn run(
    plan: &Plan,
    store: &Arc<Store>,
    options: &Options,
    sink: Arc<dyn Sink>,
    cancel: &Cancel,
) -> Result<Outcome, RunError> {
    let began = Instant::now();
    let wanted = resolve(plan, &options.selection)?;
    let log = Arc::new(RunLog::create(store, plan, &options.about, sink)?);
    log.emit(Event::RunStarted {
        run: log.id.clone(),
        recipe: options.about.recipe.clone(),
        project: options.about.project.clone(),
        nodes: plan.nodes().iter().map(|node| node.name.clone()).collect(),
    });
    warm(plan, store, &wanted.wanted);
    let mut driver = Driver::new(plan, store, options, wanted, log.clone());
    driver.drive(cancel);
    if let Some(sharing) = driver.sharing.take() {
        sharing.finish(cancel);
    }
    let outcome = driver.outcome(began);
    driver.note_seen();
    store.memo().save();
    // On a full disk the record stays unfinished, and the caller still learns how the run went.
    let _ = log.finish(&outcome.finished, &outcome.failures, outcome.interrupted);
    log.emit(Event::RunFinished(Box::new(outcome.finished.clone())));
    Ok(outcome)
}

enum Phase {
    /// Something above has no known output yet.
    Waiting,
    /// Not in this store; the shared one is being asked.
    Asking(Box<Evaluated>),
    /// Has to run, and waits for inputs to be present and for room.
    Ready(Box<Evaluated>),
    Running {
        peak: Arc<AtomicU64>,
        held: Budget,
    },
    Done(NodeOutcome),
    Failed,
    Skipped,
}

struct Slot {
    phase: Phase,
    /// Its output lies in the store, so that readers can start.
    present: bool,
    /// A reader needs its output: being known is not enough.
    demanded: bool,
    /// A reader found its stored bytes wrong.
    suspect: bool,
    forced: bool,
    /// The key that the shared store was asked for last.
    asked: Option<Digest>,
    /// Its output came from the shared store.
    taken: bool,
    /// What it holds while it runs, once its inputs are there to tell.
    need: Option<Budget>,
    /// Times its source files changed under it.
    attempts: usize,
}

struct Driver<'a> {
    plan: &'a Plan,
    store: &'a Arc<Store>,
    options: &'a Options,
    wanted: HashSet<usize>,
    slots: Vec<Slot>,
    /// Latest output of each node, from the store or just made.
    known: Vec<Option<Arc<Record>>>,
    /// Weight of the heaviest path from a node to an end.
    priority: Vec<u64>,
    free: Budget,
    log: Arc<RunLog>,
    sharing: Option<Sharing>,
    stop: Cancel,
    interrupted: bool,
    failures: Vec<Failure>,
    seen: OnceLock<Seen>,
    sender: Sender<(usize, Report)>,
    reports: Receiver<(usize, Report)>,
}

impl<'a> Driver<'a> {
    fn new(
        plan: &'a Plan,
        store: &'a Arc<Store>,
        options: &'a Options,
        wanted: Wanted,
        log: Arc<RunLog>,
    ) -> Driver<'a> {
        let slot = |i| {
            let phase = if wanted.wanted.contains(&i) { Phase::Waiting } else { Phase::Skipped };
            let (demanded, forced) = (wanted.ends.contains(&i), wanted.forced.contains(&i));
            let (asked, taken, need) = (None, false, None);
            Slot { phase, present: false, demanded, suspect: false, forced, asked, taken, need, attempts: 0 }
        };
        let sink: Arc<dyn Sink> = log.clone();
        let sharing = options.remote.clone().map(|remote| Sharing::begin(remote, store, &sink));
        let (sender, reports) = channel();
        Driver {
            plan,
            store,
            options,
            slots: (0..plan.nodes().len()).map(slot).collect(),
            wanted: wanted.wanted,
            known: vec![None; plan.nodes().len()],
            priority: priorities(plan),
            free: options.budget,
            log,
            sharing,
            stop: Cancel::default(),
            interrupted: false,
            failures: Vec::new(),
            seen: OnceLock::new(),
            sender,
            reports,
        }
    }

    fn drive(&mut self, cancel: &Cancel) {
        let mut stopping_since = None;
        loop {
            if cancel.is_cancelled() && !self.interrupted {
                self.interrupted = true;
                self.stop.cancel();
            }
            if self.stop.is_cancelled() {
                let since = *stopping_since.get_or_insert_with(Instant::now);
                if self.busy() == 0 || since.elapsed() > GRACE {
                    return self.skip_the_rest();
                }
            } else {
                while self.settle() {}
                self.start_what_fits();
                if self.busy() == 0 {
                    return self.skip_the_rest();
                }
            }
            match self.reports.recv_timeout(TICK) {
                Ok((i, report)) => self.take_report(i, report),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.sample_memory(),
            }
        }
    }

    /// Looks at every waiting node whose inputs are known; true when something changed.
    fn settle(&mut self) -> bool {
        let mut changed = false;
        for i in 0..self.slots.len() {
            if !matches!(self.slots[i].phase, Phase::Waiting) {
                continue;
            }
            if let Some(above) = self.broken_input(i) {
                self.skip(i, format!("{above} did not finish"));
                changed = true;
                continue;
            }
            let depth = if self.options.selection.verify || self.slots[i].suspect { Depth::Bytes } else { Depth::Stat };
            let gate = self.store.gate();
            match evaluate(self.plan, i, self.store, &self.known, depth) {
                Ok(None) => continue,
                Ok(Some(evaluated)) => self.decide(i, evaluated),
                Err(error) => {
                    let failure = Failure::new(self.plan.nodes()[i].name.clone(), error);
                    self.fail(i, failure);
                }
            }
            drop(gate);
            changed = true;
        }
        changed
    }

    /// Cached, known without its output, or to be run.
    fn decide(&mut self, i: usize, evaluated: Evaluated) {
        let slot = &self.slots[i];
        match &evaluated.lookup {
            Lookup::Hit(record) if !slot.forced => {
                let record = Arc::new((**record).clone());
                self.log.pin(record.output);
                self.finish(i, record, NodeOutcome::Cached, 0.0);
            }
            Lookup::Evicted(record) if !slot.forced && !slot.demanded => {
                let record = Arc::new((**record).clone());
                self.finish(i, record, NodeOutcome::Cached, 0.0);
                self.slots[i].present = false;
            }
            _ => self.ask_or_run(i, Box::new(evaluated)),
        }
    }

    /// What is not here may be in the shared store; only what is not there either needs its inputs.
    fn ask_or_run(&mut self, i: usize, evaluated: Box<Evaluated>) {
        let (slot, key) = (&mut self.slots[i], evaluated.key);
        match &self.sharing {
            Some(sharing) if sharing.is_on() && !slot.forced && slot.asked != Some(key) => {
                let sender = self.sender.clone();
                slot.asked = Some(key);
                slot.phase = Phase::Asking(evaluated);
                sharing.ask(&self.plan.nodes()[i], key, move |record| {
                    let _ = sender.send((i, Report::Asked { key, record }));
                });
            }
            _ => {
                slot.phase = Phase::Ready(evaluated);
                slot.need = None;
                self.demand_inputs(i);
            }
        }
    }

    /// An answer that nobody waits for any longer is no harm: the node finds the output when it looks again.
    fn take_answer(&mut self, i: usize, asked: Digest, record: Option<Box<Record>>) {
        match std::mem::replace(&mut self.slots[i].phase, Phase::Waiting) {
            Phase::Asking(evaluated) if evaluated.key == asked => match record {
                Some(record) => {
                    self.log.pin(record.output);
                    self.slots[i].taken = true;
                    self.finish(i, Arc::new(*record), NodeOutcome::Cached, 0.0);
                }
                None => self.ask_or_run(i, evaluated),
            },
            other => self.slots[i].phase = other,
        }
    }

    /// Outputs that were let go must be made again for a node that runs.
    fn demand_inputs(&mut self, i: usize) {
        for from in inputs_of(self.plan, i) {
            let slot = &mut self.slots[from];
            if matches!(slot.phase, Phase::Done(_)) && !slot.present {
                slot.demanded = true;
                slot.phase = Phase::Waiting;
            }
        }
    }

    fn start_what_fits(&mut self) {
        let mut ready: Vec<usize> = (0..self.slots.len()).filter(|&i| self.is_startable(i)).collect();
        ready.sort_by_key(|&i| (std::cmp::Reverse(self.priority[i]), i));
        for i in ready {
            let running = self.running();
            if self.options.jobs.is_some_and(|jobs| running >= jobs.max(1)) {
                return;
            }
            let need = self.need(i);
            if running == 0 || self.free.covers(need) {
                self.start(i, need);
            }
        }
    }

    /// What a node holds while it runs, never more than there is; a node that wants more memory is told of, and runs alone.
    fn need(&mut self, i: usize) -> Budget {
        if let Some(need) = self.slots[i].need {
            return need;
        }
        let node = &self.plan.nodes()[i];
        let place = |input: &Input| {
            let folder = self.store.object(self.known[self.plan.position(&input.from)?].as_ref()?.output);
            Some((input.role.clone(), input.file.as_ref().map_or(folder.clone(), |file| folder.join(file))))
        };
        let wanted = node.task.memory_bytes(&node.inputs.iter().filter_map(place).collect());
        let all = self.options.budget;
        if wanted > all.memory_bytes {
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            let (wanted, all) = (gigabytes(wanted), gigabytes(all.memory_bytes));
            let message = format!(
                "it is expected to take {wanted:.1} GB of memory, more than the {all:.1} GB there are for it; it runs alone, \
                 and may be stopped by the system"
            );
            self.log.emit(Event::Warning { node: node.name.clone(), message });
        }
        let wish = node.task.resources();
        let need = Budget {
            cores: wish.cores.clamp(1, all.cores.max(1)),
            memory_bytes: wanted.min(all.memory_bytes),
            gpus: wish.gpus.min(all.gpus),
        };
        *self.slots[i].need.insert(need)
    }

    fn is_startable(&self, i: usize) -> bool {
        matches!(self.slots[i].phase, Phase::Ready(_)) && inputs_of(self.plan, i).all(|from| self.slots[from].present)
    }

    fn start(&mut self, i: usize, held: Budget) {
        let peak = Arc::new(AtomicU64::new(0));
        let running = Phase::Running { peak: peak.clone(), held };
        let Phase::Ready(evaluated) = std::mem::replace(&mut self.slots[i].phase, running) else {
            return;
        };
        let node = &self.plan.nodes()[i];
        let slot = &self.slots[i];
        let past = Past { seen: self.seen(), scope: &self.options.about.recipe, plan: self.plan };
        let causes = causes(&evaluated, past, node, slot.forced);
        let reason =
            if causes.is_empty() { "its output was let go and is needed".to_string() } else { line(&causes, None) };
        let input = |input: &Input| {
            let from = self.plan.position(&input.from)?;
            let record = self.known[from].clone()?;
            Some(JobInput { role: input.role.clone(), file: input.file.clone(), from, record })
        };
        let earlier = self.earlier(node, &evaluated.ingredients).filter(|_| !slot.forced);
        let job = Job {
            store: self.store.clone(),
            node: node.name.clone(),
            task: node.task.clone(),
            key: evaluated.key,
            ingredients: evaluated.ingredients,
            origin: evaluated.origin,
            inputs: node.inputs.iter().filter_map(input).collect(),
            earlier,
            threads: held.cores,
            forced: slot.forced,
            suspect: slot.suspect || matches!(evaluated.lookup, Lookup::Damaged(..)),
            reason,
            sink: self.log.clone(),
            stop: self.stop.clone(),
            peak,
        };
        self.free.take(held);
        let sender = self.sender.clone();
        let work = move || {
            let report = execute(&job);
            // It shares the run's record, whose lock must not outlive the run.
            drop(job);
            let _ = sender.send((i, report));
        };
        let thread = std::thread::Builder::new().name(format!("node {}", self.plan.nodes()[i].name)).spawn(work);
        if let Err(error) = thread {
            let error = TaskError::Failed(format!("cannot start a thread: {error}"));
            let _ = self.sender.send((i, Report::Failed(Failure::new(self.plan.nodes()[i].name.clone(), error))));
        }
    }

    /// An output that the node may take rows from; kept from the garbage collector until the run is over.
    fn earlier(&self, node: &Node, ingredients: &Ingredients) -> Option<Record> {
        if !node.task.reuses_rows() {
            return None;
        }
        let _gate = self.store.gate().ok()?;
        let record = self.store.latest(family(&node.name, ingredients))?;
        self.log.pin(record.output);
        record.origin.objects.values().for_each(|&object| self.log.pin(object));
        Some(record)
    }

    fn take_report(&mut self, i: usize, report: Report) {
        let answer = matches!(report, Report::Asked { .. });
        if let Phase::Running { held, .. } = self.slots[i].phase
            && !answer
        {
            self.free.give_back(held);
        }
        match report {
            Report::Finished { record, outcome, seconds } => {
                self.log.pin(record.output);
                self.finish(i, Arc::new(*record), outcome, seconds);
            }
            Report::InputDamaged { from, what } => {
                let message = format!("{}: {what}; it is made again", self.plan.nodes()[from].name);
                self.log.emit(Event::Warning { node: self.plan.nodes()[i].name.clone(), message });
                self.slots[i].phase = Phase::Waiting;
                let slot = &mut self.slots[from];
                if matches!(slot.phase, Phase::Done(_)) {
                    slot.phase = Phase::Waiting;
                    slot.suspect = true;
                    slot.demanded = true;
                    slot.present = false;
                    self.known[from] = None;
                }
            }
            Report::SourceChanged { what } if self.slots[i].attempts < ATTEMPTS => {
                let message = format!("{what}; it runs again on what is there now");
                self.log.emit(Event::Warning { node: self.plan.nodes()[i].name.clone(), message });
                self.slots[i].attempts += 1;
                self.slots[i].phase = Phase::Waiting;
            }
            Report::SourceChanged { what } => {
                let error =
                    TaskError::Input(format!("{what}, again and again; wait until it is written, then run again"));
                self.fail(i, Failure::new(self.plan.nodes()[i].name.clone(), error));
            }
            Report::Failed(failure) => self.fail(i, failure),
            Report::Cancelled => self.skip(i, "interrupted".to_string()),
            Report::Asked { key, record } => self.take_answer(i, key, record),
        }
    }

    fn finish(&mut self, i: usize, record: Arc<Record>, outcome: NodeOutcome, seconds: f64) {
        let before = self.known[i].replace(record.clone());
        let was_executed = matches!(self.slots[i].phase, Phase::Done(NodeOutcome::Executed));
        let outcome = if was_executed { NodeOutcome::Executed } else { outcome };
        let slot = &mut self.slots[i];
        slot.phase = Phase::Done(outcome);
        slot.present = true;
        slot.forced = false;
        slot.suspect = false;
        slot.taken &= outcome == NodeOutcome::Cached;
        let taken = slot.taken;
        // What was let go on purpose is known, and not there to be given.
        if let Some(sharing) = self.sharing.as_ref().filter(|_| !taken && self.store.object(record.output).is_dir()) {
            sharing.give(&self.plan.nodes()[i].name, &record);
        }
        if before.is_some_and(|before| before.output != record.output) {
            self.reconsider_below(i);
        }
        let cached = outcome == NodeOutcome::Cached;
        let summary = &record.summary;
        let by_rows = summary.rows_computed.is_some() || summary.rows_reused.is_some();
        self.log.emit(Event::NodeFinished(Box::new(NodeFinished {
            node: self.plan.nodes()[i].name.clone(),
            outcome,
            from_remote: taken,
            key: record.key,
            output: record.output,
            seconds,
            peak_rss_bytes: if cached { 0 } else { record.peak_rss_bytes },
            bytes_read: if cached { 0 } else { record.bytes_read },
            bytes_written: if cached { 0 } else { record.bytes_written },
            rows: summary.rows,
            rows_computed: if cached { by_rows.then_some(0) } else { summary.rows_computed },
            rows_reused: if cached && by_rows { summary.rows } else { summary.rows_reused },
            stats: summary.stats.clone(),
            warnings: summary.warnings.clone(),
        })));
    }

    /// An output came out otherwise than its record said: what was settled on the record has to be settled again.
    fn reconsider_below(&mut self, i: usize) {
        for below in i + 1..self.slots.len() {
            let settled = matches!(
                self.slots[below].phase,
                Phase::Done(NodeOutcome::Cached) | Phase::Asking(_) | Phase::Ready(_)
            );
            if settled && inputs_of(self.plan, below).any(|from| from == i) {
                self.slots[below].phase = Phase::Waiting;
                self.slots[below].present = false;
                self.known[below] = None;
                self.reconsider_below(below);
            }
        }
    }

    fn fail(&mut self, i: usize, mut failure: Failure) {
        self.slots[i].phase = Phase::Failed;
        if let (None, Some(advise)) = (&failure.hint, self.options.advise) {
            failure.hint = advise(&failure.error, &self.above(i));
        }
        self.log.emit(Event::NodeFailed {
            node: failure.node.clone(),
            error: failure.error.clone(),
            hint: failure.hint.clone(),
        });
        self.failures.push(failure);
        if self.options.fail_fast {
            self.stop.cancel();
        }
    }

    fn above(&self, i: usize) -> Vec<Above> {
        let mut all = HashSet::new();
        add_ancestors(self.plan, i, &mut all);
        let made = |(at, node): (usize, &Node)| {
            let output = self.known[at].as_ref().filter(|_| all.contains(&at))?.output;
            Some(Above { task: node.task.clone(), output: self.store.object(output) })
        };
        self.plan.nodes().iter().enumerate().filter_map(made).collect()
    }

    fn skip(&mut self, i: usize, reason: String) {
        self.slots[i].phase = Phase::Skipped;
        self.log.emit(Event::NodeSkipped { node: self.plan.nodes()[i].name.clone(), reason });
    }

    fn skip_the_rest(&mut self) {
        for i in 0..self.slots.len() {
            let reason = match self.slots[i].phase {
                Phase::Done(_) | Phase::Failed | Phase::Skipped => continue,
                _ if self.interrupted => "interrupted".to_string(),
                _ => match self.broken_input(i) {
                    Some(above) => format!("{above} did not finish"),
                    None => "the run was stopped".to_string(),
                },
            };
            self.skip(i, reason);
        }
    }

    fn broken_input(&self, i: usize) -> Option<&NodeName> {
        let broken = |&from: &usize| matches!(self.slots[from].phase, Phase::Failed | Phase::Skipped);
        inputs_of(self.plan, i).find(broken).map(|from| &self.plan.nodes()[from].name)
    }

    fn running(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot.phase, Phase::Running { .. })).count()
    }

    /// Nodes that run or ask.
    fn busy(&self) -> usize {
        self.running() + self.slots.iter().filter(|slot| matches!(slot.phase, Phase::Asking(_))).count()
    }

    fn sample_memory(&self) {
        let now = Resident::read().now;
        for slot in &self.slots {
            if let Phase::Running { peak, .. } = &slot.phase {
                peak.fetch_max(now, Ordering::Relaxed);
            }
        }
    }

    fn seen(&self) -> &Seen {
        self.seen.get_or_init(|| Seen::load(self.store))
    }

    fn note_seen(&self) {
        let done = |i: usize| matches!(self.slots[i].phase, Phase::Done(_));
        let nodes: Vec<(NodeName, &Record)> = (0..self.slots.len())
            .filter(|&i| done(i))
            .filter_map(|i| Some((self.plan.nodes()[i].name.clone(), self.known[i].as_deref()?)))
            .collect();
        Seen::note(self.store, &self.options.about.recipe, &nodes);
    }

    fn outcome(&self, began: Instant) -> Outcome {
        let pick = |wanted: &dyn Fn(&Phase) -> bool| -> Vec<NodeName> {
            let chosen = self.slots.iter().zip(self.plan.nodes()).filter(|(slot, _)| wanted(&slot.phase));
            chosen.map(|(_, node)| node.name.clone()).collect()
        };
        let outputs: IndexMap<NodeName, PathBuf> = (self.plan.nodes().iter().zip(&self.known).zip(&self.slots))
            .filter(|(_, slot)| matches!(slot.phase, Phase::Done(_)))
            .filter_map(|((node, record), _)| Some((node.name.clone(), self.store.object(record.as_ref()?.output))))
            .collect();
        let complete = self.wanted.iter().all(|&i| matches!(self.slots[i].phase, Phase::Done(_)));
        let finished = RunFinished {
            ok: complete && self.failures.is_empty() && !self.interrupted,
            run: self.log.id.clone(),
            executed: pick(&|phase| matches!(phase, Phase::Done(NodeOutcome::Executed))),
            cached: pick(&|phase| matches!(phase, Phase::Done(NodeOutcome::Cached))),
            skipped: pick(&|phase| matches!(phase, Phase::Skipped)),
            failed: pick(&|phase| matches!(phase, Phase::Failed)),
            seconds: began.elapsed().as_secs_f64(),
            outputs,
        };
        Outcome { finished, failures: self.failures.clone(), interrupted: self.interrupted }
    }
}

impl Budget {
    fn covers(self, need: Budget) -> bool {
        self.cores >= need.cores && self.memory_bytes >= need.memory_bytes && self.gpus >= need.gpus
    }

    /// The first node may hold more than is free when it alone exceeds the budget, hence the saturation.
    fn take(&mut self, part: Budget) {
        self.cores = self.cores.saturating_sub(part.cores);
        self.memory_bytes = self.memory_bytes.saturating_sub(part.memory_bytes);
        self.gpus = self.gpus.saturating_sub(part.gpus);
    }

    fn give_back(&mut self, part: Budget) {
        self.cores += part.cores;
        self.memory_bytes += part.memory_bytes;
        self.gpus += part.gpus;
    }
}

/// NVIDIA's driver makes one numbered file per processor.
fn gpus() -> usize {
    let numbered = |name: &str| name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let files = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    files.filter(|file| file.file_name().to_str().is_some_and(numbered)).count()
}

fn inputs_of(plan: &Plan, i: usize) -> impl Iterator<Item = usize> + '_ {
    plan.nodes()[i].inputs.iter().filter_map(|input| plan.position(&input.from))
}

fn priorities(plan: &Plan) -> Vec<u64> {
    let weight = |i: usize| u64::from(plan.nodes()[i].task.resources().weight.max(1));
    let mut priority: Vec<u64> = (0..plan.nodes().len()).map(weight).collect();
    for i in (0..plan.nodes().len()).rev() {
        for from in inputs_of(plan, i) {
            priority[from] = priority[from].max(weight(from) + priority[i]);
        }
    }
    priority
}
