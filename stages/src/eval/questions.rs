//! What is measured besides a recipe's own rows: questions with choices, and general text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Float64Builder, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt64Array,
};
use pipe_engine::task::{Context, TaskError};
use tokenizers::Tokenizer;

use super::choices::{self, Choices, Picked, Question};
use super::losses::Loss;
use super::sheet::Sheet;
use super::{Eval, general};
use crate::rows::TableWriter;

/// Files turned into packs.
pub struct Questions {
    choices: Vec<Asked>,
    general: Option<PathBuf>,
}

struct Asked {
    choices: Choices,
    questions: Vec<Question>,
    packs: PathBuf,
    cut: u64,
}

impl Questions {
    /// Reads the files and writes their packs to `scratch`.
    pub fn prepare(eval: &Eval, ctx: &Context, tokenizer: &Tokenizer, scratch: &Path) -> Result<Questions, TaskError> {
        let info = pipe_files::TokenizerInfo::read(&eval.answering.tokenizer).ok();
        let prefix = info.and_then(|info| info.bos.or(info.eos)).map(|token| token.id);
        let mut asked = Vec::new();
        for (i, choices) in eval.choices.iter().enumerate() {
            let questions = choices.read(ctx.file(&format!("choices.{i}"))?)?;
            let packs = scratch.join(format!("choices.{i}.parquet"));
            let cut = choices.write(&questions, tokenizer, prefix, &packs)?;
            asked.push(Asked { choices: choices.clone(), questions, packs, cut });
        }
        let files = (0..eval.general.len()).map(|i| ctx.file(&format!("general.{i}")));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let text = scratch.join("general.parquet");
        if !files.is_empty() {
            general::write(&files, eval.sequence_len, tokenizer, &text)?;
        }
        Ok(Questions { choices: asked, general: (!files.is_empty()).then_some(text) })
    }

    /// Names and packs, as the worker's splits.
    pub fn packs(&self) -> impl Iterator<Item = (String, PathBuf)> + '_ {
        let choices = self.choices.iter().map(|asked| (asked.choices.name.clone(), asked.packs.clone()));
        choices.chain(self.general.iter().map(|path| (general::SPLIT.to_string(), path.clone())))
    }

    /// Whether a split of the worker's is a file of questions.
    pub fn has(&self, split: &str) -> bool {
        self.choices.iter().any(|asked| asked.choices.name == split)
    }

    /// Each file of choices with its questions.
    pub fn each(&self) -> impl Iterator<Item = (&Choices, &[Question])> {
        self.choices.iter().map(|asked| (&asked.choices, asked.questions.as_slice()))
    }

    /// Adds `acc` and `acc_norm` to the sheet and writes a line for each model and question.
    pub fn score(
        &self,
        losses: &BTreeMap<(String, String), Vec<Loss>>,
        sheet: &mut Sheet,
        path: &Path,
    ) -> Result<(), TaskError> {
        let mut lines = Lines::default();
        for asked in &self.choices {
            for ((model, _), losses) in losses.iter().filter(|((_, split), _)| *split == asked.choices.name) {
                let picked = asked.choices.picked(&asked.questions, losses);
                sheet.add(model, &asked.choices.name, choices::block(&picked));
                lines.extend(model, &asked.choices.name, &asked.questions, &picked);
            }
        }
        if self.choices.is_empty() { Ok(()) } else { lines.write(path) }
    }

    pub fn warnings(&self) -> Vec<String> {
        let cut = self.choices.iter().filter(|asked| asked.cut > 0);
        let told = cut.map(|asked| {
            let name = &asked.choices.name;
            format!("eval.choices, `{name}`: {} choices with their questions are longer than sequence_len and were cut at the front", asked.cut)
        });
        told.collect()
    }
}

/// Columns of `choices.parquet`.
#[derive(Default)]
struct Lines {
    model: Vec<String>,
    task: Vec<String>,
    row: Vec<u64>,
    prompt: Vec<String>,
    choices: ListBuilder<StringBuilder>,
    logprobs: ListBuilder<Float64Builder>,
    answer: Vec<u64>,
    acc: Vec<f64>,
    acc_norm: Vec<f64>,
}

impl Lines {
    fn extend(&mut self, model: &str, task: &str, questions: &[Question], picked: &[Picked]) {
        for (row, (question, picked)) in questions.iter().zip(picked).enumerate() {
            self.model.push(model.to_string());
            self.task.push(task.to_string());
            self.row.push(row as u64 + 1);
            self.prompt.push(question.context.clone());
            self.choices.append_value(question.choices.iter().map(Some));
            self.logprobs.append_value(picked.logprobs.iter().map(|value| Some(*value)));
            self.answer.push(question.answer as u64);
            self.acc.push(f64::from(u8::from(picked.right)));
            self.acc_norm.push(f64::from(u8::from(picked.right_by_length)));
        }
    }

    fn write(mut self, path: &Path) -> Result<(), TaskError> {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("model", Arc::new(StringArray::from(self.model))),
            ("task", Arc::new(StringArray::from(self.task))),
            ("row", Arc::new(UInt64Array::from(self.row))),
            ("prompt", Arc::new(StringArray::from(self.prompt))),
            ("choices", Arc::new(self.choices.finish())),
            ("logprobs", Arc::new(self.logprobs.finish())),
            ("answer", Arc::new(UInt64Array::from(self.answer))),
            ("acc", Arc::new(Float64Array::from(self.acc))),
            ("acc_norm", Arc::new(Float64Array::from(self.acc_norm))),
        ];
        let batch = RecordBatch::try_from_iter(columns).map_err(|e| TaskError::Failed(e.to_string()))?;
        let mut writer = TableWriter::create(path, batch.schema())?;
        writer.write(&batch)?;
        writer.finish().map(|_| ())
    }
}
