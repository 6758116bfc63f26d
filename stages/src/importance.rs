//! `quantize.importance`: which columns of each weight count most, measured on the recipe's own training rows.
//!
//! The rows go through the model that is to be quantised as they were trained, templated and tokenised. The output is
//! `importance.gguf`, an importance matrix as llama.cpp reads it; `quantize` keeps best what weighs most there.

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError};
use pipe_job::{BaseWeights, Compute, ImportanceJob, ModelSource};
use serde_json::{Value, json};

use crate::model::BaseModel;
use crate::worker::Worker;

/// The output's file.
pub const FILE: &str = "importance.gguf";

/// Measures the importance of weights (inputs `packs` and `model`, the base model where there is none).
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// Documents at most.
    pub rows: usize,
    pub compute: Compute,
    pub model: BaseModel,
    /// There is a `model` input, and the base model is not read.
    pub merged: bool,
    pub worker: Worker,
}

impl Task for Importance {
    fn stage(&self) -> &'static str {
        "quantize"
    }

    fn version(&self) -> String {
        format!("importance-1+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        json!({ "rows": self.rows, "compute": self.compute })
    }

    fn files(&self) -> Vec<SourceFile> {
        if self.merged { Vec::new() } else { self.model.weight_sources() }
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, gpus: 1, weight: 40 }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        let path = match ctx.input_opt("model") {
            Some(model) => model.to_path_buf(),
            None => {
                self.model.require()?;
                self.model.path.clone()
            }
        };
        let model = ModelSource { path, adapter: None, base: BaseWeights::Dense, compute: self.compute };
        let packs = ctx.input("packs")?.to_path_buf();
        let job = ImportanceJob { model, packs, rows: self.rows, output: ctx.out().join(FILE) };
        let report = self.worker.run(pipe_job::Task::Importance(Box::new(job)), ctx)?;
        Ok(report.into_summary())
    }
}
