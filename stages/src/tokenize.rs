//! `tokenize`: rendered rows become token ids with labels, -100 where masked.
//!
//! Each row is tokenised once. A token is trained when it overlaps a trained span; the first special token right after a
//! trained answer ends its turn and is trained with it. Nothing is guessed: what cannot be decided is counted and said.

mod labels;
mod reused;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int8Array, Int32Array, ListArray, RecordBatch, StringArray};
use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError, View};
use pipe_files::Encoder;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use crate::recipe::{SpecialTokensInContent, TrainOn};
use crate::reuse::{RemarkWriter, Reuse};
use crate::rows::{TableWriter, batches, int_list, int_lists, list_column, shapes, text_column, typed, workers};
use crate::template::SPLITS;
use labels::Labeller;
use reused::Merge;

const BATCH_ROWS: usize = 4096;
/// Rows that a thread takes at a time.
const TOGETHER: usize = 64;

/// Everything tokenising depends on besides its rows.
#[derive(Clone, Debug, Serialize)]
pub struct Tokenize {
    /// Roles whose text is trained.
    pub roles_to_train: Vec<String>,
    /// Train every span, prompts too.
    pub train_on_inputs: bool,
    pub train_on_eos: TrainOn,
    pub train_on_eot: TrainOn,
    /// Token texts that end a turn, besides the tokenizer's own special tokens.
    pub eot_tokens: Vec<String>,
    /// Special tokens the recipe adds to the vocabulary.
    pub added_tokens: Vec<String>,
    /// Replaces the tokenizer's end-of-sequence token.
    pub eos_token: Option<String>,
    pub special_in_content: SpecialTokensInContent,
    /// Folder or GGUF of the tokenizer.
    #[serde(skip)]
    pub tokenizer: PathBuf,
}

/// What was seen while tokenising.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub rows: u64,
    /// Of them taken over from an earlier output.
    pub reused: u64,
    pub tokens: u64,
    pub trained: u64,
    pub untrained_rows: u64,
    pub missing_terminators: u64,
    /// Rows with trained answers of which no end is trained.
    pub unended_rows: u64,
    /// Texts in headers that look like special tokens and are none.
    pub split_tokens: BTreeMap<String, u64>,
    pub double_bos: u64,
    pub special_in_content: u64,
    pub by_role: BTreeMap<String, u64>,
}

/// One tokenised row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokenized {
    pub ids: Vec<i32>,
    pub labels: Vec<i32>,
}

impl Task for Tokenize {
    fn stage(&self) -> &'static str {
        "tokenize"
    }

    fn version(&self) -> String {
        // The tokenizers crate decides the ids.
        "4+tokenizers-0.23".into()
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    fn files(&self) -> Vec<SourceFile> {
        let view = View::Part { name: "tokenizer", bytes: tokenizer_part };
        vec![SourceFile { role: "tokenizer".into(), path: self.tokenizer.clone(), view }]
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, weight: 10, ..Resources::default() }
    }

    fn reuses_rows(&self) -> bool {
        true
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        workers(ctx.threads)?.install(|| self.tokenize(ctx))
    }
}

impl Tokenize {
    fn tokenize(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let labeller = Labeller::new(self)?;
        let mut counts = Counts::default();
        let mut remarks = RemarkWriter::new(ctx);
        for split in SPLITS.into_iter().filter(|split| ctx.input_opt(split).is_some()) {
            tokenize_split(&labeller, split, ctx, &mut counts, &mut remarks)?;
        }
        remarks.finish()?;
        Ok(summary(counts))
    }
}

/// The tokenizer a recipe uses, with the tokens it adds.
fn load_encoder(path: &Path, added: &[String]) -> Result<Encoder, TaskError> {
    let encoder = Encoder::open(path).map_err(|error| TaskError::Input(error.to_string()))?;
    let unknown = added.iter().find(|token| encoder.tokenizer().token_to_id(token).is_none());
    match unknown {
        None => Ok(encoder),
        Some(token) => Err(TaskError::Input(format!(
            "the token `{token}` is not in the vocabulary; adding tokens needs new embedding rows, which is not supported \
             yet: choose a token the tokenizer has"
        ))),
    }
}

