//! What a character is to the splitting patterns of byte-level tokenizers.
//!
//! The patterns are written for Oniguruma, whose Unicode tables are of another version than ours. Characters on which the
//! two disagree are `ODD`: text that holds one is left to the `tokenizers` crate. A test compares all characters.

use regex_syntax::hir::{Class, HirKind};

pub const LETTER: u8 = 1;
pub const NUMBER: u8 = 2;
pub const SPACE: u8 = 4;
/// What `char::is_numeric` says, which the `Digits` step asks.
pub const DIGIT: u8 = 8;
/// Lu, Lt, Lm, Lo or M.
pub const UPPER: u8 = 16;
/// Ll, Lm, Lo or M.
pub const LOWER: u8 = 32;
pub const MARK: u8 = 64;
pub const ODD: u8 = 128;

/// Unassigned in the older tables or reclassified since, and the long s, which is an `s` where case does not count.
const DISAGREED: [(u32, u32); 1] = [(0x17f, 0x17f)];

/// Classes of all characters, in blocks of 256 of which equal ones are kept once.
pub struct Classes {
    ascii: [u8; 128],
    block_of: Vec<u16>,
    blocks: Vec<[u8; 256]>,
}

impl Classes {
    pub fn new() -> Classes {
        let mut all = vec![0u8; 0x110000];
        let sets = [
            (r"\p{L}", LETTER),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", UPPER),
            (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", LOWER),
            (r"\p{M}", MARK),
        ];
        for (pattern, bit) in sets {
            for (start, end) in ranges(pattern) {
                all[start as usize..=end as usize].iter_mut().for_each(|class| *class |= bit);
            }
        }
        for c in (0..0x110000).filter_map(char::from_u32).filter(|c| c.is_numeric()) {
            all[c as usize] |= DIGIT;
        }
        for (start, end) in DISAGREED {
            all[start as usize..=end as usize].iter_mut().for_each(|class| *class |= ODD);
        }
        Classes::packed(&all)
    }

    fn packed(all: &[u8]) -> Classes {
        let mut blocks: Vec<[u8; 256]> = Vec::new();
        let mut block_of = Vec::with_capacity(all.len() / 256);
        for chunk in all.as_chunks::<256>().0 {
            let at = blocks.iter().position(|block| block == chunk).unwrap_or_else(|| {
                blocks.push(*chunk);
                blocks.len() - 1
            });
            block_of.push(at as u16);
        }
        let mut ascii = [0; 128];
        ascii.copy_from_slice(&all[..128]);
        Classes { ascii, block_of, blocks }
    }

    /// The class of the character that starts at byte `at`, and its length; no class past the end.
    #[inline]
    pub fn at(&self, text: &[u8], at: usize) -> (u8, usize) {
        match text.get(at) {
            Some(&byte) if byte < 0x80 => (self.ascii[usize::from(byte)], 1),
            Some(_) => self.wide(text, at),
            None => (0, 0),
        }
    }

    fn wide(&self, text: &[u8], at: usize) -> (u8, usize) {
        let tail = |n: usize| u32::from(text.get(at + n).copied().unwrap_or(0) & 0x3f);
        let lead = u32::from(text[at]);
        let (c, length) = match lead {
            0xf0.. => ((lead & 7) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
            0xe0.. => ((lead & 15) << 12 | tail(1) << 6 | tail(2), 3),
            _ => ((lead & 31) << 6 | tail(1), 2),
        };
        let block = self.block_of.get((c >> 8) as usize).map_or(0, |&block| usize::from(block));
        (self.blocks[block][(c & 255) as usize], length)
    }

    /// Whether all characters are ones on which the tables agree.
    pub fn agree(&self, text: &[u8]) -> bool {
        let mut at = 0;
        while at < text.len() {
            // Runs of ASCII, eight bytes at a time.
            if let Some(eight) = text.get(at..at + 8).and_then(|eight| <[u8; 8]>::try_from(eight).ok())
                && u64::from_le_bytes(eight) & 0x8080_8080_8080_8080 == 0
            {
                at += 8;
                continue;
            }
            let (class, length) = self.at(text, at);
            if class & ODD != 0 {
                return false;
            }
            at += length;
        }
        true
    }
}

fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    match regex_syntax::parse(pattern).map(|hir| hir.into_kind()) {
        Ok(HirKind::Class(Class::Unicode(class))) => {
            class.iter().map(|range| (range.start() as u32, range.end() as u32)).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::tokenizer::SplitDelimiterBehavior;

    use super::*;

    /// The characters of a class, as Oniguruma sees them.
    fn oniguruma(pattern: &str) -> Vec<bool> {
        let text: String = (0..0x110000).filter_map(char::from_u32).collect();
        let split =
            Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false).unwrap();
        let mut found = vec![false; 0x110000];
        for (start, end) in split.regex.find_iter(&text) {
            text[start..end].chars().for_each(|c| found[c as usize] = true);
        }
        found
    }

    #[test]
    fn classes_are_onigurumas_but_for_the_odd_ones() {
        let classes = Classes::new();
        let sets = [
            (r"\p{L}", LETTER),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", UPPER),
            (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", LOWER),
            (r"\p{M}", MARK),
        ];
        let mut odd = Vec::new();
        for (pattern, bit) in sets {
            let theirs = oniguruma(pattern);
            for c in (0..0x110000).filter_map(char::from_u32) {
                let mut buffer = [0; 4];
                let (class, length) = classes.at(c.encode_utf8(&mut buffer).as_bytes(), 0);
                assert_eq!(length, c.len_utf8());
                if (class & bit != 0) != theirs[c as usize] && class & ODD == 0 {
                    odd.push(c as u32);
                }
            }
        }
        odd.sort_unstable();
        odd.dedup();
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for c in odd {
            match ranges.last_mut() {
                Some((_, end)) if *end + 1 == c => *end = c,
                _ => ranges.push((c, c)),
            }
        }
        assert!(ranges.is_empty(), "{ranges:#x?}");
    }
}
