//! `eval`: how good the model is on held-out rows, base and tuned side by side.
//!
//! Perplexity comes from packed rows, exact match from greedy answers to each row's prompt (its ids before the first
//! trained token). The worker computes losses and token ids; everything that needs text happens here. The output is
//! `eval.json` (the table), `answers.parquet` (one line per model and row) and `samples.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError, View};
use pipe_job::{BaseWeights, Compute, EvalJob, Generation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::companions::tokenizer_part;
use crate::model::BaseModel;
use crate::recipe::Metric;
use crate::rows::{TableWriter, batches, int_list, list_column, text_column};
use crate::worker::Worker;

/// Everything evaluation depends on besides its inputs (`adapter`, `packs.SPLIT`, `tokens.SPLIT.N`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Eval {
    pub metrics: Vec<Metric>,
    pub samples: Vec<(String, String)>,
    pub max_new_tokens: usize,
    pub temperature: f64,
    pub baseline: bool,
    pub base: BaseWeights,
    pub compute: Compute,
    /// Token texts that end an answer, besides the model's own end tokens.
    pub stop: Vec<String>,
    /// Rows answered together; cannot change greedy answers but for rounding.
    pub batch: usize,
    /// Where the rows' tokenizer is.
    #[serde(skip)]
    pub tokenizer: PathBuf,
    #[serde(skip)]
    pub model: BaseModel,
    #[serde(skip)]
    pub worker: Worker,
}

/// Loss totals of one model on one split, as the worker writes them.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Losses {
    loss_sum: f64,
    tokens: u64,
    trained_tokens: u64,
}

/// A row's prompt and the answer it should get, as text.
struct Expected {
    prompt: String,
    answer: String,
}

impl Task for Eval {
    fn stage(&self) -> &'static str {
        "eval"
    }

    fn version(&self) -> String {
        format!("2+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    fn files(&self) -> Vec<SourceFile> {
        let mut files = self.model.weight_sources();
        files.push(SourceFile {
            role: "tokenizer".into(),
            path: self.tokenizer.clone(),
            view: View::Part { name: "tokenizer-files", bytes: tokenizer_part },
        });
        files
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, gpus: 1, weight: 200 }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        self.model.require()?;
        let tokenizer = pipe_files::tokenizer(&self.tokenizer).map_err(|e| TaskError::Failed(e.to_string()))?;
        let scratch = ctx.work.join("eval");
        std::fs::create_dir_all(&scratch).map_err(TaskError::io("making the evaluation's scratch folder"))?;
        let job = self.job(ctx, &tokenizer, &scratch)?;
        let answered = job.answers.clone();
        let report = self.worker.run(pipe_job::Task::Eval(Box::new(job)), ctx)?;
        let mut table = losses_table(&scratch.join("losses.json"))?;
        let expected = read_expected(&answered, &tokenizer)?;
        if !answered.is_empty() {
            let answers = scratch.join("answers.parquet");
            score_answers(&answers, &expected, &tokenizer, &ctx.out().join("answers.parquet"), &mut table)?;
        }
        let samples = self.decode_samples(&scratch.join("samples.json"), &tokenizer)?;
        write_json(&ctx.out().join("samples.json"), &samples)?;
        write_json(&ctx.out().join("eval.json"), &json!({ "models": table }))?;
        let mut summary = report.into_summary();
        summary.rows = Some(expected.values().map(|rows| rows.len() as u64).sum());
        summary.stats.insert("models".into(), json!(table));
        summary.stats.insert("samples".into(), samples);
        Ok(summary)
    }
}

