//! `merge`: base weights plus adapter as one Hugging Face folder that transformers, vLLM and llama.cpp load as it is.

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError};
use pipe_job::{BaseWeights, Compute, MergeBase, MergeJob, WeightType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::convert::{FloatType, tokenizer_part};
use crate::model::BaseModel;
use crate::worker::Worker;

/// Keys of the `merge` section; `merge: true` takes every default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeSection {
    /// Element type of the merged weights: `bfloat16` (default), `float16` or `float32`.
    pub dtype: Option<FloatType>,
    /// Largest weight file, such as `5GB` (default) or `500MB`.
    pub max_shard_size: Option<String>,
    /// `as_trained` (default) merges into the weights training saw, dequantised from the quantised base; `original`
    /// merges into the base model's own files.
    pub base: Option<MergeFrom>,
}

/// Which base weights an adapter is merged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MergeFrom {
    AsTrained,
    Original,
}

/// Merges an adapter into its base.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Merge {
    pub dtype: WeightType,
    pub base: MergeBase,
    pub max_shard_bytes: u64,
    pub weights: BaseWeights,
    pub compute: Compute,
    #[serde(skip)]
    pub model: BaseModel,
    #[serde(skip)]
    pub worker: Worker,
}

impl Task for Merge {
    fn stage(&self) -> &'static str {
        "merge"
    }

    fn version(&self) -> String {
        format!("1+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    fn files(&self) -> Vec<SourceFile> {
        let mut files = self.model.weight_sources();
        files.push(SourceFile {
            role: "tokenizer".into(),
            path: self.model.path.clone(),
            view: pipe_engine::task::View::Part { name: "tokenizer-files", bytes: tokenizer_part },
        });
        files
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, weight: 50, ..Resources::default() }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        self.model.require()?;
        let job = MergeJob {
            model: self.model.source(ctx.input_opt("adapter"), self.weights, self.compute),
            base: self.base,
            dtype: self.dtype,
            max_shard_bytes: self.max_shard_bytes,
            output: ctx.out().to_path_buf(),
        };
        let report = self.worker.run(pipe_job::Task::Merge(Box::new(job)), ctx)?;
        Ok(report.into_summary())
    }
}

/// Bytes of a size such as `5GB`, `500MB` or `1GiB`; the error says what is accepted.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KIB" => 1 << 10,
        "MIB" => 1 << 20,
        "GIB" => 1 << 30,
        _ => return Err(format!("`{text}` is not a size; write a number and KB, MB, GB, KiB, MiB or GiB, such as 5GB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * factor as f64) as u64),
        _ => Err(format!("`{text}` is not a size; write a number and a unit, such as 5GB")),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1.5 MiB"), Ok(1_572_864));
        assert!(parse_size("lots").is_err());
        assert!(parse_size("0GB").is_err());
    }
}
