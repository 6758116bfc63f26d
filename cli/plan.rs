//! `pipe plan`: what a run would do and why, without running anything.

use clap::Args;
use pipe_engine::state::{NodeState, Selection, State, plan_states};
use pipe_engine::store::Store;
use serde_json::{Value, json};

use crate::args::RecipeArgs;
use crate::failure::{Failure, Outcome};
use crate::fetch;
use crate::open::{self, Opened};
use crate::report;
use crate::report::graph;
use crate::report::plan as text;
use crate::run::SelectionArgs;

/// Show what a run would do and why, without running anything.
#[derive(Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    /// One JSON object instead of a table.
    #[arg(long, conflicts_with_all = ["dot", "mermaid"])]
    json: bool,
    /// The graph in Graphviz' language.
    #[arg(long, conflicts_with = "mermaid")]
    dot: bool,
    /// The graph in Mermaid's language.
    #[arg(long)]
    mermaid: bool,
}

/// How a plan is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Table,
    Json,
    Dot,
    Mermaid,
}

pub fn plan(args: &PlanArgs) -> Outcome {
    let form = match (args.dot, args.mermaid) {
        (true, _) => Form::Dot,
        (_, true) => Form::Mermaid,
        _ => form(args.json),
    };
    show(&args.recipe, &args.selection.selection(), form)
}

/// JSON or the table.
pub fn form(json: bool) -> Form {
    if json { Form::Json } else { Form::Table }
}

/// Prints the plan of a recipe; also what `run --dry-run` does.
pub fn show(recipe: &RecipeArgs, selection: &Selection, form: Form) -> Outcome {
    let opened = if form == Form::Table { open::open(recipe)? } else { open::open_quietly(recipe)?.0 };
    let states = states(&opened, selection)?;
    let training = crate::training::Forecast::of(&opened, &states);
    match form {
        Form::Json => report::json(&as_json(&opened, &states, &training)),
        Form::Dot => report::print(&graph::dot(&states, &training.rows)),
        Form::Mermaid => report::print(&graph::mermaid(&states, &training.rows)),
        Form::Table => report::print(&text::render(&opened, &states, &training, report::width())),
    }
    Ok(())
}

/// The state of every wanted node. Looks only: a store that is not there yet stays so.
pub fn states(opened: &Opened, selection: &Selection) -> Result<Vec<NodeState>, Failure> {
    let store = Store::peek(&opened.store_folder);
    let mut states = plan_states(&opened.plan, &store, &opened.scope, selection).map_err(|e| open::unknown_node(&e))?;
    fetch::mark(opened, &mut states);
    store.memo().save();
    Ok(states)
}

fn as_json(opened: &Opened, states: &[NodeState], training: &crate::training::Forecast) -> Value {
    let run = states.iter().filter(|state| state.state == State::Run).count();
    json!({
        "project": opened.project.root,
        "recipe": opened.path,
        "store": opened.store_folder,
        "nodes": states.iter().map(|state| node_json(state, training)).collect::<Vec<_>>(),
        "run": run,
        "cached": states.len() - run,
        "train": training.train,
        "memory": training.memory,
    })
}

fn node_json(state: &NodeState, training: &crate::training::Forecast) -> Value {
    let mut value = serde_json::to_value(state).unwrap_or_default();
    let Some(object) = value.as_object_mut() else { return value };
    let name = state.node.as_str();
    let numbers = [("rows", &training.rows.rows), ("tokens", &training.rows.node_tokens)];
    for (key, amounts) in numbers {
        if let Some(amount) = amounts.get(name) {
            object.insert(key.to_string(), json!(amount.n));
            if !amount.exact {
                object.insert("estimated".to_string(), json!(true));
            }
        }
    }
    if let Some(record) = state.record.as_ref().filter(|_| state.state == pipe_engine::state::State::Cached) {
        object.entry("rows").or_insert(json!(record.summary.rows));
        object.insert("stats".to_string(), json!(record.summary.stats));
    }
    value
}
