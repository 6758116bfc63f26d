//! Single values: what YAML makes of their text, and whether a schema takes them.

use pipe_engine::document::Scalar;
use serde_json::Value;

use super::numbers::{self, Range};
use super::schema::{self, BOOLEANS};

/// What a scalar is by the rules of YAML 1.1, which Axolotl and most editors' readers go by.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Resolved {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Plain text that some readers take for a date, a time or an octal number, and others do not.
    Disputed(String),
}

/// Why a scalar does not fit.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Misfit {
    /// Another type is wanted; in words.
    Type { wanted: String },
    /// One of these words is wanted.
    Word { words: Vec<String> },
    /// The number is outside; in words.
    Range { bounds: String },
    /// The text does not have the form that the pattern asks for.
    Form { pattern: String },
}

/// By YAML 1.1's rules; quoted scalars are text.
pub(super) fn resolve(scalar: &Scalar) -> Resolved {
    let text = &*scalar.text;
    if !scalar.plain {
        return Resolved::Text(text.to_string());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Resolved::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Resolved::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        _ => {}
    }
    if let Some(on) = boolean(text) {
        return Resolved::Bool(on);
    }
    number(text).unwrap_or_else(|| match is_time(text) {
        true => Resolved::Disputed(text.to_string()),
        false => Resolved::Text(text.to_string()),
    })
}

/// The value that `scalar` gives under any of the alternative schemas, or the best reason why none takes it.
pub(super) fn fit(scalar: &Scalar, alternatives: &[&Value]) -> Result<serde_yaml::Value, Misfit> {
    let resolved = resolve(scalar);
    if alternatives.iter().any(|schema| is_any(schema)) {
        return Ok(to_yaml(&resolved));
    }
    let has = |name: &str| alternatives.iter().any(|schema| has_type(schema, name));
    let candidate = match &resolved {
        Resolved::Text(text) if has("boolean") && boolean(text).is_some() => {
            boolean(text).map(Resolved::Bool).unwrap_or(Resolved::Null)
        }
        other => other.clone(),
    };
    let mut misfit = None;
    for schema in alternatives {
        match fit_one(&candidate, schema) {
            Ok(value) => return Ok(value),
            // A reason about the value beats one about its type.
            Err(Misfit::Type { .. }) => {}
            Err(other) => misfit = misfit.or(Some(other)),
        }
    }
    Err(misfit.unwrap_or_else(|| Misfit::Type { wanted: wanted(alternatives) }))
}

/// As JSON, for comparing with an `enum`.
pub(super) fn to_json(resolved: &Resolved) -> Value {
    match resolved {
        Resolved::Null => Value::Null,
        Resolved::Bool(on) => Value::Bool(*on),
        Resolved::Int(n) => Value::from(*n),
        Resolved::Float(x) if *x == 0.0 => Value::from(0),
        // JSON has no such number, and null would be another value.
        Resolved::Float(x) if !x.is_finite() => Value::String(x.to_string()),
        Resolved::Float(x) => Value::from(*x),
        Resolved::Text(text) | Resolved::Disputed(text) => Value::String(text.clone()),
    }
}

pub(super) fn to_yaml(resolved: &Resolved) -> serde_yaml::Value {
    match resolved {
        Resolved::Null => serde_yaml::Value::Null,
        Resolved::Bool(on) => serde_yaml::Value::Bool(*on),
        Resolved::Int(n) => serde_yaml::Value::from(*n),
        Resolved::Float(x) => serde_yaml::Value::from(*x),
        Resolved::Text(text) | Resolved::Disputed(text) => serde_yaml::Value::String(text.clone()),
    }
}

