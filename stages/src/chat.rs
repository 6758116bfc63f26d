//! A conversation with a model: rendered here with the model's own template, answered by a worker, read back as text.
//!
//! The worker keeps no conversation: each turn it is sent the whole of it. Nothing here prints.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pipe_engine::task::TaskError;
use serde_json::Map;

use crate::generator::{AnswerEnd, BaseWeights, Compute, Generator, Heard, ModelSource, Sampling, ServeJob};
use crate::prompter::{Message, Prompter, message};
use crate::worker::Worker;

/// How often it is asked whether an answer is still wanted.
const TICK: Duration = Duration::from_millis(50);

/// What a model is loaded as.
#[derive(Clone, Debug)]
pub struct Loading {
    /// A Hugging Face folder or a GGUF file.
    pub model: PathBuf,
    pub bits: Bits,
    pub bf16: bool,
    /// Chat template: built-in name or file; the model's own when absent.
    pub template: Option<String>,
}

/// How many bits a weight is held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// NF4 with quantised scales, as QLoRA trains on.
    Four,
    /// Integers, as `load_in_8bit` trains on.
    Eight,
    /// As many as the arithmetic has.
    All,
}

impl Loading {
    /// The worker's job for it.
    pub fn job(&self, adapters: Vec<(String, PathBuf)>, rows: usize, cache_bytes: u64) -> ServeJob {
        let base = match self.bits {
            Bits::Four => BaseWeights::Nf4 { double_quant: true },
            Bits::Eight => BaseWeights::Int8,
            Bits::All => BaseWeights::Dense,
        };
        let compute = if self.bf16 { Compute::Bf16 } else { Compute::F32 };
        let model = ModelSource { path: self.model.clone(), adapter: None, base, compute };
        ServeJob { model, adapters, rows, cache_bytes }
    }
}

/// A conversation in progress.
pub struct Conversation {
    loading: Loading,
    generator: Generator,
    base: Prompter,
    /// The adapter that answers, with the prompter that goes with it.
    adapted: Option<(PathBuf, Prompter)>,
    /// `stop` is filled in for each answer.
    sampling: Sampling,
    system: Option<String>,
    messages: Vec<Message>,
}

/// How long an answer became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    pub prompt_tokens: usize,
    pub tokens: usize,
    pub end: Ending,
}

/// Why an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model ended it.
    Whole,
    /// The limit of tokens, or of the model.
    Cut,
    /// It was no longer wanted.
    Stopped,
}

impl Conversation {
    /// Starts the worker and loads the model.
    pub fn start(
        loading: Loading,
        sampling: Sampling,
        system: Option<String>,
        worker: &Worker,
    ) -> Result<Conversation, TaskError> {
        let base = Prompter::open(&loading.model, loading.template.as_deref())?;
        // One conversation of any length is let in; its cache grows as it does.
        let job = loading.job(Vec::new(), 1, u64::MAX);
        let generator = Generator::start(worker, job, Box::new(|_| {}))?;
        Ok(Conversation { loading, generator, base, adapted: None, sampling, system, messages: Vec::new() })
    }

    /// What is to be said of how the model or the adapter that answers is written to.
    pub fn warning(&self) -> Option<&str> {
        self.prompter().warning.as_deref()
    }

    fn prompter(&self) -> &Prompter {
        self.adapted.as_ref().map_or(&self.base, |(_, prompter)| prompter)
    }

    /// Answers with the PEFT adapter in `folder` from here on, or with the base alone. The conversation stays.
    pub fn adapt(&mut self, folder: Option<&Path>) -> Result<(), TaskError> {
        let Some(folder) = folder else {
            self.adapted = None;
            return Ok(());
        };
        let prompter = self.base.adapted(folder, &self.loading.model, self.loading.template.as_deref())?;
        self.generator.attach(&folder.display().to_string(), folder)?;
        self.adapted = Some((folder.to_path_buf(), prompter));
        Ok(())
    }

    /// Forgets what was said; the system prompt stays.
    pub fn reset(&mut self) {
        self.messages.clear();
    }

    /// Another system prompt, for the whole conversation.
    pub fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// Sends one user message and streams the answer to `on_text`; the answer becomes part of the conversation.
    /// `wanted` is asked again and again; once it says no the answer ends where it is.
    pub fn say(
        &mut self,
        text: &str,
        on_text: &mut dyn FnMut(&str),
        wanted: &dyn Fn() -> bool,
    ) -> Result<Answered, TaskError> {
        let before = self.messages.len();
        self.messages.push(message("user", text));
        let answered = self.answer(on_text, wanted);
        if answered.is_err() {
            self.messages.truncate(before);
        }
        answered
    }

    fn answer(&mut self, on_text: &mut dyn FnMut(&str), wanted: &dyn Fn() -> bool) -> Result<Answered, TaskError> {
        let prompter = self.prompter();
        let system = self.system.iter().map(|system| message("system", system));
        let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let ids = prompter.conversation(&messages, None, &Map::new()).map_err(TaskError::Input)?;
        let room = self.generator.context.saturating_sub(ids.len());
        if room == 0 {
            return Err(TaskError::Input(format!(
                "the conversation has {} tokens, and the model was made for {}; begin a new one",
                ids.len(),
                self.generator.context
            )));
        }
        let most = self.sampling.max_new_tokens.min(room);
        let sampling = Sampling { max_new_tokens: most, stop: prompter.stops.clone(), ..self.sampling.clone() };
        let adapter = self.adapted.as_ref().map(|(folder, _)| folder.display().to_string());
        let (send, receive) = channel();
        let prompt_tokens = ids.len();
        let sink = Box::new(move |heard| drop(send.send(heard)));
        let ticket = self.generator.ask(adapter, ids, sampling, sink)?;
        let mut reader = prompter.reader(false);
        let mut answer = String::new();
        let mut tell = |more: String| {
            on_text(&more);
            answer.push_str(&more);
        };
        let end = loop {
            match receive.recv_timeout(TICK) {
                Ok(Heard::Token(id)) => tell(reader.push(id)),
                Ok(Heard::Ended(AnswerEnd::Stop)) => break Ending::Whole,
                Ok(Heard::Ended(AnswerEnd::Length)) => break Ending::Cut,
                Ok(Heard::Ended(AnswerEnd::Stopped)) => break Ending::Stopped,
                Ok(Heard::Ended(AnswerEnd::Refused { message })) => return Err(TaskError::Input(message)),
                Ok(Heard::Lost(why)) => return Err(TaskError::Failed(why)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(TaskError::Failed("the worker ended".into())),
            }
            if !wanted() {
                break Ending::Stopped;
            }
        };
        drop(ticket);
        tell(reader.finish());
        self.messages.push(message("assistant", &answer));
        Ok(Answered { prompt_tokens, tokens: reader.tokens(), end })
    }
}
