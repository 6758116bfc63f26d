//! The decoder: one network for every family, in training and in generation.
//!
//! Family differences are values in [`ModelConfig`], never branches on a name. Training runs documents end to end in
//! one flat row of tokens, so there is no padding anywhere; generation adds a [`Cache`]. This file must not know
//! optimizers, packs or files.

use std::rc::Rc;

use pipe_files::{ModelConfig, Part};
use tch::{Device, Kind, Tensor};

use crate::attention::{self, Angles, Rotary, Span};
use crate::cache::{Blocks, Cache};
use crate::few;
use crate::layer::Layer;
use crate::linear::{Linear, Lora, Pass, Weight};
use crate::mlp::{Tally, balance_loss};
use crate::norm::Norm;
use crate::shim;
use crate::{ModelError, Result, random};

/// A model in memory.
#[derive(Debug)]
pub struct Decoder {
    pub config: ModelConfig,
    /// The arithmetic type: f32 or bf16.
    pub compute: Kind,
    /// `[vocabulary, hidden]`
    pub embedding: Weight,
    /// Learned positions, `[positions, hidden]`.
    pub positions: Option<Tensor>,
    pub layers: Vec<Layer>,
    /// The last norm.
    pub norm: Norm,
    /// `[vocabulary, hidden]`; `None` when the embedding is used.
    pub untied_head: Option<Weight>,
    /// `[vocabulary]`
    pub head_bias: Option<Tensor>,
    /// What an adapter's own embedding and head took the place of, for passes without adapters.
    pub replaced: Replaced,
    /// The model's rotary positions; layers say which of them is theirs.
    pub rotary: Vec<Rotary>,
    /// NEFTune's noise scale; 0 for none. Active in training passes only.
    pub neftune_alpha: f64,
}

/// The base's embedding and head where an adapter brings its own.
#[derive(Debug, Default)]
pub struct Replaced {
    embedding: Option<Weight>,
    head: Option<Weight>,
}

/// All that makes a tuned model of a base: one adapter's part of a decoder, to be swapped for another's.
#[derive(Debug)]
pub struct Tuning {
    loras: Vec<Option<Lora>>,
    embedding: Weight,
    untied_head: Option<Weight>,
    replaced: Replaced,
}

/// What a pass over documents gives.
#[derive(Debug)]
pub struct Hidden {
    /// After the last norm, `[tokens, hidden]` in the compute type.
    pub states: Tensor,
    /// The load-balancing loss of a mixture of experts, weighted by the model's coefficient; a scalar.
    pub balance: Option<Tensor>,
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

    fn spans(&self) -> Vec<Span> {
        self.lengths.iter().copied().map(Span::whole).collect()
    }
}

impl Decoder {
    /// Hidden states after the last norm, `[tokens, hidden]` in the compute type.
    pub fn hidden(&self, segments: &Segments, pass: Pass) -> Result<Tensor> {
        Ok(self.forward(segments, pass)?.states)
    }

    /// Passes documents through the network.
    pub fn forward(&self, segments: &Segments, pass: Pass) -> Result<Hidden> {
        self.check_ids(&segments.ids)?;
        let spans = segments.spans();
        let angles: Rc<[Angles]> = self.angles(&spans).into();
        let lengths: Rc<[i64]> = segments.lengths.as_slice().into();
        let mut x = self.embed(segments, &spans, pass)?;
        let mut tallies = Vec::new();
        for group in self.layers.chunks(pass.recompute.max(1)) {
            let (angles, lengths) = (angles.clone(), lengths.clone());
            let run = move |x: &Tensor| {
                let mut tallies = Vec::new();
                let out = group.iter().fold(x.shallow_clone(), |x, layer| {
                    let (x, tally) = self.apply(layer, &x, &angles, &lengths, pass);
                    tallies.extend(tally);
                    x
                });
                (out, tallies)
            };
            let (out, found) = match pass.recompute > 0 && pass.training.is_some() {
                true => self.recomputed(&x, group.iter().filter(|layer| layer.is_mixture()).count(), run),
                false => run(&x),
            };
            x = out;
            tallies.extend(found);
        }
        let weight = self.config.experts.as_ref().map_or(0.0, |experts| experts.balance);
        let balance = balance_loss(&tallies, segments.ids.len() as i64).map(|loss| loss * weight);
        Ok(Hidden { states: self.norm.forward(&x, pass), balance })
    }

