//! Jinja's filters.

use std::cmp::Ordering;

use super::json::tojson;
use super::method;
use super::operator;
use super::run::{CallArgs, Evaluated, Run, dict_part};
use super::text::{Builder, Text};
use super::value::{SeqKind, Value};

const NAMES: [&str; 52] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "xmlattr",
    "random",
];

pub fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// `value|name(args)`.
pub fn apply(run: &mut Run, name: &str, value: Value, args: CallArgs) -> Evaluated<Value> {
    match name {
        "tojson" => tojson(run, &value, &args),
        "default" | "d" => {
            let missing =
                matches!(value, Value::Undefined(_)) || (truth(&args, 1, "boolean", false) && !value.truthy());
            Ok(if missing { arg(&args, 0, "default_value").cloned().unwrap_or_else(|| Value::str("")) } else { value })
        }
        "length" | "count" => Ok(Value::Int(run.length(&value)? as i128)),
        "list" => Ok(Value::list(run.iterate(&value)?)),
        "items" => items(run, &value),
        "dictsort" => dictsort(run, &value, &args),
        "attr" => operator::attribute(run, &value, &text_arg(run, &args, 0, "name")?.text),
        "first" | "last" => {
            let items = run.iterate(&value)?;
            let found = if name == "first" { items.first() } else { items.last() };
            Ok(found.cloned().unwrap_or_else(|| Value::undefined(&format!("No {name} item, sequence was empty."))))
        }
        "join" => join(run, &value, &args),
        "map" => map(run, &value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(run, name, &value, args),
        "reverse" => match &value {
            Value::Str(text) => Ok(Value::Str(text.rewritten(text.text.chars().rev().collect()))),
            other => {
                let mut items = run.iterate(other)?;
                items.reverse();
                Ok(Value::generator(items))
            }
        },
        "sort" | "unique" | "min" | "max" | "groupby" | "sum" | "batch" | "slice" => sequence(run, name, &value, &args),
        "abs" | "int" | "float" | "round" => number(run, name, &value, &args),
        _ => text_filter(run, name, value, args),
    }
}

fn arg<'a>(args: &'a CallArgs, at: usize, name: &str) -> Option<&'a Value> {
    args.positional.get(at).or_else(|| args.named.iter().find(|(key, _)| &**key == name).map(|(_, value)| value))
}

fn truth(args: &CallArgs, at: usize, name: &str, default: bool) -> bool {
    arg(args, at, name).map_or(default, Value::truthy)
}

fn text_arg(run: &Run, args: &CallArgs, at: usize, name: &str) -> Evaluated<Text> {
    match arg(args, at, name) {
        Some(value) => Ok(value.to_text()),
        None => run.fail(format!("missing argument '{name}'")),
    }
}

fn items(run: &Run, value: &Value) -> Evaluated<Value> {
    match value {
        Value::Undefined(_) => Ok(Value::generator(Vec::new())),
        Value::Dict(dict) => match dict_part(dict, SeqKind::Items) {
            Value::Seq(seq) => Ok(Value::generator(seq.items.clone())),
            other => Ok(other),
        },
        _ => run.fail("Can only get item pairs from a mapping."),
    }
}

fn lowered(value: &Value, case_sensitive: bool) -> Value {
    match value {
        Value::Str(text) if !case_sensitive => Value::str(text.text.to_lowercase()),
        other => other.clone(),
    }
}

