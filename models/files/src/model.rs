//! A model on disk, whatever its form: configuration and named tensors, read one at a time.
//!
//! Tensors carry Hugging Face's names and row order; GGUF's interleaved rotary rows are put back on reading. Nothing is
//! kept in memory between reads.

use std::path::{Path, PathBuf};

use half::bf16;
use indexmap::IndexMap;
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use crate::blocks::TensorType;
use crate::gguf::Gguf;
use crate::mapped::Mapped;
use crate::{FilesError, ModelConfig, RopeScaling, shards};

/// Where a model came from.
#[derive(Debug)]
pub enum Source {
    /// A Hugging Face folder.
    Folder,
    /// A GGUF file with its metadata.
    Gguf(Box<Gguf>),
}

/// An opened model. Opening reads headers only and proves that every tensor the network needs is there, whole and of
/// the right shape.
#[derive(Debug)]
pub struct ModelFiles {
    path: PathBuf,
    config: ModelConfig,
    source: Source,
    files: Vec<Mapped>,
    tensors: IndexMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    dtype: TensorType,
    file: usize,
    offset: usize,
    len: usize,
    /// Heads whose rotary halves are interleaved in the file, if they are.
    interleaved: Option<usize>,
}

impl ModelFiles {
    /// Opens a Hugging Face folder (safetensors) or a GGUF file.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        if !path.exists() {
            return Err(FilesError::Missing { path: path.to_owned() });
        }
        let mut model = if path.is_dir() { Self::open_folder(path)? } else { Self::open_gguf(path)? };
        model.check()?;
        Ok(model)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The tensors the network uses, in the order of [`ModelConfig::tensors`].
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// How the tensor is stored.
    pub fn dtype(&self, name: &str) -> Option<TensorType> {
        self.tensors.get(name).map(|t| t.dtype)
    }

    /// The files that hold the weights: what a cache key must digest.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|f| f.path.clone()).collect()
    }

    /// Reads a tensor as f32, row-major, replacing `out`'s content.
    pub fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), FilesError> {
        let entry = self.entry(name)?;
        out.clear();
        out.resize(entry.shape.iter().product(), 0.0);
        self.rows(entry, out, |dtype, src, dst| dtype.decode(src, dst));
        Ok(())
    }

    /// Reads a tensor as bf16 (round to nearest even), row-major, replacing `out`'s content.
    pub fn read_bf16(&self, name: &str, out: &mut Vec<bf16>) -> Result<(), FilesError> {
        let entry = self.entry(name)?;
        out.clear();
        out.resize(entry.shape.iter().product(), bf16::ZERO);
        self.rows(entry, out, |dtype, src, dst| {
            if dtype == TensorType::Bf16 {
                for (s, d) in src.chunks_exact(2).zip(dst) {
                    *d = bf16::from_le_bytes([s[0], s[1]]);
                }
                return;
            }
            let mut wide = [0f32; 256];
            let (src_step, step) = (dtype.bytes(256), 256);
            for (s, d) in src.chunks(src_step).zip(dst.chunks_mut(step)) {
                let wide = &mut wide[..d.len()];
                dtype.decode(s, wide);
                for (w, d) in wide.iter().zip(d) {
                    *d = bf16::from_f32(*w);
                }
            }
        });
        Ok(())
    }

    /// Drops a tensor's pages from resident memory after it was read: mapped files count as resident.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.files[entry.file].release(entry.offset, entry.len);
        }
    }

    fn open_folder(path: &Path) -> Result<Self, FilesError> {
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            // The more telling problem first: an adapter or an empty folder has no config either.
            shards::weight_files(path)?;
            let why = "it has weights but no config.json; download the folder completely".to_owned();
            return Err(FilesError::NoWeights { path: path.to_owned(), why });
        }
        let config = ModelConfig::from_json(&config_path)?;
        let mut files = Vec::new();
        let mut tensors = IndexMap::new();
        for file in shards::weight_files(path)? {
            let (mapped, stored) = shards::open(&file)?;
            for t in stored {
                let Some(dtype) = float_type(t.dtype) else {
                    let what = format!(
                        "tensor {} holds {:?} values; only F32, F16 and BF16 weights are read",
                        t.name, t.dtype
                    );
                    return Err(FilesError::unsupported(&file, what));
                };
                let (offset, len) = (t.offset, t.len);
                let entry = Entry { shape: t.shape, dtype, file: files.len(), offset, len, interleaved: None };
                tensors.insert(t.name, entry);
            }
            files.push(mapped);
        }
        Ok(Self { path: path.to_owned(), config, source: Source::Folder, files, tensors })
    }

    fn open_gguf(path: &Path) -> Result<Self, FilesError> {
        let (gguf, mapped) = Gguf::open_mapped(path)?;
        let mut config = ModelConfig::from_gguf(&gguf)?;
        let mut tensors = IndexMap::new();
        for t in &gguf.tensors {
            if t.name == "rope_freqs.weight" {
                let mut factors = vec![0.0; t.shape.iter().product()];
                t.dtype.decode(&mapped.bytes()[t.offset..t.offset + t.len], &mut factors);
                config.rope_scaling = Some(RopeScaling::recognise(&config, factors));
                continue;
            }
            let Some(name) = folder_name(&t.name) else {
                continue;
            };
            let interleaved = match &name {
                n if n.contains("q_proj") => Some(config.heads),
                n if n.contains("k_proj") => Some(config.kv_heads),
                _ => None,
            };
            let entry =
                Entry { shape: t.shape.clone(), dtype: t.dtype, file: 0, offset: t.offset, len: t.len, interleaved };
            tensors.insert(name, entry);
        }
        Ok(Self { path: path.to_owned(), config, source: Source::Gguf(Box::new(gguf)), files: vec![mapped], tensors })
    }

    /// Keeps what the network needs, in its order; anything missing or of another shape is an error.
    fn check(&mut self) -> Result<(), FilesError> {
        let mut kept = IndexMap::new();
        for (name, shape) in self.config.tensors() {
            let what = match self.tensors.swap_remove(&name) {
                Some(entry) if entry.shape == shape => {
                    kept.insert(name, entry);
                    continue;
                }
                Some(entry) => format!("has shape {:?} where the configuration needs {shape:?}", entry.shape),
                None => format!("of shape {shape:?} is missing"),
            };
            return Err(FilesError::Tensor { path: self.path.clone(), name, what });
        }
        self.tensors = kept;
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&Entry, FilesError> {
        self.tensors.get(name).ok_or_else(|| FilesError::Tensor {
            path: self.path.clone(),
            name: name.to_owned(),
            what: "does not exist".to_owned(),
        })
    }

    /// Decodes row by row on all rayon threads; a row is whole blocks in every format.
    fn rows<T: Send>(&self, entry: &Entry, out: &mut [T], decode: impl Fn(TensorType, &[u8], &mut [T]) + Sync) {
        let bytes = &self.files[entry.file].bytes()[entry.offset..entry.offset + entry.len];
        let width = entry.shape.last().copied().unwrap_or(1).max(1);
        let stride = entry.dtype.bytes(width);
        let head = entry.interleaved.map(|heads| entry.shape[0] / heads);
        // A bias is one row of interleaved elements; f32 elements are blocks of one, so treat it as a column.
        let (width, stride) =
            if entry.shape.len() == 1 && head.is_some() { (1, entry.dtype.bytes(1)) } else { (width, stride) };
        out.par_chunks_mut(width).with_min_len(16).enumerate().for_each(|(row, dst)| {
            let from = head.map_or(row, |head| interleaved_row(row, head)) * stride;
            decode(entry.dtype, &bytes[from..from + stride], dst);
        });
    }
}

