//! `merge`: base weights plus adapters as one Hugging Face folder that transformers, vLLM and llama.cpp load as it is.

use std::path::{Path, PathBuf};

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError};
use pipe_job::{BaseWeights, Compute, MergeBase, MergeJob, ModelSource, WeightType, Weighted};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::companions::Companions;
use crate::fingerprint;
use crate::model::{BaseModel, adapter_files};
use crate::worker::Worker;

/// Merges adapters into their base.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Merge {
    pub dtype: WeightType,
    pub base: MergeBase,
    pub max_shard_bytes: u64,
    /// How much of the adapter that was trained here, or of the recipe's own, is merged.
    #[serde(skip_serializing_if = "is_whole")]
    pub weight: f64,
    /// Further adapters, by what is merged of them; their content is part of the key, their places are not.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "weights_only")]
    pub further: Vec<(PathBuf, f64)>,
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
        for (i, (folder, _)) in self.further.iter().enumerate() {
            files.extend(adapter_files(&format!("adapter.{}", i + 1), folder));
        }
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
        let base = || ModelSource { adapter: None, ..self.model.source(None, self.weights, self.compute) };
        let own = ctx.input_opt("adapter").or(self.model.adapter.as_deref()).filter(|_| whole.is_none());
        let weighted = |(path, weight): (&Path, f64)| Weighted { path: path.to_path_buf(), weight };
        let further = self.further.iter().map(|(path, weight)| (path.as_path(), *weight));
        let job = MergeJob {
            base: if whole.is_some() { MergeBase::Original } else { self.base },
            adapters: own.map(|path| (path, self.weight)).into_iter().chain(further).map(weighted).collect(),
            model: whole.unwrap_or_else(base),
            dtype: self.dtype,
            max_shard_bytes: self.max_shard_bytes,
            output: ctx.out().to_path_buf(),
        };
        let report = self.worker.run(pipe_job::Task::Merge(Box::new(job)), ctx)?;
        self.companions.write(ctx.out())?;
        let mut summary = report.into_summary();
        let used = fingerprint::of_folder(ctx.out()).ok().flatten();
        let from_elsewhere = self.model.adapter.iter().filter(|_| ctx.inputs.is_empty());
        let adapters = from_elsewhere.chain(self.further.iter().map(|(path, _)| path));
        summary.warnings.extend(adapters.filter_map(|path| {
            fingerprint::warning(path, used.as_ref()?, "the merged model is written to with the template it carries")
        }));
        Ok(summary)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_whole(weight: &f64) -> bool {
    *weight == 1.0
}

fn weights_only<S: Serializer>(further: &[(PathBuf, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(further.iter().map(|(_, weight)| weight))
}
