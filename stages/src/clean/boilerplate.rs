//! Lines that web pages carry around their text, taken out.
//!
//! ```text
//! We use cookies to improve your experience.\nFish needs heat.\nShare on Facebook   ->   Fish needs heat.
//! ```
//! Whole lines only, short ones only, and never in code: a sentence about cookies within a paragraph stays.

use std::sync::LazyLock;

use regex::RegexSet;

use super::html::pieces;

/// A longer line is prose.
const LONGEST: usize = 160;

const PATTERNS: &[&str] = &[
    r"\b(we|this (web)?site|our (web)?site|this page) (may )?uses? cookies\b",
    r"\b(accept|manage|reject) (all )?cookies\b|\bcookie (policy|settings|preferences|notice)\b",
    r"\ball rights reserved\b",
    r"^(©|\(c\)|copyright)\s*(©|\(c\))?\s*\d{4}\b",
    r"^(share|tweet|pin|like|follow us|find us)( this)?( (on|via|to))? (facebook|twitter|x|linkedin|pinterest|instagram|reddit|whatsapp|youtube|email)\b",
    r"^(subscribe|sign up)( now| today)?( (to|for) (our|the)( \w+)? newsletter)\b.{0,40}$",
    r"^(skip|jump) to (the )?(main )?(content|navigation|search)$",
    r"^(home|menu|login|log in|sign in|sign up|register|search|contact( us)?|about( us)?|faq|sitemap|privacy policy|terms( (of (use|service)|and conditions|& conditions))?|advertisement|sponsored( content)?|read more|load more|show more|see more|back to top|previous( (post|article|page))?|next( (post|article|page))?|related (posts|articles|stories)|leave a (comment|reply)|print( this)?( page)?|share( this)?( (article|post|page))?)[\s.:…»>]*$",
    r"^((home|menu|about|contact|blog|news|login|products|services|support|privacy|terms|faq)\s*[|•·»>/]\s*){1,}(home|menu|about|contact|blog|news|login|products|services|support|privacy|terms|faq)( us)?$",
    r"\b(please )?(enable|turn on) javascript\b|\bjavascript (is|seems to be) (disabled|not enabled)\b",
    r"^(powered|hosted) by [\w .!-]{1,40}$",
    r"^(posted|published|filed|updated|written) (by|on|in|at)\b.{0,60}$",
    r"^\d+ (comments?|shares?|views?|likes?|replies)$",
    r"^(click|tap) here (to|for)\b.{0,60}$",
];

/// The text without such lines; `None` where there are none.
pub fn strip(text: &str) -> Option<String> {
    static SET: LazyLock<Option<RegexSet>> = LazyLock::new(|| {
        let patterns = PATTERNS.iter().map(|pattern| format!("(?i){pattern}"));
        RegexSet::new(patterns).ok()
    });
    let set = SET.as_ref()?;
    let mut changed = false;
    let mut out = String::with_capacity(text.len());
    for (piece, code) in pieces(text) {
        for line in piece.split_inclusive('\n') {
            let bare = line.trim();
            if !code && !bare.is_empty() && bare.len() <= LONGEST && set.is_match(bare) {
                changed = true;
            } else {
                out.push_str(line);
            }
        }
    }
    changed.then(|| out.trim().to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        RegexSet::new(PATTERNS.iter().map(|pattern| format!("(?i){pattern}"))).unwrap();
    }

    #[test]
    fn lines_around_an_article_go_and_prose_stays() {
        let page = "Skip to main content\nHome | About | Contact us\nWe use cookies to improve your experience.\n\
                    Fish needs heat.\nShare on Facebook\nPosted by admin on 3 May\n12 comments\nRelated posts:\n\
                    © 2021 Example Ltd. All rights reserved.";
        assert_eq!(strip(page).as_deref(), Some("Fish needs heat."));
        for prose in [
            "Bakers leave cookies to cool before they box them.",
            "The home page links to the sitemap.",
            "Press Next when you are done, then read more about the topic in chapter two of the book.",
            "```\nHome\nLogin\n```",
        ] {
            assert_eq!(strip(prose), None, "{prose}");
        }
    }
}
