//! Splits a template into text and tokens exactly as Jinja 3.1 does with `trim_blocks` and `lstrip_blocks`, and one
//! trailing newline of the source dropped.

use std::sync::Arc;

use super::render::TemplateError;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Data(Arc<str>),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(Arc<str>),
    Str(Arc<str>),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

/// Longest first.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";", "!",
];

/// A token and the line it starts on, counted from 1.
pub type Lexed = Vec<(Token, u32)>;

pub fn lex(source: &str) -> Result<Lexed, TemplateError> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starting: true, out: Vec::new() };
    lexer.root()?;
    let line = lexer.line;
    lexer.out.push((Token::End, line));
    Ok(lexer.out)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    /// Whether the last thing read ended a line, so that blanks before a block are an indent.
    line_starting: bool,
    out: Lexed,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn fail<T>(&self, message: impl Into<String>) -> Result<T, TemplateError> {
        Err(TemplateError::Syntax { line: self.line, message: message.into() })
    }

    fn advance(&mut self, bytes: usize) {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.bytes().filter(|&b| b == b'\n').count() as u32;
        if let Some(last) = passed.chars().last() {
            self.line_starting = last == '\n';
        }
        self.at += bytes;
    }

    fn root(&mut self) -> Result<(), TemplateError> {
        while self.at < self.source.len() {
            let Some((offset, opener)) = find_opener(self.rest()) else {
                let rest = self.rest();
                self.data(rest);
                self.advance(rest.len());
                return Ok(());
            };
            let text = &self.rest()[..offset];
            let after = &self.rest()[offset + 2..];
            let sign = after.chars().next().filter(|c| matches!(c, '-' | '+'));
            self.data(strip_before(text, sign, opener != "{{", self.line_starting));
            let raw = if opener == "{%" { raw_begin(&after[sign.map_or(0, |_| 1)..]) } else { None };
            self.advance(offset + 2 + sign.map_or(0, |_| 1));
            match (opener, raw) {
                ("{#", _) => self.comment()?,
                (_, Some(length)) => {
                    self.advance(length);
                    self.raw()?;
                }
                ("{%", None) => self.tag(Token::BlockBegin)?,
                _ => self.tag(Token::VariableBegin)?,
            }
        }
        Ok(())
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.out.push((Token::Data(text.into()), self.line));
        }
    }

    fn comment(&mut self) -> Result<(), TemplateError> {
        let Some(end) = self.rest().find("#}") else {
            return self.fail("a comment {# is never closed");
        };
        let sign = self.rest()[..end].chars().last();
        self.advance(end + 2);
        self.after_block(sign);
        Ok(())
    }

    /// What the end of a block or comment swallows.
    fn after_block(&mut self, sign: Option<char>) {
        match sign {
            Some('-') => {
                let blanks = self.rest().len() - self.rest().trim_start_matches(is_space).len();
                self.advance(blanks);
            }
            Some('+') => {}
            _ => {
                if self.rest().starts_with('\n') {
                    self.advance(1);
                }
            }
        }
    }

    fn raw(&mut self) -> Result<(), TemplateError> {
        let mut from = 0;
        while let Some(found) = self.rest()[from..].find("{%") {
            let open = from + found;
            let inner = &self.rest()[open + 2..];
            let sign = inner.chars().next().filter(|c| matches!(c, '-' | '+'));
            let body = inner[sign.map_or(0, |_| 1)..].trim_start_matches(is_space);
            if let Some(tail) = body.strip_prefix("endraw") {
                let close = tail.trim_start_matches(is_space);
                let end_sign = close.chars().next().filter(|c| matches!(c, '-' | '+'));
                if close[end_sign.map_or(0, |_| 1)..].starts_with("%}") {
                    let text = &self.rest()[..open];
                    self.data(strip_before(text, sign, true, self.line_starting));
                    let consumed = self.rest().len() - close.len() + end_sign.map_or(0, |_| 1) + 2;
                    self.advance(consumed);
                    self.after_block(end_sign);
                    return Ok(());
                }
            }
            from = open + 2;
        }
        self.fail("{% raw %} is never closed by {% endraw %}")
    }

    fn tag(&mut self, begin: Token) -> Result<(), TemplateError> {
        let block = begin == Token::BlockBegin;
        let (close, end) = if block { ("%}", Token::BlockEnd) } else { ("}}", Token::VariableEnd) };
        self.out.push((begin, self.line));
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let blanks = self.rest().len() - self.rest().trim_start_matches(is_space).len();
            self.advance(blanks);
            let rest = self.rest();
            if rest.is_empty() {
                return self.fail(format!("the tag is never closed by {close}"));
            }
            if open.is_empty() {
                let sign = rest.chars().next().filter(|&c| c == '-' || (block && c == '+'));
                if rest[sign.map_or(0, |_| 1)..].starts_with(close) {
                    self.out.push((end, self.line));
                    self.advance(2 + sign.map_or(0, |_| 1));
                    match (block, sign) {
                        (true, sign) => self.after_block(sign),
                        (false, Some(sign)) => self.after_block(Some(sign)),
                        (false, None) => {}
                    }
                    return Ok(());
                }
            }
            self.token(&mut open)?;
        }
    }

    fn token(&mut self, open: &mut Vec<&'static str>) -> Result<(), TemplateError> {
        let rest = self.rest();
        let first = rest.chars().next().unwrap_or(' ');
        let line = self.line;
        if first.is_ascii_digit() {
            let (token, length) = number(rest).or_else(|message| self.fail(message))?;
            self.out.push((token, line));
            self.advance(length);
        } else if first == '_' || first.is_alphabetic() {
            let length = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
            self.out.push((Token::Name(rest[..length].into()), line));
            self.advance(length);
        } else if first == '"' || first == '\'' {
            let Some(length) = string_length(rest, first) else {
                return self.fail("a string is never closed");
            };
            let text = unescape(&rest[1..length - 1]).or_else(|message| self.fail(message))?;
            self.out.push((Token::Str(text.into()), line));
            self.advance(length);
        } else if let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op)) {
            match *op {
                "(" | "[" | "{" => open.push(op),
                ")" | "]" | "}" => match (open.pop(), *op) {
                    (Some("("), ")") | (Some("["), "]") | (Some("{"), "}") => {}
                    _ => return self.fail(format!("unexpected '{op}'")),
                },
                _ => {}
            }
            self.out.push((Token::Op(op), line));
            self.advance(op.len());
        } else {
            return self.fail(format!("unexpected character {first:?}"));
        }
        Ok(())
    }
}

