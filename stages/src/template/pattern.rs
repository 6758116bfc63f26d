//! Texts with places to fill: `{instruction}`, as Python's `str.format` reads them.
//!
//! Values are put in one pass, so that a value is never read as a pattern.

use serde::{Serialize, Serializer};

/// A text with named places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pattern {
    written: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(String),
}

impl Pattern {
    /// Reads a pattern; `{{` and `}}` stand for braces.
    ///
    /// # Errors
    /// Says which brace is alone.
    pub fn parse(written: &str) -> Result<Pattern, String> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = written;
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                text.push_str(brace);
                rest = after;
                continue;
            }
            let Some(end) = rest.find('}').filter(|_| brace == "{") else {
                return Err(format!("a `{brace}` stands alone; write `{brace}{brace}` for the character itself"));
            };
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(Part::Place(rest[..end].to_string()));
            rest = &rest[end + 1..];
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Pattern { written: written.to_string(), parts })
    }

    /// A pattern written in this program.
    pub fn known(written: &str) -> Pattern {
        let plain = || Pattern { written: written.to_string(), parts: vec![Part::Text(written.to_string())] };
        Pattern::parse(written).unwrap_or_else(|_| plain())
    }

    /// One place and nothing else.
    pub fn place(name: &str) -> Pattern {
        Pattern { written: format!("{{{name}}}"), parts: vec![Part::Place(name.to_string())] }
    }

    /// The names of its places, in order.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Place(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The name, if the pattern is a single place.
    pub fn only_place(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Place(name)] => Some(name),
            _ => None,
        }
    }

    /// The text with values in its places; a name without a value stays empty.
    pub fn fill(&self, values: &[(&str, &str)]) -> String {
        let value = |name: &String| values.iter().find(|(known, _)| known == name).map_or("", |(_, value)| *value);
        let mut out = String::with_capacity(self.written.len() + values.iter().map(|(_, v)| v.len()).sum::<usize>());
        for part in &self.parts {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Place(name) => value(name),
            });
        }
        out
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_are_not_patterns() {
        let fill = |text: &str| Pattern::parse(text).unwrap().fill(&[("a", "{b}"), ("b", "x")]);
        assert_eq!(fill("<{a}|{b}>"), "<{b}|x>");
        assert_eq!(fill("{{{a}}} }}{{"), "{{b}} }{");
        assert_eq!(fill("{c}"), "");
        assert_eq!(fill(""), "");
    }

    #[test]
    fn a_lonely_brace_is_an_error() {
        assert!(Pattern::parse("a { b").unwrap_err().contains("`{{`"));
        assert!(Pattern::parse("a } b").unwrap_err().contains("`}}`"));
        assert_eq!(Pattern::place("a"), Pattern::parse("{a}").unwrap());
        assert_eq!(Pattern::parse("{a}").unwrap().only_place(), Some("a"));
    }
}
