//! Rows and tokens of every node: exact where its output is stored, else carried down from what is known above it.

use std::collections::HashMap;

use pipe_engine::state::{NodeState, State};
use pipe_stages::recipe::{Recipe, Role};
use pipe_stages::size;

use crate::open::Opened;

/// A number, and whether it is known or estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    pub n: u64,
    pub exact: bool,
}

/// What is known of rows and tokens.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// By node.
    pub rows: HashMap<String, Amount>,
    /// By node, where rows are tokenised.
    pub node_tokens: HashMap<String, Amount>,
    /// What `pack.train` will hold.
    pub sequences: Option<Amount>,
    pub tokens: Option<Amount>,
    pub trained_tokens: Option<Amount>,
    pub tokens_per_row: Option<f64>,
    /// Data sets of unknown size.
    pub unknown: Vec<String>,
}

/// Rows of one data set by the split they go to.
#[derive(Clone, Copy, Debug, Default)]
struct Shares {
    train: f64,
    val: f64,
    test: f64,
}

/// How full packs get.
const FILL: f64 = 0.97;

fn exact(n: u64) -> Amount {
    Amount { n, exact: true }
}

fn about(n: f64) -> Amount {
    Amount { n: n.round().max(0.0) as u64, exact: false }
}

/// A number of a stored output.
fn stat(state: &NodeState, name: &str) -> Option<u64> {
    let record = state.record.as_ref().filter(|_| state.state == State::Cached)?;
    match name {
        "rows" => record.summary.rows,
        _ => record.summary.stats.get(name).and_then(serde_json::Value::as_u64),
    }
}

impl Rows {
    pub fn of(opened: &Opened, states: &[NodeState]) -> Rows {
        let mut found = Rows::default();
        let find = |name: String| states.iter().find(|state| state.node.as_str() == name);
        let mut packs = Shares::default();
        let mut tokens = Shares::default();
        for source in opened.recipe.sources() {
            let label = &source.label;
            let known = |stage: &str, name: &str| find(format!("{stage}.{label}")).and_then(|state| stat(state, name));
            let guess = size::of(source.dataset, &opened.project);
            let ingested = known("ingest", "rows").map(exact).or(guess.map(|size| about(size.rows as f64)));
            let Some(ingested) = ingested else {
                found.unknown.push(label.clone());
                continue;
            };
            found.rows.insert(format!("ingest.{label}"), ingested);
            let cleaned = known("clean", "rows").map_or(Amount { exact: false, ..ingested }, exact);
            found.rows.insert(format!("clean.{label}"), cleaned);
            let shares = Shares::of(&opened.recipe, source.role, cleaned.n, &known);
            let split = known("split", "rows").map_or(Amount { exact: false, ..cleaned }, exact);
            found.rows.insert(format!("split.{label}"), split);
            let copies = copies(&opened.recipe);
            let train = known("augment", "rows").map_or(shares.train * copies, |rows| rows as f64);
            if source.role == Role::Train {
                found.rows.insert(format!("augment.{label}"), known("augment", "rows").map_or(about(train), exact));
            }
            let all = train + shares.val + shares.test;
            let mut last = about(all);
            for stage in ["template", "tokenize"] {
                last = known(stage, "rows").map_or(Amount { exact: false, ..last }, exact);
                found.rows.insert(format!("{stage}.{label}"), last);
            }
            let own = known("tokenize", "tokens").map(exact);
            let own = own.or(guess.map(|size| about(size.tokens_per_row * last.n as f64)));
            if let Some(own) = own {
                found.node_tokens.insert(format!("tokenize.{label}"), own);
                let mean = own.n as f64 / last.n.max(1) as f64;
                tokens.add(Shares { train: train * mean, val: shares.val * mean, test: shares.test * mean });
            } else {
                found.unknown.push(label.clone());
            }
            packs.add(Shares { train, ..shares });
        }
        found.packs(&opened.recipe, &find, packs, tokens);
        found
    }

    /// Packs of each split; estimates need every data set's size.
    fn packs<'a>(
        &mut self,
        recipe: &Recipe,
        find: &impl Fn(String) -> Option<&'a NodeState>,
        rows: Shares,
        tokens: Shares,
    ) {
        let length = recipe.sequence_len.unwrap_or(512) as f64;
        let packing = recipe.sample_packing.unwrap_or(false);
        for (split, rows, tokens) in
            [("train", rows.train, tokens.train), ("val", rows.val, tokens.val), ("test", rows.test, tokens.test)]
        {
            let name = format!("pack.{split}");
            let Some(state) = find(name.clone()) else { continue };
            let guessed = if packing { (tokens / (length * FILL)).ceil() } else { rows };
            let known = self.unknown.is_empty();
            let packs = stat(state, "rows").map(exact).or(known.then(|| about(guessed)));
            let held = stat(state, "tokens").map(exact).or(known.then(|| about(tokens)));
            self.rows.extend(packs.map(|packs| (name.clone(), packs)));
            self.node_tokens.extend(held.map(|held| (name, held)));
            if split == "train" {
                self.sequences = packs;
                self.tokens = held;
                self.trained_tokens = stat(state, "trained_tokens").map(exact);
                self.tokens_per_row = held.filter(|_| rows > 0.0).map(|held| held.n as f64 / rows);
            }
        }
    }
}

impl Shares {
    fn of(recipe: &Recipe, role: Role, rows: u64, known: &impl Fn(&str, &str) -> Option<u64>) -> Shares {
        let all = rows as f64;
        if let (Some(train), Some(val), Some(test)) =
            (known("split", "train"), known("split", "val"), known("split", "test"))
        {
            return Shares { train: train as f64, val: val as f64, test: test as f64 };
        }
        if role == Role::Test {
            return Shares { test: all, ..Shares::default() };
        }
        let section = recipe.split.clone().unwrap_or_default();
        let size = |size: Option<f64>| match size.unwrap_or(0.0) {
            share if share < 1.0 => share * all,
            count => count.min(all),
        };
        let (val, test) = (size(section.val.or(recipe.val_set_size)), size(section.test));
        Shares { train: (all - val - test).max(0.0), val, test }
    }

    fn add(&mut self, other: Shares) {
        self.train += other.train;
        self.val += other.val;
        self.test += other.test;
    }
}

fn copies(recipe: &Recipe) -> f64 {
    recipe.augment.as_ref().and_then(|section| section.repeat).unwrap_or(1).max(1) as f64
}
