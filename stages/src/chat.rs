//! Conversations with a model through the worker: rendered here with the model's own template, streamed back as text.
//!
//! The worker keeps no conversation: each turn it is sent the whole of it. Nothing here prints.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use pipe_engine::task::TaskError;
use pipe_job::{BaseWeights, ChatJob, Compute, Event, Generation, Job, ModelSource, Task};
use serde_json::{Map, Value, json};

use crate::template::render::{ChatTemplate, find};
use crate::worker::Worker;

/// What to talk to, and how.
#[derive(Clone, Debug)]
pub struct Chat {
    /// A Hugging Face folder or a GGUF file.
    pub model: PathBuf,
    pub adapter: Option<PathBuf>,
    /// Hold the weights in 4 bits.
    pub four_bits: bool,
    pub bf16: bool,
    pub system: Option<String>,
    /// Built-in name or file; the model's own when absent.
    pub template: Option<String>,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: usize,
    pub seed: u64,
    pub max_new_tokens: usize,
}

/// A conversation in progress.
pub struct Conversation {
    template: ChatTemplate,
    messages: Vec<Map<String, Value>>,
    child: Child,
    stdin: Option<ChildStdin>,
    events: Box<dyn Iterator<Item = std::io::Result<String>>>,
}

impl Conversation {
    /// Starts the worker and loads the model.
    pub fn start(chat: &Chat, worker: &Worker) -> Result<Conversation, TaskError> {
        let source = chat.template.clone().unwrap_or_else(|| chat.model.display().to_string());
        let wrong = |e: crate::template::render::TemplateError| TaskError::Input(e.to_string());
        let (text, special) = find(&source).map_err(wrong)?;
        let template = ChatTemplate::parse(&text, &special).map_err(wrong)?;
        let mut child = Command::new(&worker.program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(TaskError::io(format!("starting {}", worker.program.display())))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| TaskError::Failed("the worker has no output".into()))?;
        let messages = chat.system.iter().map(|system| message("system", system)).collect();
        let events = Box::new(BufReader::new(stdout).lines());
        let mut conversation = Conversation { template, messages, child, stdin, events };
        let job = Job { task: Task::Chat(Box::new(job(chat)?)), threads: 0 };
        conversation.send(&json!(job))?;
        Ok(conversation)
    }

    /// Sends one user message and streams the answer to `on_text`; the answer becomes part of the conversation.
    pub fn say(&mut self, text: &str, on_text: &mut dyn FnMut(&str)) -> Result<(), TaskError> {
        self.messages.push(message("user", text));
        let rendered = self.template.render(&self.messages, None, &Map::new(), true);
        let rendered = rendered.map_err(|e| TaskError::Input(e.to_string()))?;
        self.send(&json!(pipe_job::Command::Say { text: rendered }))?;
        let mut answer = String::new();
        for line in self.events.by_ref() {
            let line = line.map_err(TaskError::io("reading the worker's answer"))?;
            match serde_json::from_str(&line) {
                Ok(Event::Text { text }) => {
                    on_text(&text);
                    answer.push_str(&text);
                }
                // Each answer ends in the number of its tokens.
                Ok(Event::Fact { name, .. }) if name == "answer_tokens" => {
                    self.messages.push(message("assistant", &answer));
                    return Ok(());
                }
                Ok(Event::Failed { message, input: true }) => return Err(TaskError::Input(message)),
                Ok(Event::Failed { message, .. }) => return Err(TaskError::Failed(message)),
                _ => {}
            }
        }
        let status = self.child.wait().map_err(TaskError::io("waiting for the worker"))?;
        Err(TaskError::Failed(format!("the worker ended without an answer ({status})")))
    }

    fn send(&mut self, value: &Value) -> Result<(), TaskError> {
        let Some(stdin) = &mut self.stdin else { return Err(TaskError::Failed("the worker has no input".into())) };
        let line = format!("{value}\n");
        stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).map_err(TaskError::io("talking to the worker"))
    }
}

impl Drop for Conversation {
    /// The end of its input is what tells the worker to go.
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

fn message(role: &str, content: &str) -> Map<String, Value> {
    [("role", role), ("content", content)].into_iter().map(|(key, text)| (key.to_string(), text.into())).collect()
}

fn job(chat: &Chat) -> Result<ChatJob, TaskError> {
    let info = pipe_files::TokenizerInfo::read(&chat.model).map_err(|e| TaskError::Input(e.to_string()))?;
    let base = if chat.four_bits { BaseWeights::Nf4 { double_quant: true } } else { BaseWeights::Dense };
    let compute = if chat.bf16 { Compute::Bf16 } else { Compute::F32 };
    Ok(ChatJob {
        model: ModelSource { path: chat.model.clone(), adapter: chat.adapter.clone(), base, compute },
        generation: Generation {
            max_new_tokens: chat.max_new_tokens,
            temperature: chat.temperature,
            top_p: chat.top_p,
            top_k: chat.top_k,
            repetition_penalty: 1.0,
            seed: chat.seed,
            stop: info.stop_ids(),
            batch: 1,
        },
        prompt: None,
    })
}
