//! What is wrong with a text that is not YAML, in plain words and at the place where the mistake was made.
//!
//! A parser reports where it gave up; the mistake is often a line or two above, so the lines around are looked at.

use std::collections::HashSet;
use std::sync::Arc;

use saphyr_parser::ScanError;

use super::{MAX_BYTES, MAX_DEPTH, Span};
use crate::problem::{Problem, Severity};

/// Bytes as text: UTF-8 and not too long.
pub(super) fn text(bytes: Vec<u8>, size: u64) -> Result<String, Problem> {
    let start = Span { file: "".into(), line: 1, column: 1 };
    if bytes.len() > MAX_BYTES {
        let size = size.max(bytes.len() as u64);
        let message = format!("the file has {size} bytes, and a recipe may have {MAX_BYTES}");
        return Err(start.problem(Severity::Error, "yaml-limits", message));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        let message = "the file is UTF-16; save it as UTF-8";
        return Err(start.problem(Severity::Error, "not-text", message));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let line = 1 + bytes[..good].iter().filter(|b| **b == b'\n').count();
        let begin = bytes[..good].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let column = 1 + String::from_utf8_lossy(&bytes[begin..good]).chars().count();
        let place = Span { file: "".into(), line, column };
        place.problem(Severity::Error, "not-text", "the file is not UTF-8 text from here on; save it as UTF-8")
    })
}

/// Refuses control characters, which parsers treat in surprising ways.
pub(super) fn characters(text: &str, file: &Arc<str>) -> Result<(), Box<Problem>> {
    for (i, line) in text.split('\n').enumerate() {
        let bad = |c: char| c.is_control() && !matches!(c, '\t' | '\r' | '\u{85}');
        if let Some(at) = line.chars().position(bad) {
            let place = Span { file: file.clone(), line: i + 1, column: at + 1 };
            let message = "here is a control character, which is not part of any recipe; delete it";
            return Err(Box::new(place.problem(Severity::Error, "not-text", message)));
        }
    }
    Ok(())
}

/// The text with `pad` more spaces before every line that begins within brackets, and which lines those are.
pub(super) fn pad_brackets(text: &str, pad: usize) -> (String, HashSet<usize>) {
    let mut out = String::with_capacity(text.len() + 1024);
    let mut padded = HashSet::new();
    let (mut open, mut quote) = (0usize, None);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if open > 0 && quote.is_none() && !line.trim().is_empty() {
            padded.insert(i + 1);
            out.extend(std::iter::repeat_n(' ', pad));
        }
        out.push_str(line);
        let mut before = ' ';
        for c in line.chars() {
            match (quote, c) {
                (Some(mark), _) if c == mark && before != '\\' => quote = None,
                (Some(_), _) => {}
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if open > 0 || before.is_whitespace() => quote = Some(c),
                (None, '[' | '{') if open > 0 || before.is_whitespace() => open += 1,
                (None, ']' | '}') => open = open.saturating_sub(1),
                _ => {}
            }
            before = c;
        }
        if open == 0 {
            quote = None;
        }
    }
    (out, padded)
}

/// The problem behind a parser's complaint.
pub(super) fn syntax(error: &ScanError, text: &str, file: &Arc<str>) -> Problem {
    if error.info().contains("recursion") || error.info().contains("depth") {
        let place = Span { file: file.clone(), line: error.marker().line(), column: error.marker().col() + 1 };
        let message = format!("lists and maps are nested more than {MAX_DEPTH} deep");
        return place.problem(Severity::Error, "yaml-limits", message);
    }
    let lines: Vec<&str> = text.lines().collect();
    if error.info().contains("unknown anchor") {
        let place = Span { file: file.clone(), line: error.marker().line(), column: error.marker().col() + 1 };
        return anchor(&place, &lines);
    }
    let last = lines.len().max(1);
    let mut line = error.marker().line().clamp(1, last);
    let mut column = error.marker().col() + 1;
    let at = |line: usize, column: usize| Span { file: file.clone(), line, column };
    let found = tab(&lines, line)
        .or_else(|| quote(&lines, error.info()))
        .or_else(|| bracket(&lines))
        .or_else(|| trailing(&lines, line).filter(|_| error.info().contains("quoted scalar")))
        .or_else(|| dash(&lines, line))
        .or_else(|| spacing(&lines, line))
        .or_else(|| indentation(&lines, line));
    if let Some(found) = found {
        let mut problem = at(found.line, found.column).problem(Severity::Error, found.code, found.message);
        problem.suggestion = found.suggestion;
        return problem;
    }
    if lines.get(line - 1).is_none_or(|line| line.trim().is_empty())
        && let Some(back) = lines[..line.min(lines.len())].iter().rposition(|line| !line.trim().is_empty())
    {
        line = back + 1;
        column = 1;
    }
    at(line, column).problem(Severity::Error, "yaml-syntax", reason(error.info()))
}

