//! `train`: packed rows in, an adapter (or a whole model) out; the work is a job for the worker.
//!
//! The output holds `adapter_model.safetensors`, `adapter_config.json` and `metrics.jsonl` (no clock times, so equal runs
//! give equal bytes). Checkpoints lie in the node's work folder, filed under its key: a changed recipe cannot resume them.

use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError};
use pipe_job::{Adapter, BaseWeights, Batching, Compute, EvalPoints, Optimizer, SavePoints, Schedule, TrainJob};
use serde::Serialize;
use serde_json::Value;

use crate::model::BaseModel;
use crate::worker::Worker;

/// Everything training depends on besides its inputs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Train {
    pub adapter: Adapter,
    pub base: BaseWeights,
    pub compute: Compute,
    pub batching: Batching,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    pub eval: EvalPoints,
    pub neftune_alpha: f64,
    pub seed: u64,
    pub kernels: bool,
    /// Where checkpoints fall cannot change the result.
    #[serde(skip)]
    pub save: SavePoints,
    /// Recomputing activations cannot change the result.
    #[serde(skip)]
    pub gradient_checkpointing: bool,
    #[serde(skip)]
    pub model: BaseModel,
    #[serde(skip)]
    pub worker: Worker,
    /// Expected peak of the worker, for the scheduler.
    #[serde(skip)]
    pub memory_bytes: u64,
}

impl Task for Train {
    fn stage(&self) -> &'static str {
        "train"
    }

    fn version(&self) -> String {
        format!("1+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    fn files(&self) -> Vec<SourceFile> {
        self.model.weight_sources()
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, memory_bytes: self.memory_bytes, gpus: 1, weight: 1000 }
    }

    fn run(&self, ctx: &Context) -> Result<Summary, TaskError> {
        self.model.require()?;
        let job = TrainJob {
            model: self.model.source(None, self.base, self.compute),
            adapter: self.adapter.clone(),
            train: ctx.input("train")?.to_path_buf(),
            val: ctx.input_opt("val").map(Into::into),
            batching: self.batching,
            optimizer: self.optimizer,
            schedule: self.schedule,
            eval: self.eval,
            save: self.save,
            gradient_checkpointing: self.gradient_checkpointing,
            neftune_alpha: self.neftune_alpha,
            seed: self.seed,
            kernels: self.kernels,
            output: ctx.out().to_path_buf(),
            checkpoints: ctx.work.clone(),
        };
        let report = self.worker.run(pipe_job::Task::Train(Box::new(job)), ctx)?;
        Ok(report.into_summary())
    }
}
