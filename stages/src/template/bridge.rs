//! Between minijinja's values and Python's: every string, list and dict that a template touches travels through
//! minijinja as an object that holds a [`Value`].
//!
//! What a template prints becomes plain text at once. Marks survive that as markers between two Unicode noncharacters,
//! which are taken out again when the text is captured (a macro's result, a `{% set %}` block) or the render is done.
//! Text that has such characters of its own is rendered without marks.

use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::render::TemplateError;
use super::run::{CallArgs, Evaluated};
use super::text::{Mark, Part, Text};
use super::value::Value;

/// Opens and closes a marker; permanently unassigned in Unicode.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// Whether text cannot be rendered with marks because it has markers' characters.
pub fn has_marker(text: &str) -> bool {
    text.contains([OPEN, CLOSE])
}

/// A Python value inside minijinja.
pub struct Py(pub Value);

impl fmt::Debug for Py {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.repr())
    }
}

impl Object for Py {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        match &self.0 {
            Value::Seq(_) => ObjectRepr::Seq,
            _ => ObjectRepr::Plain,
        }
    }

    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        let Value::Seq(seq) = &self.0 else { return None };
        seq.items.get(key.as_usize()?).map(to_native)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match &self.0 {
            Value::Seq(seq) => Enumerator::Values(seq.items.iter().map(to_native).collect()),
            _ => Enumerator::NonEnumerable,
        }
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.0.truthy()
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_text().text)
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[minijinja::Value]) -> Result<minijinja::Value, Error> {
        let mut run = super::run::Run;
        match &self.0 {
            Value::Method(bound) => answer(super::method::call(&mut run, &bound.0, bound.1, arguments(args))),
            Value::Undefined(what) => answer(run.fail(what.to_string())),
            other => answer(run.fail(format!("'{}' object is not callable", other.type_name()))),
        }
    }
}

/// A function of the environment.
pub struct Function(
    pub &'static str,
    pub fn(&mut State<'_, '_>, &[minijinja::Value]) -> Result<minijinja::Value, Error>,
);

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<function {}>", self.0)
    }
}

impl Object for Function {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[minijinja::Value]) -> Result<minijinja::Value, Error> {
        (self.1)(state, args)
    }
}

pub fn to_native(value: &Value) -> minijinja::Value {
    match value {
        Value::None => minijinja::Value::from(()),
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => match i64::try_from(*value) {
            Ok(small) => small.into(),
            Err(_) => (*value).into(),
        },
        Value::Float(value) => (*value).into(),
        Value::Native(value) => value.clone(),
        other => minijinja::Value::from_object(Py(other.clone())),
    }
}

pub fn from_native(value: &minijinja::Value) -> Value {
    if let Some(py) = value.downcast_object_ref::<Py>() {
        return py.0.clone();
    }
    match value.kind() {
        ValueKind::Undefined => Value::undefined("a variable is undefined"),
        ValueKind::None => Value::None,
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::Number if value.is_integer() => match i128::try_from(value.clone()) {
            Ok(whole) => Value::Int(whole),
            Err(_) => Value::Native(value.clone()),
        },
        ValueKind::Number => f64::try_from(value.clone()).map_or_else(|_| Value::Native(value.clone()), Value::Float),
        ValueKind::String => Value::Str(decode(value.as_str().unwrap_or_default())),
        _ => Value::Native(value.clone()),
    }
}

/// Positional and named arguments of a call.
pub fn arguments(args: &[minijinja::Value]) -> CallArgs {
    let mut out = CallArgs::default();
    for arg in args {
        if !arg.is_kwargs() {
            out.positional.push(from_native(arg));
            continue;
        }
        for key in arg.try_iter().into_iter().flatten() {
            let value = arg.get_item(&key).unwrap_or_default();
            out.named.push((key.as_str().unwrap_or_default().into(), from_native(&value)));
        }
    }
    out
}

/// A result as minijinja takes it.
pub fn answer(result: Evaluated<Value>) -> Result<minijinja::Value, Error> {
    match result {
        Ok(value) => Ok(to_native(&value)),
        Err(error) => Err(Error::new(ErrorKind::InvalidOperation, error.to_string()).with_source(error)),
    }
}