fn sorted(run: &Run, mut keyed: Vec<(Value, Value)>, reverse: bool) -> Evaluated<Vec<Value>> {
    let mut bad = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let order = a.compare(b).unwrap_or_else(|| {
            bad = Some((a.type_name(), b.type_name()));
            Ordering::Equal
        });
        if reverse { order.reverse() } else { order }
    });
    match bad {
        Some((a, b)) => run.fail(format!("'<' not supported between instances of '{a}' and '{b}'")),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

fn dictsort(run: &Run, value: &Value, args: &CallArgs) -> Evaluated<Value> {
    let Value::Dict(dict) = value else { return run.fail("dictsort wants a mapping") };
    let case_sensitive = truth(args, 0, "case_sensitive", false);
    let by_value = arg(args, 1, "by").is_some_and(|by| &*by.to_text().text == "value");
    let keyed = dict.entries.iter().map(|(key, value)| {
        let by = if by_value { value } else { key };
        (lowered(by, case_sensitive), Value::tuple(vec![key.clone(), value.clone()]))
    });
    Ok(Value::list(sorted(run, keyed.collect(), truth(args, 2, "reverse", false))?))
}

fn join(run: &mut Run, value: &Value, args: &CallArgs) -> Evaluated<Value> {
    let separator = arg(args, 0, "d").map(Value::to_text).unwrap_or_default();
    let attribute = arg(args, 1, "attribute").cloned();
    let mut out = Builder::default();
    for (i, item) in run.iterate(value)?.iter().enumerate() {
        if i > 0 {
            out.push(&separator);
        }
        let text = match &attribute {
            Some(path) => by_path(run, item, path)?.to_text(),
            None => item.to_text(),
        };
        run.burn(text.text.len() as u64 / 64)?;
        out.push(&text);
    }
    Ok(Value::Str(out.finish()))
}

/// `a.b.0` from an item, as `make_attrgetter` does.
fn by_path(run: &Run, item: &Value, path: &Value) -> Evaluated<Value> {
    if path.as_int().is_some() {
        return operator::item(run, item, path);
    }
    let mut found = item.clone();
    for part in path.to_text().text.split('.') {
        let key = part.parse::<i128>().map_or_else(|_| Value::str(part), Value::Int);
        found = operator::item(run, &found, &key)?;
    }
    Ok(found)
}

fn map(run: &mut Run, value: &Value, mut args: CallArgs) -> Evaluated<Value> {
    // Jinja asks `if seq` first: none maps to nothing.
    let items = if value.truthy() { run.iterate(value)? } else { Vec::new() };
    let mut out = Vec::with_capacity(items.len());
    if args.positional.is_empty() {
        let Some(path) = arg(&args, usize::MAX, "attribute").cloned() else {
            return run.fail("map requires a filter argument");
        };
        let default = arg(&args, usize::MAX, "default").cloned();
        for item in &items {
            let found = by_path(run, item, &path)?;
            out.push(match (&found, &default) {
                (Value::Undefined(_), Some(default)) => default.clone(),
                _ => found,
            });
        }
        return Ok(Value::generator(out));
    }
    let name = args.positional.remove(0).to_text();
    for item in items {
        let more = CallArgs { positional: args.positional.clone(), named: args.named.clone() };
        out.push(apply(run, &name.text, item, more)?);
    }
    Ok(Value::generator(out))
}

fn select(run: &mut Run, name: &str, value: &Value, mut args: CallArgs) -> Evaluated<Value> {
    let by_attribute = name.ends_with("attr");
    let wanted = name.starts_with("select");
    if by_attribute && args.positional.is_empty() {
        return run.fail("missing parameter for attribute name");
    }
    let path = if by_attribute { Some(args.positional.remove(0)) } else { None };
    let test = if args.positional.is_empty() { None } else { Some(args.positional.remove(0).to_text()) };
    let mut out = Vec::new();
    for item in if value.truthy() { run.iterate(value)? } else { Vec::new() } {
        let subject = match &path {
            Some(path) => by_path(run, &item, path)?,
            None => item.clone(),
        };
        let holds = match &test {
            Some(test) => super::test::apply(run, &test.text, &subject, &args.positional)?,
            None => subject.truthy(),
        };
        if holds == wanted {
            out.push(item);
        }
    }
    Ok(Value::generator(out))
}

fn keyed(run: &mut Run, value: &Value, args: &CallArgs, case_sensitive: bool) -> Evaluated<Vec<(Value, Value)>> {
    let path = arg(args, usize::MAX, "attribute").cloned();
    let mut out = Vec::new();
    for item in run.iterate(value)? {
        let key = match &path {
            Some(path) => by_path(run, &item, path)?,
            None => item.clone(),
        };
        out.push((lowered(&key, case_sensitive), item));
    }
    Ok(out)
}

fn sequence(run: &mut Run, name: &str, value: &Value, args: &CallArgs) -> Evaluated<Value> {
    let case_sensitive = arg(args, if name == "sort" { 1 } else { 0 }, "case_sensitive").is_some_and(Value::truthy);
    match name {
        "sort" => {
            let pairs = keyed(run, value, args, case_sensitive)?;
            Ok(Value::list(sorted(run, pairs, truth(args, 0, "reverse", false))?))
        }
        "unique" => {
            let mut seen: Vec<Value> = Vec::new();
            let mut out = Vec::new();
            for (key, item) in keyed(run, value, args, case_sensitive)? {
                run.burn(1 + seen.len() as u64 / 8)?;
                if !seen.iter().any(|old| old.equals(&key)) {
                    seen.push(key);
                    out.push(item);
                }
            }
            Ok(Value::generator(out))
        }
        "min" | "max" => {
            let pairs = keyed(run, value, args, case_sensitive)?;
            let ordered = sorted(run, pairs, name == "max")?;
            Ok(ordered
                .into_iter()
                .next()
                .unwrap_or_else(|| Value::undefined("No aggregated item, sequence was empty.")))
        }
        "sum" => {
            let mut total = arg(args, 1, "start").cloned().unwrap_or(Value::Int(0));
            let path = arg(args, 0, "attribute").cloned();
            for item in run.iterate(value)? {
                let item = match &path {
                    Some(path) => by_path(run, &item, path)?,
                    None => item,
                };
                total = operator::binary(run, super::ast::BinOp::Add, &total, &item)?;
            }
            Ok(total)
        }
        "groupby" => groupby(run, value, args),
        _ => chunks(run, name, value, args),
    }
}

fn groupby(run: &mut Run, value: &Value, args: &CallArgs) -> Evaluated<Value> {
    let Some(path) = arg(args, 0, "attribute").cloned() else { return run.fail("groupby wants an attribute") };
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for item in run.iterate(value)? {
        let key = by_path(run, &item, &path)?;
        match groups.iter_mut().find(|(old, _)| old.equals(&key)) {
            Some((_, items)) => items.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    let made = groups.into_iter().map(|(key, items)| (key.clone(), Value::tuple(vec![key, Value::list(items)])));
    Ok(Value::list(sorted(run, made.collect(), false)?))
}

fn chunks(run: &mut Run, name: &str, value: &Value, args: &CallArgs) -> Evaluated<Value> {
    let items = run.iterate(value)?;
    let count = arg(args, 0, if name == "batch" { "linecount" } else { "slices" }).and_then(Value::as_int).unwrap_or(0);
    let Some(count) = usize::try_from(count).ok().filter(|count| (1..100_000).contains(count)) else {
        return run.fail(format!("{name} wants a count above 0"));
    };
    let fill = arg(args, 1, "fill_with").filter(|fill| !matches!(fill, Value::None));
    let mut out: Vec<Vec<Value>> = Vec::new();
    if name == "batch" {
        out.extend(items.chunks(count).map(<[Value]>::to_vec));
        if let (Some(fill), Some(last)) = (fill, out.last_mut()) {
            last.resize(count, fill.clone());
        }
    } else {
        let (each, extra) = (items.len() / count, items.len() % count);
        let mut at = 0;
        for i in 0..count {
            let size = each + usize::from(i < extra);
            let mut part = items[at..at + size].to_vec();
            at += size;
            if let (Some(fill), true) = (fill, i >= extra && extra > 0) {
                part.push(fill.clone());
            }
            out.push(part);
        }
    }
    Ok(Value::generator(out.into_iter().map(Value::list).collect()))
}

fn number(run: &mut Run, name: &str, value: &Value, args: &CallArgs) -> Evaluated<Value> {
    if let Value::Undefined(what) = value {
        return run.fail(what.to_string());
    }
    match name {
        "abs" => match (value, value.as_int()) {
            (_, Some(whole)) => Ok(Value::Int(whole.abs())),
            (Value::Float(number), _) => Ok(Value::Float(number.abs())),
            (other, _) => run.fail(format!("bad operand type for abs(): '{}'", other.type_name())),
        },
        "int" => {
            let base = arg(args, 1, "base").and_then(Value::as_int).and_then(|base| u32::try_from(base).ok());
            let parsed = match value {
                Value::Str(text) => {
                    let text = text.text.trim().replace('_', "");
                    let whole = match base.filter(|base| (2..=36).contains(base)) {
                        Some(base) => i128::from_str_radix(&text, base).ok(),
                        None => text.parse().ok(),
                    };
                    whole.or_else(|| text.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| n.trunc() as i128))
                }
                Value::Float(number) if number.is_finite() => Some(number.trunc() as i128),
                other => other.as_int(),
            };
            Ok(parsed.map_or_else(|| arg(args, 0, "default").cloned().unwrap_or(Value::Int(0)), Value::Int))
        }
        "float" => {
            let parsed = match value {
                Value::Str(text) => text.text.trim().parse().ok(),
                other => other.as_number(),
            };
            Ok(parsed.map_or_else(|| arg(args, 0, "default").cloned().unwrap_or(Value::Float(0.0)), Value::Float))
        }
        _ => {
            let Some(number) = value.as_number() else {
                return run.fail(format!("type {} doesn't define __round__ method", value.type_name()));
            };
            let digits = arg(args, 0, "precision").and_then(Value::as_int).unwrap_or(0).clamp(-300, 300) as i32;
            let scale = 10f64.powi(digits);
            let method = arg(args, 1, "method").map(Value::to_text);
            Ok(match method.as_ref().map(|method| &*method.text) {
                Some("ceil") => Value::Float((number * scale).ceil() / scale),
                Some("floor") => Value::Float((number * scale).floor() / scale),
                _ if matches!(value, Value::Int(_)) && digits >= 0 => value.clone(),
                _ => Value::Float((number * scale).round_ties_even() / scale),
            })
        }
    }
}

/// Filters that work on the value's text.
fn text_filter(run: &mut Run, name: &str, value: Value, args: CallArgs) -> Evaluated<Value> {
    if !exists(name) {
        return run.fail(format!("No filter named '{name}'."));
    }
    let text = value.to_text();
    run.burn(text.text.len() as u64 / 64)?;
    match name {
        "string" | "safe" => Ok(Value::Str(text)),
        "trim" => method::strip(run, &text, "strip", arg(&args, 0, "chars")),
        "lower" | "upper" | "center" => {
            let args = if args.positional.is_empty() && name == "center" {
                CallArgs { positional: vec![Value::Int(80)], named: Vec::new() }
            } else {
                args
            };
            method::call(run, &Value::Str(text), name, args)
        }
        "capitalize" => Ok(Value::Str(text.rewritten(method::capitalize(&text.text)))),
        "title" => Ok(Value::Str(text.rewritten(title(&text.text)))),
        "replace" => {
            let (old, new) = (text_arg(run, &args, 0, "old")?, text_arg(run, &args, 1, "new")?);
            let limit = arg(&args, 2, "count").and_then(Value::as_int).and_then(|n| usize::try_from(n).ok());
            method::replaced(run, &text, &old, &new, limit.unwrap_or(usize::MAX)).map(Value::Str)
        }
        "escape" | "e" | "forceescape" => {
            let mut out = String::with_capacity(text.text.len());
            for c in text.text.chars() {
                match c {
                    '&' => out.push_str("&amp;"),
                    '<' => out.push_str("&lt;"),
                    '>' => out.push_str("&gt;"),
                    '\'' => out.push_str("&#39;"),
                    '"' => out.push_str("&#34;"),
                    c => out.push(c),
                }
            }
            Ok(Value::Str(text.rewritten(out)))
        }
        "indent" => indent(run, &text, &args),
        "format" => {
            let with = match (args.positional.is_empty(), args.named.is_empty()) {
                (true, false) => Value::dict(args.named.into_iter().map(|(k, v)| (Value::str(k), v)).collect()),
                _ => Value::tuple(args.positional),
            };
            method::percent_format(run, &text, &with)
        }
        "wordcount" => Ok(Value::Int(
            text.text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).count() as i128,
        )),
        "striptags" => Ok(Value::Str(text.rewritten(striptags(&text.text)))),
        "truncate" => truncate(&text, &args),
        "urlencode" => Ok(Value::Str(text.rewritten(urlencode(&text.text)))),
        "pprint" => Ok(Value::str(value.repr())),
        other => run.fail(format!("the filter '{other}' has no fixed meaning in a chat template and is not supported")),
    }
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        start = c == '-' || super::lexer::is_space(c) || matches!(c, '(' | '{' | '[' | '<');
    }
    out
}