/// Where GGUF keeps row `row` of a query or key projection with heads of `head` rows: the two rotary halves of a head
/// alternate there, and follow one another in Hugging Face's order.
pub(crate) fn interleaved_row(row: usize, head: usize) -> usize {
    let (base, within) = (row / head * head, row % head);
    base + within % (head / 2) * 2 + within / (head / 2)
}

fn float_type(dtype: Dtype) -> Option<TensorType> {
    match dtype {
        Dtype::F32 => Some(TensorType::F32),
        Dtype::F16 => Some(TensorType::F16),
        Dtype::BF16 => Some(TensorType::Bf16),
        _ => None,
    }
}

/// GGUF tensor names by part, with Hugging Face's name for each.
pub(crate) const LAYER_PARTS: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Tensors outside the layers, likewise.
pub(crate) const OUTER_PARTS: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Hugging Face's name of a GGUF tensor, if it is one of the network's.
fn folder_name(gguf: &str) -> Option<String> {
    let (stem, kind) = gguf.rsplit_once('.')?;
    if let Some((_, name)) = OUTER_PARTS.iter().find(|(from, _)| *from == stem) {
        return Some(format!("{name}.{kind}"));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let (_, name) = LAYER_PARTS.iter().find(|(from, _)| *from == part)?;
    Some(format!("model.layers.{layer}.{name}.{kind}"))
}
