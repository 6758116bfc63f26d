//! Tokenised rows on the page: how long they are, who wrote what of them is trained, and some in full.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use indexmap::IndexMap;
use pipe_engine::digest::Digest;
use pipe_engine::event::NodeFinished;
use pipe_stages::project::Project;
use pipe_stages::show::{self, Row, Spread, Token};

use super::facts::{Bar, Histogram, RoleShare, Roles, ShownRow, Stretch};
use super::gather::Source;

/// Rows of a dataset whose tokens are laid out by role.
const LOOKED_AT: usize = 500;
/// Datasets of which that is done.
const DATASETS: usize = 8;
/// Rows shown in full, at least one of each of the first datasets.
const SHOWN: usize = 4;
/// Tokens shown of a row.
const TOKENS: usize = 600;
/// Pages whose rows are remembered.
const REMEMBERED: usize = 16;
/// What stands between messages has no author.
const AROUND: &str = "template";

/// What is told of rows.
#[derive(Clone, Default)]
pub struct Told {
    pub lengths: Vec<Histogram>,
    pub roles: Roles,
    pub rows: Vec<ShownRow>,
}

impl Told {
    pub fn of(source: &Source<'_>) -> Told {
        let tokenized = source.finished().filter(|node| node.node.stage() == "tokenize");
        let tokenized: Vec<(&NodeFinished, PathBuf)> =
            tokenized.filter_map(|node| Some((node, source.output(node)?))).collect();
        let spreads = tokenized.iter().flat_map(|(_, folder)| show::spreads(folder).unwrap_or_default());
        let lengths = histograms(spreads.collect());
        let looked_at = look(source, &tokenized);
        let of: u64 = lengths.iter().map(|histogram| histogram.rows).sum();
        let rows: u64 = looked_at.iter().map(|(_, rows)| rows.len() as u64).sum();
        let roles = roles(looked_at.iter().flat_map(|(_, rows)| rows).flat_map(|row| &row.tokens));
        let shown = shown(&looked_at);
        Told { lengths, roles: Roles { rows, of, roles }, rows: shown }
    }
}

/// What was told before: whoever makes a run's page again and again reads its rows once.
#[derive(Default)]
pub struct Memory(Mutex<IndexMap<Digest, Told>>);

impl Memory {
    pub fn told(&self, source: &Source<'_>) -> Told {
        let read = source.finished().filter(|node| ["tokenize", "template"].contains(&node.node.stage()));
        let read: Vec<_> = read.map(|node| (node.node.as_str(), node.output)).collect();
        let key = Digest::of_canonical(&serde_json::json!([source.run.id, read]));
        let locked = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = locked().get(&key) {
            return told.clone();
        }
        let told = Told::of(source);
        let mut memory = locked();
        if memory.len() >= REMEMBERED {
            memory.shift_remove_index(0);
        }
        memory.insert(key, told.clone());
        told
    }
}

