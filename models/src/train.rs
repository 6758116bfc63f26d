//! Training, read top to bottom: one function, one loop, numbers logged where they arise.
//!
//! The result is a function of packs, base weights, job and thread count. This file must not know recipes or stores.

use std::path::Path;
use std::time::Instant;

use pipe_job::{Adapter, Batching, EvalPoints, Event, Lora, Metric, TrainJob};
use tch::Kind;

use crate::checkpoint::Checkpoints;
use crate::decoder::Decoder;
use crate::events::Events;
use crate::linear::Pass;
use crate::optimizer::Optimizer;
use crate::packs::{Chunk, Packs};
use crate::schedule::LearningRate;
use crate::{ModelError, Result, adapter, device, load, loss, random};

/// Tokens that go through the network together. Whole documents are gathered up to this number, which bounds memory and
/// changes no result beyond rounding; a longer document goes alone.
pub const CHUNK_TOKENS: usize = 512;

/// Runs the job. `Cancelled` leaves a checkpoint to resume from.
#[allow(clippy::too_many_lines)] // The training loop, read top to bottom.
pub fn run(job: &TrainJob, events: &Events) -> Result<()> {
    let packs = Packs::open(&job.train)?;
    let val = job.val.as_deref().map(Packs::open).transpose()?;
    let plan = Steps::new(&job.batching, packs.len(), job.seed)?;
    let (mut decoder, settings) = prepare(job, events)?;
    packs.check_vocabulary(decoder.config.vocab)?;
    let mut optimizer = Optimizer::new(job.optimizer, adapter::parameters(&decoder))?;
    let rate = LearningRate::new(&job.schedule, job.optimizer.lr, plan.total);
    let checkpoints = Checkpoints::new(job, packs.fingerprint());
    let mut metrics = Vec::new();
    let (mut step, mut evaluated) = (0, true);
    if let Some((state, before)) = checkpoints.resume(&mut decoder, &mut optimizer)? {
        (step, evaluated, metrics) = (state.step, state.evaluated, before);
        events.warn(format!("resumed after step {step} of {}", plan.total));
    }
    tell_sizes(&decoder, &optimizer, &plan, events);
    let base = Pass { training: None, fused: job.kernels, checkpointing: job.gradient_checkpointing, base_only: false };

    let outcome = loop {
        if !evaluated && let Some(val) = &val {
            match evaluate(&decoder, val, base, events) {
                Ok((sum, tokens)) => record_eval(&mut metrics, events, step, sum, tokens),
                Err(ModelError::Cancelled) => break Err(ModelError::Cancelled),
                Err(error) => return Err(error),
            }
        }
        evaluated = true;
        if plan.is_due(&job.save.every, step) && step < plan.total {
            checkpoints.save(job, &decoder, &settings, &optimizer, &metrics, (step, evaluated))?;
        }
        if step == plan.total {
            break Ok(());
        }

        let started = Instant::now();
        let window = plan.window(step);
        let trained: u64 = window.iter().map(|&pack| packs.trained(pack)).sum();
        let window_tokens: u64 = window.iter().map(|&pack| packs.tokens(pack)).sum();
        if trained == 0 {
            return Err(ModelError::input(format!(
                "step {} has no trained token in {}",
                step + 1,
                packs.name_rows(&window)
            )));
        }
        let mut loss = 0.0;
        let mut cancelled = false;
        for (index, chunk) in chunks(&packs, &window, job.batching.micro_batch).iter().enumerate() {
            cancelled = events.is_cancelled();
            if cancelled {
                break;
            }
            if chunk.targets.ids.is_empty() {
                continue;
            }
            let seed = random::mix(random::mix(job.seed, step), index as u64);
            let pass = Pass { training: Some(seed), ..base };
            let (losses, balance) = loss::losses(&decoder, &chunk.segments, &chunk.targets, pass)?;
            let sum = losses.sum(Kind::Float);
            loss += sum.double_value(&[]) / trained as f64;
            let share = chunk.segments.ids.len() as f64 / window_tokens as f64;
            balance.into_iter().fold(sum / trained as f64, |all, balance| all + balance * share).backward();
        }
        if cancelled {
            break Err(ModelError::Cancelled);
        }
        let grad_norm = optimizer.grad_norm();
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(ModelError::work(format!(
                "step {}: loss {loss}, gradient norm {grad_norm}; nothing was updated. Look at {}, or lower learning_rate",
                step + 1,
                packs.name_rows(&window)
            )));
        }
        let lr = rate.at(step);
        optimizer.step(lr, grad_norm);
        optimizer.zero_grad();
        step += 1;

        let metric = Metric {
            step,
            total_steps: plan.total,
            epoch: step as f64 / plan.per_epoch as f64,
            loss,
            lr,
            grad_norm,
            tokens: window_tokens,
            trained_tokens: trained,
            tokens_per_second: window_tokens as f64 / started.elapsed().as_secs_f64(),
            rss_bytes: device::rss(),
        };
        record_metric(&mut metrics, events, metric);
        evaluated = !plan.is_due(&job.eval, step);
    };
    if let Err(error) = outcome {
        checkpoints.save(job, &decoder, &settings, &optimizer, &metrics, (step, evaluated))?;
        return Err(error);
    }
    std::fs::create_dir_all(&job.output).map_err(|e| ModelError::io(&job.output, e))?;
    adapter::save(&decoder, &settings, &job.model.path, &job.output)?;
    write_metrics(&job.output.join("metrics.jsonl"), &metrics)
}

