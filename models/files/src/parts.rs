//! The places of a network: every weight by its role, with its name and shape in a Hugging Face folder.
//!
//! Names and presence come from the family's table and the configuration; nothing here branches on a family.

use crate::ModelConfig;

/// The role of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `[vocabulary, hidden]`
    Embedding,
    /// Learned positions, `[positions, hidden]`.
    Positions,
    FinalNorm,
    /// The output head, absent where it is the embedding.
    Head,
    AttentionNorm,
    Query,
    Key,
    Value,
    /// Queries, keys and values in one matrix.
    QueryKeyValue,
    /// The attention's output projection.
    Output,
    QueryNorm,
    KeyNorm,
    /// The norm of the attention's output.
    AttentionPostNorm,
    MlpNorm,
    Gate,
    Up,
    /// Gate and up in one matrix, gate first.
    GateUp,
    Down,
    /// The norm of the feed-forward part's output.
    MlpPostNorm,
    /// Scores of the experts, `[experts, hidden]`.
    Router,
    ExpertGate,
    ExpertUp,
    ExpertDown,
}

/// What the norm of queries and keys covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head alone, all with one weight.
    Head,
    /// All heads together, before they are split.
    Whole,
    /// Each head alone, each with its own weight.
    PerHead,
}

/// How queries, keys and values lie in one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// All queries, then all keys, then all values.
    Blocks,
    /// For each key-value head its queries, its key, its value.
    Grouped,
}

/// One linear module: its name without `.weight`, and its weight's shape `[outputs, inputs]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub name: String,
    pub outputs: usize,
    pub inputs: usize,
    pub part: Part,
}

/// One tensor of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As a Hugging Face folder spells it, `.weight` or `.bias` included.
    pub name: String,
    /// In the network's orientation: `[outputs, inputs]`.
    pub shape: Vec<usize>,
    pub part: Part,
    pub layer: usize,
    /// Which of the copies in the layer: the expert, or the head.
    pub copy: usize,
    pub bias: bool,
    /// Whether the folder stores the transpose (GPT-2's Conv1D).
    pub transposed: bool,
}

impl Place {
    /// The shape as the folder stores it.
    pub fn stored_shape(&self) -> Vec<usize> {
        if self.transposed { self.shape.iter().rev().copied().collect() } else { self.shape.clone() }
    }

    /// The module's name: without `.weight` or `.bias`.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name.as_str(), |(module, _)| module)
    }

    /// Whether this is the weight of a matrix inside the blocks: what may be adapted.
    pub fn is_linear_weight(&self) -> bool {
        self.part.is_linear() && !self.bias
    }

    /// Whether the tensor is held quantised in a quantised model. A router decides where tokens go and stays exact.
    pub fn is_quantised(&self) -> bool {
        self.is_linear_weight() && self.part != Part::Router
    }
}

impl Part {
    /// A matrix inside the blocks.
    pub fn is_linear(self) -> bool {
        use Part::{
            Down, ExpertDown, ExpertGate, ExpertUp, Gate, GateUp, Key, Output, Query, QueryKeyValue, Router, Up, Value,
        };
        matches!(
            self,
            Query
                | Key
                | Value
                | QueryKeyValue
                | Output
                | Gate
                | Up
                | GateUp
                | Down
                | Router
                | ExpertGate
                | ExpertUp
                | ExpertDown
        )
    }

    /// A matrix outside the blocks.
    pub fn is_table(self) -> bool {
        matches!(self, Self::Embedding | Self::Positions | Self::Head)
    }

    /// A matrix that exists once per expert.
    pub fn is_expert(self) -> bool {
        matches!(self, Self::ExpertGate | Self::ExpertUp | Self::ExpertDown)
    }

    fn is_mixture(self) -> bool {
        self == Self::Router || self.is_expert()
    }

    fn is_dense_mlp(self) -> bool {
        matches!(self, Self::Gate | Self::Up | Self::GateUp | Self::Down)
    }
}

