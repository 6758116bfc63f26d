//! A recipe against its schema: every key known, every value of the wanted kind, all misfits at once, each in its place.
//!
//! What fits becomes the typed [`Recipe`]; what does not is left out of it and remembered as tainted, so that no later
//! check complains about the same mistake again.

use std::collections::HashSet;
use std::sync::LazyLock;

use pipe_engine::document::{Document, Entry, Node, Scalar, Value as Tree};
use pipe_engine::problem::{Problem, Severity};
use serde_json::Value;

use super::Recipe;
use super::known::{self, Fate};
use super::scalar::{self, Misfit};
use super::schema::{self, VARIABLE_REF, schema};
use super::suggest;

/// What the walk made of a recipe.
pub(super) struct Checked {
    /// Everything that fitted.
    pub recipe: Recipe,
    /// The tree with older spellings replaced.
    pub tree: Node,
    pub tainted: Tainted,
    pub problems: Vec<Problem>,
}

/// Paths about which something was already said.
#[derive(Clone, Debug, Default)]
pub(super) struct Tainted(HashSet<String>);

impl Tainted {
    /// Whether `path`, or anything that holds it, is tainted.
    pub fn has(&self, path: &str) -> bool {
        let mut end = path.len();
        loop {
            if self.0.contains(&path[..end]) {
                return true;
            }
            match path[..end].rfind(['.', '[']) {
                Some(at) => end = at,
                None => return false,
            }
        }
    }

    pub fn add(&mut self, path: impl Into<String>) {
        self.0.insert(path.into());
    }
}

/// Checks the document's structure.
pub(super) fn check(document: &Document) -> Checked {
    static SCHEMA: LazyLock<Value> = LazyLock::new(schema);
    let schema: &Value = &SCHEMA;
    let mut tree = document.root.clone();
    let mut walk = Walk { schema, problems: document.problems.clone(), tainted: Tainted::default() };
    walk.rename(&mut tree);
    let value = walk.object(&tree, schema, "");
    let recipe = match serde_yaml::from_value::<Recipe>(value) {
        Ok(recipe) => recipe,
        Err(error) => {
            let message = format!("the recipe does not fit its own schema: {error}");
            walk.problems.push(tree.span.problem(Severity::Error, "bad-value", message));
            Recipe::default()
        }
    };
    let mut problems = walk.problems;
    quiet_followers(&mut problems);
    Checked { recipe, tree, tainted: walk.tainted, problems }
}

struct Walk<'s> {
    schema: &'s Value,
    problems: Vec<Problem>,
    tainted: Tainted,
}

impl<'s> Walk<'s> {
    /// Puts today's names in place of older ones.
    fn rename(&mut self, tree: &mut Node) {
        let Tree::Map(entries) = &mut tree.value else { return };
        for section in ["datasets", "test_datasets"] {
            let items = entries.iter_mut().find(|entry| entry.key == section).map(|entry| &mut entry.value.value);
            if let Some(Tree::Seq(items)) = items {
                for (i, item) in items.iter_mut().enumerate() {
                    if let Tree::Map(entries) = &mut item.value {
                        self.rename_in(entries, known::dataset_level(), &format!("{section}[{i}]"));
                    }
                }
            }
        }
        self.rename_in(entries, known::top_level(), "");
    }

    fn rename_in(&mut self, entries: &mut Vec<Entry>, known: impl Iterator<Item = known::Known>, path: &str) {
        for old in known {
            let Fate::Renamed(new) = old.fate else { continue };
            let Some(at) = entries.iter().position(|entry| entry.key == old.key) else { continue };
            let entry = &entries[at];
            let both = entries.iter().find(|other| other.key == new && !other.value.is_null());
            let (severity, code, message) = match both {
                Some(other) if !entry.value.is_null() => {
                    let message = format!(
                        "`{}` is an older spelling of `{new}`, which line {} sets too",
                        old.key, other.key_span.line
                    );
                    (Severity::Error, "conflicting-keys", message)
                }
                _ => (Severity::Warning, "deprecated-key", format!("`{}` is an older spelling of `{new}`", old.key)),
            };
            let mut problem = entry.key_span.problem(severity, code, message);
            problem.key = Some(join(path, old.key));
            problem.suggestion = Some(new.to_string());
            let blank = entry.value.is_null();
            if !blank {
                self.problems.push(problem);
            }
            if blank || severity == Severity::Error {
                entries.remove(at);
            } else {
                entries.retain(|entry| entry.key != new);
                if let Some(entry) = entries.iter_mut().find(|entry| entry.key == old.key) {
                    entry.key = new.to_string();
                }
            }
        }
    }

