//! `template`: examples become text, with the places of what a model may learn from.
//!
//! One row of output is one example: its text, where the text must be tokenised apart (`piece_ends`), and its spans with
//! role and training flag. Nothing here knows a tokenizer or decides labels; that is `tokenize`.

mod ast;
mod bridge;
pub mod builtin;
mod chat;
pub mod clock;
pub mod detail;
mod expression;
mod filter;
mod format;
mod function;
mod json;
mod lexer;
mod method;
mod operator;
mod parser;
pub mod pattern;
pub mod prompts;
pub mod render;
mod run;
pub mod spans;
mod test;
mod text;
mod transpile;
pub mod turns;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Int8Builder, Int32Builder, ListBuilder, RecordBatch, StringArray, StringBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError, View};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::conversation::Example;
use crate::fingerprint::Written;
use crate::reuse::{Forward, Remark, RemarkReader, RemarkWriter, Reuse, Weave, with_ids};
use crate::rows::{TableWriter, batches, text_column, workers};
use prompts::PromptStyle;
use render::{ChatTemplate, SpecialTexts};

/// The splits a row stage passes on, by file stem.
pub const SPLITS: [&str; 3] = ["train", "val", "test"];
const BATCH_ROWS: usize = 2048;

/// Where the chat template's text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum TemplateSource {
    /// Built-in or written in the recipe.
    Text(String),
    /// A `.jinja` file.
    File(PathBuf),
    /// The model's or tokenizer's own.
    Model(PathBuf),
    /// No row needs one.
    Unused,
}

/// Everything rendering depends on besides its rows.
#[derive(Clone, Debug)]
pub struct Template {
    pub source: TemplateSource,
    /// Folder or GGUF whose special tokens the template may name.
    pub tokenizer: Option<PathBuf>,
    pub kwargs: Map<String, Value>,
    /// System prompt of conversations that have none.
    pub default_system: Option<String>,
    pub style: PromptStyle,
    /// Special tokens the recipe replaces.
    pub special: SpecialTexts,
    /// The day that a template which names the clock sees.
    pub day: Option<String>,
}

impl Task for Template {
    fn stage(&self) -> &'static str {
        "template"
    }

    fn version(&self) -> String {
        "5".into()
    }

    fn params(&self) -> Value {
        let source = match &self.source {
            TemplateSource::Text(text) => json!({ "text": text }),
            TemplateSource::File(_) => json!("file"),
            TemplateSource::Model(_) => json!("model"),
            TemplateSource::Unused => json!(null),
        };
        let special = [&self.special.bos, &self.special.eos, &self.special.pad, &self.special.unk];
        let mut params = json!({
            "template": source,
            "kwargs": self.kwargs,
            "default_system": self.default_system,
            "style": self.style,
            "special": special,
        });
        if let (Some(day), Some(params)) = (&self.day, params.as_object_mut()) {
            params.insert("day".to_string(), json!(day));
        }
        params
    }

    fn files(&self) -> Vec<SourceFile> {
        let mut files = Vec::new();
        match &self.source {
            TemplateSource::File(path) => {
                files.push(SourceFile { role: "template".into(), path: path.clone(), view: View::Whole });
            }
            TemplateSource::Model(path) => {
                let view = View::Part { name: "chat-template", bytes: template_part };
                files.push(SourceFile { role: "template".into(), path: path.clone(), view });
            }
            TemplateSource::Text(_) | TemplateSource::Unused => {}
        }
        if let (Some(path), false) = (&self.tokenizer, self.source == TemplateSource::Unused) {
            let view = View::Part { name: "special-tokens", bytes: special_part };
            files.push(SourceFile { role: "special".into(), path: path.clone(), view });
        }
        files
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, weight: 5, ..Resources::default() }
    }

    fn reuses_rows(&self) -> bool {
        true
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        workers(ctx.threads)?.install(|| self.render(ctx))
    }
}

impl Template {
    fn render(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let template = self.load()?;
        let mut counts = Counts::default();
        let mut remarks = RemarkWriter::new(ctx);
        for split in SPLITS.into_iter().filter(|split| ctx.input_opt(split).is_some()) {
            self.render_split(template.as_ref(), split, ctx, &mut counts, &mut remarks)?;
        }
        remarks.finish()?;
        let mut summary = counts.summary();
        if template.is_some_and(|template| self.strays(&template)) {
            let text = "the chat template is not the tokenizer's own; a model that was tuned with that one has to learn the \
                        other: chat_template: tokenizer_default keeps it";
            summary.warnings.push(text.into());
        }
        Ok(summary)
    }
}

