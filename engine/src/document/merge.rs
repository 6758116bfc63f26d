//! From files to one tree: bases beneath, `--set` on top, variables filled in.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Entry, MAX_BYTES, MAX_DEPTH, Node, Scalar, Span, Value, explain, parse};
use crate::problem::{Problem, Severity};

/// Most files that one recipe may read.
const MAX_FILES: usize = 32;

/// Reads files and the files they extend.
#[derive(Default)]
pub(super) struct Bases {
    pub problems: Vec<Problem>,
    pub sources: Vec<PathBuf>,
    /// As named in positions, in reading order.
    pub names: Vec<String>,
    /// Canonical paths of the files being read, outermost first.
    open: Vec<PathBuf>,
}

/// One step of a dotted path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Bases {
    /// The tree of `path` over its bases; `None` when it (or a base) cannot be read, with the reason among the problems.
    pub(super) fn load(&mut self, path: &Path, asked: Option<&Span>) -> Option<Node> {
        let name: Arc<str> = path.display().to_string().into();
        let here = Span { file: name.clone(), line: 0, column: 0 };
        let place = asked.unwrap_or(&here);
        if self.sources.len() >= MAX_FILES {
            self.fail(place, "extends-cycle", format!("more than {MAX_FILES} files are extended"));
            return None;
        }
        let text = match read_text(path) {
            Ok(text) => text,
            Err(why) => {
                let what = if asked.is_some() { "the base recipe" } else { "the recipe" };
                self.fail(place, "unreadable", format!("{what} `{name}` cannot be read: {why}"));
                return None;
            }
        };
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if self.open.contains(&canonical) {
            self.fail(place, "extends-cycle", format!("`{name}` extends itself, directly or through others"));
            return None;
        }
        self.sources.push(path.to_path_buf());
        self.names.push(name.to_string());
        let text = match text {
            Ok(text) => text,
            Err(problem) => {
                self.problems.push(Problem { file: name.to_string(), ..problem });
                return None;
            }
        };
        let root = match parse(&text, &name, &mut self.problems) {
            Ok(root) => root,
            Err(problem) => {
                self.problems.push(*problem);
                return None;
            }
        };
        let root = self.mapping(root, &name)?;
        self.open.push(canonical);
        let merged = self.beneath(root, path);
        self.open.pop();
        merged
    }

    fn mapping(&mut self, root: Option<Node>, name: &Arc<str>) -> Option<Node> {
        let start = Span { file: name.clone(), line: 1, column: 1 };
        match root {
            Some(node) if matches!(node.value, Value::Map(_)) => Some(node),
            Some(node) if !node.is_null() => {
                self.fail(
                    &node.span,
                    "not-a-mapping",
                    "a recipe is a list of `key: value` lines, and this is something else".to_string(),
                );
                None
            }
            _ => {
                self.fail(&start, "empty-recipe", "the recipe is empty".to_string());
                None
            }
        }
    }

    /// Takes `extends` out of `root` and puts what it names beneath.
    fn beneath(&mut self, mut root: Node, path: &Path) -> Option<Node> {
        let Value::Map(entries) = &mut root.value else { return Some(root) };
        let Some(at) = entries.iter().position(|entry| entry.key == "extends") else { return Some(root) };
        let entry = entries.remove(at);
        let named: Vec<Node> = match entry.value.value {
            Value::Seq(items) => items,
            _ => vec![entry.value],
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut merged: Option<Node> = None;
        let mut whole = true;
        for base in named {
            let file = match base.scalar() {
                Some(scalar) if scalar.is_null() => continue,
                Some(scalar) => scalar.text.clone(),
                None => {
                    self.fail(&base.span, "wrong-type", "`extends` takes a file, or a list of files".to_string());
                    whole = false;
                    continue;
                }
            };
            match self.load(&folder.join(&*file), Some(&base.span)) {
                Some(node) => merged = Some(merged.map_or(node.clone(), |under| over(under, node))),
                None => whole = false,
            }
        }
        let root = match merged {
            Some(under) => over(under, root),
            None => root,
        };
        whole.then_some(root)
    }

    fn fail(&mut self, span: &Span, code: &'static str, message: String) {
        self.problems.push(span.problem(Severity::Error, code, message));
    }
}

