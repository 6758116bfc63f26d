//! Single values: what YAML makes of their text, and whether a schema takes them.

use pipe_engine::document::Scalar;
use serde_json::Value;

use super::schema::{self, BOOLEANS};

/// What a scalar is by YAML's core rules.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Resolved {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
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

/// Of whole numbers; larger ones are not exact everywhere.
const HUGE: &str = "less than 9000000000000000";

/// By YAML's core rules; quoted scalars are text.
pub(super) fn resolve(scalar: &Scalar) -> Resolved {
    let text = &*scalar.text;
    if !scalar.plain {
        return Resolved::Text(text.to_string());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "true" | "True" | "TRUE" => return Resolved::Bool(true),
        "false" | "False" | "FALSE" => return Resolved::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Resolved::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Resolved::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        _ => {}
    }
    let radix = |digits: &str, radix| i64::from_str_radix(digits, radix).ok().map(Resolved::Int);
    let special =
        text.strip_prefix("0x").and_then(|d| radix(d, 16)).or(text.strip_prefix("0o").and_then(|d| radix(d, 8)));
    if let Some(number) = special {
        return number;
    }
    if is_number(text) && !text.contains('_') {
        return number(text);
    }
    Resolved::Text(text.to_string())
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
        Resolved::Text(text) if has("number") && is_number(text) => number(text),
        Resolved::Text(text) if has("integer") && is_number(text) && !text.contains(['e', 'E']) => number(text),
        other => other.clone(),
    };
    let mut misfit = None;
    for schema in alternatives {
        match fit_one(&candidate, schema) {
            Ok(()) => return Ok(coerced(&candidate, alternatives)),
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
        Resolved::Float(x) => Value::from(*x),
        Resolved::Text(text) => Value::String(text.clone()),
    }
}

pub(super) fn to_yaml(resolved: &Resolved) -> serde_yaml::Value {
    match resolved {
        Resolved::Null => serde_yaml::Value::Null,
        Resolved::Bool(on) => serde_yaml::Value::Bool(*on),
        Resolved::Int(n) => serde_yaml::Value::from(*n),
        Resolved::Float(x) => serde_yaml::Value::from(*x),
        Resolved::Text(text) => serde_yaml::Value::String(text.clone()),
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
            .is_some_and(|map| !["type", "enum", "anyOf", "$ref"].iter().any(|key| map.contains_key(*key)))
}

/// The words of a string schema that has a list of them.
pub(super) fn enumeration(schema: &Value) -> Option<Vec<String>> {
    let words = schema.get("enum")?.as_array()?;
    Some(words.iter().filter_map(|word| word.as_str().map(str::to_string)).collect())
}

fn fit_one(value: &Resolved, schema: &Value) -> Result<(), Misfit> {
    let other = || Misfit::Type { wanted: String::new() };
    match value {
        Resolved::Null => has_type(schema, "null").then_some(()).ok_or_else(other),
        Resolved::Bool(_) => has_type(schema, "boolean").then_some(()).ok_or_else(other),
        Resolved::Int(n) if has_type(schema, "integer") || has_type(schema, "number") => range(*n as f64, schema),
        Resolved::Float(x) if has_type(schema, "number") => range(*x, schema),
        Resolved::Float(x) if has_type(schema, "integer") && (x.fract() == 0.0 || !x.is_finite()) => {
            // Whole, and far beyond what any count may be: the number is wrong, not its kind.
            range(*x, schema).and(if x.abs() < 9e15 { Ok(()) } else { Err(Misfit::Range { bounds: HUGE.to_string() }) })
        }
        Resolved::Text(text) if has_type(schema, "string") => fit_text(text, schema),
        _ => Err(other()),
    }
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
        Some(pattern) if schema::is_number_text(pattern) => Err(Misfit::Type { wanted: String::new() }),
        Some(pattern) if !has_form(text, pattern) => Err(Misfit::Form { pattern: pattern.to_string() }),
        _ => Ok(()),
    }
}

/// The patterns in use, by hand: a regular-expression engine would cost more than the rest of the check.
fn has_form(text: &str, pattern: &str) -> bool {
    match pattern {
        "^[A-Za-z0-9_][A-Za-z0-9_.-]*$" => {
            text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        }
        schema::PATH_TEXT => text.contains('/'),
        "^pissa_niter_[0-9]+$" => text.strip_prefix("pissa_niter_").is_some_and(|n| n.parse::<u32>().is_ok()),
        _ => super::sections::parse_size(text).is_some(),
    }
}

fn range(x: f64, schema: &Value) -> Result<(), Misfit> {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let (low, high, above) = (bound("minimum"), bound("maximum"), bound("exclusiveMinimum"));
    // A bound that only keeps numbers exact is no news unless it is broken.
    let high = high.filter(|high| *high < schema::MOST_EXACT as f64 || x > *high);
    let inside = low.is_none_or(|low| x >= low) && high.is_none_or(|high| x <= high) && above.is_none_or(|low| x > low);
    if inside && x.is_finite() {
        return Ok(());
    }
    let least = low.map(|low| format!("at least {low}")).or(above.map(|low| format!("more than {low}")));
    let bounds = match (low, least, high) {
        (Some(low), _, Some(high)) => format!("between {low} and {high}"),
        (_, Some(least), None) => least,
        (_, Some(least), Some(high)) => format!("{least} and at most {high}"),
        (_, None, Some(high)) => format!("at most {high}"),
        (_, None, None) => "a finite number".to_string(),
    };
    Err(Misfit::Range { bounds })
}

/// Whole numbers lose their fraction where one is wanted, and gain none elsewhere.
fn coerced(value: &Resolved, alternatives: &[&Value]) -> serde_yaml::Value {
    match value {
        Resolved::Float(x) if !alternatives.iter().any(|schema| has_type(schema, "number")) => {
            serde_yaml::Value::from(*x as i64)
        }
        other => to_yaml(other),
    }
}

fn boolean(text: &str) -> Option<bool> {
    BOOLEANS.iter().find(|(word, _)| *word == text).map(|(_, on)| *on)
}

/// As [`schema::NUMBER_TEXT`].
fn is_number(text: &str) -> bool {
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (body, None),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let mantissa_fits = match mantissa.split_once('.') {
        Some(("", after)) => digits(after),
        Some((before, after)) => grouped(before) && (after.is_empty() || digits(after)),
        None => grouped(mantissa),
    };
    mantissa_fits && exponent.is_none_or(|text| digits(text.strip_prefix(['-', '+']).unwrap_or(text)))
}

fn grouped(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'_')
}

fn number(text: &str) -> Resolved {
    let text = text.replace('_', "");
    match text.parse::<i64>() {
        Ok(n) => Resolved::Int(n),
        Err(_) => Resolved::Float(text.parse().unwrap_or(f64::NAN)),
    }
}
