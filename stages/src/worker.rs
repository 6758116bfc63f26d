//! Runs one job in a `pipe-torch` child process and relays its events.
//!
//! The child owns libtorch: its memory goes back when it exits and its crash is one failed node. Nothing is shared but
//! the job's line of JSON, the event lines and the files both name. This module must not interpret results.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use pipe_engine::event::Event;
use pipe_engine::plan::NodeName;
use pipe_engine::task::{Context, Summary, TaskError};
use pipe_job::{Job, Task};

/// How long a cancelled worker may take to write its state before it is killed.
const GRACE: Duration = Duration::from_secs(8);
/// How often cancellation is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Lines of the worker's standard error kept for a failure's message.
const KEPT_LINES: usize = 12;

/// Where the worker program is; found by the command line, passed in here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Worker {
    pub program: PathBuf,
}

/// What a finished worker said besides its events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub peak_rss_bytes: u64,
    pub warnings: Vec<String>,
    pub facts: Vec<(String, f64)>,
}

impl Report {
    /// The report as the engine keeps it.
    pub fn into_summary(self) -> Summary {
        Summary {
            child_peak_rss_bytes: self.peak_rss_bytes,
            stats: self.facts.into_iter().map(|(name, value)| (name, value.into())).collect(),
            warnings: self.warnings,
            ..Summary::default()
        }
    }
}

enum Line {
    Event(pipe_job::Event),
    Garbled(String),
}

impl Worker {
    /// Starts the worker, feeds it the task and relays events until it exits.
    ///
    /// # Errors
    /// `TaskError::Input` when the worker says the input is wrong, `TaskError::Cancelled` after cancellation,
    /// `TaskError::Failed` with its last log lines when it fails, crashes or is killed.
    pub fn run(&self, task: Task, ctx: &Context) -> Result<Report, TaskError> {
        let job = Job { task, threads: ctx.threads };
        let checkpoints = matches!(job.task, Task::Train(_)).then_some(ctx.work.as_path());
        let mut child = self.start()?;
        let mut stdin = child.stdin.take();
        send_job(stdin.as_mut(), &job)?;
        // The worker has the machine now; this process only listens.
        pipe_files::release_code();
        let lines = read_events(child.stdout.take());
        let log = keep_last_lines(child.stderr.take());
        let ended = relay(&mut child, &mut stdin, &lines, ctx);
        // Closing standard input is what tells a still living worker to go.
        drop(stdin);
        let status = child.wait().map_err(TaskError::io("waiting for the worker"))?;
        let log = log.join().unwrap_or_default();
        conclude(ended?, status, &log, checkpoints)
    }

