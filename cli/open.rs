//! Opens what commands work on: a recipe with its project and plan, and the store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipe_engine::document::Node;
use pipe_engine::plan::{self, Plan};
use pipe_engine::problem::{Problem, Severity};
use pipe_engine::store::{Store, StoreError};
use pipe_stages::compile::{Machine, compile};
use pipe_stages::project::Project;
use pipe_stages::recipe::{self, Recipe};
use pipe_stages::worker::{self, Worker};

use crate::args::{RecipeArgs, StoreArgs, assignments};
use crate::failure::Failure;
use crate::report;

/// A valid recipe and what it compiles to.
pub struct Opened {
    /// As the user named it.
    pub path: PathBuf,
    pub recipe: Recipe,
    pub project: Project,
    pub plan: Plan,
    pub store_folder: PathBuf,
    /// Name under which `why` finds what this recipe last was.
    pub scope: String,
    /// Where its keys stand.
    pub tree: Option<Node>,
}

/// Reads, checks and compiles a recipe; warnings are printed, errors are the failure.
pub fn open(args: &RecipeArgs) -> Result<Opened, Failure> {
    let (opened, remarks) = open_quietly(args)?;
    if !remarks.is_empty() {
        report::error_lines(&[report::problems::render(&remarks)]);
    }
    Ok(opened)
}

/// The same, with the warnings for the caller to tell.
pub fn open_quietly(args: &RecipeArgs) -> Result<(Opened, Vec<Problem>), Failure> {
    let project = Project::of(&args.recipe);
    let store_folder = store_folder(&args.store, &project.root);
    let loaded = recipe::load_in(project.with_store(&store_folder), &args.recipe, &assignments(&args.set));
    let Some(recipe) = loaded.recipe else { return Err(Failure::problems(loaded.problems)) };
    let nodes = compile(&recipe, &loaded.project, &Machine::here(worker()));
    let nodes = nodes.map_err(|problems| Failure::problems(located(problems, &args.recipe)))?;
    // The compiler of recipes makes plans that hold; if not, no recipe can mend it.
    let plan = plan::plan(nodes).map_err(|e| Failure::stage(format!("the recipe does not make a plan: {e}")))?;
    let scope = scope(&args.recipe, &loaded.project);
    let path = args.recipe.clone();
    let opened = Opened { path, recipe, project: loaded.project, plan, store_folder, scope, tree: loaded.tree };
    Ok((opened, loaded.problems.into_iter().filter(|problem| problem.severity != Severity::Error).collect()))
}

impl Opened {
    /// Opens the recipe's store for writing.
    pub fn store(&self) -> Result<Arc<Store>, Failure> {
        store_at(&self.store_folder)
    }

    /// A path of this project as it is shortest to type from the current folder.
    pub fn shown(&self, path: &Path) -> PathBuf {
        let here = std::env::current_dir().unwrap_or_default();
        path.strip_prefix(&here).map_or_else(|_| path.to_path_buf(), Path::to_path_buf)
    }
}

/// --cache-dir, else PIPE_CACHE_DIR, else `.pipe` in the project.
pub fn store_folder(args: &StoreArgs, root: &Path) -> PathBuf {
    let named = std::env::var_os("PIPE_CACHE_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    args.cache_dir.clone().or(named).unwrap_or_else(|| root.join(".pipe"))
}

/// The store that a command without a recipe is about: the one of the project around the current folder.
pub fn store_here(args: &StoreArgs) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    store_folder(args, &Project::of(&here.join("recipe.yml")).root)
}

/// Opens a store for writing.
pub fn store_at(folder: &Path) -> Result<Arc<Store>, Failure> {
    Store::open(folder).map(Arc::new).map_err(store_failure)
}

/// A store that cannot be used is a resource that could not be had; one of another format is a wrong argument.
pub fn store_failure(error: StoreError) -> Failure {
    let hint = error.hint();
    let failure = match &error {
        StoreError::Format { .. } => Failure::invalid(error.to_string()),
        _ => Failure::busy(error.to_string()),
    };
    failure.hint(hint)
}

/// A selector that names no node is a wrong argument.
pub fn unknown_node(error: &impl std::fmt::Display) -> Failure {
    Failure::invalid(error.to_string())
}

fn worker() -> Worker {
    let named = std::env::var_os("PIPE_TORCH").filter(|value| !value.is_empty()).map(PathBuf::from);
    let executable = std::env::current_exe().ok().and_then(|exe| exe.canonicalize().ok());
    worker::locate(named.as_deref(), executable.as_deref())
}

/// Problems of the recipe as a whole name no file themselves.
fn located(mut problems: Vec<Problem>, path: &Path) -> Vec<Problem> {
    problems
        .iter_mut()
        .filter(|problem| problem.file.is_empty())
        .for_each(|problem| problem.file = path.display().to_string());
    problems
}

/// The recipe's place in its project, so that the same recipe run from elsewhere is the same recipe.
fn scope(path: &Path, project: &Project) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    absolute.strip_prefix(&project.root).unwrap_or(&absolute).display().to_string()
}
