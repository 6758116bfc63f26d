//! The decoder: one network for every llama-like family, in training and in generation.
//!
//! Family differences are values in [`ModelConfig`], never branches on a name. Training runs documents end to end in
//! one flat row of tokens, so there is no padding anywhere; generation adds a [`Cache`]. This file must not know
//! optimizers, packs or files.

use std::rc::Rc;

use pipe_files::ModelConfig;
use tch::{Device, Kind, Tensor};

use crate::attention::{self, Cache, Rotary};
use crate::linear::{Linear, Pass};
use crate::shim;
use crate::{ModelError, Result, random};

/// A model in memory.
#[derive(Debug)]
pub struct Decoder {
    pub config: ModelConfig,
    /// The arithmetic type: f32 or bf16.
    pub compute: Kind,
    /// `[vocabulary, hidden]`
    pub embedding: Tensor,
    pub layers: Vec<Layer>,
    /// The last norm's weight, `[hidden]`.
    pub norm: Tensor,
    /// `[vocabulary, hidden]`; `None` when the embedding is used.
    pub untied_head: Option<Tensor>,
    /// What an adapter's own embedding and head took the place of, for passes without adapters.
    pub replaced: Replaced,
    pub rotary: Rotary,
    /// NEFTune's noise scale; 0 for none. Active in training passes only.
    pub neftune_alpha: f64,
}

/// The base's embedding and head where an adapter brings its own.
#[derive(Debug, Default)]
pub struct Replaced {
    embedding: Option<Tensor>,
    head: Option<Tensor>,
}

/// One decoder block.
#[derive(Debug)]
pub struct Layer {
    /// `input_layernorm`, `[hidden]`.
    pub attention_norm: Tensor,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// `post_attention_layernorm`, `[hidden]`.
    pub mlp_norm: Tensor,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// Documents laid end to end. Each attends to itself only, and positions start at 0 in each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// Token ids of all documents.
    pub ids: Vec<i64>,
    /// Tokens in each document; their sum is `ids.len()`.
    pub lengths: Vec<i64>,
}

impl Segments {
    /// Adds a document. Empty ones are left out.
    pub fn push(&mut self, ids: &[i64]) {
        if !ids.is_empty() {
            self.ids.extend_from_slice(ids);
            self.lengths.push(ids.len() as i64);
        }
    }

    /// `[tokens]`: 0, 1, 2... in each document.
    fn positions(&self) -> Tensor {
        let positions: Vec<i64> = self.lengths.iter().flat_map(|&length| 0..length).collect();
        Tensor::from_slice(&positions)
    }
}

impl Decoder {
    /// Hidden states after the last norm, `[tokens, hidden]` in the compute type.
    pub fn hidden(&self, segments: &Segments, pass: Pass) -> Result<Tensor> {
        self.check_ids(&segments.ids)?;
        let angles = Rc::new(self.rotary.at(&segments.positions()));
        let lengths: Rc<[i64]> = segments.lengths.as_slice().into();
        let mut x = self.embed(segments, pass);
        for group in self.layers.chunks(pass.recompute.max(1)) {
            let (angles, lengths) = (angles.clone(), lengths.clone());
            let run = move |x: &Tensor| {
                group.iter().fold(x.shallow_clone(), |x, layer| {
                    layer.forward(&self.config, &x, pass, |q, k, v| {
                        let (q, k) = (attention::rotate(q, &angles, pass), attention::rotate(k, &angles, pass));
                        attention::packed(&q, &k, v, &self.config, &lengths, pass)
                    })
                })
            };
            x = if pass.recompute > 0 && pass.training.is_some() { self.recomputed(&x, run) } else { run(&x) };
        }
        Ok(self.rms_norm(&x, &self.norm, pass))
    }

    /// The output head's weight, `[vocabulary, hidden]`.
    pub fn head(&self, pass: Pass) -> &Tensor {
        let own = self.replaced.head.as_ref().filter(|_| pass.base_only).or(self.untied_head.as_ref());
        own.unwrap_or(&self.embedding)
    }

    /// Gives the tuned model an embedding of its own; a head that was tied to the old one keeps it.
    pub fn replace_embedding(&mut self, weight: Tensor) {
        self.untied_head.get_or_insert_with(|| self.embedding.shallow_clone());
        let old = std::mem::replace(&mut self.embedding, weight);
        self.replaced.embedding.get_or_insert(old);
    }

