//! Answering many requests from one loaded model: what is asked, and how an answer ends.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ModelSource;

/// Load a model once and answer what is asked of it until the input ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServeJob {
    /// The base; its `adapter` is `None`.
    pub model: ModelSource,
    /// PEFT folders by name, held beside each other on the one base.
    pub adapters: Vec<(String, PathBuf)>,
    /// Answers in the making at one time at most.
    pub rows: usize,
    /// Bytes that the keys and values of all answers may take together.
    pub cache_bytes: u64,
}

/// One request: a prompt as tokens, to be answered under `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    pub id: u64,
    /// Which adapter answers; the base when `None`.
    pub adapter: Option<String>,
    pub ids: Vec<i64>,
    pub sampling: Sampling,
}

/// How the tokens of an answer are chosen. Greedy when `temperature` is 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    pub max_new_tokens: usize,
    pub temperature: f64,
    /// Share of the probability that is drawn from; 1 for all.
    pub top_p: f64,
    /// Likeliest tokens that are drawn from; 0 for all.
    pub top_k: usize,
    /// Factor against every token seen so far, prompt included; 1 for none.
    pub repetition_penalty: f64,
    /// Taken from the score of every token of the answer so far.
    pub presence_penalty: f64,
    /// The same for each time it occurs.
    pub frequency_penalty: f64,
    pub seed: u64,
    /// Ids that end the answer; not part of it.
    pub stop: Vec<i64>,
}

/// Why an answer has no further token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum End {
    /// The model said a token that ends answers.
    Stop,
    /// It is as long as was asked for.
    Length,
    /// It was asked to stop.
    Stopped,
    /// It cannot be answered.
    Refused { message: String },
}