#[derive(Default)]
struct Counts {
    rows: u64,
    reused: u64,
    lost: u64,
    first_lost: Option<String>,
}

impl Counts {
    /// Counts a row, and remarks on it where messages were not located.
    fn note(
        &mut self,
        split: &str,
        row: u64,
        row_id: &str,
        lost: u64,
        remarks: &mut RemarkWriter,
    ) -> Result<(), TaskError> {
        self.rows += 1;
        if lost == 0 {
            return Ok(());
        }
        self.lost += lost;
        self.first_lost.get_or_insert_with(|| row_id.to_string());
        let (split, row_id, what) = (split.to_string(), row_id.to_string(), "not_located".to_string());
        remarks.push(Remark { split, row, row_id, what, count: lost })
    }

    fn summary(self) -> Summary {
        let mut summary = Summary {
            rows: Some(self.rows),
            rows_computed: Some(self.rows - self.reused),
            rows_reused: Some(self.reused),
            ..Summary::default()
        };
        if let Some(row) = self.first_lost {
            summary.stats.insert("messages_not_located".into(), self.lost.into());
            summary.warnings.push(format!(
                "{} messages could not be located in the rendered text and are not trained (first in row {row})",
                self.lost
            ));
        }
        summary
    }
}

/// A rendered row: text, places to cut, spans, and whether BOS and EOS go around it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub text: String,
    pub piece_ends: Vec<i32>,
    pub spans: Vec<RoleSpan>,
    pub bos: bool,
    pub eos: bool,
    /// Only for rows that came tokenised.
    pub tokens: Vec<i32>,
    pub labels: Vec<i32>,
    pub lost: u64,
}

/// A span of text that a role wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleSpan {
    pub start: i32,
    pub end: i32,
    /// Where the turn ends: what ends it lies before this, unless it is the tokenizer's own end of sequence.
    pub limit: i32,
    pub role: String,
    /// The row's own word on training this span: 1 yes, 0 no, -1 unsaid, or one of [`detail`]'s.
    pub train: i8,
}

/// Columns of rendered rows.
pub fn rendered() -> SchemaRef {
    let list =
        |name: &str, item: DataType| Field::new(name, DataType::List(Arc::new(Field::new("item", item, true))), false);
    Arc::new(Schema::new(vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("text", DataType::Utf8, false),
        list("piece_ends", DataType::Int32),
        list("span_starts", DataType::Int32),
        list("span_ends", DataType::Int32),
        list("span_limits", DataType::Int32),
        list("span_roles", DataType::Utf8),
        list("span_train", DataType::Int8),
        Field::new("bos", DataType::Boolean, false),
        Field::new("eos", DataType::Boolean, false),
        list("tokens", DataType::Int32),
        list("labels", DataType::Int32),
    ]))
}

impl Template {
    /// The template, ready to render; none where no row needs one.
    pub fn load(&self) -> Result<Option<ChatTemplate>, TaskError> {
        let wrong = |error: render::TemplateError| TaskError::Input(error.to_string());
        let Some((text, special)) = self.written().texts().map_err(wrong)? else { return Ok(None) };
        let mut template = ChatTemplate::parse(&text, &special).map_err(wrong)?;
        if let Some(day) = &self.day {
            template.set_day(day);
        }
        Ok(Some(template))
    }

    /// How conversations are written.
    pub fn written(&self) -> Written {
        Written { source: self.source.clone(), tokenizer: self.tokenizer.clone(), special: self.special.clone() }
    }

    /// Whether the tokenizer brings a template of its own that renders an exchange in another way.
    fn strays(&self, used: &ChatTemplate) -> bool {
        let chosen = matches!(self.source, TemplateSource::Text(_) | TemplateSource::File(_));
        let Some(path) = self.tokenizer.as_ref().filter(|_| chosen) else { return false };
        let Ok(info) = pipe_files::TemplateTexts::read(path) else { return false };
        let Some(own) = info.chat_template.as_ref() else { return false };
        let Ok(own) = ChatTemplate::parse(own, &render::special_texts(&info)) else { return false };
        let turn =
            |role: &str| Map::from_iter([("role".to_string(), json!(role)), ("content".to_string(), json!("x"))]);
        let probe = [turn("user"), turn("assistant")];
        match own.render(&probe, None, &self.kwargs, false) {
            Ok(text) => used.render(&probe, None, &self.kwargs, false).is_ok_and(|other| other != text),
            Err(_) => false,
        }
    }

