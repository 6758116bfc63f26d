//! What the user probably meant: near keys, the section a key belongs to, near words, values in the wanted type.

use pipe_engine::document::{Node, Scalar};
use serde_json::Value;

use super::known;
use super::scalar::{self, Resolved};
use super::structure::flatten;

/// A remedy for an unknown key.
pub(super) struct Hint {
    /// What to write, as a path from the same place (or from the top, when elsewhere).
    pub write: String,
    /// The key is right and its place is not.
    pub elsewhere: bool,
    /// The right place, in words.
    pub belongs: String,
}

/// A remedy for `name`, which is no key of `schema` at `parent`.
pub(super) fn key(name: &str, schema: &Value, root: &Value, parent: &str) -> Option<Hint> {
    let here: Vec<&str> = keys(schema);
    let same = |other: &&&str| normal(other) == normal(name);
    if let Some(near) = here.iter().find(same).copied().or_else(|| one_off(name, &here)) {
        return Some(hint(near));
    }
    if let Some(found) = elsewhere(name, root, parent) {
        return Some(found);
    }
    if let Some(ours) = known::synonym(&name.to_ascii_lowercase()) {
        if here.contains(&ours) {
            return Some(hint(ours));
        }
        if let Some(found) = elsewhere(ours, root, parent) {
            return Some(found);
        }
    }
    if let Some(near) = nearest(name, &here).or_else(|| same_words(name, &here)) {
        return Some(hint(near));
    }
    if let Some(note) = name.strip_prefix("x_") {
        return Some(hint(&format!("x-{note}")));
    }
    let tops = keys(root);
    if !parent.is_empty()
        && let Some(near) = nearest(name, &tops)
    {
        return Some(Hint { write: near.to_string(), elsewhere: true, belongs: "the top level".to_string() });
    }
    sections(root).into_iter().filter(|(place, _)| place != parent).find_map(|(place, schema)| {
        let near = nearest(name, &keys(schema))?;
        Some(Hint { write: format!("{place}.{near}"), elsewhere: true, belongs: format!("`{place}`") })
    })
}

/// The word among `words` that was probably meant.
pub(super) fn word(text: &str, words: &[String]) -> Option<String> {
    let names: Vec<&str> = words.iter().map(String::as_str).collect();
    let same = names.iter().find(|other| normal(other) == normal(text)).copied();
    same.or_else(|| nearest(text, &names)).map(str::to_string)
}

/// Words in a sentence, the first dozen.
pub(super) fn listed(words: &[String]) -> String {
    let shown = words.iter().take(12).cloned().collect::<Vec<_>>().join(", ");
    if words.len() > 12 { format!("{shown} and {} more", words.len() - 12) } else { shown }
}

/// What a key takes, as an example.
pub(super) fn example(schema: &Value) -> Option<String> {
    let examples = schema.get("examples").and_then(Value::as_array).and_then(|all| all.first());
    let example = examples.or_else(|| schema.get("default").filter(|value| value.is_number()))?;
    Some(example.as_str().map_or_else(|| example.to_string(), str::to_string))
}

/// A plain value, or a list of them, where a map is wanted: the map with its first key that takes it.
pub(super) fn wrapped(path: &str, node: &Node, map: &Value, root: &Value) -> Option<String> {
    let properties = map.get("properties").and_then(Value::as_object)?;
    let one: Vec<&Scalar> = match node.items() {
        Some(items) => items.iter().map(Node::scalar).collect::<Option<_>>()?,
        None => vec![node.scalar()?],
    };
    let (key, list) = properties.iter().find_map(|(key, property)| {
        let mut simple = Vec::new();
        flatten(root, property, &mut simple);
        let fits = |schemas: &[&Value]| one.iter().all(|scalar| scalar::fit(scalar, schemas).is_ok());
        let plain = node.items().is_none() && fits(&simple);
        let listed = simple.iter().filter_map(|schema| schema.get("items")).any(|items| {
            let mut inner = Vec::new();
            flatten(root, items, &mut inner);
            fits(&inner)
        });
        (plain || listed).then_some((key, !plain))
    })?;
    let text: Vec<&str> = one.iter().map(|scalar| &*scalar.text).collect();
    let value = if list { format!("[{}]", text.join(", ")) } else { text.join(", ") };
    match path.ends_with(']') {
        true => Some(format!("- {key}: {value}")),
        false => Some(format!("{}: {{{key}: {value}}}", path.rsplit('.').next().unwrap_or(path))),
    }
}

