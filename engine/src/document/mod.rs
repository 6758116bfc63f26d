//! Recipe documents: YAML trees in which every key and value knows where it was written.
//!
//! [`read`] parses a file, puts what it `extends` beneath it, applies `--set` assignments and fills in `${variables}`.
//! It knows nothing of what keys mean, and refuses early whatever would cost much: large files, deep nesting, alias bombs.

mod explain;
mod merge;
mod parse;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::problem::{Problem, Severity};

pub use parse::parse;

/// Largest recipe file, in bytes; real ones have a few thousand.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 64;
/// Most values in a document, aliases expanded.
pub const MAX_NODES: usize = 100_000;

/// A place in a file. Line 0 means that it was not written in a file (`--set`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The file as the user named it, or `--set`.
    pub file: Arc<str>,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub value: Value,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Scalar(Scalar),
    Seq(Vec<Node>),
    Map(Vec<Entry>),
}

/// Text as written, and whether it may be anything but a string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar {
    pub text: Arc<str>,
    /// Neither quoted nor a block: the text may be a number, a boolean or blank.
    pub plain: bool,
}

/// A key, its place, and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_span: Span,
    pub value: Node,
}

/// A recipe with its bases beneath it, assignments applied and variables filled in.
#[derive(Clone, Debug)]
pub struct Document {
    /// Always a map; without `extends` and `vars`.
    pub root: Node,
    /// The recipe first, then every file it extends.
    pub sources: Vec<PathBuf>,
    /// What is wrong but did not prevent reading, such as duplicate keys.
    pub problems: Vec<Problem>,
    order: Vec<String>,
}

/// Why there is no tree.
#[derive(Clone, Debug)]
pub struct Failure {
    pub problems: Vec<Problem>,
    pub sources: Vec<PathBuf>,
}

/// Reads the recipe at `path` with everything it extends, and applies `sets` (`key=value`, dotted, `datasets[0].path=x`).
pub fn read(path: &Path, sets: &[String]) -> Result<Document, Failure> {
    let mut bases = merge::Bases::default();
    let root = bases.load(path, None);
    let mut problems = std::mem::take(&mut bases.problems);
    let order: Vec<String> = bases.names.clone();
    let Some(mut root) = root else {
        sort_by_order(&order, &mut problems);
        return Err(Failure { problems, sources: bases.sources });
    };
    merge::assign(&mut root, sets, &mut problems);
    merge::interpolate(&mut root, &mut problems);
    Ok(Document { root, sources: bases.sources, problems, order })
}

impl Document {
    /// Sorts by file (the recipe first), line and column; problems without a place come last.
    pub fn sort(&self, problems: &mut [Problem]) {
        sort_by_order(&self.order, problems);
    }
}

fn sort_by_order(order: &[String], problems: &mut [Problem]) {
    let rank = |file: &str| order.iter().position(|name| name == file).unwrap_or(order.len());
    problems.sort_by_key(|p| (rank(&p.file), p.line.unwrap_or(usize::MAX), p.column.unwrap_or(usize::MAX)));
}

impl Span {
    /// A complaint about this place.
    pub fn problem(&self, severity: Severity, code: &'static str, message: impl Into<String>) -> Problem {
        Problem {
            severity,
            code,
            message: message.into(),
            file: self.file.to_string(),
            line: (self.line > 0).then_some(self.line),
            column: (self.line > 0).then_some(self.column),
            key: None,
            suggestion: None,
        }
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line == 0 { f.write_str(&self.file) } else { write!(f, "{}:{}:{}", self.file, self.line, self.column) }
    }
}

impl Scalar {
    /// Blank, `~` or `null`: the key counts as unset.
    pub fn is_null(&self) -> bool {
        self.plain && matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL")
    }
}

impl Node {
    pub fn null(span: Span) -> Node {
        Node { value: Value::Scalar(Scalar { text: "".into(), plain: true }), span }
    }

    pub fn is_null(&self) -> bool {
        self.scalar().is_some_and(Scalar::is_null)
    }

    pub fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    pub fn items(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Seq(items) => Some(items),
            _ => None,
        }
    }

    pub fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The entry under `key`, if this is a map that has it.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries()?.iter().find(|entry| entry.key == key)
    }

    /// The value at a dotted path such as `datasets[0].type`.
    pub fn at(&self, path: &str) -> Option<&Node> {
        merge::parse_path(path)?.iter().try_fold(self, |node, step| match step {
            merge::Step::Key(key) => node.entry(key).map(|entry| &entry.value),
            merge::Step::Index(i) => node.items()?.get(*i),
        })
    }

    /// Where the key at a dotted path was written (the item itself, for an item of a list).
    pub fn key_span(&self, path: &str) -> Option<&Span> {
        let steps = merge::parse_path(path)?;
        let (last, before) = steps.split_last()?;
        let parent = before.iter().try_fold(self, |node, step| match step {
            merge::Step::Key(key) => node.entry(key).map(|entry| &entry.value),
            merge::Step::Index(i) => node.items()?.get(*i),
        })?;
        match last {
            merge::Step::Key(key) => parent.entry(key).map(|entry| &entry.key_span),
            merge::Step::Index(i) => parent.items()?.get(*i).map(|item| &item.span),
        }
    }
}