/// Applies `key=value` assignments; the value is YAML.
pub(super) fn assign(root: &mut Node, sets: &[String], problems: &mut Vec<Problem>) {
    let span = Span { file: "--set".into(), line: 0, column: 0 };
    for set in sets {
        if let Err(message) = assign_one(root, set, &span) {
            problems.push(span.problem(Severity::Error, "bad-set", format!("`--set {set}`: {message}")));
        }
    }
}

/// Fills in `${name}` from `vars`, and takes `vars` out.
pub(super) fn interpolate(root: &mut Node, problems: &mut Vec<Problem>) {
    let Value::Map(entries) = &mut root.value else { return };
    let mut vars: HashMap<String, Node> = HashMap::new();
    let mut budget = 4 * MAX_BYTES;
    if let Some(at) = entries.iter().position(|entry| entry.key == "vars") {
        let section = entries.remove(at).value;
        if !section.is_null() {
            let span = section.span.clone();
            let Value::Map(defined) = section.value else {
                problems.push(span.problem(Severity::Error, "wrong-type", "`vars` takes a map of names and values"));
                return;
            };
            // A variable may use those above it, so there are no cycles to look for.
            for mut entry in defined {
                let path = format!("vars.{}", entry.key);
                Filling { vars: &vars, budget: &mut budget, problems }.fill(&mut entry.value, &path);
                vars.insert(entry.key, entry.value);
            }
        }
    }
    let mut filling = Filling { vars: &vars, budget: &mut budget, problems };
    for entry in entries.iter_mut().filter(|entry| !entry.key.starts_with("x-")) {
        filling.fill(&mut entry.value, &entry.key);
    }
}

/// `a.b[0].c` as steps; `None` when it is not such a path.
pub(super) fn parse_path(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (name, mut rest) = part.split_at(part.find('[').unwrap_or(part.len()));
        if !name.is_empty() {
            steps.push(Step::Key(name.to_string()));
        } else if rest.is_empty() || !steps.is_empty() {
            return None;
        }
        while let Some(inner) = rest.strip_prefix('[') {
            let (index, after) = inner.split_once(']')?;
            steps.push(Step::Index(index.parse().ok()?));
            rest = after;
        }
        if !rest.is_empty() {
            return None;
        }
    }
    (!steps.is_empty() && steps.len() <= MAX_DEPTH).then_some(steps)
}

fn assign_one(root: &mut Node, set: &str, span: &Span) -> Result<(), String> {
    let (path, text) = set.split_once('=').ok_or("write it as key=value")?;
    let steps = parse_path(path.trim()).ok_or("the part before `=` is a dotted key such as `datasets[0].path`")?;
    let mut ignored = Vec::new();
    let value = match parse(text, &span.file, &mut ignored) {
        Ok(value) if ignored.is_empty() => value.unwrap_or_else(|| Node::null(span.clone())),
        Ok(_) => return Err("a key is written twice in the value".to_string()),
        Err(problem) => return Err(format!("the value is not YAML: {}", problem.message)),
    };
    let value = placed(value, span);
    let mut node = root;
    for (i, step) in steps.iter().enumerate() {
        node = descend(node, step, span).map_err(|why| format!("{why} (at step {} of `{path}`)", i + 1))?;
    }
    *node = value;
    Ok(())
}

/// The child under `step`, made if a map lacks it.
fn descend<'n>(node: &'n mut Node, step: &Step, span: &Span) -> Result<&'n mut Node, String> {
    if node.is_null() && matches!(step, Step::Key(_)) {
        node.value = Value::Map(Vec::new());
        node.span = span.clone();
    }
    match (step, &mut node.value) {
        (Step::Key(key), Value::Map(entries)) => {
            let at = match entries.iter().position(|entry| &entry.key == key) {
                Some(at) => {
                    entries[at].key_span = span.clone();
                    at
                }
                None => {
                    let value = Node::null(span.clone());
                    entries.push(Entry { key: key.clone(), key_span: span.clone(), value });
                    entries.len() - 1
                }
            };
            Ok(&mut entries[at].value)
        }
        (Step::Index(i), Value::Seq(items)) => {
            let have = items.len();
            items.get_mut(*i).ok_or_else(|| format!("the list has {have} items, and [{i}] is none of them"))
        }
        (Step::Key(key), _) => Err(format!("`{key}` cannot be set in something that is not a map")),
        (Step::Index(i), _) => Err(format!("[{i}] cannot be taken of something that is not a list")),
    }
}

