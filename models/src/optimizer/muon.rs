//! Muon as torch.optim.Muon defines it: Nesterov momentum, orthogonalised by Newton and Schulz's iteration in bf16.

use tch::{Kind, Tensor};

use crate::kernels::elementwise::Update;

const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.775, 2.0315);
const ROUNDS: usize = 5;
const EPSILON: f64 = 1e-7;

pub fn step(update: &Update, parameter: &mut Tensor, grad: &Tensor, buffer: &mut Tensor) {
    let grad = grad * update.clip;
    let _ = buffer.lerp_(&grad, 1.0 - update.momentum);
    let change = orthogonal(&grad.lerp(buffer, update.momentum)).to_kind(Kind::Float);
    let (rows, columns) = (parameter.size()[0] as f64, parameter.size()[1] as f64);
    *parameter *= 1.0 - update.lr * update.weight_decay;
    *parameter -= change * (update.lr * (rows / columns).max(1.0).sqrt());
}

/// The nearest matrix with orthogonal rows (or columns), about.
fn orthogonal(matrix: &Tensor) -> Tensor {
    let (a, b, c) = COEFFICIENTS;
    let tall = matrix.size()[0] > matrix.size()[1];
    let narrow = matrix.to_kind(Kind::BFloat16);
    let mut x = if tall { narrow.tr() } else { narrow };
    x = &x / x.norm().clamp_min(EPSILON);
    // `beta * sum + alpha * left right`, rounded once, as torch's addmm does it.
    let fused = |sum: &Tensor, left: &Tensor, right: &Tensor, beta: f64, alpha: f64| {
        sum.unsqueeze(0).baddbmm(&left.unsqueeze(0), &right.unsqueeze(0), beta, alpha).squeeze_dim(0)
    };
    for _ in 0..ROUNDS {
        let gram = x.matmul(&x.tr());
        let polynomial = fused(&gram, &gram, &gram, b, c);
        x = fused(&x, &polynomial, &x, a, 1.0);
    }
    if tall { x.tr().contiguous() } else { x }
}
