//! Merging adapters into their base: a Hugging Face folder's weights and configuration, one tensor in memory at a time.
//!
//! `W' = W + sum of weight * scale * B A` in f32 (for DoRA brought to its trained lengths), rounded once to the type asked for.
//! By default `W` is what training saw: the base in the compute type and, for QLoRA, quantised and dequantised, so that the
//! merged model answers as the tuned one did. Equal input gives equal bytes: every sum has a fixed order.

use std::path::Path;

use half::bf16;
use pipe_files::{FolderWriter, ModelFiles, Part, PeftAdapter, PeftModule, Place, TensorType, write_config};
use pipe_job::{BaseWeights, Compute, MergeBase, MergeJob, WeightType, Weighted};
use rayon::prelude::*;
use tch::Kind;

use crate::events::Events;
use crate::int8::Int8;
use crate::nf4::{Format, Nf4};
use crate::{ModelError, Result, load, tuned};

/// Runs the job and writes weights and configuration into its output folder.
pub fn merge(job: &MergeJob, events: &Events) -> Result<()> {
    let files = ModelFiles::open(&job.model.path)?;
    let open = |one: &Weighted| Ok((PeftAdapter::open(&one.path, files.config())?, one.weight));
    let mut adapters: Vec<(PeftAdapter, f64)> = job.adapters.iter().map(open).collect::<Result<_>>()?;
    let kind = stored_type(job.dtype);
    let mut tensors = files.config().tensors();
    adapters.iter().try_for_each(|(adapter, _)| check(&files, adapter))?;
    check_sum(&adapters)?;
    // A tied head and embedding of which one was trained are two weights from now on.
    let untied = files.config().tied_embeddings && adapters.iter().any(|(adapter, _)| !adapter.saved.is_empty());
    let embedding = tensors.iter().find(|place| place.part == Part::Embedding).cloned();
    let embedding = embedding.ok_or_else(|| ModelError::work("the model has no embedding"))?;
    if untied {
        let name = format!("{}.weight", files.config().family.in_files(Part::Head));
        tensors.push(Place { name, part: Part::Head, ..embedding.clone() });
    }
    let mut writer = FolderWriter::create(&job.output, &tensors, kind, job.max_shard_bytes)?;
    let mut values = Vec::new();
    for (done, place) in tensors.iter().enumerate() {
        events.check()?;
        let name = &place.name;
        let stored = if untied && place.part == Part::Head { &embedding.name } else { name };
        files.read_f32(stored, &mut values)?;
        files.release(stored);
        if job.base == MergeBase::AsTrained {
            as_trained(&mut values, &place.shape, place.is_quantised(), job)?;
        }
        for (adapter, weight) in &mut adapters {
            let own = if place.is_linear_weight() { adapter.modules.remove(place.module()) } else { None };
            if let Some(own) = own {
                add(&mut values, &own, own.scale * *weight);
            }
            if let Some(own) = adapter.saved.remove(name) {
                values = own.values;
            }
        }
        writer.write(name, &values)?;
        events.progress("merge", "tensors", done as u64 + 1, tensors.len() as u64);
    }
    writer.finish()?;
    write_config(&files, kind, &job.output)?;
    if untied {
        untie(&job.output.join("config.json"))?;
    }
    Ok(())
}

/// Refuses an adapter for another model before anything is written.
fn check(files: &ModelFiles, adapter: &PeftAdapter) -> Result<()> {
    let family = files.config().family;
    let embedding = format!("{}.weight", family.in_files(Part::Embedding));
    for (name, module) in &adapter.modules {
        if files.shape(&format!("{name}.weight")) != Some([module.outputs, module.inputs].as_slice()) {
            return Err(tuned::stranger(&adapter.path, name));
        }
    }
    for (name, weight) in &adapter.saved {
        let known = name.strip_suffix(".weight").and_then(|module| family.table(module)).is_some();
        if !known || files.shape(&embedding) != Some(weight.shape.as_slice()) {
            return Err(tuned::stranger(&adapter.path, name));
        }
    }
    Ok(())
}