/// The same value, said to come from `span`.
fn placed(mut node: Node, span: &Span) -> Node {
    node.span = span.clone();
    node.value = match node.value {
        Value::Seq(items) => Value::Seq(items.into_iter().map(|item| placed(item, span)).collect()),
        Value::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|entry| Entry { key: entry.key, key_span: span.clone(), value: placed(entry.value, span) })
                .collect(),
        ),
        scalar => scalar,
    };
    node
}

/// `upper` over `under`: maps key by key, anything else replaced.
fn over(under: Node, upper: Node) -> Node {
    match (under.value, upper.value) {
        (Value::Map(mut base), Value::Map(own)) => {
            for entry in own {
                match base.iter().position(|other| other.key == entry.key) {
                    Some(at) => {
                        let old = std::mem::replace(&mut base[at], entry);
                        let new = base[at].value.clone();
                        base[at].value = over(old.value, new);
                    }
                    None => base.push(entry),
                }
            }
            Node { value: Value::Map(base), span: upper.span }
        }
        (_, value) => Node { value, span: upper.span },
    }
}

/// Puts variables where they are named, as long as the whole stays small.
struct Filling<'a> {
    vars: &'a HashMap<String, Node>,
    budget: &'a mut usize,
    problems: &'a mut Vec<Problem>,
}

impl Filling<'_> {
    fn fill(&mut self, node: &mut Node, path: &str) {
        match &mut node.value {
            Value::Seq(items) => {
                items.iter_mut().enumerate().for_each(|(i, item)| self.fill(item, &format!("{path}[{i}]")));
            }
            Value::Map(entries) => {
                entries.iter_mut().for_each(|entry| self.fill(&mut entry.value, &format!("{path}.{}", entry.key)));
            }
            Value::Scalar(scalar) if scalar.text.contains("${") => {
                let whole = whole_variable(&scalar.text).and_then(|name| self.vars.get(name));
                if let Some(var) = whole {
                    let cost = size(var);
                    if cost <= *self.budget {
                        *self.budget -= cost;
                        node.value = var.value.clone();
                        return;
                    }
                }
                match expand(&scalar.text, self.vars, self.budget) {
                    Ok(text) => *scalar = Scalar { text: text.into(), plain: scalar.plain },
                    Err((message, suggestion)) => {
                        let mut problem = node.span.problem(Severity::Error, "unknown-variable", message);
                        problem.key = Some(path.to_string());
                        problem.suggestion = suggestion;
                        self.problems.push(problem);
                    }
                }
            }
            Value::Scalar(_) => {}
        }
    }
}

fn expand(text: &str, vars: &HashMap<String, Node>, budget: &mut usize) -> Result<String, (String, Option<String>)> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let name = rest[at + 2..].split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
        let Some(name) = name else {
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        };
        let Some(var) = vars.get(name) else {
            let near = explain::nearest(name, vars.keys().map(String::as_str));
            let message = format!("`${{{name}}}` is not among `vars` (write `$${{{name}}}` for the text itself)");
            let remedy = near.map_or_else(|| format!("vars: {{{name}: ...}}"), |near| format!("${{{near}}}"));
            return Err((message, Some(remedy)));
        };
        let Some(scalar) = var.scalar() else {
            return Err((format!("`{name}` is a list or a map and can only stand alone, not inside a text"), None));
        };
        *budget = budget
            .checked_sub(scalar.text.len() + text.len())
            .ok_or_else(|| ("the recipe becomes too large when its variables are filled in".to_string(), None))?;
        out.push_str(&scalar.text);
        rest = &rest[at + 3 + name.len()..];
    }
    out.push_str(rest);
    Ok(out)
}

fn whole_variable(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').filter(|name| is_name(name))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

fn size(node: &Node) -> usize {
    match &node.value {
        Value::Scalar(scalar) => 32 + scalar.text.len(),
        Value::Seq(items) => 32 + items.iter().map(size).sum::<usize>(),
        Value::Map(entries) => 32 + entries.iter().map(|entry| entry.key.len() + size(&entry.value)).sum::<usize>(),
    }
}

/// The file's text. The inner error is for a file that was read but is not text.
fn read_text(path: &Path) -> Result<Result<String, Problem>, String> {
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_string(),
        _ => error.to_string(),
    })?;
    if meta.is_dir() {
        return Err("it is a folder".to_string());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(explain::text(bytes, meta.len()))
}