    /// What documents are before the first layer, `[tokens, hidden]`.
    pub fn embedded(&self, segments: &Segments, pass: Pass) -> Result<Tensor> {
        self.check_ids(&segments.ids)?;
        self.embed(segments, &segments.spans(), pass)
    }

    /// Passes documents through one layer, which need not be among this decoder's own.
    pub fn through(&self, layer: &Layer, segments: &Segments, x: &Tensor, pass: Pass) -> Tensor {
        self.apply(layer, x, &self.angles(&segments.spans()), &segments.lengths, pass).0
    }

    fn apply(
        &self,
        layer: &Layer,
        x: &Tensor,
        angles: &[Angles],
        lengths: &[i64],
        pass: Pass,
    ) -> (Tensor, Option<Tally>) {
        let how = attention::of_layer(&self.config, layer.index, pass);
        layer.forward(&self.config, x, pass, |q, k, v| {
            let (q, k) = self.rotate(q, k, layer.index, angles, pass);
            attention::packed(&q, &k, v, lengths, &how, pass)
        })
    }

    /// Tokens that there are.
    pub fn vocabulary(&self) -> i64 {
        self.embedding.shape().0
    }

    /// The output head's weight, `[vocabulary, hidden]`.
    pub fn head(&self, pass: Pass) -> &Weight {
        let own = self.replaced.head.as_ref().filter(|_| pass.base_only).or(self.untied_head.as_ref());
        own.unwrap_or(&self.embedding)
    }

    /// Gives the tuned model an embedding of its own; a head that was tied to the old one keeps it.
    pub fn replace_embedding(&mut self, weight: Tensor) {
        self.untied_head.get_or_insert_with(|| self.embedding.shared());
        let old = std::mem::replace(&mut self.embedding, Weight::Dense(weight));
        self.replaced.embedding.get_or_insert(old);
    }

    /// Gives the tuned model a head of its own.
    pub fn replace_head(&mut self, weight: Tensor) {
        let old = self.head(Pass::INFERENCE).shared();
        self.replaced.head.get_or_insert(old);
        self.untied_head = Some(Weight::Dense(weight));
    }

    /// The untuned model's part, for a decoder that has no adapter; tensors are shared, not copied.
    pub fn untuned(&self) -> Tuning {
        Tuning {
            loras: self.linears().map(|_| None).collect(),
            embedding: self.embedding.shared(),
            untied_head: self.untied_head.as_ref().map(Weight::shared),
            replaced: Replaced::default(),
        }
    }

    /// Puts a tuning on and takes the one that was on off.
    pub fn swap(&mut self, tuning: &mut Tuning) {
        for (linear, lora) in self.linears_mut().zip(&mut tuning.loras) {
            std::mem::swap(&mut linear.lora, lora);
        }
        std::mem::swap(&mut self.embedding, &mut tuning.embedding);
        std::mem::swap(&mut self.untied_head, &mut tuning.untied_head);
        std::mem::swap(&mut self.replaced, &mut tuning.replaced);
    }