/// Only plain low-rank changes add up: DoRA turns the weights, and a weight that was trained whole takes the base's place.
fn check_sum(adapters: &[(PeftAdapter, f64)]) -> Result<()> {
    if let [] | [(_, 1.0)] = adapters {
        return Ok(());
    }
    for (adapter, _) in adapters {
        let what = match (adapter.config.dora, adapter.saved.is_empty()) {
            (true, _) => "is a DoRA adapter",
            (_, false) => "brings whole weights (modules_to_save)",
            _ => continue,
        };
        return Err(ModelError::input(format!(
            "{} {what}, which can only be merged alone and with weight 1",
            adapter.path.display()
        )));
    }
    Ok(())
}

/// Says in a model's configuration that its head is a weight of its own.
fn untie(path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|e| ModelError::io(path, e))?;
    let mut config: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| ModelError::work(format!("{}: {e}", path.display())))?;
    config["tie_word_embeddings"] = false.into();
    std::fs::write(path, format!("{config:#}\n")).map_err(|e| ModelError::io(path, e))
}

/// Replaces a tensor's values by those that training computed with.
fn as_trained(values: &mut Vec<f32>, shape: &[usize], linear: bool, job: &MergeJob) -> Result<()> {
    // The same two steps as loading for training: the compute type first, then the quantised form.
    if job.model.compute == Compute::Bf16 {
        values.par_iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
    if !linear {
        return Ok(());
    }
    let ([rows, columns], kind) = ([shape[0], shape[1]], load::kind_of(job.model.compute)?);
    let seen = match job.model.base {
        BaseWeights::Dense => return Ok(()),
        BaseWeights::Nf4 { double_quant } => {
            Nf4::quantize(Format::Nf4, values, rows, columns, double_quant).dequantize(kind)
        }
        BaseWeights::Fp4 { double_quant } => {
            Nf4::quantize(Format::Fp4, values, rows, columns, double_quant).dequantize(kind)
        }
        BaseWeights::Int8 => Int8::quantize(values, rows, columns).dequantize(kind),
    };
    let seen = seen.to_kind(Kind::Float).reshape([-1]);
    *values = Vec::try_from(seen).map_err(ModelError::from)?;
    Ok(())
}

/// Adds `scale * B A` row by row, in f32, and for DoRA gives each row its trained length.
fn add(values: &mut [f32], module: &PeftModule, scale: f64) {
    let (r, inputs) = (module.r, module.inputs);
    values.par_chunks_mut(inputs).enumerate().for_each(|(row, values)| {
        let mut delta = vec![0f32; inputs];
        for (rank, b) in module.b[row * r..(row + 1) * r].iter().enumerate() {
            let a = &module.a[rank * inputs..(rank + 1) * inputs];
            delta.iter_mut().zip(a).for_each(|(d, a)| *d += b * a);
        }
        values.iter_mut().zip(delta).for_each(|(v, d)| *v += d * scale as f32);
        if let Some(magnitude) = &module.magnitude {
            let length = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
            let factor = (f64::from(magnitude[row]) / length) as f32;
            values.iter_mut().for_each(|v| *v *= factor);
        }
    });
}

fn stored_type(dtype: WeightType) -> TensorType {
    match dtype {
        WeightType::F32 => TensorType::F32,
        WeightType::F16 => TensorType::F16,
        WeightType::Bf16 => TensorType::Bf16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_is_scale_times_b_a() {
        // B is [2, 1], A is [1, 3].
        let module = PeftModule {
            r: 1,
            inputs: 3,
            outputs: 2,
            a: vec![1.0, 2.0, 3.0],
            b: vec![10.0, -1.0],
            ..Default::default()
        };
        let mut values = vec![0.5f32; 6];
        add(&mut values, &module, 2.0);
        assert_eq!(values, [20.5, 40.5, 60.5, -1.5, -3.5, -5.5]);
        let mut values = vec![0.5f32; 6];
        add(&mut values, &PeftModule { magnitude: Some(vec![1.0, 2.0]), ..module }, 2.0);
        let length = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((length(&values[..3]) - 1.0).abs() < 1e-6 && (length(&values[3..]) - 2.0).abs() < 1e-6);
    }
}
