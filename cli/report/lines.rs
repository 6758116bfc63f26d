//! One event as lines of text; the same words on a terminal, in a pipe and in a log.

use pipe_engine::event::{Event, NodeFinished};

use super::format::{bytes, clip, count, measure, seconds};
use super::style::{BAD, BOLD, DIM, GOOD, WARN, paint};

/// Characters of a sample's prompt and answer.
const SAMPLE_WIDTH: usize = 60;

/// The lines that stand for `event` in a log; empty for those that say nothing to people.
pub fn of(event: &Event) -> Vec<String> {
    match event {
        Event::NodeStarted { node, reason } => vec![format!("{node}  {}", paint(DIM, format!("started: {reason}")))],
        Event::NodeFinished(done) => with_warnings(done),
        Event::NodeFailed { node, error, hint } => failed(node.as_str(), error, hint.as_deref()),
        Event::NodeSkipped { node, reason } => vec![format!("{} {node}  {}", paint(DIM, "-"), paint(DIM, reason))],
        Event::Warning { node, message } => vec![format!("{} {node}: {message}", paint(WARN, "warning:"))],
        Event::Metric { node, step, total_steps, loss, lr, tokens_per_second, .. } => vec![format!(
            "{node}  step {}/{}  loss {}  lr {lr:.3e}  {} tokens/s",
            count(*step),
            count(*total_steps),
            measure(*loss),
            super::format::rate(*tokens_per_second)
        )],
        Event::Eval { node, step, split, loss, perplexity, .. } => {
            let (loss, perplexity) = (measure(*loss), measure(*perplexity));
            vec![format!("{node}  step {}  {split} loss {loss}  perplexity {perplexity}", count(*step))]
        }
        Event::Sample { node, step, prompt, answer, .. } => {
            let one_line = |text: &str| clip(&text.split_whitespace().collect::<Vec<_>>().join(" "), SAMPLE_WIDTH);
            let (prompt, answer) = (paint(DIM, one_line(prompt)), one_line(answer));
            vec![format!("{node}  step {}  {prompt} {} {answer}", count(*step), paint(DIM, "->"))]
        }
        Event::NodeProgress { node, done, total, unit } if *total > 0 => {
            vec![format!("{node}  {}/{} {unit}", count(*done), count(*total))]
        }
        Event::NodeProgress { node, done, unit, .. } => vec![format!("{node}  {} {unit}", count(*done))],
        Event::RunStarted { .. } | Event::Fact { .. } | Event::RunFinished(_) => Vec::new(),
    }
}

/// The finished node, and what it warns of.
pub fn with_warnings(done: &NodeFinished) -> Vec<String> {
    let warning = |what: &String| format!("{} {}: {what}", paint(WARN, "warning:"), done.node);
    std::iter::once(finished(done)).chain(done.warnings.iter().map(warning)).collect()
}

/// `✓ pack.train  412 rows  0.31 s  84 MB`.
pub fn finished(done: &NodeFinished) -> String {
    let mut parts = vec![format!("{} {}", paint(GOOD, "✓"), paint(BOLD, &done.node))];
    parts.extend(done.rows.map(|rows| format!("{} rows", count(rows))));
    if let (Some(reused), Some(computed)) = (done.rows_reused.filter(|&n| n > 0), done.rows_computed) {
        parts.push(format!("{} computed, {} reused", count(computed), count(reused)));
    }
    parts.push(seconds(done.seconds));
    if done.peak_rss_bytes > 0 {
        parts.push(paint(DIM, bytes(done.peak_rss_bytes)));
    }
    parts.join("  ")
}

fn failed(node: &str, error: &str, hint: Option<&str>) -> Vec<String> {
    let mut told = error.lines();
    let mut lines = vec![format!("{} {}: {}", paint(BAD, "✗"), paint(BOLD, node), told.next().unwrap_or_default())];
    lines.extend(told.map(|line| format!("    {line}")));
    lines.extend(hint.map(|hint| format!("    {} {hint}", paint(GOOD, "help:"))));
    lines
}
