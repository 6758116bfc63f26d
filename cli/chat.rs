//! `pipe chat`: talk to a model in the terminal.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Args;
use pipe_stages::chat::{Answered, Bits, Conversation, Ending, Loading};
use pipe_stages::compile::Machine;
use pipe_stages::generator::Sampling;
use pipe_stages::prompter::sampling_defaults;
use pipe_stages::worker::Worker;

use crate::failure::{Failure, Outcome, exit_interrupted};
use crate::{alone, job, report};

/// Talk to a model, with or without an adapter.
#[derive(Args, Debug)]
pub struct ChatArgs {
    #[command(flatten)]
    loading: LoadingArgs,
    /// PEFT adapter folder.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Answer this once and exit.
    #[arg(long, short, value_name = "P")]
    prompt: Option<String>,
    /// System prompt.
    #[arg(long, value_name = "S")]
    system: Option<String>,
    /// 0 always takes the likeliest token; default the model's own (generation_config.json), else 0.7.
    #[arg(long, value_name = "T", value_parser = at_least_zero)]
    temperature: Option<f64>,
    /// Sample from the likeliest tokens that make up this share; default the model's own, else 0.95.
    #[arg(long, value_name = "P", value_parser = share)]
    top_p: Option<f64>,
    /// Sample from this many of the likeliest tokens, 0 for all; default the model's own, else 0.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Factor against tokens seen before; default the model's own, else 1 for none.
    #[arg(long, value_name = "F", value_parser = above_zero)]
    repetition_penalty: Option<f64>,
    /// Longest answer in tokens.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
}

/// Which model, and how it is held; the same for chat and serve.
#[derive(Args, Debug)]
pub struct LoadingArgs {
    /// A Hugging Face folder or a GGUF file.
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Hold the weights in this many bits: 4 or 8.
    #[arg(long, value_name = "BITS", value_parser = bits)]
    pub bits: Option<u8>,
    /// Arithmetic: bfloat16 where the machine has it, else float32.
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = ["auto", "float32", "bfloat16"])]
    pub dtype: String,
    /// Chat template, when it is not the model's own.
    #[arg(long, value_name = "T")]
    pub chat_template: Option<String>,
}

impl LoadingArgs {
    pub fn resolve(&self, worker: &Worker) -> Result<Loading, Failure> {
        let bits = match self.bits {
            Some(4) => Bits::Four,
            Some(_) => Bits::Eight,
            None => Bits::All,
        };
        let bf16 = match self.dtype.as_str() {
            "auto" => Machine::here(worker.clone()).bf16,
            other => other == "bfloat16",
        };
        Ok(Loading { model: alone::existing(&self.model)?, bits, bf16, template: self.chat_template.clone() })
    }
}

pub fn chat(args: &ChatArgs) -> Outcome {
    let worker = Worker { program: job::worker()? };
    let loading = args.loading.resolve(&worker)?;
    let adapter = args.adapter.as_deref().map(alone::existing).transpose()?;
    let own = sampling_defaults(&loading.model);
    let sampling = Sampling {
        max_new_tokens: args.max_new_tokens as usize,
        temperature: args.temperature.or(own.temperature).unwrap_or(0.7),
        top_p: args.top_p.or(own.top_p).unwrap_or(0.95),
        top_k: args.top_k.or(own.top_k).unwrap_or(0),
        repetition_penalty: args.repetition_penalty.or(own.repetition_penalty).unwrap_or(1.0),
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: args.seed,
        stop: Vec::new(),
    };
    let interrupt = Interrupt::listen()?;
    let mut conversation = Conversation::start(loading, sampling, args.system.clone(), &worker)?;
    conversation.adapt(adapter.as_deref())?;
    warn(&conversation);
    if let Some(prompt) = &args.prompt {
        let answered = answer(&mut conversation, prompt, &interrupt)?.0;
        report::bytes(b"\n");
        return if answered.end == Ending::Stopped { Err(Failure::interrupted()) } else { Ok(()) };
    }
    talk(&mut conversation, &interrupt)
}

fn warn(conversation: &Conversation) {
    if let Some(warning) = conversation.warning() {
        report::warning(warning);
    }
}

/// What Ctrl-C means: the end of the answer that is being given, or of the program where there is none.
struct Interrupt {
    answering: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    fn listen() -> Result<Interrupt, Failure> {
        let interrupt = Interrupt { answering: Arc::default(), asked: Arc::default() };
        let (answering, asked) = (interrupt.answering.clone(), interrupt.asked.clone());
        let told = move || {
            if !answering.load(Ordering::SeqCst) || asked.swap(true, Ordering::SeqCst) {
                exit_interrupted();
            }
        };
        ctrlc::set_handler(told).map_err(|e| Failure::stage(format!("cannot listen for Ctrl-C: {e}")))?;
        Ok(interrupt)
    }
}