impl Eval {
    fn job(&self, ctx: &Context, tokenizer: &Tokenizer, scratch: &Path) -> Result<EvalJob, TaskError> {
        let wants = |metric| self.metrics.contains(&metric);
        let inputs = |prefix: &str, wanted: bool| -> Vec<(String, PathBuf)> {
            let named = ctx.inputs.iter().filter(|_| wanted).filter_map(|(role, path)| {
                let split = role.strip_prefix(prefix)?.split('.').next()?;
                Some((split.to_string(), path.clone()))
            });
            named.collect()
        };
        let samples = self.samples.iter().map(|(prompt, rendered)| {
            let encoding = tokenizer.encode(rendered.as_str(), false);
            let encoding = encoding.map_err(|e| TaskError::Failed(format!("tokenising a sample: {e}")))?;
            Ok((prompt.clone(), encoding.get_ids().iter().map(|&id| i64::from(id)).collect()))
        });
        Ok(EvalJob {
            model: self.model.source(ctx.input_opt("adapter"), self.base, self.compute),
            whole: ctx.input_opt("model").map(Path::to_path_buf),
            baseline: self.baseline,
            packs: inputs("packs.", wants(Metric::Perplexity)),
            answers: inputs("tokens.", wants(Metric::ExactMatch)),
            generation: self.generation(tokenizer),
            samples: samples.collect::<Result<_, TaskError>>()?,
            output: scratch.to_path_buf(),
        })
    }

    fn generation(&self, tokenizer: &Tokenizer) -> Generation {
        let info = pipe_files::TokenizerInfo::read(&self.tokenizer).ok();
        let own = info.map(|info| info.stops).unwrap_or_default().into_iter().map(i64::from);
        let named = self.stop.iter().filter_map(|token| tokenizer.token_to_id(token)).map(i64::from);
        let mut stop: Vec<i64> = own.chain(named).collect();
        stop.sort_unstable();
        stop.dedup();
        Generation {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 0,
            stop,
            batch: self.batch,
        }
    }

    /// `[{"prompt":..., "base":..., "tuned":...}]` from the worker's `{model: {prompt: ids}}`.
    fn decode_samples(&self, path: &Path, tokenizer: &Tokenizer) -> Result<Value, TaskError> {
        if self.samples.is_empty() {
            return Ok(json!([]));
        }
        let written: BTreeMap<String, BTreeMap<String, Vec<i32>>> = read_json(path)?;
        let rows = self.samples.iter().map(|(prompt, _)| {
            let mut row = Map::new();
            row.insert("prompt".into(), json!(prompt));
            for (model, answers) in &written {
                if let Some(ids) = answers.get(prompt) {
                    row.insert(model.clone(), json!(decode(tokenizer, ids)?));
                }
            }
            Ok(Value::Object(row))
        });
        rows.collect::<Result<Vec<_>, TaskError>>().map(Value::Array)
    }
}

type Table = BTreeMap<String, BTreeMap<String, Map<String, Value>>>;

fn losses_table(path: &Path) -> Result<Table, TaskError> {
    let losses: BTreeMap<String, BTreeMap<String, Losses>> = read_json(path)?;
    let mut table = Table::new();
    for (model, splits) in losses {
        for (split, sums) in splits {
            let loss = sums.loss_sum / sums.trained_tokens.max(1) as f64;
            let row = table.entry(model.clone()).or_default().entry(split).or_default();
            row.insert("loss".into(), json!(loss));
            row.insert("perplexity".into(), json!(loss.exp()));
            row.insert("tokens".into(), json!(sums.tokens));
            row.insert("trained_tokens".into(), json!(sums.trained_tokens));
        }
    }
    Ok(table)
}

/// Expected answers by (split, row id), from the rows' own labels.
fn read_expected(
    files: &[(String, PathBuf)],
    tokenizer: &Tokenizer,
) -> Result<BTreeMap<String, BTreeMap<String, Expected>>, TaskError> {
    let mut expected: BTreeMap<String, BTreeMap<String, Expected>> = BTreeMap::new();
    for (split, path) in files {
        let rows = expected.entry(split.clone()).or_default();
        for batch in batches(path, &["row_id", "input_ids", "labels"], 1024)? {
            let batch = batch?;
            let (names, ids) = (text_column(&batch, "row_id")?, list_column(&batch, "input_ids")?);
            let labels = list_column(&batch, "labels")?;
            for i in 0..batch.num_rows() {
                let (ids, labels) = (int_list(ids, i)?, int_list(labels, i)?);
                let start = labels.iter().position(|&label| label != -100).unwrap_or(labels.len());
                let end = labels[start..].iter().position(|&label| label == -100).map_or(labels.len(), |n| start + n);
                let row = Expected {
                    prompt: decode(tokenizer, &ids[..start])?,
                    answer: decode(tokenizer, &ids[start..end])?,
                };
                rows.insert(names.value(i).to_string(), row);
            }
        }
    }
    Ok(expected)
}

