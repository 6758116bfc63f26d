//! Optimizers, as PyTorch defines them, over named f32 parameters.

use std::collections::BTreeMap;

use pipe_job::{Optimizer as Settings, OptimizerKind};
use tch::{Kind, Tensor};

use crate::kernels::elementwise;
use crate::{ModelError, Result};

/// A trained tensor and its name in the saved adapter.
#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    pub tensor: Tensor,
}

/// Parameters with the state of their optimizer.
#[derive(Debug)]
pub struct Optimizer {
    settings: Settings,
    parameters: Vec<Parameter>,
    /// First and second moments, in the order of the parameters; momentum alone for SGD.
    moments: Vec<[Tensor; 2]>,
    steps: u64,
}

impl Optimizer {
    /// A fresh optimizer over f32 leaves.
    pub fn new(settings: Settings, parameters: Vec<Parameter>) -> Result<Self> {
        if settings.kind == OptimizerKind::AdamW8bit {
            return Err(ModelError::input(
                "optimizer adamw_bnb_8bit is not available on this machine; use adamw_torch",
            ));
        }
        let moments =
            parameters.iter().map(|p| [p.tensor.zeros_like().detach(), p.tensor.zeros_like().detach()]).collect();
        Ok(Self { settings, parameters, moments, steps: 0 })
    }

    /// The parameters, in their fixed order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The global 2-norm of the gradients; NaN or infinity if any is.
    pub fn grad_norm(&self) -> f64 {
        let squares = self.parameters.iter().map(|p| p.tensor.grad()).filter(Tensor::defined);
        let sum: f64 = tch::no_grad(|| squares.map(|grad| grad.square().sum(Kind::Double).double_value(&[])).sum());
        sum.sqrt()
    }

    /// Scales gradients whose norm exceeds the limit, as `clip_grad_norm_` does, and takes one step at rate `lr`.
    pub fn step(&mut self, lr: f64, grad_norm: f64) {
        let limit = self.settings.max_grad_norm;
        let clip = if limit > 0.0 { (limit / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        tch::no_grad(|| {
            for (parameter, moments) in self.parameters.iter_mut().zip(&mut self.moments) {
                let grad = parameter.tensor.grad();
                if !grad.defined() {
                    continue;
                }
                let grad = grad.contiguous();
                let update = elementwise::Update { lr, clip, step: self.steps, settings: self.settings };
                update.apply(&mut parameter.tensor, &grad, moments);
            }
        });
    }

    /// Forgets the gradients but keeps their memory.
    pub fn zero_grad(&mut self) {
        self.parameters.iter_mut().for_each(|parameter| parameter.tensor.zero_grad());
    }

    /// Moments by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = self.parameters.iter().zip(&self.moments);
        let pairs = named.flat_map(|(p, [first, second])| {
            [
                (format!("{}.exp_avg", p.name), first.shallow_clone()),
                (format!("{}.exp_avg_sq", p.name), second.shallow_clone()),
            ]
        });
        pairs.collect()
    }

    /// Takes moments and the step count back from a checkpoint.
    pub fn restore(&mut self, steps: u64, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let missing = |name: &str| ModelError::work(format!("the checkpoint has no optimizer state for {name}"));
        for (parameter, moments) in self.parameters.iter().zip(&mut self.moments) {
            for (part, moment) in ["exp_avg", "exp_avg_sq"].iter().zip(moments) {
                let name = format!("{}.{part}", parameter.name);
                let saved = state.get(&name).filter(|saved| saved.size() == moment.size());
                moment.copy_(saved.ok_or_else(|| missing(&name))?);
            }
        }
        self.steps = steps;
        Ok(())
    }
}