/// The name among `known` that was probably meant.
pub(super) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| other)
}

/// An alias without its anchor; a text that begins with `*` is meant at times.
fn anchor(place: &Span, lines: &[&str]) -> Problem {
    let line = lines.get(place.line.saturating_sub(1)).copied().unwrap_or_default();
    let alias: String =
        line.chars().skip(place.column - 1).take_while(|c| !c.is_whitespace() && !",]}".contains(*c)).collect();
    let name = alias.trim_start_matches('*');
    let known = lines.iter().flat_map(|line| line.split_whitespace()).filter_map(|word| word.strip_prefix('&'));
    let near = nearest(name, known).map(|near| format!("*{near}"));
    let message = format!("the alias `{alias}` names an anchor that is not defined above it; a text needs quotes");
    let mut problem = place.problem(Severity::Error, "yaml-anchor", message);
    problem.suggestion = near.or_else(|| Some(format!("\"{alias}\"")));
    problem
}

struct Found {
    line: usize,
    column: usize,
    code: &'static str,
    message: String,
    suggestion: Option<String>,
}

/// A tab among the white space before a line's first character.
fn tab(lines: &[&str], until: usize) -> Option<Found> {
    let (i, line) = lines.iter().enumerate().take(until + 1).find(|(_, line)| {
        let blank = &line[..line.len() - line.trim_start().len()];
        blank.contains('\t') && !line.trim().is_empty() && !line.trim_start().starts_with('#')
    })?;
    let column = line.chars().position(|c| c == '\t')? + 1;
    Some(Found {
        line: i + 1,
        column,
        code: "yaml-tab",
        message: "this line is indented with a tab, and YAML allows only spaces there".to_string(),
        suggestion: Some("replace the tab with spaces".to_string()),
    })
}

/// A quotation mark that is never closed: the first line with an odd one.
fn quote(lines: &[&str], info: &str) -> Option<Found> {
    if !info.contains("quote") && !info.contains("end of stream") {
        return None;
    }
    let (i, column, mark) = lines.iter().enumerate().find_map(|(i, line)| {
        let begins = value_start(line)?;
        let mark = line[begins..].chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let closed = line[begins + 1..].contains(mark);
        (!closed).then(|| (i, line[..begins].chars().count() + 1, mark))
    })?;
    Some(Found {
        line: i + 1,
        column,
        code: "yaml-quote",
        message: format!("this {mark} is never closed"),
        suggestion: Some(format!("end the text with {mark}")),
    })
}

/// A `[` or `{` that is never closed.
fn bracket(lines: &[&str]) -> Option<Found> {
    let mut open: Vec<(usize, usize, char)> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let (mut quote, mut before) = (None, ' ');
        for (column, c) in line.chars().enumerate() {
            match (quote, c) {
                (Some(mark), _) if c == mark && before != '\\' => quote = None,
                (Some(_), _) => {}
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if !before.is_alphanumeric() => quote = Some(c),
                (None, '[' | '{') if !open.is_empty() || before.is_whitespace() => open.push((i + 1, column + 1, c)),
                (None, ']' | '}') => match open.pop() {
                    Some((from, _, other)) if closing(other) != c => {
                        return Some(Found {
                            line: i + 1,
                            column: column + 1,
                            code: "yaml-bracket",
                            message: format!("the {other} of line {from} is closed by {c} here"),
                            suggestion: Some(format!("end it with {}", closing(other))),
                        });
                    }
                    _ => {}
                },
                _ => {}
            }
            before = c;
        }
    }
    let (line, column, open) = *open.first()?;
    let close = closing(open);
    Some(Found {
        line,
        column,
        code: "yaml-bracket",
        message: format!("this {open} is never closed"),
        suggestion: Some(format!("end it with {close}")),
    })
}