/// A value as a message shows it: short, on one line.
pub(super) fn shown(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
    let more = if text.chars().count() > 60 { "..." } else { "" };
    format!("`{line}{more}`")
}

/// What a scalar is, in words.
pub(super) fn described(scalar: &Scalar) -> &'static str {
    match scalar::resolve(scalar) {
        Resolved::Null => "blank",
        Resolved::Bool(_) => "a boolean",
        Resolved::Int(_) => "a number",
        Resolved::Float(_) => "a number with a fraction",
        Resolved::Disputed(_) => "a date, a time or an octal number to some readers of YAML",
        Resolved::Text(_) if scalar.plain => "text",
        Resolved::Text(_) => "text in quotes",
    }
}

/// The value rewritten in the wanted type, where there is an obvious way.
pub(super) fn retyped(key: &str, scalar: &Scalar, wanted: &str) -> Option<String> {
    let text = &*scalar.text;
    match scalar::resolve(scalar) {
        Resolved::Int(1) if wanted.starts_with("true or false") => Some("true".to_string()),
        Resolved::Int(0) if wanted.starts_with("true or false") => Some("false".to_string()),
        Resolved::Int(_) | Resolved::Float(_) | Resolved::Bool(_) | Resolved::Disputed(_)
            if wanted.ends_with("text") =>
        {
            Some(format!("\"{text}\""))
        }
        Resolved::Disputed(_) if wanted.contains("number") => numeric(text.trim_start_matches('0')),
        Resolved::Float(x) if key == "warmup_steps" && x < 1.0 => Some(format!("warmup_ratio: {text}")),
        Resolved::Float(x) if wanted.contains("whole number") => Some(format!("{}", x.round())),
        Resolved::Text(_) if wanted.contains("a list") && wanted.contains("text") => None,
        Resolved::Text(_) if key.ends_with("datasets") => Some(format!("- path: {text}")),
        Resolved::Text(_) if wanted == "a list" => Some(format!("[{text}]")),
        Resolved::Text(_) if wanted.starts_with("true or false") => {
            let words: Vec<String> = ["true", "false", "yes", "no", "on", "off", "auto"].map(str::to_string).into();
            let near = word(&text.to_ascii_lowercase(), &words).map(|word| match word.as_str() {
                "yes" | "on" => "true".to_string(),
                "no" | "off" => "false".to_string(),
                _ => word,
            });
            near.or(Some("true or false".to_string()))
        }
        Resolved::Text(_) if wanted.contains("number") => numeric(text),
        _ => None,
    }
}

/// A number inside a range that was probably meant by one outside: `2e4` for `2e-4`, 10 for 10%.
pub(super) fn inside(key: &str, scalar: &Scalar) -> Option<String> {
    let text = &*scalar.text;
    let number: f64 = text.parse().ok()?;
    match key {
        "learning_rate" if number > 0.0 => {
            text.split_once(['e', 'E']).map(|(before, power)| format!("{before}e-{}", power.trim_start_matches('+')))
        }
        "eval_steps" | "save_steps" if number > 1.0 => Some(number.round().to_string()),
        "val_set_size" | "val" | "test" | "warmup_ratio" | "lora_dropout" if number > 1.0 && number < 100.0 => {
            Some((number / 100.0).to_string())
        }
        _ => None,
    }
}

/// A number in other notations: `2,5`, `10,000`, `4k`, `10%`, “16”.
fn numeric(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || "“”‘’\"'`".contains(c));
    if let Some(percent) = text.strip_suffix('%') {
        return percent.trim().parse::<f64>().ok().map(|x| (x / 100.0).to_string());
    }
    if let Some(thousands) = text.strip_suffix(['k', 'K']) {
        return thousands.parse::<f64>().ok().map(|x| (x * 1024.0).to_string());
    }
    let mut groups = text.split([',', ' ']);
    let first = groups.next().is_some_and(|group| (1..=3).contains(&group.len()));
    let thousands = first && text.contains([',', ' ']) && groups.all(|group| group.len() == 3);
    let plain = if thousands { text.replace([',', ' '], "") } else { text.replace(',', ".").replace(' ', "") };
    let other = plain.replace(['O', 'o'], "0").replace('l', "1").replace('−', "-");
    let number = other.parse::<f64>().ok().filter(|x| x.is_finite())?;
    // As text an exponent is not always a number; digits are.
    let long = other.contains(['e', 'E']) && (1e-3..1e15).contains(&number.abs());
    Some(if long { number.to_string() } else { other })
}

