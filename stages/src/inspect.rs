//! What a model on disk is: its family, sizes, modules and the types of its weights, from headers alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pipe_files::{FilesError, ModelConfig, ModelFiles};
use serde::Serialize;

use crate::memory::Shape;

/// A model as it lies on disk.
#[derive(Clone, Debug, Serialize)]
pub struct Inspected {
    pub path: PathBuf,
    /// `folder` or `gguf`.
    pub format: &'static str,
    /// As `architectures[0]` spells it.
    pub architecture: String,
    pub parameters: u64,
    pub layers: u64,
    pub hidden_size: u64,
    pub intermediate_size: u64,
    pub attention_heads: u64,
    pub key_value_heads: u64,
    pub head_size: u64,
    pub vocabulary: u64,
    pub context_length: u64,
    pub tied_embeddings: bool,
    /// Parameters by the type they are stored in; empty when the weights are not there.
    pub dtypes: BTreeMap<String, u64>,
    /// Why the weights cannot be read, if they cannot.
    pub weights_problem: Option<String>,
    /// Bytes of the weight files.
    pub file_bytes: u64,
    /// Resident bytes of the base alone, by how a recipe may hold it.
    pub held_bytes: BTreeMap<&'static str, u64>,
    pub chat_template: bool,
    pub modules: Vec<Linear>,
}

/// A linear module.
#[derive(Clone, Debug, Serialize)]
pub struct Linear {
    pub name: String,
    /// `[outputs, inputs]`
    pub shape: [u64; 2],
    /// The type it is stored in, where the weights are there.
    pub dtype: Option<String>,
}

/// Looks at the model at `path`. Weights may be absent: then types and file sizes are unknown.
///
/// # Errors
/// When there is no model, or one of an architecture that is not supported.
pub fn inspect(path: &Path) -> Result<Inspected, FilesError> {
    let config = ModelConfig::read(path)?;
    let shape = Shape::of(&config);
    let (files, weights_problem) = match ModelFiles::open(path) {
        Ok(files) => (Some(files), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let dtype = |name: &str| {
        let kind = files.as_ref().and_then(|files| files.dtype(name));
        kind.map(|kind| format!("{kind:?}").to_lowercase())
    };
    let mut dtypes = BTreeMap::new();
    for name in files.iter().flat_map(ModelFiles::names) {
        let size: usize = files.as_ref().and_then(|files| files.shape(&name)).map_or(0, |shape| shape.iter().product());
        *dtypes.entry(dtype(&name).unwrap_or_default()).or_insert(0) += size as u64;
    }
    let modules: Vec<Linear> = shape
        .modules
        .iter()
        .map(|m| Linear {
            dtype: dtype(&format!("{}.weight", m.name)),
            name: m.name.clone(),
            shape: [m.outputs, m.inputs],
        })
        .collect();
    let weights = pipe_files::weight_files(path).unwrap_or_default();
    let file_bytes = weights.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|file| file.len()).sum();
    let tokenizer = pipe_files::TokenizerInfo::read(path).ok();
    Ok(Inspected {
        path: path.to_path_buf(),
        format: if path.is_dir() { "folder" } else { "gguf" },
        architecture: config.architecture.clone(),
        parameters: shape.parameters,
        layers: shape.layers,
        hidden_size: shape.hidden,
        intermediate_size: config.intermediate as u64,
        attention_heads: shape.heads,
        key_value_heads: config.kv_heads as u64,
        head_size: config.head_dim as u64,
        vocabulary: shape.vocab,
        context_length: config.max_positions as u64,
        tied_embeddings: shape.tied,
        dtypes,
        weights_problem,
        file_bytes,
        held_bytes: held(&shape),
        chat_template: tokenizer.is_some_and(|info| info.chat_template.is_some()),
        modules,
    })
}

/// The tokens a model was made for, where its configuration can be read.
pub fn context_length(path: &Path) -> Option<u64> {
    pipe_files::ModelConfig::read(path).ok().map(|config| config.max_positions as u64).filter(|&most| most > 0)
}

fn held(shape: &Shape) -> BTreeMap<&'static str, u64> {
    let linear: u64 = shape.modules.iter().map(|module| module.outputs * module.inputs).sum();
    let rest = shape.parameters - linear;
    let four_bit = (linear as f64 * (4.0 + 8.0 / 64.0 + 32.0 / 16_384.0) / 8.0) as u64;
    BTreeMap::from([
        ("fp32", shape.parameters * 4),
        ("bf16", shape.parameters * 2),
        ("4-bit (bf16 tables)", four_bit + rest * 2),
    ])
}
