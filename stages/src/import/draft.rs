//! A recipe that is being written: keys in order with remarks, and what had to be left behind.
//!
//! Text only. Whether the keys are good is asked of the recipe reader by `import`, never decided here.

use serde_json::Value;

/// A setting that did not make it into the recipe as it stood, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub what: String,
    pub why: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Line {
    /// A blank line, and a comment if there is one to make.
    Section(String),
    Key {
        key: String,
        value: Value,
        remark: String,
    },
}

/// Keys and remarks in the order they are written.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    lines: Vec<Line>,
    pub lost: Vec<Lost>,
}

/// Longest text before a remark goes above its key instead of beside it.
const BESIDE: usize = 100;

impl Draft {
    /// Starts a group of keys.
    pub fn section(&mut self, comment: &str) {
        self.lines.push(Line::Section(comment.to_string()));
    }

    /// Writes a key; a key written before is replaced where it stands.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.note(key, value, "");
    }

    /// Writes a key with a remark about where it comes from.
    pub fn note(&mut self, key: &str, value: impl Into<Value>, remark: &str) {
        let line = Line::Key { key: key.to_string(), value: value.into(), remark: remark.to_string() };
        let before = self.lines.iter().position(|line| matches!(line, Line::Key { key: have, .. } if have == key));
        match before {
            Some(at) => self.lines[at] = line,
            None => self.lines.push(line),
        }
    }

    /// The same where there is a value.
    pub fn set_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// The value written under a top-level key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.lines.iter().find_map(|line| match line {
            Line::Key { key: have, value, .. } if have == key => Some(value),
            _ => None,
        })
    }

    /// Says that something has no place in the recipe.
    pub fn lose(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let lost = Lost { what: what.into(), why: why.into() };
        if !self.lost.contains(&lost) {
            self.lost.push(lost);
        }
    }

    /// Takes a key out again, because the recipe reader will not have it; false when it is not there. The key may be
    /// dotted, as problems name it: `datasets[0].max_rows`, `quantize.types`.
    pub fn retract(&mut self, path: &str, why: &str) -> bool {
        let top = path.split(['.', '[']).next().unwrap_or(path);
        let Some(at) = self.lines.iter().position(|line| matches!(line, Line::Key { key, .. } if key == top)) else {
            return false;
        };
        let Line::Key { value, .. } = &mut self.lines[at] else { return false };
        let taken = if path == top { Some(value.clone()) } else { take(value, &path[top.len()..]) };
        let Some(taken) = taken else { return false };
        if path == top {
            self.lines.remove(at);
        }
        self.lose(format!("{path}: {}", inline(&taken)), why);
        true
    }

    /// What was lost, things with one reason together.
    pub fn losses(&self) -> Vec<Lost> {
        let mut groups: Vec<Lost> = Vec::new();
        for lost in &self.lost {
            match groups.iter_mut().find(|group| group.why == lost.why) {
                Some(group) => group.what.push_str(&format!(", {}", lost.what)),
                None => groups.push(lost.clone()),
            }
        }
        groups
    }

    /// The recipe as YAML; `head` becomes its first comment lines.
    pub fn text(&self, head: &[String]) -> String {
        let mut out = String::new();
        for line in head {
            out.push_str(&comment(line));
        }
        if !self.lost.is_empty() {
            out.push_str("#\n# Not carried over:\n");
            for Lost { what, why } in self.losses() {
                out.push_str(&comment(&format!("- {what}: {why}")));
            }
        }
        for line in &self.lines {
            match line {
                Line::Section(title) if title.is_empty() => out.push('\n'),
                Line::Section(title) => out.push_str(&format!("\n{}", comment(title))),
                Line::Key { key, value, remark } => out.push_str(&entry(key, value, remark)),
            }
        }
        out
    }
}

/// One value on one line, for remarks: long ones are cut.
pub fn inline(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text = text.replace('\n', "\\n");
    if text.chars().count() > 60 { text.chars().take(57).collect::<String>() + "..." } else { text }
}

fn comment(line: &str) -> String {
    if line.is_empty() { "#\n".to_string() } else { format!("# {}\n", line.replace(['\n', '\r'], " ")) }
}

fn entry(key: &str, value: &Value, remark: &str) -> String {
    let mut text = match value {
        Value::Null => format!("{key}:\n"),
        // A short list of plain values reads best on one line, which YAML shares with JSON.
        Value::Array(items) if items.iter().all(is_plain) => {
            format!("{key}: [{}]\n", items.iter().map(word).collect::<Vec<_>>().join(", "))
        }
        value => serde_yaml::to_string(&serde_json::json!({ key: value })).unwrap_or_default(),
    };
    if remark.is_empty() {
        return text;
    }
    let one_line = text.trim_end().lines().count() == 1;
    if one_line && text.len() + remark.len() + 3 < BESIDE {
        text.truncate(text.trim_end().len());
        return format!("{text} # {remark}\n");
    }
    comment(remark) + &text
}

fn is_plain(value: &Value) -> bool {
    match value {
        Value::String(text) => text.len() < 40 && !text.contains([',', '[', ']', '{', '}']),
        other => other.is_number() || other.is_boolean(),
    }
}

fn word(value: &Value) -> String {
    serde_yaml::to_string(value).unwrap_or_default().trim_end().to_string()
}

/// Removes what a path such as `[0].max_rows` leads to.
fn take(value: &mut Value, path: &str) -> Option<Value> {
    let path = path.strip_prefix('.').unwrap_or(path);
    if let Some(rest) = path.strip_prefix('[') {
        let (index, rest) = rest.split_once(']')?;
        let item = value.as_array_mut()?.get_mut(index.parse::<usize>().ok()?)?;
        return if rest.is_empty() { None } else { take(item, rest) };
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (key, rest) = path.split_at(end);
    let object = value.as_object_mut()?;
    if rest.is_empty() { object.shift_remove(key) } else { take(object.get_mut(key)?, rest) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_draft_reads_as_a_person_would_write_it() {
        let mut draft = Draft::default();
        draft.set("base_model", "org/name");
        draft.section("Data");
        draft.note("datasets", json!([{"path": "rows.jsonl", "type": "alpaca"}]), "the default");
        draft.note("lora_target_modules", json!(["q_proj", "v_proj"]), "what PEFT adapts by default");
        draft.set("learning_rate", 1e-4);
        draft.lose("ddp_timeout: 180", "there is one process");
        let expected = "\
# From somewhere
#
# Not carried over:
# - ddp_timeout: 180: there is one process
base_model: org/name

# Data
# the default
datasets:
- path: rows.jsonl
  type: alpaca
lora_target_modules: [q_proj, v_proj] # what PEFT adapts by default
learning_rate: 0.0001
";
        assert_eq!(draft.text(&["From somewhere".to_string()]), expected);
    }

    #[test]
    fn retracting_reaches_into_lists_and_says_so() {
        let mut draft = Draft::default();
        draft.set("datasets", json!([{"path": "a", "max_rows": 5}]));
        assert!(draft.retract("datasets[0].max_rows", "not yet"));
        assert!(!draft.retract("datasets[1].max_rows", "not yet"));
        assert!(!draft.retract("seed", "not there"));
        assert_eq!(draft.get("datasets"), Some(&json!([{"path": "a"}])));
        assert_eq!(draft.lost, [Lost { what: "datasets[0].max_rows: 5".into(), why: "not yet".into() }]);
    }
}
