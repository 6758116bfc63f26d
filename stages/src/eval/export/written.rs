//! Tasks of rows that were answered: the harness' `generate_until`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pipe_engine::task::TaskError;
use serde_json::{Value, json};

use super::{Doc, Outcome, Sample, Score, Source, Task, mean, metric_list, task_name};
use crate::eval::Eval;
use crate::eval::answers::Decoder;
use crate::eval::score::{Answered, Series};
use crate::recipe::Metric;
use crate::rows::{batches, int_list, list_column, text_column, typed};

/// Answers are compared without white space around them. The harness' filter takes it off whatever its expression finds.
const FILTER: &str = "trim";
const EVERYTHING: &str = "(?s).*";

/// Answers as they were written, up to the first stop text: by model and split, then by dataset and row.
type Answers = BTreeMap<(String, String), HashMap<Place, String>>;

/// Dataset and row.
type Place = (u16, String);

/// A task for each split with answers, and what is to be said of them.
pub(super) fn tasks(eval: &Eval, source: &Source<'_>) -> Result<(Vec<Task>, Vec<String>), TaskError> {
    if source.asked.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let answers = read(source)?;
    let metrics = metrics(&eval.metrics);
    let tokenizer = &source.decoder.tokenizer;
    let generation = eval.answering.generation(tokenizer);
    let ends = generation.stop.iter().filter_map(|&id| u32::try_from(id).ok());
    let ends = ends.filter_map(|id| tokenizer.decode(&[id], false).ok()).filter(|text| !text.is_empty());
    let until: Vec<String> = eval.answering.stop.iter().cloned().chain(ends).collect();
    let mut kwargs = json!({ "until": until, "max_gen_toks": generation.max_new_tokens, "do_sample": false });
    if generation.temperature > 0.0 {
        kwargs["do_sample"] = json!(true);
        kwargs["temperature"] = json!(generation.temperature);
    }
    let bos = pipe_files::TokenizerInfo::read(&eval.answering.tokenizer).ok().and_then(|info| info.bos);
    let reader = Reader { decoder: source.decoder, bos: bos.map(|bos| bos.text) };
    let (mut tasks, mut warnings) = (Vec::new(), Vec::new());
    let splits: BTreeSet<&String> = source.asked.iter().map(|asked| &asked.split).collect();
    for split in splits {
        let (rows, otherwise) = reader.rows(eval, source, split, &answers)?;
        if otherwise > 0 {
            warnings.push(format!(
                "eval.export: {otherwise} of {} prompts ({split}) are read as other tokens when their text is tokenised again, so \
                 that lm-evaluation-harness may get other answers",
                rows.len()
            ));
        }
        tasks.push(task(split, rows, &answers, &metrics, &kwargs));
    }
    Ok((tasks, warnings))
}

/// The metrics that the harness has as well; whether answers match is always among them.
fn metrics(asked: &[Metric]) -> Vec<(&'static str, Metric)> {
    let mut metrics = vec![("exact_match", Metric::ExactMatch)];
    for (name, metric) in [("bleu", Metric::Bleu), ("chrf", Metric::Chrf)] {
        metrics.extend(asked.contains(&metric).then_some((name, metric)));
    }
    metrics
}

