//! Which rows go, and why: rules over a batch's measures, as polars expressions.

use pipe_engine::task::TaskError;
use polars::prelude::*;
use regex::Regex;
use serde::{Serialize, Serializer};

use super::contamination::Evaluated;
use super::edit::{Editor, Edits};
use super::measure::{Measures, repetition};
use super::section::{Clean, Contamination, Profanity};
use super::{language, near_sketch};
use crate::alike::{Likeness, Sketch};
use crate::conversation::{Content, Example};

/// A row's measures, what each finding rests on, and its new form where it was changed.
pub struct Candidate {
    pub measures: Measures,
    pub repetition: f64,
    pub language: Language,
    pub unmatched: bool,
    /// Which expression was found.
    pub matched: Option<usize>,
    pub profane: Option<String>,
    pub contaminated: Option<String>,
    pub edits: Edits,
    pub changed: Option<Changed>,
    pub sketch: Option<Sketch>,
    /// The beginning of the row, for samples.
    pub excerpt: String,
}

/// What a changed row became.
pub struct Changed {
    pub data: String,
    pub content: Content,
}

/// What language detection says of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Language {
    Unasked,
    /// One of those wanted.
    Wanted,
    /// Too short, or not sure enough.
    Unsure,
    Other(language::Detected),
}

/// Why a row is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    Invalid,
    Ranges,
    Empty,
    TooShort,
    TooLong,
    FewWords,
    ManyWords,
    FewLetters,
    Repetitive,
    Language,
    Unmatched,
    Matched,
    Profane,
    Contaminated,
    Duplicate,
    NearDuplicate,
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Invalid => "invalid",
            Reason::Ranges => "ranges",
            Reason::Empty => "empty",
            Reason::TooShort => "too_short",
            Reason::TooLong => "too_long",
            Reason::FewWords => "few_words",
            Reason::ManyWords => "many_words",
            Reason::FewLetters => "few_letters",
            Reason::Repetitive => "repetitive",
            Reason::Language => "language",
            Reason::Unmatched => "unmatched",
            Reason::Matched => "matched",
            Reason::Profane => "profane",
            Reason::Contaminated => "contaminated",
            Reason::Duplicate => "duplicate",
            Reason::NearDuplicate => "near_duplicate",
        }
    }
}

/// Everything that judging a row needs, made once per run.
pub struct Judge<'a> {
    clean: &'a Clean,
    editor: Editor,
    keep: Vec<Regex>,
    drop: Vec<Regex>,
    pub evaluated: Option<Evaluated>,
    pub likeness: Option<Likeness>,
}

/// Characters of a row that a sample shows.
const EXCERPT: usize = 160;

