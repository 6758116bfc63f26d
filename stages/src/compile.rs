//! Recipe to nodes: which stages a recipe has, what each reads, and their resolved configurations.
//!
//! This is the only place that knows the whole pipeline. It reads no data and runs nothing.

mod continued;
mod data;
mod training;

pub(crate) use data::tokenizer_path;
pub use pipe_job::EvalPoints;
pub use training::save_points;
use training::{eval_section, evaluates};

use std::sync::Arc;

use pipe_engine::plan::{Input, Kind, Node, NodeName};
use pipe_engine::problem::{Problem, Severity};
use pipe_engine::task::Task;

use crate::companions::Companions;
use crate::fetch::{self, HubKind, Need};
use crate::importance;
use crate::model::BaseModel;
use crate::project::Project;
use crate::recipe::{Recipe, Role, SplitName, Toggle};
use crate::worker::Worker;

/// One row per line of the source, as read.
pub const RAW: Kind = Kind("rows");
/// Rows as examples, before any template.
pub const EXAMPLES: Kind = Kind("examples");
/// Rows as text with spans.
pub const RENDERED: Kind = Kind("rendered rows");
/// Rows as token ids with labels.
pub const TOKENS: Kind = Kind("tokens");
/// Rows put together to sequences.
pub const PACKS: Kind = Kind("packs");
/// What training made: an adapter or a model.
pub const TRAINED: Kind = Kind("a trained adapter");
/// A folder or file for use elsewhere.
pub const PUBLISHED: Kind = Kind("a published artifact");
/// A Hugging Face folder.
pub const MODEL: Kind = Kind("a model folder");
/// Measurements.
pub const MEASURES: Kind = Kind("measurements");

/// What compiling needs to know of this machine; none of it may decide what a recipe means, except `bf16: auto`.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub worker: Worker,
    /// Whether bfloat16 arithmetic runs in hardware.
    pub bf16: bool,
    /// Whether training an adapter is at least as fast in bfloat16 as in float32 where it does not: our own products widen it
    /// on the way to the registers.
    pub bf16_adapters: bool,
}

impl Machine {
    /// This machine, with the worker the caller found.
    pub fn here(worker: Worker) -> Machine {
        Machine { worker, bf16: has_bf16(), bf16_adapters: widens_bf16() }
    }
}

/// Which splits have rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splits {
    pub val: bool,
    pub test: bool,
}

/// The nodes of a recipe, in pipeline order.
///
/// # Errors
/// Problems that only show once stages are put together, such as a chat template that does not parse.
pub fn compile(recipe: &Recipe, project: &Project, machine: &Machine) -> Result<Vec<Node>, Vec<Problem>> {
    let model = base_model(recipe, project);
    let splits = splits(recipe);
    let mut nodes = Vec::new();
    let tokenized =
        data::nodes(recipe, project, model.as_ref(), splits, &mut nodes).map_err(|problem| vec![problem])?;
    data::packs(recipe, splits, &tokenized, &mut nodes);
    if let Some(model) = &model {
        let place = (project, machine);
        model_nodes(recipe, place, model, splits, &tokenized, &mut nodes).map_err(|problem| vec![problem])?;
    }
    Ok(nodes)
}

/// Which splits a recipe's rows fall into.
pub fn splits(recipe: &Recipe) -> Splits {
    let split = recipe.split.clone().unwrap_or_default();
    let val = split.val.or(recipe.val_set_size).unwrap_or(0.0);
    let tests = recipe.sources().iter().any(|source| source.role == Role::Test);
    Splits { val: val > 0.0, test: tests || split.test.unwrap_or(0.0) > 0.0 }
}

