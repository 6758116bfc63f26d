//! `pipe recipes`: the gallery, embedded in the binary.

use std::borrow::Cow;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use pipe_stages::import::xtuner::names;

use crate::failure::{Failure, Outcome};
use crate::import::{self, ImportArgs};
use crate::report;
use crate::report::format;

/// List, print or copy the recipes that come with pipe.
#[derive(Args, Debug)]
pub struct RecipesArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Name and purpose of every recipe.
    List {
        /// Only recipes whose name or purpose contains this; XTuner's configuration names are searched too.
        #[arg(short = 'p', long = "pattern", value_name = "SUBSTR")]
        pattern: Option<String>,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Print a recipe; XTuner's configuration names work as well.
    Show {
        name: String,
    },
    /// Write a recipe to a file or into a folder; XTuner's configuration names work as well.
    Copy {
        name: String,
        dest: PathBuf,
        /// Replace DEST if it exists.
        #[arg(long)]
        force: bool,
    },
    Import(ImportArgs),
}

/// File name and text of every recipe, by name.
static GALLERY: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/gallery.rs"));

pub fn recipes(args: &RecipesArgs) -> Outcome {
    match &args.action {
        Action::List { pattern, json } => {
            list(pattern.as_deref().unwrap_or(""), *json);
            Ok(())
        }
        Action::Show { name } => find(name).map(|(_, text)| report::print(&text)),
        Action::Copy { name, dest, force } => copy(name, dest, *force),
        Action::Import(args) => import::import(args),
    }
}

fn list(pattern: &str, json: bool) {
    let pattern = pattern.to_lowercase();
    let wanted = |name: &str, purpose: &str| format!("{name} {purpose}").to_lowercase().contains(&pattern);
    let own = GALLERY.iter().map(|(file, text)| (stem(file).to_string(), purpose(text)));
    let own: Vec<(String, String)> = own.filter(|(name, purpose)| wanted(name, purpose)).collect();
    // Some hundred names of another tool would bury the gallery, so they are only shown to those who look for one.
    let aliases = names::all().into_iter().filter(|_| !pattern.is_empty());
    let aliases = aliases.map(|name| (name.clone(), names::purpose(&name).unwrap_or_default()));
    let aliases: Vec<(String, String)> = aliases.filter(|(name, purpose)| wanted(name, purpose)).collect();
    if json {
        let rows = |list: &[(String, String)]| -> Vec<_> {
            list.iter().map(|(name, purpose)| serde_json::json!({"name": name, "purpose": purpose})).collect()
        };
        report::json(&serde_json::json!({ "recipes": rows(&own), "aliases": rows(&aliases) }));
        return;
    }
    let width = report::width();
    let longest = own.iter().chain(&aliases).map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, purpose) in own.iter().chain(&aliases) {
        report::print(&format::clip(&format!("{name:<longest$}  {purpose}"), width));
    }
    if own.is_empty() && aliases.is_empty() {
        report::note(&format!("no recipe's name or purpose contains `{pattern}`"));
    }
    report::note("copy one with: pipe recipes copy NAME DEST");
}

fn copy(name: &str, dest: &std::path::Path, force: bool) -> Outcome {
    let (file, text) = find(name)?;
    let dest = if dest.is_dir() { dest.join(file) } else { dest.to_path_buf() };
    if dest.exists() && !force {
        return Err(Failure::invalid(format!("{} exists already", dest.display())).hint("--force replaces it"));
    }
    let written =
        dest.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&dest, text.as_bytes()));
    written.map_err(|e| Failure::invalid(format!("cannot write {}: {e}", dest.display())))?;
    report::note(&format!("wrote {0}; check it with: pipe validate {0}", dest.display()));
    Ok(())
}

/// File name and text of a recipe of the gallery, or of one that XTuner has under this name.
fn find(name: &str) -> Result<(String, Cow<'static, str>), Failure> {
    let wanted = stem(name).strip_suffix(".py").unwrap_or(stem(name));
    if let Some((file, text)) = GALLERY.iter().find(|(file, _)| stem(file) == wanted) {
        return Ok((file.to_string(), Cow::Borrowed(*text)));
    }
    if let Some(text) = names::recipe(wanted) {
        return Ok((format!("{wanted}.yml"), Cow::Owned(text)));
    }
    let failure = Failure::invalid(format!("there is no recipe named `{name}` in the gallery"));
    Err(failure.hint(match near(wanted).as_slice() {
        [] => "pipe recipes list".to_string(),
        names => format!("did you mean {}?", names.join(", ")),
    }))
}

/// Names that share most of their parts with a wanted one.
fn near(wanted: &str) -> Vec<String> {
    let parts = |name: &str| -> Vec<String> {
        name.to_lowercase().split(['-', '_', '.']).filter(|part| !part.is_empty()).map(str::to_string).collect()
    };
    let all = GALLERY.iter().map(|(file, _)| stem(file).to_string()).chain(names::all());
    let wanted = parts(wanted);
    let mut scored: Vec<(usize, String)> = all
        .map(|name| (parts(&name).iter().filter(|part| wanted.contains(part)).count(), name))
        .filter(|(shared, _)| *shared * 2 > wanted.len())
        .collect();
    scored.sort_by_key(|(shared, _)| std::cmp::Reverse(*shared));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

fn stem(file: &str) -> &str {
    file.strip_suffix(".yml").or_else(|| file.strip_suffix(".yaml")).unwrap_or(file)
}

/// The first comment of a recipe says what it is for.
fn purpose(text: &str) -> String {
    let comments = text.lines().take_while(|line| line.starts_with('#') || line.trim().is_empty());
    let mut words = comments.map(|line| line.trim_start_matches('#').trim()).filter(|line| !line.is_empty());
    let first = words.next().unwrap_or_default();
    let lower = first.to_lowercase();
    let told = if lower.starts_with("purpose:") { first["purpose:".len()..].trim() } else { first };
    told.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_comment_is_the_purpose() {
        assert_eq!(purpose("# Purpose: tune a small model.\n# Command: x\nbase_model: a\n"), "tune a small model.");
        assert_eq!(purpose("base_model: a\n# later\n"), "");
    }
}
