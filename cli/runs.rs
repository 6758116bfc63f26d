//! `pipe runs`: what past runs did.

use clap::Args;
use pipe_engine::event::{Event, NodeOutcome};
use pipe_engine::runs::{self, Run};
use pipe_engine::store::Store;
use serde_json::{Value, json};

use crate::args::StoreArgs;
use crate::failure::{Failure, Outcome};
use crate::report::format::{bytes, count, measure, seconds};
use crate::report::style::{BOLD, DIM, paint};
use crate::report::table::{Align, Column, Table};
use crate::{open, report};

/// Past runs: stages, times, cache hits, metrics.
#[derive(Args, Debug)]
pub struct RunsArgs {
    /// A run's id, its start or its end; `last` is the latest. Default: list all.
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn runs(args: &RunsArgs) -> Outcome {
    let store = Store::peek(open::store_here(&args.store));
    match &args.run {
        None => list(&store, args.json),
        Some(id) => one(&store, id, args.json)?,
    }
    Ok(())
}

fn list(store: &Store, as_json: bool) {
    let runs = runs::list(store);
    if as_json {
        return report::json(&json!({ "runs": runs }));
    }
    if runs.is_empty() {
        return report::note(&format!("no runs in {}", store.root().display()));
    }
    let mut table = Table::new(&[
        Column { head: "run", align: Align::Left, drop: 0 },
        Column { head: "recipe", align: Align::Left, drop: 1 },
        Column { head: "result", align: Align::Left, drop: 0 },
        Column { head: "run", align: Align::Right, drop: 3 },
        Column { head: "cached", align: Align::Right, drop: 3 },
        Column { head: "time", align: Align::Right, drop: 2 },
    ]);
    for run in &runs {
        let finished = run.finished.as_ref().map(|finished| &finished.result);
        table.row(vec![
            run.id.clone(),
            run.about.recipe.clone(),
            result(run).to_string(),
            finished.map(|result| result.executed.len().to_string()).unwrap_or_default(),
            finished.map(|result| result.cached.len().to_string()).unwrap_or_default(),
            finished.map(|result| seconds(result.seconds)).unwrap_or_default(),
        ]);
    }
    report::print(&table.lines(report::width()).join("\n"));
}

fn one(store: &Store, id: &str, as_json: bool) -> Outcome {
    let run = find(store, id)?;
    if as_json {
        let mut value = serde_json::to_value(&run).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("metrics".to_string(), Value::Array(metrics(store, &run.id)));
        }
        report::json(&value);
        return Ok(());
    }
    report::print(&text(store, &run));
    Ok(())
}

/// The run that a user names.
pub fn find(store: &Store, id: &str) -> Result<Run, Failure> {
    let missing = || Failure::invalid(format!("there is no run `{id}` in {}", store.root().display()));
    runs::find(store, id).ok_or_else(|| missing().hint("pipe runs lists them"))
}

/// How a run ended, in a word.
pub fn result(run: &Run) -> &'static str {
    match &run.finished {
        None if run.live => "running",
        None => "killed",
        Some(finished) if finished.interrupted => "interrupted",
        Some(finished) if finished.result.ok => "done",
        Some(_) => "failed",
    }
}

fn metrics(store: &Store, id: &str) -> Vec<Value> {
    let events = runs::events(store, id).into_iter();
    let kept = events.filter(|stamped| matches!(stamped.event, Event::Metric { .. } | Event::Eval { .. }));
    kept.filter_map(|stamped| serde_json::to_value(stamped).ok()).collect()
}

fn text(store: &Store, run: &Run) -> String {
    let line = |name: &str, value: String| format!("{} {value}", paint(DIM, format!("{name:<8}")));
    let machine = &run.machine;
    let mut lines = vec![
        line("run", paint(BOLD, &run.id)),
        line("recipe", run.about.recipe.clone()),
        line("started", run.started.clone()),
        line("result", result(run).to_string()),
        line("machine", format!("{}, {} cores, {}", machine.cpu, machine.cores, bytes(machine.memory_bytes))),
    ];
    if let Some(finished) = &run.finished {
        lines.push(line("time", seconds(finished.result.seconds)));
        lines.push(String::new());
        lines.extend(nodes(&finished.nodes));
        let failures = finished.failures.iter();
        lines.extend(failures.map(|failure| format!("{} failed: {}", failure.node, failure.error)));
    }
    lines.extend(loss_line(store, &run.id));
    lines.join("\n")
}

fn nodes(finished: &[pipe_engine::event::NodeFinished]) -> Vec<String> {
    let mut table = Table::new(&[
        Column { head: "node", align: Align::Left, drop: 0 },
        Column { head: "", align: Align::Left, drop: 0 },
        Column { head: "rows", align: Align::Right, drop: 2 },
        Column { head: "time", align: Align::Right, drop: 0 },
        Column { head: "memory", align: Align::Right, drop: 1 },
        Column { head: "read", align: Align::Right, drop: 3 },
        Column { head: "written", align: Align::Right, drop: 3 },
    ]);
    for node in finished {
        let executed = node.outcome == NodeOutcome::Executed;
        table.row(vec![
            node.node.to_string(),
            if executed { "run" } else { "cached" }.to_string(),
            node.rows.map(count).unwrap_or_default(),
            if executed { seconds(node.seconds) } else { String::new() },
            if executed && node.peak_rss_bytes > 0 { bytes(node.peak_rss_bytes) } else { String::new() },
            if executed { bytes(node.bytes_read) } else { String::new() },
            if executed { bytes(node.bytes_written) } else { String::new() },
        ]);
    }
    table.lines(report::width())
}

fn loss_line(store: &Store, id: &str) -> Option<String> {
    let losses: Vec<f64> = runs::events(store, id)
        .into_iter()
        .filter_map(|stamped| match stamped.event {
            Event::Metric { loss, .. } => Some(loss),
            _ => None,
        })
        .collect();
    let (first, last) = (losses.first()?, losses.last()?);
    Some(format!(
        "\ntraining loss {} at the first of {} steps, {} at the last",
        measure(*first),
        losses.len(),
        measure(*last)
    ))
}
