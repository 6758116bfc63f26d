//! The live display on a terminal: a line per running node, finished nodes scrolling up above them.
//!
//! Everything shown is made from events; nothing here knows how a stage works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use pipe_engine::event::{Event, NodeFinished, NodeOutcome, Sink};
use pipe_engine::plan::NodeName;

use super::format::{clip, clip_middle, count, measure, rate, seconds};
use super::lines;

/// A node at work, and its line while there is room for one.
struct Bar {
    line: Option<ProgressBar>,
    running: Arc<Mutex<Running>>,
}

/// Rows of the window that are left to what was said before.
const ROWS_LEFT: usize = 4;

/// Draws to standard error, which must be a terminal.
pub struct Live {
    area: MultiProgress,
    bars: Mutex<IndexMap<NodeName, Bar>>,
    overall: Arc<Mutex<Overall>>,
    bottom: ProgressBar,
}

/// What is known of a node at work.
#[derive(Clone, Debug)]
pub struct Running {
    pub node: String,
    pub seconds: f64,
    pub progress: Option<Progress>,
    pub metric: Option<Step>,
    started: Instant,
    /// When and where the present phase began, for its rate.
    phase: (f64, u64),
}

/// The newest progress event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    pub unit: String,
}

/// The newest optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub step: u64,
    pub total: u64,
    pub loss: f64,
    pub tokens_per_second: f64,
}

struct Overall {
    nodes: usize,
    finished: usize,
    cached: usize,
    /// At work, without a line of their own.
    unseen: usize,
    started: Instant,
}

impl Live {
    pub fn new() -> Live {
        let area = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(12));
        let overall =
            Arc::new(Mutex::new(Overall { nodes: 0, finished: 0, cached: 0, unseen: 0, started: Instant::now() }));
        let bottom = area.add(ProgressBar::no_length());
        let shared = Arc::clone(&overall);
        bottom.set_style(line_style(move || locked(&shared).line()));
        bottom.enable_steady_tick(Duration::from_millis(200));
        Live { area, bars: Mutex::new(IndexMap::new()), overall, bottom }
    }

    /// Takes the display away; call before printing anything else.
    pub fn clear(&self) {
        for (_, bar) in locked(&self.bars).drain(..) {
            bar.line.iter().for_each(ProgressBar::finish_and_clear);
        }
        self.bottom.finish_and_clear();
        let _ = self.area.clear();
    }

    fn start(&self, node: &NodeName) {
        let running = Arc::new(Mutex::new(Running::new(node.as_str())));
        locked(&self.bars).insert(node.clone(), Bar { line: None, running });
        self.fill_window();
    }

    /// Gives lines to nodes at work, the oldest first, as far as the window has room.
    fn fill_window(&self) {
        let mut bars = locked(&self.bars);
        let room = super::stderr_height().saturating_sub(ROWS_LEFT).max(1);
        let seen = bars.values().filter(|bar| bar.line.is_some()).count();
        for bar in bars.values_mut().filter(|bar| bar.line.is_none()).take(room.saturating_sub(seen)) {
            bar.line = Some(self.line(&bar.running));
        }
        let unseen = bars.values().filter(|bar| bar.line.is_none()).count();
        drop(bars);
        locked(&self.overall).unseen = unseen;
    }

    fn line(&self, running: &Arc<Mutex<Running>>) -> ProgressBar {
        let shared = Arc::clone(running);
        let bar = self.area.insert_before(&self.bottom, ProgressBar::no_length());
        bar.set_style(line_style(move || {
            let mut running = locked(&shared);
            running.seconds = running.started.elapsed().as_secs_f64();
            running.line(window_width())
        }));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn update(&self, node: &NodeName, change: impl FnOnce(&mut Running)) {
        if let Some(bar) = locked(&self.bars).get(node) {
            change(&mut locked(&bar.running));
        }
    }

    fn finish(&self, finished: &NodeFinished) {
        self.remove(&finished.node);
        let mut overall = locked(&self.overall);
        overall.finished += 1;
        overall.cached += usize::from(finished.outcome == NodeOutcome::Cached);
        drop(overall);
        if finished.outcome == NodeOutcome::Executed {
            lines::with_warnings(finished).iter().for_each(|line| self.say(line));
        }
    }

    fn remove(&self, node: &NodeName) {
        let removed = locked(&self.bars).shift_remove(node);
        if let Some(line) = removed.and_then(|bar| bar.line) {
            line.finish_and_clear();
            self.area.remove(&line);
        }
        self.fill_window();
    }

    /// A line above those of the nodes at work.
    pub fn say(&self, line: &str) {
        let _ = self.area.println(super::for_stderr(line));
    }
}

