//! Optimizer updates in one pass over memory instead of one per term.

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
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub momentum: f64,
}

/// AdamW's constants of one step, in f32.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    keep: f32,
    toward: f32,
    fade: f32,
    add: f32,
    root: f32,
    size: f32,
    clip: f32,
    epsilon: f32,
}

impl AdamW {
    pub fn new(update: &Update) -> Self {
        let Update { lr, beta1, beta2, epsilon, weight_decay, .. } = *update;
        let steps = update.step.min(i32::MAX as u64) as i32;
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            toward: (1.0 - beta1) as f32,
            fade: beta2 as f32,
            add: (1.0 - beta2) as f32,
            root: (1.0 - beta2.powi(steps)).sqrt() as f32,
            size: (-lr / (1.0 - beta1.powi(steps))) as f32,
            clip: update.clip as f32,
            epsilon: epsilon as f32,
        }
    }

    /// Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) in the order of torch.optim.AdamW.
    #[inline]
    pub fn apply(&self, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        let g = g * self.clip;
        *m += self.toward * (g - *m);
        *v = *v * self.fade + self.add * g * g;
        *p = *p * self.keep + self.size * (*m / (v.sqrt() / self.root + self.epsilon));
    }
}

/// torch.optim.AdamW; all are contiguous f32 of one size.
pub fn adamw(update: &Update, tensor: &mut Tensor, grad: &Tensor, first: &mut Tensor, second: &mut Tensor) {
    let (p, g) = (elements_mut(tensor), elements(grad));
    let (m, v) = (elements_mut(first), elements_mut(second));
    let rule = AdamW::new(update);
    let spans = p.par_chunks_mut(SPAN).zip(g.par_chunks(SPAN)).zip(m.par_chunks_mut(SPAN)).zip(v.par_chunks_mut(SPAN));
    spans.for_each(|(((p, g), m), v)| {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            rule.apply(p, *g, m, v);
        }
    });
}

/// The sum of squares of a contiguous f32 tensor, in f64.
pub fn sum_of_squares(tensor: &Tensor) -> f64 {
    const LANES: usize = 16;
    let (whole, rest) = elements(tensor).as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for values in whole {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>()
}

/// Lion with decoupled weight decay (Chen et al., arXiv 2302.06675).
pub fn lion(update: &Update, tensor: &mut Tensor, grad: &Tensor, momentum: &mut Tensor) {
    let (p, g, m) = (elements_mut(tensor), elements(grad), elements_mut(momentum));
    let (lr, clip) = (update.lr as f32, update.clip as f32);
    let (beta1, beta2) = (update.beta1 as f32, update.beta2 as f32);
    let (toward1, toward2) = ((1.0 - update.beta1) as f32, (1.0 - update.beta2) as f32);
    let keep = (1.0 - update.lr * update.weight_decay) as f32;
    p.par_chunks_mut(SPAN).zip(g.par_chunks(SPAN)).zip(m.par_chunks_mut(SPAN)).for_each(|((p, g), m)| {
        for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
            let g = g * clip;
            let way = *m * beta1 + toward1 * g;
            // Unlike f32::signum, the sign of nothing is nothing.
            let sign = if way > 0.0 {
                1.0
            } else if way < 0.0 {
                -1.0
            } else {
                way
            };
            *p = *p * keep - lr * sign;
            *m = *m * beta2 + toward2 * g;
        }
    });
}

/// torch.optim.SGD without dampening, coupled weight decay.
pub fn sgd(update: &Update, tensor: &mut Tensor, grad: &Tensor, momentum: Option<&mut Tensor>) {
    let (p, g) = (elements_mut(tensor), elements(grad));
    let (lr, clip) = (update.lr as f32, update.clip as f32);
    let (share, decay) = (update.momentum as f32, update.weight_decay as f32);
    match momentum {
        Some(momentum) => {
            let m = elements_mut(momentum);
            p.par_chunks_mut(SPAN).zip(g.par_chunks(SPAN)).zip(m.par_chunks_mut(SPAN)).for_each(|((p, g), m)| {
                for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
                    *m = *m * share + (g * clip + decay * *p);
                    *p -= lr * *m;
                }
            });
        }
        None => p.par_chunks_mut(SPAN).zip(g.par_chunks(SPAN)).for_each(|(p, g)| {
            p.iter_mut().zip(g).for_each(|(p, g)| *p -= lr * (g * clip + decay * *p));
        }),
    }
}

pub(super) fn elements(tensor: &Tensor) -> &[f32] {
    assert!(tensor.kind() == Kind::Float && tensor.is_contiguous(), "a contiguous f32 tensor is needed");
    // SAFETY: checked above; the memory lives as long as the borrowed tensor.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

pub(super) fn elements_mut(tensor: &mut Tensor) -> &mut [f32] {
    assert!(tensor.kind() == Kind::Float && tensor.is_contiguous(), "a contiguous f32 tensor is needed");
    // SAFETY: checked above; parameters and moments never share memory, and the loop holds no other view of them.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

pub(super) fn bytes_mut(tensor: &mut Tensor) -> &mut [u8] {
    assert!(tensor.kind() == Kind::Uint8 && tensor.is_contiguous(), "a contiguous tensor of bytes is needed");
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), tensor.numel()) }
}