/// What Python's `str.isspace` holds to be white space, which is more than Rust does.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

fn find_opener(text: &str) -> Option<(usize, &'static str)> {
    let bytes = text.as_bytes();
    (0..bytes.len().saturating_sub(1)).find_map(|i| match (bytes[i], bytes[i + 1]) {
        (b'{', b'{') => Some((i, "{{")),
        (b'{', b'%') => Some((i, "{%")),
        (b'{', b'#') => Some((i, "{#")),
        _ => None,
    })
}

/// The text before a tag after `-`, or after `lstrip_blocks`, has taken its part.
fn strip_before(text: &str, sign: Option<char>, block: bool, line_starting: bool) -> &str {
    match sign {
        Some('-') => text.trim_end_matches(is_space),
        Some(_) => text,
        None if !block => text,
        None => {
            let line_start = text.rfind('\n').map_or(0, |i| i + 1);
            let indent = &text[line_start..];
            let alone = (line_start > 0 || line_starting) && !indent.is_empty() && indent.chars().all(is_space);
            if alone { &text[..line_start] } else { text }
        }
    }
}

/// The length of ` raw %}` (with what `-` swallows), when that is what follows `{%`.
fn raw_begin(after: &str) -> Option<usize> {
    let tail = after.trim_start_matches(is_space).strip_prefix("raw")?.trim_start_matches(is_space);
    let end = match tail.strip_prefix("-%}") {
        Some(end) => end.trim_start_matches(is_space),
        None => tail.strip_prefix("%}")?,
    };
    Some(after.len() - end.len())
}

fn string_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(i + 1),
            _ => {}
        }
    }
    None
}

fn number(text: &str) -> Result<(Token, usize), String> {
    let lower: String = text.chars().take(2).collect::<String>().to_ascii_lowercase();
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if lower == prefix {
            let length = text[2..].find(|c: char| c != '_' && !c.is_digit(radix)).map_or(text.len(), |i| i + 2);
            let digits = text[2..length].replace('_', "");
            let value = i128::from_str_radix(&digits, radix).map_err(|_| format!("bad number {}", &text[..length]))?;
            return Ok((Token::Int(value), length));
        }
    }
    let run =
        |from: usize| text[from..].find(|c: char| c != '_' && !c.is_ascii_digit()).map_or(text.len(), |i| from + i);
    let mut end = run(0);
    let mut float = false;
    let digit_at = |at: usize| text[at..].starts_with(|c: char| c.is_ascii_digit());
    if text[end..].starts_with('.') && digit_at(end + 1) {
        float = true;
        end = run(end + 1);
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        if digit_at(end + 1 + sign) {
            float = true;
            end = run(end + 1 + sign);
        }
    }
    let digits = text[..end].replace('_', "");
    let bad = || format!("bad number {}", &text[..end]);
    let token = match float {
        true => Token::Float(digits.parse().map_err(|_| bad())?),
        false => Token::Int(digits.parse().map_err(|_| bad())?),
    };
    Ok((token, end))
}

/// Python's escapes in a string literal; unknown ones stay as written.
fn unescape(text: &str) -> Result<String, String> {
    if !text.contains('\\') {
        return Ok(text.to_string());
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(kind) = chars.next() else { break };
        match kind {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(kind),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                let mut code = kind.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    chars.next();
                }
                out.push(char::from_u32(code).ok_or("bad octal escape")?);
            }
            'x' | 'u' | 'U' => {
                let digits = if kind == 'x' {
                    2
                } else if kind == 'u' {
                    4
                } else {
                    8
                };
                let mut code = 0u32;
                for _ in 0..digits {
                    let digit = chars.next().and_then(|c| c.to_digit(16)).ok_or(format!("bad \\{kind} escape"))?;
                    code = code * 16 + digit;
                }
                out.push(char::from_u32(code).ok_or(format!("\\{kind} escape {code:#x} is no character"))?);
            }
            other => {
                out.push('\\');
                out.push(other);
            }
        }
    }
    Ok(out)
}
