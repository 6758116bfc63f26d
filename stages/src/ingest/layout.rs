//! Which files of a folder make up which split, as Hugging Face datasets finds it: from the dataset card, from shard names,
//! from folder names, from file names, else all of them are `train`.
//!
//! Works on names alone, so that a folder of this machine and a listing of a hub are read alike.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use indexmap::IndexMap;
use regex::Regex;
use serde_yaml::Value;

use super::source::FileFormat;

/// Splits and their files, each in name order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub splits: IndexMap<String, Vec<String>>,
    /// Files of another format than most, or of none that is known.
    pub left_out: Vec<String>,
}

/// A dataset card's word on configurations.
#[derive(Debug, PartialEq)]
pub enum Card {
    /// It names no files.
    Silent,
    Found(Layout),
    /// There is no such configuration; these there are.
    NoSuch(Vec<String>),
}

/// Splits in the order they are looked for, with the words that mean them.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
const AROUND: &[char] = &['-', '.', '_', ' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'];
const NO_DATA: [&str; 5] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

impl Layout {
    /// From names below one folder, `/` between their parts.
    pub fn of_names(names: &[String]) -> Layout {
        let (data, left_out) = data_files(names);
        let splits = sharded(&data)
            .or_else(|| by_words(&data, |name| name.rsplit_once('/').map_or("", |(folders, _)| folders), true))
            .or_else(|| by_words(&data, |name| name.rsplit('/').next().unwrap_or(name), false))
            .unwrap_or_else(|| IndexMap::from_iter([("train".to_string(), data)]));
        let splits = splits.into_iter().filter(|(_, files)| !files.is_empty()).collect();
        Layout { splits, left_out }
    }

    /// Every file that fits one of the patterns, as the split `train`; an error names the pattern that fits none.
    pub fn of_patterns(names: &[String], patterns: &[String]) -> Result<Layout, String> {
        let mut files = Vec::new();
        for pattern in patterns {
            let found = matching(names, pattern)?;
            if found.is_empty() {
                return Err(format!("no file fits `{pattern}`"));
            }
            files.extend(found.into_iter().filter(|name| !files.contains(name)).collect::<Vec<_>>());
        }
        Ok(Layout { splits: IndexMap::from_iter([("train".to_string(), files)]), left_out: Vec::new() })
    }

    /// The splits' names, for a message.
    pub fn names(&self) -> String {
        let names: Vec<String> = self.splits.keys().map(|name| format!("`{name}`")).collect();
        names.join(", ")
    }
}

impl Card {
    /// What the `configs` at the head of a dataset's README say about the configuration `name`, or the default one.
    pub fn read(readme: &str, name: Option<&str>, names: &[String]) -> Result<Card, String> {
        let Some(head) = readme.strip_prefix("---").and_then(|rest| rest.split("\n---").next()) else {
            return Ok(Card::Silent);
        };
        let Ok(head) = serde_yaml::from_str::<Value>(head) else { return Ok(Card::Silent) };
        let Some(configs) = head.get("configs").and_then(Value::as_sequence).filter(|list| !list.is_empty()) else {
            return Ok(Card::Silent);
        };
        let text = |config: &Value, key: &str| config.get(key).and_then(Value::as_str).map(str::to_string);
        let is_default = |config: &Value| config.get("default").and_then(Value::as_bool) == Some(true);
        let named = |wanted: &str| configs.iter().find(|c| text(c, "config_name").as_deref() == Some(wanted));
        let chosen = match name {
            Some(name) => named(name),
            None => configs
                .iter()
                .find(|config| is_default(config))
                .or_else(|| named("default"))
                .or_else(|| (configs.len() == 1).then(|| &configs[0])),
        };
        let Some(config) = chosen else {
            return Ok(Card::NoSuch(configs.iter().filter_map(|config| text(config, "config_name")).collect()));
        };
        let folder = text(config, "data_dir").map(|dir| dir.trim_matches('/').to_string());
        let below = |pattern: &str| match &folder {
            Some(folder) => format!("{folder}/{pattern}"),
            None => pattern.to_string(),
        };
        let Some(files) = config.get("data_files") else {
            let Some(folder) = &folder else { return Ok(Card::Silent) };
            let inside: Vec<String> =
                names.iter().filter(|name| name.starts_with(&format!("{folder}/"))).cloned().collect();
            return Ok(Card::Found(Layout::of_names(&inside)));
        };
        let mut layout = Layout::default();
        for (split, pattern) in card_files(files) {
            let found = matching(names, &below(&pattern))?;
            layout.splits.entry(split).or_default().extend(found);
        }
        Ok(Card::Found(layout))
    }
}