fn indent(run: &Run, text: &Text, args: &CallArgs) -> Evaluated<Value> {
    let width = match arg(args, 0, "width") {
        Some(Value::Str(text)) => text.text.to_string(),
        Some(other) => match other.as_int() {
            Some(width) => " ".repeat(usize::try_from(width.clamp(0, 1000)).unwrap_or(0)),
            None => return run.fail("indent wants a width"),
        },
        None => "    ".to_string(),
    };
    let (first, blank) = (truth(args, 1, "first", false), truth(args, 2, "blank", false));
    let mut out = Builder::default();
    let s = &*text.text;
    let mut from = 0;
    for (i, line) in s.split_inclusive('\n').enumerate() {
        let empty = line == "\n";
        if if i == 0 { first } else { blank || !empty } {
            out.push_str(&width);
        }
        out.push(&text.slice(from, from + line.len()));
        from += line.len();
    }
    if s.ends_with('\n') && blank {
        out.push_str(&width);
    }
    Ok(Value::Str(out.finish()))
}

fn striptags(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        match c {
            '<' => inside = true,
            '>' if inside => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn truncate(text: &Text, args: &CallArgs) -> Evaluated<Value> {
    let size = |at, name, default| {
        arg(args, at, name).and_then(Value::as_int).and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
    };
    let (length, leeway) = (size(0, "length", 255), size(3, "leeway", 5));
    let end = arg(args, 2, "end").map_or_else(|| Text::new("..."), Value::to_text);
    let chars: Vec<char> = text.text.chars().collect();
    if chars.len() <= length + leeway {
        return Ok(Value::Str(text.clone()));
    }
    let mut cut: String = chars[..length.saturating_sub(end.text.chars().count())].iter().collect();
    if !truth(args, 1, "killwords", false)
        && let Some(at) = cut.rfind(' ')
    {
        cut.truncate(at);
    }
    cut.push_str(&end.text);
    Ok(Value::Str(text.rewritten(cut)))
}

fn urlencode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}
