//! `pipe chat`: talk to a model in the terminal.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use pipe_stages::chat::{Chat, Conversation};
use pipe_stages::compile::Machine;
use pipe_stages::worker::Worker;

use crate::failure::Outcome;
use crate::{alone, job, report};

/// Talk to a model, with or without an adapter.
#[derive(Args, Debug)]
pub struct ChatArgs {
    /// A Hugging Face folder or a GGUF file.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// PEFT adapter folder.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Hold the weights in this many bits.
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(4..=4))]
    bits: Option<u8>,
    /// Answer this once and exit.
    #[arg(long, short, value_name = "P")]
    prompt: Option<String>,
    /// System prompt.
    #[arg(long, value_name = "S")]
    system: Option<String>,
    /// Chat template, when it is not the model's own.
    #[arg(long, value_name = "T")]
    chat_template: Option<String>,
    /// 0 always takes the likeliest token.
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f64,
    /// Sample from the likeliest tokens that make up this share.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f64,
    /// Sample from this many of the likeliest tokens; 0 for all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Longest answer in tokens.
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_new_tokens: usize,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
}

pub fn chat(args: &ChatArgs) -> Outcome {
    let worker = Worker { program: job::worker()? };
    let chat = Chat {
        model: alone::existing(&args.model)?,
        adapter: args.adapter.as_deref().map(alone::existing).transpose()?,
        four_bits: args.bits.is_some(),
        bf16: Machine::here(worker.clone()).bf16,
        system: args.system.clone(),
        template: args.chat_template.clone(),
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
        max_new_tokens: args.max_new_tokens,
    };
    let mut conversation = Conversation::start(&chat, &worker)?;
    let answer = &mut |text: &str| report::bytes(text.as_bytes());
    if let Some(prompt) = &args.prompt {
        conversation.say(prompt, answer)?;
        report::bytes(b"\n");
        return Ok(());
    }
    let asks = std::io::stdin().is_terminal();
    if asks {
        report::note("type a message; an empty line or Ctrl-D ends");
    }
    loop {
        if asks {
            report::bytes(b"> ");
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line).unwrap_or(0);
        if read == 0 || line.trim().is_empty() {
            return Ok(());
        }
        conversation.say(line.trim(), answer)?;
        report::bytes(b"\n");
    }
}