    /// Every weight of the base that is held as a plain tensor, by its Hugging Face name.
    pub fn weights_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let outside = self.config.tensors();
        let name = |part: Part, bias: bool| {
            let place = outside.iter().find(|place| place.part == part && place.bias == bias);
            place.map(|place| place.name.clone()).unwrap_or_default()
        };
        let mut all = Vec::new();
        all.extend(self.embedding.tensor_mut().map(|table| (name(Part::Embedding, false), table)));
        all.extend(self.positions.as_mut().map(|table| (name(Part::Positions, false), table)));
        for layer in &mut self.layers {
            all.extend(layer.weights_mut());
        }
        all.extend(self.norm.weights_mut());
        let head = self.untied_head.as_mut().and_then(Weight::tensor_mut);
        all.extend(head.map(|head| (name(Part::Head, false), head)));
        all.extend(self.head_bias.as_mut().map(|bias| (name(Part::Head, true), bias)));
        all
    }

    /// `hidden` `[rows, hidden]` to logits `[rows, vocabulary]` in f32.
    pub fn logits(&self, hidden: &Tensor, pass: Pass) -> Tensor {
        let head = self.head(pass);
        let few = few::product(head, hidden, pass);
        let logits = few.unwrap_or_else(|| head.product(hidden)).to_kind(Kind::Float);
        let scale = self.config.scales.logits;
        let logits = if scale == 1.0 { logits } else { logits * scale };
        let logits = match &self.head_bias {
            Some(bias) => logits + bias.to_kind(Kind::Float),
            None => logits,
        };
        attention::capped(&logits, self.config.final_softcap.unwrap_or(0.0))
    }

    /// A cache without rows that grows as they do, and shares nothing.
    pub fn cache(&self) -> Cache {
        Blocks::new(&self.config, self.compute, usize::MAX).cache(None)
    }

    /// Reads whole prompts into a cache without rows; logits after the last token of each, `[rows, vocabulary]` f32.
    pub fn prefill(&self, prompts: &[Vec<i64>], cache: &mut Cache, pass: Pass) -> Result<Tensor> {
        for (row, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(ModelError::input(format!("prompt {row} is empty; give it at least one token")));
            }
            self.check_ids(prompt)?;
            cache.open(prompt)?;
        }
        self.read(prompts, cache, pass)
    }

    /// Reads what a cache's rows do not hold yet of their prompts, without padding; logits after the last token of each.
    pub fn read(&self, prompts: &[Vec<i64>], cache: &mut Cache, pass: Pass) -> Result<Tensor> {
        let spans = cache.unread(prompts);
        if prompts.len() != cache.rows() || spans.iter().any(|span| span.count < 1) {
            return Err(ModelError::work(format!("{} prompts for {} rows", prompts.len(), cache.rows())));
        }
        let new = prompts.iter().zip(&spans).flat_map(|(prompt, span)| &prompt[span.first as usize..]);
        let hidden = self.through_cache(&new.copied().collect::<Vec<_>>(), &spans, cache, pass)?;
        cache.was_read(&spans);
        let mut end = -1;
        let ends: Vec<i64> = spans
            .iter()
            .map(|span| {
                end += span.count;
                end
            })
            .collect();
        tch::no_grad(|| {
            let last = hidden.index_select(0, &Tensor::from_slice(&ends));
            Ok(self.logits(&self.norm.forward(&last, pass), pass))
        })
    }

    /// Appends one token to each row of the cache; logits after it, `[rows, vocabulary]` f32.
    pub fn step(&self, tokens: &[i64], cache: &mut Cache, pass: Pass) -> Result<Tensor> {
        if tokens.len() != cache.rows() {
            return Err(ModelError::work(format!("{} tokens for {} rows", tokens.len(), cache.rows())));
        }
        self.check_ids(tokens)?;
        let spans = cache.next()?;
        let hidden = self.through_cache(tokens, &spans, cache, pass)?;
        cache.advance(tokens);
        tch::no_grad(|| Ok(self.logits(&self.norm.forward(&hidden, pass), pass)))
    }

    /// Passes new tokens of a cache's rows through the layers, `[tokens, hidden]`.
    fn through_cache(&self, tokens: &[i64], spans: &[Span], cache: &Cache, pass: Pass) -> Result<Tensor> {
        tch::no_grad(|| {
            let angles = self.angles(spans);
            let places = cache.places(spans);
            let mut x = self.placed(tokens, spans, pass)?;
            for layer in &self.layers {
                let how = attention::of_layer(&self.config, layer.index, pass);
                (x, _) = layer.forward(&self.config, &x, pass, |q, k, v| {
                    let (q, k) = self.rotate(q, k, layer.index, &angles, pass);
                    cache.attend(layer.index, [&q, &k, v], &places, &how, pass)
                });
            }
            Ok(x)
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

    /// Names of the modules that choose experts.
    pub fn routers(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().filter_map(|layer| match &layer.mlp {
            crate::mlp::Mlp::Mixture(mixture) => Some(mixture.router.name.as_str()),
            _ => None,
        })
    }

    /// One set of angles for each of the model's ropes.
    fn angles(&self, spans: &[Span]) -> Vec<Angles> {
        self.rotary.iter().map(|rotary| rotary.at(spans)).collect()
    }

    fn rotate(&self, q: &Tensor, k: &Tensor, layer: usize, angles: &[Angles], pass: Pass) -> (Tensor, Tensor) {
        let Some(angles) = angles.get(self.config.layer_kinds[layer].rope) else {
            return (q.shallow_clone(), k.shallow_clone());
        };
        let turn = |x: &Tensor| attention::rotate(x, angles, self.config.head_dim, pass);
        (turn(q), turn(k))
    }

    /// Embeddings of a pass, with the noise and the dropped elements of training.
    fn embed(&self, segments: &Segments, spans: &[Span], pass: Pass) -> Result<Tensor> {
        let x = self.placed(&segments.ids, spans, pass)?;
        let Some(seed) = pass.training else { return Ok(x) };
        let x = if self.neftune_alpha > 0.0 { x + self.noise(segments, seed) } else { x };
        let share = self.config.dropout.embedding;
        let key = random::mix(seed, random::name_key("embedding"));
        Ok(if share > 0.0 { shim::dropout(&x, share, key) } else { x })
    }

    /// Embeddings of tokens, scaled, with learned positions added.
    fn placed(&self, ids: &[i64], spans: &[Span], pass: Pass) -> Result<Tensor> {
        let x = self.rows_of(ids, pass);
        let scales = &self.config.scales;
        let x = match scales.embedding_rounded {
            _ if scales.embedding == 1.0 => x,
            true => &x * Tensor::from(scales.embedding).to_kind(x.kind()),
            false => x * scales.embedding,
        };
        let Some(table) = &self.positions else { return Ok(x) };
        let most = table.size()[0];
        if let Some(span) = spans.iter().find(|span| span.first + span.count > most) {
            return Err(ModelError::input(format!(
                "a document of {} tokens is longer than the {most} positions this model has learned; lower sequence_len \
                 (or max_new_tokens)",
                span.first + span.count
            )));
        }
        let positions: Vec<i64> = spans.iter().flat_map(|span| span.first..span.first + span.count).collect();
        Ok(x + table.index_select(0, &Tensor::from_slice(&positions)).to_kind(self.compute))
    }

    /// The embedding's rows for some tokens.
    fn rows_of(&self, ids: &[i64], pass: Pass) -> Tensor {
        let own = self.replaced.embedding.as_ref().filter(|_| pass.base_only).unwrap_or(&self.embedding);
        let pad = self.config.pad.filter(|_| self.config.family.pads).map_or(-1, i64::from);
        let look_up = |table: &Tensor| Tensor::embedding(table, &Tensor::from_slice(ids), pad, false, false);
        match own {
            Weight::Blocks(blocks) => blocks.select(ids, self.compute),
            Weight::Dense(table) => look_up(table).to_kind(self.compute),
            own => look_up(&own.dense(self.compute)),
        }
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

    /// Runs layers without keeping their activations. The tallies of their `mixtures` ride along in rows behind the tokens',
    /// because what is recomputed gives one tensor.
    #[allow(unsafe_code)]
    fn recomputed<'a>(
        &'a self,
        x: &Tensor,
        mixtures: usize,
        part: impl Fn(&Tensor) -> (Tensor, Vec<Tally>) + 'a,
    ) -> (Tensor, Vec<Tally>) {
        let (rows, hidden) = (x.size()[0], x.size()[1]);
        let one = move |x: &Tensor| {
            let (out, tallies) = part(x);
            if tallies.is_empty() {
                return out;
            }
            let flat = Tensor::stack(&tallies, 0).reshape([-1]);
            let gap = (hidden - flat.size()[0] % hidden) % hidden;
            let padded = flat.constant_pad_nd([0, gap]).reshape([-1, hidden]).to_kind(out.kind());
            Tensor::cat(&[out, padded], 0)
        };
        // SAFETY: `one` borrows this decoder alone. The loop that owns the decoder runs backward on the loss, or drops
        // it, before it touches the decoder again.
        let out = unsafe { shim::checkpoint(x, one) };
        if mixtures == 0 || out.size()[0] == rows {
            return (out, Vec::new());
        }
        let experts = self.config.experts.as_ref().map_or(0, |experts| experts.count as i64);
        let behind = out.narrow(0, rows, out.size()[0] - rows).reshape([-1]);
        let tallies = behind.narrow(0, 0, 2 * experts * mixtures as i64).to_kind(Kind::Float);
        (out.narrow(0, 0, rows), tallies.reshape([mixtures as i64, 2, experts]).unbind(0))
    }

    fn check_ids(&self, ids: &[i64]) -> Result<()> {
        match ids.iter().find(|&&id| id < 0 || id >= self.vocabulary()) {
            Some(id) => Err(ModelError::input(format!(
                "token id {id} lies outside the model's vocabulary of {}; the rows were tokenised for another model",
                self.vocabulary()
            ))),
            None => Ok(()),
        }
    }
}

/// Where tensors live. CPU in this version; one place to change.
pub const DEVICE: Device = Device::Cpu;
