//! Optimizers over named f32 parameters: who is updated by which rule, at which rate, with which decay.
//!
//! Every trained tensor is kept in f32 whatever the arithmetic type, so no update is lost to rounding. The rules themselves
//! are in `optimizer/` and, where they are one pass over memory, in `kernels/`.

mod adafactor;
mod muon;

use std::collections::BTreeMap;

use pipe_job::{LoraPlus, Optimizer as Settings, OptimizerKind};
use tch::Tensor;

use crate::kernels::eight_bit;
use crate::kernels::elementwise::{self, Update};
use crate::{ModelError, Result, shim};

/// bitsandbytes keeps the state of smaller tensors in 32 bits.
const EIGHT_BIT_FROM: usize = 4096;

/// A trained tensor and its name in the saved adapter or model.
#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    pub tensor: Tensor,
    /// Rows, from and up to, whose gradient is dropped.
    pub frozen_rows: Vec<(i64, i64)>,
}

/// Parameters with the state of their optimizer.
#[derive(Debug)]
pub struct Optimizer {
    settings: Settings,
    parameters: Vec<Parameter>,
    slots: Vec<Slot>,
    steps: u64,
}

/// What the optimizer keeps for one parameter.
#[derive(Debug)]
struct Slot {
    rule: Rule,
    /// Factor on the learning rate.
    rate: f64,
    weight_decay: f64,
    /// State by its name in a checkpoint.
    state: Vec<(&'static str, Tensor)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    AdamW,
    AdamW8bit,
    Adafactor,
    Lion,
    Sgd,
    Muon,
}

impl Parameter {
    pub fn new(name: String, tensor: Tensor) -> Self {
        Self { name, tensor, frozen_rows: Vec::new() }
    }

    /// transformers' rule: biases and the weights of norms do not decay.
    fn decays(&self) -> bool {
        let name = self.name.to_ascii_lowercase();
        let norm = |part: &str| part == "norm" || part.ends_with("_norm") || part.starts_with("ln_") || part == "ln";
        !name.contains("bias") && !name.contains("layernorm") && !name.contains("rmsnorm") && !name.split('.').any(norm)
    }

    fn is_vocabulary(&self) -> bool {
        self.is_embedding() || self.name.contains("lm_head") || self.name.contains("embed_out")
    }

    fn is_embedding(&self) -> bool {
        ["embed_tokens", "embed_in", "wte", "wpe", "tok_embeddings", "word_embeddings"]
            .iter()
            .any(|part| self.name.contains(part))
    }
}

impl Optimizer {
    /// A fresh optimizer over f32 leaves.
    pub fn new(settings: Settings, parameters: Vec<Parameter>) -> Result<Self> {
        if parameters.is_empty() {
            return Err(ModelError::input("nothing is trained: no weight of this model is chosen"));
        }
        let slots = parameters.iter().map(|parameter| Slot::new(&settings, parameter)).collect();
        Ok(Self { settings, parameters, slots, steps: 0 })
    }

    /// The parameters, in their fixed order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The global 2-norm of the gradients; NaN or infinity if any is. Gradients of frozen rows are dropped first.
    pub fn grad_norm(&self) -> f64 {
        tch::no_grad(|| {
            let mut sum = 0.0;
            for parameter in &self.parameters {
                let grad = parameter.tensor.grad();
                if !grad.defined() {
                    continue;
                }
                for &(from, to) in &parameter.frozen_rows {
                    let _ = grad.narrow(0, from, to - from).zero_();
                }
                sum += elementwise::sum_of_squares(&grad.contiguous());
            }
            sum.sqrt()
        })
    }

