//! A Hugging Face folder's weights: `model.safetensors`, or shards named by `model.safetensors.index.json`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};

use crate::FilesError;
use crate::mapped::Mapped;

/// One tensor of one safetensors file: byte range within the file.
pub(crate) struct Stored {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub offset: usize,
    pub len: usize,
}

/// The weight files of `folder`, sorted by name.
pub(crate) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if index.is_file() {
        return indexed(folder, &index);
    }
    Err(FilesError::NoWeights { path: folder.to_owned(), why: absent(folder) })
}

/// Opens one safetensors file and lists its tensors in file order.
pub(crate) fn open(path: &Path) -> Result<(Mapped, Vec<Stored>), FilesError> {
    let mapped = Mapped::open(path)?;
    let bytes = mapped.bytes();
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| FilesError::damaged(path, format!("not a whole safetensors file ({e})")))?;
    let start = header + 8;
    let missing = (start + metadata.data_len()).saturating_sub(bytes.len());
    if missing > 0 {
        return Err(FilesError::damaged(path, format!("it ends {missing} bytes too early")));
    }
    let mut tensors: Vec<Stored> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Stored {
            name,
            shape: info.shape.clone(),
            dtype: info.dtype,
            offset: start + info.data_offsets.0,
            len: info.data_offsets.1 - info.data_offsets.0,
        })
        .collect();
    tensors.sort_by_key(|t| t.offset);
    Ok((mapped, tensors))
}

fn indexed(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, FilesError> {
    let text = std::fs::read_to_string(index).map_err(FilesError::read(index))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| FilesError::damaged(index, format!("not valid JSON ({e})")))?;
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| FilesError::damaged(index, "it has no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(|v| v.as_str()).collect();
    let mut files = Vec::new();
    for name in names {
        // A shard is a sibling file; a path that climbs out of the folder is not one.
        let plain = Path::new(name).file_name().is_some_and(|f| f == name);
        if !plain {
            return Err(FilesError::damaged(index, format!("shard {name:?} is not a plain file name")));
        }
        let path = folder.join(name);
        if !path.is_file() {
            let why = format!("the index names shard {name}, which is not there; download the folder completely");
            return Err(FilesError::NoWeights { path: folder.to_owned(), why });
        }
        files.push(path);
    }
    Ok(files)
}

/// Why a folder has no usable weights, as helpful as its content allows.
fn absent(folder: &Path) -> String {
    let names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    if let Some(bin) = names.iter().find(|n| n.ends_with(".bin") && n.contains("model")) {
        return format!(
            "{bin} is a Python pickle, which can run code when loaded and is not read here; convert it once with \
             transformers (save_pretrained writes safetensors) or download the safetensors revision"
        );
    }
    if let Some(gguf) = names.iter().find(|n| n.ends_with(".gguf")) {
        return format!("it has no model.safetensors, but {gguf}; name that file instead of the folder");
    }
    if names.iter().any(|n| n == "adapter_model.safetensors") {
        return "it is an adapter folder; name its base model here and the folder as the adapter".to_owned();
    }
    "expected model.safetensors or model.safetensors.index.json; download the weights into this folder".to_owned()
}
