//! A model as it is used after training: base weights with a PEFT adapter on top.

use std::path::Path;

use pipe_files::{PeftAdapter, PeftModule};
use pipe_job::ModelSource;
use tch::Tensor;

use crate::decoder::Decoder;
use crate::events::Events;
use crate::linear::{Linear, Lora, Weight};
use crate::{ModelError, Result, load};

/// Dense weights are kept for decoding up to this many bytes; a larger model stays quantised.
const DENSE_BYTES: u64 = 6 << 30;

/// Loads a model for inference, adapter included.
pub fn load_tuned(source: &ModelSource, events: &Events) -> Result<Decoder> {
    let mut decoder = load::load(&source.path, source.base, source.compute, events)?;
    if let Some(path) = &source.adapter {
        attach(&mut decoder, path)?;
    }
    Ok(decoder)
}

/// Turns quantised weights into the dense weights they stand for, once: decoding reads every weight for every token, and
/// the products are the same numbers.
pub fn densify(decoder: &mut Decoder) {
    let kind = decoder.compute;
    if decoder.config.parameters() * kind.elt_size_in_bytes() as u64 > DENSE_BYTES {
        return;
    }
    for linear in decoder.linears_mut() {
        if matches!(linear.weight, Weight::Nf4(_)) {
            linear.weight = Weight::Dense(linear.dense(kind));
        }
    }
}

/// Reads an adapter folder that fits `decoder`'s modules.
pub fn read_adapter(path: &Path) -> Result<PeftAdapter> {
    let adapter = PeftAdapter::open(path)?;
    if adapter.dora {
        return Err(ModelError::input(format!(
            "{} is a DoRA adapter, which this version cannot apply; merge it with PEFT and use the merged model",
            path.display()
        )));
    }
    Ok(adapter)
}

fn attach(decoder: &mut Decoder, path: &Path) -> Result<()> {
    let mut adapter = read_adapter(path)?;
    let scale = adapter.scale();
    for linear in decoder.linears_mut() {
        if let Some(module) = adapter.modules.remove(&linear.name) {
            linear.lora = Some(lora(path, linear, &module, scale)?);
        }
    }
    match adapter.modules.keys().next() {
        None => Ok(()),
        Some(name) => Err(stranger(path, name)),
    }
}

/// The error for an adapter module that the model has no place for.
pub fn stranger(path: &Path, name: &str) -> ModelError {
    ModelError::input(format!(
        "{} adapts {name}, which this model does not have; the adapter was trained on another base model",
        path.display()
    ))
}

fn lora(path: &Path, linear: &Linear, module: &PeftModule, scale: f64) -> Result<Lora> {
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
    Ok(Lora { a, b, scale, dropout: 0.0 })
}