    fn render_split(
        &self,
        template: Option<&ChatTemplate>,
        split: &str,
        ctx: &Context,
        counts: &mut Counts,
        remarks: &mut RemarkWriter,
    ) -> Result<(), TaskError> {
        let file = format!("{split}.parquet");
        let schema = rendered();
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let mut reuse = Reuse::of(ctx, split, &["data"])?;
        let mut earlier = Forward::open(ctx, &file, &columns)?;
        let mut said = RemarkReader::open(ctx, split)?;
        let mut writer = TableWriter::create(&ctx.out().join(&file), schema.clone())?;
        let mut at = 0;
        for batch in batches(ctx.input(split)?, &["row_id", "data"], BATCH_ROWS)? {
            ctx.cancel.check()?;
            let batch = batch?;
            let (ids, data) = (text_column(&batch, "row_id")?, text_column(&batch, "data")?);
            let origins = reuse.next(batch.num_rows());
            let fresh: Vec<usize> = (0..batch.num_rows()).filter(|&i| origins[i].is_none()).collect();
            let rows: Vec<Row> = fresh
                .par_iter()
                .map(|&i| self.row(template, data.value(i)).map_err(|why| located(ids.value(i), why)))
                .collect::<Result<_, _>>()?;
            let mut weave = Weave::default();
            let mut computed = rows.iter();
            for (i, origin) in origins.iter().enumerate() {
                let lost = match (origin, &mut earlier) {
                    (Some(row), Some(table)) => {
                        weave.earlier(table, *row)?;
                        counts.reused += 1;
                        said.of(*row, |_| ())?.iter().map(|remark| remark.count).sum()
                    }
                    _ => {
                        weave.fresh();
                        computed.next().map_or(0, |row| row.lost)
                    }
                };
                counts.note(split, at + i as u64, ids.value(i), lost, remarks)?;
            }
            at += batch.num_rows() as u64;
            let computed = record(fresh_ids(ids, &fresh), &rows)?;
            writer.write(&with_ids(&weave.finish(computed)?, batch.column(0).clone())?)?;
            ctx.progress(counts.rows, 0, "rows");
        }
        writer.finish().map(|_| ())
    }

    /// One example as text.
    pub fn row(&self, template: Option<&ChatTemplate>, data: &str) -> Result<Row, String> {
        let example = Example::parse(data)?;
        match example {
            Example::Chat { messages, tools } => {
                if let Some(row) = turns::row(&self.style, &messages) {
                    return row;
                }
                let template = template.ok_or("the recipe has no chat template for conversations")?;
                self.chat(template, messages, tools.as_ref())
            }
            Example::Instruct { system, instruction, input, output } => {
                Ok(self.style.row(system.as_deref(), &instruction, &input, output))
            }
            Example::Completion { text } => Ok(Row { bos: true, eos: true, ..joined(&[(text, "text", 1)]) }),
            Example::Segments { segments } => {
                let pieces: Vec<_> = segments.into_iter().map(|s| (s.text, "text", i8::from(s.label))).collect();
                Ok(joined(&pieces))
            }
            Example::Tokens { input_ids, labels } => {
                let narrow = |ids: Vec<i64>| ids.into_iter().map(|id| id as i32).collect();
                Ok(Row { tokens: narrow(input_ids), labels: narrow(labels), ..Row::default() })
            }
        }
    }