/// The summed loss in nats and the number of trained tokens over all packs.
pub fn evaluate(decoder: &Decoder, packs: &Packs, pass: Pass, events: &Events) -> Result<(f64, u64)> {
    let (mut sum, mut tokens) = (0.0, 0);
    for pack in 0..packs.len() {
        for chunk in packs.chunks(&[pack], CHUNK_TOKENS) {
            events.check()?;
            if chunk.targets.ids.is_empty() {
                continue;
            }
            let losses = tch::no_grad(|| loss::token_losses(decoder, &chunk.segments, &chunk.targets, pass))?;
            sum += losses.sum(Kind::Double).double_value(&[]);
            tokens += chunk.targets.ids.len() as u64;
        }
        events.progress("eval", "packs", pack as u64 + 1, packs.len() as u64);
    }
    Ok((sum, tokens))
}

/// Which packs make up each step.
#[derive(Clone, Debug)]
struct Steps {
    packs: usize,
    window: usize,
    per_epoch: u64,
    total: u64,
    shuffle: Option<u64>,
}

impl Steps {
    fn new(batching: &Batching, packs: usize, seed: u64) -> Result<Self> {
        let window = batching.micro_batch * batching.accumulation;
        if packs == 0 || window == 0 {
            return Err(ModelError::input("there is nothing to train on: no packed row, or a batch size of zero"));
        }
        let per_epoch = packs.div_ceil(window) as u64;
        let total = batching.max_steps.unwrap_or((batching.epochs * per_epoch as f64).ceil() as u64);
        Ok(Self { packs, window, per_epoch, total, shuffle: batching.shuffle.then_some(seed) })
    }

    /// The packs of the step after `done` steps. The last window of an epoch may be short.
    fn window(&self, done: u64) -> Vec<usize> {
        let (epoch, place) = (done / self.per_epoch, (done % self.per_epoch) as usize * self.window);
        let order = match self.shuffle {
            Some(seed) => {
                random::permutation(random::mix(random::mix(seed, random::name_key("epoch")), epoch), self.packs)
            }
            None => (0..self.packs).collect(),
        };
        order[place..(place + self.window).min(self.packs)].to_vec()
    }

    fn is_due(&self, points: &EvalPoints, done: u64) -> bool {
        match *points {
            _ if done == 0 => false,
            EvalPoints::Never => false,
            EvalPoints::EverySteps(every) => every > 0 && done.is_multiple_of(every),
            EvalPoints::PerEpoch(times) => {
                let every = (self.per_epoch / times.max(1)).max(1);
                let within = done % self.per_epoch;
                within == 0 || within.is_multiple_of(every)
            }
        }
    }
}

fn prepare(job: &TrainJob, events: &Events) -> Result<(Decoder, Lora)> {
    let Adapter::Lora(settings) = &job.adapter else {
        return Err(ModelError::input(
            "training all weights is not supported by this worker; set adapter: lora or qlora",
        ));
    };
    let mut decoder = load::load(&job.model.path, job.model.base, job.model.compute, events)?;
    decoder.neftune_alpha = job.neftune_alpha;
    let settings = match &job.model.adapter {
        Some(folder) => adapter::load(&mut decoder, folder)?,
        None => {
            adapter::attach(&mut decoder, settings, job.seed)?;
            settings.clone()
        }
    };
    Ok((decoder, settings))
}

/// The chunks of a window; micro-batches are packs that may share a chunk.
fn chunks(packs: &Packs, window: &[usize], micro_batch: usize) -> Vec<Chunk> {
    window.chunks(micro_batch.max(1)).flat_map(|micro| packs.chunks(micro, CHUNK_TOKENS)).collect()
}

fn tell_sizes(decoder: &Decoder, optimizer: &Optimizer, plan: &Steps, events: &Events) {
    let trainable: usize = optimizer.parameters().iter().map(|parameter| parameter.tensor.numel()).sum();
    events.fact("trainable_parameters", trainable as f64);
    events.fact("total_parameters", decoder.config.parameters() as f64);
    events.fact("total_steps", plan.total as f64);
}

/// Times and memory vary between equal runs, so the file leaves them to the events.
fn record_metric(metrics: &mut Vec<u8>, events: &Events, metric: Metric) {
    let lasting = Metric { tokens_per_second: 0.0, rss_bytes: 0, ..metric.clone() };
    let mut line = serde_json::to_value(&lasting).unwrap_or_default();
    if let Some(object) = line.as_object_mut() {
        object.retain(|key, _| key != "tokens_per_second" && key != "rss_bytes");
    }
    metrics.extend_from_slice(line.to_string().as_bytes());
    metrics.push(b'\n');
    events.send(&Event::Metric(metric));
}

fn record_eval(metrics: &mut Vec<u8>, events: &Events, step: u64, sum: f64, tokens: u64) {
    let loss = sum / tokens.max(1) as f64;
    let eval = Event::Eval { step, split: "val".to_string(), loss, perplexity: loss.exp(), trained_tokens: tokens };
    metrics.extend_from_slice(serde_json::to_string(&eval).unwrap_or_default().as_bytes());
    metrics.push(b'\n');
    events.send(&eval);
}

fn write_metrics(path: &Path, metrics: &[u8]) -> Result<()> {
    std::fs::write(path, metrics).map_err(|e| ModelError::io(path, e))
}
