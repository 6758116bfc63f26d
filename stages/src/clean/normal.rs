//! Normalisation: differences that no reader sees are made none.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

use super::section::Normalize;

/// Unix line ends; no control characters but tab and line feed, no zero-width ones; composed characters; with `trims`, no
/// white space before line ends nor around the text.
pub fn normal(text: &str, form: Normalize, trims: bool) -> Cow<'_, str> {
    let plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte) || byte == b'\n' || byte == b'\t' || byte >= 0x80);
    let clean: Cow<'_, str> = if plain && !text.chars().any(is_noise) {
        Cow::Borrowed(text)
    } else {
        let unix = text.replace("\r\n", "\n").replace('\r', "\n");
        Cow::Owned(unix.chars().filter(|&c| !is_noise(c)).collect())
    };
    let clean = match composed(&clean, form) {
        Some(composed) => Cow::Owned(composed),
        None => clean,
    };
    if !trims || !(clean.contains(" \n") || clean.contains("\t\n") || clean.trim().len() != clean.len()) {
        return clean;
    }
    let lines: Vec<&str> = clean.lines().map(str::trim_end).collect();
    Cow::Owned(lines.join("\n").trim().to_string())
}

/// The composed text, where it differs.
fn composed(text: &str, form: Normalize) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let composed: String = match form {
        Normalize::Off => return None,
        Normalize::Nfc if is_nfc_quick(text.chars()) == IsNormalized::Yes => return None,
        Normalize::Nfkc if is_nfkc_quick(text.chars()) == IsNormalized::Yes => return None,
        Normalize::Nfc => text.nfc().collect(),
        Normalize::Nfkc => text.nfkc().collect(),
    };
    (composed != text).then_some(composed)
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
        let nfc = |text, trims| normal(text, Normalize::Nfc, trims).into_owned();
        assert_eq!(nfc("a \r\nb\t\n\u{200B}c\u{0}\n\n", true), "a\nb\nc");
        assert_eq!(nfc("  if x:\n    y", true), "if x:\n    y");
        assert_eq!(nfc(" a ", false), " a ");
        let family = "as it is\n\n\tand stays \u{1F468}\u{200D}\u{1F469}";
        assert!(matches!(normal(family, Normalize::Nfc, true), Cow::Borrowed(_)));
    }

    #[test]
    fn characters_are_composed_as_pythons_unicodedata_does() {
        // unicodedata.normalize(form, text) for both forms.
        let text = "Cafe\u{301} ﬁne ２０ Å\u{212B} ① \u{1E9B}\u{323}";
        assert_eq!(normal(text, Normalize::Nfc, true), "Caf\u{e9} ﬁne ２０ ÅÅ ① \u{1E9B}\u{323}");
        assert_eq!(normal(text, Normalize::Nfkc, true), "Caf\u{e9} fine 20 ÅÅ 1 \u{1E69}");
    }
}