    fn chat(
        &self,
        template: &ChatTemplate,
        mut messages: Vec<Map<String, Value>>,
        tools: Option<&Value>,
    ) -> Result<Row, String> {
        let role = |message: &Map<String, Value>| message.get("role").and_then(Value::as_str).unwrap_or("").to_string();
        if let (Some(system), false) = (&self.default_system, messages.first().is_some_and(|m| role(m) == "system")) {
            let mut first = Map::new();
            first.insert("role".into(), json!("system"));
            first.insert("content".into(), json!(system));
            messages.insert(0, first);
        }
        let detail = |(i, message)| detail::take(message).map_err(|why| format!("message {}: {why}", i + 1));
        let details = messages.iter_mut().enumerate().map(detail).collect::<Result<Vec<_>, _>>()?;
        let flags: Vec<i8> = messages.iter_mut().map(take_flag).collect();
        let rendered = spans::render(template, &messages, tools, &self.kwargs).map_err(|error| error.to_string())?;
        let mut spans = Vec::with_capacity(rendered.spans.len());
        for span in &rendered.spans {
            let role = role(&messages[span.message]);
            match &details[span.message] {
                Some(detail) if flags[span.message] != 0 => {
                    spans.extend(detail::spans(detail, span, &rendered.pieces, &role));
                }
                _ => spans.push(RoleSpan {
                    start: span.start as i32,
                    end: span.end as i32,
                    limit: span.limit as i32,
                    role,
                    train: flags[span.message],
                }),
            }
        }
        let answers = rendered.lost.iter().filter(|&&i| role(&messages[i]) == "assistant").count();
        Ok(Row {
            piece_ends: vec![rendered.text.len() as i32],
            text: rendered.text,
            spans,
            lost: answers as u64,
            ..Row::default()
        })
    }
}

/// The training flag of a message, taken out so that no template sees it.
fn take_flag(message: &mut Map<String, Value>) -> i8 {
    match message.shift_remove("train").and_then(|flag| flag.as_bool()) {
        Some(flag) => i8::from(flag),
        None => -1,
    }
}

fn joined(pieces: &[(String, &str, i8)]) -> Row {
    let mut row = Row::default();
    for (text, role, train) in pieces {
        let start = row.text.len() as i32;
        row.text.push_str(text);
        let end = row.text.len() as i32;
        row.piece_ends.push(end);
        row.spans.push(RoleSpan { start, end, limit: end, role: (*role).to_string(), train: *train });
    }
    row
}

fn located(row_id: &str, why: String) -> TaskError {
    TaskError::Input(format!("row {row_id}: {why}"))
}

fn fresh_ids(ids: &StringArray, fresh: &[usize]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(fresh.iter().map(|&i| ids.value(i))))
}

fn record(ids: ArrayRef, rows: &[Row]) -> Result<RecordBatch, TaskError> {
    let mut text = StringBuilder::new();
    let mut ints: [ListBuilder<Int32Builder>; 6] = Default::default();
    let mut roles = ListBuilder::new(StringBuilder::new());
    let mut train = ListBuilder::new(Int8Builder::new());
    let (mut bos, mut eos) = (BooleanBuilder::new(), BooleanBuilder::new());
    for row in rows {
        text.append_value(&row.text);
        let starts: Vec<i32> = row.spans.iter().map(|span| span.start).collect();
        let ends: Vec<i32> = row.spans.iter().map(|span| span.end).collect();
        let limits: Vec<i32> = row.spans.iter().map(|span| span.limit).collect();
        let lists = [&row.piece_ends, &starts, &ends, &limits, &row.tokens, &row.labels];
        for (list, values) in ints.iter_mut().zip(lists) {
            list.values().append_slice(values);
            list.append(true);
        }
        for span in &row.spans {
            roles.values().append_value(&span.role);
            train.values().append_value(span.train);
        }
        roles.append(true);
        train.append(true);
        bos.append_value(row.bos);
        eos.append_value(row.eos);
    }
    let [mut pieces, mut starts, mut ends, mut limits, mut tokens, mut labels] = ints;
    let columns: Vec<ArrayRef> = vec![
        ids,
        Arc::new(text.finish()),
        Arc::new(pieces.finish()),
        Arc::new(starts.finish()),
        Arc::new(ends.finish()),
        Arc::new(limits.finish()),
        Arc::new(roles.finish()),
        Arc::new(train.finish()),
        Arc::new(bos.finish()),
        Arc::new(eos.finish()),
        Arc::new(tokens.finish()),
        Arc::new(labels.finish()),
    ];
    RecordBatch::try_new(rendered(), columns).map_err(|error| TaskError::Failed(error.to_string()))
}

fn template_part(path: &Path) -> Result<Vec<u8>, String> {
    pipe_files::chat_template_bytes(path).map_err(|error| error.to_string())
}

fn special_part(path: &Path) -> Result<Vec<u8>, String> {
    let info = pipe_files::TemplateTexts::read(path).map_err(|error| error.to_string())?;
    let special = render::special_texts(&info);
    Ok(format!("{special:?}").into_bytes())
}
