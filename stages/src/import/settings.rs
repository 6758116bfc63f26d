//! Another tool's settings by name, each handed out once: what nobody asked for is known to be left over.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::{Map, Value};

use super::ImportError;

/// Settings of one level; nested ones are taken as settings of their own.
#[derive(Debug, Default)]
pub struct Settings {
    map: Map<String, Value>,
    taken: RefCell<HashSet<String>>,
    /// Put before names in messages, such as `optimizer.`.
    prefix: String,
}

impl Settings {
    pub fn new(map: Map<String, Value>) -> Settings {
        Settings { map, ..Settings::default() }
    }

    /// The settings under `key`; empty where there are none.
    pub fn nested(&self, key: &str) -> Settings {
        let map = match self.take(key) {
            Some(Value::Object(map)) => map.clone(),
            _ => Map::new(),
        };
        Settings { map, taken: RefCell::default(), prefix: format!("{}{key}.", self.prefix) }
    }

    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// The value under `key`, unless it is null; from now on it counts as dealt with.
    pub fn take(&self, key: &str) -> Option<&Value> {
        self.taken.borrow_mut().insert(key.to_string());
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn text(&self, key: &str) -> Option<String> {
        self.take(key).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, ImportError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        // `1e-4` without a point is text in YAML 1.1, and every tool reads it as a number.
        let number = match value {
            Value::String(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
            other => other.as_f64(),
        };
        number.map(Some).ok_or_else(|| self.wrong(key, value, "a number"))
    }

    pub fn whole(&self, key: &str) -> Result<Option<u64>, ImportError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        let whole = number.filter(|n: &f64| *n >= 0.0 && n.fract() == 0.0 && *n < 1e15);
        whole.map(|n| Some(n as u64)).ok_or_else(|| self.wrong(key, value, "a whole number"))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ImportError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let flag = match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) => match text.to_lowercase().as_str() {
                "true" | "yes" | "1" => Some(true),
                "false" | "no" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        };
        flag.map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    pub fn is_on(&self, key: &str) -> Result<bool, ImportError> {
        Ok(self.flag(key)?.unwrap_or(false))
    }

    /// Names in a list, or in one text with commas between them.
    pub fn names(&self, key: &str) -> Option<Vec<String>> {
        let split = |text: &str| {
            let bare = text.trim().trim_start_matches(['[', '(']).trim_end_matches([']', ')']);
            let words = bare.split(',').map(|word| word.trim().trim_matches(['\'', '"']).to_string());
            words.filter(|word| !word.is_empty()).collect()
        };
        self.take(key).map(|value| match value {
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_string)).collect()
            }
            Value::String(text) => split(text),
            other => vec![other.to_string()],
        })
    }

    /// What nobody took, as dotted names, in their order.
    pub fn rest(&self) -> Vec<(String, Value)> {
        let taken = self.taken.borrow();
        let left = self.map.iter().filter(|(key, value)| !taken.contains(*key) && !value.is_null());
        left.map(|(key, value)| (format!("{}{key}", self.prefix), value.clone())).collect()
    }

    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> ImportError {
        ImportError::Value {
            key: format!("{}{key}", self.prefix),
            value: super::draft::inline(value),
            wanted: wanted.to_string(),
        }
    }
}