/// What the alternatives take, in words.
pub(super) fn wanted(alternatives: &[&Value]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut add = |word: String| {
        if !words.contains(&word) {
            words.push(word);
        }
    };
    let numeric = alternatives.iter().any(|schema| has_type(schema, "integer") || has_type(schema, "number"));
    let boolean = alternatives.iter().any(|schema| has_type(schema, "boolean"));
    for schema in alternatives {
        for (name, word) in [
            ("boolean", "true or false"),
            ("integer", "a whole number"),
            ("number", "a number"),
            ("array", "a list"),
            ("object", "a map"),
        ] {
            if has_type(schema, name) {
                add(word.to_string());
            }
        }
        if has_type(schema, "string") {
            match enumeration(schema) {
                Some(names) if boolean => {
                    names.iter().filter(|n| super::scalar::boolean(n).is_none()).for_each(|n| add(format!("`{n}`")))
                }
                Some(names) => add(format!("one of {}", names.join(", "))),
                None if numeric => {}
                None => add("text".to_string()),
            }
        }
    }
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, before)) => format!("{} or {last}", before.join(", ")),
        None => "nothing".to_string(),
    }
}

pub(super) fn has_type(schema: &Value, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(one)) => one == name,
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        _ => false,
    }
}

/// A schema that takes anything.
pub(super) fn is_any(schema: &Value) -> bool {
    schema == &Value::Bool(true)
        || schema
            .as_object()
            .is_some_and(|map| !["type", "enum", "const", "anyOf", "$ref"].iter().any(|key| map.contains_key(*key)))
}

/// The words of a string schema that has a list of them.
pub(super) fn enumeration(schema: &Value) -> Option<Vec<String>> {
    let words = schema.get("enum")?.as_array()?;
    Some(words.iter().filter_map(|word| word.as_str().map(str::to_string)).collect())
}

fn fit_one(value: &Resolved, schema: &Value) -> Result<serde_yaml::Value, Misfit> {
    let other = || Misfit::Type { wanted: String::new() };
    let if_typed = |name: &str| has_type(schema, name).then(|| to_yaml(value)).ok_or_else(other);
    match value {
        Resolved::Null => if_typed("null"),
        Resolved::Bool(on) if schema.get("const") == Some(&Value::Bool(*on)) => Ok(to_yaml(value)),
        Resolved::Bool(on) if schema.get("enum").is_some_and(|all| all[0].is_boolean() && all[0] != *on) => {
            Err(other())
        }
        Resolved::Bool(_) => if_typed("boolean"),
        Resolved::Int(n) if has_type(schema, "integer") || has_type(schema, "number") => {
            in_range(*n as f64, schema).map(|_| to_yaml(value))
        }
        Resolved::Float(x) if has_type(schema, "number") => in_range(*x, schema).map(|_| to_yaml(value)),
        Resolved::Float(x) if has_type(schema, "integer") && (x.fract() == 0.0 || !x.is_finite()) => {
            in_range(*x, schema).map(|_| serde_yaml::Value::from(*x as i64))
        }
        Resolved::Text(text) if has_type(schema, "integer") || has_type(schema, "number") => number_in(text, schema),
        Resolved::Text(text) if has_type(schema, "string") => fit_text(text, schema).map(|()| to_yaml(value)),
        _ => Err(other()),
    }
}

/// A number written as text.
fn number_in(text: &str, schema: &Value) -> Result<serde_yaml::Value, Misfit> {
    let range = Range::of(schema);
    match range.read(text) {
        Some(x) if range.whole || x.fract() == 0.0 && !text.contains(['.', 'e', 'E']) && x.abs() < 9e15 => {
            Ok(serde_yaml::Value::from(x as i64))
        }
        Some(x) => Ok(serde_yaml::Value::from(x)),
        None => match text.parse::<f64>() {
            // `-0` is inside a range that its sign is not.
            Ok(x)
                if is_number(text) && (!(range.has(x) || range.whole && x.fract() != 0.0) || text.starts_with('-')) =>
            {
                Err(Misfit::Range { bounds: range.words() })
            }
            _ => Err(Misfit::Type { wanted: String::new() }),
        },
    }
}

fn in_range(x: f64, schema: &Value) -> Result<(), Misfit> {
    let range = Range::of(schema);
    if range.has(x) { Ok(()) } else { Err(Misfit::Range { bounds: range.words() }) }
}

fn fit_text(text: &str, schema: &Value) -> Result<(), Misfit> {
    if let Some(words) = enumeration(schema) {
        if words.iter().any(|word| word == text) {
            return Ok(());
        }
        let words: Vec<String> = words.into_iter().filter(|word| boolean(word).is_none()).collect();
        return Err(if words.is_empty() { Misfit::Type { wanted: String::new() } } else { Misfit::Word { words } });
    }
    match schema.get("pattern").and_then(Value::as_str) {
        Some(pattern) if numbers::is_pattern(pattern) => Err(Misfit::Type { wanted: String::new() }),
        Some(pattern) if !has_form(text, pattern) => Err(Misfit::Form { pattern: pattern.to_string() }),
        _ => Ok(()),
    }
}