/// Train, eval, convert, merge and quantize, where the recipe has them.
fn model_nodes(
    recipe: &Recipe,
    (project, machine): (&Project, &Machine),
    model: &BaseModel,
    splits: Splits,
    tokenized: &[data::Tokenized],
    nodes: &mut Vec<Node>,
) -> Result<(), Problem> {
    let trains = recipe.train != Some(false) && tokenized.iter().any(|tokens| tokens.has_train);
    if trains {
        let mut inputs = vec![input("train", "pack.train", Some("packs.parquet"), PACKS)];
        if splits.val {
            inputs.push(input("val", "pack.val", Some("packs.parquet"), PACKS));
        }
        let trained_on = tokenized.iter().filter(|tokens| tokens.has_train);
        let sources = trained_on.map(|tokens| label(&tokens.node)).collect();
        let samples = || data::samples(recipe, project, model);
        let sampling = training::sampling(recipe, project, model, samples)?;
        let task = training::train(recipe, project, model, machine, splits.val, (sources, sampling))?;
        nodes.push(node("train", TRAINED, inputs, task));
    }
    // What training leaves is an adapter for the base, or a model in the base's place.
    let whole = trains && recipe.adapter.is_none();
    let adapter = || trains.then(|| input(if whole { "model" } else { "adapter" }, "train", None, TRAINED));
    let off = recipe.eval.as_ref().is_some_and(|toggle| toggle.on().is_none());
    if !off && (splits.val || splits.test || recipe.eval.is_some()) {
        let mut inputs: Vec<Input> = adapter().into_iter().collect();
        let sources = data::evaluation_inputs(recipe, splits, tokenized, &mut inputs);
        let samples = data::samples(recipe, project, model)?;
        // A model that is trained here learns what its rows are written with.
        let written = if trains { None } else { data::written(recipe, project, model)? };
        let task = training::eval(recipe, project, model, machine, (samples, written), sources, trains);
        nodes.push(node("eval", MEASURES, inputs, task));
    }
    let companions = data::companions(recipe, project, model)?;
    if trains {
        let inputs = adapter().into_iter().collect();
        let task = training::convert(recipe, model, companions.clone(), machine);
        nodes.push(node("convert", PUBLISHED, inputs, task));
    }
    let made = Made { recipe, project, model, machine, whole, trains };
    let merged = made.merge(companions, nodes);
    made.quantize(merged, nodes)
}

/// What the stages after training are compiled from.
struct Made<'a> {
    recipe: &'a Recipe,
    project: &'a Project,
    model: &'a BaseModel,
    machine: &'a Machine,
    /// The base's own weights are trained, so that a model comes out, not an adapter.
    whole: bool,
    trains: bool,
}

impl Made<'_> {
    /// The merge, and its comparison with base and adapter; whether there is one.
    fn merge(&self, companions: Companions, nodes: &mut Vec<Node>) -> bool {
        let Some(section) = self.recipe.merge.as_ref().and_then(|toggle| toggle.on()) else { return false };
        let role = if self.whole { "model" } else { "adapter" };
        let trained = || self.trains.then(|| input(role, "train", None, TRAINED));
        let task = training::merge(self.recipe, self.project, section, self.model, companions, self.machine);
        nodes.push(node("merge", MODEL, trained().into_iter().collect(), task));
        let tuned = !self.whole && (self.trains || self.model.adapter.is_some());
        if let Some((split, packs)) = held_out(self.recipe, nodes).filter(|_| tuned) {
            let inputs = trained().into_iter().chain([input("merged", "merge", None, MODEL), packs]).collect();
            let task = training::merge_agreement(self.recipe, section, self.model, self.machine, split);
            nodes.extend(task.map(|task| node("merge.agreement", MEASURES, inputs, task)));
        }
        true
    }

    /// The quantised files, what guides them, and their comparison with what they were made of.
    fn quantize(&self, merged: bool, nodes: &mut Vec<Node>) -> Result<(), Problem> {
        let Some(section) = self.recipe.quantize.as_ref().and_then(|toggle| toggle.on()) else { return Ok(()) };
        let from = || match merged {
            true => Some(input("model", "merge", None, MODEL)),
            // The published model, for it has the template that was trained with.
            false => self.whole.then(|| input("model", "convert", None, PUBLISHED)),
        };
        let task = training::quantize(section, self.project, self.model, self.machine, from().is_some());
        let mut inputs: Vec<Input> = from().into_iter().collect();
        if let Some(task) = training::importance(self.recipe, section, &task, self.machine) {
            let Some(packs) = packs_of(nodes, "train") else {
                let why = "the importance of weights is measured on training rows, and the recipe has none: name `datasets`, \
                           or a `file` that holds it";
                return Err(problem("needs-key", "quantize.importance", why.into()));
            };
            let from = from().into_iter().chain([packs]).collect();
            nodes.push(node("quantize.importance", MEASURES, from, task));
            inputs.push(input("importance", "quantize.importance", Some(importance::FILE), MEASURES));
        }
        let compared = held_out(self.recipe, nodes).and_then(|(split, packs)| {
            let inputs = from().into_iter().chain([input("quantized", "quantize", None, PUBLISHED), packs]).collect();
            let task = training::quantize_agreement(self.recipe, &task, section, self.machine, split)?;
            Some(node("quantize.agreement", MEASURES, inputs, task))
        });
        nodes.push(node("quantize", PUBLISHED, inputs, task));
        nodes.extend(compared);
        Ok(())
    }
}

