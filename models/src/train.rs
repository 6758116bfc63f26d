//! Training, read top to bottom: one function, one loop, numbers logged where they arise.
//!
//! The result is a function of packs, base weights, job and thread count. This file must not know recipes or stores.

use std::time::Instant;

use pipe_job::{Adapter, Compute, Lora, Recompute, TrainJob, Watchdog};
use tch::{Kind, Tensor};

use crate::checkpoint::{Best, Checkpoints, State};
use crate::decoder::Decoder;
use crate::events::Events;
use crate::journal::{Done, Journal};
use crate::lanes::{self, Shared};
use crate::linear::Pass;
use crate::optimizer::{Optimizer, Parameter};
use crate::packs::{Chunk, Packs};
use crate::schedule::LearningRate;
use crate::steps::Steps;
use crate::train_samples::Sampler;
use crate::tuned::{self, Use};
use crate::window::{self, Window};
use crate::{ModelError, Result, adapter, device, load, loss, random, whole};

/// Tokens that are in the network at one time, in all lanes together. Whole documents are gathered up to a lane's share,
/// which bounds memory and changes no result beyond rounding; a longer document goes alone.
pub const CHUNK_TOKENS: usize = 512;
/// A lane with fewer would spend its time on reading weights.
const FEWEST_TOKENS: usize = 64;

/// Runs the job. `Cancelled` leaves a checkpoint to resume from.
#[allow(clippy::too_many_lines)] // The training loop, read top to bottom.
pub fn run(job: &TrainJob, events: &Events) -> Result<()> {
    let packs = Packs::open(&job.train)?;
    let val = job.val.as_deref().map(Packs::open).transpose()?;
    let plan = Steps::new(&job.batching, (0..packs.len()).map(|pack| packs.tokens(pack)).collect(), job.seed)?;
    let Prepared { mut decoder, parameters, adapter } = prepare(job, events)?;
    packs.check_vocabulary(decoder.config.vocab)?;
    if let Some(val) = &val {
        val.check_vocabulary(decoder.config.vocab)?;
    }
    let mut journal = Journal::new(events, &decoder, &parameters, &job.sources);
    let mut optimizer = Optimizer::new(job.optimizer, parameters)?;
    let rate = LearningRate::new(&job.schedule, job.optimizer.lr, plan.total);
    let checkpoints = Checkpoints::new(job, packs.fingerprint());
    let mut state = State { evaluated: true, ..State::default() };
    if let Some((saved, lines)) = checkpoints.resume(job.resume.as_deref(), &mut optimizer)? {
        events.warn(format!("resumed after step {} of {}", saved.step, plan.total));
        journal.resume(lines, saved.step);
        state = saved;
    }
    tell_sizes(&decoder, &optimizer, &plan, events);
    let base = Pass { training: None, fused: job.kernels, recompute: layers_again(job.recompute), base_only: false };
    let lanes = window::lanes_for(&decoder, optimizer.parameters(), base);
    let mut sampler = job.sampling.as_ref().map(Sampler::new).transpose()?;

    let outcome = loop {
        if !state.evaluated
            && let Some(val) = &val
        {
            match evaluate(&decoder, val, base, events) {
                Ok((sum, tokens)) => {
                    let loss = journal.evaluation(state.step, sum, tokens);
                    if state.judge(loss) && job.stopping.best {
                        checkpoints.save_best(state.step, optimizer.parameters())?;
                    }
                }
                Err(ModelError::Cancelled) => break Err(ModelError::Cancelled),
                Err(error) => return Err(error),
            }
        }
        state.evaluated = true;
        if let Some(sampler) = sampler.as_mut().filter(|sampler| sampler.is_due(state.step, plan.total)) {
            match sampler.sample(&decoder, state.step, base, events) {
                Err(ModelError::Cancelled) => break Err(ModelError::Cancelled),
                sampled => sampled?,
            }
        }
        if plan.is_due(&job.save.every, state.step) && state.step < plan.total {
            checkpoints.save(&state, &optimizer, journal.lines())?;
        }
        let patient = job.stopping.patience.is_none_or(|most| state.idle_evals < most);
        if state.step == plan.total || !patient {
            if !patient {
                events.warn(format!(
                    "stopped early after step {} of {}: {} evaluations in a row were no better",
                    state.step, plan.total, state.idle_evals
                ));
            }
            break Ok(());
        }

        let started = Instant::now();
        let window = plan.window(state.step);
        let trained = trained_tokens(&packs, &window, state.step + 1)?;
        let window_tokens: u64 = window.iter().map(|&pack| packs.tokens(pack)).sum();
        let chunks = chunks(&packs, &window, job.batching.micro_batch, lanes, decoder.compute);
        let learning = Window {
            packs: &packs,
            chunks: &chunks,
            trained,
            tokens: window_tokens,
            step: state.step + 1,
            seed: random::mix(job.seed, state.step),
            pass: base,
            z_loss: job.z_loss,
        };
        let tally = match learning.learn(&decoder, optimizer.parameters(), lanes, events) {
            Ok(tally) => tally,
            Err(ModelError::Cancelled) => break Err(ModelError::Cancelled),
            Err(error) => return Err(error),
        };
        let loss = tally.sum / trained as f64;
        let grad_norm = optimizer.grad_norm();
        require_finite(loss, grad_norm, state.step + 1, || packs.name_rows(&window))?;
        let lr = rate.at(state.step);
        optimizer.step(lr, grad_norm, rate.momentum_at(state.step));
        optimizer.forget_gradients();
        state.step += 1;
        device::release_code_of_the_first_step();

        journal.step(Done {
            step: state.step,
            total_steps: plan.total,
            epoch: state.step as f64 / plan.per_epoch as f64,
            loss,
            losses: tally.by_source(),
            lr,
            grad_norm,
            tokens: window_tokens,
            trained_tokens: trained,
            seconds: started.elapsed().as_secs_f64(),
        });
        state.watch(job.watchdog, loss, || packs.name_rows(&window))?;
        state.evaluated = !plan.is_due(&job.eval, state.step);
    };
    if let Err(error) = outcome {
        checkpoints.save(&state, &optimizer, journal.lines())?;
        return Err(error);
    }
    if let Some(best) = state.best.filter(|best| job.stopping.best && best.step != state.step) {
        checkpoints.load_best(best.step, optimizer.parameters())?;
        events.fact("best_step", best.step as f64);
    }
    device::release_memory();
    std::fs::create_dir_all(&job.output).map_err(|e| ModelError::io(&job.output, e))?;
    match &adapter {
        Some(settings) => adapter::save(&decoder, settings, &job.output)?,
        None => whole::save(&mut decoder, &job.model.path, &job.output, events)?,
    }
    journal.save(&job.output.join("metrics.jsonl"))
}

