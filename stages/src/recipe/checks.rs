//! What single keys cannot tell: settings that contradict each other, lack something, or cannot work.
//!
//! Every check looks at the typed recipe and says its piece independently of the others. A check stays silent when one of
//! the keys it weighs was already complained about.

mod axolotl;
mod counts;
mod data;
mod methods;
mod model;
mod points;
mod shaping;
mod trackers;
mod training;

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
    tainted: Tainted,
    problems: &'a mut Vec<Problem>,
}

/// Codes that speak of what is written for a key, and point at it.
const ABOUT_VALUES: [&str; 7] = [
    "missing-file",
    "dataset-files",
    "unfit-value",
    "no-module",
    "not-a-token",
    "unsupported-model",
    "unusable-tokenizer",
];

/// Runs every check.
pub(super) fn run(recipe: &Recipe, tree: &Node, tainted: &Tainted, project: &Project, problems: &mut Vec<Problem>) {
    let mut facts = Facts { recipe, tree, project, tainted: tainted.clone(), problems };
    data::check(&mut facts);
    shaping::check(&mut facts);
    training::check(&mut facts);
    methods::check(&mut facts);
    points::check(&mut facts);
    axolotl::check(&mut facts);
    files::check(&mut facts);
    model::check(&mut facts);
    counts::check(&mut facts);
    trackers::check(&mut facts);
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

    /// The key is at fault as well, though something was said of another.
    pub fn taint(&mut self, key: &str) {
        self.tainted.add(key);
    }

    pub fn error(&mut self, code: &'static str, key: &str, message: String, suggestion: Option<String>) {
        self.say(Severity::Error, code, key, message, suggestion);
    }

    pub fn warning(&mut self, code: &'static str, key: &str, message: String, suggestion: Option<String>) {
        self.say(Severity::Warning, code, key, message, suggestion);
    }

    /// Two keys that exclude each other; said at the one written later.
    pub fn conflict(&mut self, keys: [&str; 2], why: &str, remedy: &str) {
        if self.sound(&keys) {
            let [mut first, mut second] = keys;
            let place = |key: &str| self.tree.key_span(key).map_or((0, 0), |span| (span.line, span.column));
            if place(first) > place(second) && place(second).0 > 0 {
                (first, second) = (second, first);
            }
            let line =
                self.tree.key_span(first).filter(|span| span.line > 0).map(|span| format!(" (line {})", span.line));
            let message = format!("`{second}` does not go with `{first}`{}: {why}", line.unwrap_or_default());
            self.error("conflicting-keys", second, message, Some(remedy.to_string()));
            self.taint(first);
        }
    }

    /// Says it once; what depends on a key with an error has nothing more to say.
    fn say(&mut self, severity: Severity, code: &'static str, key: &str, message: String, suggestion: Option<String>) {
        // A missing key is said at the item that lacks it, or at the recipe's first line.
        let parent = key.rsplit_once('.').and_then(|(parent, _)| self.tree.at(parent)).unwrap_or(self.tree);
        let span = self.tree.key_span(key).unwrap_or(&parent.span);
        let value = self.tree.at(key).filter(|node| ABOUT_VALUES.contains(&code) && node.scalar().is_some());
        let span = value.map_or(span, |node| &node.span);
        let mut problem = span.problem(severity, code, message);
        problem.key = Some(key.to_string());
        problem.suggestion = suggestion;
        self.problems.push(problem);
        if severity == Severity::Error {
            self.tainted.add(key);
        }
    }
}
