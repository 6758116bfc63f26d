//! `pipe why`: why a node would run or not.

use clap::Args;
use pipe_engine::plan::NodeName;
use pipe_engine::state::{NodeState, Selection, State};
use pipe_engine::why::{Cause, CauseKind};
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
        report::json(&json!({ "nodes": chosen.iter().map(|state| as_json(state, &states)).collect::<Vec<_>>() }));
    } else {
        // Of a whole recipe the nodes that only follow others are named where the cause is.
        let own = |state: &&&NodeState| args.node.is_some() || !follows(state);
        report::print(&chosen.iter().filter(own).map(|state| text(state, &states)).collect::<Vec<_>>().join("\n"));
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

fn as_json(state: &NodeState, states: &[NodeState]) -> Value {
    let roots: Vec<_> = roots(state, states).into_iter().map(|root| &root.node).collect();
    let below = below(state, states);
    let (node, word, reason, causes) = (&state.node, state.state, &state.reason, &state.causes);
    json!({ "node": node, "state": word, "reason": reason, "causes": causes, "because_of": roots, "below": below })
}

fn text(state: &NodeState, states: &[NodeState]) -> String {
    let (word, style) = match state.state {
        State::Cached => ("cached", GOOD),
        State::Run => ("runs", WARN),
    };
    let mut lines = vec![format!("{} {}", paint(BOLD, &state.node), paint(style, word))];
    match state.causes.as_slice() {
        [] => lines[0].push_str(&format!("  {}", paint(DIM, &state.reason))),
        [one] => lines[0].push_str(&format!("  {}", one.clause())),
        many => lines.extend(many.iter().map(|cause| format!("    {}", cause.clause()))),
    }
    for root in roots(state, states) {
        lines.push(format!("    because {} runs: {}", root.node, root.reason));
    }
    let below: Vec<&str> = below(state, states).iter().map(|node| node.as_str()).collect();
    if !below.is_empty() && !follows(state) {
        let told = format!("    and below it, unless equal bytes come out: {}", below.join(", "));
        lines.push(paint(DIM, told));
    }
    lines.join("\n")
}

/// Whether it runs for no reason of its own.
fn follows(state: &NodeState) -> bool {
    !state.causes.is_empty() && state.causes.iter().all(waits)
}

/// A node above has yet to run.
fn waits(cause: &Cause) -> bool {
    cause.kind == CauseKind::Upstream && cause.before.is_null() && cause.after.is_null()
}

/// The nodes above with reasons of their own that this one waits for.
fn roots<'a>(state: &'a NodeState, states: &'a [NodeState]) -> Vec<&'a NodeState> {
    let mut passed = vec![state];
    let mut at = 0;
    while let Some(node) = passed.get(at).copied() {
        at += 1;
        for cause in node.causes.iter().filter(|cause| waits(cause)) {
            let above = states.iter().find(|above| above.node.as_str() == cause.what);
            passed.extend(above.filter(|above| passed.iter().all(|known| known.node != above.node)));
        }
    }
    passed.into_iter().skip(1).filter(|above| !follows(above)).collect()
}

/// The nodes that run, or may, because this one does; in the order of the plan.
fn below<'a>(state: &'a NodeState, states: &'a [NodeState]) -> Vec<&'a NodeName> {
    let mut chain = vec![&state.node];
    if state.state == State::Run {
        for next in states.iter().filter(|next| next.state == State::Run) {
            if next.inputs.iter().any(|input| chain.contains(&input)) {
                chain.push(&next.node);
            }
        }
    }
    chain.split_off(1)
}
