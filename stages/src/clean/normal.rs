//! Normalisation: differences that no reader sees are made none.

use std::borrow::Cow;

use crate::conversation::Example;

/// Normalises every text of a row; whether anything changed.
pub fn normalize(example: &mut Example) -> bool {
    // Segments are joined without anything between: white space at their ends is content.
    let trims = !matches!(example, Example::Segments { .. });
    let mut changed = false;
    for text in example.texts_mut() {
        if let Cow::Owned(normal) = normal(text, trims)
            && normal != *text
        {
            *text = normal;
            changed = true;
        }
    }
    changed
}

/// Unix line ends; no control characters but tab and line feed, no zero-width ones; with `trims`, no white space before
/// line ends nor around the text.
fn normal(text: &str, trims: bool) -> Cow<'_, str> {
    let plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte) || byte == b'\n' || byte == b'\t' || byte >= 0x80);
    let clean: Cow<'_, str> = if plain && !text.chars().any(is_noise) {
        Cow::Borrowed(text)
    } else {
        let unix = text.replace("\r\n", "\n").replace('\r', "\n");
        Cow::Owned(unix.chars().filter(|&c| !is_noise(c)).collect())
    };
    if !trims || !(clean.contains(" \n") || clean.contains("\t\n") || clean.trim().len() != clean.len()) {
        return clean;
    }
    let lines: Vec<&str> = clean.lines().map(str::trim_end).collect();
    Cow::Owned(lines.join("\n").trim().to_string())
}

/// Control characters but tab and line feed, byte-order marks, zero-width space and soft hyphen. Zero-width joiners stay:
/// scripts and emoji need them.
fn is_noise(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{FEFF}' | '\u{200B}' | '\u{00AD}' | '\u{2060}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_reader_sees_goes() {
        assert_eq!(normal("a \r\nb\t\n\u{200B}c\u{0}\n\n", true), "a\nb\nc");
        assert_eq!(normal("  if x:\n    y", true), "if x:\n    y");
        assert_eq!(normal(" a ", false), " a ");
        assert!(matches!(normal("as it is\n\n\tand stays \u{1F468}\u{200D}\u{1F469}", true), Cow::Borrowed(_)));
    }
}
