//! Multiple choice by likelihood, as lm-evaluation-harness has it: the answer is the choice to which the model gives the
//! greatest probability after the question.
//!
//! ```text
//! {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}
//!   -> log p(" 3" | "Question: 2 + 2?\nAnswer:"), log p(" 4" | ...)
//!   -> acc: the larger sum; acc_norm: the larger sum per character
//! ```
//! Every choice becomes a document of a pack whose trained tokens are the choice's; the worker knows nothing of choices.
//! Log-likelihoods, `acc` and `acc_norm` are compared with lm-evaluation-harness in tests/fixtures/choices.

use std::path::{Path, PathBuf};

use minijinja::Environment;
use pipe_engine::task::TaskError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::documents::{Document, write_packs};
use super::losses::Loss;
use super::score::{Formula, Series};
use super::sheet::Block;
use crate::recipe::Mistake;

const PROMPT: &str = "Question: {{ question }}\nAnswer:";
const FUEL: u64 = 200_000;

/// A file of questions with choices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChoiceSection {
    /// JSON or JSONL with a question, its choices and the right one in each row.
    pub path: Option<String>,
    /// What the measure is filed under; the file's stem when unset.
    pub name: Option<String>,
    /// The question as the model sees it: a Jinja template over the row's columns.
    #[schemars(extend("default" = "Question: {{ question }}\nAnswer:"))]
    pub prompt: Option<String>,
    /// Column with the list of choices; a list, or a map with a list under `text`.
    #[schemars(extend("default" = "choices"))]
    pub choices: Option<String>,
    /// Column with the right choice: its place from 0, its letter or label, or its text.
    #[schemars(extend("default" = "answer"))]
    pub answer: Option<String>,
    /// What stands between the question and a choice.
    #[schemars(extend("default" = " "))]
    pub delimiter: Option<String>,
}

/// The section with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choices {
    pub name: String,
    pub prompt: String,
    pub choices: String,
    pub answer: String,
    pub delimiter: String,
    /// Tokens that a question and a choice may have; more are cut off at the front.
    pub sequence_len: usize,
    #[serde(skip)]
    pub path: PathBuf,
}

/// A question as it is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub row: Value,
    pub context: String,
    pub choices: Vec<String>,
    /// Place of the right choice.
    pub answer: usize,
}

/// What a model made of a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Picked {
    /// Log-likelihood of each choice, in nats.
    pub logprobs: Vec<f64>,
    pub right: bool,
    pub right_by_length: bool,
}

impl ChoiceSection {
    /// What is wrong with the section, by its own keys.
    pub(super) fn mistakes(&self, place: &str) -> Vec<Mistake> {
        let mut wrong = Vec::new();
        if self.path.as_deref().unwrap_or("").is_empty() {
            let instead = Some("path: questions.jsonl".to_string());
            wrong.push(Mistake::missing(format!("{place}.path"), "is missing: where are the questions?", instead));
        }
        if let Some(why) = self.prompt.as_deref().and_then(|prompt| environment(prompt).err()) {
            wrong.push(Mistake::value(format!("{place}.prompt"), why, Some(PROMPT.to_string())));
        }
        wrong
    }

    /// The name, or the file's stem.
    pub fn filed_under(&self) -> String {
        let stem = || Path::new(self.path.as_deref()?).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        self.name.clone().or_else(stem).unwrap_or_default()
    }

    /// Fills the defaults in; `path` is where the file is.
    pub fn resolve(&self, path: PathBuf, sequence_len: u64) -> Choices {
        let text = |own: &Option<String>, default: &str| own.clone().unwrap_or_else(|| default.to_string());
        Choices {
            name: self.filed_under(),
            prompt: text(&self.prompt, PROMPT),
            choices: text(&self.choices, "choices"),
            answer: text(&self.answer, "answer"),
            delimiter: text(&self.delimiter, " "),
            sequence_len: sequence_len as usize,
            path,
        }
    }
}

impl Choices {
    /// The questions of the file at `path`.
    ///
    /// # Errors
    /// `TaskError::Input` with the row that cannot be asked, and why.
    pub fn read(&self, path: &Path) -> Result<Vec<Question>, TaskError> {
        let prompt = environment(&self.prompt).map_err(|why| TaskError::Input(format!("eval.choices.prompt {why}")))?;
        let rows = super::documents::json_rows(path)?;
        let question = |(place, row): (usize, Value)| {
            self.question(&prompt, row).map_err(|why| {
                let path = self.path.display();
                TaskError::Input(format!("{path}:{}: {why} (eval.choices, `{}`)", place + 1, self.name))
            })
        };
        rows.into_iter().enumerate().map(question).collect()
    }

    fn question(&self, prompt: &Environment<'_>, row: Value) -> Result<Question, String> {
        let Value::Object(columns) = &row else { return Err("the row is no object".to_string()) };
        let there = || columns.keys().cloned().collect::<Vec<_>>().join(", ");
        let column = |name: &str| columns.get(name).ok_or_else(|| format!("there is no `{name}`, only {}", there()));
        let (choices, labels) = choices_of(column(&self.choices)?)
            .ok_or_else(|| format!("`{}` is no list of two texts or more", self.choices))?;
        let answer = place_of(column(&self.answer)?, &choices, &labels)
            .ok_or_else(|| format!("`{}` is none of the {} choices", self.answer, choices.len()))?;
        let rendered =
            prompt.get_template("prompt").and_then(|template| template.render(minijinja::value::Serde(columns)));
        let context = rendered.map_err(|e| format!("the prompt cannot be rendered: {e}"))?;
        Ok(Question { context, choices, answer, row })
    }

