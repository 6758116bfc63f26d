//! What training and evaluation measured: curves, scores, answers. Measures are taken as they come, known or not, so that a
//! stage can measure more without a word here.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use pipe_engine::digest::Digest;
use pipe_engine::event::{Event, NodeFinished, NodeOutcome, Stamped};
use pipe_engine::runs::{self, Run};
use serde_json::{Map, Value};

use super::chart::{Chart, Series, Style, Unit, chart, smoothed, told_number};
use super::facts::{Answers, ScoreRow, Scores};
use super::gather::Source;
use super::samples::Samples;
use crate::report::scores as told;
use crate::report::summary::{self, Measured, Sample, Scale};

/// Numbers of a step that are no curve of their own.
const BESIDE: [&str; 9] = [
    "step",
    "total_steps",
    "epoch",
    "tokens",
    "trained_tokens",
    "perplexity",
    "eta_seconds",
    "trained_tokens_per_second",
    "peak_rss_bytes",
];
/// Curves with words of their own, in the order of the page.
const CURVES: [(&str, &str, Unit); 6] = [
    ("loss", "loss, nats per trained token", Unit::Number),
    ("lr", "learning rate", Unit::Small),
    ("grad_norm", "gradient norm before clipping", Unit::Number),
    ("tokens_per_second", "tokens per second", Unit::Rate),
    ("rss_bytes", "memory", Unit::Bytes),
    ("mfu", "model FLOP utilisation", Unit::Share),
];
/// Steps whose mean stands for the end of training.
const LAST: usize = 10;
/// How much of the running mean one step leaves, as TensorBoard's slider has it.
const SMOOTHING: f64 = 0.9;
/// Fewer steps are drawn as they are.
const FEW: usize = 20;

/// The numbers of every optimizer step and evaluation that is known of a run's training.
#[derive(Default)]
pub struct Training {
    steps: BTreeMap<u64, Map<String, Value>>,
    evals: IndexMap<String, BTreeMap<u64, Map<String, Value>>>,
    pub samples: Samples,
}

