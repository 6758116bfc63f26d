//! A plan as text: each node, cached or to run and why, then what training will be and what memory it takes.

use pipe_engine::state::{NodeState, State};
use pipe_stages::memory::Estimate;
use serde_json::Value;

use super::counts;
use super::format::{bytes, clip, count, percent, plural};
use super::style::{BOLD, DIM, GOOD, WARN, paint};
use super::table::{Align, Column, Table};
use crate::open::Opened;
use crate::training::{Amount, Forecast, Rows, Steps};

pub fn render(opened: &Opened, states: &[NodeState], forecast: &Forecast, width: usize) -> String {
    let mut parts = vec![head(opened), table(states, &forecast.rows, width), tally(states)];
    parts.extend(mix_line(opened, states));
    parts.extend(training(opened, forecast));
    parts.extend(memory(opened, forecast));
    parts.join("\n")
}

/// `2,380`, or `~2,380` for an estimate.
pub fn amount(amount: Amount) -> String {
    format!("{}{}", if amount.exact { "" } else { "~" }, count(amount.n))
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

/// Characters from which a plan's table has room for reasons.
const ROOM_FOR_REASONS: usize = 60;

fn table(states: &[NodeState], rows: &Rows, width: usize) -> String {
    let columns = [
        Column { head: "node", align: Align::Left, drop: 0 },
        Column { head: "state", align: Align::Left, drop: 0 },
        Column { head: "rows", align: Align::Right, drop: 1 },
        Column { head: "tokens", align: Align::Right, drop: 2 },
        Column { head: "why", align: Align::Left, drop: 0 },
    ];
    let reasons = width >= ROOM_FOR_REASONS;
    let mut table = Table::new(if reasons { &columns } else { &columns[..4] });
    for state in states {
        let own = |numbers: &std::collections::HashMap<String, Amount>| {
            numbers.get(state.node.as_str()).copied().map(amount).unwrap_or_default()
        };
        let (word, why) = match state.state {
            State::Cached => ("cached", String::new()),
            State::Run => ("run", state.reason.clone()),
        };
        table.row(vec![state.node.to_string(), word.to_string(), own(&rows.rows), own(&rows.node_tokens), why]);
    }
    // Reasons give way to the window; then whole columns of numbers.
    let lines = table.lines(if reasons { usize::MAX } else { width });
    let coloured = lines.iter().enumerate().map(|(i, line)| {
        let line = clip(line, width);
        match i.checked_sub(1).and_then(|i| states.get(i)) {
            None => paint(DIM, line),
            Some(state) if state.state == State::Run => line.replacen(" run", &format!(" {}", paint(WARN, "run")), 1),
            Some(_) => line.replacen(" cached", &format!(" {}", paint(GOOD, "cached")), 1),
        }
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

/// What was mixed, where that is known; else what the recipe asks for.
fn mix_line(opened: &Opened, states: &[NodeState]) -> Option<String> {
    let pack = states.iter().find(|state| state.node.as_str() == "pack.train");
    let known = pack.and_then(|state| state.record.as_ref()).and_then(|record| record.summary.stats.get("mix"));
    if let Some(mix) = known {
        return Some(counts::mix_line(mix, &counts::mixed(&opened.plan)));
    }
    let asked = opened.recipe.mix.as_ref()?;
    let asked = serde_json::to_value(asked).unwrap_or_default();
    let set = asked.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let told: Vec<String> = set.map(|(name, value)| format!("{name} {}", value.to_string().replace('"', ""))).collect();
    Some(format!("mix: {}", told.join(", ")))
}

/// A block of lines: a heading with its first value, then names and values beneath.
fn block(heading: &str, first: &str, lines: &[(String, String)]) -> String {
    let mut out = format!("\n{} {first}", paint(BOLD, format!("{heading:<14}")));
    for (name, value) in lines {
        out.push_str(&format!("\n  {} {value}", paint(DIM, format!("{name:<12}"))));
    }
    out
}

fn training(opened: &Opened, forecast: &Forecast) -> Option<String> {
    if forecast.train.is_empty() {
        return None;
    }
    let mut lines = Vec::new();
    match &forecast.steps {
        Some(steps) => lines.extend(course(opened, forecast, steps)),
        None => {
            let sets = forecast.rows.unknown.join(", ");
            lines
                .push(("steps".to_string(), format!("known once {sets} has been read; nothing is fetched for a plan")));
        }
    }
    Some(block("training", &what(forecast), &lines))
}

/// What is trained, and how many numbers that is.
fn what(forecast: &Forecast) -> String {
    let kind = |path: &str| forecast.train.get(path).and_then(|value| value["kind"].as_str()).unwrap_or("");
    let name = match (kind("adapter"), kind("base")) {
        ("lora", "nf4" | "fp4") => "QLoRA (4-bit base)",
        ("lora", "int8") => "LoRA (8-bit base)",
        ("lora", _) => "LoRA",
        ("freeze", _) => "some of the weights",
        _ => "all weights",
    };
    match &forecast.estimate {
        Some(estimate) => {
            let share = estimate.trainable_parameters as f64 / estimate.parameters.max(1) as f64;
            let (trained, all) = (count(estimate.trainable_parameters), count(estimate.parameters));
            format!("{name}: {trained} of {all} parameters ({})", percent(share))
        }
        None => name.to_string(),
    }
}

fn course(opened: &Opened, forecast: &Forecast, steps: &Steps) -> Vec<(String, String)> {
    let rows = &forecast.rows;
    let number = |key: &str| {
        forecast.train.get("batching").and_then(|batching| batching.get(key)).and_then(Value::as_f64).unwrap_or(1.0)
    };
    let window = number("micro_batch") * number("accumulation");
    let mut data =
        format!("{} of {} tokens", sequences(steps.sequences), count(opened.recipe.sequence_len.unwrap_or(512)));
    if let Some(tokens) = rows.tokens {
        data.push_str(&format!("; {} tokens", amount(tokens)));
    }
    if let Some(trained) = rows.trained_tokens {
        data.push_str(&format!(", {} trained", amount(trained)));
    }
    let mark = if steps.sequences.exact { "" } else { "~" };
    let epochs = steps.total as f64 / steps.per_epoch.max(1) as f64;
    let epochs = (epochs * 100.0).round() / 100.0;
    let length = format!(
        "{mark}{}: {} {} of {mark}{}, {} to a step",
        count(steps.total),
        epochs,
        if epochs == 1.0 { "epoch" } else { "epochs" },
        count(steps.per_epoch),
        plural(window as u64, "sequence")
    );
    vec![
        ("data".to_string(), data),
        ("steps".to_string(), length),
        ("evaluates".to_string(), mark.to_string() + &steps.evaluations.told()),
        ("saves".to_string(), mark.to_string() + &steps.saves.told()),
    ]
    .into_iter()
    .map(|(name, value)| (name, value.replace("~never", "never")))
    .collect()
}

fn sequences(n: Amount) -> String {
    let noun = if n.n == 1 { "sequence" } else { "sequences" };
    format!("{} {noun}", amount(n))
}

fn memory(opened: &Opened, forecast: &Forecast) -> Option<String> {
    if forecast.train.is_empty() {
        return None;
    }
    let Some(estimate) = &forecast.estimate else {
        let model = opened.recipe.base_model.as_deref().unwrap_or("the base model");
        return Some(block(
            "memory",
            &format!("cannot be estimated: {model} is not on this machine, and"),
            &[(String::new(), "its shape is not known by its name".to_string())],
        ));
    };
    Some(block("memory", &format!("{} at peak (estimate)", bytes(estimate.total_bytes)), &parts(estimate)))
}

/// Memory by part; parts of no size are left out.
pub fn parts(estimate: &Estimate) -> Vec<(String, String)> {
    let told = [
        ("weights", estimate.weights_bytes, String::new()),
        ("adapter", estimate.adapter_bytes, String::new()),
        ("gradients", estimate.gradients_bytes, String::new()),
        ("optimizer", estimate.optimizer_bytes, String::new()),
        ("activations", estimate.activations_bytes, format!("{} tokens at once", count(estimate.chunk_tokens))),
        ("loss", estimate.loss_bytes, String::new()),
        ("libtorch", estimate.runtime_bytes, String::new()),
    ];
    let sized = told.into_iter().filter(|(_, size, _)| *size > 0);
    let mut lines: Vec<(String, String)> = sized
        .map(|(name, size, remark)| (name.to_string(), format!("{:>8}  {remark}", bytes(size)).trim_end().to_string()))
        .collect();
    if let Some(name) = &estimate.assumed_from_name {
        lines.push((String::new(), format!("assumed from the name {name}")));
    }
    lines
}