impl ModelConfig {
    /// The parts of one layer with their names inside it, in a folder's usual order.
    pub fn layer_parts(&self, layer: usize) -> impl Iterator<Item = (Part, &'static str)> + '_ {
        let mixture = self.experts.as_ref().is_some_and(|experts| !experts.dense_layers.contains(&layer));
        self.parts
            .iter()
            .copied()
            .filter(move |(part, _)| if mixture { !part.is_dense_mlp() } else { !part.is_mixture() })
    }

    /// Whether every layer, or this one, has the part.
    pub fn has(&self, layer: usize, part: Part) -> bool {
        self.layer_parts(layer).any(|(own, _)| own == part)
    }

    /// Every linear module except the output head, in layer order, named as PEFT names them.
    pub fn modules(&self) -> Vec<Module> {
        let weights = self.tensors().into_iter().filter(Place::is_linear_weight);
        let module = |place: Place| Module {
            name: place.module().to_owned(),
            outputs: place.shape[0],
            inputs: place.shape[1],
            part: place.part,
        };
        weights.map(module).collect()
    }

    /// Every tensor the network needs, in a folder's usual order.
    pub fn tensors(&self) -> Vec<Place> {
        let mut all = Vec::new();
        let (before, after): (Vec<_>, Vec<_>) =
            self.family.outer.iter().copied().partition(|(part, _)| matches!(part, Part::Embedding | Part::Positions));
        for (part, name) in before {
            self.push(&mut all, part, name.to_owned(), 0, 0);
        }
        all.extend((0..self.layers).flat_map(|layer| self.layer_tensors(layer)));
        for (part, name) in after {
            if !(self.tied_embeddings && part == Part::Head) {
                self.push(&mut all, part, name.to_owned(), 0, 0);
            }
        }
        all
    }

    /// The tensors of one layer.
    pub fn layer_tensors(&self, layer: usize) -> Vec<Place> {
        let mut all = Vec::new();
        for (part, name) in self.layer_parts(layer) {
            for copy in 0..self.copies(part) {
                let name = name.replace("{}", &copy.to_string());
                self.push(&mut all, part, format!("{}.{layer}.{name}", self.family.layers), layer, copy);
            }
        }
        all
    }

    /// Number of parameters; tied embeddings count once.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|place| place.shape.iter().map(|d| *d as u64).product::<u64>()).sum()
    }

    fn push(&self, all: &mut Vec<Place>, part: Part, name: String, layer: usize, copy: usize) {
        let (weight, bias) = self.shapes(part);
        let transposed = self.family.conv1d && part.is_linear();
        let place = |suffix: &str, shape: Vec<usize>| Place {
            name: format!("{name}.{suffix}"),
            part,
            layer,
            copy,
            bias: suffix == "bias",
            transposed: transposed && shape.len() == 2,
            shape,
        };
        all.extend(weight.map(|shape| place("weight", shape)));
        all.extend(bias.map(|shape| place("bias", shape)));
    }

    /// Shapes of a part's weight and bias, as far as it has them.
    fn shapes(&self, part: Part) -> (Option<Vec<usize>>, Option<Vec<usize>>) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (h, i) = (self.hidden, self.intermediate);
        let (count, wide) = self.experts.as_ref().map_or((0, 0), |e| (e.count, e.intermediate));
        let (outputs, inputs, bias) = match part {
            Part::Embedding => return (Some(vec![self.vocab, h]), None),
            Part::Positions => return (Some(vec![self.max_positions, h]), None),
            Part::Head => (self.vocab, h, self.head_bias),
            Part::Query => (q, h, self.qkv_bias),
            Part::Key | Part::Value => (kv, h, self.qkv_bias),
            Part::QueryKeyValue => (q + 2 * kv, h, self.qkv_bias),
            Part::Output => (h, q, self.output_bias),
            Part::Gate | Part::Up => (i, h, self.mlp_bias),
            Part::GateUp => (2 * i, h, self.mlp_bias),
            Part::Down => (h, i, self.mlp_bias),
            Part::Router => (count, h, false),
            Part::ExpertGate | Part::ExpertUp => (wide, h, false),
            Part::ExpertDown => (h, wide, false),
            Part::QueryNorm | Part::KeyNorm => {
                let size = match (self.qk_norm, part) {
                    (QkNorm::Whole, Part::QueryNorm) => q,
                    (QkNorm::Whole, _) => kv,
                    _ => self.head_dim,
                };
                return (Some(vec![size]), self.qk_norm_bias.then(|| vec![size]));
            }
            Part::AttentionNorm | Part::AttentionPostNorm | Part::MlpNorm | Part::MlpPostNorm | Part::FinalNorm => {
                return (self.norm.weight.then(|| vec![h]), self.norm.bias.then(|| vec![h]));
            }
        };
        (Some(vec![outputs, inputs]), bias.then(|| vec![outputs]))
    }

    /// How often a part exists in a layer: once per expert, or once per head.
    fn copies(&self, part: Part) -> usize {
        match (part, self.qk_norm) {
            (Part::QueryNorm, QkNorm::PerHead) => self.heads,
            (Part::KeyNorm, QkNorm::PerHead) => self.kv_heads,
            _ if part.is_expert() => self.experts.as_ref().map_or(0, |experts| experts.count),
            _ => 1,
        }
    }
}
