//! Methods of Python's strings, lists and dicts, and `%` formatting.

use super::run::{CallArgs, Evaluated, Run, dict_part};
use std::sync::Arc;

use super::format;
use super::lexer::is_space;
use super::text::{Builder, Text};
use super::value::{Dict, SeqKind, Value};

const STR: [&str; 43] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "isidentifier",
];
const DICT: [&str; 5] = ["get", "items", "keys", "values", "copy"];
const LIST: [&str; 3] = ["index", "count", "copy"];
const TUPLE: [&str; 2] = ["index", "count"];
/// What would change a value in place; the sandbox answers with an undefined that says so.
const UNSAFE_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const UNSAFE_LIST: [&str; 7] = ["append", "clear", "pop", "reverse", "insert", "sort", "extend"];

/// The method of that name, bound to its object.
pub fn bound(object: &Value, name: &str) -> Option<Value> {
    let (names, refused): (&[&'static str], &[&'static str]) = match object {
        Value::Str(_) => (&STR, &[]),
        Value::Dict(_) => (&DICT, &UNSAFE_DICT),
        Value::Seq(seq) => match seq.kind {
            SeqKind::List => (&LIST, &[]),
            SeqKind::Tuple | SeqKind::Range => (&TUPLE, &[]),
            _ => (&[], &[]),
        },
        _ => (&[], &[]),
    };
    if let Some(name) = names.iter().find(|known| **known == name) {
        return Some(Value::Method(Arc::new((object.clone(), name))));
    }
    let list = matches!(object, Value::Seq(seq) if seq.kind == SeqKind::List) && UNSAFE_LIST.contains(&name);
    if refused.contains(&name) || list {
        let kind = object.type_name();
        return Some(Value::undefined(&format!("access to attribute '{name}' of '{kind}' object is unsafe.")));
    }
    None
}

pub fn call(run: &mut Run, object: &Value, name: &str, args: CallArgs) -> Evaluated<Value> {
    for (keyword, _) in &args.named {
        let known = matches!(
            (name, &**keyword),
            ("split" | "rsplit", "sep" | "maxsplit")
                | ("splitlines", "keepends")
                | ("format", _)
                | ("replace", "count")
        );
        if !known {
            return run.fail(format!("{name}() takes no keyword argument '{keyword}'"));
        }
    }
    match object {
        Value::Str(text) => string(run, text, name, &args),
        Value::Dict(dict) => dict_method(run, dict, name, &args),
        Value::Seq(seq) => match (name, args.positional.first()) {
            ("copy", _) => Ok(object.clone()),
            ("count", Some(wanted)) => {
                Ok(Value::Int(seq.items.iter().filter(|item| item.equals(wanted)).count() as i128))
            }
            ("index", Some(wanted)) => match seq.items.iter().position(|item| item.equals(wanted)) {
                Some(at) => Ok(Value::Int(at as i128)),
                None => run.fail(format!("{} is not in list", wanted.repr())),
            },
            _ => run.fail(format!("{name}() takes exactly one argument")),
        },
        other => run.fail(format!("'{}' object has no method '{name}'", other.type_name())),
    }
}

fn dict_method(run: &Run, dict: &Arc<Dict>, name: &str, args: &CallArgs) -> Evaluated<Value> {
    match (name, args.positional.as_slice()) {
        ("items", []) => Ok(dict_part(dict, SeqKind::Items)),
        ("keys", []) => Ok(dict_part(dict, SeqKind::Keys)),
        ("values", []) => Ok(dict_part(dict, SeqKind::Values)),
        ("copy", []) => Ok(Value::Dict(dict.clone())),
        ("get", [key]) => Ok(dict.get(key).cloned().unwrap_or(Value::None)),
        ("get", [key, default]) => Ok(dict.get(key).cloned().unwrap_or_else(|| default.clone())),
        _ => run.fail(format!("wrong number of arguments for dict.{name}()")),
    }
}

