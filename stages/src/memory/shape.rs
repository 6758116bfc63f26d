//! The sizes of a network that memory and counts depend on: its linear modules and its tables.

use std::path::Path;

use pipe_files::{Activation, ModelConfig};

/// A linear module: its name without `.weight`, and its sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub name: String,
    pub outputs: u64,
    pub inputs: u64,
}

/// A network's sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub hidden: u64,
    pub layers: u64,
    pub heads: u64,
    pub vocab: u64,
    pub tied: bool,
    /// Every linear module except the output head.
    pub modules: Vec<Module>,
    pub parameters: u64,
    /// Of a mixture: experts in a layer, and those that a token visits.
    pub experts: Option<(u64, u64)>,
    pub again: Again,
}

/// What the kernels make again for an adapter's gradient instead of keeping it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Again {
    /// What comes out of norms: those without a mean.
    pub norms: bool,
    /// What goes from gate and up into down: where the gate is a SiLU.
    pub gates: bool,
}

/// Last parts of names of modules that write to the residual stream: their inputs are kept, not their outputs.
const WRITERS: &[&str] =
    &["o_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj", "fc2", "wo", "w2", "out_proj", "attn_out", "ff_out"];

impl Module {
    pub fn size(&self) -> u64 {
        self.outputs * self.inputs
    }

    /// Which layer the name says.
    pub fn layer(&self) -> Option<u64> {
        self.name.split('.').find_map(|part| part.parse().ok())
    }

    /// Numbers that a token keeps because of this module, besides the norms.
    pub(super) fn kept(&self, again: Again) -> u64 {
        let last = self.name.rsplit('.').next().unwrap_or(&self.name);
        match last {
            "down_proj" | "w2" if again.gates => 0,
            last if WRITERS.contains(&last) => self.inputs,
            _ => self.outputs,
        }
    }
}

impl Shape {
    /// The shape of the model at `path`; `None` where there is no configuration that can be read.
    pub fn read(path: &Path) -> Option<Shape> {
        ModelConfig::read(path).ok().map(|config| Shape::of(&config))
    }

    pub fn of(config: &ModelConfig) -> Shape {
        let modules = config.modules().into_iter().map(|module| Module {
            name: module.name,
            outputs: module.outputs as u64,
            inputs: module.inputs as u64,
        });
        Shape {
            hidden: config.hidden as u64,
            layers: config.layers as u64,
            heads: config.heads as u64,
            vocab: config.vocab as u64,
            tied: config.tied_embeddings,
            modules: modules.collect(),
            parameters: config.parameters(),
            experts: config.experts.as_ref().map(|experts| (experts.count as u64, experts.per_token as u64)),
            again: Again {
                norms: config.norm.weight && !config.norm.centred,
                gates: config.activation == Activation::Silu,
            },
        }
    }

    pub(super) fn largest_module(&self) -> u64 {
        self.modules.iter().map(Module::size).max().unwrap_or(0)
    }

    /// How much of a module a token meets: an expert is visited by few.
    pub(super) fn share(&self, name: &str) -> f64 {
        match self.experts {
            Some((count, per_token)) if name.contains(".experts.") => per_token as f64 / count.max(1) as f64,
            _ => 1.0,
        }
    }
}
