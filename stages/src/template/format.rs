//! Python's two ways to put values into strings: `'%s' % x` and `'{}'.format(x)`.

use std::sync::Arc;

use super::operator;
use super::run::{Evaluated, Run};
use super::text::{Builder, Text};
use super::value::{SeqKind, Value};

/// `%` formatting with `%s`, `%r`, `%d`, `%i`, `%f`, `%x`, `%o`, `%e`, `%g`, `%c`, flags, width and precision.
pub fn percent(run: &mut Run, format: &Text, args: &Value) -> Evaluated<Value> {
    let single = [args.clone()];
    let mut positional = match args {
        Value::Seq(seq) if seq.kind == SeqKind::Tuple => seq.items.iter(),
        _ => single.iter(),
    };
    let s = &*format.text;
    let mut out = Builder::default();
    let mut at = 0;
    let mut used = false;
    while let Some(found) = s[at..].find('%') {
        out.push(&format.slice(at, at + found));
        at += found + 1;
        let mut value = None;
        if s[at..].starts_with('(') {
            let Some(close) = s[at..].find(')') else { return run.fail("incomplete format key") };
            let Value::Dict(map) = args else { return run.fail("format requires a mapping") };
            let key = &s[at + 1..at + close];
            let Some(found) = map.get_str(key) else { return run.fail(format!("KeyError: '{key}'")) };
            value = Some(found.clone());
            used = true;
            at += close + 1;
        }
        let spec_length = s[at..].find(|c: char| !"#0- +.0123456789".contains(c)).unwrap_or(s.len() - at);
        let spec = Spec::percent(&s[at..at + spec_length]);
        at += spec_length;
        let Some(kind) = s[at..].chars().next() else { return run.fail("incomplete format") };
        at += kind.len_utf8();
        if kind == '%' {
            out.push_str("%");
            continue;
        }
        let value = match value {
            Some(value) => value,
            None => match positional.next() {
                Some(value) => value.clone(),
                None => return run.fail("not enough arguments for format string"),
            },
        };
        let text = convert(run, &value, kind, &spec)?;
        out.push(&spec.pad(text, value.as_number().is_some() && kind != 's'));
    }
    let is_mapping = matches!(args, Value::Dict(_));
    if positional.next().is_some() && !used && !is_mapping {
        return run.fail("not all arguments converted during string formatting");
    }
    out.push(&format.slice(at, s.len()));
    Ok(Value::Str(out.finish()))
}

fn convert(run: &Run, value: &Value, kind: char, spec: &Spec) -> Evaluated<Text> {
    let number = || match value.as_number() {
        Some(number) => Ok(number),
        None => run.fail(format!("%{kind} format: a real number is required, not {}", value.type_name())),
    };
    let signed = |text: String, negative: bool| match (negative, spec.plus) {
        (false, true) => format!("+{text}"),
        _ => text,
    };
    Ok(match kind {
        's' => {
            let text = value.to_text();
            match spec.precision.and_then(|n| text.text.char_indices().nth(n)) {
                Some((end, _)) => text.slice(0, end),
                None => text,
            }
        }
        'r' | 'a' => Text::new(value.repr()),
        'd' | 'i' | 'u' => {
            let whole = value.as_int().map_or_else(|| number().map(|n| n.trunc() as i128), Ok)?;
            Text::new(signed(whole.to_string(), whole < 0))
        }
        'f' | 'F' => Text::new(signed(format!("{:.*}", spec.precision.unwrap_or(6), number()?), number()? < 0.0)),
        'x' | 'X' | 'o' => match (value.as_int(), kind) {
            (Some(n), 'x') => Text::new(format!("{n:x}")),
            (Some(n), 'X') => Text::new(format!("{n:X}")),
            (Some(n), _) => Text::new(format!("{n:o}")),
            (None, _) => return run.fail(format!("%{kind} format: an integer is required")),
        },
        'g' => Text::new(signed(general(number()?), number()? < 0.0)),
        'c' => match value.as_int().and_then(|n| u32::try_from(n).ok()).and_then(char::from_u32) {
            Some(c) => Text::new(c.to_string()),
            None => value.to_text(),
        },
        other => return run.fail(format!("unsupported format character '{other}'")),
    })
}

