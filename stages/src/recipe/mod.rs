//! Recipes: the typed keys, their schema, and the checks that find everything wrong with one before anything runs.
//!
//! [`load`] is the only way in. A [`Recipe`] is what was written; what follows from it is computed where
//! a stage is configured. Nothing here reads data, starts a stage or touches the network.

mod checks;
pub mod dataset;
mod examples;
mod files;
pub mod format;
mod keys;
mod known;
mod mistake;
mod numbers;
mod reference;
mod requirements;
mod scalar;
mod schema;
pub mod sections;
mod structure;
mod suggest;
pub mod training;
pub mod values;

use std::path::{Path, PathBuf};

use pipe_engine::document::{self, Node};
use pipe_engine::problem::Problem;

pub use crate::eval::section::{EvalSection, Export, Metric};
pub use dataset::{Dataset, Role, Source, UserDefined};
pub use format::Format;
pub use keys::{BnbConfig, FourBit, Recipe, SpecialTokens};
pub use mistake::Mistake;
pub use reference::reference_markdown;
pub use schema::schema;
pub use sections::*;
pub use training::*;
pub use values::*;

use crate::project::Project;

/// A recipe as read from disk, with everything that is wrong with it.
#[derive(Debug)]
pub struct Loaded {
    /// Present exactly when no problem is an error.
    pub recipe: Option<Recipe>,
    /// Errors, warnings and notices, sorted by place.
    pub problems: Vec<Problem>,
    pub project: Project,
    /// The recipe and every file it extends, as read.
    pub sources: Vec<PathBuf>,
    /// The tree that was checked, with positions; absent when the file could not be read as YAML.
    pub tree: Option<Node>,
}

/// Reads, merges and checks the recipe at `path`, with `--set` assignments such as `datasets[0].path=x` on top.
pub fn load(path: &Path, sets: &[String]) -> Loaded {
    load_in(Project::of(path), path, sets)
}

/// The same in a project that the caller knows more of.
pub fn load_in(project: Project, path: &Path, sets: &[String]) -> Loaded {
    let document = match document::read(path, sets) {
        Ok(document) => document,
        Err(failure) => {
            return Loaded { recipe: None, problems: failure.problems, project, sources: failure.sources, tree: None };
        }
    };
    let checked = structure::check(&document);
    let mut problems = checked.problems;
    checks::run(&checked.recipe, &checked.tree, &checked.tainted, &project, &mut problems);
    document.sort(&mut problems);
    let valid = !problems.iter().any(Problem::is_error);
    Loaded {
        recipe: valid.then_some(checked.recipe),
        problems,
        project,
        sources: document.sources,
        tree: Some(document.root),
    }
}

#[cfg(test)]
mod tests;