/// The first rows of datasets, each token with its text and role. None without the tokenizer.
fn look<'a>(source: &Source<'_>, tokenized: &[(&'a NodeFinished, PathBuf)]) -> Vec<(&'a NodeFinished, Vec<Row>)> {
    let Some(recipe) = &source.recipe else { return Vec::new() };
    let about = &source.run.about;
    let project = Project::of(&about.project.join(&about.recipe)).with_store(source.store.root());
    let Some(tokenizer) = show::tokenizer_of(recipe, &project).and_then(|path| show::tokenizer(&path)) else {
        return Vec::new();
    };
    let rendered = source.finished().filter(|node| node.node.stage() == "template");
    let rendered: Vec<PathBuf> = rendered.filter_map(|node| source.output(node)).collect();
    let rendered: Vec<&std::path::Path> = rendered.iter().map(PathBuf::as_path).collect();
    let read = |(node, folder): &(&'a NodeFinished, PathBuf)| {
        let mut rows = show::rows(folder, LOOKED_AT, None, Some(&tokenizer)).ok()?;
        let roles = show::Roles::read(&rendered, &rows).ok()?;
        rows.iter_mut().for_each(|row| roles.annotate(row));
        Some((*node, rows))
    };
    tokenized.iter().take(DATASETS).filter_map(read).collect()
}

/// One histogram per split, over all datasets.
fn histograms(spreads: Vec<Spread>) -> Vec<Histogram> {
    let mut by_split: IndexMap<String, Spread> = IndexMap::new();
    for spread in spreads {
        match by_split.get_mut(&spread.table) {
            Some(all) => all.join(spread),
            None => drop(by_split.insert(spread.table.clone(), spread)),
        }
    }
    by_split.sort_by_key(|split, _| ["train", "val", "test"].iter().position(|name| name == split).unwrap_or(3));
    by_split.values().map(histogram).collect()
}

fn histogram(spread: &Spread) -> Histogram {
    let label = |from: u32, to: u32| if from == to { from.to_string() } else { format!("{from}–{to}") };
    let shares = spread.shares.iter().enumerate();
    Histogram {
        split: spread.table.clone(),
        rows: spread.lengths.len() as u64,
        tokens: spread.tokens,
        trained_tokens: spread.trained,
        quantiles: [0.0, 0.5, 0.95, 1.0].map(|share| spread.quantile(share)),
        bars: bars(spread.bars().into_iter().map(|(from, to, rows)| (label(from, to), rows))),
        shares: bars(shares.map(|(i, &rows)| (format!("{}–{} %", i * 10, i * 10 + 10), rows))),
    }
}

fn bars(counted: impl Iterator<Item = (String, u64)>) -> Vec<Bar> {
    let counted: Vec<(String, u64)> = counted.collect();
    let most = counted.iter().map(|(_, rows)| *rows).max().unwrap_or(0).max(1) as f64;
    counted.into_iter().map(|(label, rows)| Bar { label, rows, height: rows as f64 / most }).collect()
}

/// Tokens and trained tokens by role, the most trained first.
fn roles<'a>(tokens: impl Iterator<Item = &'a Token>) -> Vec<RoleShare> {
    let mut roles: IndexMap<&str, (u64, u64)> = IndexMap::new();
    let mut all = 0;
    for token in tokens {
        let role = if token.role.is_empty() { AROUND } else { &token.role };
        let counts = roles.entry(role).or_default();
        counts.0 += 1;
        counts.1 += u64::from(token.trained);
        all += 1;
    }
    let share = |(role, (tokens, trained)): (&str, (u64, u64))| RoleShare {
        role: role.to_string(),
        tokens,
        trained,
        share: tokens as f64 / all.max(1) as f64,
        trained_share: trained as f64 / tokens.max(1) as f64,
    };
    let mut roles: Vec<RoleShare> = roles.into_iter().map(share).collect();
    roles.sort_by_key(|role| std::cmp::Reverse((role.trained, role.tokens)));
    roles
}

fn shown(looked_at: &[(&NodeFinished, Vec<Row>)]) -> Vec<ShownRow> {
    let is_train = |row: &&Row| row.table == "train";
    let trained_on = looked_at.iter().filter(|(_, rows)| rows.iter().any(|row| is_train(&row)));
    let each = SHOWN.div_ceil(trained_on.clone().count().max(1));
    let rows = trained_on.flat_map(|(node, rows)| rows.iter().filter(is_train).take(each).map(move |row| (node, row)));
    rows.take(SHOWN).map(|(node, row)| shown_row(node.node.as_str(), row)).collect()
}

fn shown_row(node: &str, row: &Row) -> ShownRow {
    let kept = &row.tokens[..row.tokens.len().min(TOKENS)];
    let alike = |a: &Token, b: &Token| a.trained == b.trained && a.role == b.role;
    let stretches = kept.chunk_by(alike).map(|tokens| Stretch {
        text: tokens.iter().map(|token| token.text.as_str()).collect(),
        trained: tokens[0].trained,
        role: if tokens[0].role.is_empty() { AROUND.to_string() } else { tokens[0].role.clone() },
    });
    ShownRow {
        id: row.values.get("row_id").and_then(|id| id.as_str()).unwrap_or_default().to_string(),
        node: node.to_string(),
        tokens: row.tokens.len() as u64,
        trained: row.tokens.iter().filter(|token| token.trained).count() as u64,
        stretches: stretches.filter(|stretch| !stretch.text.is_empty()).collect(),
        more: (row.tokens.len() - kept.len()) as u64,
    }
}
