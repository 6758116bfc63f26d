//! Cuts a JSON stream into its rows without parsing them: the elements of one array, or values one after another.
//!
//! Only brackets and strings are followed. Whether a row is valid JSON is for the parser to say, with the row's number.

use std::io::BufRead;
use std::path::Path;

use pipe_engine::task::TaskError;

use super::source::{CHUNK_BYTES, Flow, Rows, Span, Take, bad_row, cut_off};

/// The cutter's place in the stream.
pub struct Elements<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
    spans: Vec<Span>,
    /// Next byte to look at.
    at: usize,
    /// Start of the row being read.
    start: Option<usize>,
    depth: usize,
    in_text: bool,
    escaped: bool,
    rows: u64,
    line: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// Rows follow one another.
    Stream,
    /// Within an array, where a row may start. `first` right after `[`.
    Item {
        first: bool,
    },
    /// Within an array, after a row.
    Separator,
    /// After the array.
    End,
}

impl<'a> Elements<'a> {
    pub fn new(path: &'a Path) -> Self {
        Elements {
            path,
            bytes: Vec::new(),
            spans: Vec::new(),
            at: 0,
            start: None,
            depth: 0,
            in_text: false,
            escaped: false,
            rows: 0,
            line: 1,
            state: State::Start,
        }
    }

    /// Reads to the end of the stream.
    pub fn read(mut self, reader: &mut dyn BufRead, take: &mut Take<'_>) -> Result<(), TaskError> {
        loop {
            let block = reader.fill_buf().map_err(|e| cut_off(self.path, self.line, &e))?;
            let n = block.len();
            if n == 0 {
                break;
            }
            self.bytes.extend_from_slice(block);
            reader.consume(n);
            self.cut()?;
            if self.bytes.len() >= CHUNK_BYTES && !self.spans.is_empty() && self.hand_out(take)? == Flow::Enough {
                return Ok(());
            }
        }
        self.finish()?;
        self.hand_out(take).map(|_| ())
    }

    fn cut(&mut self) -> Result<(), TaskError> {
        while self.at < self.bytes.len() {
            if self.start.is_some() {
                self.follow();
            } else {
                let byte = self.bytes[self.at];
                self.between(byte)?;
                self.at += usize::from(self.start.is_none());
            }
        }
        Ok(())
    }

    /// One byte outside rows.
    fn between(&mut self, byte: u8) -> Result<(), TaskError> {
        match (byte, self.state) {
            (b'\n', _) => self.line += 1,
            (b' ' | b'\t' | b'\r', _) => {}
            (b'[', State::Start) => self.state = State::Item { first: true },
            (_, State::Start) => {
                self.state = State::Stream;
                self.open();
            }
            (b']', State::Item { first: true }) | (b']', State::Separator) => self.state = State::End,
            (b',', State::Separator) => self.state = State::Item { first: false },
            (b',' | b']', State::Item { .. }) => return Err(self.bad("a row is missing before this comma or bracket")),
            (_, State::Separator) => return Err(self.bad("a comma or `]` is missing after this row")),
            (_, State::End) => return Err(self.bad("the array ends, and more text follows")),
            (_, State::Stream | State::Item { .. }) => self.open(),
        }
        Ok(())
    }

    fn open(&mut self) {
        self.start = Some(self.at);
        self.depth = 0;
        self.in_text = false;
        self.escaped = false;
    }

    /// From `at` to the end of the row, or of what is there.
    fn follow(&mut self) {
        while self.at < self.bytes.len() {
            if self.escaped {
                self.escaped = false;
                self.at += 1;
                continue;
            }
            if self.in_text {
                let Some(found) = memchr::memchr2(b'"', b'\\', &self.bytes[self.at..]) else {
                    self.at = self.bytes.len();
                    return;
                };
                let quote = self.at + found;
                if self.bytes[quote] == b'\\' {
                    self.escaped = true;
                    self.at = quote + 1;
                    continue;
                }
                self.in_text = false;
                self.at = quote + 1;
            } else {
                match self.bytes[self.at] {
                    b'"' => self.in_text = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' if self.depth > 0 => self.depth -= 1,
                    // A bare word or number has no closing mark of its own: what follows it ends it.
                    // One that begins with such a mark is no JSON, and goes on to its end for the parser to refuse.
                    b',' | b']' | b'}' | b'\n' | b' ' if self.depth == 0 && self.start != Some(self.at) => {
                        return self.close(self.at);
                    }
                    _ => {
                        self.at += 1;
                        continue;
                    }
                }
                self.at += 1;
            }
            if self.depth == 0 && !self.in_text {
                return self.close(self.at);
            }
        }
    }

