//! The keys of `eval`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::checks::{self, Check};
use super::choices::ChoiceSection;
use crate::recipe::{Mistake, OneOrMany, SplitName};

/// Measure the base and the tuned model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSection {
    /// What to measure; perplexity and exact match when unset. Everything but perplexity needs answers, which are written
    /// for the test rows, or for the validation rows where there are none.
    pub metrics: Option<Vec<Metric>>,
    /// Splits to measure on; those that exist when unset.
    pub splits: Option<Vec<SplitName>>,
    /// Prompts to answer freely with both models.
    pub samples: Option<Vec<String>>,
    /// Answer `samples` during training, every so many optimizer steps.
    #[schemars(range(min = 1))]
    pub sample_every: Option<u64>,
    /// Longest answer, in tokens.
    #[schemars(range(min = 1), extend("default" = 128))]
    pub max_new_tokens: Option<u64>,
    /// Measure the base model as well.
    #[schemars(extend("default" = true))]
    pub baseline: Option<bool>,
    /// Rows answered per split at most, chosen by content; all when unset.
    #[schemars(range(min = 1))]
    pub max_rows: Option<u64>,
    /// Rows answered together.
    #[schemars(range(min = 1), extend("default" = 32))]
    pub batch_size: Option<u64>,
    /// Randomness of answers; 0 is greedy.
    #[schemars(range(min = 0.0), extend("default" = 0.0))]
    pub temperature: Option<f64>,
    /// Texts that end an answer, besides the tokens that do; what follows, and they themselves, are cut off.
    pub stop: Option<Vec<String>>,
    /// Samples of the bootstrap behind each measure's 95 % interval; 0 for no intervals.
    #[schemars(extend("default" = 1000))]
    pub resamples: Option<u64>,
    /// Checks of your own that every answer passes or fails.
    pub checks: Option<Vec<Check>>,
    /// Files of questions with choices, answered by likelihood.
    pub choices: Option<Vec<ChoiceSection>>,
    /// Text that has nothing to do with the task, as files (`.txt`, or JSONL with a `text` column): a loss that rises on it is
    /// what was forgotten.
    pub general: Option<OneOrMany>,
    /// The base model answers once more with so many training rows in front of each prompt.
    #[schemars(range(min = 1))]
    pub few_shot: Option<u64>,
    /// Also write what was asked and answered in the form of another program.
    pub export: Option<Export>,
}

/// Programs whose forms evaluation writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Export {
    /// EleutherAI's lm-evaluation-harness: `output_dir/eval/lm_eval` with tasks that it runs, and the answers as it writes them.
    LmEval,
}

/// What evaluation measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// exp of the mean loss per trained token.
    Perplexity,
    /// Share of answers equal to the reference, surrounding white space aside.
    ExactMatch,
    /// Share of answers equal to the reference in SQuAD's eyes: letter case, punctuation, articles and white space aside.
    NormalizedMatch,
    /// SQuAD's F1 over words, from 0 to 1.
    TokenF1,
    /// Corpus BLEU as sacrebleu computes it, from 0 to 100.
    Bleu,
    /// Corpus chrF as sacrebleu computes it, from 0 to 100.
    Chrf,
    /// ROUGE-L's F-measure as rouge-score computes it, from 0 to 1.
    RougeL,
    /// Share of answers that are valid JSON (RFC 8259), whatever they say.
    JsonValid,
}

impl Metric {
    pub const ALL: [Metric; 8] = [
        Metric::Perplexity,
        Metric::ExactMatch,
        Metric::NormalizedMatch,
        Metric::TokenF1,
        Metric::Bleu,
        Metric::Chrf,
        Metric::RougeL,
        Metric::JsonValid,
    ];
}

impl EvalSection {
    /// What is wrong with the section's values.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut wrong = Vec::new();
        let mut taken = checks::reserved();
        for (i, check) in self.checks.iter().flatten().enumerate() {
            wrong.extend(check.mistakes(&format!("checks[{i}]"), &taken));
            taken.extend(check.name.clone());
        }
        let mut names: Vec<String> = ["train", "val", "test", super::general::SPLIT].map(str::to_string).to_vec();
        for (i, choices) in self.choices.iter().flatten().enumerate() {
            wrong.extend(choices.mistakes(&format!("choices[{i}]")));
            let name = choices.filed_under();
            if names.contains(&name) {
                let why = format!("is filed under `{name}`, as other rows are");
                wrong.push(Mistake::value(format!("choices[{i}].name"), why, Some(format!("{name}_2"))));
            }
            names.push(name);
        }
        if self.few_shot.is_some() && self.baseline == Some(false) {
            let why = "is measured with the base model, which `baseline: false` leaves out";
            wrong.push(Mistake::value("few_shot", why, Some("baseline: true".to_string())));
        }
        let measures = self.metrics.as_ref().is_none_or(|metrics| metrics.iter().any(|own| own.formula().is_some()));
        let asks = measures || self.checks.as_ref().is_some_and(|checks| !checks.is_empty());
        if self.export.is_some() && !asks && self.choices.as_ref().is_none_or(Vec::is_empty) {
            let why = "has nothing to write: no metric needs answers, and there are no `choices`";
            wrong.push(Mistake::value("export", why, Some("metrics: [perplexity, exact_match]".to_string())));
        }
        for (i, stop) in self.stop.iter().flatten().enumerate() {
            if stop.is_empty() {
                let why = "is empty, and would end every answer before it begins";
                wrong.push(Mistake::value(format!("stop[{i}]"), why, Some("\\n\\n".to_string())));
            }
        }
        wrong
    }
}
