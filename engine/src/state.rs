//! What each node is before anything runs: its key, whether its output is there, and if not, why.
//!
//! The scheduler and `plan` ask the same questions here, so a plan cannot promise what a run does not do. Nothing here runs,
//! moves or removes anything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::digest::Digest;
use crate::key::{FileFact, Ingredients, InputContent, Origin};
use crate::plan::{Node, NodeName, Plan};
use crate::record::Record;
use crate::seen::{Past, Seen};
use crate::store::{Depth, Lookup, Store};
use crate::task::TaskError;
use crate::why::{Cause, CauseKind, explain, line};

/// Which nodes to run, and how closely to look.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Stop after these nodes (stage or node names).
    pub until: Vec<String>,
    /// Run these and everything below them.
    pub from: Vec<String>,
    /// Run these even if stored; what lies below only where bytes changed.
    pub force: Vec<String>,
    /// Re-hash every stored output that is used.
    pub verify: bool,
}

/// A selector that names nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` names no node of this recipe; it has {}", known.join(", "))]
pub struct UnknownNode {
    pub given: String,
    pub known: Vec<String>,
}

/// Whether a node would run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Cached,
    Run,
}

/// A node as `plan` and `why` show it.
#[derive(Clone, Debug, Serialize)]
pub struct NodeState {
    pub node: NodeName,
    pub stage: String,
    pub inputs: Vec<NodeName>,
    /// Unknown while something above has to run first.
    pub key: Option<Digest>,
    pub state: State,
    /// One line.
    pub reason: String,
    pub causes: Vec<Cause>,
    /// Where the output is, if it is stored.
    #[serde(skip)]
    pub output: Option<PathBuf>,
    /// The record of the stored output, or of the last one under this key.
    #[serde(skip)]
    pub record: Option<Arc<Record>>,
}

/// The nodes a selection names, by position in the plan.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub wanted: HashSet<usize>,
    pub forced: HashSet<usize>,
    /// Nodes that nothing wanted reads: a run is for their outputs, so being known is not enough.
    pub ends: HashSet<usize>,
}

/// A node whose upstream outputs are known.
pub(crate) struct Evaluated {
    pub key: Digest,
    pub ingredients: Ingredients,
    pub origin: Origin,
    pub lookup: Lookup,
    /// An attempt that did not end has left something to go on from.
    pub begun: bool,
}

/// The state of every node that the selection wants, in plan order, without running anything.
pub fn plan_states(
    plan: &Plan,
    store: &Store,
    scope: &str,
    selection: &Selection,
) -> Result<Vec<NodeState>, UnknownNode> {
    let Wanted { wanted, forced, ends } = resolve(plan, selection)?;
    warm(plan, store, &wanted);
    let seen = Seen::load(store);
    let past = Past { seen: &seen, scope, plan };
    let depth = if selection.verify { Depth::Bytes } else { Depth::Stat };
    let mut known: Vec<Option<Arc<Record>>> = vec![None; plan.nodes().len()];
    let mut states = Vec::new();
    for (i, node) in plan.nodes().iter().enumerate().filter(|(i, _)| wanted.contains(i)) {
        let mut state = NodeState {
            node: node.name.clone(),
            stage: node.task.stage().to_string(),
            inputs: node.inputs.iter().map(|input| input.from.clone()).collect(),
            key: None,
            state: State::Run,
            reason: String::new(),
            causes: Vec::new(),
            output: None,
            record: None,
        };
        match evaluate(plan, i, store, &known, depth) {
            Ok(Some(evaluated)) => fill(&mut state, evaluated, store, past, node, forced.contains(&i)),
            Ok(None) => state.causes = waiting_for(plan, node, &known),
            Err(error) => state.causes = vec![Cause::new(CauseKind::File, error.to_string())],
        }
        state.reason = line(&state.causes, state.record.as_deref());
        known[i] = state.record.clone().filter(|record| Some(record.key) == state.key);
        states.push(state);
    }
    demand(plan, &ends, &mut states);
    Ok(states)
}