fn string(run: &mut Run, text: &Text, name: &str, args: &CallArgs) -> Evaluated<Value> {
    run.burn(text.text.len() as u64 / 64)?;
    match name {
        "strip" | "lstrip" | "rstrip" => strip(run, text, name, args.positional.first()),
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => split(run, text, name, args),
        "join" => join(run, text, args),
        "format" => format::braces(run, text, &args.positional, &args.named),
        "format_map" => match args.positional.first() {
            Some(Value::Dict(map)) => {
                let named: Vec<_> = map.entries.iter().map(|(k, v)| (k.to_text().text, v.clone())).collect();
                format::braces(run, text, &[], &named)
            }
            _ => run.fail("format_map() takes a mapping"),
        },
        "replace" => replace(run, text, args),
        "startswith" | "endswith" | "find" | "rfind" | "index" | "rindex" | "count" | "removeprefix"
        | "removesuffix" => search(run, text, name, args),
        "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => pad(run, text, name, args),
        _ => Ok(simple(text, name)),
    }
}

/// Methods without arguments.
fn simple(text: &Text, name: &str) -> Value {
    let s = &*text.text;
    let all = |test: fn(char) -> bool| Value::Bool(!s.is_empty() && s.chars().all(test));
    match name {
        "lower" => Value::Str(text.rewritten(s.to_lowercase())),
        "casefold" => Value::Str(text.rewritten(s.to_lowercase().replace('ß', "ss"))),
        "upper" => Value::Str(text.rewritten(s.to_uppercase())),
        "capitalize" => Value::Str(text.rewritten(capitalize(s))),
        "title" => Value::Str(text.rewritten(title(s))),
        "swapcase" => {
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect::<String>(),
            };
            Value::Str(text.rewritten(s.chars().map(swap).collect()))
        }
        "isdigit" | "isdecimal" => all(|c| c.is_numeric() && (!c.is_ascii() || c.is_ascii_digit())),
        "isnumeric" => all(char::is_numeric),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isspace" => all(is_space),
        "isascii" => Value::Bool(s.is_ascii()),
        "islower" => Value::Bool(s.chars().any(char::is_lowercase) && !s.chars().any(char::is_uppercase)),
        "isupper" => Value::Bool(s.chars().any(char::is_uppercase) && !s.chars().any(char::is_lowercase)),
        "istitle" => Value::Bool(s.chars().any(char::is_alphabetic) && title(s) == s),
        "isidentifier" => Value::Bool(
            s.starts_with(|c: char| c == '_' || c.is_alphabetic())
                && s.chars().all(|c| c == '_' || c.is_alphanumeric()),
        ),
        _ => Value::None,
    }
}

pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

pub fn strip(run: &Run, text: &Text, name: &str, chars: Option<&Value>) -> Evaluated<Value> {
    let set: Option<Vec<char>> = match chars {
        None | Some(Value::None) => None,
        Some(Value::Str(chars)) => Some(chars.text.chars().collect()),
        Some(other) => return run.fail(format!("{name} arg must be None or str, not {}", other.type_name())),
    };
    let strips = |c: char| set.as_ref().map_or_else(|| is_space(c), |set| set.contains(&c));
    let s = &*text.text;
    let start = if name == "rstrip" { 0 } else { s.len() - s.trim_start_matches(strips).len() };
    let end = if name == "lstrip" { s.len() } else { s.trim_end_matches(strips).len() };
    Ok(Value::Str(text.slice(start, end.max(start))))
}

fn keyword<'a>(args: &'a CallArgs, at: usize, name: &str) -> Option<&'a Value> {
    args.positional.get(at).or_else(|| args.named.iter().find(|(key, _)| &**key == name).map(|(_, value)| value))
}

fn split(run: &mut Run, text: &Text, name: &str, args: &CallArgs) -> Evaluated<Value> {
    let s = &*text.text;
    if name == "splitlines" {
        let keep = keyword(args, 0, "keepends").is_some_and(Value::truthy);
        return Ok(Value::list(lines(text, keep)));
    }
    let separator = match keyword(args, 0, "sep") {
        None | Some(Value::None) => None,
        Some(Value::Str(separator)) if separator.text.is_empty() => return run.fail("empty separator"),
        Some(Value::Str(separator)) => Some(separator.clone()),
        Some(other) => return run.fail(format!("must be str or None, not {}", other.type_name())),
    };
    if name == "partition" || name == "rpartition" {
        let Some(separator) = separator else { return run.fail(format!("{name}() takes exactly one argument")) };
        let found = if name == "partition" { s.find(&*separator.text) } else { s.rfind(&*separator.text) };
        let none = || Value::str("");
        return Ok(Value::tuple(match found {
            Some(at) => vec![
                Value::Str(text.slice(0, at)),
                Value::Str(separator.clone()),
                Value::Str(text.slice(at + separator.text.len(), s.len())),
            ],
            None if name == "partition" => vec![Value::Str(text.clone()), none(), none()],
            None => vec![none(), none(), Value::Str(text.clone())],
        }));
    }
    let limit = match keyword(args, 1, "maxsplit").map(Value::as_int) {
        None => usize::MAX,
        Some(Some(limit)) => usize::try_from(limit).unwrap_or(usize::MAX),
        Some(None) => return run.fail("maxsplit must be an integer"),
    };
    let ranges = match (separator, name) {
        (Some(separator), "split") => split_at(s, &separator.text, limit),
        (Some(separator), _) => rsplit_at(s, &separator.text, limit),
        (None, "split") => split_blanks(s, limit),
        (None, _) => rsplit_blanks(s, limit),
    };
    run.burn(ranges.len() as u64)?;
    Ok(Value::list(ranges.into_iter().map(|(from, to)| Value::Str(text.slice(from, to))).collect()))
}