impl Sink for Live {
    fn emit(&self, event: Event) {
        match &event {
            Event::RunStarted { nodes, .. } => locked(&self.overall).nodes = nodes.len(),
            Event::NodeStarted { node, .. } => self.start(node),
            Event::NodeProgress { node, done, total, unit } => self.update(node, |running| {
                running.advance(Progress { done: *done, total: *total, unit: unit.clone() });
            }),
            Event::Metric { node, step, total_steps, loss, tokens_per_second, .. } => self.update(node, |running| {
                let (step, total) = (*step, *total_steps);
                running.metric = Some(Step { step, total, loss: *loss, tokens_per_second: *tokens_per_second });
            }),
            Event::NodeFinished(finished) => self.finish(finished),
            Event::NodeFailed { node, .. } => {
                self.remove(node);
                lines::of(&event).iter().for_each(|line| self.say(line));
            }
            Event::Eval { .. } | Event::Sample { .. } | Event::Warning { .. } | Event::NodeSkipped { .. } => {
                lines::of(&event).iter().for_each(|line| self.say(line));
            }
            Event::Fact { .. } | Event::RunFinished(_) => {}
        }
    }
}

impl Running {
    pub fn new(node: &str) -> Running {
        let started = Instant::now();
        Running { node: node.to_string(), seconds: 0.0, progress: None, metric: None, started, phase: (0.0, 0) }
    }

    /// Takes a progress event; a new unit or a count that falls back begins a new phase with its own rate.
    pub fn advance(&mut self, progress: Progress) {
        let before = self.progress.as_ref();
        if before.is_none_or(|before| before.unit != progress.unit || before.done > progress.done) {
            self.phase = (self.started.elapsed().as_secs_f64(), progress.done);
        }
        self.progress = Some(progress);
    }

    /// The node's line, at most `width` characters: name, bar, counts, rate, loss and time left, dropping from the end.
    pub fn line(&self, width: usize) -> String {
        let name = clip_middle(&self.node, if width < 60 { 14 } else { 24 });
        let name_width = if width < 60 { 14 } else { 24 };
        let mut line = format!("{name:<name_width$}");
        let (done, total) = self.done_of_total();
        let mut parts: Vec<String> = Vec::new();
        if total > 0 {
            let share = (done as f64 / total as f64).clamp(0.0, 1.0);
            if width >= 40 {
                line.push_str(&format!(" {}", bar(share, if width < 80 { 10 } else { 20 })));
            }
            parts.push(format!("{:>3.0} %", share * 100.0));
        }
        parts.extend(self.details());
        parts.push(seconds(self.seconds));
        if let Some(left) = self.seconds_left() {
            parts.push(format!("{} left", seconds(left)));
        }
        let mut used = line.chars().count();
        for part in parts {
            let needed = part.chars().count() + 2;
            if used + needed <= width {
                line.push_str("  ");
                line.push_str(&part);
                used += needed;
            }
        }
        clip(&line, width)
    }

    fn done_of_total(&self) -> (u64, u64) {
        match (&self.metric, &self.progress) {
            (Some(metric), _) => (metric.step, metric.total),
            (None, Some(progress)) => (progress.done, progress.total),
            (None, None) => (0, 0),
        }
    }