    /// Writes every choice of every question as a document, in order; returns how many were cut at the front.
    pub fn write(
        &self,
        questions: &[Question],
        tokenizer: &Tokenizer,
        prefix: Option<u32>,
        path: &Path,
    ) -> Result<u64, TaskError> {
        let mut documents = Vec::new();
        let mut cut = 0;
        for (place, question) in questions.iter().enumerate() {
            for (number, choice) in question.choices.iter().enumerate() {
                let (context, choice) =
                    pair(tokenizer, &question.context, &format!("{}{choice}", self.delimiter), prefix)?;
                let mut document = Document::new(format!("{place}.{number}"), &context, &choice);
                cut += u64::from(document.keep_last(self.sequence_len));
                documents.push(document);
            }
        }
        write_packs(&documents, path)?;
        Ok(cut)
    }

    /// What a model made of the questions, from the losses of their documents.
    pub fn picked(&self, questions: &[Question], losses: &[Loss]) -> Vec<Picked> {
        let mut losses = losses.iter();
        let picked = questions.iter().map(|question| {
            let logprobs: Vec<f64> = losses.by_ref().take(question.choices.len()).map(|loss| -loss.sum).collect();
            let lengths = question.choices.iter().map(|choice| choice.chars().count().max(1) as f64);
            let by_length: Vec<f64> = logprobs.iter().zip(lengths).map(|(sum, length)| sum / length).collect();
            let right = largest(&logprobs) == Some(question.answer);
            Picked { right, right_by_length: largest(&by_length) == Some(question.answer), logprobs }
        });
        picked.collect()
    }
}

/// `acc`, `acc_norm` and the number of questions.
pub fn block(picked: &[Picked]) -> Block {
    let share = |right: fn(&Picked) -> bool| {
        let mut series = Series::new(Formula::Mean);
        picked.iter().for_each(|picked| series.push(&[f64::from(u8::from(right(picked))), 1.0]));
        series
    };
    let mut rows = Series::new(Formula::Total);
    picked.iter().for_each(|_| rows.push(&[1.0]));
    Block {
        sources: vec![0; picked.len()],
        series: vec![
            ("acc".to_string(), share(|picked| picked.right)),
            ("acc_norm".to_string(), share(|picked| picked.right_by_length)),
            ("rows".to_string(), rows),
        ],
    }
}

/// Tokens of the context and of the continuation, which are encoded together and parted where the context alone would end;
/// spaces at the end of the context belong to the continuation.
fn pair(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    prefix: Option<u32>,
) -> Result<(Vec<u32>, Vec<u32>), TaskError> {
    let ids = |text: String| {
        let encoding = tokenizer.encode(text, true);
        let encoding = encoding.map_err(|e| TaskError::Failed(format!("tokenising a question: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    };
    let trimmed = context.trim_end();
    let mut whole = ids(format!("{context}{continuation}"))?;
    let mut start = ids(trimmed.to_string())?.len().min(whole.len());
    if start == 0 {
        let prefix = prefix.ok_or_else(|| {
            TaskError::Input(
                "eval.choices: a question is empty, and the tokenizer has no token to put before a choice".into(),
            )
        })?;
        whole.insert(0, prefix);
        start = 1;
    }
    let continuation = whole.split_off(start);
    Ok((whole, continuation))
}

/// Texts of the choices, and their labels where they have some.
fn choices_of(value: &Value) -> Option<(Vec<String>, Vec<String>)> {
    let texts = |value: &Value| -> Option<Vec<String>> {
        let text = |item: &Value| match item {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        value.as_array()?.iter().map(text).collect()
    };
    let (list, labels) = match value {
        Value::Object(map) => (texts(map.get("text")?)?, map.get("label").and_then(texts).unwrap_or_default()),
        list => (texts(list)?, Vec::new()),
    };
    (list.len() >= 2).then_some((list, labels))
}

/// Which choice is meant: by number, label, text or letter.
fn place_of(answer: &Value, choices: &[String], labels: &[String]) -> Option<usize> {
    let place = match answer {
        Value::Number(number) => number.as_u64().map(|n| n as usize),
        Value::String(text) => {
            let letter = || match text.trim().as_bytes() {
                [letter] if letter.is_ascii_alphabetic() => Some(usize::from(letter.to_ascii_uppercase() - b'A')),
                _ => None,
            };
            let among = |list: &[String]| list.iter().position(|own| own == text);
            among(labels).or_else(|| among(choices)).or_else(letter).or_else(|| text.trim().parse().ok())
        }
        _ => None,
    };
    place.filter(|place| *place < choices.len())
}

/// Place of the first largest value.
fn largest(values: &[f64]) -> Option<usize> {
    let better = |best: Option<usize>, i: usize| match best {
        Some(best) if values[i] <= values[best] => Some(best),
        _ => Some(i),
    };
    (0..values.len()).fold(None, better)
}

fn environment(prompt: &str) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    let made = environment.add_template_owned("prompt", prompt.to_string());
    made.map_err(|e| format!("is no Jinja template: {}", e.to_string().replace('\n', " ")))?;
    Ok(environment)
}
