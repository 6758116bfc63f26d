//! `eval`: how good the model is on held-out rows, base and tuned side by side.
//!
//! Perplexity comes from packed rows, every other measure from answers to each row's prompt (its ids before the first
//! trained token). The worker computes losses and token ids; everything that needs text happens here. The output is
//! `eval.json` (the table), `answers.parquet` (one line per model and row) and `samples.json`; with `eval.export` also a folder
//! for another program.

mod answering;
mod answers;
mod asked;
mod bleu;
mod bootstrap;
mod checks;
mod choices;
mod chrf;
pub mod compare;
mod documents;
mod export;
mod general;
mod losses;
mod questions;
mod rouge;
mod score;
pub mod section;
mod sheet;
mod squad;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError, View};
use pipe_job::{Asked, BaseWeights, Compute, EvalJob};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::companions::tokenizer_part;
use crate::fingerprint::{self, Written, fingerprint};
use crate::inspect;
use crate::model::BaseModel;
use crate::recipe::{Export, Metric};
use crate::worker::Worker;
pub use answering::{Answering, TrainingSamples};
use answers::Decoder;
pub use checks::Check;
pub use choices::{ChoiceSection, Choices};
use questions::Questions;
use score::Measure;
use sheet::Sheet;

/// Everything evaluation depends on besides its inputs (`adapter`, `packs.SPLIT`, `tokens.SPLIT.N`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Eval {
    pub metrics: Vec<Metric>,
    pub samples: Vec<(String, String)>,
    pub answering: Answering,
    pub baseline: bool,
    pub base: BaseWeights,
    pub compute: Compute,
    /// Rows answered per split at most.
    pub max_rows: Option<usize>,
    /// Samples of the bootstrap behind each interval; 0 for no intervals.
    pub resamples: usize,
    pub checks: Vec<Check>,
    pub choices: Vec<Choices>,
    /// Tokens of a window of general text.
    pub sequence_len: usize,
    /// Training rows put before each prompt for the base model; 0 for no such answers.
    pub few_shot: usize,
    /// Whom questions and answers are also written for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<Export>,
    /// Files of general text; their content is part of the key, their names are not.
    #[serde(skip)]
    pub general: Vec<PathBuf>,
    /// What the datasets of each split are called changes nothing that is measured.
    #[serde(skip)]
    pub sources: BTreeMap<String, Vec<String>>,
    /// How the rows' conversations are written, where the model was trained elsewhere; decides nothing that is measured.
    #[serde(skip)]
    pub written: Option<Written>,
    #[serde(skip)]
    pub model: BaseModel,
    #[serde(skip)]
    pub worker: Worker,
}

impl Task for Eval {
    fn stage(&self) -> &'static str {
        "eval"
    }

    fn version(&self) -> String {
        format!("3+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    fn files(&self) -> Vec<SourceFile> {
        let mut files = self.model.weight_sources();
        files.push(SourceFile {
            role: "tokenizer".into(),
            path: self.answering.tokenizer.clone(),
            view: View::Part { name: "tokenizer-files", bytes: tokenizer_part },
        });
        let whole = |role: String, path: &PathBuf| SourceFile { role, path: path.clone(), view: View::Whole };
        files.extend(self.choices.iter().enumerate().map(|(i, own)| whole(format!("choices.{i}"), &own.path)));
        files.extend(self.general.iter().enumerate().map(|(i, path)| whole(format!("general.{i}"), path)));
        files
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, gpus: 1, weight: 200 }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        self.model.require()?;
        let measures = self.measures()?;
        let tokenizer =
            pipe_files::tokenizer(&self.answering.tokenizer).map_err(|e| TaskError::Failed(e.to_string()))?;
        let decoder = Decoder { tokenizer: &tokenizer, stops: &self.answering.stop };
        let scratch = ctx.work.join("eval");
        std::fs::create_dir_all(&scratch).map_err(TaskError::io("making the evaluation's scratch folder"))?;
        let questions = Questions::prepare(self, ctx, &tokenizer, &scratch)?;
        let (asked, mut warnings) = self.asked(ctx, &measures, &scratch)?;
        let job = self.job(ctx, &tokenizer, asked.clone(), &questions, &scratch)?;
        let report = self.worker.run(pipe_job::Task::Eval(Box::new(job)), ctx)?;
        let mut sheet = Sheet::default();
        let losses = losses::read(&scratch.join("losses.parquet"))?;
        for ((model, split), losses) in losses.iter().filter(|((_, split), _)| !questions.has(split)) {
            sheet.add(model, split, losses::block(losses));
        }
        questions.score(&losses, &mut sheet, &ctx.out().join("choices.parquet"))?;
        let expected = answers::expected(&asked, &decoder)?;
        let given = scratch.join("answers.parquet");
        if !asked.is_empty() {
            let scored = answers::score(&given, &expected, measures, &decoder, &mut sheet)?;
            scored.write(&expected, &self.sources, &ctx.out().join("answers.parquet"))?;
        }
        if self.export == Some(Export::LmEval) {
            let (asked, answers, decoder) = (asked.as_slice(), given.as_path(), &decoder);
            let source = export::Source { asked, answers, decoder, losses: &losses, questions: &questions };
            warnings.extend(export::write(self, &source, ctx.out())?);
        }
        let samples = self.decode_samples(&scratch.join("samples.json"), &decoder)?;
        write_json(&ctx.out().join("samples.json"), &samples)?;
        let table = sheet.to_json(&self.sources, self.resamples);
        write_json(&ctx.out().join("eval.json"), &table)?;
        let mut summary = report.into_summary();
        summary.rows = Some(expected.len() as u64);
        if let Value::Object(table) = table {
            summary.stats.extend(table);
        }
        summary.stats.insert("samples".into(), samples);
        warnings.extend(questions.warnings());
        warnings.extend(self.told_template(ctx, &tokenizer));
        summary.warnings.extend(warnings);
        Ok(summary)
    }
}

