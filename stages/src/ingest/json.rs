//! One row's JSON text as an object, read strictly: what would be lost in silence elsewhere is an error here.
//!
//! A key that stands twice, and an integer that no number here can hold, are such losses. Depth is limited by the parser.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The row that `text` holds. An error says what is wrong and where in the row.
pub fn parse(text: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(text)
        .map_err(|e| format!("not UTF-8 at byte {} of the row; save the file as UTF-8", e.valid_up_to() + 1))?;
    let large = Cell::new(false);
    let mut from = serde_json::Deserializer::from_str(text);
    let value = Strict { large: &large }.deserialize(&mut from).and_then(|value| from.end().map(|()| value));
    match value {
        Ok(Value::Object(_)) if large.get() && integer_beyond_64_bits(text).is_some() => {
            let number = integer_beyond_64_bits(text).unwrap_or_default();
            Err(format!("the number {} would lose digits; write it as a text, in quotes", shorten(number)))
        }
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => {
            Err(format!("a row must be an object with columns, and this is `{}`", shorten(&other.to_string())))
        }
        Err(error) => Err(explain(&error, text)),
    }
}

fn explain(error: &serde_json::Error, text: &str) -> String {
    let why = error.to_string();
    let why = why.split(" at line ").next().unwrap_or(&why);
    if why.starts_with("recursion limit") {
        return "nested deeper than 127 levels, which is more than any row needs; flatten it".to_string();
    }
    if let Some(key) = why.strip_prefix(TWICE) {
        return format!("the key {key} stands twice in one object; keep one");
    }
    let remedy = match why {
        _ if why.starts_with("control character") => "; a line break within a text is written \\n",
        _ if why.contains("surrogate") || why.contains("hex escape") => "; a \\u escape is half of a pair",
        _ if why.starts_with("EOF while parsing") => "; is the row cut off?",
        _ if ["NaN", "Infinity", "-Infinity"].iter().any(|word| text.contains(word)) => "; JSON has no NaN: write null",
        _ => "",
    };
    format!("not valid JSON: {why} (character {} of `{}`){remedy}", error.column(), shorten(text.trim()))
}

/// The start of a text, for a message.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_string(),
    }
}

/// The first integer outside texts that 64 bits do not hold.
fn integer_beyond_64_bits(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let end = bytes[at..].iter().position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
                let end = end.map_or(bytes.len(), |length| at + length);
                let number = &text[at..end];
                let is_integer = !number.contains(['.', 'e', 'E']);
                if is_integer && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    return Some(number);
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    None
}

/// Begins the message about a key that stands twice.
const TWICE: &str = "twice:";

/// Builds a value, and notes numbers that may have lost digits.
#[derive(Clone, Copy)]
struct Strict<'a> {
    large: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        if value.abs() >= i64::MAX as f64 {
            self.large.set(true);
        }
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("{TWICE}`{}`", shorten(&key))));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn error(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err()
    }

    #[test]
    fn what_is_valid_is_read_as_serde_json_does() {
        let text = r#"{"b": [1, -2, 3.5, 1e30, true, null, "\u00e9\n\u0000"], "a": {"z": {}, "y": []}, "c": 18446744073709551615}"#;
        let expected: Map<String, Value> = serde_json::from_str(text).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        assert_eq!(parse(b"{\"a\": 1e400}").unwrap_err().split(':').next(), Some("not valid JSON"));
    }

    #[test]
    fn losses_are_errors() {
        assert!(error(r#"{"a": 1, "a": 2}"#).contains("the key `a` stands twice"));
        assert!(error(r#"{"x": [{"b": 1, "b": 1}]}"#).contains("`b` stands twice"));
        let large = error(r#"{"t": "99999999999999999999", "n": 12345678901234567890123}"#);
        assert!(large.starts_with("the number 12345678901234567890123 would lose digits"), "{large}");
        assert!(parse(br#"{"t": "99999999999999999999", "n": 1e25}"#).is_ok());
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(error(&deep).contains("nested deeper than 127"));
    }

    #[test]
    fn messages_say_what_to_do() {
        assert!(error("{\"a\": \"x\ny\"}").contains("line break within a text is written \\n"));
        assert!(error("{\"a\": NaN}").contains("JSON has no NaN"));
        assert!(error("{\"a\": \"\\ud800\"}").contains("half of a pair"));
        assert!(error("{\"a\": 1").contains("cut off"));
        assert!(error("[1]").contains("must be an object"));
        assert!(parse(b"{\"a\": \"\xff\"}").unwrap_err().contains("not UTF-8 at byte 8"));
    }
}