/// What is read of a rendered row; all but the id decide its tokens.
const COLUMNS: [&str; 12] = [
    "row_id",
    "text",
    "piece_ends",
    "span_starts",
    "span_ends",
    "span_limits",
    "span_roles",
    "span_train",
    "bos",
    "eos",
    "tokens",
    "labels",
];

fn tokenize_split(
    labeller: &Labeller<'_>,
    split: &str,
    ctx: &Context,
    counts: &mut Counts,
    remarks: &mut RemarkWriter,
) -> Result<(), TaskError> {
    let mut reuse = Reuse::of(ctx, split, &COLUMNS[1..])?;
    let mut merge = Merge::open(ctx, split)?;
    let mut writer = TableWriter::create(&ctx.out().join(format!("{split}.parquet")), shapes::tokens())?;
    for batch in batches(ctx.input(split)?, &COLUMNS, BATCH_ROWS)? {
        ctx.cancel.check()?;
        let batch = batch?;
        let rows = Rendered::of(&batch)?;
        let origins = reuse.next(batch.num_rows());
        let fresh: Vec<usize> = (0..batch.num_rows()).filter(|&i| origins[i].is_none()).collect();
        let results: Vec<Labelled> =
            fresh.par_chunks(TOGETHER).map(|some| tokenize_some(labeller, &rows, some)).collect::<Result<_, _>>()?;
        let results: Labelled = results.into_iter().flatten().collect();
        let computed = record(rows.ids, &fresh, &results)?;
        writer.write(&merge.batch(&rows, &origins, computed, &results, counts, remarks)?)?;
        ctx.progress(counts.rows, 0, "rows");
    }
    writer.finish().map(|_| ())
}

type Labelled = Vec<(Tokenized, Counts)>;

/// Some rows, on one thread.
fn tokenize_some(labeller: &Labeller<'_>, rows: &Rendered<'_>, some: &[usize]) -> Result<Labelled, TaskError> {
    let mut bench = labeller.bench();
    let made = some.iter().map(|&i| {
        let row = labeller.row(&rows.view(i)?, &mut bench);
        row.map_err(|why| TaskError::Input(format!("row {}: {why}", rows.ids.value(i))))
    });
    let made = made.collect();
    labeller.give_back(bench);
    made
}

/// A batch of rendered rows by column.
struct Rendered<'a> {
    ids: &'a StringArray,
    text: &'a StringArray,
    pieces: &'a ListArray,
    starts: &'a ListArray,
    ends: &'a ListArray,
    limits: &'a ListArray,
    roles: &'a ListArray,
    train: &'a ListArray,
    bos: &'a BooleanArray,
    eos: &'a BooleanArray,
    tokens: &'a ListArray,
    labels: &'a ListArray,
}

/// One rendered row, borrowed.
pub struct RowView<'a> {
    pub text: &'a str,
    pub piece_ends: &'a [i32],
    pub spans: Vec<labels::SpanView<'a>>,
    pub bos: bool,
    pub eos: bool,
    pub tokens: &'a [i32],
    pub labels: &'a [i32],
}

impl<'a> Rendered<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, TaskError> {
        Ok(Rendered {
            ids: text_column(batch, "row_id")?,
            text: text_column(batch, "text")?,
            pieces: list_column(batch, "piece_ends")?,
            starts: list_column(batch, "span_starts")?,
            ends: list_column(batch, "span_ends")?,
            limits: list_column(batch, "span_limits")?,
            roles: list_column(batch, "span_roles")?,
            train: list_column(batch, "span_train")?,
            bos: typed(batch, "bos")?,
            eos: typed(batch, "eos")?,
            tokens: list_column(batch, "tokens")?,
            labels: list_column(batch, "labels")?,
        })
    }

    /// The role of the row's last span: in most rows the only one that is trained.
    fn last_role(&self, i: usize) -> Option<&'a str> {
        let roles = self.roles.values().as_any().downcast_ref::<StringArray>()?;
        let (start, end) = (self.roles.value_offsets()[i], self.roles.value_offsets()[i + 1]);
        (end > start).then(|| roles.value(end as usize - 1))
    }

    fn view(&self, i: usize) -> Result<RowView<'a>, TaskError> {
        let broken = || TaskError::Failed("a rendered row has columns of unexpected types".into());
        let (starts, ends) = (int_list(self.starts, i)?, int_list(self.ends, i)?);
        let limits = int_list(self.limits, i)?;
        let roles = self.roles.values().as_any().downcast_ref::<StringArray>().ok_or_else(broken)?;
        let train = self.train.values().as_any().downcast_ref::<Int8Array>().ok_or_else(broken)?;
        let first = self.roles.value_offsets()[i] as usize;
        let spans = starts.iter().zip(ends).enumerate().map(|(n, (&start, &end))| labels::SpanView {
            start: start as usize,
            end: end as usize,
            limit: limits[n] as usize,
            role: roles.value(first + n),
            train: train.value(first + n),
        });
        Ok(RowView {
            text: self.text.value(i),
            piece_ends: int_list(self.pieces, i)?,
            spans: spans.collect(),
            bos: self.bos.value(i),
            eos: self.eos.value(i),
            tokens: int_list(self.tokens, i)?,
            labels: int_list(self.labels, i)?,
        })
    }
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.rows += other.rows;
        self.reused += other.reused;
        self.tokens += other.tokens;
        self.trained += other.trained;
        self.untrained_rows += other.untrained_rows;
        self.missing_terminators += other.missing_terminators;
        self.unended_rows += other.unended_rows;
        for (text, times) in &other.split_tokens {
            *self.split_tokens.entry(text.clone()).or_default() += times;
        }
        self.double_bos += other.double_bos;
        self.special_in_content += other.special_in_content;
        for (role, tokens) in &other.by_role {
            *self.by_role.entry(role.clone()).or_default() += tokens;
        }
    }
}

