//! `pipe report`: a run as one HTML page that needs nothing else: no network, no script, no other file.
//!
//! `gather` turns the run's record and outputs into plain values, `page.html.jinja` shows them. Every value is escaped on its
//! way out, and the page itself forbids whatever it does not bring along.

mod chart;
mod facts;
mod gather;
mod lineage;
mod measures;
mod rows;
mod samples;

pub use gather::flatten;

use std::path::{Path, PathBuf};

use clap::Args;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, Output, State, context, escape_formatter};
use pipe_engine::digest::Digest;
use pipe_engine::runs::Run;
use pipe_engine::store::Store;
use pipe_stages::recipe::Recipe;

use crate::args::StoreArgs;
use crate::failure::{Failure, Outcome};
use crate::report::{format, tokens};
use crate::{open, report, runs};

/// Bytes within which a page says what it is about.
const HEAD: usize = 1024;

/// Write a run as one self-contained HTML page: curves, evaluation, sample answers, data statistics, lineage.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// A run's id, its start or its end.
    #[arg(value_name = "RUN", default_value = "last")]
    run: String,
    /// Where the page goes; `-` is standard output. Default: report.html in the run's record.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn report(args: &ReportArgs) -> Outcome {
    let store = Store::peek(open::store_here(&args.store));
    let run = runs::find(&store, &args.run)?;
    let page = html(&store, &run)?;
    match args.output.as_deref() {
        Some(path) if path == Path::new("-") => report::bytes(page.as_bytes()),
        path => {
            let path = path.map_or_else(|| store.runs().join(&run.id).join("report.html"), Path::to_path_buf);
            write(&path, &page)?;
            report::print(&path.display().to_string());
        }
    }
    Ok(())
}

/// The page of a run.
///
/// # Errors
/// The template does not fit the facts, which is this program's fault.
pub fn html(store: &Store, run: &Run) -> Result<String, Failure> {
    let page = gather::page(&gather::Source::of(store, run));
    render(&page, &content(run)).map_err(|error| Failure::stage(format!("the page cannot be made: {error:#}")))
}

/// The page of a run that has just ended, in the recipe's `output_dir`; `None` where the recipe wants none. One that is
/// there and shows what this run came to is left as it is, for nothing was done.
///
/// # Errors
/// The page cannot be made or written; the run is what it is.
pub fn publish(store: &Store, id: &str, recipe: &Recipe, output_dir: &Path) -> Result<Option<PathBuf>, Failure> {
    let is_off = recipe.report.as_ref().is_some_and(|toggle| toggle.on().is_none());
    let Some(run) = pipe_engine::runs::find(store, id).filter(|_| !is_off) else { return Ok(None) };
    let path = output_dir.join("report.html");
    let did_nothing = run.finished.as_ref().is_some_and(|finished| finished.result.executed.is_empty());
    if !(did_nothing && shows(&path, &content(&run))) {
        write(&path, &html(store, &run)?)?;
    }
    Ok(Some(path))
}

/// Whether the page at `path` is about this content.
fn shows(path: &Path, content: &str) -> bool {
    let mut head = [0; HEAD];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read(&mut file, &mut head));
    read.is_ok_and(|n| String::from_utf8_lossy(&head[..n]).contains(content))
}

/// Writes a page in one step, so that whoever looks meanwhile sees the old one or the new one.
///
/// # Errors
/// The folder cannot be made or written.
pub fn write(path: &Path, page: &str) -> Outcome {
    let failed = |e: std::io::Error| {
        let hint = "name a file in a folder that can be written: --output FILE";
        Failure::stage(format!("cannot write {}: {e}", path.display())).hint(hint)
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut draft = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    std::io::Write::write_all(&mut draft, page.as_bytes()).map_err(failed)?;
    std::fs::set_permissions(draft.path(), readable()).map_err(failed)?;
    draft.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// As other files are; temporary ones are for their owner alone.
fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// What a page is about, for whoever asks whether the one that is there still holds: the outputs, and what it shows of them.
fn content(run: &Run) -> String {
    let outputs = run.finished.as_ref().map(|finished| &finished.result.outputs);
    let resolved = run.about.document.get("resolved");
    let section = resolved.and_then(|recipe| recipe.get("report"));
    Digest::of_canonical(&serde_json::json!([outputs, section, env!("CARGO_PKG_VERSION")])).to_string()
}

fn render(page: &facts::Page, content: &str) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_formatter(shown);
    environment.add_filter("count", format::count);
    environment.add_filter("seconds", format::seconds);
    environment.add_filter("bytes", format::bytes);
    environment.add_filter("percent", format::percent);
    environment.add_template("page.html", include_str!("page.html.jinja"))?;
    environment.add_template("run.html", include_str!("run.html.jinja"))?;
    // What is not known before the page is made cannot be written into a row: only this script runs.
    let nonce = Digest::of(serde_json::to_string(page).unwrap_or_default().as_bytes()).to_string();
    environment.get_template("page.html")?.render(context! {
        page => Serde(page),
        content => content,
        style => include_str!("page.css"),
        script => include_str!("page.js"),
        nonce => nonce,
    })
}

/// Writes a value escaped, with the characters that control a display made visible.
fn shown(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) if !value.is_safe() => escape_formatter(out, state, &Value::from(tokens::visible(text))),
        _ => escape_formatter(out, state, value),
    }
}
