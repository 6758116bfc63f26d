//! The splitting patterns of byte-level tokenizers, as loops over character classes.
//!
//! Each is the exact meaning of one regular expression, read from the start of a stretch of text to its end; what stands
//! beyond the stretch is never looked at, because the expressions do not see it either.

use serde_json::Value as Json;

use super::classes::{Classes, DIGIT, LETTER, LOWER, MARK, NUMBER, SPACE, UPPER};

/// A way to split text that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Splitting {
    /// GPT-2's pattern, after every digit was cut out where `digits`.
    Gpt2 { digits: bool },
    /// GPT-4's pattern and its kin: at most this many digits in a row; marks count as letters in some.
    Modern { digits: usize, marks: bool },
    /// Words cut where case rises, as GPT-4o's and Mistral's Tekken.
    Cased { digits: usize, contractions: bool },
}

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const SPACES: &str = r"|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Splitting {
    /// The splitting of a `tokenizer.json`'s pre-tokenizer, where it is one of these.
    pub fn of(pre_tokenizer: &Json) -> Option<Splitting> {
        let steps = match pre_tokenizer.get("type")?.as_str()? {
            "Sequence" => pre_tokenizer.get("pretokenizers")?.as_array()?.iter().collect(),
            _ => vec![pre_tokenizer],
        };
        let (last, before) = steps.split_last()?;
        let flag = |step: &Json, key: &str, default: bool| step.get(key).map_or(Some(default), Json::as_bool);
        let kind = |step: &Json| step.get("type").and_then(Json::as_str).map(str::to_owned);
        if kind(last)? != "ByteLevel" || flag(last, "add_prefix_space", true)? {
            return None;
        }
        match (before, flag(last, "use_regex", true)?) {
            ([], true) => Some(Splitting::Gpt2 { digits: false }),
            ([step], true) if kind(step)? == "Digits" && flag(step, "individual_digits", false)? => {
                Some(Splitting::Gpt2 { digits: true })
            }
            ([step], false) if kind(step)? == "Split" => {
                let behavior = step.get("behavior")?.as_str()?;
                // Keeping what matches and dropping what lies between is the same where everything matches.
                let whole = matches!((behavior, flag(step, "invert", false)?), ("Isolated", false) | ("Removed", true));
                let pattern = step.get("pattern")?.get("Regex")?.as_str()?;
                if whole { Splitting::of_pattern(pattern) } else { None }
            }
            _ => None,
        }
    }

    fn of_pattern(pattern: &str) -> Option<Splitting> {
        let known = [
            Splitting::Modern { digits: 1, marks: false },
            Splitting::Modern { digits: 3, marks: false },
            Splitting::Modern { digits: 1, marks: true },
            Splitting::Cased { digits: 3, contractions: true },
            Splitting::Cased { digits: 1, contractions: false },
        ];
        known.into_iter().find(|splitting| splitting.pattern() == pattern)
    }

    fn pattern(self) -> String {
        let numbers = |digits: usize| if digits == 1 { r"\p{N}".to_owned() } else { format!(r"\p{{N}}{{1,{digits}}}") };
        match self {
            Splitting::Gpt2 { .. } => String::new(),
            Splitting::Modern { digits, marks } => {
                let (letters, mark) = if marks { (r"[\p{L}\p{M}]", r"\p{M}") } else { (r"\p{L}", "") };
                let numbers = numbers(digits);
                format!(
                    r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{numbers}| ?[^\s\p{{L}}{mark}\p{{N}}]+[\r\n]*{SPACES}"
                )
            }
            Splitting::Cased { digits, contractions } => {
                let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
                let lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";
                let tail = if contractions { format!("{CONTRACTIONS}?") } else { String::new() };
                let numbers = numbers(digits);
                format!(
                    r"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{tail}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{tail}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{SPACES}"
                )
            }
        }
    }

    /// Calls `take` with start and end of every piece of `text`, in order; together they cover it.
    #[inline]
    pub fn split(self, classes: &Classes, text: &[u8], mut take: impl FnMut(usize, usize)) {
        match self {
            Splitting::Gpt2 { digits: false } => gpt2(classes, text, 0, &mut take),
            Splitting::Gpt2 { digits: true } => between_digits(classes, text, &mut take),
            Splitting::Modern { digits, marks } => {
                let letters = if marks { LETTER | MARK } else { LETTER };
                let scan = Scan { classes, text };
                scan.all(&mut take, |scan, at| scan.modern(at, digits, letters));
            }
            Splitting::Cased { digits, contractions } => {
                let scan = Scan { classes, text };
                scan.all(&mut take, |scan, at| scan.cased(at, digits, contractions));
            }
        }
    }
}

/// GPT-2's pattern on every stretch between digits; each digit is a piece.
fn between_digits(classes: &Classes, text: &[u8], take: &mut impl FnMut(usize, usize)) {
    let mut start = 0;
    let mut at = 0;
    while at < text.len() {
        let (class, length) = classes.at(text, at);
        if class & DIGIT != 0 {
            gpt2(classes, &text[..at], start, take);
            take(at, at + length);
            start = at + length;
        }
        at += length;
    }
    gpt2(classes, text, start, take);
}

