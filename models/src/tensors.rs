//! Tensors in safetensors files: f32 out, any floating type or bytes in.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Kind, Tensor};

use crate::{ModelError, Result};

/// Writes tensors sorted by name: bytes as bytes, everything else as f32.
pub fn write_tensors(path: &Path, tensors: Vec<(String, Tensor)>, metadata: &[(&str, &str)]) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| ModelError::work(format!("{}: {e}", path.display()));
    let mut held = BTreeMap::new();
    for (name, tensor) in tensors {
        let flat = tensor.detach().contiguous().reshape([-1]);
        let (dtype, bytes) = match tensor.kind() {
            Kind::Uint8 => (Dtype::U8, Vec::<u8>::try_from(flat)?),
            _ => {
                let values: Vec<f32> = Vec::try_from(flat.to_kind(Kind::Float))?;
                (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
        };
        let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
        held.insert(name, (dtype, shape, bytes));
    }
    let mut views = Vec::with_capacity(held.len());
    for (name, (dtype, shape, bytes)) in &held {
        views.push((name.clone(), TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| failed(&e))?));
    }
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| failed(&e))
}

/// Reads every tensor of a safetensors file: f32, bf16 and f16 as f32, bytes as bytes.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(|e| ModelError::io(path, e))?;
    let broken = |e: &dyn std::fmt::Display| ModelError::input(format!("{} is damaged: {e}", path.display()));
    let all = SafeTensors::deserialize(&bytes).map_err(|e| broken(&e))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in all.iter() {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::U8 => Kind::Uint8,
            other => return Err(broken(&format!("{name} holds {other:?}, expected a floating type"))),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)?;
        tensors.insert(name.to_string(), if kind == Kind::Uint8 { tensor } else { tensor.to_kind(Kind::Float) });
    }
    Ok(tensors)
}
