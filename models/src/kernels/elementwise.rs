//! The optimizer's update in one pass over memory instead of one per term.

use pipe_job::{Optimizer, OptimizerKind};
use rayon::prelude::*;
use tch::{Kind, Tensor};

/// Elements a task should have.
const SPAN: usize = 1 << 16;

/// One step's constants.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub lr: f64,
    /// Factor on every gradient.
    pub clip: f64,
    /// Steps done, counting this one.
    pub step: u64,
    pub settings: Optimizer,
}

impl Update {
    /// Updates a parameter and its moments; all are contiguous f32 of one size.
    pub fn apply(&self, tensor: &mut Tensor, grad: &Tensor, moments: &mut [Tensor; 2]) {
        let [first, second] = moments;
        let (p, g) = (elements_mut(tensor), elements(grad));
        let (m, v) = (elements_mut(first), elements_mut(second));
        let spans =
            p.par_chunks_mut(SPAN).zip(g.par_chunks(SPAN)).zip(m.par_chunks_mut(SPAN)).zip(v.par_chunks_mut(SPAN));
        spans.for_each(|(((p, g), m), v)| match self.settings.kind {
            OptimizerKind::Sgd => self.sgd(p, g, m),
            _ => self.adamw(p, g, m, v),
        });
    }

    /// Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) in the order of torch.optim.AdamW.
    fn adamw(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let Optimizer { beta1, beta2, epsilon, weight_decay, .. } = self.settings;
        let steps = self.step.min(i32::MAX as u64) as i32;
        let keep = (1.0 - self.lr * weight_decay) as f32;
        let (toward, fade, add) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
        let root = (1.0 - beta2.powi(steps)).sqrt() as f32;
        let size = (-self.lr / (1.0 - beta1.powi(steps))) as f32;
        let (clip, epsilon) = (self.clip as f32, epsilon as f32);
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * clip;
            *m += toward * (g - *m);
            *v = *v * fade + add * g * g;
            *p = *p * keep + size * (*m / (v.sqrt() / root + epsilon));
        }
    }

    /// torch.optim.SGD with momentum `beta1`, no dampening, coupled weight decay.
    fn sgd(&self, p: &mut [f32], g: &[f32], m: &mut [f32]) {
        let (lr, clip) = (self.lr as f32, self.clip as f32);
        let (momentum, decay) = (self.settings.beta1 as f32, self.settings.weight_decay as f32);
        for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
            *m = *m * momentum + g * clip + decay * *p;
            *p -= lr * *m;
        }
    }
}

fn elements(tensor: &Tensor) -> &[f32] {
    assert!(tensor.kind() == Kind::Float && tensor.is_contiguous(), "a contiguous f32 tensor is needed");
    // SAFETY: checked above; the memory lives as long as the borrowed tensor.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

fn elements_mut(tensor: &mut Tensor) -> &mut [f32] {
    assert!(tensor.kind() == Kind::Float && tensor.is_contiguous(), "a contiguous f32 tensor is needed");
    // SAFETY: checked above; parameters and moments never share memory, and the loop holds no other view of them.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}