impl Eval {
    /// What answers are measured by.
    fn measures(&self) -> Result<Vec<Measure>, TaskError> {
        let metrics = self.metrics.iter().filter_map(|metric| Some(Measure::Metric(*metric, metric.formula()?)));
        let mut measures: Vec<Measure> = metrics.collect();
        for check in &self.checks {
            let checker = check.checker().map_err(|why| TaskError::Input(format!("eval.checks: {why}")))?;
            measures.push(Measure::Check(check.name.clone().unwrap_or_default(), checker));
        }
        Ok(measures)
    }

    fn job(
        &self,
        ctx: &Context,
        tokenizer: &Tokenizer,
        answers: Vec<Asked>,
        questions: &Questions,
        scratch: &Path,
    ) -> Result<EvalJob, TaskError> {
        let wants_loss = self.metrics.contains(&Metric::Perplexity);
        let packs = ctx.inputs.iter().filter(|_| wants_loss).filter_map(|(role, path)| {
            let split = role.strip_prefix("packs.")?;
            Some((split.to_string(), path.clone()))
        });
        Ok(EvalJob {
            model: self.model.source(ctx.input_opt("adapter"), self.base, self.compute),
            whole: ctx.input_opt("model").map(Path::to_path_buf),
            baseline: self.baseline,
            packs: packs.chain(questions.packs()).collect(),
            answers,
            generation: self.answering.generation(tokenizer),
            tokenizer: Some(self.answering.tokenizer.clone()),
            samples: answering::encode(&self.samples, tokenizer)?,
            output: scratch.to_path_buf(),
        })
    }

    /// Whether the rows are written otherwise than what the model was trained on.
    fn told_template(&self, ctx: &Context, rows: &Tokenizer) -> Option<String> {
        let (text, special) = self.written.as_ref()?.texts().ok()??;
        let trained = ctx.input_opt("adapter").or(self.model.adapter.as_deref()).unwrap_or(&self.model.path);
        // The adapter may have brought its tokenizer; the ids it was trained on are the base model's.
        let own = pipe_files::tokenizer(&self.model.path).ok();
        let used = fingerprint(&text, &special, own.as_ref().unwrap_or(rows));
        fingerprint::warning(trained, &used, "set chat_template to the one that it was trained with")
    }

    /// The rows that are answered, none where no measure needs answers; and what is to be said of them.
    fn asked(
        &self,
        ctx: &Context,
        measures: &[Measure],
        scratch: &Path,
    ) -> Result<(Vec<Asked>, Vec<String>), TaskError> {
        let asked = ctx.inputs.iter().filter(|_| !measures.is_empty()).filter_map(|(role, path)| {
            let (split, source) = role.strip_prefix("tokens.")?.split_once('.')?;
            let source = source.parse().ok()?;
            Some(Asked { split: split.to_string(), source, rows: path.clone(), base_as: None })
        });
        let mut asked: Vec<Asked> = asked.collect();
        if let Some(most) = self.max_rows {
            asked = asked::limited(asked, most, scratch)?;
        }
        if self.few_shot == 0 || asked.is_empty() {
            return Ok((asked, Vec::new()));
        }
        let tables: Vec<&Path> =
            ctx.inputs.iter().filter(|(role, _)| role.starts_with("shots.")).map(|(_, p)| p.as_path()).collect();
        let info = pipe_files::TokenizerInfo::read(&self.answering.tokenizer).ok();
        let room = asked::Room {
            context: inspect::context_length(&self.model.path).map_or(usize::MAX, |length| length as usize),
            answer: self.answering.max_new_tokens,
            bos: info.and_then(|info| info.bos).map(|bos| bos.id as i32),
        };
        let shots = asked::shots(&tables, self.few_shot, &asked, room)?;
        let warning = (shots.rows < self.few_shot).then(|| {
            format!("eval.few_shot: {} of {} training rows fit before the longest prompt", shots.rows, self.few_shot)
        });
        let primed = asked::primed(&asked, &shots, scratch)?;
        asked.extend(primed);
        Ok((asked, warning.into_iter().collect()))
    }

    /// `[{"prompt":..., "base":..., "tuned":...}]` from the worker's `{model: {prompt: ids}}`.
    fn decode_samples(&self, path: &Path, decoder: &Decoder<'_>) -> Result<Value, TaskError> {
        if self.samples.is_empty() {
            return Ok(json!([]));
        }
        let written: BTreeMap<String, BTreeMap<String, Vec<i32>>> = read_json(path)?;
        let rows = self.samples.iter().map(|(prompt, _)| {
            let mut row = Map::new();
            row.insert("prompt".into(), json!(prompt));
            for (model, answers) in &written {
                if let Some(ids) = answers.get(prompt) {
                    row.insert(model.clone(), json!(decoder.answer(ids)?));
                }
            }
            Ok(Value::Object(row))
        });
        rows.collect::<Result<Vec<_>, TaskError>>().map(Value::Array)
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TaskError> {
    let bytes = std::fs::read(path).map_err(TaskError::io(format!("reading {}", path.display())))?;
    serde_json::from_slice(&bytes).map_err(|e| TaskError::Failed(format!("{}: {e}", path.display())))
}

fn write_json(path: &Path, value: &Value) -> Result<(), TaskError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| TaskError::Failed(e.to_string()))?;
    std::fs::write(path, text + "\n").map_err(TaskError::io(format!("writing {}", path.display())))
}

#[cfg(test)]
mod tests;
