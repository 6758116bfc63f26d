//! A run's record and what it left in the store, as the facts of a page. Reads only; what is gone is left out.

use std::collections::HashMap;
use std::path::PathBuf;

use indexmap::IndexMap;
use pipe_engine::event::{Event, NodeFinished, NodeOutcome, Stamped};
use pipe_engine::plan::NodeName;
use pipe_engine::runs::{self, Run};
use pipe_engine::store::Store;
use pipe_stages::recipe::{Recipe, ReportSection};
use serde_json::Value;

use super::facts::{Dataset, Node, Outcome, Pack, Page, Settings, Tile};
use super::{lineage, measures, rows};
use crate::report::agreement;
use crate::report::counts;
use crate::report::format::{bytes, count, measure, percent, plural, seconds};

/// A recorded run with its events, and the store it lies in.
pub struct Source<'a> {
    pub store: &'a Store,
    pub run: &'a Run,
    pub events: Vec<Stamped>,
    /// The recipe as it was resolved then, if this version still reads it.
    pub recipe: Option<Recipe>,
}

impl<'a> Source<'a> {
    pub fn of(store: &'a Store, run: &'a Run) -> Source<'a> {
        let resolved = run.about.document.get("resolved").cloned().unwrap_or_default();
        let recipe = serde_json::from_value(resolved).ok();
        Source { store, run, events: runs::events(store, &run.id), recipe }
    }

    /// The nodes that have an output, in the order in which they got it.
    pub fn finished(&self) -> impl Iterator<Item = &NodeFinished> {
        self.events.iter().filter_map(|stamped| match &stamped.event {
            Event::NodeFinished(finished) => Some(finished.as_ref()),
            _ => None,
        })
    }

    pub fn node(&self, name: &str) -> Option<&NodeFinished> {
        self.finished().find(|node| node.node.as_str() == name)
    }

    /// Where a node's output is; `None` when it was given up since.
    pub fn output(&self, node: &NodeFinished) -> Option<PathBuf> {
        Some(self.store.object(node.output)).filter(|folder| folder.is_dir())
    }

    pub fn section(&self) -> ReportSection {
        let toggle = self.recipe.as_ref().and_then(|recipe| recipe.report.as_ref());
        toggle.and_then(|toggle| toggle.on()).cloned().unwrap_or_default()
    }
}

/// The facts of a run, with what `rows` tells of its rows.
pub fn page(source: &Source<'_>, told: rows::Told) -> Page {
    let section = source.section();
    let nodes = nodes(source);
    let training = measures::Training::of(source);
    let mut page = Page {
        title: title(source.run),
        run: source.run.id.clone(),
        recipe: source.run.about.recipe.clone(),
        started: started(source.run),
        result: crate::runs::result(source.run).to_string(),
        graph: lineage::drawing(&nodes),
        failures: failures(source),
        warnings: warnings(source),
        datasets: datasets(source),
        packs: packs(source),
        told: row_counts(source),
        lengths: told.lengths,
        roles: told.roles,
        rows: told.rows,
        charts: training.charts(),
        scores: measures::scores(source),
        agreements: agreement::agreements(&source.finished().cloned().collect::<Vec<_>>()),
        answers: measures::answers(source, section.samples.unwrap_or(3) as usize),
        developing: training.samples.developing(),
        variety: training.samples.chart(),
        environment: environment(source),
        settings: settings(source),
        ..Page::default()
    };
    page.tiles = tiles(source, &training);
    page.nodes = nodes;
    page
}

/// What the recipe calls its report, else the recipe's own name.
pub fn title(run: &Run) -> String {
    let recipe = &run.about.recipe;
    let title = run.about.document.pointer("/resolved/report/title").and_then(Value::as_str).map(str::to_string);
    let stem = || Some(std::path::Path::new(recipe).file_stem()?.to_string_lossy().into_owned());
    title.or_else(stem).unwrap_or_else(|| recipe.clone())
}

