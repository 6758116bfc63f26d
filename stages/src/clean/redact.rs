//! Personal data and secrets, replaced by placeholders.
//!
//! ```text
//! Write to jo@example.org or +49 30 901820 from 10.1.2.3   ->   Write to [EMAIL] or [PHONE] from [IP]
//! ```
//! What a pattern finds is looked at again where its form allows: cards need a right check digit, addresses must parse, and
//! numbers that are dates, versions or amounts are no telephones. Nothing of what was found is kept.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use pipe_engine::task::TaskError;
use regex::{Captures, Regex};

use super::section::Pii;

/// How often each kind was replaced.
pub type Found = [u32; Pii::ALL.len()];

/// The patterns in use.
pub struct Redactor {
    rules: Vec<Rule>,
}

struct Rule {
    kind: Pii,
    pattern: Regex,
    /// Says no to what only looks like it; `None` takes every match.
    check: Option<fn(&str, &Captures<'_>) -> bool>,
}

const EMAIL: &str = r"(?i)\b[a-z0-9][a-z0-9._%+'-]*@(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,24}\b";
const CARD: &str = r"\b[2-6](?:[ -]?\d){12,18}\b";
const IPV4: &str = r"\b\d{1,3}(?:\.\d{1,3}){3}\b";
const IPV6: &str = r"(?i)(?:[0-9a-f]{0,4}:){2,7}(?:[0-9a-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?";
/// With a country code; in North America's form; in the form of countries whose trunk prefix is 0.
const PHONES: [&str; 3] = [
    r"(?:\+|\b00)[1-9]\d{0,2}(?:[ .\-/]?\(?\d{1,5}\)?){2,7}\b",
    r"(?:\b1[ .\-])?(?:\([2-9]\d{2}\)[ ]?|\b[2-9]\d{2}[ .\-])[2-9]\d{2}[ .\-]\d{4}\b",
    r"\(?\b0\d{1,4}\)?[ /\-]\d{2,8}(?:[ \-]\d{2,6}){0,4}\b",
];
/// Secrets by the forms their makers gave them.
const KEYS: [&str; 14] = [
    r"\bsk-(?:proj-|ant-|or-|svcacct-)?[A-Za-z0-9_-]{20,}",
    r"\b(?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{36,}\b",
    r"\bgithub_pat_[A-Za-z0-9_]{22,}\b",
    r"\bglpat-[A-Za-z0-9_-]{20,}",
    r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    r"\bAIza[0-9A-Za-z_-]{35}",
    r"\bya29\.[0-9A-Za-z_-]{20,}",
    r"\bhf_[A-Za-z0-9]{30,}\b",
    r"\b(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|dop_v1_[0-9a-f]{64})\b",
    r"\b[srp]k_(?:live|test)_[0-9A-Za-z]{16,}\b",
    r"\bSG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{30,64}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\z)",
];
/// `api_key = ...`: the value goes where it looks made by a machine.
const NAMED_KEY: &str = r#"(?i)(?P<name>\b(?:api|access|secret|auth|private|client)[_ -]?(?:key|token|secret)|\b(?:secret|token|bearer))(?P<sign>["']?\s*[:=]\s*["']?|\s+)(?P<value>[A-Za-z0-9_\-+/.]{16,}=*)"#;

impl Redactor {
    pub fn new(kinds: &[Pii]) -> Result<Redactor, TaskError> {
        let mut rules = Vec::new();
        // Secrets first: they hold runs of digits; then what is most specific, telephones last.
        for kind in [Pii::Key, Pii::Email, Pii::Ip, Pii::Card, Pii::Phone] {
            if kinds.contains(&kind) {
                for (pattern, check) in patterns(kind) {
                    let pattern = Regex::new(pattern).map_err(|e| TaskError::Failed(e.to_string()))?;
                    rules.push(Rule { kind, pattern, check });
                }
            }
        }
        Ok(Redactor { rules })
    }

    /// The text with placeholders; `None` where there is nothing to replace. Adds to `found`.
    pub fn redact(&self, text: &str, found: &mut Found) -> Option<String> {
        // Every pattern needs one of these; most texts have none.
        if !text.bytes().any(|byte| byte.is_ascii_digit() || matches!(byte, b'@' | b'_' | b':' | b'-' | b'=')) {
            return None;
        }
        let mut current = Cow::Borrowed(text);
        for rule in &self.rules {
            if let Some(replaced) = rule.replace(&current, found) {
                current = Cow::Owned(replaced);
            }
        }
        match current {
            Cow::Owned(replaced) => Some(replaced),
            Cow::Borrowed(_) => None,
        }
    }
}

impl Rule {
    fn replace(&self, text: &str, found: &mut Found) -> Option<String> {
        let mut out = String::new();
        let mut copied = 0;
        for captures in self.pattern.captures_iter(text) {
            let place = captures.name("value").or_else(|| captures.get(0))?;
            if self.check.is_some_and(|check| !check(text, &captures)) {
                continue;
            }
            out.push_str(&text[copied..place.start()]);
            out.push_str(placeholder(self.kind));
            copied = place.end();
            found[self.kind as usize] += 1;
        }
        (copied > 0).then(|| out + &text[copied..])
    }
}

fn placeholder(kind: Pii) -> &'static str {
    match kind {
        Pii::Email => "[EMAIL]",
        Pii::Phone => "[PHONE]",
        Pii::Card => "[CARD]",
        Pii::Ip => "[IP]",
        Pii::Key => "[KEY]",
    }
}

