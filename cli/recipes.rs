//! `pipe recipes`: the gallery, embedded in the binary.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::failure::{Failure, Outcome};
use crate::report;
use crate::report::table::{Align, Column, Table};

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
        /// Only recipes whose name or purpose contains this.
        #[arg(short = 'p', long = "pattern", value_name = "SUBSTR")]
        pattern: Option<String>,
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Print a recipe.
    Show { name: String },
    /// Write a recipe to a file or into a folder.
    Copy {
        name: String,
        dest: PathBuf,
        /// Replace DEST if it exists.
        #[arg(long)]
        force: bool,
    },
}

/// File name and text of every recipe, by name.
static GALLERY: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/gallery.rs"));

pub fn recipes(args: &RecipesArgs) -> Outcome {
    match &args.action {
        Action::List { pattern, json } => {
            list(pattern.as_deref().unwrap_or(""), *json);
            Ok(())
        }
        Action::Show { name } => find(name).map(|(_, text)| report::print(text)),
        Action::Copy { name, dest, force } => copy(name, dest, *force),
    }
}

fn list(pattern: &str, json: bool) {
    let wanted = |name: &str, text: &str| {
        let hay = format!("{name} {}", purpose(text)).to_lowercase();
        hay.contains(&pattern.to_lowercase())
    };
    let found: Vec<_> = GALLERY.iter().filter(|(name, text)| wanted(name, text)).collect();
    if json {
        let rows = found.iter().map(|(file, text)| serde_json::json!({"name": stem(file), "purpose": purpose(text)}));
        report::json(&serde_json::json!({ "recipes": rows.collect::<Vec<_>>() }));
        return;
    }
    let mut table = Table::new(&[
        Column { head: "recipe", align: Align::Left, drop: 0 },
        Column { head: "purpose", align: Align::Left, drop: 0 },
    ]);
    found.iter().for_each(|(file, text)| table.row(vec![stem(file).to_string(), purpose(text)]));
    report::print(&table.lines(report::width()).join("\n"));
    report::note("copy one with: pipe recipes copy NAME DEST");
}

fn copy(name: &str, dest: &std::path::Path, force: bool) -> Outcome {
    let (file, text) = find(name)?;
    let dest = if dest.is_dir() { dest.join(file) } else { dest.to_path_buf() };
    if dest.exists() && !force {
        return Err(Failure::invalid(format!("{} exists already", dest.display())).hint("--force replaces it"));
    }
    let written = dest.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&dest, text));
    written.map_err(|e| Failure::invalid(format!("cannot write {}: {e}", dest.display())))?;
    report::note(&format!("wrote {0}; check it with: pipe validate {0}", dest.display()));
    Ok(())
}

fn find(name: &str) -> Result<&'static (&'static str, &'static str), Failure> {
    let wanted = stem(name);
    GALLERY.iter().find(|(file, _)| stem(file) == wanted).ok_or_else(|| {
        let near =
            GALLERY.iter().map(|(file, _)| stem(file)).filter(|have| have.contains(wanted) || wanted.contains(have));
        let near: Vec<&str> = near.collect();
        let hint = if near.is_empty() {
            "pipe recipes list".to_string()
        } else {
            format!("did you mean {}?", near.join(", "))
        };
        Failure::invalid(format!("there is no recipe named `{name}` in the gallery")).hint(hint)
    })
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