/// `2026-11-28 17:24:46 UTC`.
pub fn started(run: &Run) -> String {
    let whole = run.started.split('.').next().unwrap_or(&run.started);
    format!("{} UTC", whole.trim_end_matches('Z').replace('T', " "))
}

fn nodes(source: &Source<'_>) -> Vec<Node> {
    let mut nodes: IndexMap<&str, Node> = IndexMap::new();
    for planned in &source.run.plan {
        let node = Node {
            name: planned.node.to_string(),
            stage: planned.stage.clone(),
            version: planned.version.clone(),
            inputs: planned.inputs.iter().map(ToString::to_string).collect(),
            ..Node::default()
        };
        nodes.insert(planned.node.as_str(), node);
    }
    for stamped in &source.events {
        match &stamped.event {
            Event::NodeStarted { node, reason } => {
                if let Some(node) = nodes.get_mut(node.as_str()) {
                    (node.outcome, node.reason) = (Outcome::Running, reason.clone());
                }
            }
            Event::NodeFinished(done) => {
                if let Some(node) = nodes.get_mut(done.node.as_str()) {
                    finish(node, done);
                }
            }
            Event::NodeFailed { node, .. } => set(&mut nodes, node.as_str(), Outcome::Failed),
            Event::NodeSkipped { node, .. } => set(&mut nodes, node.as_str(), Outcome::Skipped),
            _ => {}
        }
    }
    let mut nodes: Vec<Node> = nodes.into_values().collect();
    if !source.run.live {
        // Whatever had begun when the run ended is no longer at work.
        nodes.iter_mut().filter(|n| n.outcome == Outcome::Running).for_each(|n| n.outcome = Outcome::Skipped);
    }
    nodes.iter_mut().for_each(|node| node.word = node.outcome.word());
    let longest = nodes.iter().map(|node| node.seconds).fold(0.0, f64::max);
    nodes.iter_mut().for_each(|node| node.share = if longest > 0.0 { node.seconds / longest } else { 0.0 });
    nodes
}

fn set(nodes: &mut IndexMap<&str, Node>, name: &str, outcome: Outcome) {
    if let Some(node) = nodes.get_mut(name) {
        node.outcome = outcome;
    }
}

fn finish(node: &mut Node, done: &NodeFinished) {
    let executed = done.outcome == NodeOutcome::Executed;
    node.outcome = if executed { Outcome::Executed } else { Outcome::Cached };
    node.rows = done.rows;
    node.rows_reused = done.rows_reused.filter(|&n| n > 0);
    node.key = done.key.to_string();
    if executed {
        node.seconds = done.seconds;
        node.peak_rss_bytes = done.peak_rss_bytes;
    }
}

fn failures(source: &Source<'_>) -> Vec<(String, String)> {
    let failed = source.events.iter().filter_map(|stamped| match &stamped.event {
        Event::NodeFailed { node, error, hint } => {
            let hint = hint.as_ref().map(|hint| format!("\n{hint}")).unwrap_or_default();
            Some((node.to_string(), format!("{error}{hint}")))
        }
        _ => None,
    });
    failed.collect()
}

/// Warnings of nodes, each once: the event as it happened, and again with the finished node.
fn warnings(source: &Source<'_>) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for stamped in &source.events {
        let said: Vec<(String, String)> = match &stamped.event {
            Event::Warning { node, message } => vec![(node.to_string(), message.clone())],
            Event::NodeFinished(done) => done.warnings.iter().map(|w| (done.node.to_string(), w.clone())).collect(),
            _ => Vec::new(),
        };
        for warning in said {
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }
    all
}

