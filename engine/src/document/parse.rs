//! One YAML text to one tree. Anchors, aliases and merge keys are resolved here, within limits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};

use super::explain;
use super::{Entry, MAX_BYTES, MAX_DEPTH, MAX_NODES, Node, Scalar, Span, Value};
use crate::problem::{Problem, Severity};

/// Most text in a document, aliases expanded.
const MAX_TEXT: usize = 8 * MAX_BYTES;

/// Parses `text`, naming it `file` in positions. `None` is a document without content. Duplicate keys go to `problems` and
/// the later one is left out; anything worse ends the parse.
pub fn parse(text: &str, file: &Arc<str>, problems: &mut Vec<Problem>) -> Result<Option<Node>, Box<Problem>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let start = Span { file: file.clone(), line: 1, column: 1 };
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes, and a recipe may have {MAX_BYTES}", text.len());
        return Err(Box::new(start.problem(Severity::Error, "yaml-limits", message)));
    }
    explain::characters(text, file)?;
    match events(text, file, &HashSet::new()) {
        Ok((root, found)) => {
            problems.extend(found);
            Ok(root)
        }
        Err(Stop::Limit(problem)) => Err(problem),
        Err(Stop::Syntax(error)) => {
            // Other parsers accept a closing bracket that stands as far left as its key; people write it so.
            if error.info().contains("indentation") {
                let (padded, lines) = explain::pad_brackets(text, PAD);
                if let Ok((root, found)) = events(&padded, file, &lines) {
                    problems.extend(found);
                    return Ok(root);
                }
            }
            Err(Box::new(explain::syntax(&error, text, file)))
        }
    }
}

/// Spaces put before lines within brackets on a second try.
const PAD: usize = 80;

enum Stop {
    Limit(Box<Problem>),
    Syntax(ScanError),
}

impl From<Box<Problem>> for Stop {
    fn from(problem: Box<Problem>) -> Stop {
        Stop::Limit(problem)
    }
}

/// One pass over the events. Lines in `padded` have [`PAD`] more spaces than the user wrote.
fn events(text: &str, file: &Arc<str>, padded: &HashSet<usize>) -> Result<(Option<Node>, Vec<Problem>), Stop> {
    let mut problems = Vec::new();
    let mut builder = Builder::new(&mut problems);
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, at) = next.map_err(Stop::Syntax)?;
        let pad = if padded.contains(&at.start.line()) { PAD } else { 0 };
        let column = (at.start.col() + 1).saturating_sub(pad).max(1);
        builder.event(event, Span { file: file.clone(), line: at.start.line(), column })?;
    }
    let root = builder.root;
    Ok((root, problems))
}

/// An open list or map.
struct Frame {
    span: Span,
    anchor: usize,
    kind: Open,
    /// Values and bytes of text within, for anchors.
    weight: Weight,
}

enum Open {
    Seq(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashMap<String, Span>, key: Option<(String, Span)>, merges: Vec<(Node, Span)> },
}

#[derive(Clone, Copy, Default)]
struct Weight {
    nodes: usize,
    text: usize,
}

struct Builder<'a> {
    problems: &'a mut Vec<Problem>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, Weight, usize)>,
    root: Option<Node>,
    documents: usize,
    total: Weight,
}

