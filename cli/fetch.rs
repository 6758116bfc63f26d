//! `pipe fetch`: what a recipe names by address, brought onto this machine; `run` calls the same for what is missing.

use std::path::PathBuf;

use clap::Args;
use pipe_engine::problem::{Problem, Severity};
use pipe_engine::state::{self, NodeState, Selection};
use pipe_engine::task::Cancel;
use pipe_engine::why::{Cause, CauseKind};
use pipe_stages::fetch::{
    Brought, FetchError, FetchKind, Fetcher, HubKind, Look, Missing, Need, Source, shown_size, sources, without_weights,
};
use serde_json::{Value, json};

use crate::args::RecipeArgs;
use crate::failure::{Failure, Outcome};
use crate::open::{self, Opened};
use crate::report;

/// Fetch what a recipe names by address, so that it runs without a network.
///
/// A branch or tag is resolved to a commit once; later runs read that commit until --update asks for a newer one.
#[derive(Args, Debug)]
pub struct FetchArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Look again at what was fetched before, and take what is there now.
    #[arg(long)]
    update: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub fn fetch(args: &FetchArgs) -> Outcome {
    let opened = open::open_quietly(&args.recipe)?.0;
    let look = if args.update { Look::Again } else { Look::Once };
    let found = sources(&opened.recipe, &opened.project);
    let mut brought = Vec::new();
    for source in &found {
        brought.push(bring(&opened, source, look, args.json)?);
    }
    // Splits and configurations can be checked now that their names are known.
    let opened = open::open_quietly(&args.recipe)?.0;
    let rows = found.iter().zip(&brought);
    if args.json {
        report::json(&json!({ "sources": rows.map(|(source, one)| row(&opened, source, one)).collect::<Vec<_>>() }));
        return Ok(());
    }
    let lines = rows.map(|(source, one)| {
        let what = match one.files {
            0 => "is here".to_string(),
            n => format!("{n} fetched, {}", shown_size(one.bytes)),
        };
        format!("{}  {}{}: {what}", source.key, source.address, revision(source, one))
    });
    let lines: Vec<String> = lines.collect();
    let none = "this recipe names nothing by address";
    report::print(&if lines.is_empty() { none.to_string() } else { lines.join("\n") });
    Ok(())
}

/// Stages that read a model's weights.
const READ_WEIGHTS: [&str; 5] = ["train", "eval", "convert", "merge", "quantize"];

/// The recipe with everything on this machine that the selected nodes read; nothing is asked when it is.
pub fn ensure(args: &RecipeArgs, opened: Opened, selection: &Selection, quiet: bool) -> Result<Opened, Failure> {
    let mut fetched = false;
    let wanted = state::wanted(&opened.plan, selection).map_err(|error| open::unknown_node(&error))?;
    let weights = wanted.iter().any(|node| READ_WEIGHTS.contains(&node.stage()));
    let all = sources(&opened.recipe, &opened.project);
    for source in if weights { all } else { without_weights(all) } {
        if source.missing(&opened.project).is_some() {
            bring(&opened, &source, Look::Once, quiet)?;
            fetched = true;
        }
    }
    if fetched { Ok(open::open_quietly(args)?.0) } else { Ok(opened) }
}

/// What addresses stood for, for the record of a run.
pub fn pinned(opened: &Opened) -> Value {
    let pin = |source: &Source<'_>| {
        let pin = opened.project.downloads.pin(&source.address)?;
        Some(json!({ "key": source.key, "address": pin.address, "revision": pin.revision, "resolved": pin.resolved }))
    };
    sources(&opened.recipe, &opened.project).iter().filter_map(pin).collect()
}

/// The base model as another command can be given it.
pub fn base_model(opened: &Opened) -> Option<String> {
    let written = opened.recipe.base_model.clone()?;
    let (project, revision) = (&opened.project, opened.recipe.model_revision.as_deref());
    let Some(address) = project.address(&written, HubKind::Model, revision) else { return Some(written) };
    Some(opened.shown(&project.downloads.model(&address, Need::Weights)).display().to_string())
}