fn closing(open: char) -> char {
    if open == '[' { ']' } else { '}' }
}

/// Text that goes on after its closing quotation mark, as in `'it's'`.
fn trailing(lines: &[&str], line: usize) -> Option<Found> {
    (line.saturating_sub(2)..line).rev().find_map(|i| {
        let text = lines.get(i)?;
        let begins = value_start(text)?;
        let mark = text[begins..].chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let body = text[begins + 1..].trim_end();
        let rest = body[body.find(mark)? + 1..].trim_start();
        if rest.is_empty() || rest.starts_with(['#', ',', ']', '}', ':']) {
            return None;
        }
        let inner = body.strip_suffix(mark).unwrap_or(body);
        let escaped = if mark == '"' { inner.replace('"', "\\\"") } else { inner.replace('\'', "''") };
        Some(Found {
            line: i + 1,
            column: text[..begins].chars().count() + 1,
            code: "yaml-quote",
            message: format!("the text in quotes ends at its second {mark}, and more stands behind it"),
            suggestion: Some(format!("{mark}{escaped}{mark}")),
        })
    })
}

/// `-key: value` without the space after the dash; the parser takes `-key` for a key and stumbles over the next line.
fn dash(lines: &[&str], line: usize) -> Option<Found> {
    (line.saturating_sub(3)..line).rev().find_map(|i| {
        let text = lines.get(i)?;
        let item = text.trim_start().strip_prefix('-')?;
        if !item.starts_with(|c: char| c.is_alphabetic() || c == '_') || !item.contains(':') {
            return None;
        }
        Some(Found {
            line: i + 1,
            column: text.chars().count() - text.trim_start().chars().count() + 1,
            code: "yaml-space",
            message: "there must be a space after the `-` of a list item".to_string(),
            suggestion: Some(format!("- {}", item.trim_end())),
        })
    })
}

/// `key:value` without the space, a key without its colon, or a second `: ` in a value.
fn spacing(lines: &[&str], line: usize) -> Option<Found> {
    [line, line.saturating_sub(1)].into_iter().filter(|n| *n >= 1).find_map(|n| {
        let text = lines.get(n - 1)?;
        let body = text.trim_start().trim_start_matches("- ").trim_start();
        let column = text.chars().count() - body.chars().count() + 1;
        let body = body.split(" #").next().unwrap_or(body).trim_end();
        let word = body.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).next().unwrap_or("");
        if word.is_empty() {
            return unquoted(lines.get(n - 1)?, n);
        }
        let rest = &body[word.len()..];
        let found = |code, message, suggestion: String| {
            Some(Found { line: n, column, code, message, suggestion: Some(suggestion) })
        };
        if let Some(value) = rest.strip_prefix(':') {
            if !value.is_empty() && !value.starts_with([' ', '\t']) && !value.contains(": ") {
                let message = format!("there must be a space after `{word}:`");
                return found("yaml-space", message, format!("{word}: {value}"));
            }
            let value = value.trim();
            let quoted = value.starts_with(['"', '\'', '[', '{', '|', '>']);
            if !quoted && (value.contains(": ") || value.ends_with(':')) {
                let message = format!("the value of `{word}` contains `: `, which begins a map; put it in quotes");
                return found("yaml-quote", message, format!("{word}: \"{}\"", value.replace('"', "\\\"")));
            }
            return unquoted(lines.get(n - 1)?, n);
        }
        let level = |n: usize| lines.get(n - 1).map(|line| line.len() - line.trim_start().len());
        if level(n) == level(line) && !body.contains(':') && !text.trim_start().starts_with('-') {
            let message = format!("`{word}` has no `:` after it");
            let value = rest.trim_start_matches(['=', ' ']);
            return found("yaml-colon", message, format!("{word}: {value}").trim_end().to_string());
        }
        None
    })
}

