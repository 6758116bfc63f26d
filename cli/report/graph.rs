//! Plans as graphs for other programs to draw. Nodes say their rows; those to run are filled, cached ones are not.

use pipe_engine::state::{NodeState, State};

use super::plan::amount;
use crate::training::Rows;

/// Graphviz.
pub fn dot(states: &[NodeState], rows: &Rows) -> String {
    let mut out =
        String::from("digraph plan {\n  rankdir=LR;\n  node [shape=box, style=\"rounded,filled\", fillcolor=white];\n");
    for state in states {
        let fill = if state.state == State::Run { ", fillcolor=lightyellow" } else { "" };
        let label = quoted(&label(state, rows, "\n"));
        let tip = quoted(if state.state == State::Run { &state.reason } else { "cached" });
        out.push_str(&format!("  {} [label={label}, tooltip={tip}{fill}];\n", quoted(state.node.as_str())));
    }
    for (from, to) in edges(states) {
        out.push_str(&format!("  {} -> {};\n", quoted(&from), quoted(&to)));
    }
    out + "}\n"
}

/// Mermaid.
pub fn mermaid(states: &[NodeState], rows: &Rows) -> String {
    let id = |name: &str| states.iter().position(|state| state.node.as_str() == name).map(|i| format!("n{i}"));
    let mut out = String::from("flowchart LR\n");
    for (i, state) in states.iter().enumerate() {
        let class = if state.state == State::Run { "run" } else { "cached" };
        // Mermaid ends a label at a quotation mark.
        let label = label(state, rows, "<br/>").replace('"', "#quot;");
        out.push_str(&format!("  n{i}[\"{label}\"]:::{class}\n"));
    }
    for (from, to) in edges(states) {
        if let (Some(from), Some(to)) = (id(&from), id(&to)) {
            out.push_str(&format!("  {from} --> {to}\n"));
        }
    }
    out + "  classDef run fill:#ffd,stroke:#aa0\n  classDef cached fill:#fff,stroke:#999\n"
}

fn label(state: &NodeState, rows: &Rows, newline: &str) -> String {
    match rows.rows.get(state.node.as_str()) {
        Some(n) => format!("{}{newline}{} rows", state.node, amount(*n)),
        None => state.node.to_string(),
    }
}

/// A string of Graphviz' language.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Each wire once, though a node may read several files of another.
fn edges(states: &[NodeState]) -> Vec<(String, String)> {
    let wires =
        states.iter().flat_map(|state| state.inputs.iter().map(|from| (from.to_string(), state.node.to_string())));
    let mut edges: Vec<(String, String)> = Vec::new();
    for wire in wires {
        if !edges.contains(&wire) {
            edges.push(wire);
        }
    }
    edges
}
