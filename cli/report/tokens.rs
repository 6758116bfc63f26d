//! Rows of tokens with what is trained bright and what is masked dim.

use super::style::{BOLD, DIM, GOOD, paint};

/// A token's text and whether it is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub trained: bool,
    /// Counts documents within a pack, from 1; 0 outside packs.
    pub segment: i64,
}

/// One row: its id, a line of numbers, and the text with neighbouring tokens of one kind joined.
pub fn row(id: &str, tokens: &[Token]) -> String {
    let trained = tokens.iter().filter(|token| token.trained).count();
    let head = format!("{}  {} tokens, {trained} trained", paint(BOLD, id), tokens.len());
    let mut out = String::new();
    for run in tokens.chunk_by(|a, b| a.trained == b.trained && a.segment == b.segment) {
        let text: String = run.iter().map(|token| visible(&token.text)).collect();
        out.push_str(&styled(&text, run[0].trained));
    }
    format!("{head}\n{out}\n")
}

/// Styles each line by itself, so that a pager or `less -R` keeps the colour.
fn styled(text: &str, trained: bool) -> String {
    let style = if trained { GOOD.bold() } else { DIM };
    let lines: Vec<String> =
        text.split('\n').map(|line| if line.is_empty() { String::new() } else { paint(style, line) }).collect();
    lines.join("\n")
}

/// Control characters other than line breaks and tabs are shown, not sent to the terminal.
fn visible(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => format!("\\u{{{:x}}}", c as u32),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// What the colours mean, once per listing.
pub fn legend() -> String {
    format!("{} {}", paint(GOOD.bold(), "trained"), paint(DIM, "masked"))
}