    fn close(&mut self, end: usize) {
        if let Some(start) = self.start.take() {
            self.rows += 1;
            self.line += self.bytes[start..end].iter().filter(|&&byte| byte == b'\n').count() as u64;
            self.spans.push(Span { start, end, place: self.rows });
        }
        if self.state != State::Stream {
            self.state = State::Separator;
        }
    }

    fn finish(&mut self) -> Result<(), TaskError> {
        if self.start.is_some() {
            if self.depth > 0 || self.in_text {
                let why = "the file ends in the middle of this row; is it truncated?";
                return Err(bad_row(self.path, self.rows + 1, why));
            }
            self.close(self.bytes.len());
        }
        match self.state {
            State::Item { .. } | State::Separator => {
                Err(self.bad("the file ends before the array's `]`; is it truncated?"))
            }
            State::Start | State::Stream | State::End => Ok(()),
        }
    }

    fn bad(&self, why: &str) -> TaskError {
        bad_row(self.path, self.rows.max(1), format!("{why} (line {})", self.line))
    }

    /// Gives away whole rows, keeps the row being read.
    fn hand_out(&mut self, take: &mut Take<'_>) -> Result<Flow, TaskError> {
        let keep = self.start.unwrap_or(self.at);
        let rest = self.bytes.split_off(keep.min(self.bytes.len()));
        let bytes = std::mem::replace(&mut self.bytes, rest);
        self.at -= keep;
        self.start = self.start.map(|_| 0);
        let spans = std::mem::take(&mut self.spans);
        if spans.is_empty() { Ok(Flow::More) } else { take(Rows::Json { bytes, spans }) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufReader, Cursor};

    use super::*;

    fn cut(text: &str, step: usize) -> Result<Vec<String>, String> {
        let mut reader = BufReader::with_capacity(step, Cursor::new(text.as_bytes()));
        let mut rows = Vec::new();
        let path = Path::new("d.json");
        let result = Elements::new(path).read(&mut reader, &mut |chunk| {
            let Rows::Json { bytes, spans } = chunk else { unreachable!() };
            rows.extend(spans.iter().map(|s| String::from_utf8_lossy(&bytes[s.start..s.end]).into_owned()));
            Ok(Flow::More)
        });
        result.map(|()| rows).map_err(|e| e.to_string())
    }

    #[test]
    fn rows_are_cut_wherever_the_blocks_end() {
        let text = "  [ {\"a\": \"x]}\\\"\\\\\"},\n {\"b\": [1, {\"c\": 2}]} , 17, \"t\\\\\" ]\n";
        for step in 1..text.len() {
            let rows = cut(text, step).unwrap();
            assert_eq!(
                rows,
                ["{\"a\": \"x]}\\\"\\\\\"}", "{\"b\": [1, {\"c\": 2}]}", "17", "\"t\\\\\""],
                "step {step}"
            );
        }
        assert_eq!(cut("{\"a\":\n1}\n{\"b\":2}{\"c\":3}", 4).unwrap(), ["{\"a\":\n1}", "{\"b\":2}", "{\"c\":3}"]);
        assert!(cut("[]", 8).unwrap().is_empty());
        assert!(cut("", 8).unwrap().is_empty());
    }

    #[test]
    fn broken_arrays_say_where() {
        for (text, row, why) in [
            ("[{\"a\":1} {\"a\":2}]", 1, "comma"),
            ("[{\"a\":1},]", 1, "missing before"),
            ("[{\"a\":1}, {\"a\":", 2, "truncated"),
            ("[{\"a\":1}", 1, "truncated"),
            ("[", 1, "truncated"),
            ("[{\"a\":1}] x", 1, "more text"),
        ] {
            let error = cut(text, 5).unwrap_err();
            assert!(error.starts_with(&format!("d.json:{row}: ")) && error.contains(why), "{text}: {error}");
        }
    }
}