#[inline]
fn gpt2(classes: &Classes, text: &[u8], start: usize, take: &mut impl FnMut(usize, usize)) {
    let scan = Scan { classes, text };
    let mut at = start;
    while at < text.len() {
        let end = scan.gpt2(at);
        take(at, end);
        at = end;
    }
}

struct Scan<'a> {
    classes: &'a Classes,
    text: &'a [u8],
}

impl Scan<'_> {
    #[inline]
    fn all(&self, take: &mut impl FnMut(usize, usize), next: impl Fn(&Self, usize) -> usize) {
        let mut at = 0;
        while at < self.text.len() {
            let end = next(self, at);
            take(at, end);
            at = end;
        }
    }

    fn byte(&self, at: usize) -> u8 {
        self.text.get(at).copied().unwrap_or(0)
    }

    /// The end of the run of characters that have one of `wanted`, or none of it where `wanted` is inverted by `without`.
    #[inline]
    fn run(&self, mut at: usize, wanted: u8) -> usize {
        loop {
            let (class, length) = self.classes.at(self.text, at);
            if class & wanted == 0 {
                return at;
            }
            at += length;
        }
    }

    #[inline]
    fn run_without(&self, mut at: usize, unwanted: u8) -> usize {
        while at < self.text.len() {
            let (class, length) = self.classes.at(self.text, at);
            if class & unwanted != 0 {
                return at;
            }
            at += length;
        }
        at
    }

    /// The end of `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` or `'d` at `at`, or `at`.
    fn contraction(&self, at: usize, any_case: bool) -> usize {
        if self.byte(at) != b'\'' {
            return at;
        }
        let letter = |n: usize| {
            let byte = self.byte(at + n);
            if any_case { byte.to_ascii_lowercase() } else { byte }
        };
        match (letter(1), letter(2)) {
            (b's' | b't' | b'm' | b'd', _) => at + 2,
            (b'r' | b'v', b'e') | (b'l', b'l') => at + 3,
            _ => at,
        }
    }

    /// `\s+(?!\S)|\s+`: all white space up to the end, else all but the last before a word.
    fn spaces(&self, at: usize) -> usize {
        let end = self.run(at, SPACE);
        if end == self.text.len() {
            return end;
        }
        let mut last = end - 1;
        while self.text[last] & 0xc0 == 0x80 {
            last -= 1;
        }
        if last > at { last } else { end }
    }

    /// `\s*[\r\n]+` where the white space holds a line break, else [`Scan::spaces`].
    fn lines_or_spaces(&self, at: usize) -> usize {
        let end = self.run(at, SPACE);
        match self.text[at..end].iter().rposition(|byte| matches!(byte, b'\r' | b'\n')) {
            Some(last) => at + last + 1,
            None => self.spaces(at),
        }
    }

    fn breaks(&self, mut at: usize, slash: bool) -> usize {
        while matches!(self.byte(at), b'\r' | b'\n') || slash && self.byte(at) == b'/' {
            at += 1;
        }
        at
    }

    #[inline]
    fn gpt2(&self, at: usize) -> usize {
        let contraction = self.contraction(at, false);
        if contraction > at {
            return contraction;
        }
        let from = if self.text[at] == b' ' { at + 1 } else { at };
        let (class, length) = self.classes.at(self.text, from);
        if length == 0 || class & SPACE != 0 {
            self.spaces(at)
        } else if class & LETTER != 0 {
            self.run(from + length, LETTER)
        } else if class & NUMBER != 0 {
            self.run(from + length, NUMBER)
        } else {
            self.run_without(from + length, SPACE | LETTER | NUMBER)
        }
    }

    /// `\p{N}{1,digits}`.
    fn numbers(&self, mut at: usize, digits: usize) -> usize {
        for _ in 0..digits {
            let (class, length) = self.classes.at(self.text, at);
            if class & NUMBER == 0 {
                break;
            }
            at += length;
        }
        at
    }

    /// ` ?[^\s\p{L}\p{N}]+[\r\n]*`, or `at`.
    fn symbols(&self, at: usize, unwanted: u8, slash: bool) -> usize {
        let from = if self.text[at] == b' ' { at + 1 } else { at };
        let end = self.run_without(from, unwanted);
        if end > from { self.breaks(end, slash) } else { at }
    }

    #[inline]
    fn modern(&self, at: usize, digits: usize, letters: u8) -> usize {
        let contraction = self.contraction(at, true);
        if contraction > at {
            return contraction;
        }
        let (class, length) = self.classes.at(self.text, at);
        // The leading character is taken greedily: a mark that may stand for it does, before letters.
        let leads = class & (LETTER | NUMBER) == 0 && !matches!(self.text[at], b'\r' | b'\n');
        if leads {
            let end = self.run(at + length, letters);
            if end > at + length {
                return end;
            }
        }
        if class & letters != 0 {
            return self.run(at + length, letters);
        }
        if class & NUMBER != 0 {
            return self.numbers(at, digits);
        }
        let symbols = self.symbols(at, SPACE | NUMBER | LETTER | letters, false);
        if symbols > at { symbols } else { self.lines_or_spaces(at) }
    }

    #[inline]
    fn cased(&self, at: usize, digits: usize, contractions: bool) -> usize {
        let (class, length) = self.classes.at(self.text, at);
        let leads = class & (LETTER | NUMBER) == 0 && !matches!(self.text[at], b'\r' | b'\n');
        let starts = [leads.then_some(at + length), Some(at)];
        let word = starts.into_iter().flatten().find_map(|from| self.lowered(from));
        let word = word.or_else(|| {
            let upper = |from: usize| Some(self.run(from, UPPER)).filter(|&end| end > from);
            starts.into_iter().flatten().find_map(|from| upper(from).map(|end| self.run(end, LOWER)))
        });
        if let Some(end) = word {
            return if contractions { self.contraction(end, true) } else { end };
        }
        if class & NUMBER != 0 {
            return self.numbers(at, digits);
        }
        let symbols = self.symbols(at, SPACE | NUMBER | LETTER, true);
        if symbols > at { symbols } else { self.lines_or_spaces(at) }
    }

    /// `[upper]*[lower]+`: the two share letters without case, so the run of upper ones gives back what it must.
    fn lowered(&self, from: usize) -> Option<usize> {
        let mut at = from;
        let mut both = None;
        loop {
            let (class, length) = self.classes.at(self.text, at);
            if class & UPPER == 0 {
                break;
            }
            at += length;
            if class & LOWER != 0 {
                both = Some(at);
            }
        }
        let end = self.run(at, LOWER);
        if end > at { Some(end) } else { both }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

    use super::*;

    static CLASSES: std::sync::OnceLock<Classes> = std::sync::OnceLock::new();

    fn pre_tokenizers() -> Vec<Json> {
        let bytes = |splits: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits});
        let all = [
            Splitting::Modern { digits: 1, marks: false },
            Splitting::Modern { digits: 3, marks: false },
            Splitting::Modern { digits: 1, marks: true },
            Splitting::Cased { digits: 3, contractions: true },
            Splitting::Cased { digits: 1, contractions: false },
        ];
        let digits = json!({"type": "Digits", "individual_digits": true});
        let mut made = vec![bytes(true), json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]})];
        for splitting in all {
            let split = json!({"type": "Split", "pattern": {"Regex": splitting.pattern()}, "behavior": "Isolated", "invert": false});
            made.push(json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]}));
        }
        made
    }

    fn theirs(pre_tokenizer: &PreTokenizerWrapper, text: &str) -> Vec<(usize, usize)> {
        let mut pieces = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, offsets, _)| offsets).collect()
    }

    fn ours(splitting: Splitting, classes: &Classes, text: &str) -> Vec<(usize, usize)> {
        let mut pieces = Vec::new();
        splitting.split(classes, text.as_bytes(), |start, end| pieces.push((start, end)));
        pieces
    }

    /// Text dense in the places where the patterns decide.
    fn dense() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "a", "B", "é", "Ω", "ß", "ǅ", "ʰ", "中", "한", "\u{301}", "\u{20dd}", "1", "23", "Ⅷ", "²", "٣", " ", "  ",
            "\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "\u{2028}", "\u{85}", "'", "'s", "'S", "'ll", "'Re", "'v", "’s",
            ".", "/", "//", "_", "-", "😀", "👍🏽", "\0", "\u{200b}", "\u{feff}", "<", "Hello", "World", "XMLHttp",
            "x86", "\u{17f}",
        ]);
        prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]
        #[test]
        fn pieces_are_those_of_the_expressions(text in prop_oneof![4 => dense(), 1 => any::<String>()]) {
            let classes = CLASSES.get_or_init(Classes::new);
            prop_assume!(classes.agree(text.as_bytes()));
            for description in pre_tokenizers() {
                let splitting = Splitting::of(&description).unwrap();
                let wrapper: PreTokenizerWrapper = serde_json::from_value(description).unwrap();
                prop_assert_eq!(ours(splitting, classes, &text), theirs(&wrapper, &text), "{:?} {:?}", splitting, text);
            }
        }
    }

    #[test]
    fn other_splittings_are_not_claimed() {
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        for pre_tokenizer in [
            json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}),
            json!({"type": "Metaspace"}),
            json!({"type": "Sequence", "pretokenizers": [split(r"\p{N}"), bytes]}),
            json!({"type": "Sequence", "pretokenizers": [split(r"\p{N}"), split("x"), bytes]}),
            json!(null),
        ] {
            assert_eq!(Splitting::of(&pre_tokenizer), None);
        }
    }
}