    /// Scales gradients whose norm exceeds the limit, as `clip_grad_norm_` does, and takes one step at rate `lr`; `momentum`
    /// replaces beta1 where the schedule moves it.
    pub fn step(&mut self, lr: f64, grad_norm: f64, momentum: Option<f64>) {
        let limit = self.settings.max_grad_norm;
        let clip = if limit > 0.0 { (limit / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        tch::no_grad(|| {
            for (parameter, slot) in self.parameters.iter_mut().zip(&mut self.slots) {
                let grad = parameter.tensor.grad();
                if !grad.defined() {
                    continue;
                }
                let update = Update {
                    lr: lr * slot.rate,
                    clip,
                    step: self.steps,
                    beta1: momentum.unwrap_or(self.settings.beta1),
                    beta2: self.settings.beta2,
                    epsilon: self.settings.epsilon,
                    weight_decay: slot.weight_decay,
                    momentum: momentum.filter(|_| self.settings.momentum > 0.0).unwrap_or(self.settings.momentum),
                };
                slot.apply(&update, &mut parameter.tensor, &grad.contiguous());
            }
        });
    }

    /// Forgets the gradients: a parameter that the next step does not reach then is left as it is.
    pub fn forget_gradients(&mut self) {
        self.parameters.iter().for_each(|parameter| shim::set_gradient(&parameter.tensor, None));
    }

    /// State by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = self.parameters.iter().zip(&self.slots);
        named
            .flat_map(|(p, slot)| slot.state.iter().map(|(part, x)| (format!("{}.{part}", p.name), x.shallow_clone())))
            .collect()
    }

    /// Takes state and step count back from a checkpoint.
    pub fn restore(&mut self, steps: u64, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let missing = |name: &str| ModelError::work(format!("the checkpoint has no optimizer state for {name}"));
        for (parameter, slot) in self.parameters.iter().zip(&mut self.slots) {
            for (part, held) in &mut slot.state {
                let name = format!("{}.{part}", parameter.name);
                let saved = state.get(&name).filter(|saved| saved.size() == held.size() && saved.kind() == held.kind());
                held.copy_(saved.ok_or_else(|| missing(&name))?);
            }
        }
        self.steps = steps;
        Ok(())
    }

    /// Bytes of state held.
    pub fn bytes(&self) -> usize {
        let held = self.slots.iter().flat_map(|slot| &slot.state);
        held.map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
    }
}

impl Slot {
    fn new(settings: &Settings, parameter: &Parameter) -> Self {
        let tensor = &parameter.tensor;
        let rule = match settings.kind {
            OptimizerKind::AdamW => Rule::AdamW,
            // transformers keeps the state of embeddings in 32 bits.
            OptimizerKind::AdamW8bit if tensor.numel() < EIGHT_BIT_FROM || parameter.is_embedding() => Rule::AdamW,
            OptimizerKind::AdamW8bit => Rule::AdamW8bit,
            OptimizerKind::Adafactor => Rule::Adafactor,
            OptimizerKind::Lion => Rule::Lion,
            OptimizerKind::Sgd => Rule::Sgd,
            OptimizerKind::Muon if tensor.dim() == 2 && !parameter.is_vocabulary() => Rule::Muon,
            OptimizerKind::Muon => Rule::AdamW,
        };
        let like = || tensor.zeros_like().detach();
        let state = match rule {
            Rule::AdamW => vec![("exp_avg", like()), ("exp_avg_sq", like())],
            Rule::AdamW8bit => eight_bit::state(tensor.numel()),
            Rule::Adafactor => adafactor::state(tensor),
            Rule::Lion => vec![("exp_avg", like())],
            Rule::Muon => vec![("momentum_buffer", like())],
            Rule::Sgd if settings.momentum > 0.0 => vec![("momentum_buffer", like())],
            Rule::Sgd => Vec::new(),
        };
        let weight_decay = if parameter.decays() { settings.weight_decay } else { 0.0 };
        Self { rule, rate: rate(settings, parameter), weight_decay, state }
    }

    fn apply(&mut self, update: &Update, p: &mut Tensor, grad: &Tensor) {
        match (self.rule, self.state.as_mut_slice()) {
            (Rule::AdamW, [(_, m), (_, v)]) => elementwise::adamw(update, p, grad, m, v),
            (Rule::AdamW8bit, [(_, c1), (_, a1), (_, c2), (_, a2)]) => {
                eight_bit::adamw(update, p, grad, [c1, a1, c2, a2])
            }
            (Rule::Adafactor, state) => adafactor::step(update, p, grad, state),
            (Rule::Lion, [(_, m)]) => elementwise::lion(update, p, grad, m),
            (Rule::Muon, [(_, m)]) => muon::step(update, p, grad, m),
            (Rule::Sgd, [(_, m)]) => elementwise::sgd(update, p, grad, Some(m)),
            (Rule::Sgd, _) => elementwise::sgd(update, p, grad, None),
            (rule, state) => unreachable!("{rule:?} with {} parts of state", state.len()),
        }
    }
}

/// LoRA+ as PEFT's create_loraplus_optimizer groups parameters: B and whatever is a vector learn faster.
fn rate(settings: &Settings, parameter: &Parameter) -> f64 {
    match settings.lora_plus {
        Some(LoraPlus { embedding_lr: Some(own), .. }) if parameter.is_embedding() => own / settings.lr,
        Some(LoraPlus { ratio, .. }) if parameter.name.contains("lora_B") || parameter.tensor.dim() == 1 => ratio,
        _ => 1.0,
    }
}
