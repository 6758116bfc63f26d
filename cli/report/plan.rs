//! A plan as a table: each node, cached or to run and why, then what training will be.

use pipe_engine::state::{NodeState, State};

use super::format::{bytes, count};
use super::style::{BOLD, DIM, GOOD, WARN, paint};
use super::table::{Align, Column, Table};
use crate::open::Opened;
use crate::training::Forecast;

pub fn render(opened: &Opened, states: &[NodeState], training: &Forecast, width: usize) -> String {
    let mut parts = vec![head(opened), table(states, width), tally(states)];
    parts.extend(train_line(training));
    parts.extend(memory_line(training));
    parts.join("\n")
}

fn head(opened: &Opened) -> String {
    let line = |name: &str, value: String| format!("{} {value}", paint(DIM, format!("{name:<8}")));
    let lines = [
        line("recipe", opened.path.display().to_string()),
        line("project", opened.project.root.display().to_string()),
        line("store", opened.store_folder.display().to_string()),
    ];
    lines.join("\n") + "\n"
}

fn table(states: &[NodeState], width: usize) -> String {
    let mut table = Table::new(&[
        Column { head: "node", align: Align::Left, drop: 0 },
        Column { head: "state", align: Align::Left, drop: 0 },
        Column { head: "rows", align: Align::Right, drop: 1 },
        Column { head: "why", align: Align::Left, drop: 0 },
    ]);
    for state in states {
        let rows = state.record.as_ref().and_then(|record| record.summary.rows);
        let word = match state.state {
            State::Cached => "cached",
            State::Run => "run",
        };
        table.row(vec![
            state.node.to_string(),
            word.to_string(),
            rows.filter(|_| state.state == State::Cached).map(count).unwrap_or_default(),
            if state.state == State::Run { state.reason.clone() } else { String::new() },
        ]);
    }
    let lines = table.lines(width);
    let coloured = lines.iter().enumerate().map(|(i, line)| match i.checked_sub(1).and_then(|i| states.get(i)) {
        None => paint(DIM, line),
        Some(state) if state.state == State::Run => line.replacen(" run ", &format!(" {} ", paint(WARN, "run")), 1),
        Some(_) => line.replacen(" cached", &format!(" {}", paint(GOOD, "cached")), 1),
    });
    coloured.collect::<Vec<_>>().join("\n") + "\n"
}

fn tally(states: &[NodeState]) -> String {
    let run = states.iter().filter(|state| state.state == State::Run).count();
    match run {
        0 => format!("{}: all {} nodes are cached", paint(GOOD, "nothing to do"), states.len()),
        _ => format!("{}, {} cached", paint(BOLD, format!("{run} to run")), states.len() - run),
    }
}

fn train_line(training: &Forecast) -> Option<String> {
    let steps = training.steps()?;
    let sequences = training.train.get("sequences").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let tokens = training.train.get("tokens").and_then(serde_json::Value::as_u64);
    let tokens = tokens.map(|tokens| format!(", {} tokens", count(tokens))).unwrap_or_default();
    Some(format!("training: {} optimizer steps over {} sequences{tokens}", count(steps), count(sequences)))
}

fn memory_line(training: &Forecast) -> Option<String> {
    let part = |name: &str| training.memory.get(name).and_then(serde_json::Value::as_u64);
    let peak = part("peak_bytes")?;
    let parts = [
        ("weights", "weights_bytes"),
        ("adapter", "adapter_bytes"),
        ("optimizer", "optimizer_bytes"),
        ("activations", "activations_bytes"),
    ];
    let told: Vec<String> =
        parts.iter().filter_map(|(name, key)| Some(format!("{name} {}", bytes(part(key)?)))).collect();
    Some(format!("memory (estimate): {} at peak: {}", bytes(peak), told.join(", ")))
}
