//! Changes to a row's texts, in this order: HTML and boilerplate out, normalised, personal data and strong language replaced.

use pipe_engine::task::{Context, TaskError};
use serde_json::{Map, Value};

use super::normal::normal;
use super::profanity::Words;
use super::redact::{Found, Redactor};
use super::section::{Clean, Normalize, Pii, Profanity};
use super::{boilerplate, html};
use crate::conversation::Example;

/// The changes that a section asks for, ready to be made.
pub struct Editor {
    strip_html: bool,
    strip_boilerplate: bool,
    normalize: Normalize,
    redactor: Option<Redactor>,
    mask: bool,
    /// Looked for where strong language is masked or its rows dropped.
    pub profanity: Option<Words>,
}

/// What was changed in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    pub html: bool,
    pub boilerplate: bool,
    pub normalized: bool,
    pub masked: bool,
    pub redacted: Found,
    /// A message that says by character ranges what is trained would have changed: the ranges would point elsewhere.
    pub ranges_lost: bool,
}

impl Edits {
    pub fn any(&self) -> bool {
        self.html || self.boilerplate || self.normalized || self.masked || self.redacted.iter().any(|&n| n > 0)
    }
}

impl Editor {
    pub fn new(clean: &Clean, ctx: &Context) -> Result<Editor, TaskError> {
        let swears = clean.profanity != Profanity::Keep;
        let list = ctx.files.get(super::PROFANITY_ROLE).map(|path| path.as_path());
        Ok(Editor {
            strip_html: clean.strip_html,
            strip_boilerplate: clean.strip_boilerplate,
            normalize: clean.normalize,
            redactor: if clean.redact.is_empty() { None } else { Some(Redactor::new(&clean.redact)?) },
            mask: clean.profanity == Profanity::Mask,
            profanity: swears.then(|| Words::load(list)).transpose()?,
        })
    }

    /// Changes every text of a row.
    pub fn edit(&self, example: &mut Example) -> Edits {
        let mut edits = Edits::default();
        // Segments are joined without anything between: white space at their ends is content.
        let trims = !matches!(example, Example::Segments { .. });
        if let Example::Chat { messages, .. } = example {
            for message in messages {
                self.message(message, &mut edits);
            }
            return edits;
        }
        for text in example.texts_mut() {
            self.text(text, trims, &mut edits);
        }
        edits
    }

    fn message(&self, message: &mut Map<String, Value>, edits: &mut Edits) {
        let ranged = message.get("train_detail").is_some_and(|detail| !detail.is_null());
        let before = ranged.then(|| message.get("content").cloned());
        let mut one = Example::Chat { messages: vec![std::mem::take(message)], tools: None };
        for text in one.texts_mut() {
            self.text(text, true, edits);
        }
        if let Example::Chat { messages, .. } = &mut one
            && let Some(changed) = messages.pop()
        {
            *message = changed;
        }
        edits.ranges_lost |= before.is_some_and(|before| before.as_ref() != message.get("content"));
        // What a call hands to a tool is no prose, and may still name somebody.
        if let (Some(redactor), Some(calls)) = (&self.redactor, message.get_mut("tool_calls")) {
            redact_within(redactor, calls, &mut edits.redacted);
        }
    }

    fn text(&self, text: &mut String, trims: bool, edits: &mut Edits) {
        let set = |text: &mut String, changed: Option<String>, flag: &mut bool| {
            if let Some(changed) = changed.filter(|changed| changed != text) {
                *text = changed;
                *flag = true;
            }
        };
        if self.strip_html {
            set(text, html::strip(text), &mut edits.html);
        }
        if self.strip_boilerplate {
            set(text, boilerplate::strip(text), &mut edits.boilerplate);
        }
        if self.normalize != Normalize::Off {
            let normal = match normal(text, self.normalize, trims) {
                std::borrow::Cow::Owned(normal) => Some(normal),
                std::borrow::Cow::Borrowed(_) => None,
            };
            set(text, normal, &mut edits.normalized);
        }
        if let Some(redacted) = self.redactor.as_ref().and_then(|redactor| redactor.redact(text, &mut edits.redacted)) {
            *text = redacted;
        }
        if let (true, Some(words)) = (self.mask, &self.profanity) {
            set(text, words.mask(text), &mut edits.masked);
        }
    }
}

fn redact_within(redactor: &Redactor, value: &mut Value, found: &mut Found) {
    match value {
        Value::String(text) => {
            if let Some(redacted) = redactor.redact(text, found) {
                *text = redacted;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| redact_within(redactor, item, found)),
        Value::Object(map) => map.values_mut().for_each(|item| redact_within(redactor, item, found)),
        _ => {}
    }
}

/// Names of the counts of replaced data, in the order of [`Found`].
pub fn redacted_names() -> impl Iterator<Item = String> {
    Pii::ALL.iter().map(|kind| format!("redacted_{}", kind.name()))
}