/// What was raised inside, found again in minijinja's error.
pub fn cause(error: &Error) -> Option<TemplateError> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<TemplateError>() {
            return Some(found.clone());
        }
        source = inner.source();
    }
    None
}

/// Writes a printed value, with markers where it has marks.
pub fn print(value: &minijinja::Value, out: &mut minijinja::Output<'_>) -> Result<(), Error> {
    let failed = |_| Error::new(ErrorKind::WriteFailure, "cannot write the rendered text");
    if let Some(text) = value.as_str() {
        return out.write_str(text).map_err(failed);
    }
    let text = from_native(value).to_text();
    if text.marks().is_empty() {
        return out.write_str(&text.text).map_err(failed);
    }
    out.write_str(&encode(&text)).map_err(failed)
}

/// Text with its marks written into it.
fn encode(text: &Text) -> String {
    // (place, kind, number of the mark); at one place the ends of non-empty marks come before beginnings.
    let mut points: Vec<(usize, u8, usize)> = Vec::new();
    for (i, mark) in text.marks().iter().enumerate() {
        let empty = mark.start == mark.end;
        points.push((mark.start, 1, i));
        points.push((mark.end, if empty { 2 } else { 0 }, i));
    }
    points.sort();
    let mut out = String::with_capacity(text.text.len() + points.len() * 12);
    let mut at = 0;
    for (place, kind, i) in points {
        out.push_str(&text.text[at..place]);
        at = place;
        let mark = &text.marks()[i];
        let _ = match kind {
            1 => {
                let source = mark.source.map_or_else(|| "-".to_string(), |source| source.to_string());
                write!(out, "{OPEN}b{i},{},{},{source}{CLOSE}", mark.message, part_code(mark.part))
            }
            _ => write!(out, "{OPEN}e{i}{CLOSE}"),
        };
    }
    out.push_str(&text.text[at..]);
    out
}

/// Text with markers taken out and made marks again.
pub fn decode(text: &str) -> Text {
    if !text.contains(OPEN) {
        return Text::new(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut marks: Vec<Mark> = Vec::new();
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(OPEN) {
        out.push_str(&rest[..at]);
        rest = &rest[at + OPEN.len_utf8()..];
        let Some((marker, tail)) = rest.split_once(CLOSE) else { break };
        rest = tail;
        if let Some(fields) = marker.strip_prefix('b') {
            let mut fields = fields.split(',');
            let number = |field: Option<&str>| field.and_then(|field| field.parse::<usize>().ok());
            let id = number(fields.next()).unwrap_or(0);
            let message = number(fields.next()).unwrap_or(0) as u32;
            let part = part_of(number(fields.next()).unwrap_or(0));
            let source = number(fields.next());
            open.push((id, marks.len()));
            marks.push(Mark { start: out.len(), end: out.len(), message, part, source });
        } else if let Some(id) = marker.strip_prefix('e').and_then(|id| id.parse::<usize>().ok())
            && let Some(i) = open.iter().rposition(|(open, _)| *open == id)
        {
            let (_, mark) = open.remove(i);
            marks[mark].end = out.len();
        }
    }
    out.push_str(rest);
    Text::with_marks(out, marks)
}

const PARTS: [Part; 11] = [
    Part::Content,
    Part::Reasoning,
    Part::ToolCalls,
    Part::Turn,
    Part::Generation,
    Part::LoopBegin,
    Part::AtMessage,
    Part::AtToolCall,
    Part::LoopEnd,
    Part::GenerationBegin,
    Part::GenerationEnd,
];

fn part_code(part: Part) -> usize {
    PARTS.iter().position(|known| *known == part).unwrap_or(0)
}

fn part_of(code: usize) -> Part {
    PARTS.get(code).copied().unwrap_or(Part::Content)
}

/// An event as a value to print.
pub fn event(part: Part, message: u32) -> Value {
    Value::Str(Text::with_marks("", vec![Mark { start: 0, end: 0, message, part, source: None }]))
}
