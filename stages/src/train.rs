//! `train`: packed rows in, an adapter (or a whole model) out; the work is a job for the worker.
//!
//! The output holds a PEFT adapter, or a model folder where the base's own weights are trained, and `metrics.jsonl` (no
//! clock times, so equal runs give equal bytes). Checkpoints lie in the node's work folder, filed under its key: a changed recipe cannot resume them.

use std::path::PathBuf;

use indexmap::IndexMap;
use pipe_engine::task::{Context, Resources, SourceFile, Summary, Task, TaskError, View};
use pipe_job::{
    Adapter, BaseWeights, Batching, Compute, EvalPoints, Optimizer, Recompute, SavePoints, Schedule, Stopping,
    TrainJob, Watchdog,
};
use serde::Serialize;
use serde_json::Value;

use crate::companions::tokenizer_part;
use crate::eval::TrainingSamples;
use crate::memory::{self, Tokens};
use crate::model::BaseModel;
use crate::size;
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
    pub stopping: Stopping,
    pub neftune_alpha: f64,
    pub z_loss: f64,
    pub seed: u64,
    pub kernels: bool,
    /// Where checkpoints fall cannot change the result.
    #[serde(skip)]
    pub save: SavePoints,
    /// Recomputing activations cannot change the result.
    #[serde(skip)]
    pub recompute: Recompute,
    /// Can only fail a run.
    #[serde(skip)]
    pub watchdog: Option<Watchdog>,
    /// Answers on the way change nothing that is trained.
    #[serde(skip)]
    pub sampling: Option<TrainingSamples>,
    /// What the datasets are called changes nothing that is trained.
    #[serde(skip)]
    pub sources: Vec<String>,
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    #[serde(skip)]
    pub model: BaseModel,
    #[serde(skip)]
    pub worker: Worker,
    /// The longest a row may be; rows are cut or dropped before they come here.
    #[serde(skip)]
    pub sequence_len: u64,
}

impl Task for Train {
    fn stage(&self) -> &'static str {
        "train"
    }

    fn version(&self) -> String {
        format!("6+{}", pipe_job::NUMERICS)
    }

    fn params(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    fn files(&self) -> Vec<SourceFile> {
        let mut files = self.model.weight_sources();
        // A trained model is written with its tokenizer.
        if !matches!(self.adapter, Adapter::Lora(_)) {
            files.push(SourceFile {
                role: "tokenizer".into(),
                path: self.model.path.clone(),
                view: View::Part { name: "tokenizer-files", bytes: tokenizer_part },
            });
        }
        files
    }

    fn resources(&self) -> Resources {
        Resources { cores: usize::MAX, gpus: 1, weight: 1000 }
    }

    /// The plan's estimate, from the rows that are there now.
    fn memory_bytes(&self, inputs: &IndexMap<String, PathBuf>) -> u64 {
        let tokens = Tokens {
            sequence_len: self.sequence_len,
            fullest: inputs.get("train").and_then(|packs| size::fullest(packs)),
            recompute: match self.recompute {
                Recompute::Nothing => memory::Recompute::Nothing,
                Recompute::Layers(_) => memory::Recompute::Layers,
            },
        };
        let estimate = memory::estimate(&self.model.path, &self.model.written, &self.params(), tokens);
        estimate.map_or(0, |estimate| estimate.peak_bytes)
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
            stopping: self.stopping,
            watchdog: self.watchdog,
            sampling: self.sampling.as_ref().map(TrainingSamples::job).transpose()?,
            recompute: self.recompute,
            neftune_alpha: self.neftune_alpha,
            z_loss: self.z_loss,
            sources: self.sources.clone(),
            resume: self.resume.clone(),
            seed: self.seed,
            kernels: self.kernels,
            output: ctx.out().to_path_buf(),
            checkpoints: ctx.work.clone(),
        };
        let report = self.worker.run(pipe_job::Task::Train(Box::new(job)), ctx)?;
        Ok(report.into_summary())
    }
}