impl Training {
    /// What the trained output holds, and what only events tell: speed and memory.
    pub fn of(source: &Source<'_>) -> Training {
        let mut training = Training::default();
        let train = source.finished().find(|node| node.node.stage() == "train");
        if let Some(folder) = train.and_then(|node| source.output(node)) {
            let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).for_each(|line| training.add(line));
        }
        let events = match train.filter(|node| node.outcome == NodeOutcome::Cached) {
            // An earlier run did the work.
            Some(cached) => {
                let trained = runs::list(source.store).into_iter().rev().find(|run| {
                    let nodes = run.finished.iter().flat_map(|finished| &finished.nodes);
                    nodes.into_iter().any(|n| n.key == cached.key && n.outcome == NodeOutcome::Executed)
                });
                trained.map(|run| runs::events(source.store, &run.id)).unwrap_or_default()
            }
            None => [before_resuming(source), source.events.clone()].concat(),
        };
        training.samples = Samples::of(&events);
        let measured = events.iter().filter(|e| matches!(e.event, Event::Metric { .. } | Event::Eval { .. }));
        for event in measured.filter_map(|event| serde_json::to_value(event).ok()) {
            if let Value::Object(event) = event {
                training.add(event);
            }
        }
        training
    }

    fn add(&mut self, mut line: Map<String, Value>) {
        let Some(step) = line.get("step").and_then(Value::as_u64) else { return };
        let is_eval = line.get("event").and_then(Value::as_str) == Some("eval");
        let split = line.get("split").and_then(Value::as_str).unwrap_or("val").to_string();
        for name in ["event", "time", "node"] {
            line.remove(name);
        }
        let at = if is_eval { self.evals.entry(split).or_default() } else { &mut self.steps };
        at.entry(step).or_default().extend(line);
    }

    /// A number of every step that has it.
    pub fn points(&self, name: &str) -> Vec<(f64, f64)> {
        points(&self.steps, name)
    }

    /// Loss of the first step, mean of the last ones, and how many those are.
    pub fn loss(&self) -> Option<(f64, f64, u64)> {
        let loss = self.points("loss");
        let last = &loss[loss.len().saturating_sub(LAST)..];
        let mean = last.iter().map(|point| point.1).sum::<f64>() / last.len().max(1) as f64;
        Some((loss.first()?.1, mean, last.len() as u64))
    }

    /// The latest loss on held-out rows.
    pub fn evaluated(&self) -> Option<(String, f64)> {
        let (split, evals) = self.evals.first()?;
        Some((split.clone(), points(evals, "loss").last()?.1))
    }

    /// All curves, the known ones first.
    pub fn charts(&self) -> Vec<Chart> {
        let mut charts: Vec<Chart> = Vec::new();
        for (name, title, unit) in CURVES {
            charts.extend(chart(title, unit, &self.series(name)));
            if name == "loss" {
                charts.extend(chart("loss by dataset", Unit::Number, &self.by_dataset()));
            }
        }
        for name in self.others() {
            charts.extend(chart(&told::spoken(&name), Unit::Number, &self.series(&name)));
        }
        charts
    }

    /// Names of numbers that no curve above shows.
    fn others(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let all = self.steps.values().chain(self.evals.values().flat_map(BTreeMap::values));
        for (name, value) in all.flatten() {
            let known = BESIDE.contains(&name.as_str()) || CURVES.iter().any(|(known, ..)| known == name);
            if value.is_number() && !known && !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    fn series(&self, name: &str) -> Vec<Series> {
        let points = self.points(name);
        let mut series = Vec::new();
        let line = |name: &str, points, style| Series { name: name.to_string(), points, style };
        match name {
            _ if roughness(name) == Roughness::Rough && points.len() > FEW => {
                let smooth = smoothed(&points, SMOOTHING);
                series.push(line("each step", points, Style::Faint));
                series.push(line("running mean", smooth, Style::Line));
            }
            "tokens_per_second" => {
                series.push(line("all", points, Style::Line));
                series.push(line("trained", self.points("trained_tokens_per_second"), Style::Line));
            }
            "rss_bytes" => {
                series.push(line("now", points, Style::Line));
                series.push(line("peak", self.points("peak_rss_bytes"), Style::Line));
            }
            _ => series.push(line("train", points, Style::Line)),
        }
        for (split, evals) in &self.evals {
            series.push(line(split, self::points(evals, name), Style::Dots));
        }
        series.retain(|series| series.points.iter().any(|point| point.1 != 0.0) || name == "lr" || name == "loss");
        series
    }

    fn by_dataset(&self) -> Vec<Series> {
        let mut series: IndexMap<String, Vec<(f64, f64)>> = IndexMap::new();
        for (step, numbers) in &self.steps {
            for (label, loss) in numbers.get("losses").and_then(Value::as_object).into_iter().flatten() {
                let points = series.entry(label.clone()).or_default();
                points.extend(loss.as_f64().map(|loss| (*step as f64, loss)));
            }
        }
        let smooth = |(name, points): (String, Vec<(f64, f64)>)| {
            let points = if points.len() > FEW { smoothed(&points, SMOOTHING) } else { points };
            Series { name, points, style: Style::Line }
        };
        series.into_iter().map(smooth).collect()
    }
}

/// What earlier runs told of the steps that this one found done: those that were stopped in the same training.
fn before_resuming(source: &Source<'_>) -> Vec<Stamped> {
    let Some(mut first) = source.events.iter().find_map(step).filter(|step| *step > 1) else { return Vec::new() };
    let training = |run: &Run| run.plan.iter().find(|node| node.stage == "train").cloned();
    let (Some(own), packed) = (training(source.run), packed(&source.events)) else { return Vec::new() };
    let is_same =
        |run: &Run| training(run).is_some_and(|other| (&other.params, &other.version) == (&own.params, &own.version));
    let mut before = Vec::new();
    let earlier = runs::list(source.store).into_iter().rev().filter(|run| run.id < source.run.id && is_same(run));
    for run in earlier {
        if first == 1 {
            break;
        }
        let events = runs::events(source.store, &run.id);
        if self::packed(&events) != packed {
            continue;
        }
        let told: Vec<Stamped> = events.into_iter().filter(|event| at(event).is_some_and(|at| at < first)).collect();
        first = told.iter().find_map(step).unwrap_or(first).min(first);
        before.splice(..0, told);
    }
    before
}

/// The step of a metric.
fn step(event: &Stamped) -> Option<u64> {
    if let Event::Metric { step, .. } = event.event { Some(step) } else { None }
}

/// The step that an event of training is about.
fn at(event: &Stamped) -> Option<u64> {
    match event.event {
        Event::Metric { step, .. } | Event::Eval { step, .. } | Event::Sample { step, .. } => Some(step),
        _ => None,
    }
}

/// What training read.
fn packed(events: &[Stamped]) -> Option<Digest> {
    events.iter().find_map(|stamped| match &stamped.event {
        Event::NodeFinished(done) if done.node.as_str() == "pack.train" => Some(done.output),
        _ => None,
    })
}

/// Whether a curve jumps from step to step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Roughness {
    Smooth,
    Rough,
}