impl<'a> Builder<'a> {
    fn new(problems: &'a mut Vec<Problem>) -> Builder<'a> {
        Builder {
            problems,
            stack: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            documents: 0,
            total: Weight::default(),
        }
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Box<Problem>> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(error(
                        &span,
                        "yaml-documents",
                        "a second document starts here, and a recipe is one document; remove the `---` line or put the rest in a file of its own",
                    ));
                }
            }
            Event::Alias(id) => {
                let Some((node, weight, depth)) = self.anchors.get(&id) else {
                    return Err(error(&span, "yaml-anchor", "this alias stands inside the value that it repeats"));
                };
                let (node, weight, depth) = (node.clone(), *weight, *depth);
                if self.stack.len() + depth > MAX_DEPTH {
                    return Err(too_deep(&span));
                }
                self.add(node, weight, depth, span, 0)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = scalar_style(style, tag.as_deref(), &span)?;
                let weight = Weight { nodes: 1, text: text.len() };
                let node = Node { value: Value::Scalar(Scalar { text: text.into(), plain }), span: span.clone() };
                self.add(node, weight, 0, span, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => self.open(span, anchor, tag.as_deref(), Open::Seq(Vec::new()))?,
            Event::MappingStart(anchor, tag) => {
                let kind = Open::Map { entries: Vec::new(), seen: HashMap::new(), key: None, merges: Vec::new() };
                self.open(span, anchor, tag.as_deref(), kind)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn open(&mut self, span: Span, anchor: usize, tag: Option<&Tag>, kind: Open) -> Result<(), Box<Problem>> {
        check_tag(tag, &span)?;
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(&span));
        }
        if let Some(Frame { kind: Open::Map { key: None, .. }, .. }) = self.stack.last() {
            return Err(error(
                &span,
                "yaml-key",
                "a key is one word, and here stands a list or a map; if `{` or `[` is part of a text, put the text in quotes",
            ));
        }
        self.stack.push(Frame { span, anchor, kind, weight: Weight { nodes: 1, text: 0 } });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Box<Problem>> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let value = match frame.kind {
            Open::Seq(items) => Value::Seq(items),
            Open::Map { mut entries, mut seen, merges, .. } => {
                for (node, span) in merges {
                    merge_key(node, &span, &mut entries, &mut seen)?;
                }
                Value::Map(entries)
            }
        };
        let node = Node { value, span: frame.span.clone() };
        let depth = if frame.anchor > 0 { depth(&node) } else { 0 };
        self.add_closed(node, frame.weight, depth, frame.span, frame.anchor)
    }

    /// Adds a scalar or an alias's value, counting it against the limits.
    fn add(&mut self, node: Node, weight: Weight, depth: usize, span: Span, anchor: usize) -> Result<(), Box<Problem>> {
        self.total.nodes += weight.nodes;
        self.total.text += weight.text;
        if self.total.nodes > MAX_NODES || self.total.text > MAX_TEXT {
            return Err(error(
                &span,
                "yaml-limits",
                format!(
                    "with its aliases written out the recipe has more than {MAX_NODES} values or {MAX_TEXT} bytes of text"
                ),
            ));
        }
        self.add_closed(node, weight, depth, span, anchor)
    }

    fn add_closed(
        &mut self,
        node: Node,
        weight: Weight,
        depth: usize,
        span: Span,
        anchor: usize,
    ) -> Result<(), Box<Problem>> {
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), weight, depth));
        }
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        frame.weight.nodes += weight.nodes;
        frame.weight.text += weight.text;
        match &mut frame.kind {
            Open::Seq(items) => items.push(node),
            Open::Map { key: slot @ None, .. } => match node.value {
                Value::Scalar(scalar) => *slot = Some((scalar.text.to_string(), span)),
                _ => return Err(error(&span, "yaml-key", "a key is one word, and here stands a list or a map")),
            },
            Open::Map { entries, seen, key, merges } => {
                let Some((key, key_span)) = key.take() else { return Ok(()) };
                if key == "<<" {
                    merges.push((node, key_span));
                } else if let Some(first) = seen.get(&key).cloned() {
                    self.duplicate(&key, &key_span, &first);
                } else {
                    seen.insert(key.clone(), key_span.clone());
                    entries.push(Entry { key, key_span, value: node });
                }
            }
        }
        Ok(())
    }

    fn duplicate(&mut self, key: &str, again: &Span, first: &Span) {
        let message =
            format!("`{key}` is written twice: first at line {}, column {}, and again here", first.line, first.column);
        let mut problem = again.problem(Severity::Error, "duplicate-key", message);
        problem.suggestion = Some(format!("keep one `{key}`"));
        problem.key = Some(self.path_of(key));
        self.problems.push(problem);
    }

    /// `key` of the map that is open, as a dotted path.
    fn path_of(&self, key: &str) -> String {
        let mut path = String::new();
        for frame in &self.stack {
            match &frame.kind {
                Open::Seq(items) => path.push_str(&format!("[{}]", items.len())),
                Open::Map { key: Some((name, _)), .. } => push_key(&mut path, name),
                Open::Map { .. } => {}
            }
        }
        push_key(&mut path, key);
        path
    }
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// Puts the entries of `node` (a map, or a list of maps) beneath those already there.
fn merge_key(
    node: Node,
    span: &Span,
    entries: &mut Vec<Entry>,
    seen: &mut HashMap<String, Span>,
) -> Result<(), Box<Problem>> {
    let null = node.is_null();
    match node.value {
        Value::Map(more) => {
            for entry in more {
                if !seen.contains_key(&entry.key) {
                    seen.insert(entry.key.clone(), entry.key_span.clone());
                    entries.push(entry);
                }
            }
            Ok(())
        }
        Value::Seq(items) => items.into_iter().try_for_each(|item| match item.value {
            Value::Map(_) => merge_key(item, span, entries, seen),
            _ => Err(error(span, "yaml-anchor", "`<<` takes a map, or a list of maps")),
        }),
        Value::Scalar(_) if null => Ok(()),
        Value::Scalar(_) => {
            Err(error(span, "yaml-anchor", "`<<` takes a map such as `*base`, and here stands a plain value"))
        }
    }
}

/// Whether the scalar is plain; `!!str` makes text of anything.
fn scalar_style(style: ScalarStyle, tag: Option<&Tag>, span: &Span) -> Result<bool, Box<Problem>> {
    check_tag(tag, span)?;
    let text = tag.is_some_and(|tag| tag.suffix == "str" || (tag.handle == "!" && tag.suffix.is_empty()));
    Ok(style == ScalarStyle::Plain && !text)
}

fn check_tag(tag: Option<&Tag>, span: &Span) -> Result<(), Box<Problem>> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() || tag.handle == "!" && tag.suffix.is_empty()) => {
            let name = format!("{}{}", tag.handle, tag.suffix);
            Err(error(
                span,
                "yaml-tag",
                format!("the tag `{name}` means nothing in a recipe; to include another file use `extends:`"),
            ))
        }
        _ => Ok(()),
    }
}

fn depth(node: &Node) -> usize {
    match &node.value {
        Value::Scalar(_) => 0,
        Value::Seq(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|entry| depth(&entry.value)).max().unwrap_or(0),
    }
}

fn too_deep(span: &Span) -> Box<Problem> {
    error(span, "yaml-limits", format!("lists and maps are nested more than {MAX_DEPTH} deep"))
}

fn error(span: &Span, code: &'static str, message: impl Into<String>) -> Box<Problem> {
    Box::new(span.problem(Severity::Error, code, message))
}