impl<'a> Judge<'a> {
    pub fn new(clean: &'a Clean, ctx: &pipe_engine::task::Context) -> Result<Judge<'a>, TaskError> {
        let compile = |patterns: &[String]| -> Result<Vec<Regex>, TaskError> {
            let one = |pattern: &String| {
                Regex::new(pattern)
                    .map_err(|e| TaskError::Input(format!("clean: `{pattern}` is not a regular expression: {e}")))
            };
            patterns.iter().map(one).collect()
        };
        Ok(Judge {
            clean,
            editor: Editor::new(clean, ctx)?,
            keep: compile(&clean.keep_matching)?,
            drop: compile(&clean.drop_matching)?,
            evaluated: Evaluated::read(clean, ctx)?,
            likeness: clean.near.map(|(threshold, words)| Likeness::new(threshold, words as usize)),
        })
    }

    /// Changes and measures one row.
    pub fn candidate(&self, data: &str) -> Result<Candidate, TaskError> {
        let mut example = Example::parse(data).map_err(|e| TaskError::Failed(format!("a row between stages: {e}")))?;
        let edits = self.editor.edit(&mut example);
        let found = |pattern: &Regex| example.texts().iter().any(|text| pattern.is_match(text));
        let clean = self.clean;
        let drops = clean.profanity == Profanity::Drop;
        let words = self.editor.profanity.as_ref().filter(|_| drops);
        let first = |words: &super::profanity::Words| example.texts().iter().find_map(|text| words.first(text));
        Ok(Candidate {
            measures: Measures::of(&example),
            repetition: clean.max_repetition.map_or(0.0, |_| repetition(&example)),
            language: self.language(&example),
            unmatched: !self.keep.is_empty() && !self.keep.iter().any(found),
            matched: self.drop.iter().position(found),
            profane: words.and_then(first),
            contaminated: self.evaluated.as_ref().and_then(|evaluated| evaluated.shared(&example)),
            changed: edits.any().then(|| Changed { data: example.to_data(), content: Content::of(&example) }),
            edits,
            sketch: self.likeness.map(|likeness| near_sketch(likeness, &example)),
            excerpt: excerpt(&example),
        })
    }

    fn language(&self, example: &Example) -> Language {
        let Some(least) = self.clean.min_language_confidence else { return Language::Unasked };
        match language::detect(example) {
            Some(found) if self.clean.languages.iter().any(|code| code == found.code) => Language::Wanted,
            Some(found) if found.confidence >= least => Language::Other(found),
            _ => Language::Unsure,
        }
    }

    /// Why, in words, for a sample; empty where the rule's name says it all.
    pub fn detail(&self, reason: Reason, row: &Candidate) -> String {
        match reason {
            Reason::TooShort | Reason::TooLong => format!("{} characters", row.measures.chars),
            Reason::FewWords | Reason::ManyWords => format!("{} words", row.measures.words),
            Reason::FewLetters => format!("{:.2} letters and digits", row.measures.alnum),
            Reason::Repetitive => format!("{:.2} repeated", row.repetition),
            Reason::Language => match row.language {
                Language::Other(found) => format!("{}, {:.2} sure", found.code, found.confidence),
                _ => String::new(),
            },
            Reason::Matched => row.matched.and_then(|at| self.clean.drop_matching.get(at)).cloned().unwrap_or_default(),
            // The word itself would be in every log.
            Reason::Profane => {
                row.profane.as_ref().map(|word| format!("{} characters", word.chars().count())).unwrap_or_default()
            }
            Reason::Contaminated => row.contaminated.clone().unwrap_or_default(),
            Reason::Ranges => "its training ranges count characters that a change would move".to_string(),
            _ => String::new(),
        }
    }
}

fn excerpt(example: &Example) -> String {
    let mut out = String::new();
    let words = example.texts().into_iter().flat_map(str::split_whitespace);
    for word in words {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
        if out.len() > EXCERPT * 4 {
            break;
        }
    }
    match out.char_indices().nth(EXCERPT) {
        Some((at, _)) => out[..at].to_string() + "…",
        None => out,
    }
}

/// The rule that drops each row, if any; the first that applies.
pub fn apply(clean: &Clean, rows: &[Candidate]) -> Result<Vec<Option<Reason>>, TaskError> {
    let failed = |e: PolarsError| TaskError::Failed(format!("a clean rule: {e}"));
    let flags = |of: fn(&Candidate) -> bool| rows.iter().map(of).collect::<Vec<_>>();
    let frame = df!(
        "chars" => rows.iter().map(|row| row.measures.chars as i64).collect::<Vec<_>>(),
        "words" => rows.iter().map(|row| row.measures.words as i64).collect::<Vec<_>>(),
        "answer" => rows.iter().map(|row| row.measures.answer as i64).collect::<Vec<_>>(),
        "alnum" => rows.iter().map(|row| row.measures.alnum).collect::<Vec<_>>(),
        "repetition" => rows.iter().map(|row| row.repetition).collect::<Vec<_>>(),
        "valid" => flags(|row| row.measures.valid),
        "ranges_lost" => flags(|row| row.edits.ranges_lost),
        "foreign" => flags(|row| matches!(row.language, Language::Other(_))),
        "unmatched" => flags(|row| row.unmatched),
        "matched" => flags(|row| row.matched.is_some()),
        "profane" => flags(|row| row.profane.is_some()),
        "contaminated" => flags(|row| row.contaminated.is_some()),
    )
    .map_err(failed)?;
    let rules = rules(clean);
    let mut verdict = lit(0u32);
    for (i, (_, rule)) in rules.iter().enumerate().rev() {
        verdict = when(rule.clone()).then(lit(i as u32 + 1)).otherwise(verdict);
    }
    let judged = frame.lazy().select([verdict.cast(DataType::UInt32).alias("verdict")]).collect().map_err(failed)?;
    let verdicts = judged.column("verdict").map_err(failed)?.u32().map_err(failed)?;
    Ok(verdicts.iter().map(|rule| rule.filter(|&rule| rule > 0).map(|rule| rules[rule as usize - 1].0)).collect())
}

/// The rules in force, in the order in which they apply.
fn rules(clean: &Clean) -> Vec<(Reason, Expr)> {
    let mut rules = vec![(Reason::Invalid, col("valid").not()), (Reason::Ranges, col("ranges_lost"))];
    if clean.drop_empty {
        rules.push((Reason::Empty, col("answer").eq(lit(0i64)).or(col("chars").eq(lit(0i64)))));
    }
    let least = |column: &str, least: u64| col(column).lt(lit(bound(least)));
    let most = |column: &str, most: u64| col(column).gt(lit(bound(most)));
    let sizes = [
        (Reason::TooShort, clean.min_chars.map(|n| least("chars", n))),
        (Reason::TooLong, clean.max_chars.map(|n| most("chars", n))),
        (Reason::FewWords, clean.min_words.map(|n| least("words", n))),
        (Reason::ManyWords, clean.max_words.map(|n| most("words", n))),
        (Reason::FewLetters, clean.min_alnum_ratio.map(|share| col("alnum").lt(lit(share)))),
        (Reason::Repetitive, clean.max_repetition.map(|share| col("repetition").gt(lit(share)))),
    ];
    rules.extend(sizes.into_iter().filter_map(|(reason, rule)| Some((reason, rule?))));
    rules.push((Reason::Language, col("foreign")));
    rules.push((Reason::Unmatched, col("unmatched")));
    rules.push((Reason::Matched, col("matched")));
    rules.push((Reason::Profane, col("profane")));
    if clean.contamination == Contamination::Drop {
        rules.push((Reason::Contaminated, col("contaminated")));
    }
    rules
}

/// Signed, because polars folds unsigned literals beyond that range only with a feature that costs minutes to build.
fn bound(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
