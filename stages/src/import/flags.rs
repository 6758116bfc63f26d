//! Command lines as settings: `--name value`, `--name=value`, `--switch`, several values after one name.

use serde_json::{Map, Value};

use super::ImportError;

/// Reads the flags of a training script. Words before the first flag (`python finetune.py`, `trl sft`) are returned apart.
///
/// # Errors
/// `ImportError::Flags` for a word that belongs to no flag after the first one.
pub fn read(words: &[String]) -> Result<(Vec<String>, Map<String, Value>), ImportError> {
    let mut map = Map::new();
    let mut before = Vec::new();
    let mut current: Option<String> = None;
    // A launcher's own flags (accelerate, torchrun) end at the script's name.
    let start = words.iter().rposition(|word| word.ends_with(".py")).map_or(0, |at| at + 1);
    before.extend(words[..start].iter().cloned());
    for word in words[start..].iter().filter(|word| *word != "\\") {
        if let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) {
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(unquoted(value))),
                None => (flag, None),
            };
            let name = name.replace('-', "_");
            map.insert(name.clone(), value.map_or(Value::Bool(true), |text| scalar(&text)));
            current = Some(name);
            continue;
        }
        let value = scalar(&unquoted(word));
        match &current {
            None => before.push(word.clone()),
            Some(name) => match map.get_mut(name) {
                Some(Value::Array(items)) => items.push(value),
                Some(held) if *held != Value::Bool(true) => *held = Value::Array(vec![held.take(), value]),
                _ => {
                    map.insert(name.clone(), value);
                }
            },
        }
    }
    if map.is_empty() {
        return Err(ImportError::Flags { what: "there are no flags after `--`".to_string() });
    }
    Ok((before, map))
}

fn unquoted(text: &str) -> String {
    let inner = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('\'').or_else(|| inner('"')).unwrap_or(text).to_string()
}

/// A word's value: booleans and None as Python prints them; numbers stay text until somebody wants a number.
fn scalar(text: &str) -> Value {
    match text {
        "True" | "true" => Value::Bool(true),
        "False" | "false" => Value::Bool(false),
        "None" => Value::Null,
        _ => Value::String(text.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_string).collect()
    }

    #[test]
    fn flags_take_one_value_several_or_none() {
        let line = "accelerate launch --num_processes 2 scripts/sft.py --lr=1e-4 --packing --targets q v --name 'a'";
        let (before, map) = read(&words(line)).unwrap();
        assert_eq!(before.last().unwrap(), "scripts/sft.py");
        assert_eq!(Value::Object(map), json!({"lr": "1e-4", "packing": true, "targets": ["q", "v"], "name": "a"}));
        assert!(read(&words("trl sft")).is_err());
    }
}
