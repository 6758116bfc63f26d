//! The norms of all families: with or without the mean, weight and bias.

use pipe_files::NormStyle;
use tch::{Kind, Tensor};

use crate::linear::Pass;
use crate::shim;

/// A norm over the last dimension, by its Hugging Face name without `.weight`.
#[derive(Debug)]
pub struct Norm {
    pub name: String,
    pub style: NormStyle,
    /// `[size]`, or `[heads, size]` where each head has its own; absent in norms without one.
    pub weight: Option<Tensor>,
    pub bias: Option<Tensor>,
}

impl Norm {
    /// Norms every row of `x` `[rows, size]`.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        if self.style.centred {
            return self.centred(x);
        }
        let Some(weight) = &self.weight else { return root_mean_square(x, self.style.eps).to_kind(x.kind()) };
        let counted = if self.style.from_one { weight + 1.0 } else { weight.shallow_clone() };
        if pass.fused && !weight.requires_grad() {
            return shim::rms_norm(x, &counted, self.style.eps);
        }
        let normed = root_mean_square(x, self.style.eps);
        match self.style.from_one {
            // The one family that counts from one also multiplies before it rounds.
            true => (normed * counted.to_kind(Kind::Float)).to_kind(x.kind()),
            false => normed.to_kind(x.kind()) * counted.to_kind(x.kind()),
        }
    }

    /// Norms the heads of `x` `[rows, heads * size]` each alone, or the whole where the weight is as wide.
    pub fn forward_heads(&self, x: &Tensor, head_dim: i64, pass: Pass) -> Tensor {
        let whole = self.weight.as_ref().is_some_and(|weight| weight.dim() == 1 && weight.size()[0] == x.size()[1]);
        if whole {
            return self.forward(x, pass);
        }
        match &self.weight {
            Some(weight) if weight.dim() == 2 => {
                let heads = x.reshape([x.size()[0], -1, head_dim]);
                let normed = heads.layer_norm([head_dim], None::<&Tensor>, None::<&Tensor>, self.style.eps, false);
                (normed * weight.to_kind(x.kind())).reshape_as(x)
            }
            _ => self.forward(&x.reshape([-1, head_dim]), pass).reshape_as(x),
        }
    }

    fn centred(&self, x: &Tensor) -> Tensor {
        let size = x.size().last().copied().unwrap_or(1);
        let own = |x: &Option<Tensor>, kind: Kind| x.as_ref().map(|x| x.to_kind(kind));
        let (weight, bias) = (own(&self.weight, x.kind()), own(&self.bias, x.kind()));
        x.layer_norm([size], weight.as_ref(), bias.as_ref(), self.style.eps, false)
    }
}

/// `x / rms(x)` in f32 (Zhang and Sennrich, arXiv 1910.07467).
fn root_mean_square(x: &Tensor, eps: f64) -> Tensor {
    let wide = x.to_kind(Kind::Float);
    let scale = (wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + eps).rsqrt();
    wide * scale
}
