//! Added tokens, found in raw text before any splitting: leftmost first, longest first.

use std::collections::HashMap;

/// The added tokens of one kind, by first byte.
#[derive(Default)]
pub struct Added {
    /// Which bytes begin a token.
    begins: Vec<bool>,
    /// Tokens by first byte, longest first.
    tokens: HashMap<u8, Vec<(Vec<u8>, u32)>>,
}

impl Added {
    pub fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, u32)>) -> Added {
        let mut added = Added { begins: vec![false; 256], tokens: HashMap::new() };
        for (text, id) in tokens {
            let Some(&first) = text.as_bytes().first() else { continue };
            added.begins[usize::from(first)] = true;
            added.tokens.entry(first).or_default().push((text.as_bytes().to_vec(), id));
        }
        for tokens in added.tokens.values_mut() {
            tokens.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        }
        added
    }

    /// The next token at or after `from`: start, end and id.
    pub fn find(&self, text: &[u8], from: usize) -> Option<(usize, usize, u32)> {
        if self.tokens.is_empty() {
            return None;
        }
        let mut at = from;
        while let Some(skip) = text[at..].iter().position(|&byte| self.begins[usize::from(byte)]) {
            at += skip;
            let rest = &text[at..];
            let found =
                self.tokens.get(&rest[0]).and_then(|tokens| tokens.iter().find(|(token, _)| rest.starts_with(token)));
            if let Some((token, id)) = found {
                return Some((at, at + token.len(), *id));
            }
            at += 1;
        }
        None
    }
}
