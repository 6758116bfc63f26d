//! A model as it is used after training: base weights with a PEFT adapter on top.

use std::path::Path;

use pipe_files::{Part, PeftAdapter, PeftConfig, PeftModule};
use pipe_job::ModelSource;
use tch::{Kind, Tensor};

use crate::decoder::Decoder;
use crate::events::Events;
use crate::linear::{Dora, Linear, Lora, Weight};
use crate::{ModelError, Result, load};

/// Dense weights are kept for decoding up to this many bytes; a larger model stays quantised.
const DENSE_BYTES: u64 = 6 << 30;

/// What an adapter is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To be trained on: its tensors are f32 leaves.
    Training,
    Inference,
}

/// Loads a model for inference, adapter included.
pub fn load_tuned(source: &ModelSource, events: &Events) -> Result<Decoder> {
    let mut decoder = load::load(&source.path, source.base, source.compute, events)?;
    if let Some(path) = &source.adapter {
        attach(&mut decoder, path, Use::Inference)?;
    }
    Ok(decoder)
}

/// Holds what quantised weights of a small model stand for, where its training is in f32: the same numbers, unpacked once.
/// The plan's estimate knows of it.
pub fn densify_for_training(decoder: &mut Decoder) {
    if decoder.compute == Kind::Float && decoder.config.parameters() * 4 <= pipe_job::UNPACKED_TRAINING_BYTES {
        densify(decoder);
    }
}

/// Turns quantised weights into the dense weights they stand for, once: decoding reads every weight for every token, and
/// the products are the same numbers.
pub fn densify(decoder: &mut Decoder) {
    let kind = decoder.compute;
    if decoder.config.parameters() * kind.elt_size_in_bytes() as u64 > DENSE_BYTES {
        return;
    }
    for linear in decoder.linears_mut() {
        if !matches!(linear.weight, Weight::Dense(_)) {
            linear.weight = Weight::Dense(linear.dense(kind));
        }
    }
}

/// Puts the PEFT adapter in `path` on the model; its own configuration, which is returned, decides ranks and scales.
pub fn attach(decoder: &mut Decoder, path: &Path, purpose: Use) -> Result<PeftConfig> {
    let mut adapter = PeftAdapter::open(path, &decoder.config)?;
    for linear in decoder.linears_mut() {
        put_on(linear, &mut adapter, purpose)?;
    }
    if let Some(name) = adapter.modules.keys().next() {
        return Err(stranger(path, name));
    }
    put_tables(decoder, &mut adapter, purpose)?;
    Ok(adapter.config)
}

/// Moves the adapter's part for this layer onto it, where there is one.
pub fn put_on(linear: &mut Linear, adapter: &mut PeftAdapter, purpose: Use) -> Result<()> {
    let Some(module) = adapter.modules.remove(&linear.name) else { return Ok(()) };
    let leaf = |x: Tensor| x.set_requires_grad(purpose == Use::Training);
    let [a, b] = matrices(&adapter.path, linear, &module)?.map(leaf);
    let mut lora = Lora { a, b, scale: module.scale, dropout: adapter.config.dropout, dora: None, start: None };
    if let Some(magnitude) = &module.magnitude {
        let lengths = (purpose == Use::Inference).then(|| linear.lengths(&lora));
        lora.dora = Some(Dora { magnitude: leaf(Tensor::from_slice(magnitude)), lengths });
    }
    linear.lora = Some(lora);
    Ok(())
}

/// Moves the adapter's own embedding and head into the model.
pub fn put_tables(decoder: &mut Decoder, adapter: &mut PeftAdapter, purpose: Use) -> Result<()> {
    for (name, weight) in std::mem::take(&mut adapter.saved) {
        let shape: Vec<i64> = weight.shape.iter().map(|&size| size as i64).collect();
        let (vocabulary, hidden) = decoder.embedding.shape();
        if shape != [vocabulary, hidden] {
            return Err(stranger(&adapter.path, &name));
        }
        let kind = if purpose == Use::Training { Kind::Float } else { decoder.compute };
        let tensor = Tensor::from_slice(&weight.values).reshape(shape).to_kind(kind);
        let tensor = tensor.set_requires_grad(purpose == Use::Training);
        match name.strip_suffix(".weight").and_then(|module| decoder.config.family.table(module)) {
            Some(Part::Embedding) => decoder.replace_embedding(tensor),
            Some(Part::Head) => decoder.replace_head(tensor),
            _ => return Err(stranger(&adapter.path, &name)),
        }
    }
    Ok(())
}

/// The error for an adapter module that the model has no place for.
pub fn stranger(path: &Path, name: &str) -> ModelError {
    ModelError::input(format!(
        "{} adapts {name}, which this model does not have; the adapter was trained on another base model",
        path.display()
    ))
}

/// `A` and `B` of a layer.
fn matrices(path: &Path, linear: &Linear, module: &PeftModule) -> Result<[Tensor; 2]> {
    if linear.shape() != (module.outputs as i64, module.inputs as i64) {
        return Err(ModelError::input(format!(
            "{} adapts {} as a {} x {} matrix, but the model's is {} x {}; the adapter was trained on another base model",
            path.display(),
            linear.name,
            module.outputs,
            module.inputs,
            linear.shape().0,
            linear.shape().1
        )));
    }
    let a = Tensor::from_slice(&module.a).reshape([module.r as i64, module.inputs as i64]);
    let b = Tensor::from_slice(&module.b).reshape([module.outputs as i64, module.r as i64]);
    Ok([a, b])
}
