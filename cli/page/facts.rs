//! What a page says of a run, as plain values: the template shows them, and decides nothing.

use serde::Serialize;

use super::chart::Chart;
use super::lineage::Drawing;
use crate::report::agreement::Agreement;
use crate::report::summary::Sample;

/// Everything on the page of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Page {
    pub title: String,
    pub run: String,
    pub recipe: String,
    pub started: String,
    /// `done`, `failed`, `interrupted`, `killed` or `running`.
    pub result: String,
    pub tiles: Vec<Tile>,
    pub nodes: Vec<Node>,
    pub graph: Drawing,
    /// Node, and what is to be said of it.
    pub failures: Vec<(String, String)>,
    pub warnings: Vec<(String, String)>,
    pub datasets: Vec<Dataset>,
    pub packs: Vec<Pack>,
    /// Node, and what it did to rows.
    pub told: Vec<(String, String)>,
    pub lengths: Vec<Histogram>,
    pub roles: Roles,
    pub rows: Vec<ShownRow>,
    pub charts: Vec<Chart>,
    pub scores: Scores,
    /// Merged and quantised models beside what they were made of.
    pub agreements: Vec<Agreement>,
    pub answers: Vec<Answers>,
    pub developing: Vec<Developing>,
    pub variety: Option<Chart>,
    pub environment: Vec<(String, String)>,
    pub settings: Settings,
}

/// The list of runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Runs {
    /// The store's folder.
    pub store: String,
    /// The latest first.
    pub runs: Vec<ListedRun>,
}

/// A run in the list.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ListedRun {
    pub id: String,
    pub title: String,
    pub recipe: String,
    pub started: String,
    pub result: String,
    /// What became of its nodes, in words.
    pub nodes: String,
    pub seconds: Option<f64>,
    /// The measure that says most, and its value.
    pub measure: Option<(String, String)>,
}

/// Runs side by side.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    pub runs: Vec<ComparedRun>,
    pub charts: Vec<Chart>,
    /// What is measured; in each run its value, and a word on it.
    pub measures: Vec<(String, Vec<(String, String)>)>,
    /// Keys of the recipes that are not the same in all.
    pub keys: Vec<(String, Vec<String>)>,
    /// The same of the stages, every default filled.
    pub stages: Vec<(String, Vec<String>)>,
}

/// One of several runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ComparedRun {
    pub id: String,
    pub name: String,
    pub recipe: String,
    pub started: String,
    pub result: String,
    pub colour: usize,
}

/// A page that there is none of.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Missing {
    pub message: String,
}

/// A number worth seeing first.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tile {
    pub name: String,
    pub value: String,
    pub note: String,
}

/// A node of the run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Node {
    pub name: String,
    pub stage: String,
    pub version: String,
    pub inputs: Vec<String>,
    pub outcome: Outcome,
    /// The outcome as people read it.
    pub word: &'static str,
    /// Why it ran.
    pub reason: String,
    pub rows: Option<u64>,
    pub rows_reused: Option<u64>,
    pub seconds: f64,
    /// Its seconds over the longest node's.
    pub share: f64,
    pub peak_rss_bytes: u64,
    pub key: String,
}

/// What became of a node; the later ones say more of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    #[default]
    Waiting,
    Skipped,
    Cached,
    Executed,
    Running,
    Failed,
}

impl Outcome {
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Waiting => "waiting",
            Outcome::Skipped => "skipped",
            Outcome::Cached => "reused",
            Outcome::Executed => "run",
            Outcome::Running => "running",
            Outcome::Failed => "failed",
        }
    }
}

/// Rows of a dataset, stage by stage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Dataset {
    pub label: String,
    pub read: Option<u64>,
    pub kept: Option<u64>,
    pub train: Option<u64>,
    pub val: Option<u64>,
    pub test: Option<u64>,
    pub tokens: Option<u64>,
    pub trained_tokens: Option<u64>,
}

/// Sequences of a split.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pack {
    pub split: String,
    pub sequences: Option<u64>,
    pub rows: Option<u64>,
    pub tokens: Option<u64>,
    pub trained_tokens: Option<u64>,
    pub fill: Option<f64>,
    pub dropped: u64,
}

/// Rows by their number of tokens.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Histogram {
    pub split: String,
    pub rows: u64,
    pub tokens: u64,
    pub trained_tokens: u64,
    /// Shortest, half up to, 95 % up to, longest.
    pub quantiles: [u32; 4],
    pub bars: Vec<Bar>,
    /// Rows by the tenth that their trained share falls into.
    pub shares: Vec<Bar>,
}

/// A bar of a histogram.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Bar {
    pub label: String,
    pub rows: u64,
    /// Over the highest bar.
    pub height: f64,
}

/// Tokens by who wrote them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Roles {
    /// Rows that were looked at.
    pub rows: u64,
    /// Rows there are.
    pub of: u64,
    pub roles: Vec<RoleShare>,
}

/// Tokens of one role.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RoleShare {
    pub role: String,
    pub tokens: u64,
    pub trained: u64,
    /// Of all tokens.
    pub share: f64,
    pub trained_share: f64,
}

/// A tokenised row, as stretches of equal label.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ShownRow {
    pub id: String,
    pub node: String,
    pub tokens: u64,
    pub trained: u64,
    pub stretches: Vec<Stretch>,
    /// Tokens that are not shown.
    pub more: u64,
}

/// Neighbouring tokens of one role with one label.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stretch {
    pub text: String,
    pub trained: bool,
    pub role: String,
}

/// Measures of evaluation by model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Scores {
    pub models: Vec<String>,
    pub rows: Vec<ScoreRow>,
}

/// A measure of a split.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScoreRow {
    pub measure: String,
    pub split: String,
    /// One per model; value, and interval where there is one, as text.
    pub cells: Vec<(String, String)>,
}

/// Sample answers under a heading.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Answers {
    pub heading: String,
    pub samples: Vec<Sample>,
    /// There are more than are shown.
    pub more: u64,
}

/// Answers to a prompt while the model was trained.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Developing {
    pub prompt: String,
    pub said: Vec<Said>,
    /// Answers between that are not shown.
    pub left_out: u64,
}

/// An answer, and the steps after which it was given.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Said {
    pub steps: String,
    pub words: Vec<Words>,
    /// Share of runs of four tokens that were there before, where there are many.
    pub repeated: String,
}

/// Words of an answer that are new since the one before, or that are not.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Words {
    pub text: String,
    pub is_new: bool,
}

/// What was asked for.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Settings {
    pub recipe: String,
    pub set: Vec<String>,
    /// Resolved configuration of training, by dotted key.
    pub train: Vec<(String, String)>,
    pub sources: Vec<String>,
}