/// Says of nodes whose files are not here that a run would fetch them.
pub fn mark(opened: &Opened, states: &mut [NodeState]) {
    let absent: Vec<(PathBuf, String)> = sources(&opened.recipe, &opened.project)
        .iter()
        .flat_map(|source| absent(opened, source).into_iter().map(|path| (path, source.address.to_string())))
        .collect();
    if absent.is_empty() {
        return;
    }
    for state in states {
        let node = opened.plan.position(&state.node).map(|i| &opened.plan.nodes()[i]);
        let files = node.map(|node| node.task.files()).unwrap_or_default();
        let needs = absent.iter().find(|(path, _)| files.iter().any(|file| file.path.starts_with(path)));
        if let Some((_, address)) = needs {
            state.causes = vec![Cause::new(CauseKind::File, format!("{address} would be fetched"))];
            state.reason = state.causes[0].clause();
        }
    }
}

/// Paths at which nothing is yet.
fn absent(opened: &Opened, source: &Source<'_>) -> Vec<PathBuf> {
    let downloads = &opened.project.downloads;
    match (source.missing(&opened.project), downloads.pin(&source.address)) {
        (None, _) => Vec::new(),
        (Some(Missing::Files(files)), Some(pin)) => {
            let snapshot = downloads.snapshot(&pin);
            let files = files.into_iter().map(|item| snapshot.join(item.name));
            files.chain([downloads.nowhere(&source.address)]).collect()
        }
        (Some(_), _) => vec![downloads.nowhere(&source.address)],
    }
}

fn bring(opened: &Opened, source: &Source<'_>, look: Look, quiet: bool) -> Result<Brought, Failure> {
    let tell = |line: &str| {
        if !quiet {
            report::note(line);
        }
    };
    let fetcher = Fetcher { project: &opened.project, cancel: &Cancel::default(), tell: &tell };
    fetcher.bring(source, look).map_err(|error| failure(opened, &source.key, error))
}

/// The failure, at the place of the recipe that names what did not come.
fn failure(opened: &Opened, key: &str, error: FetchError) -> Failure {
    let span = opened.tree.as_ref().and_then(|tree| tree.key_span(key));
    let file = span.map_or_else(|| opened.path.display().to_string(), |span| span.file.to_string());
    let place = span.filter(|span| span.line > 0);
    let (line, column) = (place.map(|span| span.line), place.map(|span| span.column));
    let message = format!("`{key}`: {}", error.message);
    let at = place.map_or_else(|| file.clone(), |span| format!("{file}:{}:{}", span.line, span.column));
    match error.kind {
        FetchKind::Invalid => Failure::problems(vec![Problem {
            severity: Severity::Error,
            code: "not-fetched",
            message,
            file,
            line,
            column,
            key: Some(key.to_string()),
            suggestion: Some(error.hint),
        }]),
        FetchKind::Unreachable => Failure::busy(format!("{at}: {message}")).hint(error.hint),
        FetchKind::Local => Failure::stage(format!("{at}: {message}")).hint(error.hint),
        FetchKind::Cancelled => Failure::interrupted(),
    }
}

fn row(opened: &Opened, source: &Source<'_>, brought: &Brought) -> Value {
    let (pin, path) = (&brought.pin, source.place(&opened.project));
    json!({
        "key": source.key, "address": source.address.to_string(), "revision": pin.revision, "resolved": pin.resolved,
        "fetched": brought.files, "bytes": brought.bytes, "path": path,
    })
}

/// The commit, where it was not written out.
fn revision(source: &Source<'_>, brought: &Brought) -> String {
    let commit = &brought.pin.revision;
    let is_told = commit.is_empty() || source.address.to_string().contains(commit.as_str());
    if is_told { String::new() } else { format!(" ({})", commit.chars().take(12).collect::<String>()) }
}
