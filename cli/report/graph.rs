//! Plans as graphs for other programs to draw.

use pipe_engine::state::{NodeState, State};

/// Graphviz; nodes to run are filled.
pub fn dot(states: &[NodeState]) -> String {
    let mut out =
        String::from("digraph plan {\n  rankdir=LR;\n  node [shape=box, style=\"rounded,filled\", fillcolor=white];\n");
    for state in states {
        let fill = if state.state == State::Run { ", fillcolor=lightyellow" } else { "" };
        let tip = state.reason.replace('\\', "\\\\").replace('"', "\\\"");
        out.push_str(&format!("  \"{}\" [tooltip=\"{tip}\"{fill}];\n", state.node));
    }
    for (from, to) in edges(states) {
        out.push_str(&format!("  \"{from}\" -> \"{to}\";\n"));
    }
    out + "}\n"
}

/// Mermaid; nodes to run have the class `run`.
pub fn mermaid(states: &[NodeState]) -> String {
    let id = |name: &str| states.iter().position(|state| state.node.as_str() == name).map(|i| format!("n{i}"));
    let mut out = String::from("flowchart LR\n");
    for (i, state) in states.iter().enumerate() {
        let class = if state.state == State::Run { ":::run" } else { "" };
        out.push_str(&format!("  n{i}[\"{}\"]{class}\n", state.node));
    }
    for (from, to) in edges(states) {
        if let (Some(from), Some(to)) = (id(&from), id(&to)) {
            out.push_str(&format!("  {from} --> {to}\n"));
        }
    }
    out + "  classDef run fill:#ffd\n"
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
