//! Which language a row is in, and how sure that is.
//!
//! Detection is whatlang's: letters' trigrams in 69 languages. It needs a sentence or two; what it is not sure of counts as
//! unknown. Code in fences and addresses of pages are left out first, for they look like no language or any.

use whatlang::Lang;

use super::html::pieces;
use crate::conversation::Example;

/// Characters that are looked at; more make it no surer.
const ENOUGH: usize = 2000;
/// With fewer letters than this, nothing can be said.
const FEWEST: usize = 12;

/// Codes of two letters for those of three.
const SHORT: &[(&str, &str)] = &[
    ("eo", "epo"),
    ("en", "eng"),
    ("ru", "rus"),
    ("zh", "cmn"),
    ("es", "spa"),
    ("pt", "por"),
    ("it", "ita"),
    ("bn", "ben"),
    ("fr", "fra"),
    ("de", "deu"),
    ("uk", "ukr"),
    ("ka", "kat"),
    ("ar", "ara"),
    ("hi", "hin"),
    ("ja", "jpn"),
    ("he", "heb"),
    ("yi", "yid"),
    ("pl", "pol"),
    ("am", "amh"),
    ("jv", "jav"),
    ("ko", "kor"),
    ("nb", "nob"),
    ("no", "nob"),
    ("da", "dan"),
    ("sv", "swe"),
    ("fi", "fin"),
    ("tr", "tur"),
    ("nl", "nld"),
    ("hu", "hun"),
    ("cs", "ces"),
    ("el", "ell"),
    ("bg", "bul"),
    ("be", "bel"),
    ("mr", "mar"),
    ("kn", "kan"),
    ("ro", "ron"),
    ("sl", "slv"),
    ("hr", "hrv"),
    ("sr", "srp"),
    ("mk", "mkd"),
    ("lt", "lit"),
    ("lv", "lav"),
    ("et", "est"),
    ("ta", "tam"),
    ("vi", "vie"),
    ("ur", "urd"),
    ("th", "tha"),
    ("gu", "guj"),
    ("uz", "uzb"),
    ("pa", "pan"),
    ("az", "aze"),
    ("id", "ind"),
    ("te", "tel"),
    ("fa", "pes"),
    ("ml", "mal"),
    ("or", "ori"),
    ("my", "mya"),
    ("ne", "nep"),
    ("si", "sin"),
    ("km", "khm"),
    ("tk", "tuk"),
    ("ak", "aka"),
    ("zu", "zul"),
    ("sn", "sna"),
    ("af", "afr"),
    ("la", "lat"),
    ("sk", "slk"),
    ("ca", "cat"),
    ("tl", "tgl"),
    ("hy", "hye"),
    ("cy", "cym"),
];

/// What was detected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detected {
    pub code: &'static str,
    pub confidence: f64,
}

/// The code of three letters for one of two or three, where that language can be told.
pub fn code(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let long = SHORT.iter().find(|(short, _)| *short == lower).map_or(lower.as_str(), |(_, long)| long);
    Lang::from_code(long).map(|lang| lang.code())
}

/// The language of what people wrote in a row; `None` where there is too little of it.
pub fn detect(example: &Example) -> Option<Detected> {
    let mut prose = String::new();
    for text in example.texts() {
        for (piece, _) in pieces(text).into_iter().filter(|(_, code)| !code) {
            for word in piece.split_whitespace().filter(|word| !word.contains("://")) {
                prose.push_str(word);
                prose.push(' ');
            }
            if prose.len() > ENOUGH {
                break;
            }
        }
    }
    if prose.chars().filter(|c| c.is_alphabetic()).take(FEWEST).count() < FEWEST {
        return None;
    }
    let info = whatlang::detect(&prose)?;
    Some(Detected { code: info.lang().code(), confidence: info.confidence() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_lengths_name_a_language() {
        assert_eq!((code("en"), code("ENG"), code("de")), (Some("eng"), Some("eng"), Some("deu")));
        assert_eq!((code("xx"), code("")), (None, None));
        for (short, long) in SHORT {
            assert_eq!(code(short), Some(*long), "{short}");
        }
    }

    #[test]
    fn sentences_are_told_apart_and_code_is_no_language() {
        let told = |text: &str| detect(&Example::Completion { text: text.to_string() }).map(|found| found.code);
        for (text, wanted) in [
            ("The committee will meet again on Thursday to discuss what remains to be done.", "eng"),
            ("Der Ausschuss trifft sich am Donnerstag wieder, um zu besprechen, was noch zu tun ist.", "deu"),
            ("Le comité se réunira de nouveau jeudi pour discuter de ce qui reste à faire.", "fra"),
            ("El comité se reunirá de nuevo el jueves para hablar de lo que queda por hacer.", "spa"),
            ("委员会将于星期四再次开会，讨论剩下的工作。", "cmn"),
            ("委員会は木曜日に再び集まり、残りの仕事について話し合います。", "jpn"),
            ("Комитет снова соберётся в четверг, чтобы обсудить, что осталось сделать.", "rus"),
        ] {
            assert_eq!(told(text), Some(wanted), "{text}");
        }
        assert_eq!(told("ok"), None);
        assert_eq!(told("```\nfor i in range(10): print(i)\n```"), None);
    }
}
