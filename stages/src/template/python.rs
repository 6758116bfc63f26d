//! What chat templates expect of Python: spelling of values, `tojson`, methods, and transformers' own functions.

use std::fmt;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::PrettyFormatter;

/// A template's own refusal, with its message.
#[derive(Debug)]
pub struct Raised(pub String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Adds transformers' functions and filters and Python's methods.
pub fn install(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: String| {
        // A template that asks for the date gets it, as in transformers; it is the template's choice to depend on it.
        jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    environment.add_filter("tojson", tojson);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
}

/// transformers' `tojson`: `json.dumps(x, ensure_ascii=False, indent, separators, sort_keys)`, no HTML escapes.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let sort: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = json_of(value)?;
    if sort == Some(true) {
        json.sort_all_objects();
    }
    let indent = indent.filter(|value| !value.is_none()).map(|value| match value.kind() {
        ValueKind::String => value.to_string(),
        _ => " ".repeat(usize::try_from(value).unwrap_or(0)),
    });
    let mut out = Vec::new();
    match &indent {
        Some(indent) => {
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
        None => {
            let [item, key] = match separators.as_deref() {
                Some([item, key]) => [item.clone(), key.clone()],
                _ => [", ".to_string(), ": ".to_string()],
            };
            json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced { item, key })).map_err(failed)?;
        }
    }
    String::from_utf8(out).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

fn json_of(value: &Value) -> Result<serde_json::Value, Error> {
    use serde_json::Value as Json;
    Ok(match value.kind() {
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => match i64::try_from(value.clone()) {
            Ok(whole) if value.is_integer() => Json::from(whole),
            _ => Json::from(f64::try_from(value.clone())?),
        },
        ValueKind::String => Json::from(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => Json::Array(value.try_iter()?.map(|v| json_of(&v)).collect::<Result<_, _>>()?),
        ValueKind::Map => {
            let mut map = serde_json::Map::new();
            for key in value.try_iter()? {
                map.insert(key.to_string(), json_of(&value.get_item(&key)?)?);
            }
            Json::Object(map)
        }
        kind => return Err(Error::new(ErrorKind::BadSerialization, format!("a value of kind {kind} has no JSON"))),
    })
}

/// Python's one-line JSON: `, ` between items and `: ` after keys, unless told otherwise.
struct Spaced {
    item: String,
    key: String,
}

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// minijinja has no `generation` tag. It renders its body and nothing else, so a block that does just that takes its
/// place, with the same white-space marks.
pub fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        let (open, inner) = mark(tag, true);
        let (close, inner) = mark(inner, false);
        let replaced = match inner.trim() {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        out.push_str(&rest[..start]);
        match replaced {
            Some(word) => out.push_str(&format!("{{%{open} {word} {close}%}}")),
            None => out.push_str(&rest[start..start + length + 2]),
        }
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

/// The white-space mark at one end of a tag, and the tag without it.
fn mark(tag: &str, front: bool) -> (&str, &str) {
    let at = |c: Option<char>| matches!(c, Some('-' | '+'));
    match front {
        true if at(tag.chars().next()) => tag.split_at(1),
        false if at(tag.chars().next_back()) => {
            let (inner, mark) = tag.split_at(tag.len() - 1);
            (mark, inner)
        }
        _ => ("", tag),
    }
}
