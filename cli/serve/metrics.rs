//! Counts of what is served, in Prometheus' text format. No request's content is in them.

use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pipe_stages::generator::CacheFill;

/// Upper bounds of the histograms, seconds.
const BOUNDS: [f64; 12] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Statuses that are counted apart; others count as the last.
const STATUSES: [u16; 11] = [200, 400, 401, 403, 404, 413, 429, 500, 503, 504, 0];

#[derive(Default)]
pub struct Metrics {
    requests: [AtomicU64; STATUSES.len()],
    /// Answers in the making or waiting for it.
    pub open: AtomicI64,
    /// Requests whose client went away.
    pub gone: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub answer_tokens: AtomicU64,
    pub restarts: AtomicU64,
    first_token: Histogram,
    duration: Histogram,
}

#[derive(Default)]
struct Histogram(Mutex<([u64; BOUNDS.len()], u64, f64)>);

impl Histogram {
    fn add(&self, seconds: f64) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (buckets, count, sum) = &mut *held;
        for (bucket, _) in buckets.iter_mut().zip(BOUNDS).filter(|(_, bound)| seconds <= *bound) {
            *bucket += 1;
        }
        *count += 1;
        *sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let (buckets, count, sum) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, bucket) in BOUNDS.iter().zip(buckets) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {bucket}");
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }
}

impl Metrics {
    pub fn request(&self, status: u16) {
        let place = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        self.requests[place].fetch_add(1, Ordering::Relaxed);
    }

    pub fn first_token(&self, after: Duration) {
        self.first_token.add(after.as_secs_f64());
    }

    pub fn finished(&self, after: Duration) {
        self.duration.add(after.as_secs_f64());
    }

    /// The page for Prometheus.
    pub fn render(&self, cache: CacheFill) -> String {
        let mut out =
            String::from("# HELP pipe_requests_total Requests by status.\n# TYPE pipe_requests_total counter\n");
        for (status, count) in STATUSES.iter().zip(&self.requests) {
            let name = if *status == 0 { "other".to_string() } else { status.to_string() };
            let _ = writeln!(out, "pipe_requests_total{{status=\"{name}\"}} {}", count.load(Ordering::Relaxed));
        }
        let open = self.open.load(Ordering::Relaxed);
        for (name, help, count) in [
            ("pipe_requests_open", "Answers running or waiting.", open),
            ("pipe_cache_blocks_used", "Blocks of keys and values that answers hold.", cache.used as i64),
            ("pipe_cache_blocks_free", "Blocks that can be had.", cache.free as i64),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {count}");
        }
        let held = |count: &AtomicU64| count.load(Ordering::Relaxed);
        for (name, help, count) in [
            ("pipe_requests_abandoned_total", "Requests whose client went away.", held(&self.gone)),
            ("pipe_prompt_tokens_total", "Tokens of prompts.", held(&self.prompt_tokens)),
            ("pipe_prompt_tokens_cached_total", "Tokens of prompts that the cache had.", cache.found),
            ("pipe_answer_tokens_total", "Tokens of answers.", held(&self.answer_tokens)),
            ("pipe_preemptions_total", "Answers that waited for older ones' room.", cache.preempted),
            ("pipe_worker_restarts_total", "Times the model was loaded again.", held(&self.restarts)),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {count}");
        }
        self.first_token.write(&mut out, "pipe_first_token_seconds", "From a request to its first token.");
        self.duration.write(&mut out, "pipe_request_seconds", "From a request to its last token.");
        out
    }
}
