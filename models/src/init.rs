//! What an adapter's two matrices hold before the first step, by PEFT's recipes (`peft_init_lora_weights`).
//!
//! Draws depend on the seed and the layer's name alone, so adding or leaving out one layer changes no other.

use pipe_job::Init;
use tch::{Device, Kind, Tensor};

use crate::linear::{Linear, Weight};
use crate::{ModelError, Result, random};

/// Fresh matrices, and what the base gave away for them.
pub struct Start {
    /// `[r, inputs]`
    pub a: Tensor,
    /// `[outputs, r]`
    pub b: Tensor,
    /// Whether `scale * B A` was taken out of the layer's weight.
    pub moved: bool,
}

/// Starts an adapter of rank `r` on `linear`. `original` is the layer's weight before it was quantised, which LoftQ needs.
pub fn start(
    linear: &mut Linear,
    init: Init,
    r: i64,
    scale: f64,
    seed: u64,
    original: &mut dyn FnMut(&str) -> Result<Tensor>,
) -> Result<Start> {
    let (outputs, inputs) = linear.shape();
    let key = random::mix(seed, random::name_key(&linear.name));
    let nothing = || Tensor::zeros([outputs, r], (Kind::Float, Device::Cpu));
    let (a, b, moved) = match init {
        Init::Kaiming => (uniform(key, r, inputs), nothing(), false),
        Init::Gaussian => (normal(key, r, inputs) / r as f64, nothing(), false),
        Init::Orthogonal => {
            let (a, b) = orthogonal(key, r, outputs, inputs)?;
            (a, b, false)
        }
        Init::Pissa { iterations } => {
            let (a, b) = pissa(linear, iterations, r, scale, key)?;
            (a, b, true)
        }
        Init::Loftq => {
            let lost = original(&linear.name)? - linear.dense(Kind::Float);
            let (a, b) = directions(&lost, r, None, 1.0, key);
            (a, b, false)
        }
    };
    Ok(Start { a, b, moved })
}

/// Kaiming with a = sqrt 5: uniform in ±1/sqrt(inputs).
fn uniform(key: u64, r: i64, inputs: i64) -> Tensor {
    let bound = 1.0 / (inputs as f64).sqrt();
    let draws: Vec<f32> = (0..r * inputs).map(|i| ((random::unit(key, i as u64) * 2.0 - 1.0) * bound) as f32).collect();
    Tensor::from_slice(&draws).reshape([r, inputs])
}

fn normal(key: u64, rows: i64, columns: i64) -> Tensor {
    let draws: Vec<f32> = (0..rows * columns).map(|i| random::normal(key, i as u64) as f32).collect();
    Tensor::from_slice(&draws).reshape([rows, columns])
}

/// A from the even rows of an orthogonal matrix, B from the odd ones: neither is zero, and B A is.
fn orthogonal(key: u64, r: i64, outputs: i64, inputs: i64) -> Result<(Tensor, Tensor)> {
    if r % 2 != 0 {
        return Err(ModelError::input(format!(
            "peft_init_lora_weights: orthogonal needs an even rank, and lora_r is {r}; use {} or another start",
            r + 1
        )));
    }
    let (q, _) = Tensor::linalg_qr(&normal(random::mix(key, 0), r, r), "reduced");
    let (even, odd) = (q.slice(0, 0, r, 2), q.slice(0, 1, r, 2));
    let a = normal(random::mix(key, 1), inputs, r / 2).matmul(&even).tr() / 10.0;
    let b = normal(random::mix(key, 2), r / 2, outputs).tr().matmul(&odd) / 10.0;
    Ok((a.contiguous(), b.contiguous()))
}

/// The weight's first singular directions move from the base into the adapter.
fn pissa(linear: &mut Linear, iterations: Option<u32>, r: i64, scale: f64, key: u64) -> Result<(Tensor, Tensor)> {
    let name = linear.name.clone();
    let Weight::Dense(weight) = &mut linear.weight else {
        return Err(ModelError::input(format!(
            "peft_init_lora_weights: pissa takes its start out of the base's weights, and {name} is quantised; use loftq, or \
             a base that is not quantised"
        )));
    };
    let wide = weight.to_kind(Kind::Float);
    let (a, b) = directions(&wide, r, iterations, scale, key);
    *weight = (wide - b.matmul(&a) * scale).to_kind(weight.kind());
    Ok((a, b))
}

/// `B A = matrix / scale` as well as rank `r` can: singular values shared evenly between the two.
fn directions(matrix: &Tensor, r: i64, iterations: Option<u32>, scale: f64, key: u64) -> (Tensor, Tensor) {
    let (left, values, right) = match iterations {
        None => decompose(matrix),
        Some(rounds) => randomised(matrix, r, rounds, key),
    };
    let roots = (values.narrow(0, 0, r) / scale).sqrt();
    let a = roots.unsqueeze(1) * right.narrow(0, 0, r);
    let b = left.narrow(1, 0, r) * roots.unsqueeze(0);
    (a.contiguous(), b.contiguous())
}

/// `U`, the singular values and `V^T`, the thin ones.
fn decompose(matrix: &Tensor) -> (Tensor, Tensor, Tensor) {
    let (left, values, right) = matrix.svd(true, true);
    (left, values, right.tr())
}

/// Subspace iteration from a random start (Halko et al., arXiv 0909.4061), as torch.svd_lowrank does it.
fn randomised(matrix: &Tensor, r: i64, rounds: u32, key: u64) -> (Tensor, Tensor, Tensor) {
    let basis = |x: &Tensor| Tensor::linalg_qr(x, "reduced").0;
    let transposed = matrix.tr();
    let mut q = basis(&matrix.matmul(&normal(random::mix(key, 3), matrix.size()[1], r)));
    for _ in 0..rounds {
        q = basis(&transposed.matmul(&q));
        q = basis(&matrix.matmul(&q));
    }
    let (left, values, right) = decompose(&q.tr().matmul(matrix));
    (q.matmul(&left), values, right)
}