/// A value that begins with a character that YAML keeps for itself.
fn unquoted(line: &str, n: usize) -> Option<Found> {
    let begins = value_start(line)?;
    let value = line[begins..].trim_end();
    let first = value.chars().next().filter(|c| matches!(c, '@' | '`' | '%' | '*' | '&' | '!'))?;
    if matches!(first, '*' | '&' | '!') && value[1..].starts_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    Some(Found {
        line: n,
        column: line[..begins].chars().count() + 1,
        code: "yaml-quote",
        message: format!("a value cannot begin with {first} unless it is in quotes"),
        suggestion: Some(format!("\"{}\"", value.replace('"', "\\\""))),
    })
}

/// A line that stands deeper or shallower than its neighbours allow.
fn indentation(lines: &[&str], line: usize) -> Option<Found> {
    let width = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let counts = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let here = (1..=line.min(lines.len())).rev().find(|n| counts(&&lines[n - 1]))?;
    let indent = width(lines[here - 1]);
    let above: Vec<(usize, &str)> =
        (1..here).rev().filter(|n| counts(&&lines[n - 1])).map(|n| (n, lines[n - 1])).take(200).collect();
    let (before, previous) = *above.first()?;
    let column = indent + 1;
    let found = |message, wanted: usize| {
        let suggestion = Some(format!("indent the line by {wanted} spaces"));
        Some(Found { line: here, column, code: "yaml-indent", message, suggestion })
    };
    let item = lines[here - 1].trim_start().starts_with("- ");
    let previous_value = previous.split_once(": ").is_some_and(|(_, value)| !value.trim().is_empty());
    if indent > width(previous) && previous_value {
        let wanted = width(previous) + if previous.trim_start().starts_with("- ") && !item { 2 } else { 0 };
        if wanted != indent {
            let message = format!("this line stands deeper than line {before}, which already has a value");
            return found(message, wanted);
        }
    }
    let mut levels: Vec<usize> = Vec::new();
    for (_, other) in &above {
        let own = width(other);
        levels.push(own);
        if other.trim_start().starts_with("- ") {
            levels.push(own + 2);
        }
        if own == 0 {
            break;
        }
    }
    if levels.contains(&indent) {
        return None;
    }
    let wanted = levels.into_iter().min_by_key(|level| level.abs_diff(indent))?;
    let message = format!("this line is indented by {indent} spaces, and no line above that it could belong to is");
    found(message, wanted)
}

/// Byte position of the value of `key: value` or `- value`.
fn value_start(line: &str) -> Option<usize> {
    let mut at = line.len() - line.trim_start().len();
    while line[at..].starts_with("- ") {
        at += 2;
        at += line[at..].len() - line[at..].trim_start().len();
    }
    if let Some(colon) = line[at..].find(": ")
        && line[at..at + colon].chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
    {
        at += colon + 2;
        at += line[at..].len() - line[at..].trim_start().len();
    }
    (at < line.len() && !line[at..].starts_with('#')).then_some(at)
}

/// A parser's words in ours.
fn reason(info: &str) -> String {
    let plain = if info.contains("mapping values are not allowed") {
        "a `key: value` cannot stand here; check the indentation of this line and the one above"
    } else if info.contains("expected key") || info.contains("block end") || info.contains("expected <block") {
        "this line does not fit the lines above it; check its indentation"
    } else if info.contains("simple key") {
        "here a `key: value` was expected; is there a `:` missing?"
    } else if info.contains("block sequence entries") {
        "a list item (`- `) cannot stand here; check the indentation, or begin the list on the line after its key"
    } else {
        return format!("this is not YAML: {info}");
    };
    plain.to_string()
}