    /// Gives the tuned model a head of its own.
    pub fn replace_head(&mut self, weight: Tensor) {
        let old = self.head(Pass::INFERENCE).shallow_clone();
        self.replaced.head.get_or_insert(old);
        self.untied_head = Some(weight);
    }

    /// Every weight of the base that is held as a plain tensor, by its Hugging Face name.
    pub fn weights_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), &mut self.embedding)];
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let name = |part: &str| format!("model.layers.{index}.{part}.weight");
            all.push((name("input_layernorm"), &mut layer.attention_norm));
            all.push((name("post_attention_layernorm"), &mut layer.mlp_norm));
            let linears = [
                &mut layer.q,
                &mut layer.k,
                &mut layer.v,
                &mut layer.o,
                &mut layer.gate,
                &mut layer.up,
                &mut layer.down,
            ];
            all.extend(linears.into_iter().flat_map(Linear::weights_mut));
        }
        all.push(("model.norm.weight".to_owned(), &mut self.norm));
        all.extend(self.untied_head.as_mut().map(|head| ("lm_head.weight".to_owned(), head)));
        all
    }

    /// `hidden` `[rows, hidden]` to logits `[rows, vocabulary]` in f32.
    pub fn logits(&self, hidden: &Tensor, pass: Pass) -> Tensor {
        hidden.matmul(&self.head(pass).to_kind(hidden.kind()).tr()).to_kind(Kind::Float)
    }

    /// An empty cache for generation over as many rows as there are prompts.
    pub fn cache(&self) -> Cache {
        Cache::new(self.layers.len())
    }

    /// Reads whole prompts into an empty cache, without padding; logits after the last token of each, `[rows, vocabulary]` f32.
    pub fn prefill(&self, prompts: &[Vec<i64>], cache: &mut Cache, pass: Pass) -> Result<Tensor> {
        let mut segments = Segments::default();
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(ModelError::input(format!("prompt {row} is empty; give it at least one token")));
            }
            segments.push(prompt);
        }
        self.check_ids(&segments.ids)?;
        tch::no_grad(|| {
            let angles = self.rotary.at(&segments.positions());
            let mut x = self.embed(&segments, pass);
            cache.start(&segments.lengths);
            for (index, layer) in self.layers.iter().enumerate() {
                x = layer.forward(&self.config, &x, pass, |q, k, v| {
                    let (q, k) = (attention::rotate(q, &angles, pass), attention::rotate(k, &angles, pass));
                    cache.fill(index, &k, v, &self.config);
                    attention::packed(&q, &k, v, &self.config, &segments.lengths, pass)
                });
            }
            let ends: Vec<i64> = segments
                .lengths
                .iter()
                .scan(0, |end, n| {
                    *end += n;
                    Some(*end - 1)
                })
                .collect();
            let last = x.index_select(0, &Tensor::from_slice(&ends));
            Ok(self.logits(&self.rms_norm(&last, &self.norm, pass), pass))
        })
    }

    /// Appends one token to each row of the cache; logits after it, `[rows, vocabulary]` f32.
    pub fn step(&self, tokens: &[i64], cache: &mut Cache, pass: Pass) -> Result<Tensor> {
        self.check_ids(tokens)?;
        if tokens.len() != cache.lengths.len() {
            return Err(ModelError::work(format!("{} tokens for {} rows", tokens.len(), cache.lengths.len())));
        }
        tch::no_grad(|| {
            let angles = self.rotary.at(&Tensor::from_slice(&cache.lengths));
            let mut x = self.rows_of(tokens, pass);
            cache.grow(&self.config);
            for (index, layer) in self.layers.iter().enumerate() {
                x = layer.forward(&self.config, &x, pass, |q, k, v| {
                    let (q, k) = (attention::rotate(q, &angles, pass), attention::rotate(k, &angles, pass));
                    cache.append_and_attend(index, &q, &k, v, &self.config)
                });
            }
            cache.advance();
            Ok(self.logits(&self.rms_norm(&x, &self.norm, pass), pass))
        })
    }

    /// Every linear layer of the blocks, in order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(Layer::linears)
    }

    /// Every linear layer of the blocks, in order.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layers.iter_mut().flat_map(Layer::linears_mut)
    }

    fn embed(&self, segments: &Segments, pass: Pass) -> Tensor {
        let x = self.rows_of(&segments.ids, pass);
        match pass.training {
            Some(seed) if self.neftune_alpha > 0.0 => x + self.noise(segments, seed),
            _ => x,
        }
    }

    /// The embedding's rows for some tokens.
    fn rows_of(&self, ids: &[i64], pass: Pass) -> Tensor {
        let own = self.replaced.embedding.as_ref().filter(|_| pass.base_only).unwrap_or(&self.embedding);
        own.index_select(0, &Tensor::from_slice(ids)).to_kind(self.compute)
    }

    /// NEFTune (arXiv 2310.05914): uniform noise of size `alpha / sqrt(document tokens * hidden)`.
    fn noise(&self, segments: &Segments, seed: u64) -> Tensor {
        let key = random::mix(seed, random::name_key("neftune"));
        let hidden = self.config.hidden as i64;
        let draws: Vec<f32> =
            (0..segments.ids.len() as u64 * hidden as u64).map(|i| (random::unit(key, i) * 2.0 - 1.0) as f32).collect();
        let sizes: Vec<f32> = segments
            .lengths
            .iter()
            .flat_map(|&n| std::iter::repeat_n((self.neftune_alpha / ((n * hidden) as f64).sqrt()) as f32, n as usize))
            .collect();
        let noise = Tensor::from_slice(&draws).reshape([-1, hidden]) * Tensor::from_slice(&sizes).unsqueeze(1);
        noise.to_kind(self.compute)
    }

    #[allow(unsafe_code)]
    fn recomputed<'a>(&'a self, x: &Tensor, part: impl Fn(&Tensor) -> Tensor + 'a) -> Tensor {
        // SAFETY: `part` borrows this decoder alone. The loop that owns the decoder runs backward on the loss, or drops
        // it, before it touches the decoder again.
        unsafe { shim::checkpoint(x, part) }
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, pass: Pass) -> Tensor {
        rms_norm(x, weight, self.config.rms_eps, pass)
    }

    fn check_ids(&self, ids: &[i64]) -> Result<()> {
        match ids.iter().find(|&&id| id < 0 || id >= self.embedding.size()[0]) {
            Some(id) => Err(ModelError::input(format!(
                "token id {id} lies outside the model's vocabulary of {}; the rows were tokenised for another model",
                self.embedding.size()[0]
            ))),
            None => Ok(()),
        }
    }
}