/// The rows `at` these places. Rows without a trained token are dropped here.
fn record(ids: &StringArray, at: &[usize], rows: &[(Tokenized, Counts)]) -> Result<RecordBatch, TaskError> {
    let kept = || at.iter().zip(rows).filter(|(_, (_, counts))| counts.untrained_rows == 0);
    let total: usize = kept().map(|(_, (row, _))| row.ids.len()).sum();
    let (mut inputs, mut labels) = (Vec::with_capacity(total), Vec::with_capacity(total));
    let (mut ends, mut lengths) = (Vec::new(), Vec::new());
    for (_, (row, _)) in kept() {
        inputs.extend_from_slice(&row.ids);
        labels.extend_from_slice(&row.labels);
        ends.push(inputs.len() as i32);
        lengths.push(row.ids.len() as i32);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(kept().map(|(&i, _)| ids.value(i)))),
        int_lists(inputs, &ends),
        int_lists(labels, &ends),
        Arc::new(Int32Array::from(lengths)),
    ];
    RecordBatch::try_new(shapes::tokens(), columns).map_err(|error| TaskError::Failed(error.to_string()))
}

fn summary(counts: Counts) -> Summary {
    let kept = counts.rows - counts.untrained_rows;
    let mut summary = Summary {
        rows: Some(kept),
        rows_computed: Some(counts.rows - counts.reused),
        rows_reused: Some(counts.reused),
        ..Summary::default()
    };
    summary.stats.insert("tokens".into(), counts.tokens.into());
    summary.stats.insert("trained_tokens".into(), counts.trained.into());
    summary.stats.insert("trained_tokens_by_role".into(), json!(counts.by_role));
    summary.stats.insert("dropped_untrained_rows".into(), counts.untrained_rows.into());
    let said = [
        (counts.untrained_rows, "rows have no trained token and were dropped"),
        (
            counts.missing_terminators,
            "answers are not followed by an end-of-turn token: the model will not learn to stop there",
        ),
        (counts.double_bos, "rows start with two beginning-of-sequence tokens"),
        (
            counts.special_in_content,
            "special tokens occur inside content; set special_tokens_in_content to escape or error if that is not meant",
        ),
    ];
    if kept > 0 && counts.unended_rows == kept {
        let never = "no end-of-turn token is trained in any row: the model will not learn to stop; name the token that ends \
                     a turn under eot_tokens, or see train_on_eot and train_on_eos";
        summary.warnings.push(never.into());
    }
    for (text, times) in &counts.split_tokens {
        summary.warnings.push(format!(
            "`{text}` in the chat template is no token of this tokenizer and is cut in pieces ({times} times); use the \
             tokenizer's own template, or a tokenizer that has it"
        ));
    }
    summary.warnings.extend(said.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    summary
}

fn tokenizer_part(path: &Path) -> Result<Vec<u8>, String> {
    pipe_files::tokenizer_bytes(path).map_err(|error| error.to_string())
}