/// `data_files` of a card: one pattern, a list of them, or a list of splits with theirs.
fn card_files(files: &Value) -> Vec<(String, String)> {
    let texts = |value: &Value| match value {
        Value::String(one) => vec![one.clone()],
        Value::Sequence(many) => many.iter().filter_map(Value::as_str).map(str::to_string).collect(),
        _ => Vec::new(),
    };
    let train = |patterns: Vec<String>| patterns.into_iter().map(|pattern| ("train".to_string(), pattern)).collect();
    match files {
        Value::Sequence(items) if items.iter().any(|item| item.get("path").is_some()) => items
            .iter()
            .flat_map(|item| {
                let split = item.get("split").and_then(Value::as_str).unwrap_or("train").to_string();
                let patterns = item.get("path").map(texts).unwrap_or_default();
                patterns.into_iter().map(move |pattern| (split.clone(), pattern))
            })
            .collect(),
        Value::Mapping(map) => map
            .iter()
            .flat_map(|(split, patterns)| {
                let split = split.as_str().unwrap_or("train").to_string();
                texts(patterns).into_iter().map(move |pattern| (split.clone(), pattern))
            })
            .collect(),
        other => train(texts(other)),
    }
}

/// Names of the format that most have, and the others.
fn data_files(names: &[String]) -> (Vec<String>, Vec<String>) {
    let ignored = |name: &str| {
        let hidden = name.split('/').any(|part| part.starts_with('.') || part.starts_with("__"));
        let file = name.rsplit('/').next().unwrap_or(name);
        let upper = file.to_ascii_uppercase();
        hidden
            || NO_DATA.contains(&file)
            || ["README", "LICENSE", "CHANGELOG"].iter().any(|word| upper.starts_with(word))
    };
    let family = |name: &String| match FileFormat::of_path(Path::new(name)) {
        FileFormat::Jsonl => FileFormat::Json,
        FileFormat::Tsv => FileFormat::Csv,
        other => other,
    };
    let names: Vec<&String> = names.iter().filter(|name| !ignored(name)).collect();
    let mut counts: Vec<(usize, FileFormat)> = Vec::new();
    for format in names.iter().map(|name| family(name)).filter(|format| *format != FileFormat::Unknown) {
        match counts.iter_mut().find(|(_, known)| *known == format) {
            Some((count, _)) => *count += 1,
            None => counts.push((1, format)),
        }
    }
    // Of equally many the first in name order; `max_by_key` would take the last.
    let most = counts.iter().rev().max_by_key(|(count, _)| *count).map(|(_, format)| *format);
    let (data, others): (Vec<&String>, Vec<&String>) =
        names.into_iter().partition(|name| Some(family(name)) == most && most.is_some());
    let owned = |names: Vec<&String>| {
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        names.sort();
        names
    };
    (owned(data), owned(others))
}

/// `data/NAME-00000-of-00003-….parquet`.
fn sharded(names: &[String]) -> Option<IndexMap<String, Vec<String>>> {
    static SHARD: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"^data/([\w.]+)-[0-9]{5}-of-[0-9]{5}.*\..*$").ok());
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names {
        if let Some(captures) = SHARD.as_ref()?.captures(name) {
            found.entry(captures[1].to_string()).or_default().push(name.clone());
        }
    }
    let mut splits: IndexMap<String, Vec<String>> = IndexMap::new();
    for (split, _) in WORDS {
        splits.extend(found.remove_entry(split));
    }
    splits.extend(found);
    (!splits.is_empty()).then_some(splits)
}

/// By a word in a part of each name; a file whose name has words of two splits belongs to both, as it does there.
fn by_words(names: &[String], part: impl Fn(&str) -> &str, folders: bool) -> Option<IndexMap<String, Vec<String>>> {
    let mut splits = IndexMap::new();
    for (split, words) in WORDS {
        let says = |name: &&String| {
            let text = part(name);
            let mut parts = if folders { text.split('/').collect::<Vec<_>>() } else { vec![text] };
            parts.retain(|part| !part.is_empty());
            parts.iter().any(|part| words.iter().any(|word| has_word(part, word, folders)))
        };
        let files: Vec<String> = names.iter().filter(says).cloned().collect();
        if !files.is_empty() {
            splits.insert(split.to_string(), files);
        }
    }
    (!splits.is_empty()).then_some(splits)
}

/// A whole word of a name; at its end only where the name may end there.
fn has_word(text: &str, word: &str, may_end: bool) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        before.is_none_or(|c| AROUND.contains(&c)) && after.map_or(may_end, |c| AROUND.contains(&c))
    })
}

