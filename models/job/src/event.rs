//! Events from the worker, one JSON object per line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::End;

/// One line of the worker's standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Work done so far, for a progress bar.
    Progress { done: u64, total: u64, unit: String, phase: String },
    /// One optimizer step.
    Metric(Metric),
    /// One evaluation during training. `loss` is nats per trained token.
    Eval { step: u64, split: String, loss: f64, perplexity: f64, trained_tokens: u64 },
    /// An answer to a fixed prompt during training. `distinct_2` is the share of different pairs of tokens, `repeated` that of
    /// runs of four tokens that were there before.
    Sample { step: u64, prompt: String, answer: String, distinct_2: f64, repeated: f64 },
    /// Something a person should know that does not stop the work.
    Warning { message: String },
    /// A fact worth keeping with the run, such as trainable parameters or the device.
    Fact { name: String, value: f64 },
    /// Serve only: the model is in memory. `context` is the tokens it was made for, `cache_tokens` what the cache holds.
    Ready { context: usize, cache_tokens: usize },
    /// Serve only: the next token of some answers, by their ids.
    Tokens { tokens: Vec<(u64, i64)> },
    /// Serve only: how full the cache is.
    Cache(CacheFill),
    /// Serve only: an answer is over.
    Ended { id: u64, end: End },
    /// Serve only: the adapter is held, or why it is not.
    Attached { name: String, refused: Option<String> },
    /// The job is done; everything it wrote is flushed to disk. `peak_rss_bytes` is this process's high-water mark.
    Done { peak_rss_bytes: u64 },
    /// The job was cancelled; state on disk is resumable.
    Cancelled { peak_rss_bytes: u64 },
    /// The job failed. `input` tells a mistake in what was given (exit code 2) from a failure in the work (1).
    Failed { message: String, input: bool },
}

/// How full a serving worker's cache is, and what it has brought since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheFill {
    /// Blocks of keys and values that running answers hold.
    pub used: usize,
    /// Blocks that can be had, those included whose content is kept for requests that begin alike.
    pub free: usize,
    /// Tokens of prompts that did not have to be read, because another request began with them.
    pub found: u64,
    /// Answers that gave their blocks to older ones and went on later.
    pub preempted: u64,
}

/// The numbers of one optimizer step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Steps done, counting this one; starts at 1.
    pub step: u64,
    pub total_steps: u64,
    /// Epochs done after this step, with fraction.
    pub epoch: f64,
    /// Sum of token losses over trained tokens divided by their number in this step's window, before the update.
    pub loss: f64,
    pub lr: f64,
    /// Global 2-norm before clipping.
    pub grad_norm: f64,
    /// Real tokens of this step (padding not counted).
    pub tokens: u64,
    /// Trained tokens of this step, after the label shift.
    pub trained_tokens: u64,
    pub tokens_per_second: f64,
    #[serde(default)]
    pub trained_tokens_per_second: f64,
    #[serde(default)]
    pub perplexity: f64,
    /// Loss of each dataset's trained tokens in this step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub losses: BTreeMap<String, f64>,
    /// Arithmetic done per second, divided by what a large product of matrices reaches on this machine.
    #[serde(default)]
    pub mfu: f64,
    pub rss_bytes: u64,
    #[serde(default)]
    pub peak_rss_bytes: u64,
    /// Seconds until the last step at the pace so far.
    #[serde(default)]
    pub eta_seconds: f64,
}
