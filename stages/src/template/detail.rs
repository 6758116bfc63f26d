//! Training by character ranges: which stretches of a message's content are trained.
//!
//! Offsets count characters of the content as it is in the data, the end included, as Axolotl's `training_detail` has it.
//! A content given as parts with `train` or `weight` flags means the same.

use serde_json::{Map, Value};

use super::RoleSpan;
use super::spans::{Piece, Span};

/// A stretch of content that is trained, and of whose tokens those that lie in it mostly are.
pub const STRETCH: i8 = 2;
/// The end of a turn whose content is trained by stretches: only what ends the turn is trained.
pub const TURN_END: i8 = 3;

/// Trained byte ranges of a message's content; none where the message says nothing.
pub type Detail = Option<Vec<(usize, usize)>>;

/// Takes the ranges out of a message, so that no template sees them. Flagged parts become one text.
pub fn take(message: &mut Map<String, Value>) -> Result<Detail, String> {
    let listed = message.shift_remove("train_detail");
    if let Some(detail) = parts(message) {
        return Ok(Some(detail));
    }
    let Some(listed) = listed else { return Ok(None) };
    let ranges = listed.as_array().map(|ranges| ranges.iter().map(range).collect::<Option<Vec<_>>>());
    let Some(ranges) = ranges.flatten() else {
        return Err(
            "training details are a list of {begin_offset, end_offset, train}, and this message has others".into()
        );
    };
    if ranges.is_empty() {
        // Nothing is named, so nothing is trained, unless the message says that all of it is.
        message.entry("train").or_insert(Value::Bool(false));
        return Ok(None);
    }
    let Some(content) = message.get("content").and_then(Value::as_str) else {
        return Err("training details need a content that is one text".into());
    };
    let byte = |n: usize| content.char_indices().nth(n).map_or(content.len(), |(at, _)| at);
    let trained = ranges.iter().filter(|(.., train)| *train);
    Ok(Some(trained.map(|&(begin, end, _)| (byte(begin), byte(end + 1))).collect()))
}

fn range(range: &Value) -> Option<(usize, usize, bool)> {
    let offset = |key: &str| range.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    Some((offset("begin_offset")?, offset("end_offset")?, range.get("train")?.as_bool()?))
}

/// Joins a content of parts of which one has a flag of its own.
fn parts(message: &mut Map<String, Value>) -> Detail {
    let Some(Value::Array(parts)) = message.get("content") else { return None };
    let flag = |part: &Value| match (part.get("train"), part.get("weight")) {
        (Some(train), _) => train.as_bool(),
        (None, Some(weight)) => weight.as_f64().map(|weight| weight != 0.0),
        (None, None) => None,
    };
    if !parts.iter().any(|part| flag(part).is_some()) {
        return None;
    }
    let (mut text, mut trained) = (String::new(), Vec::new());
    for part in parts {
        let own = ["text", "content", "value"].into_iter().find_map(|key| part.get(key).and_then(Value::as_str));
        let start = text.len();
        text.push_str(own.unwrap_or_default());
        if flag(part).unwrap_or(true) && text.len() > start {
            trained.push((start, text.len()));
        }
    }
    message.insert("content".into(), text.into());
    Some(trained)
}

/// The spans of a turn that is trained by stretches: each stretch where the rendering shows it, then the turn's end.
pub fn spans(detail: &[(usize, usize)], turn: &Span, pieces: &[Piece], role: &str) -> Vec<RoleSpan> {
    let mut spans = Vec::new();
    for &(from, to) in detail {
        for piece in pieces.iter().filter(|piece| piece.message == turn.message) {
            let length = piece.end - piece.start;
            let (from, to) = (from.max(piece.source), to.min(piece.source + length));
            if from < to {
                let place = |at: usize| (piece.start + at - piece.source) as i32;
                spans.push(RoleSpan {
                    start: place(from),
                    end: place(to),
                    limit: 0,
                    role: role.into(),
                    train: STRETCH,
                });
            }
        }
    }
    let end = turn.end as i32;
    spans.push(RoleSpan { start: end, end, limit: turn.limit as i32, role: role.into(), train: TURN_END });
    spans
}