/// Compares the worker's answers with the expected ones: writes the readable table and adds `exact_match` and `rows`.
fn score_answers(
    answers: &Path,
    expected: &BTreeMap<String, BTreeMap<String, Expected>>,
    tokenizer: &Tokenizer,
    out: &Path,
    table: &mut Table,
) -> Result<(), TaskError> {
    let mut columns: [Vec<String>; 6] = Default::default();
    let mut exact = Vec::new();
    let mut counts: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for batch in batches(answers, &["model", "split", "row_id", "output_ids"], 1024)? {
        let batch = batch?;
        let (models, splits) = (text_column(&batch, "model")?, text_column(&batch, "split")?);
        let (names, outputs) = (text_column(&batch, "row_id")?, list_column(&batch, "output_ids")?);
        for i in 0..batch.num_rows() {
            let (model, split, row_id) = (models.value(i), splits.value(i), names.value(i));
            let Some(row) = expected.get(split).and_then(|rows| rows.get(row_id)) else { continue };
            let answer = decode(tokenizer, int_list(outputs, i)?)?;
            let same = answer == row.answer;
            let count = counts.entry((model.to_string(), split.to_string())).or_default();
            count.0 += u64::from(same);
            count.1 += 1;
            exact.push(same);
            let cells = [model.into(), split.into(), row_id.into(), row.prompt.clone(), row.answer.clone(), answer];
            columns.iter_mut().zip(cells).for_each(|(column, cell)| column.push(cell));
        }
    }
    for ((model, split), (right, rows)) in counts {
        let row = table.entry(model).or_default().entry(split).or_default();
        row.insert("exact_match".into(), json!(right as f64 / rows.max(1) as f64));
        row.insert("rows".into(), json!(rows));
    }
    write_answers(columns, exact, out)
}

fn write_answers(columns: [Vec<String>; 6], exact: Vec<bool>, out: &Path) -> Result<(), TaskError> {
    let names = ["model", "split", "row_id", "prompt", "expected", "answer"];
    let mut fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect();
    fields.push(Field::new("exact", DataType::Boolean, false));
    let schema = Arc::new(Schema::new(fields));
    let mut arrays: Vec<Arc<dyn Array>> = Vec::new();
    arrays.extend(columns.into_iter().map(|column| Arc::new(StringArray::from(column)) as Arc<dyn Array>));
    arrays.push(Arc::new(BooleanArray::from(exact)));
    let batch = RecordBatch::try_new(schema.clone(), arrays).map_err(|e| TaskError::Failed(e.to_string()))?;
    let mut writer = TableWriter::create(out, schema)?;
    writer.write(&batch)?;
    writer.finish().map(|_| ())
}

fn decode(tokenizer: &Tokenizer, ids: &[i32]) -> Result<String, TaskError> {
    let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
    let text = tokenizer.decode(&ids, true).map_err(|e| TaskError::Failed(format!("decoding tokens: {e}")))?;
    Ok(text.trim().to_string())
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TaskError> {
    let bytes = std::fs::read(path).map_err(TaskError::io(format!("reading {}", path.display())))?;
    serde_json::from_slice(&bytes).map_err(|e| TaskError::Failed(format!("{}: {e}", path.display())))
}

fn write_json(path: &Path, value: &Value) -> Result<(), TaskError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| TaskError::Failed(e.to_string()))?;
    std::fs::write(path, text + "\n").map_err(TaskError::io(format!("writing {}", path.display())))
}
