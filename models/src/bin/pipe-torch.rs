//! The worker: one job in, events out, then gone.
//!
//! The parent owns every decision; this process owns libtorch and its memory. Standard output carries events only.

use std::any::Any;
use std::io::{BufRead, BufReader, stdin, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use pipe_job::{Event, Job, Task};
use pipe_models::error::first_line;
use pipe_models::events::Events;
use pipe_models::{ModelError, Result, agreement, device, eval, importance, merge, quantize, serve, train};

fn main() -> ExitCode {
    device::prepare_process();
    device::reuse_memory();
    device::load_cuda();
    // A panic becomes a `failed` event; its text is for that event, not for the terminal.
    std::panic::set_hook(Box::new(|_| {}));
    let events = Events::to(stdout());
    let outcome = catch_unwind(AssertUnwindSafe(|| work(&events)));
    let outcome = outcome.unwrap_or_else(|panic| Err(ModelError::work(panic_sentence(panic.as_ref()))));
    let peak_rss_bytes = device::peak_rss();
    let (event, code) = match outcome {
        Ok(()) => (Event::Done { peak_rss_bytes }, 0),
        Err(ModelError::Cancelled) => (Event::Cancelled { peak_rss_bytes }, 130),
        Err(error) if error.is_input() => (Event::Failed { message: error.to_string(), input: true }, 2),
        Err(error) => (Event::Failed { message: error.to_string(), input: false }, 1),
    };
    events.send(&event);
    ExitCode::from(code)
}

fn work(events: &Events) -> Result<()> {
    let mut input = BufReader::new(stdin());
    let mut line = String::new();
    let read = input.read_line(&mut line);
    read.map_err(|e| ModelError::work(format!("no job on standard input: {e}")))?;
    let job: Job = serde_json::from_str(&line)
        .map_err(|e| ModelError::input(format!("not a job ({e}); this program is started by pipe, not by hand")))?;
    let commands = events.listen(input);
    device::set_threads(job.threads);
    match &job.task {
        Task::Train(job) => train::run(job, events),
        Task::Eval(job) => eval::eval(job, events),
        Task::Merge(job) => merge::merge(job, events),
        Task::Quantize(job) => quantize::quantize(job, events),
        Task::Agreement(job) => agreement::agreement(job, events),
        Task::Importance(job) => importance::importance(job, events),
        Task::Serve(job) => serve::serve(job, &commands, events),
    }
}

/// What a panic said; tch wraps libtorch's words in Rust's, with a C++ backtrace after them.
fn panic_sentence(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("the worker stopped unexpectedly");
    let text = text.split_once("Err` value: ").map_or(text, |(_, rest)| rest);
    let text = text.strip_prefix("Torch(\"").unwrap_or(text);
    first_line(&text.replace("\\n", "\n"))
}