fn split_at(s: &str, separator: &str, limit: usize) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut from = 0;
    while out.len() < limit
        && let Some(at) = s[from..].find(separator)
    {
        out.push((from, from + at));
        from += at + separator.len();
    }
    out.push((from, s.len()));
    out
}

fn rsplit_at(s: &str, separator: &str, limit: usize) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut to = s.len();
    while out.len() < limit
        && let Some(at) = s[..to].rfind(separator)
    {
        out.push((at + separator.len(), to));
        to = at;
    }
    out.push((0, to));
    out.reverse();
    out
}

fn split_blanks(s: &str, limit: usize) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut from = s.len() - s.trim_start_matches(is_space).len();
    while from < s.len() {
        if out.len() >= limit {
            out.push((from, s.trim_end_matches(is_space).len().max(from)));
            break;
        }
        let to = s[from..].find(is_space).map_or(s.len(), |at| from + at);
        out.push((from, to));
        from = s.len() - s[to..].trim_start_matches(is_space).len();
    }
    out
}

fn rsplit_blanks(s: &str, limit: usize) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut to = s.trim_end_matches(is_space).len();
    while to > 0 {
        if out.len() >= limit {
            let start = s.len() - s.trim_start_matches(is_space).len();
            out.push((start.min(to), to));
            break;
        }
        let head = s[..to].trim_end_matches(|c| !is_space(c));
        out.push((head.len(), to));
        to = head.trim_end_matches(is_space).len();
    }
    out.reverse();
    out
}

fn lines(text: &Text, keep: bool) -> Vec<Value> {
    let s = &*text.text;
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut out = Vec::new();
    let mut from = 0;
    while from < s.len() {
        let Some(at) = s[from..].find(ends).map(|at| from + at) else {
            out.push(Value::Str(text.slice(from, s.len())));
            break;
        };
        let width = if s[at..].starts_with("\r\n") { 2 } else { s[at..].chars().next().map_or(1, char::len_utf8) };
        out.push(Value::Str(text.slice(from, if keep { at + width } else { at })));
        from = at + width;
    }
    out
}

fn join(run: &mut Run, separator: &Text, args: &CallArgs) -> Evaluated<Value> {
    let Some(items) = args.positional.first() else { return run.fail("join() takes exactly one argument") };
    let mut out = Builder::default();
    for (i, item) in run.iterate(items)?.iter().enumerate() {
        let Value::Str(item) = item else {
            return run.fail(format!("sequence item {i}: expected str instance, {} found", item.type_name()));
        };
        if i > 0 {
            out.push(separator);
        }
        run.burn(item.text.len() as u64 / 64)?;
        out.push(item);
    }
    Ok(Value::Str(out.finish()))
}

fn replace(run: &mut Run, text: &Text, args: &CallArgs) -> Evaluated<Value> {
    let [Value::Str(old), Value::Str(new), rest @ ..] = args.positional.as_slice() else {
        return run.fail("replace() takes two strings");
    };
    let limit = rest.first().or_else(|| keyword(args, 2, "count")).and_then(Value::as_int).unwrap_or(-1);
    replaced(run, text, old, new, usize::try_from(limit).unwrap_or(usize::MAX)).map(Value::Str)
}

