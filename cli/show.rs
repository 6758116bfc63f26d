//! `pipe show`: what a node produced.

use std::path::{Path, PathBuf};

use clap::Args;
use pipe_engine::state::{NodeState, Selection, State};
use pipe_stages::show::{Roles, Row, Spread, rows, said, spreads, tokenizer, tokenizer_of};
use serde_json::{Value, json};

use crate::args::RecipeArgs;
use crate::failure::{Failure, Outcome};
use crate::open::{self, Opened};
use crate::report::style::{BOLD, DIM, paint};
use crate::report::tokens;
use crate::{plan, report};

/// Look at what a node produced; tokens are coloured: trained bright, masked dim. Histograms say how long rows are.
#[derive(Args, Debug)]
pub struct ShowArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// A node, or a stage for all its nodes.
    #[arg(value_name = "NODE")]
    node: String,
    /// Rows to show.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rows: usize,
    /// Only the row with this id, or whose id begins so.
    #[arg(long, value_name = "ID")]
    row: Option<String>,
    /// A line for each token: its id, its characters, who wrote it, whether it is trained.
    #[arg(long)]
    tokens: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// What is shown of one node.
struct Shown {
    spreads: Vec<Spread>,
    rows: Vec<Row>,
}

pub fn show(args: &ShowArgs) -> Outcome {
    let opened = open::open_quietly(&args.recipe)?.0;
    let states = plan::states(&opened, &Selection::default())?;
    let names = opened.plan.select(&args.node);
    if names.is_empty() {
        let known: Vec<&str> = states.iter().map(|state| state.node.as_str()).collect();
        let what = format!("`{}` names no node of this recipe; it has {}", args.node, known.join(", "));
        return Err(Failure::invalid(what));
    }
    let chosen: Vec<&NodeState> = states.iter().filter(|state| names.contains(&state.node)).collect();
    let mut all = Shown { spreads: Vec::new(), rows: Vec::new() };
    for state in chosen {
        let shown = node_rows(&opened, &states, state, args)?;
        all.spreads.extend(shown.spreads);
        all.rows.extend(shown.rows);
    }
    if args.json {
        let statistics: Vec<Value> = all.spreads.iter().map(Spread::json).collect();
        let rows: Vec<Value> = all.rows.into_iter().map(|row| Value::Object(row.values)).collect();
        report::json(&json!({ "rows": rows, "statistics": statistics }));
    } else {
        report::print(&text(&all, args.tokens));
    }
    Ok(())
}

fn node_rows(opened: &Opened, states: &[NodeState], state: &NodeState, args: &ShowArgs) -> Result<Shown, Failure> {
    let missing = || {
        Failure::invalid(format!("{} has no output yet: {}", state.node, state.reason)).hint(format!(
            "make it with: pipe run {} --until {}",
            opened.path.display(),
            state.node
        ))
    };
    let stored = state.output.as_deref().filter(|_| state.state == State::Cached).ok_or_else(missing)?;
    let tokenizer = tokenizer_of(&opened.recipe, &opened.project).and_then(|path| tokenizer(&path));
    let limit = if args.row.is_some() { usize::MAX } else { args.rows };
    let mut found = rows(stored, limit, args.row.as_deref(), tokenizer.as_ref())?;
    // One row is looked at for itself.
    let spreads = if args.row.is_none() { spreads(stored)? } else { Vec::new() };
    if found.is_empty() && args.row.is_none() && spreads.is_empty() {
        return Ok(Shown { spreads, rows: files(stored) });
    }
    if found.iter().any(|row| !row.tokens.is_empty()) {
        let rendered = states.iter().filter(|state| state.node.stage() == "template" && state.state == State::Cached);
        let rendered: Vec<&Path> = rendered.filter_map(|state| state.output.as_deref()).collect();
        let roles = Roles::read(&rendered, &found)?;
        found.iter_mut().for_each(|row| roles.annotate(row));
    }
    Ok(Shown { spreads, rows: found })
}

/// Nodes without tables are shown as the files they wrote; small JSON ones in full.
fn files(folder: &Path) -> Vec<Row> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let described =
        paths.iter().filter(|path| path.file_name().is_some_and(|name| name != pipe_engine::manifest::MANIFEST));
    described.map(|path| file(path)).collect()
}

fn file(path: &Path) -> Row {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let mut values = serde_json::Map::new();
    values.insert("file".to_string(), json!(path));
    values.insert("bytes".to_string(), json!(size));
    let small = path.extension().is_some_and(|e| e == "json") && size < 64 * 1024;
    let content = std::fs::read(path).ok().filter(|_| small).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    values.extend(content.map(|content: Value| ("content".to_string(), content)));
    Row { table: name, values, tokens: Vec::new() }
}

fn text(shown: &Shown, listed: bool) -> String {
    let width = report::width();
    let mut out = String::new();
    for spread in &shown.spreads {
        out.push_str(&tokens::histograms(spread, width));
        out.push('\n');
    }
    if shown.rows.iter().any(|row| !row.tokens.is_empty()) && !listed {
        out.push_str(&format!("{}\n\n", tokens::legend()));
    }
    for row in &shown.rows {
        let id = row.values.get("row_id").and_then(Value::as_str).unwrap_or(&row.table);
        match said(row) {
            _ if !row.tokens.is_empty() && listed => out.push_str(&tokens::listing(id, &row.tokens, width)),
            _ if !row.tokens.is_empty() => out.push_str(&tokens::row(id, &row.tokens)),
            Some(said) => out.push_str(&tokens::conversation(id, &said)),
            None => out.push_str(&columns(id, row)),
        }
        out.push('\n');
    }
    out
}

fn columns(id: &str, row: &Row) -> String {
    let mut out = format!("{}\n", paint(BOLD, id));
    for (name, value) in row.values.iter().filter(|(name, value)| *name != "row_id" && !value.is_null()) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        out.push_str(&format!("  {} {}\n", paint(DIM, format!("{name}:")), tokens::visible(&value)));
    }
    out
}