/// Outputs that were let go are made again for what runs, and where they are what the run is for.
fn demand(plan: &Plan, ends: &HashSet<usize>, states: &mut [NodeState]) {
    let mut readers: HashMap<NodeName, NodeName> = HashMap::new();
    for state in states.iter_mut().rev() {
        let is_end = plan.position(&state.node).is_some_and(|i| ends.contains(&i));
        let gone = state.state == State::Cached && state.output.is_none();
        if gone && let Some(for_whom) = readers.get(&state.node).map(NodeName::as_str).or(is_end.then_some("the run")) {
            let cause = Cause::new(CauseKind::Missing, format!("its output was let go, and {for_whom} needs it"));
            state.reason = cause.clause();
            state.causes = vec![cause];
            state.state = State::Run;
        }
        if state.state == State::Run {
            readers.extend(state.inputs.iter().map(|input| (input.clone(), state.node.clone())));
        }
    }
}

/// The nodes that a selection may run, in the plan's order.
///
/// # Errors
/// A selector names no node.
pub fn wanted(plan: &Plan, selection: &Selection) -> Result<Vec<NodeName>, UnknownNode> {
    let wanted = resolve(plan, selection)?.wanted;
    let nodes = plan.nodes().iter().enumerate().filter(|(i, _)| wanted.contains(i));
    Ok(nodes.map(|(_, node)| node.name.clone()).collect())
}

/// Which nodes a selection wants and forces.
pub(crate) fn resolve(plan: &Plan, selection: &Selection) -> Result<Wanted, UnknownNode> {
    let position = |name: &NodeName| plan.position(name).unwrap_or_default();
    let select = |selectors: &[String]| -> Result<HashSet<usize>, UnknownNode> {
        let mut chosen = HashSet::new();
        for selector in selectors {
            let names = plan.select(selector);
            if names.is_empty() {
                let known = plan.nodes().iter().map(|node| node.name.to_string()).collect();
                return Err(UnknownNode { given: selector.clone(), known });
            }
            chosen.extend(names.iter().map(position));
        }
        Ok(chosen)
    };
    let mut wanted: HashSet<usize> = (0..plan.nodes().len()).collect();
    if !selection.until.is_empty() {
        wanted = select(&selection.until)?;
        // Nodes are in topological order, so one pass backwards reaches every ancestor.
        for i in (0..plan.nodes().len()).rev().filter(|i| wanted.contains(i)).collect::<Vec<_>>() {
            add_ancestors(plan, i, &mut wanted);
        }
    }
    let mut forced = select(&selection.from)?;
    for (i, node) in plan.nodes().iter().enumerate() {
        if node.inputs.iter().any(|input| forced.contains(&position(&input.from))) {
            forced.insert(i);
        }
    }
    forced.extend(select(&selection.force)?);
    let mut ends = wanted.clone();
    for &i in &wanted {
        plan.nodes()[i].inputs.iter().for_each(|input| {
            ends.remove(&position(&input.from));
        });
    }
    Ok(Wanted { wanted, forced, ends })
}

/// Hashes source files that are not memoised yet, in parallel.
pub(crate) fn warm(plan: &Plan, store: &Store, wanted: &HashSet<usize>) {
    let nodes = plan.nodes().iter().enumerate().filter(|(i, _)| wanted.contains(i));
    let mut files: Vec<_> = nodes.flat_map(|(_, node)| node.task.files()).collect();
    let mut once = HashSet::new();
    files.retain(|file| once.insert((file.path.clone(), file.view.name())));
    store.memo().warm(&files, std::thread::available_parallelism().map_or(1, usize::from));
}