fn roughness(name: &str) -> Roughness {
    if matches!(name, "loss" | "grad_norm") { Roughness::Rough } else { Roughness::Smooth }
}

/// The curves of several runs over each other, in the runs' order.
pub fn compared(runs: &[(String, Training)]) -> Vec<Chart> {
    let mut charts: Vec<Chart> = Vec::new();
    for (name, title, unit) in CURVES {
        charts.extend(over_each_other(title, unit, runs, |training| training.points(name), roughness(name)));
        if name == "loss" {
            charts.extend(held_out_losses(runs));
        }
    }
    let mut others: Vec<String> = runs.iter().flat_map(|(_, training)| training.others()).collect();
    others.sort();
    others.dedup();
    for name in others {
        let title = told::spoken(&name);
        charts.extend(over_each_other(
            &title,
            Unit::Number,
            runs,
            |training| training.points(&name),
            Roughness::Smooth,
        ));
    }
    charts
}

fn held_out_losses(runs: &[(String, Training)]) -> Vec<Chart> {
    let mut splits: Vec<&String> = runs.iter().flat_map(|(_, training)| training.evals.keys()).collect();
    splits.sort();
    splits.dedup();
    let chart = |split: &String| {
        let of = |training: &Training| training.evals.get(split).map(|evals| points(evals, "loss")).unwrap_or_default();
        over_each_other(&format!("loss on held-out rows, {split}"), Unit::Number, runs, of, Roughness::Smooth)
    };
    splits.into_iter().filter_map(chart).collect()
}

/// One chart with a colour for each run; rough ones get their running mean over what it is the mean of.
fn over_each_other(
    title: &str,
    unit: Unit,
    runs: &[(String, Training)],
    of: impl Fn(&Training) -> Vec<(f64, f64)>,
    roughness: Roughness,
) -> Option<Chart> {
    let mut series = Vec::new();
    let mut lasts = Vec::new();
    for (run, training) in runs {
        let points = of(training);
        let line = |points, style, name: &str| Series { name: name.to_string(), points, style };
        let points = match roughness {
            Roughness::Rough if points.len() > FEW => {
                let smooth = smoothed(&points, SMOOTHING);
                series.push(line(points, Style::Faint, ""));
                smooth
            }
            _ => points,
        };
        let last = points.iter().rev().find(|point| point.1.is_finite());
        lasts.extend(last.map(|point| format!("{run} {}", told_number(point.1, unit))));
        let style = if points.len() <= FEW { Style::Dots } else { Style::Line };
        series.push(line(points, style, run));
    }
    let mut chart = chart(title, unit, &series)?;
    let what = if roughness == Roughness::Rough { "running mean, last" } else { "last" };
    chart.summary = format!("{what}: {}", lasts.join(", "));
    Some(chart)
}

fn points(steps: &BTreeMap<u64, Map<String, Value>>, name: &str) -> Vec<(f64, f64)> {
    // A null is a number that is not finite.
    let number = |value: &Value| if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
    steps.iter().filter_map(|(step, numbers)| Some((*step as f64, number(numbers.get(name)?)?))).collect()
}

/// Evaluation's table: a row per measure and split, a column per model.
pub fn scores(source: &Source<'_>) -> Scores {
    let eval = source.finished().find(|node| node.node.stage() == "eval");
    eval.map(|eval| table(told::all_scores(&eval.stats))).unwrap_or_default()
}

fn table(all: summary::Scores) -> Scores {
    let row = |score: &summary::Score| {
        let written = |value: f64| score.scale().told(value);
        let interval = |[low, high]: [f64; 2]| format!("{} to {}", written(low), written(high));
        let cell = |cell: &Option<Measured>| {
            cell.map(|cell| (written(cell.value), cell.interval.map(interval).unwrap_or_default())).unwrap_or_default()
        };
        ScoreRow { measure: score.spoken(), split: score.of(), cells: score.cells.iter().map(cell).collect() }
    };
    Scores { rows: all.rows.iter().map(row).collect(), models: all.models }
}

