//! Python text as tokens, with logical lines: a line break inside brackets is none.

/// A token and where it begins, both from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub kind: Kind,
    pub line: usize,
    pub column: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Name(String),
    Int(i64),
    Float(f64),
    Text(String),
    Operator(&'static str),
    /// The end of a logical line.
    Newline,
}

/// Longest first, so that `**` is not two `*`.
const OPERATORS: &[&str] = &[
    "**=", "//=", ">>=", "<<=", "...", "**", "//", ">>", "<<", "==", "!=", "<=", ">=", "+=", "-=", "*=", "/=", "%=",
    "->", ":=", "(", ")", "[", "]", "{", "}", ",", ":", ".", ";", "=", "+", "-", "*", "/", "%", "<", ">", "@", "&",
    "|", "^", "~",
];

type Wrong = (usize, usize, String);

/// # Errors
/// Line, column and what is wrong: an unfinished string, a bracket without its mate, a character of no token.
pub fn tokens(text: &str) -> Result<Vec<Token>, Wrong> {
    let mut reader =
        Reader { rest: text.trim_start_matches('\u{feff}'), line: 1, column: 1, tokens: Vec::new(), open: Vec::new() };
    while !reader.rest.is_empty() {
        reader.next()?;
    }
    if let Some((line, column)) = reader.open.pop() {
        return Err((line, column, "this bracket is never closed".to_string()));
    }
    reader.push(Kind::Newline);
    Ok(reader.tokens)
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
    tokens: Vec<Token>,
    /// Where brackets were opened.
    open: Vec<(usize, usize)>,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<(), Wrong> {
        let Some(first) = self.rest.chars().next() else { return Ok(()) };
        match first {
            '\n' => {
                if self.open.is_empty() {
                    self.push(Kind::Newline);
                }
                self.skip(1);
            }
            c if c.is_whitespace() => self.skip(c.len_utf8()),
            '\\' => {
                // A continued line: the break does not count.
                let length = if self.rest.starts_with("\\\r\n") { 3 } else { 2 };
                self.skip(length.min(self.rest.len()));
            }
            '#' => self.skip(self.rest.find('\n').unwrap_or(self.rest.len())),
            '"' | '\'' => self.string(0)?,
            c if c.is_ascii_digit() => self.number(),
            '.' if self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number(),
            c if c.is_alphabetic() || c == '_' => self.word()?,
            _ => self.operator()?,
        }
        Ok(())
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, line: self.line, column: self.column });
    }

    fn skip(&mut self, bytes: usize) {
        for c in self.rest[..bytes].chars() {
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.rest = &self.rest[bytes..];
    }

    fn word(&mut self) -> Result<(), Wrong> {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let prefix = end <= 2 && word.chars().all(|c| "rRbBuUfF".contains(c));
        if prefix && self.rest[end..].starts_with(['"', '\'']) {
            return self.string(end);
        }
        self.push(Kind::Name(word.to_string()));
        self.skip(end);
        Ok(())
    }

    fn number(&mut self) {
        let mut end = 0;
        let bytes = self.rest.as_bytes();
        while let Some(&byte) = bytes.get(end) {
            let sign = (byte == b'+' || byte == b'-') && matches!(bytes.get(end.wrapping_sub(1)), Some(b'e' | b'E'));
            if !(byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_' || sign) {
                break;
            }
            end += 1;
        }
        let digits = self.rest[..end].replace('_', "");
        let kind = match (digits.parse(), digits.parse()) {
            (Ok(n), _) => Kind::Int(n),
            (_, Ok(n)) => Kind::Float(n),
            // Hexadecimal and complex numbers are settings of nothing.
            _ => Kind::Name(digits),
        };
        self.push(kind);
        self.skip(end);
    }

    /// A string after `prefix` letters; a formatted one keeps its braces.
    fn string(&mut self, prefix: usize) -> Result<(), Wrong> {
        let (line, column) = (self.line, self.column);
        let raw = self.rest[..prefix].contains(['r', 'R']);
        let body = &self.rest[prefix..];
        let quote = &body[..1];
        let triple = quote.repeat(3);
        let mark = if body.starts_with(&triple) { triple.as_str() } else { quote };
        let mut text = String::new();
        let mut chars = body[mark.len()..].char_indices();
        while let Some((at, c)) = chars.next() {
            if body[mark.len() + at..].starts_with(mark) {
                let end = prefix + mark.len() + at + mark.len();
                self.push(Kind::Text(text));
                self.skip(end);
                return Ok(());
            }
            match c {
                '\n' if mark.len() == 1 => break,
                '\\' if !raw => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, 'r')) => text.push('\r'),
                    Some((_, '\n')) => {}
                    Some((_, c @ ('\\' | '\'' | '"'))) => text.push(c),
                    Some((_, c)) => text.extend(['\\', c]),
                    None => break,
                },
                '\\' => {
                    text.push('\\');
                    text.extend(chars.next().map(|(_, c)| c));
                }
                c => text.push(c),
            }
        }
        Err((line, column, "this string is never closed".to_string()))
    }

    fn operator(&mut self) -> Result<(), Wrong> {
        let Some(sign) = OPERATORS.iter().find(|sign| self.rest.starts_with(**sign)) else {
            let c = self.rest.chars().next().unwrap_or_default();
            return Err((self.line, self.column, format!("`{c}` is no Python")));
        };
        match *sign {
            "(" | "[" | "{" => self.open.push((self.line, self.column)),
            ")" | "]" | "}" if self.open.pop().is_none() => {
                return Err((self.line, self.column, format!("`{sign}` closes nothing")));
            }
            _ => {}
        }
        self.push(Kind::Operator(sign));
        self.skip(sign.len());
        Ok(())
    }
}