    fn object(&mut self, node: &Node, schema: &'s Value, path: &str) -> serde_yaml::Value {
        let mut map = serde_yaml::Mapping::new();
        let properties = schema.get("properties").and_then(Value::as_object);
        let extra = schema.get("additionalProperties");
        for entry in node.entries().unwrap_or_default() {
            let at = join(path, &entry.key);
            let value = match (properties.and_then(|known| known.get(&entry.key)), extra) {
                (Some(property), _) => self.property(entry, property, &at),
                (None, _) if properties.is_some() && entry.key.starts_with("x-") => None,
                (None, Some(Value::Bool(false))) => {
                    self.unknown(entry, schema, path, &at);
                    None
                }
                (None, Some(other)) => self.value(&entry.value, other, &at),
                (None, None) => Some(anything(&entry.value)),
            };
            if let Some(value) = value.filter(|value| !value.is_null()) {
                map.insert(serde_yaml::Value::String(entry.key.clone()), value);
            }
        }
        serde_yaml::Value::Mapping(map)
    }

    fn property(&mut self, entry: &Entry, schema: &'s Value, path: &str) -> Option<serde_yaml::Value> {
        if let Some(why) = schema.get("x-unsupported").and_then(Value::as_str) {
            if !harmless(&entry.value, schema) {
                let instead = schema.get("x-instead").and_then(Value::as_str).unwrap_or_default();
                let message = format!("`{}` is known from Axolotl and not supported here: {why}", entry.key);
                self.report(&entry.key_span, "unsupported-key", message, path, Some(instead.to_string()));
            }
            return None;
        }
        if let Some(why) = schema.get("x-inert").and_then(Value::as_str) {
            if entry.value.is_null() {
                return None;
            }
            let before = self.problems.len();
            self.value(&entry.value, schema, path);
            if self.problems.len() == before {
                let message = format!("`{}` has no effect here: {why}", entry.key);
                let mut problem = entry.key_span.problem(Severity::Notice, "inert-key", message);
                problem.key = Some(path.to_string());
                self.problems.push(problem);
            }
            return None;
        }
        if entry.value.is_null() || matches!(path, "extends" | "vars") {
            return None;
        }
        self.value(&entry.value, schema, path)
    }

    /// The value as the schema wants it; `None` when it does not fit, which is then said.
    fn value(&mut self, node: &Node, schema: &'s Value, path: &str) -> Option<serde_yaml::Value> {
        let alternatives = self.alternatives(schema);
        if alternatives.iter().any(|schema| scalar::is_any(schema)) {
            return Some(anything(node));
        }
        match &node.value {
            Tree::Scalar(text) if text.text.contains("${") && self.unfilled(node) => {
                self.tainted.add(path);
                None
            }
            Tree::Scalar(text) => match scalar::fit(text, &alternatives) {
                Ok(value) => Some(value),
                Err(misfit) => {
                    self.misfit(node, text, misfit, path, schema);
                    None
                }
            },
            Tree::Seq(items) => {
                let Some(list) = alternatives.iter().find(|schema| scalar::has_type(schema, "array")) else {
                    self.wrong_kind(node, schema, path);
                    return None;
                };
                let items: Vec<serde_yaml::Value> = items
                    .iter()
                    .enumerate()
                    .map(|(i, item)| self.item(item, list.get("items").unwrap_or(&ANY), &format!("{path}[{i}]")))
                    .collect();
                Some(serde_yaml::Value::Sequence(items.into_iter().filter(|item| !item.is_null()).collect()))
            }
            Tree::Map(_) => match alternatives.iter().find(|schema| scalar::has_type(schema, "object")) {
                Some(map) => Some(self.object(node, map, path)),
                None => {
                    self.wrong_kind(node, schema, path);
                    None
                }
            },
        }
    }

    fn item(&mut self, node: &Node, schema: &'s Value, path: &str) -> serde_yaml::Value {
        let map = self.alternatives(schema).iter().any(|schema| scalar::has_type(schema, "object"));
        let value = if node.is_null() {
            self.report(
                &node.span,
                "wrong-type",
                format!("`{path}` is blank; fill it in or remove its line"),
                path,
                None,
            );
            None
        } else {
            self.value(node, schema, path)
        };
        // Items keep their places in the list, so that later checks name the right one.
        value.unwrap_or(if map { serde_yaml::Value::Mapping(Default::default()) } else { serde_yaml::Value::Null })
    }

