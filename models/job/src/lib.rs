//! What `pipe` asks of `pipe-torch`, and what it hears back.
//!
//! `pipe` starts one worker per job, writes the [`Job`] as one line of JSON on its standard input and reads one
//! [`Event`] per line from its standard output. Standard input stays open: a second line `{"command":"cancel"}` or its
//! end asks the worker to stop at the next safe point (training writes a checkpoint first). Standard error is free text
//! for people. This crate holds plain data only: no defaults are decided here, every field is already resolved.

mod adapter;
mod event;
mod model;
mod optimizer;
mod serve;
mod train;

pub use adapter::{Adapter, Freeze, Init, Lora, Targets};
pub use event::{CacheFill, Event, Metric};
pub use model::{
    AgreementJob, Asked, EvalJob, Generation, ImportanceJob, MergeBase, MergeJob, ModelSource, QuantizeJob, WeightType,
    Weighted,
};
pub use optimizer::{LoraPlus, Optimizer, OptimizerKind, Schedule, ScheduleKind, Warmup};
pub use serve::{Ask, End, Sampling, ServeJob};
pub use train::{
    BaseWeights, Batching, Compute, EvalPoints, Order, Recompute, SavePoints, Stopping, TrainJob, TrainSamples,
    Watchdog,
};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Up to this many bytes in f32, a quantised base is held unpacked while an adapter is trained in f32: unpacking a weight
/// for every product would cost a tenth of the time or more.
pub const UNPACKED_TRAINING_BYTES: u64 = 1 << 30;

/// Part of the stage version of everything the worker computes: changes with libtorch's release or with any kernel that
/// can change output bytes.
pub const NUMERICS: &str = "libtorch-2.13.0.k7";

/// One piece of work for the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub task: Task,
    /// Threads libtorch and rayon may use; 0 means all cores.
    pub threads: usize,
}

/// The kinds of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Task {
    Train(Box<TrainJob>),
    Eval(Box<EvalJob>),
    Merge(Box<MergeJob>),
    Quantize(Box<QuantizeJob>),
    Agreement(Box<AgreementJob>),
    Importance(Box<ImportanceJob>),
    Serve(Box<ServeJob>),
}

/// What may follow the job on the worker's standard input, one per line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Stop at the next safe point; state on disk stays resumable.
    Cancel,
    /// Serve only: answer this beside what is being answered.
    Ask(Box<Ask>),
    /// Serve only: this answer is no longer wanted.
    Stop { id: u64 },
    /// Serve only: hold one more adapter.
    Attach { name: String, path: PathBuf },
}
