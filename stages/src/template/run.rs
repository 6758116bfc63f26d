//! What every Python-like operation needs: a budget of work, and failing with the message that Python would give.

use std::cell::Cell;
use std::sync::Arc;

use super::render::TemplateError;
use super::value::{Dict, SeqKind, Value};

pub type Evaluated<T> = Result<T, TemplateError>;

/// Evaluated arguments of a call.
#[derive(Default)]
pub struct CallArgs {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

thread_local! {
    // A render runs on one thread from start to end; minijinja's own fuel counts instructions, not bytes copied.
    static BUDGET: Cell<u64> = const { Cell::new(0) };
}

/// The budget of the render in progress on this thread.
pub struct Run;

impl Run {
    /// Begins a render with this many steps; a step is about 64 bytes copied.
    pub fn begin(steps: u64) {
        BUDGET.set(steps);
    }

    pub fn fail<T>(&self, message: impl Into<String>) -> Evaluated<T> {
        Err(TemplateError::Runtime { line: 0, message: message.into() })
    }

    pub fn burn(&mut self, steps: u64) -> Evaluated<()> {
        match BUDGET.get().checked_sub(steps) {
            Some(left) => {
                BUDGET.set(left);
                Ok(())
            }
            None => Err(TemplateError::Fuel),
        }
    }

    /// What a loop over the value would see.
    pub fn iterate(&mut self, value: &Value) -> Evaluated<Vec<Value>> {
        let items = match value {
            Value::Undefined(_) => Vec::new(),
            Value::Seq(seq) => seq.items.clone(),
            Value::Dict(dict) => keys(dict),
            Value::Str(text) => {
                let places = text.text.char_indices();
                places.map(|(at, c)| Value::Str(text.slice(at, at + c.len_utf8()))).collect()
            }
            Value::Generator(items) => items.lock().map(|mut items| items.take()).ok().flatten().unwrap_or_default(),
            other => return self.fail(format!("'{}' object is not iterable", other.type_name())),
        };
        self.burn(1 + items.len() as u64 / 8)?;
        Ok(items)
    }

    /// `len(value)`.
    pub fn length(&self, value: &Value) -> Evaluated<usize> {
        match value {
            Value::Undefined(_) => Ok(0),
            Value::Seq(seq) => Ok(seq.items.len()),
            Value::Dict(dict) => Ok(dict.entries.len()),
            Value::Str(text) => Ok(text.text.chars().count()),
            other => self.fail(format!("object of type '{}' has no len()", other.type_name())),
        }
    }
}

pub fn keys(dict: &Dict) -> Vec<Value> {
    dict.entries.iter().map(|(key, _)| key.clone()).collect()
}

/// A view of a dict's parts.
pub fn dict_part(dict: &Dict, kind: SeqKind) -> Value {
    let items = match kind {
        SeqKind::Keys => keys(dict),
        SeqKind::Values => dict.entries.iter().map(|(_, value)| value.clone()).collect(),
        _ => dict.entries.iter().map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()])).collect(),
    };
    Value::seq(kind, items)
}