/// A node's key and what is stored for it; `None` while an upstream output is unknown.
pub(crate) fn evaluate(
    plan: &Plan,
    i: usize,
    store: &Store,
    known: &[Option<Arc<Record>>],
    depth: Depth,
) -> Result<Option<Evaluated>, TaskError> {
    let node = &plan.nodes()[i];
    let mut origin = Origin::default();
    let mut inputs = BTreeMap::new();
    for input in &node.inputs {
        let Some(record) = plan.position(&input.from).and_then(|from| known[from].as_ref()) else {
            return Ok(None);
        };
        let digest = record.content(input.file.as_deref()).ok_or_else(|| {
            let file = input.file.as_deref().unwrap_or_default();
            TaskError::Failed(format!("{} made no file `{file}`, which {} reads", input.from, node.name))
        })?;
        inputs.insert(input.role.clone(), InputContent { file: input.file.clone(), digest });
        origin.upstream.insert(input.role.clone(), input.from.clone());
        origin.objects.insert(input.role.clone(), record.output);
    }
    let mut files = BTreeMap::new();
    for file in node.task.files() {
        let digest = store.memo().digest(&file.path, file.view).map_err(|error| TaskError::Input(error.to_string()))?;
        let size = std::fs::metadata(&file.path).map_or(0, |metadata| metadata.len());
        files.insert(file.role.clone(), digest);
        origin.files.insert(file.role, FileFact { path: file.path.display().to_string(), size, outline: None });
    }
    let (stage, version, params) = (node.task.stage().to_string(), node.task.version(), node.task.params());
    let ingredients = Ingredients { stage, version, params, files, inputs };
    let key = ingredients.key();
    let lookup = store.lookup(key, depth);
    let begun = matches!(lookup, Lookup::Nothing) && store.is_begun(key);
    Ok(Some(Evaluated { key, ingredients, origin, lookup, begun }))
}

fn fill(state: &mut NodeState, evaluated: Evaluated, store: &Store, past: Past<'_>, node: &Node, forced: bool) {
    state.key = Some(evaluated.key);
    state.causes = causes(&evaluated, past, node, forced);
    let record = match evaluated.lookup {
        Lookup::Hit(record) => {
            state.output = Some(store.object(record.output));
            record
        }
        Lookup::Evicted(record) | Lookup::Missing(record) | Lookup::Damaged(record, _) => record,
        Lookup::Nothing => return,
    };
    state.record = Some(Arc::new(*record));
    if state.causes.is_empty() {
        state.state = State::Cached;
    }
}

/// Why a node with known inputs would run; empty when it would not.
pub(crate) fn causes(evaluated: &Evaluated, past: Past<'_>, node: &Node, forced: bool) -> Vec<Cause> {
    let mut causes = match &evaluated.lookup {
        Lookup::Hit(_) | Lookup::Evicted(_) => Vec::new(),
        Lookup::Missing(record) => {
            vec![Cause::new(CauseKind::Missing, "the stored output was removed").before(record.output.short())]
        }
        Lookup::Damaged(record, what) => {
            vec![
                Cause::new(CauseKind::Corrupt, format!("the stored output is damaged: {what}"))
                    .before(record.output.short()),
            ]
        }
        Lookup::Nothing => explain(past.last(&node.name), evaluated),
    };
    if forced {
        causes.insert(0, Cause::new(CauseKind::Forced, "asked for"));
    }
    causes
}

fn waiting_for(plan: &Plan, node: &Node, known: &[Option<Arc<Record>>]) -> Vec<Cause> {
    let unknown = |from: &&NodeName| plan.position(from).is_none_or(|i| known[i].is_none());
    let mut names: Vec<&NodeName> = node.inputs.iter().map(|input| &input.from).filter(unknown).collect();
    names.dedup();
    names.into_iter().map(|name| Cause::new(CauseKind::Upstream, name.to_string())).collect()
}

/// Adds all nodes above one.
pub(crate) fn add_ancestors(plan: &Plan, i: usize, wanted: &mut HashSet<usize>) {
    for input in &plan.nodes()[i].inputs {
        if let Some(from) = plan.position(&input.from)
            && wanted.insert(from)
        {
            add_ancestors(plan, from, wanted);
        }
    }
}