fn datasets(source: &Source<'_>) -> Vec<Dataset> {
    let labels = source.run.plan.iter().filter(|node| node.stage == "ingest").map(|node| node.node.as_str());
    let labels = labels.filter_map(|name| name.split_once('.').map(|(_, label)| label));
    let dataset = |label: &str| {
        let node = |stage: &str| source.node(&format!("{stage}.{label}"));
        let rows = |stage: &str| node(stage).and_then(|node| node.rows);
        let stat = |stage: &str, name: &str| node(stage).and_then(|node| node.stats.get(name)?.as_u64());
        Dataset {
            label: label.to_string(),
            read: rows("ingest"),
            kept: rows("clean"),
            train: rows("augment").or(stat("split", "train")),
            val: stat("split", "val"),
            test: stat("split", "test"),
            tokens: stat("tokenize", "tokens"),
            trained_tokens: stat("tokenize", "trained_tokens"),
        }
    };
    labels.map(dataset).collect()
}

fn packs(source: &Source<'_>) -> Vec<Pack> {
    let packs = source.run.plan.iter().filter(|node| node.stage == "pack");
    let packs = packs.filter_map(|planned| source.node(planned.node.as_str()));
    let pack = |node: &NodeFinished| {
        let stat = |name: &str| node.stats.get(name).and_then(Value::as_u64);
        let dropped = node.stats.iter().filter(|(name, _)| name.starts_with("dropped_"));
        Pack {
            split: node.node.as_str().trim_start_matches("pack.").to_string(),
            sequences: node.rows,
            rows: stat("rows"),
            tokens: stat("tokens"),
            trained_tokens: stat("trained_tokens"),
            fill: node.stats.get("fill").and_then(Value::as_f64),
            dropped: dropped.filter_map(|(_, n)| n.as_u64()).sum(),
        }
    };
    packs.map(pack).collect()
}

/// What nodes dropped, changed and added, in the words of the closing summary.
fn row_counts(source: &Source<'_>) -> Vec<(String, String)> {
    let pack = source.run.plan.iter().find(|node| node.node.as_str() == "pack.train");
    let mixed = pack.iter().flat_map(|node| &node.inputs).map(|input| input.as_str());
    let mixed: Vec<String> =
        mixed.map(|name| name.split_once('.').map_or(name, |(_, label)| label).to_string()).collect();
    let told = source.finished().map(|node| (node.node.to_string(), counts::line(&node.stats, &mixed)));
    let told = told.map(|(node, line)| (node, anstream::adapter::strip_str(&line).to_string()));
    told.filter(|(_, line)| !line.is_empty()).collect()
}

/// The numbers worth seeing first.
pub fn tiles(source: &Source<'_>, training: &measures::Training) -> Vec<Tile> {
    let tile = |name: &str, value: String, note: String| Tile { name: name.to_string(), value, note };
    let mut tiles = Vec::new();
    if let Some(finished) = &source.run.finished {
        let result = &finished.result;
        let note = format!("{} run, {} reused", result.executed.len(), result.cached.len());
        tiles.push(tile("time", seconds(result.seconds), note));
    } else {
        let done = source.finished().count();
        tiles.push(tile("nodes", format!("{done} of {}", source.run.plan.len()), "have their output".to_string()));
        tiles.extend(at_work(source).filter(|_| source.run.live));
    }
    if let Some((first, last, steps)) = training.loss() {
        let note = format!("from {}, mean of the last {}", measure(first), plural(steps, "step"));
        tiles.push(tile("training loss", measure(last), note));
    }
    if let Some((split, loss)) = training.evaluated() {
        tiles.push(tile(&format!("{split} loss"), measure(loss), format!("perplexity {}", measure(loss.exp()))));
    }
    tiles.extend(measures::headline(source.finished()).map(|(name, tuned, base)| {
        let note = base.map(|base| format!("{} before", percent(base))).unwrap_or_default();
        tile(&name, percent(tuned), note)
    }));
    let fact = |name: &str| source.node("train").and_then(|node| node.stats.get(name)?.as_f64());
    if let (Some(trained), Some(all)) = (fact("trainable_parameters"), fact("total_parameters")) {
        let note = format!("{} of {}", percent(trained / all.max(1.0)), count(all as u64));
        tiles.push(tile("trained parameters", count(trained as u64), note));
    }
    let executed = source.finished().filter(|node| node.outcome == NodeOutcome::Executed);
    if let Some(node) = executed.max_by_key(|node| node.peak_rss_bytes).filter(|node| node.peak_rss_bytes > 0) {
        tiles.push(tile("peak memory", bytes(node.peak_rss_bytes), format!("in {}", node.node)));
    }
    tiles
}

