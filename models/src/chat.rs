//! Chat: rendered conversations in, streamed text out.
//!
//! The parent renders conversations with the model's chat template; the worker sees one text per turn, whole, so it keeps
//! no conversation of its own and cannot disagree with the parent about it.

use std::sync::mpsc::Receiver;

use pipe_job::{ChatJob, Command, Event};

use crate::decoder::Decoder;
use crate::events::Events;
use crate::linear::Pass;
use crate::{ModelError, Result, generate, tuned};

/// Answers the job's prompt, or every text that arrives until the sender is gone. Each answer is a run of `text` events
/// followed by the fact `answer_tokens`.
pub fn chat(job: &ChatJob, commands: &Receiver<Command>, events: &Events) -> Result<()> {
    let tokenizer = pipe_files::tokenizer(&job.model.path)?;
    let mut decoder = tuned::load_tuned(&job.model, events)?;
    tuned::densify(&mut decoder);
    let answer = |text: &str| {
        let encoding = tokenizer.encode(text, false).map_err(|e| ModelError::work(format!("tokenising: {e}")))?;
        let ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        turn(job, &decoder, &tokenizer, &ids, events)
    };
    if let Some(prompt) = &job.prompt {
        return answer(prompt);
    }
    while let Ok(command) = commands.recv() {
        match command {
            Command::Say { text } => answer(&text)?,
            Command::Cancel => return Err(ModelError::Cancelled),
        }
    }
    Ok(())
}

fn turn(
    job: &ChatJob,
    decoder: &Decoder,
    tokenizer: &pipe_files::Tokenizer,
    prompt: &[i64],
    events: &Events,
) -> Result<()> {
    let mut pieces = tokenizer.decode_stream(true);
    let say = &mut |id: i64| {
        // Bytes of an unfinished character are held back until it is whole.
        if let Some(text) = u32::try_from(id).ok().and_then(|id| pieces.step(id).ok().flatten()) {
            events.send(&Event::Text { text });
        }
    };
    let ids = generate::stream(decoder, prompt, &job.generation, Pass::INFERENCE, events, say)?;
    events.fact("answer_tokens", ids.len() as f64);
    Ok(())
}
