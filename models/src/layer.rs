//! One decoder block of any family: which norms it has, how its projections are packed and how its halves are joined are
//! values in [`ModelConfig`] and in what is held here. Knows nothing of positions, caches or documents.

use pipe_files::{ModelConfig, QkvLayout};
use tch::Tensor;

use crate::linear::{Linear, Pass};
use crate::mlp::{Mlp, Tally};
use crate::norm::Norm;
use crate::{random, shim};

/// One decoder block.
#[derive(Debug)]
pub struct Layer {
    /// Its number, from 0.
    pub index: usize,
    pub attention_norm: Option<Norm>,
    pub projections: Projections,
    pub query_norm: Option<Norm>,
    pub key_norm: Option<Norm>,
    pub output: Linear,
    pub attention_post_norm: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    pub mlp: Mlp,
    pub mlp_post_norm: Option<Norm>,
}

/// The projections to queries, keys and values.
#[derive(Debug)]
pub enum Projections {
    Separate(Box<[Linear; 3]>),
    Packed(Linear),
}

impl Layer {
    /// The block's linear layers, in the order of the computation.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut all: Vec<&Linear> = match &self.projections {
            Projections::Separate(three) => three.iter().collect(),
            Projections::Packed(one) => vec![one],
        };
        all.push(&self.output);
        all.extend(self.mlp.linears());
        all
    }

    /// The block's linear layers, in the order of the computation.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all: Vec<&mut Linear> = match &mut self.projections {
            Projections::Separate(three) => three.iter_mut().collect(),
            Projections::Packed(one) => vec![one],
        };
        all.push(&mut self.output);
        all.extend(self.mlp.linears_mut());
        all
    }

    /// The block's norms, in the order of the computation.
    pub fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let all = [
            &mut self.attention_norm,
            &mut self.query_norm,
            &mut self.key_norm,
            &mut self.attention_post_norm,
            &mut self.mlp_norm,
            &mut self.mlp_post_norm,
        ];
        all.into_iter().flatten()
    }

    /// Every weight that is held as a plain tensor, by its Hugging Face name.
    pub fn weights_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let Self {
            attention_norm,
            projections,
            query_norm,
            key_norm,
            output,
            attention_post_norm,
            mlp_norm,
            mlp,
            mlp_post_norm,
            ..
        } = self;
        let norms = [attention_norm, query_norm, key_norm, attention_post_norm, mlp_norm, mlp_post_norm];
        let mut linears: Vec<&mut Linear> = match projections {
            Projections::Separate(three) => three.iter_mut().collect(),
            Projections::Packed(one) => vec![one],
        };
        linears.push(output);
        linears.extend(mlp.linears_mut());
        let mut all: Vec<_> = norms.into_iter().flatten().flat_map(Norm::weights_mut).collect();
        all.extend(linears.into_iter().flat_map(Linear::weights_mut));
        all
    }

    /// Whether its feed-forward part is a mixture of experts.
    pub fn is_mixture(&self) -> bool {
        matches!(self.mlp, Mlp::Mixture(_))
    }

    /// `x` is `[rows, hidden]`; `attend` mixes queries, keys and values of all rows into `[rows, heads * head_dim]`.
    pub fn forward(
        &self,
        config: &ModelConfig,
        x: &Tensor,
        pass: Pass,
        mut attend: impl FnMut(&Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> (Tensor, Option<Tally>) {
        let normed = through(&self.attention_norm, x, pass);
        let [q, k, v] = self.project(config, &normed, pass);
        let mixed = attend(&q, &k, &v);
        let plain = config.scales.residual == 1.0 && pass.training.is_none();
        let summed = if plain && self.attention_post_norm.is_none() {
            self.output.forward_onto(x, &mixed, pass)
        } else {
            let attended = through(&self.attention_post_norm, &self.output.forward(&mixed, pass), pass);
            x + self.added(&attended, config, config.dropout.attention_output, "attention", pass)
        };
        let normed = match (&self.mlp_norm, config.parallel) {
            (None, true) => normed,
            (_, true) => through(&self.mlp_norm, x, pass),
            (_, false) => through(&self.mlp_norm, &summed, pass),
        };
        if plain && self.mlp_post_norm.is_none() {
            return self.mlp.forward_onto(&summed, &normed, config.activation, pass);
        }
        let (fed, tally) = self.mlp.forward(&normed, config.activation, pass);
        let fed = through(&self.mlp_post_norm, &fed, pass);
        (summed + self.added(&fed, config, config.dropout.mlp_output, "mlp", pass), tally)
    }

    /// Queries, keys and values, each `[rows, its heads * head_dim]`, before positions.
    fn project(&self, config: &ModelConfig, x: &Tensor, pass: Pass) -> [Tensor; 3] {
        let dim = config.head_dim as i64;
        let parts = match &self.projections {
            Projections::Separate(three) => Linear::forward_all(three.each_ref(), x, pass),
            Projections::Packed(linear) => unpack(&linear.forward(x, pass), config),
        };
        let [q, k, v] = match config.clip_qkv {
            Some(limit) => parts.map(|part| part.clamp(-limit, limit)),
            None => parts,
        };
        let normed = |norm: &Option<Norm>, x: Tensor| match norm {
            Some(norm) => norm.forward_heads(&x, dim, pass),
            None => x,
        };
        [normed(&self.query_norm, q), normed(&self.key_norm, k), v]
    }

    /// What a half adds to the residual stream: scaled, and in training thinned out.
    fn added(&self, x: &Tensor, config: &ModelConfig, dropped: f64, half: &str, pass: Pass) -> Tensor {
        let x = match pass.training {
            Some(seed) if dropped > 0.0 => {
                let key = random::mix(random::mix(seed, random::name_key(half)), self.index as u64);
                shim::dropout(x, dropped, key)
            }
            _ => x.shallow_clone(),
        };
        if config.scales.residual == 1.0 { x } else { x * config.scales.residual }
    }
}

fn through(norm: &Option<Norm>, x: &Tensor, pass: Pass) -> Tensor {
    norm.as_ref().map_or_else(|| x.shallow_clone(), |norm| norm.forward(x, pass))
}

/// The parts of a packed projection `[rows, (heads + 2 kv_heads) * head_dim]`.
fn unpack(packed: &Tensor, config: &ModelConfig) -> [Tensor; 3] {
    let (heads, kv, dim) = (config.heads as i64, config.kv_heads as i64, config.head_dim as i64);
    let rows = packed.size()[0];
    match config.qkv_layout {
        QkvLayout::Blocks => {
            [(0, heads), (heads, kv), (heads + kv, kv)].map(|(from, count)| packed.narrow(1, from * dim, count * dim))
        }
        QkvLayout::Grouped => {
            let group = heads / kv;
            let grouped = packed.reshape([rows, kv, group + 2, dim]);
            [(0, group), (group, 1), (group + 1, 1)]
                .map(|(from, count)| grouped.narrow(2, from, count).reshape([rows, kv * count * dim]))
        }
    }
}
