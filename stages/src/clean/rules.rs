//! Which rows go, and why: rules over a batch's measures, as polars expressions.

use polars::prelude::*;

use pipe_engine::task::TaskError;

use super::Clean;
use crate::conversation::{Content, Example};

/// A row's measures, and its new form where normalisation changed it.
pub struct Candidate {
    pub chars: u64,
    pub answer_chars: u64,
    pub valid: bool,
    pub changed: Option<Changed>,
    pub sketch: Option<super::near::Sketch>,
}

/// What a changed row became.
pub struct Changed {
    pub data: String,
    pub content: Content,
}

/// Why a row is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Empty,
    Invalid,
    TooShort,
    TooLong,
    Duplicate,
    NearDuplicate,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::Invalid => "invalid",
            Reason::TooShort => "too_short",
            Reason::TooLong => "too_long",
            Reason::Duplicate => "duplicate",
            Reason::NearDuplicate => "near_duplicate",
        }
    }
}

impl Candidate {
    pub fn new(example: &Example, changed: bool, sketch: Option<super::near::Sketch>) -> Candidate {
        let chars = match example {
            // Tokens have no texts; their number stands in.
            Example::Tokens { input_ids, .. } => input_ids.len() as u64,
            _ => example.texts().iter().map(|text| text.chars().count() as u64).sum(),
        };
        let changed = changed.then(|| Changed { data: example.to_data(), content: Content::of(example) });
        Candidate { chars, answer_chars: answer_size(example), valid: is_valid(example), changed, sketch }
    }
}

/// The rule that drops each row, if any; the first that applies.
pub fn apply(clean: &Clean, rows: &[Candidate]) -> Result<Vec<Option<Reason>>, TaskError> {
    let failed = |e: PolarsError| TaskError::Failed(format!("a clean rule: {e}"));
    let frame = df!(
        "chars" => rows.iter().map(|row| row.chars as i64).collect::<Vec<_>>(),
        "answer" => rows.iter().map(|row| row.answer_chars as i64).collect::<Vec<_>>(),
        "valid" => rows.iter().map(|row| row.valid).collect::<Vec<_>>(),
    )
    .map_err(failed)?;
    let reasons = [Reason::Invalid, Reason::Empty, Reason::TooShort, Reason::TooLong];
    let rules = [
        col("valid").not(),
        lit(clean.drop_empty).and(col("answer").eq(lit(0i64)).or(col("chars").eq(lit(0i64)))),
        col("chars").lt(lit(bound(clean.min_chars.unwrap_or(0)))),
        col("chars").gt(lit(bound(clean.max_chars.unwrap_or(u64::MAX)))),
    ];
    let mut verdict = lit(0u32);
    for (i, rule) in rules.into_iter().enumerate().rev() {
        verdict = when(rule).then(lit(i as u32 + 1)).otherwise(verdict);
    }
    let judged = frame.lazy().select([verdict.cast(DataType::UInt32).alias("verdict")]).collect().map_err(failed)?;
    let verdicts = judged.column("verdict").map_err(failed)?.u32().map_err(failed)?;
    Ok(verdicts.iter().map(|rule| rule.filter(|&rule| rule > 0).map(|rule| reasons[rule as usize - 1])).collect())
}

/// Signed, because polars folds unsigned literals beyond that range only with a feature that costs minutes to build.
fn bound(chars: u64) -> i64 {
    i64::try_from(chars).unwrap_or(i64::MAX)
}

/// How much there is to learn: characters of answers, or tokens. A message that calls tools says something without text.
fn answer_size(example: &Example) -> u64 {
    let size = |text: &str| text.trim().chars().count() as u64;
    match example {
        Example::Chat { messages, .. } => messages
            .iter()
            .filter(|message| message.get("role").and_then(|role| role.as_str()).is_none_or(|role| role != "system"))
            .map(|message| {
                let texts = message.get("content").map_or(0, |content| match content {
                    serde_json::Value::String(text) => size(text),
                    serde_json::Value::Array(parts) => parts.len() as u64,
                    _ => 0,
                });
                texts + u64::from(message.len() > 2)
            })
            .sum(),
        Example::Instruct { output, .. } => size(output),
        Example::Completion { text } => size(text),
        Example::Segments { segments } => segments.iter().filter(|s| s.label).map(|s| size(&s.text)).sum(),
        Example::Tokens { labels, .. } => labels.iter().filter(|&&label| label != -100).count() as u64,
    }
}

/// Whether the row can be rendered at all: messages have roles, tokens have as many labels and are not negative.
fn is_valid(example: &Example) -> bool {
    match example {
        Example::Chat { messages, .. } => messages
            .iter()
            .all(|message| message.get("role").and_then(|role| role.as_str()).is_some_and(|r| !r.is_empty())),
        Example::Tokens { input_ids, labels } => {
            input_ids.len() == labels.len() && input_ids.iter().all(|&id| (0..=i64::from(i32::MAX)).contains(&id))
        }
        _ => true,
    }
}