/// The patterns in use, by hand: a regular-expression engine would cost more than the rest of the check.
fn has_form(text: &str, pattern: &str) -> bool {
    match pattern {
        schema::LABEL => {
            text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        }
        schema::PATH_TEXT => text.contains('/'),
        schema::NOT_BLANK => !text.trim().is_empty(),
        // What is wrong with a plugin is said by a check, which knows why.
        schema::PLUGIN => true,
        "^pissa_niter_[0-9]{1,9}$" => text
            .strip_prefix("pissa_niter_")
            .is_some_and(|n| (1..=9).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit())),
        _ => super::sections::parse_size(text).is_some(),
    }
}

fn boolean(text: &str) -> Option<bool> {
    BOOLEANS.iter().find(|(word, _)| *word == text).map(|(_, on)| *on)
}

/// Whether `text` is a number to anyone.
pub(super) fn is_number(text: &str) -> bool {
    Range::default().read(text).is_some()
        || text.parse::<f64>().is_ok() && text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
}

/// A plain scalar's number: `1_000`, `0x10`, `0b1`, `1.5e-4`; not `2e-4`, which is text to YAML 1.1.
fn number(text: &str) -> Option<Resolved> {
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { "-" } else { "" };
    for (prefix, radix) in [("0x", 16), ("0b", 2)] {
        if let Some(digits) = body.strip_prefix(prefix) {
            return i64::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), radix).ok().map(Resolved::Int);
        }
    }
    let counts = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let starts = body.starts_with(|c: char| c.is_ascii_digit());
    if starts && counts(body) {
        return match body.strip_prefix('0').filter(|rest| !rest.is_empty()) {
            None => whole(&format!("{sign}{}", body.replace('_', ""))),
            Some(rest) if rest.bytes().all(|b| (b'0'..=b'7').contains(&b) || b == b'_') => {
                Some(Resolved::Disputed(text.to_string()))
            }
            Some(_) => None,
        };
    }
    let (mantissa, power) = match body.find(['e', 'E']) {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    };
    let (before, after) = mantissa.split_once('.')?;
    let signed_power = power.is_none_or(|power| {
        power.strip_prefix(['-', '+']).is_some_and(|size| !size.is_empty() && size.bytes().all(|b| b.is_ascii_digit()))
    });
    let led = starts && counts(before);
    let bare = before.is_empty() && body.len() == text.len() && after.starts_with(|c: char| c.is_ascii_digit());
    if !counts(after) || !signed_power || !(led || bare) {
        return None;
    }
    let plain = format!("{sign}{}", body.replace('_', ""));
    plain.parse().ok().map(Resolved::Float)
}

fn whole(text: &str) -> Option<Resolved> {
    text.parse().map(Resolved::Int).or_else(|_| text.parse().map(Resolved::Float)).ok()
}

/// `2024-01-31`, `2024-01-31 12:00:00`, `1:30`.
fn is_time(text: &str) -> bool {
    let digits = |text: &str, most: usize| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let date = |text: &str| {
        let mut parts = text.split('-');
        let mut next = |most| parts.next().is_some_and(|part| digits(part, most));
        let all = next(4) && next(2) && next(2);
        all && parts.next().is_none() && text.find('-') == Some(4)
    };
    let clock = |text: &str| {
        let mut parts = text.strip_prefix(['-', '+']).unwrap_or(text).split(':');
        let first = parts.next().is_some_and(|part| digits(part, 18));
        let mut more = parts.peekable();
        first && more.peek().is_some() && more.all(|part| digits(part, 2) && !(part.len() == 2 && part >= "60"))
    };
    match text.split_once(['T', 't', ' ']) {
        Some((day, time)) => {
            date(day) && time.trim_start().starts_with(|c: char| c.is_ascii_digit()) && time.contains(':')
        }
        None => date(text) || clock(text),
    }
}
