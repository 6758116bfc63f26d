//! `merge`: base weights plus adapter as one Hugging Face folder that transformers, vLLM and llama.cpp load as it is.

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError};
use pipe_job::{BaseWeights, Compute, MergeBase, MergeJob, ModelSource, WeightType};
use serde::Serialize;
use serde_json::Value;

use crate::companions::Companions;
use crate::model::BaseModel;
use crate::worker::Worker;

/// Merges an adapter into its base.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Merge {
    pub dtype: WeightType,
    pub base: MergeBase,
    pub max_shard_bytes: u64,
    pub weights: BaseWeights,
    pub compute: Compute,
    #[serde(rename = "chat_template")]
    pub companions: Companions,
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
        format!("4+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    fn files(&self) -> Vec<SourceFile> {
        let mut files = self.model.weight_sources();
        files.extend(self.companions.files());
        files
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, gpus: 1, weight: 50 }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        // A model that was trained whole takes the base's place, and is only cast.
        let whole = ctx.input_opt("model").map(|path| ModelSource {
            path: path.to_path_buf(),
            adapter: None,
            base: BaseWeights::Dense,
            compute: self.compute,
        });
        if whole.is_none() {
            self.model.require()?;
        }
        let source = || self.model.source(ctx.input_opt("adapter"), self.weights, self.compute);
        let job = MergeJob {
            base: if whole.is_some() { MergeBase::Original } else { self.base },
            model: whole.unwrap_or_else(source),
            dtype: self.dtype,
            max_shard_bytes: self.max_shard_bytes,
            output: ctx.out().to_path_buf(),
        };
        let report = self.worker.run(pipe_job::Task::Merge(Box::new(job)), ctx)?;
        self.companions.write(ctx.out())?;
        Ok(report.into_summary())
    }
}
