//! The feed-forward part of a block: gated, plain, or a mixture of experts.

use pipe_files::{Activation, Experts};
use tch::{Kind, Tensor};

use crate::few;
use crate::linear::{Linear, Pass};
use crate::{random, shim};

/// The feed-forward part of a block.
#[derive(Debug)]
pub enum Mlp {
    Gated {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    /// Gate and up in one matrix, gate first.
    Packed {
        gate_up: Linear,
        down: Linear,
    },
    Plain {
        up: Linear,
        down: Linear,
    },
    Mixture(Mixture),
}

/// Experts and what chooses among them.
#[derive(Debug)]
pub struct Mixture {
    pub router: Linear,
    /// Gate, up and down of each.
    pub experts: Vec<[Linear; 3]>,
    pub how: Experts,
}

/// How often each expert of one layer was chosen and the sum of its probabilities, `[2, experts]` f32.
pub type Tally = Tensor;

impl Mlp {
    /// `x` is `[rows, hidden]`; the answer too, with the tally of a mixture.
    pub fn forward(&self, x: &Tensor, activation: Activation, pass: Pass) -> (Tensor, Option<Tally>) {
        match self {
            Self::Gated { gate, up, down } => (gated([gate, up, down], x, activation, pass), None),
            Self::Packed { gate_up, down } => {
                let both = gate_up.forward(x, pass);
                let half = both.size()[1] / 2;
                let product = gate_times(&both.narrow(1, 0, half), &both.narrow(1, half, half), activation, pass);
                (down.forward(&product, pass), None)
            }
            Self::Plain { up, down } => (down.forward(&apply(&up.forward(x, pass), activation), pass), None),
            Self::Mixture(mixture) => mixture.forward(x, activation, pass),
        }
    }

    /// `onto` plus the answer to `x`, with the tally of a mixture.
    pub fn forward_onto(
        &self,
        onto: &Tensor,
        x: &Tensor,
        activation: Activation,
        pass: Pass,
    ) -> (Tensor, Option<Tally>) {
        if let Self::Gated { gate, up, down } = self
            && activation == Activation::Silu
            && let Some(sum) = few::gated([gate, up, down], x, onto, pass)
        {
            return (sum, None);
        }
        let (fed, tally) = self.forward(x, activation, pass);
        (onto + fed, tally)
    }

    /// Its linear layers, in the order of the computation.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Gated { gate, up, down } => vec![gate, up, down],
            Self::Packed { gate_up, down } => vec![gate_up, down],
            Self::Plain { up, down } => vec![up, down],
            Self::Mixture(mixture) => {
                std::iter::once(&mixture.router).chain(mixture.experts.iter().flatten()).collect()
            }
        }
    }

    /// Its linear layers, in the order of the computation.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Gated { gate, up, down } => vec![gate, up, down],
            Self::Packed { gate_up, down } => vec![gate_up, down],
            Self::Plain { up, down } => vec![up, down],
            Self::Mixture(mixture) => {
                std::iter::once(&mut mixture.router).chain(mixture.experts.iter_mut().flatten()).collect()
            }
        }
    }
}

impl Mixture {
    /// Sends each row to the experts it scores highest and adds up their answers by share.
    fn forward(&self, x: &Tensor, activation: Activation, pass: Pass) -> (Tensor, Option<Tally>) {
        let scores = self.router.forward(&self.shaken(x, pass), pass);
        let probabilities = scores.softmax(-1, Kind::Float);
        let (shares, chosen) = probabilities.topk(self.how.per_token as i64, -1, true, true);
        let shares = match self.how.normalise {
            true => &shares / shares.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float),
            false => shares,
        };
        let mut out = x.zeros_like();
        for (index, expert) in self.experts.iter().enumerate() {
            let places = chosen.eq(index as i64).nonzero();
            if places.size()[0] == 0 {
                continue;
            }
            let (rows, rank) = (places.select(1, 0), places.select(1, 1));
            let answer = gated(expert.each_ref(), &x.index_select(0, &rows), activation, pass);
            let share = shares.index(&[Some(&rows), Some(&rank)]).unsqueeze(1).to_kind(x.kind());
            out = out.index_add(0, &rows, &(answer * share));
        }
        let wanted = pass.training.is_some() && self.how.balance > 0.0;
        (out, wanted.then(|| self.tally(&probabilities, &chosen)))
    }

    fn tally(&self, probabilities: &Tensor, chosen: &Tensor) -> Tally {
        let counts = chosen.reshape([-1]).bincount(None::<&Tensor>, self.how.count as i64).to_kind(Kind::Float);
        let sums = probabilities.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        Tensor::stack(&[counts, sums], 0)
    }

    /// The router's input with noise, where the model asks for it in training.
    fn shaken(&self, x: &Tensor, pass: Pass) -> Tensor {
        let Some(seed) = pass.training.filter(|_| self.how.jitter > 0.0) else { return x.shallow_clone() };
        let key = random::mix(seed, random::name_key(&self.router.name));
        let draws: Vec<f32> = (0..x.numel() as u64)
            .map(|i| (1.0 + (random::unit(key, i) * 2.0 - 1.0) * self.how.jitter) as f32)
            .collect();
        x * Tensor::from_slice(&draws).reshape_as(x).to_kind(x.kind())
    }
}

/// The load-balancing loss over all layers of a mixture (Fedus et al., arXiv 2101.03961), as transformers computes it from
/// the tallies of `rows` tokens.
pub fn balance_loss(tallies: &[Tally], rows: i64) -> Option<Tensor> {
    let experts = tallies.first()?.size()[1];
    let total = (rows * tallies.len() as i64) as f64;
    let sums = Tensor::stack(tallies, 0).sum_dim_intlist([0i64].as_slice(), false, Kind::Float) / total;
    Some((sums.get(0) * sums.get(1)).sum(Kind::Float) * experts as f64)
}

fn gated([gate, up, down]: [&Linear; 3], x: &Tensor, activation: Activation, pass: Pass) -> Tensor {
    let [gate, up] = Linear::forward_all([gate, up], x, pass);
    let product = gate_times(&gate, &up, activation, pass);
    down.forward(&product, pass)
}

/// `activation(gate) * up` (Shazeer, arXiv 2002.05202).
fn gate_times(gate: &Tensor, up: &Tensor, activation: Activation, pass: Pass) -> Tensor {
    match pass.fused && activation == Activation::Silu {
        true => shim::swiglu(gate, up),
        false => apply(gate, activation) * up,
    }
}

fn apply(x: &Tensor, activation: Activation) -> Tensor {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu("none"),
        Activation::GeluTanh => x.gelu("tanh"),
        Activation::QuickGelu => x * (x * 1.702).sigmoid(),
        Activation::Relu => x.relu(),
        Activation::ReluSquared => x.relu().square(),
    }
}