/// The packs of rows that were not trained on, and the split they are from; none where nothing is to be evaluated.
fn held_out(recipe: &Recipe, nodes: &[Node]) -> Option<(&'static str, Input)> {
    if recipe.eval.as_ref().is_some_and(|toggle| toggle.on().is_none()) {
        return None;
    }
    ["test", "val"].into_iter().find_map(|split| Some((split, packs_of(nodes, split)?)))
}

fn packs_of(nodes: &[Node], split: &str) -> Option<Input> {
    let name = format!("pack.{split}");
    let there = nodes.iter().any(|node| node.name.as_str() == name);
    there.then(|| input("packs", &name, Some("packs.parquet"), PACKS))
}

/// The base model a recipe names, wherever it is.
pub fn base_model(recipe: &Recipe, project: &Project) -> Option<BaseModel> {
    let written = recipe.base_model.clone()?;
    let revision = recipe.model_revision.as_deref();
    let path = project.model(&written, revision, model_need(recipe));
    let adapter = recipe.lora_model_dir.as_ref().map(|folder| project.model(folder, None, Need::Weights));
    // An adapter names its base as every other program does.
    let written = match project.address(&written, HubKind::Model, revision).map(|address| address.place) {
        Some(fetch::Place::Hub { id, .. }) => id,
        _ => written,
    };
    Some(BaseModel { written, path, adapter })
}

/// How much of the base model a recipe reads.
pub(crate) fn model_need(recipe: &Recipe) -> Need {
    fn is_on<T>(toggle: Option<&Toggle<T>>) -> bool {
        toggle.is_some_and(|toggle| toggle.on().is_some())
    }
    let Splits { val, test } = splits(recipe);
    let trains = recipe.train != Some(false) && recipe.datasets.is_some();
    let evaluates = recipe.eval.as_ref().map_or(val || test, |toggle| toggle.on().is_some());
    match trains || evaluates || is_on(recipe.merge.as_ref()) || is_on(recipe.quantize.as_ref()) {
        true => Need::Weights,
        false => Need::Tokenizer,
    }
}

/// `tokenize.alpaca` is the dataset `alpaca`.
fn label(node: &str) -> String {
    node.split_once('.').map_or(node, |(_, label)| label).to_string()
}

fn node(name: &str, kind: Kind, inputs: Vec<Input>, task: impl Task + 'static) -> Node {
    Node { name: NodeName::new(name), kind, inputs, task: Arc::new(task) }
}

fn input(role: impl Into<String>, from: &str, file: Option<&str>, kind: Kind) -> Input {
    Input { role: role.into(), from: NodeName::new(from), file: file.map(str::to_string), kind }
}

/// A problem of the recipe as a whole.
fn problem(code: &'static str, key: &str, message: String) -> Problem {
    Problem {
        severity: Severity::Error,
        code,
        message,
        file: String::new(),
        line: None,
        column: None,
        key: Some(key.to_string()),
        suggestion: None,
    }
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    std::is_x86_feature_detected!("avx512bf16")
}

#[cfg(target_arch = "aarch64")]
fn has_bf16() -> bool {
    std::arch::is_aarch64_feature_detected!("bf16")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_bf16() -> bool {
    false
}

/// Whether our own products widen bf16 on the way to the registers, with AVX2 or with AVX-512.
#[cfg(target_arch = "x86_64")]
fn widens_bf16() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn widens_bf16() -> bool {
    false
}

// Which splits an evaluation may be asked for is a recipe's word; what exists is decided here.
impl Splits {
    /// Whether `split` has rows.
    pub fn has(self, split: SplitName) -> bool {
        match split {
            SplitName::Train => true,
            SplitName::Val => self.val,
            SplitName::Test => self.test,
        }
    }
}