/// `%g` with six digits.
fn general(value: f64) -> String {
    let text = format!("{value:.5e}");
    let exponent: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if (-4..6).contains(&exponent) {
        let plain = format!("{value:.*}", (5 - exponent).max(0) as usize);
        return if plain.contains('.') { plain.trim_end_matches('0').trim_end_matches('.').to_string() } else { plain };
    }
    let mantissa = text.split_once('e').map_or(text.as_str(), |(m, _)| m);
    let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// What stands between `%` or `:` and the conversion.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    plus: bool,
    grouping: bool,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn percent(text: &str) -> Spec {
        let mut spec = Spec::default();
        let flags = text.len() - text.trim_start_matches(['#', '0', '-', ' ', '+']).len();
        for flag in text[..flags].chars() {
            match flag {
                '0' if spec.align.is_none() => (spec.fill, spec.align) = (Some('0'), Some('=')),
                '-' => (spec.fill, spec.align) = (None, Some('<')),
                '+' => spec.plus = true,
                _ => {}
            }
        }
        spec.width_and_precision(&text[flags..]);
        spec.align = spec.align.or(Some('>'));
        spec
    }

    fn braces(text: &str) -> Spec {
        let mut spec = Spec::default();
        let mut chars: Vec<char> = text.chars().collect();
        if chars.len() > 1 && "<>=^".contains(chars[1]) {
            (spec.fill, spec.align) = (Some(chars[0]), Some(chars[1]));
            chars.drain(..2);
        } else if chars.first().is_some_and(|c| "<>=^".contains(*c)) {
            spec.align = Some(chars.remove(0));
        }
        if chars.first() == Some(&'+') {
            spec.plus = true;
            chars.remove(0);
        }
        if chars.first() == Some(&'0') && spec.align.is_none() {
            (spec.fill, spec.align) = (Some('0'), Some('='));
        }
        if chars.last().is_some_and(|c| c.is_alphabetic() || *c == '%') {
            spec.kind = chars.pop();
        }
        spec.grouping = chars.contains(&',');
        chars.retain(|c| *c != ',');
        spec.width_and_precision(&chars.into_iter().collect::<String>());
        spec
    }

    fn width_and_precision(&mut self, text: &str) {
        let (width, precision) = text.split_once('.').map_or((text, None), |(w, p)| (w, Some(p)));
        self.width = width.parse().unwrap_or(0).min(1 << 16);
        self.precision = precision.map(|p: &str| p.parse().unwrap_or(0).min(1 << 10));
    }

    fn pad(&self, text: Text, numeric: bool) -> Text {
        let missing = self.width.saturating_sub(text.text.chars().count());
        if missing == 0 {
            return text;
        }
        let fill = self.fill.unwrap_or(' ');
        let run = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
        let align = self.align.unwrap_or(if numeric { '>' } else { '<' });
        let mut out = Builder::default();
        let sign = usize::from(align == '=' && text.text.starts_with(['-', '+']));
        let left = match align {
            '<' => 0,
            '^' => missing / 2,
            _ => missing,
        };
        out.push(&text.slice(0, sign));
        out.push_str(&run(left));
        out.push(&text.slice(sign, text.text.len()));
        out.push_str(&run(missing - left));
        out.finish()
    }
}

/// `str.format`, with attribute and item access as the sandbox allows it.
pub fn braces(run: &mut Run, format: &Text, positional: &[Value], named: &[(Arc<str>, Value)]) -> Evaluated<Value> {
    let s = &*format.text;
    let mut out = Builder::default();
    let mut at = 0;
    let mut auto = 0usize;
    while let Some(found) = s[at..].find(['{', '}']) {
        out.push(&format.slice(at, at + found));
        at += found;
        let brace = &s[at..at + 1];
        if s[at + 1..].starts_with(brace) {
            out.push_str(brace);
            at += 2;
            continue;
        }
        let close = if brace == "{" { s[at..].find('}') } else { None };
        let Some(close) = close else { return run.fail(format!("Single '{brace}' encountered in format string")) };
        let field = &s[at + 1..at + close];
        at += close + 1;
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = field.split_once('!').unwrap_or((field, ""));
        let mut value = lookup(run, name, positional, named, &mut auto)?;
        match conversion {
            "r" | "a" => value = Value::str(value.repr()),
            "s" => value = Value::Str(value.to_text()),
            _ => {}
        }
        let spec = Spec::braces(spec);
        let text = formatted(run, &value, &spec)?;
        out.push(&spec.pad(text, value.as_number().is_some() && !matches!(value, Value::Bool(_))));
    }
    out.push(&format.slice(at, s.len()));
    Ok(Value::Str(out.finish()))
}

fn lookup(
    run: &Run,
    name: &str,
    positional: &[Value],
    named: &[(Arc<str>, Value)],
    auto: &mut usize,
) -> Evaluated<Value> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let value = if first.is_empty() {
        *auto += 1;
        positional.get(*auto - 1)
    } else if let Ok(index) = first.parse::<usize>() {
        positional.get(index)
    } else {
        named.iter().find(|(key, _)| &**key == first).map(|(_, value)| value)
    };
    let Some(mut value) = value.cloned() else {
        return run.fail(format!("format() has no argument for '{{{name}}}'"));
    };
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('[') {
            let Some((key, rest)) = rest.split_once(']') else { return run.fail("expected ']' in format string") };
            let key = key.parse::<i128>().map_or_else(|_| Value::str(key), Value::Int);
            value = operator::item(run, &value, &key)?;
            path = rest;
        } else {
            let rest = &path[1..];
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = operator::attribute(run, &value, &rest[..end])?;
            path = &rest[end..];
        }
    }
    Ok(value)
}

fn formatted(run: &Run, value: &Value, spec: &Spec) -> Evaluated<Text> {
    let text = match spec.kind {
        Some('d') => convert(run, value, 'd', spec)?,
        Some('%') => {
            let number = value.as_number().unwrap_or(0.0) * 100.0;
            Text::new(format!("{number:.*}%", spec.precision.unwrap_or(6)))
        }
        Some(kind) if kind != 's' => convert(run, value, kind, spec)?,
        _ if spec.precision.is_some() && matches!(value, Value::Float(_)) => {
            Text::new(general(value.as_number().unwrap_or(0.0)))
        }
        _ => convert(run, value, 's', spec)?,
    };
    if !spec.grouping {
        return Ok(text);
    }
    let (whole, fraction) = text.text.split_once('.').map_or((&*text.text, None), |(w, f)| (w, Some(f)));
    let digits: Vec<char> = whole.chars().collect();
    let mut out = String::new();
    for (i, digit) in digits.iter().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits[i - 1].is_ascii_digit() {
            out.push(',');
        }
        out.push(*digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    Ok(Text::new(out))
}
