//! Other wordings of a request: templates around it, and typing mistakes within it.

use serde_json::{Map, Value};

use super::section::{Noise, Typo};
use crate::alike::mix;
use crate::clean::html::pieces;
use crate::conversation::Example;

/// Stands for the row's own request in a paraphrase template.
pub const REQUEST: &str = "{request}";

/// Rows of keys as they lie on a keyboard.
const KEYS: [&str; 3] = ["qwertyuiop", "asdfghjkl", "zxcvbnm"];
/// Shorter words are names of things more often than not.
const SHORTEST: usize = 4;

/// A row's last request; `None` where nobody asks.
pub fn request(example: &mut Example) -> Option<&mut String> {
    match example {
        Example::Instruct { instruction, .. } => Some(instruction),
        Example::Chat { messages, .. } => messages.iter_mut().rev().find_map(user_text),
        Example::Completion { .. } | Example::Segments { .. } | Example::Tokens { .. } => None,
    }
}

/// A copy with its last request put into a template.
pub fn reword(example: &Example, template: &str) -> Option<Example> {
    let mut copy = example.clone();
    let request = request(&mut copy)?;
    *request = template.replace(REQUEST, request);
    Some(copy)
}

/// A copy whose requests are mistyped; `None` where no word was.
pub fn mistype(example: &Example, noise: &Noise, seed: u64) -> Option<Example> {
    let mut copy = example.clone();
    let mut dice = Dice(seed);
    match &mut copy {
        Example::Instruct { instruction, .. } => *instruction = mistyped(instruction, noise, &mut dice),
        Example::Chat { messages, .. } => {
            for text in messages.iter_mut().filter_map(user_text) {
                *text = mistyped(text, noise, &mut dice);
            }
        }
        _ => return None,
    }
    (copy != *example).then_some(copy)
}

fn user_text(message: &mut Map<String, Value>) -> Option<&mut String> {
    if message.get("role").and_then(Value::as_str) != Some("user") {
        return None;
    }
    match message.get_mut("content") {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// Code is left as it is: there, every letter counts.
fn mistyped(text: &str, noise: &Noise, dice: &mut Dice) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for (piece, code) in pieces(text) {
        for word in piece.split_inclusive(char::is_whitespace) {
            let letters = word.trim_end();
            let core = letters.trim_end_matches([',', '.', '?', '!', ';', ':']);
            let plain = core.chars().count() >= SHORTEST && core.chars().all(char::is_alphabetic);
            if !code && plain && dice.chance() < noise.rate {
                let kind = noise.kinds[dice.below(noise.kinds.len())];
                out.push_str(&typo(letters, kind, dice));
                out.push_str(&word[letters.len()..]);
            } else {
                out.push_str(word);
            }
        }
    }
    out
}

fn typo(word: &str, kind: Typo, dice: &mut Dice) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    let end = letters.iter().rposition(|c| c.is_alphabetic()).unwrap_or(0);
    // The first letter stays but for its case: readers, and spelling checkers, hold on to it.
    let at = 1 + dice.below(end.max(1));
    match kind {
        Typo::Swap => letters.swap(at.min(end).max(2) - 1, at.min(end).max(2)),
        Typo::Drop => {
            letters.remove(at.min(end));
        }
        Typo::Double => letters.insert(at.min(end), letters[at.min(end)]),
        Typo::Neighbour => letters[at.min(end)] = neighbour(letters[at.min(end)], dice),
        Typo::Case => {
            let first = letters[0];
            let other: Vec<char> = match first.is_uppercase() {
                true => first.to_lowercase().collect(),
                false => first.to_uppercase().collect(),
            };
            letters.splice(0..1, other);
        }
    }
    letters.into_iter().collect()
}

fn neighbour(letter: char, dice: &mut Dice) -> char {
    let lower = letter.to_ascii_lowercase();
    let Some((row, at)) = KEYS.iter().find_map(|row| Some((row.as_bytes(), row.find(lower)?))) else { return letter };
    let beside: Vec<u8> =
        [at.checked_sub(1), Some(at + 1)].into_iter().flatten().filter_map(|i| row.get(i)).copied().collect();
    let key = char::from(beside[dice.below(beside.len())]);
    if letter.is_uppercase() { key.to_ascii_uppercase() } else { key }
}

/// Choices that depend on a seed alone.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    fn chance(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