/// How far the node is that was last heard of.
fn at_work(source: &Source<'_>) -> Option<Tile> {
    let tile = |node: &NodeName, value: String, note: String| Tile { name: node.to_string(), value, note };
    source.events.iter().rev().find_map(|stamped| match &stamped.event {
        Event::Metric { node, step, total_steps, eta_seconds, .. } => {
            let left = if *eta_seconds > 0.0 { format!("about {} left", seconds(*eta_seconds)) } else { String::new() };
            Some(tile(node, format!("step {} of {}", count(*step), count(*total_steps)), left))
        }
        Event::NodeProgress { node, done, total, unit } => {
            let value = if *total > 0 { format!("{} of {}", count(*done), count(*total)) } else { count(*done) };
            Some(tile(node, value, unit.clone()))
        }
        Event::NodeStarted { node, .. } => Some(tile(node, "begun".to_string(), String::new())),
        _ => None,
    })
}

fn environment(source: &Source<'_>) -> Vec<(String, String)> {
    let (run, machine) = (source.run, &source.run.machine);
    let mut rows = vec![
        ("run".to_string(), run.id.clone()),
        ("recipe".to_string(), run.about.recipe.clone()),
        ("started".to_string(), started(run)),
    ];
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push((name.to_string(), value));
        }
    };
    add("system", format!("{}, {}", machine.os, machine.arch));
    add("processor", machine.cpu.clone());
    add("cores", machine.cores.to_string());
    add("memory", bytes(machine.memory_bytes));
    add("pipe", run.about.document.get("version").and_then(Value::as_str).unwrap_or_default().to_string());
    // What can change a stage's bytes is part of its version: `5+libtorch-2.13.0.k2`.
    let mut libraries: HashMap<&str, &str> = HashMap::new();
    for (_, library) in run.plan.iter().filter_map(|node| node.version.split_once('+')) {
        if let Some((name, version)) = library.split_once('-') {
            libraries.insert(name, version);
        }
    }
    let mut libraries: Vec<_> = libraries.into_iter().collect();
    libraries.sort_unstable();
    libraries.into_iter().for_each(|(name, version)| add(name, version.to_string()));
    if let Some(model) = source.recipe.as_ref().and_then(|recipe| recipe.base_model.clone()) {
        add("base model", model);
    }
    rows
}

fn settings(source: &Source<'_>) -> Settings {
    let document = &source.run.about.document;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let list = |name: &str| {
        let items = document.get(name).and_then(Value::as_array);
        items.map(|items| items.iter().map(text).collect()).unwrap_or_default()
    };
    let train = source.run.plan.iter().find(|node| node.stage == "train");
    let mut settings = Settings {
        recipe: document.get("recipe").map(text).unwrap_or_default(),
        set: list("set"),
        sources: list("sources"),
        ..Settings::default()
    };
    if let Some(train) = train {
        flatten("", &train.params, &mut settings.train);
    }
    settings
}

/// A configuration as dotted keys; what is null or empty is left out.
pub fn flatten(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            flatten(&path, value, out);
        }),
        Value::Null => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) if items.iter().all(Value::is_object) => {
            items.iter().enumerate().for_each(|(i, item)| flatten(&format!("{path}[{i}]"), item, out));
        }
        Value::String(text) => out.push((path.to_string(), text.clone())),
        other => out.push((path.to_string(), other.to_string())),
    }
}
