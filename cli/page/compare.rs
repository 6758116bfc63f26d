//! Runs beside each other: curves over each other, measures and settings in columns; and the list to choose them from.

use indexmap::IndexMap;
use pipe_engine::runs::{self, Run};
use pipe_engine::store::Store;
use serde_json::Value;

use super::chart::COLOURS;
use super::facts::{ComparedRun, Comparison, ListedRun, Runs};
use super::gather::{self, Source, flatten};
use super::measures::{self, Training};
use crate::report::format::percent;

/// What a run says in each row of a table.
type Rows<T> = IndexMap<String, T>;

/// The runs of a store.
pub fn listed(store: &Store) -> Runs {
    let runs = runs::list(store).into_iter().rev().map(listed_run).collect();
    Runs { store: store.root().display().to_string(), runs }
}

fn listed_run(run: Run) -> ListedRun {
    let finished = run.finished.as_ref();
    let headline = finished.and_then(|finished| measures::headline(&finished.nodes));
    let nodes = finished.map(|finished| {
        let result = &finished.result;
        let parts = [(result.executed.len(), "run"), (result.cached.len(), "reused"), (result.failed.len(), "failed")];
        let told = parts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}"));
        told.collect::<Vec<_>>().join(", ")
    });
    ListedRun {
        title: gather::title(&run),
        started: gather::started(&run),
        result: crate::runs::result(&run).to_string(),
        nodes: nodes.unwrap_or_default(),
        seconds: finished.map(|finished| finished.result.seconds),
        measure: headline.map(|(name, tuned, _)| (name, percent(tuned))),
        id: run.id,
        recipe: run.about.recipe,
    }
}

/// Compares runs, in their order.
pub fn comparison(store: &Store, runs: &[Run]) -> Comparison {
    let sources: Vec<Source<'_>> = runs.iter().map(|run| Source::of(store, run)).collect();
    let trainings: Vec<(String, Training)> =
        sources.iter().map(|source| (name(source.run), Training::of(source))).collect();
    let run = |(at, run): (usize, &Run)| ComparedRun {
        id: run.id.clone(),
        name: name(run),
        recipe: run.about.recipe.clone(),
        started: gather::started(run),
        result: crate::runs::result(run).to_string(),
        colour: at % COLOURS,
    };
    let measured = sources.iter().zip(&trainings).map(|(source, (_, training))| measured(source, training));
    Comparison {
        runs: runs.iter().enumerate().map(run).collect(),
        measures: side_by_side(measured.collect()),
        keys: differing(runs.iter().map(keys).collect()),
        stages: differing(runs.iter().map(stages).collect()),
        charts: measures::compared(&trainings),
    }
}

/// What tells runs of one recipe apart: the title and the end of the id.
fn name(run: &Run) -> String {
    let tail = run.id.rsplit('-').next().unwrap_or(&run.id);
    format!("{} {tail}", gather::title(run))
}

/// What a run's page says first, then evaluation's measures of the last model, which is the tuned one.
fn measured(source: &Source<'_>, training: &Training) -> Rows<(String, String)> {
    let tiles = gather::tiles(source, training).into_iter();
    let mut rows: Rows<_> = tiles.map(|tile| (tile.name, (tile.value, tile.note))).collect();
    for row in measures::scores(source).rows {
        rows.insert(format!("{} ({})", row.measure, row.split), row.cells.last().cloned().unwrap_or_default());
    }
    rows
}

/// The recipe as it was resolved, by dotted key.
fn keys(run: &Run) -> Rows<String> {
    let mut keys = Vec::new();
    flatten("", run.about.document.get("resolved").unwrap_or(&Value::Null), &mut keys);
    keys.into_iter().collect()
}

/// The configuration of every stage, by node and dotted key.
fn stages(run: &Run) -> Rows<String> {
    let mut all = Vec::new();
    for node in &run.plan {
        let mut own = vec![("version".to_string(), node.version.clone())];
        flatten("", &node.params, &mut own);
        all.extend(own.into_iter().map(|(key, value)| (format!("{}: {key}", node.node), value)));
    }
    all.into_iter().collect()
}

fn differing(runs: Vec<Rows<String>>) -> Vec<(String, Vec<String>)> {
    let mut rows = side_by_side(runs);
    rows.retain(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1]));
    rows
}

/// Every name that any run has, with each run's value.
fn side_by_side<T: Clone + Default>(runs: Vec<Rows<T>>) -> Vec<(String, Vec<T>)> {
    let mut names: Rows<()> = IndexMap::new();
    for run in &runs {
        names.extend(run.keys().map(|name| (name.clone(), ())));
    }
    let values = |name: &String| runs.iter().map(|run| run.get(name).cloned().unwrap_or_default()).collect();
    names.into_keys().map(|name| (name.clone(), values(&name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_has_a_place_for_every_run() {
        let run = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let told = differing(vec![run(&[("a", "1"), ("same", "x")]), run(&[("b", "2"), ("a", "3"), ("same", "x")])]);
        let row = |name: &str, values: [&str; 2]| (name.to_string(), values.map(str::to_string).to_vec());
        assert_eq!(told, [row("a", ["1", "3"]), row("b", ["", "2"])]);
    }
}