impl State {
    /// Counts losses that are too high; an error once they are so for too long.
    fn watch(&mut self, watchdog: Option<Watchdog>, loss: f64, rows: impl Fn() -> String) -> Result<()> {
        let Some(watchdog) = watchdog else { return Ok(()) };
        self.high_losses = if loss > watchdog.threshold { self.high_losses + 1 } else { 0 };
        if self.high_losses < watchdog.patience.max(1) {
            return Ok(());
        }
        Err(ModelError::work(format!(
            "loss_watchdog_threshold: the loss was above {} in {} steps in a row, at last {loss:.4} in step {} with {}. \
             Lower learning_rate, look at the rows, or raise the threshold",
            watchdog.threshold,
            self.high_losses,
            self.step,
            rows()
        )))
    }

    /// Takes note of an evaluation; whether it is the best so far.
    fn judge(&mut self, loss: f64) -> bool {
        if self.best.is_none_or(|best| loss < best.loss) {
            self.best = Some(Best { step: self.step, loss });
            self.idle_evals = 0;
            return true;
        }
        self.idle_evals += 1;
        false
    }
}

/// How many tokens of a window are trained on; none is an error.
fn trained_tokens(packs: &Packs, window: &[usize], step: u64) -> Result<u64> {
    match window.iter().map(|&pack| packs.trained(pack)).sum() {
        0 => Err(ModelError::input(format!("step {step} has no trained token in {}", packs.name_rows(window)))),
        trained => Ok(trained),
    }
}

fn require_finite(loss: f64, grad_norm: f64, step: u64, rows: impl Fn() -> String) -> Result<()> {
    if loss.is_finite() && grad_norm.is_finite() {
        return Ok(());
    }
    Err(ModelError::work(format!(
        "step {step}: loss {loss}, gradient norm {grad_norm}; nothing was updated. Look at {}, or lower learning_rate",
        rows()
    )))
}

