//! Strings that remember where they came from.
//!
//! A [`Text`] carries marks: byte ranges that were copied from a field of a message, that belong to a message's turn, or
//! that a `{% generation %}` block wrote. Every string operation of the interpreter keeps them in step, so the spans of a
//! rendered conversation are known by construction and never searched for.

use std::sync::Arc;

/// What a marked range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The message's `content`, or a text part of it.
    Content,
    /// Thinking that is kept beside the content.
    Reasoning,
    /// What the template wrote for the message's tool calls.
    ToolCalls,
    /// Everything written while a loop over messages stood at this one.
    Turn,
    /// Inside `{% generation %}`; belongs to no message in particular.
    Generation,
    /// An event, not a range: a loop begins.
    LoopBegin,
    /// An event: the loop has moved to this message.
    AtMessage,
    /// An event: the loop has moved to one of this message's tool calls.
    AtToolCall,
    /// An event: the loop is over.
    LoopEnd,
    GenerationBegin,
    GenerationEnd,
}

/// A byte range with its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub start: usize,
    pub end: usize,
    /// Index of the message; 0 and meaningless for [`Part::Generation`].
    pub message: u32,
    pub part: Part,
    /// Byte offset of `start` within the original field, when the bytes were copied unchanged.
    pub source: Option<usize>,
}

impl Mark {
    fn shifted(mut self, by: usize) -> Mark {
        self.start += by;
        self.end += by;
        self
    }
}

/// An immutable string with marks.
#[derive(Clone, Debug, Default)]
pub struct Text {
    pub text: Arc<str>,
    marks: Option<Arc<[Mark]>>,
}

impl Text {
    pub fn new(text: impl Into<Arc<str>>) -> Text {
        Text { text: text.into(), marks: None }
    }

    pub fn with_marks(text: impl Into<Arc<str>>, marks: Vec<Mark>) -> Text {
        Text { text: text.into(), marks: if marks.is_empty() { None } else { Some(marks.into()) } }
    }

    /// The whole of a message's field.
    pub fn origin(text: &str, message: u32, part: Part) -> Text {
        let mark = Mark { start: 0, end: text.len(), message, part, source: Some(0) };
        Text::with_marks(text, vec![mark])
    }

    pub fn marks(&self) -> &[Mark] {
        self.marks.as_deref().unwrap_or(&[])
    }

    /// Bytes `start..end`, which must lie on character boundaries.
    pub fn slice(&self, start: usize, end: usize) -> Text {
        if start == 0 && end == self.text.len() {
            return self.clone();
        }
        let kept = self.marks().iter().filter_map(|mark| clip(mark, start, end)).collect();
        Text::with_marks(&self.text[start..end], kept)
    }

    /// The same origin for new bytes: for changes such as upper case, where only the fact of origin survives.
    pub fn rewritten(&self, text: String) -> Text {
        let same = text.len() == self.text.len();
        let all = text.len();
        let marks = self.marks().iter().map(|mark| match same {
            true => Mark { source: None, ..*mark },
            false => Mark { start: 0, end: all, source: None, ..*mark },
        });
        let marks: Vec<Mark> = marks.collect();
        Text::with_marks(text, marks)
    }
}

fn clip(mark: &Mark, start: usize, end: usize) -> Option<Mark> {
    let (from, to) = (mark.start.max(start), mark.end.min(end));
    // An empty mark survives only where it was empty already, or where a trim left nothing of its text: it says where
    // an empty answer stands.
    let empty_is_meant = mark.start == mark.end || start == end;
    if from > to || (from == to && !empty_is_meant) {
        return None;
    }
    let source = mark.source.map(|at| at + (from - mark.start));
    Some(Mark { start: from - start, end: to - start, source, ..*mark })
}

/// A string being written.
#[derive(Default)]
pub struct Builder {
    pub text: String,
    pub marks: Vec<Mark>,
}

impl Builder {
    pub fn push(&mut self, piece: &Text) {
        let at = self.text.len();
        self.marks.extend(piece.marks().iter().map(|mark| mark.shifted(at)));
        self.text.push_str(&piece.text);
    }

    pub fn push_str(&mut self, piece: &str) {
        self.text.push_str(piece);
    }

    pub fn finish(self) -> Text {
        Text::with_marks(self.text, self.marks)
    }
}

/// The pieces one after another.
pub fn concat<'a>(pieces: impl IntoIterator<Item = &'a Text>) -> Text {
    let mut out = Builder::default();
    for piece in pieces {
        out.push(piece);
    }
    out.finish()
}
