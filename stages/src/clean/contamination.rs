//! Training rows that share text with evaluation rows.
//!
//! ```text
//! evaluation   What is the capital of France? -> Paris
//! training     what is the capital of france -> It is Paris.        (the same question)
//! ```
//! A training row is contaminated when it asks what an evaluation row asks, or shares a run of 13 words with one (the measure
//! of Brown et al. 2020). System prompts are left out, and runs found in more than ten evaluation rows: those are
//! instructions, no content.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;

use pipe_engine::task::{Context, TaskError};
use serde_json::Value;

use super::section::Clean;
use crate::alike::{mix, runs, words};
use crate::conversation::Example;
use crate::rows::{batches, text_column};

/// A run in more evaluation rows than this is an instruction that they share.
const SHARED: u32 = 10;
/// Questions of fewer words are too common to tell anything.
const SHORTEST_PROMPT: usize = 4;
const ROWS_PER_BATCH: usize = 2048;

/// What evaluation rows say.
pub struct Evaluated {
    words: usize,
    runs: HashSet<u64>,
    prompts: HashSet<u64>,
    pub rows: u64,
}

#[derive(Default)]
struct Reading {
    runs: HashMap<u64, u32>,
    prompts: HashSet<u64>,
    rows: u64,
}

/// Inputs of clean that hold evaluation rows are named so.
pub const ROLE: &str = "evaluation.";
/// Source files of clean that hold evaluation rows are named so.
pub const FILE_ROLE: &str = "contamination.";

impl Evaluated {
    /// Reads every evaluation row that a node is given; `None` where contamination is not looked for.
    pub fn read(clean: &Clean, ctx: &Context) -> Result<Option<Evaluated>, TaskError> {
        let Some(length) = clean.contamination_words.map(|length| length as usize) else { return Ok(None) };
        let mut reading = Reading::default();
        for (_, path) in ctx.inputs.iter().filter(|(role, _)| role.starts_with(ROLE)) {
            for batch in batches(path, &["data"], ROWS_PER_BATCH)? {
                ctx.cancel.check()?;
                let batch = batch?;
                let data = text_column(&batch, "data")?;
                for i in 0..batch.num_rows() {
                    let example = Example::parse(data.value(i));
                    let example = example.map_err(|e| TaskError::Failed(format!("a row between stages: {e}")))?;
                    reading.take(&spoken(&example), prompt(&example), length);
                }
            }
        }
        for (_, path) in ctx.files.iter().filter(|(role, _)| role.starts_with(FILE_ROLE)) {
            for row in file_rows(path)? {
                let texts: Vec<&str> = row.iter().map(String::as_str).collect();
                // Which column asks is not known: every text may be the question.
                reading.take(&texts, None, length);
                reading.prompts.extend(texts.iter().filter_map(|text| question(&words([*text]))));
            }
        }
        let runs = reading.runs.into_iter().filter(|(_, rows)| *rows <= SHARED).map(|(run, _)| run).collect();
        Ok(Some(Evaluated { words: length, runs, prompts: reading.prompts, rows: reading.rows }))
    }

    /// What a training row shares with evaluation rows, in words.
    pub fn shared(&self, example: &Example) -> Option<String> {
        if prompt(example).is_some_and(|prompt| self.prompts.contains(&prompt)) {
            return Some("asks what an evaluation row asks".to_string());
        }
        let words = words(spoken(example));
        if words.len() < self.words {
            return None;
        }
        let shared = runs(&words, self.words).iter().filter(|run| self.runs.contains(run)).count();
        (shared > 0).then(|| format!("shares {} of {} words with evaluation rows", plural(shared), self.words))
    }
}

fn plural(runs: usize) -> String {
    if runs == 1 { "a run".to_string() } else { format!("{runs} runs") }
}

impl Reading {
    fn take(&mut self, texts: &[&str], prompt: Option<u64>, length: usize) {
        self.rows += 1;
        self.prompts.extend(prompt);
        let words = words(texts.iter().copied());
        if words.len() < length {
            return;
        }
        let mut once = runs(&words, length);
        once.sort_unstable();
        once.dedup();
        for run in once {
            *self.runs.entry(run).or_insert(0) += 1;
        }
    }
}

/// What a row says apart from its system prompt.
pub fn spoken(example: &Example) -> Vec<&str> {
    match example {
        Example::Chat { messages, .. } => {
            let said = messages.iter().filter(|message| message.get("role").and_then(Value::as_str) != Some("system"));
            said.filter_map(|message| message.get("content").and_then(Value::as_str)).collect()
        }
        Example::Instruct { instruction, input, output, .. } => vec![instruction, input, output],
        other => other.texts(),
    }
}

/// What a row asks: everything said before the first answer, system prompt aside; `None` where nothing is asked.
pub fn asked(example: &Example) -> Vec<&str> {
    match example {
        Example::Chat { messages, .. } => {
            let role = |message: &serde_json::Map<String, Value>| {
                message.get("role").and_then(Value::as_str).map(str::to_string)
            };
            let before = messages.iter().take_while(|message| role(message).as_deref() != Some("assistant"));
            let before = before.filter(|message| role(message).as_deref() != Some("system"));
            before.filter_map(|message| message.get("content").and_then(Value::as_str)).collect()
        }
        Example::Instruct { instruction, input, .. } => vec![instruction, input],
        Example::Segments { segments } => {
            segments.iter().take_while(|segment| !segment.label).map(|segment| segment.text.as_str()).collect()
        }
        Example::Completion { .. } | Example::Tokens { .. } => Vec::new(),
    }
}

fn prompt(example: &Example) -> Option<u64> {
    question(&words(asked(example)))
}

fn question(words: &[u64]) -> Option<u64> {
    (words.len() >= SHORTEST_PROMPT).then(|| words.iter().fold(0, |hash, &word| mix(hash ^ word)))
}

/// The texts of every row of a benchmark file: JSON's and JSONL's strings, or a text file's lines.
fn file_rows(path: &Path) -> Result<Vec<Vec<String>>, TaskError> {
    let wrong = |why: String| TaskError::Input(format!("clean.contamination_files: {}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let name = path.to_string_lossy().to_ascii_lowercase();
    let text = match name.strip_suffix(".gz") {
        Some(_) => {
            let mut text = String::new();
            let mut unpacked = flate2::read::MultiGzDecoder::new(&bytes[..]);
            unpacked.read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
            text
        }
        None => String::from_utf8(bytes).map_err(|e| wrong(format!("not UTF-8 text ({e})")))?,
    };
    let kind = name.strip_suffix(".gz").unwrap_or(&name);
    let parse = |text: &str, line: usize| -> Result<Value, TaskError> {
        serde_json::from_str(text).map_err(|e| wrong(format!("line {}: {e}", line + e.line().saturating_sub(1))))
    };
    if kind.ends_with(".jsonl") || kind.ends_with(".ndjson") {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        return lines.map(|(i, line)| Ok(strings(&parse(line, i + 1)?))).collect();
    }
    if kind.ends_with(".json") {
        return Ok(match parse(&text, 1)? {
            Value::Array(rows) => rows.iter().map(strings).collect(),
            other => vec![strings(&other)],
        });
    }
    if [".txt", ".text", ".md", ".csv", ".tsv"].iter().any(|end| kind.ends_with(end)) {
        return Ok(text.lines().filter(|line| !line.trim().is_empty()).map(|line| vec![line.to_string()]).collect());
    }
    Err(wrong("must be .json, .jsonl, .txt, .md, .csv or .tsv, or one of them with .gz".to_string()))
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        Value::Object(map) => map.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}