    /// The simple schemas behind references and unions.
    fn alternatives(&self, schema: &'s Value) -> Vec<&'s Value> {
        let mut simple = Vec::new();
        flatten(self.schema, schema, &mut simple);
        simple
    }

    /// Whether a variable in this value was already complained about.
    fn unfilled(&self, node: &Node) -> bool {
        let there = |p: &Problem| p.file == *node.span.file && p.line.unwrap_or(0) == node.span.line;
        self.problems.iter().any(|p| p.code == "unknown-variable" && there(p))
    }

    fn unknown(&mut self, entry: &Entry, schema: &Value, parent: &str, path: &str) {
        let hint = suggest::key(&entry.key, schema, self.schema, parent);
        let place = if parent.is_empty() { "a recipe".to_string() } else { format!("`{parent}`") };
        let message = match &hint {
            Some(hint) if hint.elsewhere => {
                format!("`{}` is not a key of {place}; it belongs to {}", entry.key, hint.belongs)
            }
            Some(hint) => format!("`{}` is not a key of {place}; did you mean `{}`?", entry.key, hint.write),
            None => format!(
                "`{}` is not a key of {place}, and none is like it; notes of your own begin with `x-`",
                entry.key
            ),
        };
        if let Some(hint) = &hint {
            self.tainted.add(if hint.elsewhere { hint.write.clone() } else { join(parent, &hint.write) });
        }
        self.report(&entry.key_span, "unknown-key", message, path, hint.map(|hint| hint.write));
    }

    fn misfit(&mut self, node: &Node, text: &Scalar, misfit: Misfit, path: &str, schema: &'s Value) {
        let shown = suggest::shown(&text.text);
        let key = last(path);
        let known =
            known::value(key, &text.text).filter(|_| matches!(misfit, Misfit::Word { .. } | Misfit::Type { .. }));
        if let Some(known) = known {
            let message =
                format!("`{path}: {}` is known from Axolotl and not supported here: {}", text.text, known.why);
            self.report(&node.span, "unsupported-value", message, path, Some(known.instead.to_string()));
            return;
        }
        let (code, message, suggestion) = match misfit {
            Misfit::Type { wanted } => {
                let is = suggest::described(text);
                let message = format!("`{path}` takes {wanted}, and {shown} is {is}");
                let other = || self.wrapped(node, schema, path).or_else(|| suggest::example(schema));
                ("wrong-type", message, suggest::retyped(key, text, &wanted).or_else(other))
            }
            Misfit::Range { bounds } => {
                let message = format!("`{path}` is {shown}, and must be {bounds}");
                let inside = suggest::inside(key, text).or_else(|| suggest::example(schema));
                let example = inside.map_or(String::new(), |text| format!(", such as {text}"));
                ("out-of-range", message, Some(format!("{bounds}{example}")))
            }
            Misfit::Form { pattern } => {
                let blank = pattern == schema::NOT_BLANK;
                let form = match &*pattern {
                    schema::NOT_BLANK => "more than white space",
                    schema::LABEL => "letters, digits, `_`, `-` and `.`",
                    _ => "a size such as 5GB",
                };
                let example = suggest::example(schema).filter(|_| blank);
                let form = form.to_string();
                ("bad-value", format!("`{path}` is {shown}, and must be {form}"), Some(example.unwrap_or(form)))
            }
            Misfit::Word { .. } if key == "type" && text.text.contains('.') && path.contains("datasets[") => {
                let message = format!("`{path}: {}` names a Python function, and none is run here", text.text);
                ("unsupported-value", message, Some("chat_template, or a `type` map of columns".to_string()))
            }
            Misfit::Word { words } => {
                let near = suggest::word(&text.text, &words);
                let list = suggest::listed(&words);
                let switch = self.alternatives(schema).iter().any(|schema| scalar::has_type(schema, "boolean"));
                let message = match &near {
                    Some(near) => format!("`{path}` does not take {shown}; did you mean `{near}`?"),
                    None if switch => format!("`{path}` does not take {shown}; it takes true, false or {list}"),
                    None => format!("`{path}` does not take {shown}; it takes {list}"),
                };
                ("bad-value", message, Some(near.unwrap_or(list)))
            }
        };
        self.report(&node.span, code, message, path, suggestion);
    }

    fn wrong_kind(&mut self, node: &Node, schema: &'s Value, path: &str) {
        let alternatives = self.alternatives(schema);
        let is = if node.items().is_some() { "a list" } else { "a map" };
        let wanted = scalar::wanted(&alternatives);
        let list = alternatives.iter().any(|schema| scalar::has_type(schema, "array"));
        let single = || match node.items()? {
            [one] => one.scalar().filter(|one| scalar::fit(one, &alternatives).is_ok()).map(|one| one.text.to_string()),
            _ => None,
        };
        let suggestion = match node.entries() {
            Some(entries) if list => {
                let first = entries.first().map_or("path", |entry| &entry.key);
                Some(format!("- {}: ...", first.trim_start_matches('-')))
            }
            _ => single().or_else(|| self.wrapped(node, schema, path)).or_else(|| suggest::example(schema)),
        };
        let message = format!("`{path}` takes {wanted}, and here stands {is}");
        self.report(&node.span, "wrong-type", message, path, suggestion);
    }

    /// The value within the map that is wanted in its place.
    fn wrapped(&self, node: &Node, schema: &'s Value, path: &str) -> Option<String> {
        let maps = self.alternatives(schema).into_iter().filter(|schema| scalar::has_type(schema, "object"));
        maps.into_iter().find_map(|map| suggest::wrapped(path, node, map, self.schema))
    }

    fn report(
        &mut self,
        span: &pipe_engine::document::Span,
        code: &'static str,
        message: String,
        path: &str,
        suggestion: Option<String>,
    ) {
        let mut problem = span.problem(Severity::Error, code, message);
        problem.key = Some(path.to_string());
        problem.suggestion = suggestion;
        self.problems.push(problem);
        self.tainted.add(path);
    }
}

static ANY: Value = Value::Bool(true);

pub(super) fn flatten<'s>(root: &'s Value, schema: &'s Value, simple: &mut Vec<&'s Value>) {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        // Variables have been filled in.
        if let Some(target) =
            target.strip_prefix('#').filter(|_| target != VARIABLE_REF).and_then(|at| root.pointer(at))
        {
            flatten(root, target, simple);
        }
    } else if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
        options.iter().for_each(|option| flatten(root, option, simple));
    } else {
        simple.push(schema);
    }
}

