//! `pipe report`: a run as one HTML page that needs nothing else: no network, no script, no other file; and the pages that
//! `pipe ui` serves.
//!
//! `gather` turns the run's record and outputs into plain values, `frame` and its templates show them.

mod chart;
mod compare;
mod facts;
mod frame;
mod gather;
mod lineage;
mod measures;
mod rows;
mod samples;

pub use frame::{Part, Served, address, body, served};
pub use gather::flatten;
pub use rows::Memory;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use pipe_engine::digest::Digest;
use pipe_engine::runs::Run;
use pipe_engine::store::Store;
use pipe_stages::recipe::Recipe;

use crate::args::StoreArgs;
use crate::failure::{Failure, Outcome};
use crate::{open, report, runs};

/// Bytes within which a page says what it is about.
const HEAD: usize = 1024;

/// Write a run as one self-contained HTML page: curves, evaluation, sample answers, data statistics, lineage.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// A run's id, its start or its end.
    #[arg(value_name = "RUN", default_value = "last")]
    run: String,
    /// Other runs to lay beside it: curves over each other, measures, keys of the recipes that differ.
    #[arg(long, value_name = "RUN", num_args = 1..)]
    compare: Vec<String>,
    /// Where the page goes; `-` is standard output. Default: report.html or compare.html in the run's record.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn report(args: &ReportArgs) -> Outcome {
    let store = Store::peek(open::store_here(&args.store));
    let run = runs::find(&store, &args.run)?;
    let (page, name) = if args.compare.is_empty() {
        (html(&store, &run)?, "report.html")
    } else {
        let others = args.compare.iter().map(|name| runs::find(&store, name)).collect::<Result<Vec<_>, _>>()?;
        let runs = comparable([vec![run.clone()], others].concat())?;
        (frame::file(&compared(&store, &runs), "")?, "compare.html")
    };
    match args.output.as_deref() {
        Some(path) if path == Path::new("-") => report::bytes(page.as_bytes()),
        path => {
            let path = path.map_or_else(|| store.runs().join(&run.id).join(name), Path::to_path_buf);
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
    let source = gather::Source::of(store, run);
    frame::file(&Part::Run(Box::new(gather::page(&source, rows::Told::of(&source)))), &content(run))
}

/// The content of a run's page, for whoever makes it again and again.
pub fn run(store: &Store, run: &Run, memory: &Memory) -> Part {
    let source = gather::Source::of(store, run);
    Part::Run(Box::new(gather::page(&source, memory.told(&source))))
}

/// The content of the list of runs.
pub fn listed(store: &Store) -> Part {
    Part::Runs(compare::listed(store))
}

/// Runs that can be compared, each once.
///
/// # Errors
/// There are too few or too many.
pub fn comparable(runs: Vec<Run>) -> Result<Vec<Run>, Failure> {
    let mut seen = BTreeSet::new();
    let runs: Vec<Run> = runs.into_iter().filter(|run| seen.insert(run.id.clone())).collect();
    match runs.len() {
        2..=chart::COLOURS => Ok(runs),
        n => Err(Failure::invalid(format!("choose two to {} different runs to compare, not {n}", chart::COLOURS))),
    }
}

/// The content of a page that compares runs.
pub fn compared(store: &Store, runs: &[Run]) -> Part {
    Part::Comparison(Box::new(compare::comparison(store, runs)))
}

/// The content in the place of a page that there is not.
pub fn missing(message: String) -> Part {
    Part::Missing(facts::Missing { message })
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