/// The summed loss in nats and the number of trained tokens over all packs.
pub fn evaluate(decoder: &Decoder, packs: &Packs, pass: Pass, events: &Events) -> Result<(f64, u64)> {
    let (mut sum, mut tokens, mut done) = (0.0, 0, 0);
    let shared = Shared::new(decoder);
    let (lanes, compute) = (lanes::suited_to_products(decoder.config.hidden, decoder.compute), decoder.compute);
    let all: Vec<usize> = (0..packs.len()).collect();
    let work = |_: usize, &pack: &usize| {
        let (mut sum, mut tokens) = (0.0, 0);
        for chunk in packs.chunks(&[pack], CHUNK_TOKENS / lanes, compute) {
            events.check()?;
            if chunk.targets.ids.is_empty() {
                continue;
            }
            let losses = tch::no_grad(|| loss::token_losses(shared.get(), &chunk.segments, &chunk.targets, pass, 0.0))?;
            sum += losses.tokens.sum(Kind::Double).double_value(&[]);
            tokens += chunk.targets.ids.len() as u64;
        }
        Ok((sum, tokens))
    };
    lanes::in_order(lanes, &all, work, |(own, trained)| {
        (sum, tokens, done) = (sum + own, tokens + trained, done + 1);
        events.progress("eval", "packs", done, packs.len() as u64);
        Ok(())
    })?;
    Ok((sum, tokens))
}

/// A model ready to be trained.
struct Prepared {
    decoder: Decoder,
    parameters: Vec<Parameter>,
    /// `None` where the base's own weights are trained.
    adapter: Option<Lora>,
}

fn prepare(job: &TrainJob, events: &Events) -> Result<Prepared> {
    let source = &job.model;
    let kind = load::kind_of(source.compute)?;
    let freeze = match &job.adapter {
        Adapter::Lora(settings) => return prepare_adapter(job, settings, events),
        Adapter::Freeze(freeze) => Some(freeze),
        Adapter::Full => None,
    };
    // Trained weights are f32, so they are read as such.
    let mut decoder = load::load(&source.path, source.base, Compute::F32, events)?;
    decoder.neftune_alpha = job.neftune_alpha;
    let parameters = whole::unfreeze(&mut decoder, freeze, kind)?;
    Ok(Prepared { decoder, parameters, adapter: None })
}

fn prepare_adapter(job: &TrainJob, settings: &Lora, events: &Events) -> Result<Prepared> {
    let source = &job.model;
    let mut decoder = load::load(&source.path, source.base, source.compute, events)?;
    decoder.neftune_alpha = job.neftune_alpha;
    let settings = match &source.adapter {
        Some(folder) => adapter::settings_of(&tuned::attach(&mut decoder, folder, Use::Training)?),
        None => {
            let files = pipe_files::ModelFiles::open(&source.path)?;
            let mut original = |name: &str| -> Result<Tensor> {
                let (name, mut values) = (format!("{name}.weight"), Vec::new());
                files.read_f32(&name, &mut values)?;
                files.release(&name);
                let shape: Vec<i64> = files.shape(&name).unwrap_or_default().iter().map(|&n| n as i64).collect();
                Ok(Tensor::from_slice(&values).reshape(shape))
            };
            adapter::attach(&mut decoder, settings, job.seed, &mut original)?;
            settings.clone()
        }
    };
    tuned::densify_for_training(&mut decoder);
    Ok(Prepared { parameters: adapter::parameters(&decoder), decoder, adapter: Some(settings) })
}

/// Layers that are computed again together; 0 for none.
fn layers_again(recompute: Recompute) -> usize {
    match recompute {
        Recompute::Nothing => 0,
        Recompute::Layers(group) => group.max(1),
    }
}

/// How many tokens of a window a lane takes at a time.
fn share(tokens: usize, lanes: usize) -> usize {
    (CHUNK_TOKENS / lanes).min(tokens.div_ceil(lanes).max(FEWEST_TOKENS))
}

/// The chunks of a window, so many at once and no lane without work; micro-batches are packs that may share a chunk.
fn chunks(packs: &Packs, window: &[usize], micro_batch: usize, lanes: usize, compute: Kind) -> Vec<Chunk> {
    let tokens: u64 = window.iter().map(|&pack| packs.tokens(pack)).sum();
    let share = share(tokens as usize, lanes);
    window.chunks(micro_batch.max(1)).flat_map(|micro| packs.chunks(micro, share, compute)).collect()
}

fn tell_sizes(decoder: &Decoder, optimizer: &Optimizer, plan: &Steps, events: &Events) {
    let trainable: usize = optimizer.parameters().iter().map(|parameter| parameter.tensor.numel()).sum();
    events.fact("trainable_parameters", trainable as f64);
    events.fact("total_parameters", decoder.config.parameters() as f64);
    events.fact("optimizer_bytes", optimizer.bytes() as f64);
    events.fact("total_steps", plan.total as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_a_share_of_a_small_step() {
        assert_eq!([share(128, 2), share(256, 2), share(512, 2), share(8192, 2)], [64, 128, 256, 256]);
        assert_eq!([share(256, 1), share(8192, 1)], [256, 512]);
        assert_eq!(share(40, 4), FEWEST_TOKENS);
    }
}