/// A value that may be anything, as it is.
fn anything(node: &Node) -> serde_yaml::Value {
    match &node.value {
        Tree::Scalar(text) => scalar::to_yaml(&scalar::resolve(text)),
        Tree::Seq(items) => serde_yaml::Value::Sequence(items.iter().map(anything).collect()),
        Tree::Map(entries) => serde_yaml::Value::Mapping(
            entries
                .iter()
                .map(|entry| (serde_yaml::Value::String(entry.key.clone()), anything(&entry.value)))
                .collect(),
        ),
    }
}

fn harmless(node: &Node, schema: &Value) -> bool {
    match &node.value {
        Tree::Seq(items) => items.is_empty(),
        Tree::Map(entries) => entries.is_empty(),
        Tree::Scalar(text) => {
            let value = scalar::to_json(&scalar::resolve(text));
            let values = schema.pointer("/anyOf/0/enum").and_then(Value::as_array);
            values.is_some_and(|values| values.contains(&value))
        }
    }
}

/// What only says more of a method that is not supported is no further news.
fn quiet_followers(problems: &mut Vec<Problem>) {
    let unsupported = |p: &Problem, key: &str| p.code == "unsupported-key" && p.key.as_deref() == Some(key);
    for (leaders, followers) in FOLLOWERS {
        let Some(first) = leaders.iter().find(|leader| problems.iter().any(|p| unsupported(p, leader))) else {
            continue;
        };
        problems.retain(|p| {
            let key = p.key.as_deref().unwrap_or_default();
            let listed = followers.iter().any(|name| key == *name || name.ends_with('[') && key.contains(name));
            let follows = listed || (leaders.contains(&key) && key != *first);
            !(follows && matches!(p.code, "unsupported-key" | "unsupported-value"))
        });
    }
}

/// Keys that name a method, and keys (or, with `[`, lists) that have a meaning only with it.
type Followers = (&'static [&'static str], &'static [&'static str]);

const FOLLOWERS: &[Followers] = &[
    (&["rl", "reward_model", "process_reward_model"], &["num_labels", "datasets["]),
    (&["pretraining_dataset", "streaming"], &["pretraining_sample_concatenation"]),
    (&["processor_type"], &["processor_kwargs", "image_size", "freeze_mm_modules", "is_multimodal"]),
    (&["relora"], &["jagged_restart_steps"]),
    (&["do_causal_lm_eval"], &["eval_causal_lm_metrics"]),
    (&["do_bench_eval", "lm_eval_tasks"], &["lm_eval_post_train"]),
];

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

/// The last key of a path, without an index.
fn last(path: &str) -> &str {
    let key = path.rsplit('.').next().unwrap_or(path);
    key.split('[').next().unwrap_or(key)
}
