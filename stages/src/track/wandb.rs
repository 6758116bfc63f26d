//! Weights & Biases, as its offline runs: a folder that `wandb sync` sends to the server.
//!
//! ```text
//! wandb/offline-run-20251128_172400-ID/run-ID.wandb            every record, in order
//! wandb/offline-run-20251128_172400-ID/files/wandb-summary.json  the last numbers
//! ```
//! Steps are named as transformers' callback names them: W&B's own step counts rows, and `train/global_step` is what curves are
//! drawn over. Files are compared with those of wandb 0.31 in tests/fixtures/trackers.

mod log;
mod records;

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::log::Log;
use self::records::{
    Body, Config, Exit, Header, History, Item, Metric, MetricOptions, Run, Step, Summary, Time, Version,
};
use super::{Point, RunFacts, TrackError, Tracker, curve};

/// What curves are drawn over.
const STEP: &str = "train/global_step";

/// What a recipe says of its run there.
#[derive(Clone, Debug, Default)]
pub struct WandbRun {
    pub project: Option<String>,
    pub entity: Option<String>,
    /// As it is shown; the run's own id by default.
    pub name: Option<String>,
    /// The same id again goes on with the run that has it; the run's own by default.
    pub id: Option<String>,
}

/// Writes one run.
pub struct Wandb {
    /// The folder of all runs.
    folder: PathBuf,
    about: WandbRun,
    facts: RunFacts,
    open: Option<Open>,
}

/// A run that is begun.
struct Open {
    folder: PathBuf,
    id: String,
    log: Log,
    /// Records so far.
    records: i64,
    /// Rows of history so far.
    rows: i64,
    summary: Map<String, Value>,
}

impl Wandb {
    /// A run in `folder`, which is made with the first number.
    pub fn new(folder: PathBuf, about: WandbRun, facts: RunFacts) -> Wandb {
        Wandb { folder, about, facts, open: None }
    }

    fn begin(&self) -> Result<Open, TrackError> {
        let id = self.about.id.clone().unwrap_or_else(|| self.facts.run.clone());
        let started = Timestamp::from_millisecond(self.facts.started).unwrap_or_default();
        let folder = self.folder.join(format!("offline-run-{}-{id}", started.strftime("%Y%m%d_%H%M%S")));
        let files = folder.join("files");
        fs::create_dir_all(&files).map_err(failed(&files))?;
        let log = Log::create(folder.join(format!("run-{id}.wandb")))?;
        let mut open = Open { folder, id, log, records: 0, rows: 0, summary: Map::new() };
        let version = Version { producer: concat!("pipe/", env!("CARGO_PKG_VERSION")).to_string() };
        let text = |own: &Option<String>| own.clone().unwrap_or_default();
        let run = Run {
            run_id: open.id.clone(),
            entity: text(&self.about.entity),
            project: text(&self.about.project),
            config: Some(Config { update: self.facts.params.iter().map(setting).collect() }),
            display_name: self.about.name.clone().unwrap_or_else(|| self.facts.run.clone()),
            start_time: Some(Time::of(self.facts.started)),
        };
        let metric = |name: &str, glob: &str, over: &str| Metric {
            name: name.to_string(),
            glob_name: glob.to_string(),
            step_metric: over.to_string(),
            options: Some(MetricOptions { step_sync: !over.is_empty(), defined: true }),
        };
        open.write([
            Body::Header(Header { version_info: Some(version) }),
            Body::Run(run),
            Body::Metric(metric(STEP, "", "")),
            Body::Metric(metric("", "*", STEP)),
        ])?;
        Ok(open)
    }
}

impl Tracker for Wandb {
    fn name(&self) -> &'static str {
        "wandb"
    }

    fn log(&mut self, points: &[Point]) -> Result<(), TrackError> {
        if points.is_empty() {
            return Ok(());
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        for point in points {
            open.point(point, self.facts.started)?;
        }
        self.open = Some(open);
        Ok(())
    }

    fn end(&mut self, ok: bool, time: i64) -> Result<(), TrackError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let runtime = ((time - self.facts.started) / 1000).try_into().unwrap_or(i32::MAX);
        open.write([Body::Exit(Exit { exit_code: i32::from(!ok), runtime })])?;
        let path = open.folder.join("files").join("wandb-summary.json");
        fs::write(&path, format!("{}\n", Value::Object(open.summary))).map_err(failed(&path))?;
        open.log.sync()
    }
}

impl Open {
    /// A row of history, and the same as the newest numbers.
    fn point(&mut self, point: &Point, started: i64) -> Result<(), TrackError> {
        let named = point.values.iter().map(|(name, value)| (curve(&point.kind, name), *value));
        let seconds = |millis: i64| millis as f64 / 1000.0;
        let times = [
            ("_timestamp".to_string(), seconds(point.time)),
            ("_runtime".to_string(), seconds(point.time - started)),
            ("_step".to_string(), self.rows as f64),
        ];
        let values: Vec<(String, f64)> = named.chain([(STEP.to_string(), point.step as f64)]).chain(times).collect();
        let items: Vec<Item> = values.iter().map(|(name, value)| Item::nested(name, number(*value))).collect();
        // JSON has no word for what is not a finite number.
        self.summary.extend(values.iter().map(|(name, value)| (name.clone(), whole(*value))));
        let step = Some(Step { num: self.rows });
        self.rows += 1;
        self.write([Body::Summary(Summary { update: items.clone() }), Body::History(History { item: items, step })])
    }

    /// Records are written in one piece, so that one who follows the file never sees half of one.
    fn write(&mut self, bodies: impl IntoIterator<Item = Body>) -> Result<(), TrackError> {
        let first = self.records + 1;
        let records: Vec<Vec<u8>> =
            bodies.into_iter().zip(first..).map(|(body, number)| records::encode(body, number, &self.id)).collect();
        self.records += records.len() as i64;
        self.log.append(&records)
    }
}

/// A setting, as the number or the truth value that it spells.
fn setting((key, text): &(String, String)) -> Item {
    let plain = serde_json::from_str::<Value>(text).ok().filter(|value| value.is_number() || value.is_boolean());
    Item::plain(key, plain.unwrap_or_else(|| json!(text)).to_string())
}

/// A number as W&B's JSON has it, which knows more of them than others.
fn number(value: f64) -> String {
    match value {
        v if v.is_nan() => "NaN".to_string(),
        v if v.is_infinite() => if v > 0.0 { "Infinity" } else { "-Infinity" }.to_string(),
        v => whole(v).to_string(),
    }
}

/// A whole number as such.
fn whole(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> TrackError {
    let path = path.to_path_buf();
    move |source| TrackError::Io { path, source }
}