pub fn replaced(run: &mut Run, text: &Text, old: &Text, new: &Text, limit: usize) -> Evaluated<Text> {
    let s = &*text.text;
    let mut out = Builder::default();
    let mut from = 0;
    for (at, _) in s.match_indices(&*old.text).take(limit) {
        run.burn(1 + new.text.len() as u64 / 64)?;
        out.push(&text.slice(from, at));
        out.push(new);
        from = at + old.text.len();
    }
    if from == 0 && out.text.is_empty() {
        return Ok(text.clone());
    }
    out.push(&text.slice(from, s.len()));
    Ok(out.finish())
}

fn search(run: &mut Run, text: &Text, name: &str, args: &CallArgs) -> Evaluated<Value> {
    // Bounds count characters; work on the part between them.
    let bound = |at: usize| args.positional.get(at).cloned();
    let part = match (bound(1), bound(2)) {
        (None, None) => Value::Str(text.clone()),
        (start, stop) => super::operator::slice(run, &Value::Str(text.clone()), &[start, stop, None])?,
    };
    let Value::Str(part) = part else { return run.fail("a slice of a string is a string") };
    let s = &*part.text;
    let needles = match args.positional.first() {
        Some(Value::Str(needle)) => vec![needle.text.clone()],
        Some(Value::Seq(seq)) if seq.kind == SeqKind::Tuple && matches!(name, "startswith" | "endswith") => {
            seq.items.iter().map(|item| item.to_text().text).collect()
        }
        Some(other) => return run.fail(format!("{name}() wants a string, not {}", other.type_name())),
        None => return run.fail(format!("{name}() takes at least 1 argument")),
    };
    let needle = needles.first().cloned().unwrap_or_default();
    let base = bound(1).and_then(|start| start.as_int()).map_or(0, |start| {
        let length = text.text.chars().count() as i128;
        (if start < 0 { start + length } else { start }).clamp(0, length)
    });
    let place = |at: Option<usize>| at.map(|at| s[..at].chars().count() as i128 + base);
    Ok(match name {
        "startswith" => Value::Bool(needles.iter().any(|needle| s.starts_with(&**needle))),
        "endswith" => Value::Bool(needles.iter().any(|needle| s.ends_with(&**needle))),
        "count" => Value::Int(s.matches(&*needle).count() as i128),
        "removeprefix" if s.starts_with(&*needle) => Value::Str(text.slice(needle.len(), s.len())),
        "removesuffix" if s.ends_with(&*needle) && !needle.is_empty() => {
            Value::Str(text.slice(0, s.len() - needle.len()))
        }
        "removeprefix" | "removesuffix" => Value::Str(text.clone()),
        "find" => Value::Int(place(s.find(&*needle)).unwrap_or(-1)),
        "rfind" => Value::Int(place(s.rfind(&*needle)).unwrap_or(-1)),
        _ => match place(if name == "index" { s.find(&*needle) } else { s.rfind(&*needle) }) {
            Some(at) => Value::Int(at),
            None => return run.fail("substring not found"),
        },
    })
}

fn pad(run: &mut Run, text: &Text, name: &str, args: &CallArgs) -> Evaluated<Value> {
    let width = args.positional.first().and_then(Value::as_int);
    if name == "expandtabs" {
        let blanks = " ".repeat(usize::try_from(width.unwrap_or(8)).unwrap_or(0).min(64));
        return replaced(run, text, &Text::new("\t"), &Text::new(blanks), usize::MAX).map(Value::Str);
    }
    let Some(width) = width.and_then(|width| usize::try_from(width.max(0)).ok()).filter(|width| *width < 1 << 20)
    else {
        return run.fail(format!("{name}() wants a width"));
    };
    let fill = match args.positional.get(1) {
        Some(Value::Str(fill)) => fill.text.to_string(),
        _ if name == "zfill" => "0".to_string(),
        _ => " ".to_string(),
    };
    let missing = width.saturating_sub(text.text.chars().count());
    let (left, right) = match name {
        "ljust" => (0, missing),
        "center" => {
            let left = missing / 2 + (missing & width & 1);
            (left, missing - left)
        }
        _ => (missing, 0),
    };
    let mut out = Builder::default();
    let sign = name == "zfill" && text.text.starts_with(['-', '+']);
    let split = usize::from(sign);
    out.push(&text.slice(0, split));
    out.push_str(&fill.repeat(left));
    out.push(&text.slice(split, text.text.len()));
    out.push_str(&fill.repeat(right));
    Ok(Value::Str(out.finish()))
}

/// `format % args`.
pub fn percent_format(run: &mut Run, text: &Text, args: &Value) -> Evaluated<Value> {
    format::percent(run, text, args)
}
