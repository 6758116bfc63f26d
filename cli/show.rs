//! `pipe show`: what a node produced.

use std::path::{Path, PathBuf};

use clap::Args;
use pipe_engine::state::{NodeState, Selection, State};
use pipe_stages::show::{Row, rows};
use serde_json::{Value, json};

use crate::args::RecipeArgs;
use crate::failure::{Failure, Outcome};
use crate::open::{self, Opened};
use crate::report::style::{BOLD, DIM, paint};
use crate::report::tokens::{self, Token};
use crate::{plan, report};

/// Look at what a node produced; tokens are coloured: trained bright, masked dim.
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
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
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
    let mut shown = Vec::new();
    for state in chosen {
        shown.extend(node_rows(&opened, state, args)?);
    }
    if args.json {
        let values: Vec<Value> = shown.into_iter().map(|row| Value::Object(row.values)).collect();
        report::json(&json!({ "rows": values }));
    } else {
        report::print(&text(&shown));
    }
    Ok(())
}

fn node_rows(opened: &Opened, state: &NodeState, args: &ShowArgs) -> Result<Vec<Row>, Failure> {
    let missing = || {
        Failure::invalid(format!("{} has no output yet: {}", state.node, state.reason)).hint(format!(
            "make it with: pipe run {} --until {}",
            opened.path.display(),
            state.node
        ))
    };
    let stored = state.output.as_deref().filter(|_| state.state == State::Cached).ok_or_else(missing)?;
    let tokenizer = tokenizer(opened);
    let limit = if args.row.is_some() { usize::MAX } else { args.rows };
    let found = rows(stored, limit, args.row.as_deref(), tokenizer.as_deref())?;
    if found.is_empty() && args.row.is_none() {
        return Ok(files(stored));
    }
    Ok(found)
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

fn tokenizer(opened: &Opened) -> Option<PathBuf> {
    let named = opened.recipe.tokenizer_config.as_ref().map(|path| opened.project.resolve(path));
    let named = named.filter(|path| path.exists());
    named.or_else(|| pipe_stages::compile::base_model(&opened.recipe, &opened.project).map(|model| model.path))
}

fn text(rows: &[Row]) -> String {
    let mut out = String::new();
    if rows.iter().any(|row| !row.tokens.is_empty()) {
        out.push_str(&format!("{}\n\n", tokens::legend()));
    }
    for row in rows {
        let id = row.values.get("row_id").and_then(Value::as_str).unwrap_or(&row.table);
        if row.tokens.is_empty() {
            out.push_str(&paint(BOLD, id));
            out.push('\n');
            for (name, value) in row.values.iter().filter(|(name, value)| *name != "row_id" && !value.is_null()) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                out.push_str(&format!("  {} {value}\n", paint(DIM, format!("{name}:"))));
            }
        } else {
            let of = |(text, trained, segment): &(String, bool, i64)| Token {
                text: text.clone(),
                trained: *trained,
                segment: *segment,
            };
            let tokens: Vec<Token> = row.tokens.iter().map(of).collect();
            out.push_str(&tokens::row(id, &tokens));
        }
        out.push('\n');
    }
    out
}
