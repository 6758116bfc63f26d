//! Tensors in safetensors files: f32 out, any floating type or bytes in.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View};
use tch::{Device, Kind, Tensor};

use crate::{ModelError, Result};

/// Writes tensors sorted by name: bytes as bytes, everything else as f32. What is f32 already is written from where it lies.
pub fn write_tensors(path: &Path, tensors: Vec<(String, Tensor)>, metadata: &[(&str, &str)]) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| ModelError::work(format!("{}: {e}", path.display()));
    let held: BTreeMap<String, Held> = tensors.into_iter().map(|(name, tensor)| (name, Held::new(&tensor))).collect();
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    safetensors::serialize_to_file(held.iter(), Some(metadata), path).map_err(|e| failed(&e))
}

/// A contiguous tensor of f32 or bytes in the processor's memory.
struct Held {
    tensor: Tensor,
    shape: Vec<usize>,
}

impl Held {
    fn new(tensor: &Tensor) -> Self {
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        let kind = if tensor.kind() == Kind::Uint8 { Kind::Uint8 } else { Kind::Float };
        Self { tensor: tensor.detach().to_device(Device::Cpu).to_kind(kind).contiguous(), shape }
    }
}

impl View for &Held {
    fn dtype(&self) -> Dtype {
        if self.tensor.kind() == Kind::Uint8 { Dtype::U8 } else { Dtype::F32 }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.data_len() == 0 {
            return Cow::Borrowed(&[]);
        }
        // SAFETY: `Held::new` has made it contiguous; the memory lives as long as the tensor, which nothing writes meanwhile.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), self.data_len()) })
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * if self.tensor.kind() == Kind::Uint8 { 1 } else { 4 }
    }
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