impl Layer {
    /// The block's linear layers, in the order of the computation.
    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// The block's linear layers, in the order of the computation.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }

    /// `x` is `[rows, hidden]`; `attend` mixes queries, keys and values of all rows into `[rows, heads * head_dim]`.
    fn forward(
        &self,
        config: &ModelConfig,
        x: &Tensor,
        pass: Pass,
        mut attend: impl FnMut(&Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> Tensor {
        let eps = config.rms_eps;
        let normed = rms_norm(x, &self.attention_norm, eps, pass);
        let (q, k, v) = (self.q.forward(&normed, pass), self.k.forward(&normed, pass), self.v.forward(&normed, pass));
        let x = x + self.o.forward(&attend(&q, &k, &v), pass);
        let normed = rms_norm(&x, &self.mlp_norm, eps, pass);
        let product = swiglu(&self.gate.forward(&normed, pass), &self.up.forward(&normed, pass), pass);
        x + self.down.forward(&product, pass)
    }
}

/// `x / rms(x) * weight` over the last dimension, in f32 inside (Zhang and Sennrich, arXiv 1910.07467).
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, pass: Pass) -> Tensor {
    if pass.fused && !weight.requires_grad() {
        return shim::rms_norm(x, weight, eps);
    }
    let wide = x.to_kind(Kind::Float);
    let scale = (wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + eps).rsqrt();
    (wide * scale).to_kind(x.kind()) * weight.to_kind(x.kind())
}

/// `silu(gate) * up` (Shazeer, arXiv 2002.05202).
fn swiglu(gate: &Tensor, up: &Tensor, pass: Pass) -> Tensor {
    match pass.fused {
        true => shim::swiglu(gate, up),
        false => gate.silu() * up,
    }
}

/// Where tensors live. CPU in this version; one place to change.
pub const DEVICE: Device = Device::Cpu;
