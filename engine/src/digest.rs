//! Content digests and the canonical form of parameters.
//!
//! A [`Digest`] is BLAKE3-256 over exactly the bytes its maker names; nothing here looks at paths, times or modes.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A BLAKE3-256 digest, written as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of everything `reader` yields.
    pub fn of_reader(reader: &mut impl Read) -> io::Result<Digest> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(Digest(*hasher.finalize().as_bytes())),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The digest of a value's canonical JSON: object keys sorted, numbers in their shortest form (`1`, `1.0` and `1e0`
    /// are one number), no white space.
    pub fn of_canonical(value: &Value) -> Digest {
        Digest::of(canonical_json(value).as_bytes())
    }

    /// Reads 64 hex digits.
    pub fn parse(text: &str) -> Option<Digest> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut out = [0u8; 32];
        for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Digest(out))
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_string()
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Digest {
        Digest(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).ok_or_else(|| serde::de::Error::custom("a digest is 64 hex digits"))
    }
}

/// JSON with sorted keys, no white space, and integral floats written as integers.
pub fn canonical_json(value: &Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

/// Appends a value's canonical JSON.
pub fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => write_canonical_map(map, out),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Number(number) => match number.as_f64() {
            // Beyond 2^53 an integer is not exactly a float: keep its own digits.
            Some(float) if !number.is_i64() && !number.is_u64() && float.fract() == 0.0 && float.abs() < 9e15 => {
                out.push_str(&(float as i64).to_string());
            }
            _ => out.push_str(&number.to_string()),
        },
        Value::String(text) => write_canonical_text(text, out),
        other => out.push_str(&other.to_string()),
    }
}

/// Appends an object's canonical JSON.
pub fn write_canonical_map(map: &Map<String, Value>, out: &mut String) {
    let mut entries: Vec<(&String, &Value)> = map.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    out.push('{');
    for (i, (key, value)) in entries.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_canonical_text(key, out);
        out.push(':');
        write_canonical(value, out);
    }
    out.push('}');
}

/// Appends a text as a JSON string.
pub fn write_canonical_text(text: &str, out: &mut String) {
    // Writing a text to memory cannot fail; an empty object would still be distinct from every string.
    out.push_str(&serde_json::to_string(text).unwrap_or_else(|_| "{}".to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn canonical_json_ignores_order_and_spelling_of_numbers() {
        let a: Value = serde_json::from_str(r#"{"b": 1e0, "a": [0.0001, "x"]}"#).expect("valid");
        assert_eq!(canonical_json(&a), r#"{"a":[0.0001,"x"],"b":1}"#);
        assert_eq!(Digest::of_canonical(&a), Digest::of_canonical(&json!({"a": [1e-4, "x"], "b": 1})));
        assert_ne!(Digest::of_canonical(&json!(1)), Digest::of_canonical(&json!("1")));
    }

    #[test]
    fn digests_survive_text() {
        let digest = Digest::of(b"abc");
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
        assert_eq!(Digest::parse("xyz"), None);
    }
}
