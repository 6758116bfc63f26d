//! Adafactor as transformers runs it for `optim: adafactor`: a given learning rate, no first moment (arXiv 1804.04235).

use tch::{Kind, Tensor};

use crate::kernels::elementwise::Update;

const EPSILON: f64 = 1e-30;
const DECAY_RATE: f64 = -0.8;
const CLIP_THRESHOLD: f64 = 1.0;

/// Row and column means for a matrix, a full second moment for a vector.
pub fn state(parameter: &Tensor) -> Vec<(&'static str, Tensor)> {
    let size = parameter.size();
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, parameter.device()));
    match size.as_slice() {
        [.., rows, columns] => {
            let lead = &size[..size.len() - 2];
            vec![
                ("exp_avg_sq_row", zeros(&[lead, &[*rows]].concat())),
                ("exp_avg_sq_col", zeros(&[lead, &[*columns]].concat())),
            ]
        }
        _ => vec![("exp_avg_sq", zeros(&size))],
    }
}

pub fn step(update: &Update, parameter: &mut Tensor, grad: &Tensor, state: &mut [(&'static str, Tensor)]) {
    let grad = grad * update.clip;
    let fade = 1.0 - (update.step as f64).powf(DECAY_RATE);
    let square = grad.square() + EPSILON;
    let mean = |x: &Tensor, dim: i64| x.mean_dim([dim].as_slice(), false, Kind::Float);
    let toward = |held: &mut Tensor, new: &Tensor| held.copy_(&(&*held * fade + new * (1.0 - fade)));
    let mut change = match state {
        [(_, row), (_, column)] => {
            toward(row, &mean(&square, -1));
            toward(column, &mean(&square, -2));
            let rows = (&*row / row.mean_dim([-1i64].as_slice(), true, Kind::Float)).rsqrt().unsqueeze(-1);
            rows * column.unsqueeze(-2).rsqrt() * &grad
        }
        [(_, held)] => {
            toward(held, &square);
            held.rsqrt() * &grad
        }
        _ => return,
    };
    let size = (change.square().sum(Kind::Double).double_value(&[]) / change.numel() as f64).sqrt();
    change *= update.lr / (size / CLIP_THRESHOLD).max(1.0);
    if update.weight_decay != 0.0 {
        *parameter *= 1.0 - update.weight_decay * update.lr;
    }
    *parameter -= change;
}