/// The measure that says most of a tuned model: the first share on test rows, else on others; beside the base's.
pub fn headline<'a>(nodes: impl IntoIterator<Item = &'a NodeFinished>) -> Option<(String, f64, Option<f64>)> {
    let eval = nodes.into_iter().find(|node| node.node.stage() == "eval")?;
    let all = told::all_scores(&eval.stats);
    let model = |name: &str| all.models.iter().position(|model| model == name);
    let value = |score: &summary::Score, at: usize| score.cells.get(at).copied().flatten().map(|cell| cell.value);
    let tuned = model("tuned").unwrap_or(0);
    let shares = all.rows.iter().filter(|score| score.scale() == Scale::Share && value(score, tuned).is_some());
    let first =
        shares.min_by_key(|score| ["test", "val"].iter().position(|split| score.of() == *split).unwrap_or(2))?;
    let base = model("base").filter(|&base| base != tuned).and_then(|base| value(first, base));
    Some((format!("{} ({})", first.spoken(), first.of()), value(first, tuned)?, base))
}

/// At most `most` answers of each kind: to free prompts, and to held-out rows.
pub fn answers(source: &Source<'_>, most: usize) -> Vec<Answers> {
    let Some(eval) = source.finished().find(|node| node.node.stage() == "eval") else { return Vec::new() };
    let mut all = vec![("answers to free prompts", told::samples(&eval.stats))];
    if let Some(folder) = source.output(eval) {
        all.push(("answers to held-out rows", held_out(&folder)));
    }
    let cut = |(heading, mut samples): (&str, Vec<Sample>)| {
        let more = samples.len().saturating_sub(most) as u64;
        samples.truncate(most);
        Answers { heading: heading.to_string(), samples, more }
    };
    all.into_iter().map(cut).filter(|answers| !answers.samples.is_empty()).collect()
}

/// The models' answers of `answers.parquet`, row by row.
fn held_out(folder: &std::path::Path) -> Vec<Sample> {
    let rows = pipe_stages::show::rows(folder, usize::MAX, None, None).unwrap_or_default();
    let mut samples: IndexMap<String, Sample> = IndexMap::new();
    for row in rows.iter().filter(|row| row.table == "answers") {
        let text = |name: &str| row.values.get(name).and_then(Value::as_str).map(str::to_string);
        let Some(id) = text("row_id") else { continue };
        let sample = samples.entry(id).or_default();
        sample.prompt = text("prompt").unwrap_or_default();
        sample.expected = text("expected");
        match text("model").as_deref() {
            Some("base") => sample.base = text("answer"),
            _ => sample.tuned = text("answer"),
        }
    }
    samples.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn any_measure_has_its_row_and_interval_by_the_terminals_names() {
        let stats = json!({
            "models": {
                "base": {"test": {"perplexity": 110.3, "rows": 1320}},
                "tuned": {"test": {"perplexity": 1.072, "rows": 1320, "rouge_l": 0.5}},
            },
            "intervals": {"tuned": {"test": {"rouge_l": [0.4, 0.62]}}},
        });
        let Value::Object(stats) = stats else { return };
        let scores = table(told::all_scores(&stats.into_iter().collect()));
        assert_eq!(scores.models, ["base", "tuned"]);
        let told: Vec<String> = scores
            .rows
            .iter()
            .map(|row| {
                let cells: Vec<String> = row.cells.iter().map(|(v, i)| format!("{v}[{i}]")).collect();
                format!("{} {} {}", row.split, row.measure, cells.join(" "))
            })
            .collect();
        assert_eq!(
            told,
            [
                "test perplexity 110.3[] 1.072[]",
                "test rows 1,320[] 1,320[]",
                "test ROUGE-L [] 50.0 %[40.0 % to 62.0 %]"
            ]
        );
    }

    #[test]
    fn steps_and_evaluations_become_curves() {
        let mut training = Training::default();
        for step in 1..=30 {
            let line = json!({"step": step, "loss": 1.0 / f64::from(step), "lr": 1e-4, "margin": 0.5, "time": "t"});
            training.add(line.as_object().cloned().unwrap_or_default());
        }
        let eval = json!({"event": "eval", "step": 30, "split": "val", "loss": 0.25});
        training.add(eval.as_object().cloned().unwrap_or_default());
        assert_eq!(training.evaluated(), Some(("val".to_string(), 0.25)));
        assert_eq!(training.loss().map(|(first, _, n)| (first, n)), Some((1.0, 10)));
        let charts = training.charts();
        let titles: Vec<&str> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles, ["loss, nats per trained token", "learning rate", "margin"]);
        let names: Vec<&str> = charts[0].lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["each step", "running mean", "val"]);
    }
}