    fn details(&self) -> Vec<String> {
        if let Some(metric) = &self.metric {
            return vec![
                format!("step {}/{}", count(metric.step), count(metric.total)),
                format!("loss {}", measure(metric.loss)),
                format!("{} tokens/s", rate(metric.tokens_per_second)),
            ];
        }
        let Some(progress) = &self.progress else { return Vec::new() };
        let mut parts = Vec::new();
        if progress.total > 0 {
            parts.push(format!("{}/{} {}", count(progress.done), count(progress.total), progress.unit));
        } else if progress.done > 0 {
            parts.push(format!("{} {}", count(progress.done), progress.unit));
        }
        parts.extend(self.rate().map(|per_second| format!("{} {}/s", rate(per_second), progress.unit)));
        parts
    }

    fn rate(&self) -> Option<f64> {
        let progress = self.progress.as_ref()?;
        let (since, from) = self.phase;
        let (time, done) = (self.seconds - since, progress.done.saturating_sub(from));
        (time > 0.2 && done > 0).then(|| done as f64 / time)
    }

    fn seconds_left(&self) -> Option<f64> {
        let (done, total) = self.done_of_total();
        if let Some(metric) = &self.metric {
            let per_step = self.seconds / metric.step.max(1) as f64;
            return (self.seconds > 2.0).then(|| per_step * total.saturating_sub(done) as f64);
        }
        (total > done && self.seconds > 2.0).then_some(())?;
        self.rate().map(|per_second| (total - done) as f64 / per_second)
    }
}

impl Overall {
    fn line(&self) -> String {
        let cached = if self.cached > 0 { format!(", {} cached", self.cached) } else { String::new() };
        let unseen = if self.unseen > 0 { format!(", {} more at work", self.unseen) } else { String::new() };
        let time = seconds(self.started.elapsed().as_secs_f64());
        clip(&format!("{} of {} nodes done{cached}{unseen}  {time}", self.finished, self.nodes), window_width())
    }
}

fn bar(share: f64, width: usize) -> String {
    let full = (share * width as f64).round() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(width - full.min(width)))
}

fn line_style(line: impl Fn() -> String + Clone + Send + Sync + 'static) -> ProgressStyle {
    let style = ProgressStyle::with_template("{line}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    style.with_key("line", move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = out.write_str(&line());
    })
}

/// One less than the window: a full last column makes some terminals wrap.
fn window_width() -> usize {
    super::stderr_width().saturating_sub(1)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training() -> Running {
        let mut running = Running::new("train");
        running.seconds = 30.0;
        running.metric = Some(Step { step: 30, total: 120, loss: 1.23456, tokens_per_second: 845.2 });
        running
    }

    #[test]
    fn a_training_line_shows_loss_speed_and_time_left() {
        let line = training().line(120);
        let expected = "train                    █████░░░░░░░░░░░░░░░   25 %  step 30/120  loss 1.235  845 tokens/s  30.0 s  1 min 30 s left";
        assert_eq!(line, expected);
    }

    #[test]
    fn no_line_is_wider_than_the_window() {
        for width in 1..140 {
            assert!(training().line(width).chars().count() <= width, "{width}");
        }
        assert_eq!(training().line(50), "train          ███░░░░░░░   25 %  step 30/120");
    }

    #[test]
    fn names_that_differ_at_the_end_stay_apart() {
        let line = |node: &str| Running::new(node).line(40);
        assert_eq!(line("tokenize.a-long-label-1"), "tokeniz…abel-1  0.00 s");
        assert_ne!(line("tokenize.a-long-label-1"), line("tokenize.a-long-label-2"));
    }

    #[test]
    fn a_new_phase_has_its_own_rate() {
        let mut running = Running::new("tokenize.docker");
        running.advance(Progress { done: 500, total: 1000, unit: "rows".into() });
        running.advance(Progress { done: 10, total: 40, unit: "packs".into() });
        running.seconds = running.phase.0 + 1.0;
        running.advance(Progress { done: 20, total: 40, unit: "packs".into() });
        assert_eq!(running.rate().map(f64::round), Some(10.0));
    }
}