/// Says one message and prints the answer as it comes; the seconds are those until the first token and of the others.
fn answer(conversation: &mut Conversation, text: &str, interrupt: &Interrupt) -> Result<(Answered, [f64; 2]), Failure> {
    interrupt.asked.store(false, Ordering::SeqCst);
    interrupt.answering.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let mut first = None;
    let on_text = &mut |text: &str| {
        first.get_or_insert_with(Instant::now);
        report::bytes(text.as_bytes());
    };
    let answered = conversation.say(text, on_text, &|| !interrupt.asked.load(Ordering::SeqCst));
    interrupt.answering.store(false, Ordering::SeqCst);
    let first = first.unwrap_or(began);
    Ok((answered?, [(first - began).as_secs_f64(), first.elapsed().as_secs_f64()]))
}

/// Reads lines until there are no more; those with a slash in front are commands.
fn talk(conversation: &mut Conversation, interrupt: &Interrupt) -> Outcome {
    let asks = std::io::stdin().is_terminal();
    if asks {
        report::note("type a message; /help lists commands, Ctrl-C stops an answer, an empty line or Ctrl-D ends");
    }
    loop {
        if asks {
            report::bytes(b"> ");
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line).unwrap_or(0);
        let line = line.trim();
        if read == 0 || line.is_empty() || line == "/exit" {
            return Ok(());
        }
        if let Some(command) = line.strip_prefix('/') {
            // A mistake at the keyboard ends nothing; in a script it does.
            match obey(conversation, command) {
                Err(failure) if asks => report::failure(&failure),
                done => done?,
            }
            continue;
        }
        let said = answer(conversation, line, interrupt);
        report::bytes(b"\n");
        match said {
            Ok((answered, seconds)) if asks => report::note(&pace(&answered, seconds)),
            Err(failure) if asks => report::failure(&failure),
            done => drop(done?),
        }
    }
}

const HELP: &str = "\
/adapter DIR|off   answer with this adapter from here on, or with the base model
/system TEXT       another system prompt; without a text, none
/reset             forget the conversation
/exit              end";

fn obey(conversation: &mut Conversation, command: &str) -> Outcome {
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    match (name, rest) {
        ("help", "") => report::note(HELP),
        ("reset", "") => {
            conversation.reset();
            report::note("the conversation begins anew");
        }
        ("system", text) => {
            conversation.set_system((!text.is_empty()).then(|| text.to_string()));
            report::note(if text.is_empty() { "no system prompt" } else { "system prompt set" });
        }
        ("adapter", "") => return Err(Failure::invalid("name an adapter's folder, or `off`")),
        ("adapter", "off") => {
            conversation.adapt(None)?;
            report::note("the base model answers");
        }
        ("adapter", folder) => {
            conversation.adapt(Some(&alone::existing(std::path::Path::new(folder))?))?;
            report::note(&format!("{folder} answers"));
            warn(conversation);
        }
        _ => return Err(Failure::invalid(format!("there is no command `/{command}`")).hint("/help lists them")),
    }
    Ok(())
}

/// `[41 tokens, 23.5 tokens/s, first after 0.21 s]`
fn pace(answered: &Answered, [first, rest]: [f64; 2]) -> String {
    let speed = answered.tokens.saturating_sub(1) as f64 / rest.max(1e-9);
    let end = match answered.end {
        Ending::Whole => "",
        Ending::Cut => "; cut at the limit of tokens",
        Ending::Stopped => "; stopped",
    };
    format!("[{} tokens, {speed:.1} tokens/s, first after {first:.2} s{end}]", answered.tokens)
}

fn bits(text: &str) -> Result<u8, String> {
    match text {
        "4" => Ok(4),
        "8" => Ok(8),
        _ => Err("weights are held in 4 or 8 bits; leave it out for all of them".to_string()),
    }
}

fn at_least_zero(text: &str) -> Result<f64, String> {
    number(text).filter(|n| *n >= 0.0).ok_or("a number from 0".to_string())
}

fn above_zero(text: &str) -> Result<f64, String> {
    number(text).filter(|n| *n > 0.0).ok_or("a number above 0".to_string())
}

fn share(text: &str) -> Result<f64, String> {
    number(text).filter(|n| *n > 0.0 && *n <= 1.0).ok_or("a number above 0 and up to 1".to_string())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| n.is_finite())
}
