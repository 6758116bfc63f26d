//! Why a node runs: what differs between what it is and what it last was, in the user's words.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::outline::Place;
use crate::record::Record;
use crate::seen::LastSeen;
use crate::state::Evaluated;

/// Values longer than this are cut in a reason's one line.
const LONGEST_VALUE: usize = 40;

/// What sort of thing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CauseKind {
    /// A parameter of the stage, named by its dotted path.
    Param,
    /// The content of a source file.
    File,
    /// The output of a node above.
    Upstream,
    /// The stage's code.
    Version,
    /// Nothing is stored.
    Missing,
    /// What is stored is damaged.
    Corrupt,
    /// It was asked for.
    Forced,
}

/// One thing that changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    pub kind: CauseKind,
    pub what: String,
    pub before: Value,
    pub after: Value,
}

impl Cause {
    pub fn new(kind: CauseKind, what: impl Into<String>) -> Cause {
        Cause { kind, what: what.into(), before: Value::Null, after: Value::Null }
    }

    pub(crate) fn before(mut self, before: impl Into<Value>) -> Cause {
        self.before = before.into();
        self
    }

    fn after(mut self, after: impl Into<Value>) -> Cause {
        self.after = after.into();
        self
    }

    /// The cause as a clause, such as `learning_rate: 0.0002 -> 0.0001`.
    pub fn clause(&self) -> String {
        let change = || format!("{}: {} -> {}", self.what, short(&self.before), short(&self.after));
        match self.kind {
            CauseKind::Param => change(),
            CauseKind::File if self.before.is_null() && self.after.is_null() => self.what.clone(),
            CauseKind::File if self.before.is_null() => format!("{} is new", self.what),
            CauseKind::File if self.after.is_null() => format!("{} is no longer read", self.what),
            CauseKind::File => format!("{} changed: {} -> {}", self.what, text(&self.before), text(&self.after)),
            CauseKind::Upstream if self.before.is_null() && self.after.is_null() => {
                format!("upstream {} runs", self.what)
            }
            CauseKind::Upstream if self.before.is_null() => format!("{} is a new input", self.what),
            CauseKind::Upstream if self.after.is_null() => {
                format!("{} is no longer an input", self.what)
            }
            CauseKind::Upstream => format!("the output of {} changed", self.what),
            CauseKind::Version => format!("{} changed: {} -> {}", self.what, short(&self.before), short(&self.after)),
            CauseKind::Missing | CauseKind::Corrupt => self.what.clone(),
            CauseKind::Forced => format!("forced ({})", self.what),
        }
    }
}

/// One line for a node's state.
pub(crate) fn line(causes: &[Cause], record: Option<&Record>) -> String {
    match causes {
        [] => match record {
            Some(record) if record.evicted => "known; its output was let go and nothing that runs reads it".to_string(),
            _ => "unchanged".to_string(),
        },
        [one] => one.clause(),
        [one, rest @ ..] => format!("{}; and {} more", one.clause(), rest.len()),
    }
}

/// What changed since the node was last seen.
pub(crate) fn explain(last: Option<&LastSeen>, now: &Evaluated) -> Vec<Cause> {
    let not_run = if now.begun { "it was begun and not finished" } else { "it has not run yet" };
    let Some(last) = last else {
        return vec![Cause::new(CauseKind::Missing, not_run).after(now.key.short())];
    };
    let mut causes = Vec::new();
    let (was, is) = (&last.ingredients, &now.ingredients);
    if was.version != is.version {
        let what = format!("the code of {}", is.stage);
        causes.push(Cause::new(CauseKind::Version, what).before(was.version.as_str()).after(is.version.as_str()));
    }
    differences("", &was.params, &is.params, &mut causes);
    file_causes(last, now, &mut causes);
    upstream_causes(last, now, &mut causes);
    if causes.is_empty() {
        let what = if last.key == now.key { "its record is gone" } else { not_run };
        causes.push(Cause::new(CauseKind::Missing, what).before(last.key.short()).after(now.key.short()));
    }
    causes
}

fn file_causes(last: &LastSeen, now: &Evaluated, causes: &mut Vec<Cause>) {
    let (was, is) = (&last.ingredients.files, &now.ingredients.files);
    for role in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (was.get(role), is.get(role));
        if before == after {
            continue;
        }
        let fact = now.origin.files.get(role).or_else(|| last.origin.files.get(role));
        let what = fact.map_or_else(|| role.clone(), |fact| fact.path.clone());
        let size = |facts: &crate::key::Origin| facts.files.get(role).map(|fact| fact.size);
        let describe = |digest: Option<&Digest>, size: Option<u64>| match (digest, size) {
            (Some(digest), Some(size)) => Value::from(format!("{size} bytes, {}", digest.short())),
            (Some(digest), None) => Value::from(digest.short()),
            (None, _) => Value::Null,
        };
        let outline = last.origin.files.get(role).and_then(|fact| fact.outline.as_ref());
        let place = now.origin.files.get(role).and_then(|fact| outline?.first_difference(Path::new(&fact.path)));
        let mut is = describe(after, size(&now.origin));
        if let (Value::String(text), Some(Place { lines: (first, last) })) = (&mut is, place) {
            let lines = if first == last { format!("line {first}") } else { format!("lines {first} to {last}") };
            text.push_str(&format!(", first differing in {lines}"));
        }
        causes.push(Cause::new(CauseKind::File, what).before(describe(before, size(&last.origin))).after(is));
    }
}

fn upstream_causes(last: &LastSeen, now: &Evaluated, causes: &mut Vec<Cause>) {
    let (was, is) = (&last.ingredients.inputs, &now.ingredients.inputs);
    for role in was.keys().chain(is.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (was.get(role), is.get(role));
        if before == after {
            continue;
        }
        let name = now.origin.upstream.get(role).or_else(|| last.origin.upstream.get(role));
        let what = name.map_or_else(|| role.clone(), ToString::to_string);
        let digest =
            |content: Option<&crate::key::InputContent>| content.map_or(Value::Null, |c| c.digest.short().into());
        causes.push(Cause::new(CauseKind::Upstream, what).before(digest(before)).after(digest(after)));
    }
}

/// Every leaf that differs, by dotted path.
fn differences(path: &str, was: &Value, is: &Value, causes: &mut Vec<Cause>) {
    match (was, is) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), causes);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), a, b, causes);
            }
        }
        _ if Digest::of_canonical(was) == Digest::of_canonical(is) => {}
        _ => causes.push(Cause::new(CauseKind::Param, path).before(was.clone()).after(is.clone())),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "unset".to_string(),
        other => other.to_string(),
    }
}

fn short(value: &Value) -> String {
    let text = text(value);
    if text.chars().count() <= LONGEST_VALUE {
        return text;
    }
    format!("{}...", text.chars().take(LONGEST_VALUE).collect::<String>())
}
