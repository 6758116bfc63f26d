//! What single keys cannot tell: settings that contradict each other, lack something, or cannot work.
//!
//! Every check looks at the typed recipe and says its piece independently of the others. A check stays silent when one of
//! the keys it weighs was already complained about.

mod data;
mod methods;
mod points;
mod training;
mod unserved;

use pipe_engine::document::Node;
use pipe_engine::problem::{Problem, Severity};

use super::Recipe;
use super::files;
use super::structure::Tainted;
use crate::project::Project;

/// What a check may look at, and where it complains.
pub(super) struct Facts<'a> {
    pub recipe: &'a Recipe,
    pub tree: &'a Node,
    pub project: &'a Project,
    tainted: &'a Tainted,
    problems: &'a mut Vec<Problem>,
}

/// Runs every check.
pub(super) fn run(recipe: &Recipe, tree: &Node, tainted: &Tainted, project: &Project, problems: &mut Vec<Problem>) {
    let mut facts = Facts { recipe, tree, project, tainted, problems };
    data::check(&mut facts);
    training::check(&mut facts);
    methods::check(&mut facts);
    points::check(&mut facts);
    files::check(&mut facts);
    unserved::check(&mut facts);
}

impl Facts<'_> {
    /// Whether none of the keys was already complained about.
    pub fn sound(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| !self.tainted.has(key))
    }

    /// Whether the key is written and not blank.
    pub fn written(&self, key: &str) -> bool {
        self.tree.at(key).is_some_and(|node| !node.is_null())
    }

    pub fn error(&mut self, code: &'static str, key: &str, message: String, suggestion: Option<String>) {
        self.say(Severity::Error, code, key, message, suggestion);
    }

    pub fn warning(&mut self, code: &'static str, key: &str, message: String, suggestion: Option<String>) {
        self.say(Severity::Warning, code, key, message, suggestion);
    }

    /// Two keys that exclude each other; said at the second.
    pub fn conflict(&mut self, keys: [&str; 2], why: &str, remedy: &str) {
        if self.sound(&keys) {
            let [first, second] = keys;
            let line =
                self.tree.key_span(first).filter(|span| span.line > 0).map(|span| format!(" (line {})", span.line));
            let message = format!("`{second}` does not go with `{first}`{}: {why}", line.unwrap_or_default());
            self.error("conflicting-keys", second, message, Some(remedy.to_string()));
        }
    }

    fn say(&mut self, severity: Severity, code: &'static str, key: &str, message: String, suggestion: Option<String>) {
        let mut problem = match self.tree.key_span(key) {
            Some(span) => span.problem(severity, code, message),
            None => {
                // A missing key of a list's item is said at the item; one of the recipe has no place.
                let parent = key.rsplit_once('.').and_then(|(parent, _)| self.tree.at(parent));
                let mut problem = parent.unwrap_or(self.tree).span.problem(severity, code, message);
                if parent.is_none() {
                    problem.line = None;
                    problem.column = None;
                }
                problem
            }
        };
        problem.key = Some(key.to_string());
        problem.suggestion = suggestion;
        self.problems.push(problem);
    }
}