    /// The worker with its input, output and messages piped, in a process group of its own.
    ///
    /// # Errors
    /// The program is not there or cannot be started.
    pub(crate) fn start(&self) -> Result<Child, TaskError> {
        Command::new(&self.program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C reaches the whole foreground group; the worker is told to stop by its input, and saves its state.
            .process_group(0)
            .spawn()
            .map_err(|e| {
                TaskError::Failed(format!(
                    "cannot start the worker {}: {e}. Build it with `make build`, or name it in PIPE_TORCH",
                    self.program.display()
                ))
            })
    }
}

/// The worker program beside the running executable, unless `named` says otherwise.
pub fn locate(named: Option<&Path>, executable: Option<&Path>) -> Worker {
    let beside = executable.and_then(Path::parent).map(|dir| dir.join("pipe-torch"));
    let program = named.map(Path::to_path_buf).or(beside.filter(|path| path.exists()));
    Worker { program: program.unwrap_or_else(|| PathBuf::from("pipe-torch")) }
}

/// How the relay ended: what the worker said last, and what it said besides.
struct Ended {
    last: Option<pipe_job::Event>,
    report: Report,
    cancelled: bool,
}

fn send_job(stdin: Option<&mut ChildStdin>, job: &Job) -> Result<(), TaskError> {
    let mut line = serde_json::to_vec(job).map_err(|e| TaskError::Failed(format!("cannot write the job: {e}")))?;
    line.push(b'\n');
    match stdin {
        // A worker that died at once closes the pipe; its exit status tells more than this error would.
        Some(stdin) => match stdin.write_all(&line).and_then(|()| stdin.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(TaskError::io("sending the job")(e)),
            _ => Ok(()),
        },
        None => Err(TaskError::Failed("the worker has no standard input".into())),
    }
}

fn read_events(stdout: Option<impl Read + Send + 'static>) -> Receiver<Line> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let Some(stdout) = stdout else { return };
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let line = match serde_json::from_str(&line) {
                Ok(event) => Line::Event(event),
                Err(_) => Line::Garbled(line),
            };
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

pub(crate) fn keep_last_lines(stderr: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<VecDeque<String>> {
    std::thread::spawn(move || {
        let mut kept = VecDeque::new();
        let Some(stderr) = stderr else { return kept };
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(String::from_utf8_lossy(&line).trim_end().to_string());
        }
        kept
    })
}

fn relay(
    child: &mut Child,
    stdin: &mut Option<ChildStdin>,
    lines: &Receiver<Line>,
    ctx: &Context,
) -> Result<Ended, TaskError> {
    let mut ended = Ended { last: None, report: Report::default(), cancelled: false };
    let mut waited = Duration::ZERO;
    loop {
        if ctx.cancel.is_cancelled() {
            if !ended.cancelled {
                ended.cancelled = true;
                if let Some(stdin) = stdin {
                    let _ = stdin.write_all(b"{\"command\":\"cancel\"}\n").and_then(|()| stdin.flush());
                }
            }
            waited += TICK;
            if waited > GRACE {
                child.kill().map_err(TaskError::io("stopping the worker"))?;
            }
        }
        match lines.recv_timeout(TICK) {
            Ok(Line::Event(event)) => note(event, &mut ended, ctx),
            Ok(Line::Garbled(text)) => ctx.emit(Event::Warning {
                node: ctx.node.clone(),
                message: format!("the worker said something unexpected: {text}"),
            }),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(ended),
        }
    }
}

fn note(event: pipe_job::Event, ended: &mut Ended, ctx: &Context) {
    match event {
        pipe_job::Event::Warning { message } => {
            ctx.emit(Event::Warning { node: ctx.node.clone(), message: message.clone() });
            ended.report.warnings.push(message);
        }
        pipe_job::Event::Fact { name, value } => {
            ctx.emit(Event::Fact { node: ctx.node.clone(), name: name.clone(), value });
            ended.report.facts.push((name, value));
        }
        last @ (pipe_job::Event::Done { .. } | pipe_job::Event::Cancelled { .. } | pipe_job::Event::Failed { .. }) => {
            ended.last = Some(last)
        }
        other => {
            if let Some(event) = translate(other, &ctx.node) {
                ctx.emit(event);
            }
        }
    }
}

/// The engine's form of an event that is only passed on.
fn translate(event: pipe_job::Event, node: &NodeName) -> Option<Event> {
    let node = node.clone();
    Some(match event {
        pipe_job::Event::Progress { done, total, unit, .. } => Event::NodeProgress { node, done, total, unit },
        pipe_job::Event::Metric(m) => Event::Metric {
            node,
            step: m.step,
            total_steps: m.total_steps,
            epoch: m.epoch,
            loss: m.loss,
            lr: m.lr,
            grad_norm: m.grad_norm,
            tokens: m.tokens,
            trained_tokens: m.trained_tokens,
            tokens_per_second: m.tokens_per_second,
            trained_tokens_per_second: m.trained_tokens_per_second,
            perplexity: m.perplexity,
            losses: m.losses.into_iter().collect(),
            mfu: m.mfu,
            rss_bytes: m.rss_bytes,
            peak_rss_bytes: m.peak_rss_bytes,
            eta_seconds: m.eta_seconds,
        },
        pipe_job::Event::Eval { step, split, loss, perplexity, trained_tokens } => {
            Event::Eval { node, step, split, loss, perplexity, trained_tokens }
        }
        pipe_job::Event::Sample { step, prompt, answer, distinct_2, repeated } => {
            Event::Sample { node, step, prompt, answer, distinct_2, repeated }
        }
        _ => return None,
    })
}

fn conclude(
    ended: Ended,
    status: ExitStatus,
    log: &VecDeque<String>,
    checkpoints: Option<&Path>,
) -> Result<Report, TaskError> {
    let mut report = ended.report;
    match ended.last {
        Some(pipe_job::Event::Done { peak_rss_bytes }) => {
            report.peak_rss_bytes = peak_rss_bytes;
            Ok(report)
        }
        Some(pipe_job::Event::Failed { message, input: true }) => Err(TaskError::Input(message)),
        Some(pipe_job::Event::Failed { message, input: false }) => Err(TaskError::Failed(message)),
        _ if ended.cancelled => Err(TaskError::Cancelled),
        Some(pipe_job::Event::Cancelled { .. }) => Err(TaskError::Cancelled),
        _ => Err(TaskError::Failed(crash_message(status, log, checkpoints))),
    }
}

/// How the worker ended, and what can be done; `checkpoints` is where a training keeps them.
pub(crate) fn crash_message(status: ExitStatus, log: &VecDeque<String>, checkpoints: Option<&Path>) -> String {
    use std::os::unix::process::ExitStatusExt;
    let how = match status.signal() {
        Some(9) => "was killed (signal 9): most often the machine ran out of memory".to_string(),
        Some(signal) => format!("crashed (signal {signal})"),
        None => format!("ended without a result ({status})"),
    };
    let mut text = format!("the worker {how}");
    if checkpoints.is_some() && status.signal() == Some(9) {
        text.push_str("; try a smaller sequence_len or micro_batch_size, or gradient_checkpointing: true");
    }
    if let Some(step) = checkpoints.and_then(last_step) {
        text.push_str(&format!("; unchanged, the recipe goes on after step {step}"));
    }
    if !log.is_empty() {
        text.push_str("; its last words:");
        for line in log {
            text.push_str("\n    ");
            text.push_str(line);
        }
    }
    text
}

/// The step of the newest checkpoint.
fn last_step(checkpoints: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(checkpoints).ok()?.flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).max()
}