fn hint(name: &str) -> Hint {
    Hint { write: name.to_string(), elsewhere: false, belongs: String::new() }
}

fn keys(schema: &Value) -> Vec<&str> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .map(|map| map.keys().map(String::as_str).collect())
        .unwrap_or_default()
}

/// Where `name` is a key, if not at `parent`.
fn elsewhere(name: &str, root: &Value, parent: &str) -> Option<Hint> {
    if !parent.is_empty() && keys(root).contains(&name) {
        return Some(Hint { write: name.to_string(), elsewhere: true, belongs: "the top level".to_string() });
    }
    let (place, _) =
        sections(root).into_iter().find(|(place, schema)| place != parent && keys(schema).contains(&name))?;
    Some(Hint { write: format!("{place}.{name}"), elsewhere: true, belongs: format!("`{place}`") })
}

/// Every section with keys of its own, and its place.
fn sections(root: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    let Some(properties) = root.get("properties").and_then(Value::as_object) else { return found };
    for (key, property) in properties {
        let mut simple = Vec::new();
        flatten(root, property, &mut simple);
        for schema in simple {
            if schema.get("properties").is_some() {
                found.push((key.clone(), schema));
            }
            if let Some(items) = schema.get("items") {
                let mut inner = Vec::new();
                flatten(root, items, &mut inner);
                let maps = inner.into_iter().filter(|schema| schema.get("properties").is_some());
                found.extend(maps.map(|schema| (format!("{key}[0]"), schema)));
            }
        }
    }
    found
}

fn normal(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The name that differs by one letter, if there is one; short names are too alike for that.
fn one_off<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let long = name.chars().count() >= 4;
    names.iter().find(|other| long && other.len() >= 4 && strsim::osa_distance(name, other) == 1).copied()
}

/// The name with the same words in another order, or with most words in common: `max_tokens` for `max_new_tokens`.
fn same_words<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let words = |text: &str| -> Vec<String> {
        text.split(['_', '-', '.']).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
    };
    let own = words(name);
    let shared = |other: &str| words(other).iter().filter(|word| own.contains(word)).count();
    names
        .iter()
        .map(|other| (shared(other), words(other).len().abs_diff(own.len()), *other))
        .filter(|(shared, extra, other)| {
            let all = *shared == own.len() || *shared == words(other).len();
            *shared > 0 && all && *extra <= 1 && (*shared > 1 || own.len() == 1 && own[0].len() >= 3)
        })
        .max_by_key(|(shared, extra, other)| (*shared, std::cmp::Reverse(*extra), std::cmp::Reverse(other.len())))
        .map(|(.., other)| other)
}

/// The closest of `names`, if it is close: at most a third of the letters differ.
fn nearest<'n>(name: &str, names: &[&'n str]) -> Option<&'n str> {
    let lower = name.to_ascii_lowercase();
    let allowed = (lower.chars().count() / 3).clamp(1, 4);
    let letters = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    let (own, likeness) = (letters(&lower), |other: &str| strsim::jaro_winkler(&lower, other));
    names
        .iter()
        .map(|other| (strsim::osa_distance(&lower, &other.to_ascii_lowercase()), *other))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by(|a, b| {
            // Of equally near words, one whose letters only changed places, then one with a key beside the right one.
            let swapped = |other: &str| letters(other) == own;
            let slipped = |other: &str| beside(&lower, other);
            let order = a.0.cmp(&b.0).then_with(|| swapped(b.1).cmp(&swapped(a.1)));
            let order = order.then_with(|| slipped(b.1).cmp(&slipped(a.1)));
            order.then_with(|| likeness(b.1).total_cmp(&likeness(a.1)))
        })
        .map(|(_, other)| other)
}

/// Whether two words of one length differ only by letters that are neighbours on a keyboard.
fn beside(name: &str, other: &str) -> bool {
    const ROWS: [&str; 4] = ["1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm"];
    let neighbours = |a: char, b: char| {
        ROWS.iter().any(|row| matches!((row.find(a), row.find(b)), (Some(a), Some(b)) if a.abs_diff(b) == 1))
    };
    name.chars().count() == other.chars().count()
        && name.chars().zip(other.chars()).all(|(a, b)| a == b || neighbours(a, b))
}
