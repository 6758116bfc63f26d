//! How prompts are answered: in evaluation, and for the samples of training.

use std::path::PathBuf;

use pipe_engine::task::TaskError;
use pipe_job::{Generation, TrainSamples};
use serde::Serialize;
use tokenizers::Tokenizer;

/// The settings of answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answering {
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Token texts that end an answer, besides the model's own end tokens.
    pub stop_tokens: Vec<String>,
    /// Texts that end an answer, wherever they stand in it.
    pub stop: Vec<String>,
    /// Rows answered together; cannot change greedy answers but for rounding.
    pub batch: usize,
    /// Where the rows' tokenizer is.
    #[serde(skip)]
    pub tokenizer: PathBuf,
}

impl Answering {
    /// The same as the worker wants it.
    pub fn generation(&self, tokenizer: &Tokenizer) -> Generation {
        let info = pipe_files::TokenizerInfo::read(&self.tokenizer).ok();
        let own = info.map(|info| info.stops).unwrap_or_default().into_iter().map(i64::from);
        let named = self.stop_tokens.iter().filter_map(|token| tokenizer.token_to_id(token)).map(i64::from);
        let mut stop: Vec<i64> = own.chain(named).collect();
        stop.sort_unstable();
        stop.dedup();
        Generation {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            seed: 0,
            stop,
            stop_texts: self.stop.clone(),
            batch: self.batch,
        }
    }
}

/// Prompts that are answered during training.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSamples {
    /// Optimizer steps between two looks.
    pub every: u64,
    /// Each prompt with the text that the model is given.
    pub prompts: Vec<(String, String)>,
    pub answering: Answering,
}

impl TrainingSamples {
    /// The same as the worker wants it.
    ///
    /// # Errors
    /// When the tokenizer cannot be read.
    pub fn job(&self) -> Result<TrainSamples, TaskError> {
        let path = &self.answering.tokenizer;
        let tokenizer = pipe_files::tokenizer(path).map_err(|e| TaskError::Failed(e.to_string()))?;
        Ok(TrainSamples {
            every: self.every,
            prompts: encode(&self.prompts, &tokenizer)?,
            generation: self.answering.generation(&tokenizer),
            tokenizer: path.clone(),
        })
    }
}

/// Rendered prompts as tokens.
pub fn encode(samples: &[(String, String)], tokenizer: &Tokenizer) -> Result<Vec<(String, Vec<i64>)>, TaskError> {
    let encode = |(prompt, rendered): &(String, String)| {
        let encoding = tokenizer.encode(rendered.as_str(), false);
        let encoding = encoding.map_err(|e| TaskError::Failed(format!("tokenising a sample: {e}")))?;
        Ok((prompt.clone(), encoding.get_ids().iter().map(|&id| i64::from(id)).collect()))
    };
    samples.iter().map(encode).collect()
}