/// Names that fit a pattern with `*`, `**`, `?`, `[…]` and `{a,b}`, in name order; a folder's name stands for all below it.
pub fn matching(names: &[String], pattern: &str) -> Result<Vec<String>, String> {
    let pattern = pattern.trim_start_matches("./").trim_end_matches('/');
    let fits = pattern_regex(pattern)?;
    let folder = format!("{pattern}/");
    let mut found: Vec<String> =
        names.iter().filter(|name| fits.is_match(name) || name.starts_with(&folder)).cloned().collect();
    found.sort();
    Ok(found)
}

fn pattern_regex(pattern: &str) -> Result<Regex, String> {
    let mut out = String::from("^");
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("**/") {
            out.push_str("(?:.*/)?");
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix("**") {
            out.push_str(".*");
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' if rest.contains(']') => {
                out.push('[');
                if let Some(after) = rest.strip_prefix('!') {
                    out.push('^');
                    rest = after;
                }
            }
            ']' => out.push(']'),
            '{' if rest.contains('}') => out.push_str("(?:"),
            '}' if out.contains("(?:") => out.push(')'),
            ',' if out.matches("(?:").count() > out.matches(')').count() => out.push('|'),
            '-' => out.push('-'),
            other => out.push_str(&regex::escape(&other.to_string())),
        }
    }
    out.push('$');
    Regex::new(&out)
        .map_err(|_| format!("`{pattern}` is no pattern of file names; it may hold *, **, ?, [a-z] and {{a,b}}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn layout(names: &[&str]) -> Vec<(String, Vec<String>)> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        Layout::of_names(&names).splits.into_iter().collect()
    }

    fn splits(names: &[&str]) -> String {
        let shown = |(split, files): (String, Vec<String>)| format!("{split}={}", files.join("+"));
        layout(names).into_iter().map(shown).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn splits_are_found_as_hugging_face_datasets_finds_them() {
        let shards = ["data/train-00000-of-00002-abc.parquet", "data/train-00001-of-00002-abc.parquet"];
        assert_eq!(splits(&shards), format!("train={}", shards.join("+")));
        assert_eq!(splits(&["data/x-00000-of-00001.parquet", "train.parquet"]), "x=data/x-00000-of-00001.parquet");
        assert_eq!(splits(&["b.jsonl", "a.jsonl", "README.md"]), "train=a.jsonl+b.jsonl");
        assert_eq!(splits(&["my_train.jsonl", "dev.jsonl"]), "train=my_train.jsonl validation=dev.jsonl");
        assert_eq!(splits(&["train/1.jsonl", "test/2.jsonl"]), "train=train/1.jsonl test=test/2.jsonl");
        assert_eq!(splits(&["pretrain.jsonl", "latest.jsonl"]), "train=latest.jsonl+pretrain.jsonl");
        assert_eq!(splits(&["a.jsonl", "a.csv", "b.csv"]), "train=a.csv+b.csv");
        assert_eq!(splits(&["a.jsonl.gz", "c.json", ".hidden/d.json", "config.json"]), "train=a.jsonl.gz+c.json");
    }

    #[test]
    fn cards_name_files_by_configuration() {
        let names: Vec<String> = ["en/a.jsonl", "en/t.jsonl", "de/a.jsonl"].map(str::to_string).into();
        let card = "---\nlicense: mit\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/a*\n  \
                    - split: test\n    path: [\"en/t.jsonl\"]\n- config_name: de\n  data_files: de/*.jsonl\n---\n# Text";
        let Card::Found(found) = Card::read(card, Some("en"), &names).unwrap() else { panic!() };
        assert_eq!(found.names(), "`train`, `test`");
        let Card::Found(found) = Card::read(card, Some("de"), &names).unwrap() else { panic!() };
        assert_eq!(found.splits["train"], ["de/a.jsonl"]);
        assert_eq!(Card::read(card, None, &names).unwrap(), Card::NoSuch(vec!["en".into(), "de".into()]));
        assert_eq!(Card::read("# no head", None, &names).unwrap(), Card::Silent);
    }

    #[test]
    fn patterns_fit_names() {
        let names: Vec<String> =
            ["a/1.jsonl", "a/b/2.jsonl", "3.json", "x-1.csv", "y-2.csv"].map(str::to_string).into();
        let fit = |pattern: &str| matching(&names, pattern).unwrap().join(" ");
        assert_eq!(fit("*.jsonl"), "");
        assert_eq!(fit("**/*.jsonl"), "a/1.jsonl a/b/2.jsonl");
        assert_eq!(fit("a/*.jsonl"), "a/1.jsonl");
        assert_eq!(fit("a"), "a/1.jsonl a/b/2.jsonl");
        assert_eq!(fit("[xy]-?.csv"), "x-1.csv y-2.csv");
        assert_eq!(fit("{x,3}*.{csv,json}"), "3.json x-1.csv");
        assert_eq!(fit("./3.json"), "3.json");
    }
}