type Check = Option<fn(&str, &Captures<'_>) -> bool>;

fn patterns(kind: Pii) -> Vec<(&'static str, Check)> {
    match kind {
        Pii::Email => vec![(EMAIL, None)],
        Pii::Card => vec![(CARD, Some(is_card))],
        Pii::Ip => vec![(IPV4, Some(is_ipv4)), (IPV6, Some(is_ipv6))],
        Pii::Phone => {
            PHONES.iter().map(|&pattern| (pattern, Some(is_phone as fn(&str, &Captures<'_>) -> bool))).collect()
        }
        Pii::Key => {
            let mut all: Vec<(&'static str, Check)> = KEYS.iter().map(|&pattern| (pattern, None)).collect();
            all.push((NAMED_KEY, Some(is_named_key)));
            all
        }
    }
}

fn whole<'t>(captures: &Captures<'t>) -> &'t str {
    captures.get(0).map_or("", |found| found.as_str())
}

/// What stands right before and after a match.
fn around(text: &str, captures: &Captures<'_>) -> (Option<char>, Option<char>, Option<char>) {
    let Some(found) = captures.get(0) else { return (None, None, None) };
    let mut after = text[found.end()..].chars();
    (text[..found.start()].chars().next_back(), after.next(), after.next())
}

/// Part of a longer number, such as a version of five parts or a decimal fraction.
fn goes_on(text: &str, captures: &Captures<'_>) -> bool {
    let (before, after, second) = around(text, captures);
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    matches!(before, Some('.' | '-' | '_' | '/' | '=' | '#')) && !text.starts_with(['.', '-', '/'])
        || before.is_some_and(char::is_alphanumeric)
        || (matches!(after, Some('.' | '-' | ',' | '/' | ':')) && digit(second))
}

fn is_card(_: &str, captures: &Captures<'_>) -> bool {
    let digits: Vec<u32> = whole(captures).chars().filter_map(|c| c.to_digit(10)).collect();
    let length = (13..=19).contains(&digits.len());
    let varied = digits.iter().any(|digit| *digit != digits[0]);
    length && varied && luhn(&digits)
}

/// The check digit of ISO/IEC 7812.
fn luhn(digits: &[u32]) -> bool {
    let doubled = |(i, &digit): (usize, &u32)| match (i % 2, digit * 2) {
        (0, _) => digit,
        (_, double) if double > 9 => double - 9,
        (_, double) => double,
    };
    digits.iter().rev().enumerate().map(doubled).sum::<u32>().is_multiple_of(10)
}

/// A loopback or unspecified address names nobody.
fn is_ipv4(text: &str, captures: &Captures<'_>) -> bool {
    let (before, after, second) = around(text, captures);
    let part = matches!(before, Some('.')) || (after == Some('.') && second.is_some_and(|c| c.is_ascii_digit()));
    let address = whole(captures).parse::<Ipv4Addr>();
    !part && address.is_ok_and(|address| !address.is_loopback() && !address.is_unspecified())
}

fn is_ipv6(text: &str, captures: &Captures<'_>) -> bool {
    let (before, after, _) = around(text, captures);
    let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == ':');
    let found = whole(captures);
    // A clock time and `a::b` in source code parse as addresses; real ones have digits and more than two groups.
    let groups = found.split(':').filter(|group| !group.is_empty()).count();
    let telling = found.bytes().any(|byte| byte.is_ascii_digit()) && (groups > 2 || found.contains("::"));
    let address = found.parse::<Ipv6Addr>();
    let one = |address: Ipv6Addr| !address.is_loopback() && !address.is_unspecified();
    !word(before) && !word(after) && telling && address.is_ok_and(one)
}

fn is_phone(text: &str, captures: &Captures<'_>) -> bool {
    let found = whole(captures);
    let digits = found.bytes().filter(u8::is_ascii_digit).count();
    let (before, ..) = around(text, captures);
    let sum = matches!(before, Some('$' | '€' | '£' | '+' | '*' | '^' | '=' | '@' | '#' | '\\'));
    let pairs = found.matches('(').count() == found.matches(')').count();
    (7..=15).contains(&digits) && !sum && pairs && !is_date(found) && !goes_on(text, captures)
}

/// `01-12-2024`, `01/12/24` and the like.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split(['-', '/', '.']).collect();
    let numbers: Vec<u32> = parts.iter().filter_map(|part| part.parse().ok()).collect();
    let short = parts.iter().all(|part| part.len() == 2 || part.len() == 4);
    parts.len() == 3 && numbers.len() == 3 && short && numbers[0] <= 31 && numbers[1] <= 31
}

/// Made by a machine: letters and digits mixed, no word of prose or code.
fn is_named_key(_: &str, captures: &Captures<'_>) -> bool {
    let value = captures.name("value").map_or("", |value| value.as_str());
    let spaced = captures.name("sign").is_some_and(|sign| sign.as_str().trim().is_empty());
    let bearer = captures.name("name").is_some_and(|name| name.as_str().eq_ignore_ascii_case("bearer"));
    let digits = value.bytes().filter(u8::is_ascii_digit).count();
    let letters = value.bytes().filter(u8::is_ascii_alphabetic).count();
    (!spaced || bearer) && digits >= 3 && letters >= 3 && !value.contains("://")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn redact(text: &str) -> String {
        let mut found = Found::default();
        Redactor::new(&Pii::ALL).unwrap().redact(text, &mut found).unwrap_or_else(|| text.to_string())
    }

    #[test]
    fn each_kind_is_found_and_counted() {
        let mut found = Found::default();
        let text = "Write to jo.o'neil+x@mail.example.co.uk, call +49 (0)30 901820 or 555-234-5678, card 4111 1111 1111 1111, \
                    host 10.1.2.3 and 2001:db8::ff00:42:8329.";
        let redacted = Redactor::new(&Pii::ALL).unwrap().redact(text, &mut found).unwrap();
        assert_eq!(redacted, "Write to [EMAIL], call [PHONE] or [PHONE], card [CARD], host [IP] and [IP].");
        assert_eq!(found, [1, 2, 1, 2, 0]);
        let only = Redactor::new(&[Pii::Email]).unwrap();
        assert_eq!(only.redact("a@b.org 10.1.2.3", &mut found).as_deref(), Some("[EMAIL] 10.1.2.3"));
    }

    #[test]
    fn telephones_of_many_countries() {
        for number in [
            "+1 415 555 2671",
            "+14155552671",
            "+44 20 7183 8750",
            "+33 1 42 68 53 00",
            "+91 98765 43210",
            "+86 138 1234 5678",
            "0049 89 636 48018",
            "(212) 555-2368",
            "212.555.2368",
            "1-800-555-2368",
            "030 901820",
            "0171 2345678",
            "089/63648018",
            "+41 44 668 18 00",
        ] {
            assert_eq!(redact(&format!("call {number} now")), "call [PHONE] now", "{number}");
        }
    }

    #[test]
    fn numbers_that_are_nobodys_stay() {
        for text in [
            "on 2024-01-15 at 10:30:00",
            "01-12-2024 or 01/12/2024",
            "version 1.2.3.4.5",
            "pi is 3.14159265358979",
            "1234567 items",
            "4111 1111 1111 1112",
            "0000 0000 0000 0000",
            "127.0.0.1 and 0.0.0.0 and ::1",
            "std::vec::Vec and a::b",
            "999.1.1.1",
            "12:34:56",
            "room 555-1234",
            "$1,234,567.89",
            "ISBN 978-3-16-148410-0",
            "user@localhost",
            "docker run -p 8080:80 nginx:1.25",
            "f(0) = 12 and g(1) = 300",
            "the secret ingredient_of_this_recipe",
            "token: tokenizer_config_json",
            "chr1:12345-67890",
            "a1b2c3d4-0012-4567-89ab-0123456789ab",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    #[test]
    fn check_digits_are_luhns() {
        for number in
            ["4242424242424242", "5555555555554444", "378282246310005", "6011111111111117", "3530111333300000"]
        {
            assert_eq!(redact(number), "[CARD]");
        }
        let digits = |text: &str| text.chars().filter_map(|c| c.to_digit(10)).collect::<Vec<_>>();
        // The example of the standard, and its neighbour.
        assert!(luhn(&digits("17893729974")) && !luhn(&digits("17893729975")));
    }

    #[test]
    fn secrets_by_form_and_by_name() {
        // Put together here, so that no scanner takes them for real ones.
        let made = |start: &str, n: usize| format!("{start}{}", "aB3dE5gH7jK9".repeat(8).get(..n).unwrap());
        for secret in [
            made("sk-", 48),
            made("ghp_", 36),
            made("hf_", 34),
            made("AIza", 35),
            made("sk_live_", 24),
            made("glpat-", 20),
            format!("AKIA{}", "ABCD2345EFGH6789"),
            format!("xoxb-{}", "123456789012-abcDEF"),
            format!("{}.{}.{}", made("eyJ", 20), made("eyJ", 30), made("x", 40)),
        ] {
            assert_eq!(redact(&format!("use {secret} here")), "use [KEY] here", "{secret}");
        }
        assert_eq!(redact("api_key = \"a1b2c3d4e5f6a7b8c9\""), "api_key = \"[KEY]\"");
        assert_eq!(redact("Authorization: Bearer abc123def456ghi789jkl"), "Authorization: Bearer [KEY]");
        let pem = format!("-----BEGIN RSA {0}-----\nMIIE\n-----END RSA {0}-----", "PRIVATE KEY");
        assert_eq!(redact(&format!("x\n{pem}\ny")), "x\n[KEY]\ny");
    }
}
