//! Training the base's own weights, all or some, and writing the result as a model folder.
//!
//! Trained weights are held in f32 and cast to the arithmetic type where they are used, so that small updates are not lost;
//! frozen ones are held in the arithmetic type.

use std::collections::BTreeMap;
use std::path::Path;

use pipe_files::{FolderWriter, ModelFiles, TensorType, WeightPattern, write_config, write_tokenizer};
use pipe_job::Freeze;
use tch::{Kind, Tensor};

use crate::decoder::Decoder;
use crate::events::Events;
use crate::optimizer::Parameter;
use crate::{ModelError, Result};

/// Largest shard of a written model.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Makes the chosen weights of a model loaded in f32 trainable (all without `freeze`) and casts the others to `compute`.
pub fn unfreeze(decoder: &mut Decoder, freeze: Option<&Freeze>, compute: Kind) -> Result<Vec<Parameter>> {
    let layers = decoder.config.layers;
    let choice = freeze.map(|freeze| Choice::new(freeze, layers)).transpose()?;
    let mut used = vec![false; choice.as_ref().map_or(0, |choice| choice.patterns.len())];
    let (mut parameters, mut names) = (Vec::new(), Vec::new());
    for (name, tensor) in decoder.weights_mut() {
        let chosen = match &choice {
            Some(choice) => choice.rows(&name, tensor.size()[0], &mut used)?,
            None => Some(Vec::new()),
        };
        match chosen {
            Some(frozen_rows) => {
                *tensor = tensor.to_kind(Kind::Float).contiguous().set_requires_grad(true);
                parameters.push(Parameter { name: name.clone(), tensor: tensor.shallow_clone(), frozen_rows });
            }
            None => *tensor = tensor.to_kind(compute),
        }
        names.push(name);
    }
    decoder.compute = compute;
    if let Some(place) = decoder.config.tensors().iter().find(|place| !names.contains(&place.name)) {
        return Err(ModelError::input(format!(
            "{} keeps `{}` in a form that can only be adapted, not trained; set adapter: lora",
            decoder.config.architecture, place.name
        )));
    }
    if let (Some(freeze), Some(at)) = (freeze, used.iter().position(|used| !used)) {
        let some: Vec<&str> = names.iter().take(12).map(String::as_str).collect();
        return Err(ModelError::input(format!(
            "unfrozen_parameters: `{}` matches no weight of this model; its {} weights are {} and so on",
            freeze.unfrozen[at],
            names.len(),
            some.join(", ")
        )));
    }
    Ok(parameters)
}

/// Writes weights, configuration and tokenizer into `folder`, in the arithmetic type.
pub fn save(decoder: &mut Decoder, base: &Path, folder: &Path, events: &Events) -> Result<()> {
    let files = ModelFiles::open(base)?;
    let kind = if decoder.compute == Kind::BFloat16 { TensorType::Bf16 } else { TensorType::F32 };
    let held: BTreeMap<String, Tensor> =
        decoder.weights_mut().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect();
    let tensors = files.config().tensors();
    let mut writer = FolderWriter::create(folder, &tensors, kind, SHARD_BYTES)?;
    for (done, place) in tensors.iter().enumerate() {
        let name = &place.name;
        let tensor =
            held.get(name).ok_or_else(|| ModelError::work(format!("{name} is not held; it cannot be saved")))?;
        let values: Vec<f32> = Vec::try_from(tensor.to_kind(Kind::Float).contiguous().reshape([-1]))?;
        writer.write(name, &values)?;
        events.progress("save", "tensors", done as u64 + 1, tensors.len() as u64);
    }
    writer.finish()?;
    write_config(&files, kind, folder)?;
    Ok(write_tokenizer(base, folder)?)
}

/// Which weights are trained.
struct Choice {
    patterns: Vec<WeightPattern>,
    /// The first layer that is trained whole.
    first_layer: usize,
}

impl Choice {
    fn new(freeze: &Freeze, layers: usize) -> Result<Self> {
        let patterns =
            freeze.unfrozen.iter().map(|text| WeightPattern::parse(text)).collect::<std::result::Result<_, _>>();
        let patterns = patterns.map_err(|what| ModelError::input(format!("unfrozen_parameters: {what}")))?;
        if freeze.last_layers > layers {
            return Err(ModelError::input(format!(
                "unfrozen_layers is {}, and this model has {layers} layers",
                freeze.last_layers
            )));
        }
        Ok(Self { patterns, first_layer: layers - freeze.last_layers })
    }

    /// `None` for a frozen weight, else the rows of it that are not trained.
    fn rows(&self, name: &str, size: i64, used: &mut [bool]) -> Result<Option<Vec<(i64, i64)>>> {
        let layer = name.split('.').find_map(|part| part.parse::<usize>().ok());
        let mut chosen = layer.is_some_and(|layer| layer >= self.first_layer);
        let mut ranges = Vec::new();
        for (pattern, used) in self.patterns.iter().zip(used) {
            if !pattern.matches(name) {
                continue;
            }
            (*used, chosen) = (true, true);
            if let Some((from, to)) = pattern.rows {
                let (from, to) = (from as i64, to.map_or(size, |to| to as i64));
                if to > size {
                    return Err(ModelError::input(format!(
                        "unfrozen_parameters: rows up to {to} are asked for, and {name} has {size}"
                    )));
                }
                ranges.push((from, to));
            }
        }
        Ok(chosen.then(|| others(ranges, size)))
    }
}

/// What the ranges leave out of `0..size`; nothing when there is none.
fn others(mut ranges: Vec<(i64, i64)>, size: i64) -> Vec<(i64, i64)> {
    if ranges.is_empty() {
        return Vec::new();
    }
    ranges.sort_unstable();
    let (mut at, mut rest) = (0, Vec::new());
    for (from, to) in ranges.into_iter().chain([(size, size)]) {
        if from > at {
            rest.push((at, from));
        }
        at = at.max(to);
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_outside_the_ranges_are_frozen() {
        assert_eq!(others(vec![(5, 7), (0, 2), (1, 3)], 10), [(3, 5), (7, 10)]);
        assert_eq!(others(vec![(0, 10)], 10), []);
        assert_eq!(others(Vec::new(), 10), []);
    }
}
