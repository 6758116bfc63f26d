//! `tojson` as transformers has it: Python's `json.dumps` with `ensure_ascii` off and no escaping for HTML.

use std::fmt::Write;

use super::run::{CallArgs, Evaluated, Run};
use super::text::{Part, Text};
use super::value::{Dict, Value, float_repr};

struct Dump {
    ascii: bool,
    sort_keys: bool,
    /// One level of indent.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
}

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn tojson(run: &mut Run, value: &Value, args: &CallArgs) -> Evaluated<Value> {
    let mut dump = Dump {
        ascii: false,
        sort_keys: false,
        indent: None,
        item_separator: ", ".to_string(),
        key_separator: ": ".to_string(),
    };
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let positional = NAMES.iter().copied().zip(&args.positional);
    let named = args.named.iter().map(|(name, value)| (&**name, value));
    let mut separators = false;
    for (name, value) in positional.chain(named) {
        match (name, value) {
            ("ensure_ascii", value) => dump.ascii = value.truthy(),
            ("sort_keys", value) => dump.sort_keys = value.truthy(),
            ("indent", Value::Str(text)) => dump.indent = Some(text.text.to_string()),
            ("indent", value) => {
                dump.indent = value.as_int().map(|n| " ".repeat(usize::try_from(n.max(0)).unwrap_or(0).min(64)));
            }
            ("separators", Value::Seq(seq)) if seq.items.len() == 2 => {
                separators = true;
                dump.item_separator = seq.items[0].to_text().text.to_string();
                dump.key_separator = seq.items[1].to_text().text.to_string();
            }
            ("separators", Value::None) => {}
            _ => return run.fail(format!("tojson() got an unexpected argument '{name}'")),
        }
    }
    if dump.indent.is_some() && !separators {
        dump.item_separator = ",".to_string();
    }
    let mut out = String::new();
    dump.write(run, value, 0, &mut out)?;
    run.burn(out.len() as u64 / 16)?;
    // The origin survives as a whole: escapes move bytes.
    let marks = match value {
        Value::Str(text) => text.marks().to_vec(),
        _ => Vec::new(),
    };
    Ok(Value::Str(match (marks.first(), value.tool_origin()) {
        (Some(mark), _) => Text::origin(&out, mark.message, mark.part),
        (None, Some(message)) => Text::origin(&out, message, Part::ToolCalls),
        (None, None) => Text::new(out),
    }))
}

impl Dump {
    fn write(&self, run: &Run, value: &Value, level: usize, out: &mut String) -> Evaluated<()> {
        if level > 200 {
            return run.fail("tojson: nested too deeply");
        }
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(value) => {
                let _ = write!(out, "{value}");
            }
            Value::Float(value) => out.push_str(&float_json(*value)),
            Value::Str(text) => self.string(&text.text, out),
            Value::Seq(seq) if matches!(value.type_name(), "list" | "tuple") => {
                out.push('[');
                for (i, item) in seq.items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(&self.item_separator);
                    }
                    self.line(level + 1, out);
                    self.write(run, item, level + 1, out)?;
                }
                if !seq.items.is_empty() {
                    self.line(level, out);
                }
                out.push(']');
            }
            Value::Dict(dict) => self.dict(run, dict, level, out)?,
            other => return run.fail(format!("Object of type {} is not JSON serializable", other.type_name())),
        }
        Ok(())
    }

    fn dict(&self, run: &Run, dict: &Dict, level: usize, out: &mut String) -> Evaluated<()> {
        let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
        if self.sort_keys {
            entries.sort_by(|(a, _), (b, _)| a.compare(b).unwrap_or(std::cmp::Ordering::Equal));
        }
        out.push('{');
        for (i, (key, value)) in entries.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.line(level + 1, out);
            match key {
                Value::Str(key) => self.string(&key.text, out),
                Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                    out.push('"');
                    self.write(run, key, level, out)?;
                    out.push('"');
                }
                other => {
                    return run.fail(format!("keys must be str, int, float, bool or None, not {}", other.type_name()));
                }
            }
            out.push_str(&self.key_separator);
            self.write(run, value, level + 1, out)?;
        }
        if !dict.entries.is_empty() {
            self.line(level, out);
        }
        out.push('}');
        Ok(())
    }

    fn line(&self, level: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(level));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            let _ = match c {
                '"' => write!(out, "\\\""),
                '\\' => write!(out, "\\\\"),
                '\n' => write!(out, "\\n"),
                '\r' => write!(out, "\\r"),
                '\t' => write!(out, "\\t"),
                '\u{8}' => write!(out, "\\b"),
                '\u{c}' => write!(out, "\\f"),
                '\0'..='\u{1f}' => write!(out, "\\u{:04x}", c as u32),
                _ if self.ascii && c > '~' => {
                    let mut units = [0u16; 2];
                    c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
                }
                _ => {
                    out.push(c);
                    Ok(())
                }
            };
        }
        out.push('"');
    }
}

fn float_json(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_string(),
        value if value.is_infinite() => if value > 0.0 { "Infinity" } else { "-Infinity" }.to_string(),
        value => float_repr(value),
    }
}
