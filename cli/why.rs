//! `pipe why`: why a node would run or not.

use clap::Args;
use pipe_engine::state::{NodeState, Selection, State};
use serde_json::{Value, json};

use crate::args::RecipeArgs;
use crate::failure::{Failure, Outcome};
use crate::open::{self, Opened};
use crate::report::style::{BOLD, DIM, GOOD, WARN, paint};
use crate::{plan, report};

/// Say why a node would run or not: which key, file, upstream output or code version changed.
#[derive(Args, Debug)]
pub struct WhyArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// A node, or a stage for all its nodes; default: all.
    #[arg(value_name = "NODE")]
    node: Option<String>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub fn why(args: &WhyArgs) -> Outcome {
    let opened = open::open_quietly(&args.recipe)?.0;
    let states = plan::states(&opened, &Selection::default())?;
    let chosen = choose(&opened, &states, args.node.as_deref())?;
    if args.json {
        report::json(&json!({ "nodes": chosen.iter().map(|state| as_json(state)).collect::<Vec<_>>() }));
    } else {
        report::print(&chosen.iter().map(|state| text(state)).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

fn choose<'a>(opened: &Opened, states: &'a [NodeState], node: Option<&str>) -> Result<Vec<&'a NodeState>, Failure> {
    let Some(node) = node else { return Ok(states.iter().collect()) };
    let names = opened.plan.select(node);
    if names.is_empty() {
        let known: Vec<&str> = states.iter().map(|state| state.node.as_str()).collect();
        return Err(Failure::invalid(format!("`{node}` names no node of this recipe; it has {}", known.join(", "))));
    }
    Ok(states.iter().filter(|state| names.contains(&state.node)).collect())
}

fn as_json(state: &NodeState) -> Value {
    json!({ "node": state.node, "state": state.state, "reason": state.reason, "causes": state.causes })
}

fn text(state: &NodeState) -> String {
    let (word, style) = match state.state {
        State::Cached => ("cached", GOOD),
        State::Run => ("runs", WARN),
    };
    let head = format!("{} {}", paint(BOLD, &state.node), paint(style, word));
    match state.causes.as_slice() {
        [] => format!("{head}  {}", paint(DIM, &state.reason)),
        [one] => format!("{head}  {}", one.clause()),
        many => {
            let lines = many.iter().map(|cause| format!("\n    {}", cause.clause()));
            head + &lines.collect::<String>()
        }
    }
}
