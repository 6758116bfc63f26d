//! Strong language, by lists of words: a small one of our own and, where given, the user's.
//!
//! ```text
//! This damned thing is shit   ->   (mask)   This damned thing is s***
//! ```
//! Whole words only, whatever their case: `Scunthorpe` and `cocktail` are none. A line of the user's list may be a phrase.

use std::collections::HashSet;
use std::path::Path;

use pipe_engine::task::TaskError;

const BUILT_IN: &str = include_str!("profanity.txt");

/// The words that are looked for.
pub struct Words {
    words: HashSet<String>,
    /// Words of each phrase in order.
    phrases: Vec<Vec<String>>,
}

impl Words {
    /// The built-in words, and those of a file with one a line; `#` begins a comment.
    pub fn load(list: Option<&Path>) -> Result<Words, TaskError> {
        let mut found = Words { words: BUILT_IN.lines().map(str::to_string).collect(), phrases: Vec::new() };
        let Some(path) = list else { return Ok(found) };
        let text = std::fs::read_to_string(path)
            .map_err(|e| TaskError::Input(format!("clean.profanity_list: cannot read {}: {e}", path.display())))?;
        for line in text.lines().map(|line| line.split('#').next().unwrap_or_default()) {
            let mut words: Vec<String> = places(line).map(|(at, end)| line[at..end].to_lowercase()).collect();
            match words.len() {
                0 => {}
                1 => found.words.extend(words.pop()),
                _ => found.phrases.push(words),
            }
        }
        Ok(found)
    }

    /// The first word or phrase of the text that is on a list.
    pub fn first(&self, text: &str) -> Option<String> {
        self.spans(text).into_iter().next().map(|(start, end)| text[start..end].to_string())
    }

    /// The text with every letter of such words but their first masked; `None` where there are none.
    pub fn mask(&self, text: &str) -> Option<String> {
        let spans = self.spans(text);
        if spans.is_empty() {
            return None;
        }
        let mut out = String::with_capacity(text.len());
        let mut copied = 0;
        for (start, end) in spans {
            out.push_str(&text[copied..start]);
            let mut first = true;
            for c in text[start..end].chars() {
                out.push(if first || !c.is_alphanumeric() { c } else { '*' });
                first = !c.is_alphanumeric();
            }
            copied = end;
        }
        out.push_str(&text[copied..]);
        Some(out)
    }

    fn spans(&self, text: &str) -> Vec<(usize, usize)> {
        let places: Vec<(usize, usize)> = places(text).collect();
        let lower: Vec<String> = places.iter().map(|&(start, end)| text[start..end].to_lowercase()).collect();
        let mut found = Vec::new();
        let mut at = 0;
        while at < lower.len() {
            let phrase = self.phrases.iter().filter(|phrase| lower[at..].starts_with(phrase)).map(Vec::len).max();
            let length = phrase.or_else(|| self.words.contains(&lower[at]).then_some(1));
            if let Some(length) = length {
                found.push((places[at].0, places[at + length - 1].1));
            }
            at += length.unwrap_or(1);
        }
        found
    }
}

/// Where words are: runs of letters and digits, apostrophes within them included.
fn places(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut chars = text.char_indices().peekable();
    std::iter::from_fn(move || {
        let (start, first) = chars.by_ref().find(|(_, c)| c.is_alphanumeric())?;
        let mut end = start + first.len_utf8();
        while let Some((at, c)) = chars.next_if(|(_, c)| c.is_alphanumeric()) {
            end = at + c.len_utf8();
        }
        Some((start, end))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_in_any_case() {
        let words = Words::load(None).unwrap();
        assert_eq!(words.first("What the FUCK, man"), Some("FUCK".to_string()));
        assert_eq!(words.mask("Shit! That is bullshit.").as_deref(), Some("S***! That is b*******."));
        for clean in ["Scunthorpe United", "a cocktail in Cockburn", "the shitake are fresh", "Moby-Dick", ""] {
            assert_eq!(words.first(clean), None, "{clean}");
        }
    }

    #[test]
    fn lists_of_the_users_add_words_and_phrases() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.txt");
        std::fs::write(&path, "# ours\nDrat\nsilly  goose # a phrase\n\nblöd\n").unwrap();
        let words = Words::load(Some(&path)).unwrap();
        assert_eq!(words.mask("drat, you SILLY goose; Blöd").as_deref(), Some("d***, you S**** g****; B***"));
        assert_eq!(words.first("silly of you"), None);
        assert!(Words::load(Some(&folder.path().join("none"))).is_err());
    }
}
