//! Merging an adapter into its base: a Hugging Face folder, one tensor in memory at a time.
//!
//! `W' = W + scale * B A` in f32, rounded once to the type asked for. By default `W` is what training saw: the base in
//! the compute type and, for QLoRA, quantised and dequantised, so that the merged model answers as the tuned one did.
//! Equal input gives equal bytes: every sum has a fixed order.

use half::bf16;
use pipe_files::{FolderWriter, ModelFiles, PeftAdapter, PeftModule, TensorType, write_config, write_tokenizer};
use pipe_job::{BaseWeights, Compute, MergeBase, MergeJob, WeightType};
use rayon::prelude::*;
use tch::Kind;

use crate::events::Events;
use crate::nf4::Nf4;
use crate::{ModelError, Result, load, tuned};

/// Runs the job and writes weights, configuration and tokenizer into its output folder.
pub fn merge(job: &MergeJob, events: &Events) -> Result<()> {
    let files = ModelFiles::open(&job.model.path)?;
    let mut adapter = job.model.adapter.as_deref().map(tuned::read_adapter).transpose()?;
    let kind = stored_type(job.dtype);
    let tensors = files.config().tensors();
    check(&files, adapter.as_ref())?;
    let mut writer = FolderWriter::create(&job.output, &tensors, kind, job.max_shard_bytes)?;
    let mut values = Vec::new();
    for (done, place) in tensors.iter().enumerate() {
        events.check()?;
        let name = &place.name;
        files.read_f32(name, &mut values)?;
        files.release(name);
        if job.base == MergeBase::AsTrained {
            as_trained(&mut values, &place.shape, place.is_quantised(), job)?;
        }
        if let Some(adapter) = &mut adapter
            && place.is_linear_weight()
            && let Some(own) = adapter.modules.remove(place.module())
        {
            add(&mut values, &own, adapter.scale());
        }
        writer.write(name, &values)?;
        events.progress("merge", "tensors", done as u64 + 1, tensors.len() as u64);
    }
    writer.finish()?;
    write_config(&files, kind, &job.output)?;
    Ok(write_tokenizer(&job.model.path, &job.output)?)
}

/// Refuses an adapter for another model before anything is written.
fn check(files: &ModelFiles, adapter: Option<&PeftAdapter>) -> Result<()> {
    let Some(adapter) = adapter else { return Ok(()) };
    for (name, module) in &adapter.modules {
        if files.shape(&format!("{name}.weight")) != Some([module.outputs, module.inputs].as_slice()) {
            return Err(tuned::stranger(&adapter.path, name));
        }
    }
    Ok(())
}

/// Replaces a tensor's values by those that training computed with.
fn as_trained(values: &mut Vec<f32>, shape: &[usize], linear: bool, job: &MergeJob) -> Result<()> {
    // The same two steps as loading for training: the compute type first, then the quantised form.
    if job.model.compute == Compute::Bf16 {
        values.par_iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
    let BaseWeights::Nf4 { double_quant } = job.model.base else { return Ok(()) };
    if !linear {
        return Ok(());
    }
    let [rows, columns] = [shape[0], shape[1]];
    let quantised = Nf4::quantize(values, rows, columns, double_quant);
    let seen = quantised.dequantize(load::kind_of(job.model.compute)?).to_kind(Kind::Float).reshape([-1]);
    *values = Vec::try_from(seen).map_err(ModelError::from)?;
    Ok(())
}

/// Adds `scale * B A` row by row, in f32.
fn add(values: &mut [f32], module: &PeftModule, scale: f64) {
    let (r, inputs) = (module.r, module.inputs);
    values.par_chunks_mut(inputs).enumerate().for_each(|(row, values)| {
        let mut delta = vec![0f32; inputs];
        for (rank, b) in module.b[row * r..(row + 1) * r].iter().enumerate() {
            let a = &module.a[rank * inputs..(rank + 1) * inputs];
            delta.iter_mut().zip(a).for_each(|(d, a)| *d += b * a);
        }
        values.iter_mut().zip(delta).for_each(|(v, d)| *v += d * scale as f32);
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
        let module =
            PeftModule { r: 1, inputs: 3, outputs: 2, a: vec![1.0, 2.0, 3.0], b: vec![10.0, -1.0], magnitude: None };
        let mut values = vec![0.5f32; 6];
        add(&mut values, &module, 2.0);
        assert_eq!(values, [20.5, 40.5, 60.5, -1.5, -3.5, -5.5]);
    }
}
