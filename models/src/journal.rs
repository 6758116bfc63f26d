//! What a training run says of itself: events as it goes, and `metrics.jsonl`, which holds nothing that varies between equal
//! runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use pipe_job::{Event, Metric};
use tch::{Kind, Tensor};

use crate::decoder::Decoder;
use crate::events::Events;
use crate::linear::{Linear, Pass, Weight};
use crate::optimizer::Parameter;
use crate::{ModelError, Result, device};

/// Fields that depend on the machine and the moment.
const PASSING: [&str; 6] =
    ["tokens_per_second", "trained_tokens_per_second", "mfu", "rss_bytes", "peak_rss_bytes", "eta_seconds"];

/// The run's record so far, and its sense of time.
pub struct Journal<'a> {
    events: &'a Events,
    lines: Vec<u8>,
    started: Instant,
    /// Steps that were done before this process.
    before: u64,
    work: Work,
    /// Names of the datasets.
    sources: &'a [String],
}

/// What a step did.
pub struct Done {
    pub step: u64,
    pub total_steps: u64,
    pub epoch: f64,
    pub loss: f64,
    /// Mean loss by dataset.
    pub losses: BTreeMap<u16, f64>,
    pub lr: f64,
    pub grad_norm: f64,
    pub tokens: u64,
    pub trained_tokens: u64,
    pub seconds: f64,
}

/// Multiplications and additions of a step, and how many this machine does in a second at best.
#[derive(Clone, Copy, Debug)]
struct Work {
    per_token: f64,
    per_trained_token: f64,
    peak: f64,
}

impl<'a> Journal<'a> {
    pub fn new(events: &'a Events, decoder: &Decoder, parameters: &[Parameter], sources: &'a [String]) -> Self {
        let work = Work::of(decoder, parameters);
        Self { events, lines: Vec::new(), started: Instant::now(), before: 0, work, sources }
    }

    /// Goes on from the lines of an interrupted run.
    pub fn resume(&mut self, lines: Vec<u8>, step: u64) {
        (self.lines, self.before) = (lines, step);
    }

    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// Records an optimizer step.
    pub fn step(&mut self, done: Done) {
        let rate = |count: u64| count as f64 / done.seconds.max(1e-9);
        let here = done.step.saturating_sub(self.before).max(1) as f64;
        let pace = self.started.elapsed().as_secs_f64() / here;
        let metric = Metric {
            step: done.step,
            total_steps: done.total_steps,
            epoch: done.epoch,
            loss: done.loss,
            lr: done.lr,
            grad_norm: done.grad_norm,
            tokens: done.tokens,
            trained_tokens: done.trained_tokens,
            tokens_per_second: rate(done.tokens),
            trained_tokens_per_second: rate(done.trained_tokens),
            perplexity: done.loss.exp(),
            losses: self.by_name(&done.losses),
            mfu: self.work.share(rate(done.tokens), rate(done.trained_tokens)),
            rss_bytes: device::rss(),
            peak_rss_bytes: device::peak_rss(),
            eta_seconds: pace * done.total_steps.saturating_sub(done.step) as f64,
        };
        let mut line = serde_json::to_value(&metric).unwrap_or_default();
        if let Some(object) = line.as_object_mut() {
            object.retain(|key, _| !PASSING.contains(&key.as_str()));
            // By number: what a dataset is called changes nothing that is trained.
            if self.sources.len() > 1 {
                let list: Vec<Option<&f64>> = (0..self.sources.len() as u16).map(|i| done.losses.get(&i)).collect();
                object.insert("losses".to_string(), serde_json::json!(list));
            }
        }
        self.write(&line.to_string());
        self.events.send(&Event::Metric(metric));
    }

    /// Records an evaluation and returns its loss in nats per trained token.
    pub fn evaluation(&mut self, step: u64, sum: f64, tokens: u64) -> f64 {
        let loss = sum / tokens.max(1) as f64;
        let eval = Event::Eval { step, split: "val".to_string(), loss, perplexity: loss.exp(), trained_tokens: tokens };
        self.write(&serde_json::to_string(&eval).unwrap_or_default());
        self.events.send(&eval);
        loss
    }

    /// Writes the record to a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, &self.lines).map_err(|e| ModelError::io(path, e))
    }

    /// Losses by the datasets' names, where there are several.
    fn by_name(&self, losses: &BTreeMap<u16, f64>) -> BTreeMap<String, f64> {
        let named = losses.iter().filter_map(|(i, loss)| Some((self.sources.get(usize::from(*i))?.clone(), *loss)));
        if self.sources.len() > 1 { named.collect() } else { BTreeMap::new() }
    }

    fn write(&mut self, line: &str) {
        self.lines.extend_from_slice(line.as_bytes());
        self.lines.push(b'\n');
    }
}

impl Work {
    /// Products with weights only, without the scores of attention: forward, gradient to the input, gradient to the weight
    /// where it is trained; the head at trained positions alone.
    fn of(decoder: &Decoder, parameters: &[Parameter]) -> Self {
        let linears: i64 = decoder.linears().map(|linear| linear.shape().0 * linear.shape().1).sum();
        let (vocabulary, hidden) = decoder.embedding.shape();
        let head = (vocabulary * hidden) as f64;
        let trained = |lora: bool| -> f64 {
            let own = parameters.iter().filter(|p| p.tensor.dim() == 2 && p.name.contains(".lora_") == lora);
            own.map(|p| p.tensor.numel() as f64).sum()
        };
        Self {
            per_token: 4.0 * linears as f64 + 6.0 * trained(true) + 2.0 * trained(false),
            per_trained_token: 4.0 * head,
            peak: peak(decoder.compute),
        }
    }

    fn share(&self, tokens_per_second: f64, trained_per_second: f64) -> f64 {
        (self.per_token * tokens_per_second + self.per_trained_token * trained_per_second) / self.peak
    }
}

/// Operations per second of a large product of matrices, the best of a few by libtorch and by what layers multiply with.
fn peak(kind: Kind) -> f64 {
    const SIDE: i64 = 1024;
    let x = Tensor::ones([SIDE, SIDE], (kind, tch::Device::Cpu));
    let weight = Weight::Dense(x.shallow_clone());
    let layer = Linear { name: String::new(), weight, bias: None, lora: None, heard: None };
    let rate = |product: &dyn Fn() -> Tensor| {
        let began = Instant::now();
        drop(product());
        2.0 * (SIDE as f64).powi(3) / began.elapsed().as_secs_f64().max(1e-9)
    };
    let both: [&dyn Fn() -> Tensor; 2] = [&|| x.matmul(&x), &|| layer.forward(&x, Pass::INFERENCE)];
    both.iter().cycle().take(8).map(|product| rate(*product)).fold(0.0, f64::max)
}