fn task(
    split: &str,
    rows: Vec<(Place, Doc)>,
    answers: &Answers,
    metrics: &[(&'static str, Metric)],
    kwargs: &Value,
) -> Task {
    let mut outcomes = BTreeMap::new();
    for ((model, _), given) in answers.iter().filter(|((_, own), _)| own == split) {
        let told = rows.iter().map(|(place, doc)| (doc, given.get(place).map_or("", String::as_str)));
        outcomes.insert(model.clone(), outcome(&told.collect::<Vec<_>>(), metrics, kwargs));
    }
    let aggregation = |name: &'static str| if name == "exact_match" { (name, "mean") } else { (name, name) };
    let listed: Vec<(&str, &str)> = metrics.iter().map(|(name, _)| aggregation(name)).collect();
    let filter = json!([{ "function": "regex", "regex_pattern": EVERYTHING }, { "function": "take_first" }]);
    Task {
        name: task_name(split),
        config: vec![
            ("output_type", json!("generate_until")),
            ("doc_to_text", json!("prompt")),
            ("doc_to_target", json!("target")),
            ("generation_kwargs", kwargs.clone()),
            ("filter_list", json!([{ "name": FILTER, "filter": filter }])),
            ("metric_list", metric_list(&listed)),
        ],
        filter: FILTER,
        docs: rows.into_iter().map(|(_, doc)| doc).collect(),
        outcomes,
    }
}

fn outcome(told: &[(&Doc, &str)], metrics: &[(&'static str, Metric)], kwargs: &Value) -> Outcome {
    let row = |doc: &Doc, answer: &str, metric: Metric| {
        metric.sums(Answered { prompt: &doc.prompt, expected: &doc.target, answer })
    };
    let samples = told.iter().map(|(doc, whole)| {
        let answer = whole.trim();
        let value = |(name, metric): &(&'static str, Metric)| match metric {
            Metric::ExactMatch => (*name, json!(row(doc, answer, *metric)[0])),
            // Scores of a corpus are made of pairs.
            _ => (*name, json!([doc.target, answer])),
        };
        Sample {
            requests: vec![[json!(doc.prompt), kwargs.clone()]],
            resps: vec![json!([whole])],
            filtered: vec![json!(answer)],
            metrics: metrics.iter().map(value).collect(),
        }
    });
    let score = |(name, metric): &(&'static str, Metric)| {
        let sums = told.iter().map(|(doc, whole)| row(doc, whole.trim(), *metric));
        if *metric == Metric::ExactMatch {
            return Some(mean(name, &sums.map(|sums| sums[0]).collect::<Vec<_>>()));
        }
        let mut series = Series::new(metric.formula()?);
        sums.for_each(|sums| series.push(&sums));
        Some(Score { metric: name, value: series.value()?, error: None })
    };
    Outcome { samples: samples.collect(), scores: metrics.iter().filter_map(score).collect() }
}

/// What the models answered; other names than these are the base model asked in another way.
fn read(source: &Source<'_>) -> Result<Answers, TaskError> {
    let mut answers = Answers::new();
    for batch in batches(source.answers, &["model", "split", "source", "row_id", "output_ids"], 1024)? {
        let batch = batch?;
        let (models, splits) = (text_column(&batch, "model")?, text_column(&batch, "split")?);
        let sources = typed::<arrow::array::UInt16Array>(&batch, "source")?;
        let (names, outputs) = (text_column(&batch, "row_id")?, list_column(&batch, "output_ids")?);
        for i in (0..batch.num_rows()).filter(|&i| matches!(models.value(i), "base" | "tuned")) {
            let place = (models.value(i).to_string(), splits.value(i).to_string());
            let answer = source.decoder.written(int_list(outputs, i)?)?;
            answers.entry(place).or_default().insert((sources.value(i), names.value(i).to_string()), answer);
        }
    }
    Ok(answers)
}

/// Rows as text.
struct Reader<'a> {
    decoder: &'a Decoder<'a>,
    bos: Option<String>,
}

impl Reader<'_> {
    /// The rows of a split that were answered, and how many prompts the harness will read as other tokens.
    fn rows(
        &self,
        eval: &Eval,
        source: &Source<'_>,
        split: &str,
        answers: &Answers,
    ) -> Result<(Vec<(Place, Doc)>, usize), TaskError> {
        let given: Vec<_> = answers.iter().filter(|((_, own), _)| own == split).map(|(_, given)| given).collect();
        let labels = eval.sources.get(split);
        let (mut rows, mut otherwise) = (Vec::new(), 0);
        for asked in source.asked.iter().filter(|asked| asked.split == *split && asked.base_as.is_none()) {
            let dataset = labels.and_then(|names| names.get(usize::from(asked.source))).cloned().unwrap_or_default();
            for batch in batches(&asked.rows, &["row_id", "input_ids", "labels"], 1024)? {
                let batch = batch?;
                let (names, ids) = (text_column(&batch, "row_id")?, list_column(&batch, "input_ids")?);
                let labels = list_column(&batch, "labels")?;
                for i in 0..batch.num_rows() {
                    let place = (asked.source, names.value(i).to_string());
                    if !given.iter().any(|given| given.contains_key(&place)) {
                        continue;
                    }
                    let (ids, labels) = (int_list(ids, i)?, int_list(labels, i)?);
                    let start = labels.iter().position(|&label| label != -100).unwrap_or(labels.len());
                    let end = labels[start..].iter().position(|&label| label == -100);
                    let prompt = self.decoder.whole(&ids[..start])?;
                    let target = self.decoder.text(&ids[start..end.map_or(labels.len(), |n| start + n)])?;
                    otherwise += usize::from(!self.reads(&prompt, &ids[..start])?);
                    let columns = json!({ "row_id": place.1, "dataset": dataset, "prompt": prompt, "target": target });
                    rows.push((place, Doc { columns, prompt, target }));
                }
            }
        }
        Ok((rows, otherwise))
    }

    /// Whether the harness reads a prompt as these tokens: it lets the tokenizer put its marks around a text that does not begin
    /// with them.
    fn reads(&self, prompt: &str, ids: &[i32]) -> Result<bool, TaskError> {
        let marked = self.bos.as_deref().is_some_and(|bos| !bos.is_empty() && prompt.starts_with(bos));
        let read = self.decoder.tokenizer.encode(prompt, !marked);
        let read = read.map_err(|e| TaskError::Failed(format!("tokenising a prompt: {e}")))?;
        Ok(read.get_ids().iter().map(|&id| id as i32).eq(ids.iter().copied()))
    }
}
