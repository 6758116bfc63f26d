//! A model on disk, whatever its form: configuration and named tensors, read one at a time.
//!
//! Tensors carry Hugging Face's names and row order; GGUF's interleaved rotary rows are put back on reading. Nothing is
//! kept in memory between reads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::bf16;
use indexmap::IndexMap;
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use crate::bitsandbytes::{self, Coded, Quantised};
use crate::blocks::TensorType;
use crate::gguf::Gguf;
use crate::mapped::Mapped;
use crate::parts::{Part, Place};
use crate::{FilesError, ModelConfig, gguf_names, shards};

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

/// One of the network's tensors: rows of one or more stored tensors, in the network's orientation and order.
#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    pieces: Vec<Piece>,
    /// For each row, its place among the pieces' rows; `None` where the order is the same.
    order: Option<Vec<usize>>,
    /// Stored as `[inputs, outputs]`.
    transposed: bool,
    /// Taken off every stored value.
    excess: f32,
    /// The weight as bitsandbytes holds it; there are no pieces then.
    quantised: Option<Quantised>,
}

/// Consecutive rows of a stored tensor.
#[derive(Clone, Debug)]
struct Piece {
    shape: Vec<usize>,
    dtype: TensorType,
    file: usize,
    offset: usize,
    len: usize,
}

impl ModelFiles {
    /// Opens a Hugging Face folder (safetensors) or a GGUF file.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        if !path.exists() {
            return Err(FilesError::Missing { path: path.to_owned() });
        }
        if path.is_dir() { Self::open_folder(path) } else { Self::open_gguf(path) }
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

    /// How the tensor is stored; `None` where its parts differ, or where it is held in codes.
    pub fn dtype(&self, name: &str) -> Option<TensorType> {
        let pieces = &self.tensors.get(name)?.pieces;
        let dtype = pieces.first()?.dtype;
        pieces.iter().all(|piece| piece.dtype == dtype).then_some(dtype)
    }

    /// The files that hold the weights: what a cache key must digest.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|f| f.path.clone()).collect()
    }

    /// Reads a tensor as f32, row-major, replacing `out`'s content.
    pub fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), FilesError> {
        let entry = self.entry(name)?;
        // What it held is written over.
        out.resize(entry.shape.iter().product(), 0.0);
        match &entry.quantised {
            Some(quantised) => quantised.decode(&self.files, out),
            None => self.rows(entry, out, |dtype, src, dst| dtype.decode(src, dst)),
        }
        if entry.transposed {
            *out = transposed(out, entry.shape[0]);
        }
        if entry.excess != 0.0 {
            out.iter_mut().for_each(|value| *value -= entry.excess);
        }
        Ok(())
    }

    /// Reads a tensor as bf16 (round to nearest even), row-major, replacing `out`'s content.
    pub fn read_bf16(&self, name: &str, out: &mut Vec<bf16>) -> Result<(), FilesError> {
        let entry = self.entry(name)?;
        if entry.excess != 0.0 || entry.quantised.is_some() {
            let mut wide = Vec::new();
            self.read_f32(name, &mut wide)?;
            *out = wide.into_iter().map(bf16::from_f32).collect();
            return Ok(());
        }
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
        if entry.transposed {
            *out = transposed(out, entry.shape[0]);
        }
        Ok(())
    }

    /// Reads a matrix in blocks as they are stored, row after row in the network's order, replacing `out`'s content; `None`
    /// where the network's matrix is more than stored rows of one type in another order.
    pub fn read_blocks(&self, name: &str, out: &mut Vec<u8>) -> Result<Option<TensorType>, FilesError> {
        let entry = self.entry(name)?;
        let Some(dtype) = self.dtype(name) else { return Ok(None) };
        if entry.transposed || entry.excess != 0.0 || entry.shape.len() != 2 {
            return Ok(None);
        }
        out.clear();
        out.resize(dtype.bytes(entry.shape.iter().product()), 0);
        self.rows(entry, out, |_, src, dst| dst.copy_from_slice(src));
        Ok(Some(dtype))
    }

    /// Has the system read a tensor's bytes ahead, while something else is done with the processor.
    pub fn fetch(&self, name: &str) {
        self.stretches(name).for_each(|(file, offset, len)| self.files[file].fetch(offset, len));
    }

    /// Drops a tensor's pages from resident memory after it was read: mapped files count as resident.
    pub fn release(&self, name: &str) {
        self.stretches(name).for_each(|(file, offset, len)| self.files[file].release(offset, len));
    }

    /// File, offset and length of a tensor's parts.
    fn stretches(&self, name: &str) -> impl Iterator<Item = (usize, usize, usize)> {
        let entry = self.tensors.get(name).into_iter();
        entry.flat_map(|entry| {
            let codes = entry.quantised.iter().map(|q| (q.codes.file, q.codes.offset, q.codes.len));
            entry.pieces.iter().map(|piece| (piece.file, piece.offset, piece.len)).chain(codes)
        })
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
        let (mut stored, mut coded) = (IndexMap::new(), HashMap::new());
        for file in shards::weight_files(path)? {
            let (mapped, tensors) = shards::open(&file)?;
            for t in tensors {
                let file = files.len();
                match float_type(t.dtype) {
                    Some(dtype) => {
                        stored.insert(t.name, Piece { shape: t.shape, dtype, file, offset: t.offset, len: t.len });
                    }
                    // Quantised weights; or masks and the like that old checkpoints carry, which nobody asks for.
                    None => {
                        let (dtype, shape) = (t.dtype, t.shape);
                        coded.insert(t.name, Coded { dtype, shape, file, offset: t.offset, len: t.len });
                    }
                }
            }
            files.push(mapped);
        }
        let floats = |name: &str| stored.get(name).map(|piece| piece.values(&files));
        let codes = bitsandbytes::Folder { files: &files, coded: &coded, floats: &floats };
        let find =
            |place: &Place| in_folder(&config, &stored, place).or_else(|| codes.find(place).map(|q| q.entry(place)));
        let tensors = resolve(path, &config, find)?;
        Ok(Self { path: path.to_owned(), config, source: Source::Folder, files, tensors })
    }

    fn open_gguf(path: &Path) -> Result<Self, FilesError> {
        let (gguf, mapped) = Gguf::open_mapped(path)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        let piece = |t: &crate::gguf::GgufTensor| {
            let piece = Piece { shape: t.shape.clone(), dtype: t.dtype, file: 0, offset: t.offset, len: t.len };
            (t.name.clone(), piece)
        };
        let stored: IndexMap<String, Piece> = gguf.tensors.iter().map(piece).collect();
        let find = |place: &Place| in_gguf(&config, &stored, place);
        let tensors = resolve(path, &config, find)?;
        Ok(Self { path: path.to_owned(), config, source: Source::Gguf(Box::new(gguf)), files: vec![mapped], tensors })
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
        let mut width = entry.pieces.first().and_then(|piece| piece.shape.last().copied()).unwrap_or(1).max(1);
        if entry.shape.len() == 1 && (entry.order.is_some() || entry.pieces.len() > 1) {
            // A bias whose elements change places: f32 elements are blocks of one, so it reads as a column.
            width = 1;
        }
        let ends: Vec<usize> = entry
            .pieces
            .iter()
            .scan(0, |end, piece| {
                *end += piece.shape.iter().product::<usize>() / width;
                Some(*end)
            })
            .collect();
        let rows = entry.shape.iter().product::<usize>() / width;
        out.par_chunks_mut((out.len() / rows.max(1)).max(1)).with_min_len(16).enumerate().for_each(|(row, dst)| {
            let row = entry.order.as_ref().map_or(row, |order| order[row]);
            let index = ends.partition_point(|end| *end <= row);
            let piece = &entry.pieces[index];
            let first = if index == 0 { 0 } else { ends[index - 1] };
            let stride = piece.dtype.bytes(width);
            let from = piece.offset + (row - first) * stride;
            decode(piece.dtype, &self.files[piece.file].bytes()[from..from + stride], dst);
        });
    }
}

impl Piece {
    /// What it holds.
    fn values(&self, files: &[Mapped]) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        self.dtype.decode(&files[self.file].bytes()[self.offset..self.offset + self.len], &mut values);
        values
    }
}

impl Quantised {
    fn entry(self, place: &Place) -> Entry {
        let (shape, pieces) = (place.shape.clone(), Vec::new());
        Entry { shape, pieces, order: None, transposed: false, excess: 0.0, quantised: Some(self) }
    }
}

/// Every tensor the network needs, in its order; anything missing or of another shape is an error.
fn resolve(
    path: &Path,
    config: &ModelConfig,
    find: impl Fn(&Place) -> Option<Entry>,
) -> Result<IndexMap<String, Entry>, FilesError> {
    let one = |place: Place| {
        let what = match find(&place) {
            None => format!("of shape {:?} is missing", place.stored_shape()),
            Some(entry) => match misfit(&entry, &place) {
                None => return Ok((place.name, entry)),
                Some(shape) => format!("has shape {shape:?} where the configuration needs {:?}", place.stored_shape()),
            },
        };
        Err(FilesError::Tensor { path: path.to_owned(), name: place.name, what })
    };
    config.tensors().into_iter().map(one).collect()
}

/// The stored shape, where it is not what the network needs.
fn misfit(entry: &Entry, place: &Place) -> Option<Vec<usize>> {
    if entry.quantised.is_some() {
        return None;
    }
    let stored = if entry.transposed { place.stored_shape() } else { place.shape.clone() };
    let rows: usize = entry.pieces.iter().map(|piece| piece.shape[0]).sum();
    let rest = |shape: &[usize]| shape.get(1..).map(<[usize]>::to_vec).unwrap_or_default();
    let same = rows == stored[0] && entry.pieces.iter().all(|piece| rest(&piece.shape) == rest(&stored));
    (!same).then(|| entry.pieces.first().map(|piece| piece.shape.clone()).unwrap_or_default())
}

/// A tensor in a folder's files: under its name, without the model's prefix (old checkpoints of the bare model), or as one
/// expert's share of a tensor of all experts.
fn in_folder(config: &ModelConfig, stored: &IndexMap<String, Piece>, place: &Place) -> Option<Entry> {
    let entry = |piece: Piece| Entry {
        shape: place.shape.clone(),
        pieces: vec![piece],
        order: None,
        transposed: place.transposed,
        excess: 0.0,
        quantised: None,
    };
    let bare = || place.name.split_once('.').and_then(|(_, rest)| stored.get(rest));
    if let Some(piece) = stored.get(&place.name).or_else(bare) {
        return Some(entry(piece.clone()));
    }
    let (tensor, part, parts) = match place.part {
        Part::ExpertGate => ("gate_up_proj", 0, 2),
        Part::ExpertUp => ("gate_up_proj", 1, 2),
        Part::ExpertDown => ("down_proj", 0, 1),
        Part::Head => return stored.get("lm_head.weight").cloned().map(entry),
        // Transformers 5 calls the router's module so in every family.
        Part::Router => {
            let name = format!("{}.{}.mlp.gate.weight", config.family.layers, place.layer);
            return stored.get(&name).cloned().map(entry);
        }
        _ => return None,
    };
    let fused = stored.get(&format!("{}.{}.mlp.experts.{tensor}", config.family.layers, place.layer))?;
    let experts = config.experts.as_ref().map_or(0, |experts| experts.count);
    share(fused, place.copy * parts + part, experts * parts).map(entry)
}

fn in_gguf(config: &ModelConfig, stored: &IndexMap<String, Piece>, place: &Place) -> Option<Entry> {
    let whole = |split: bool| {
        let spot = gguf_names::spot(config, place, split);
        let pieces: Option<Vec<Piece>> = spot.names.iter().map(|name| stored.get(name).cloned()).collect();
        Some((spot, pieces?))
    };
    let (spot, pieces) = whole(false).or_else(|| whole(true))?;
    let pieces = match spot.share {
        Some((index, count)) => vec![share(&pieces[0], index, count)?],
        None => pieces,
    };
    let excess = if spot.plus_one { 1.0 } else { 0.0 };
    let shape = place.shape.clone();
    Some(Entry { shape, pieces, order: spot.order, transposed: false, excess, quantised: None })
}

/// The `index`-th of `count` equal shares of a tensor's rows, all dimensions but the last counted as rows.
fn share(whole: &Piece, index: usize, count: usize) -> Option<Piece> {
    let width = *whole.shape.last()?;
    let rows = whole.shape.iter().product::<usize>() / width.max(1);
    if count == 0 || !rows.is_multiple_of(count) {
        return None;
    }
    let (rows, len) = (rows / count, whole.len / count);
    let shape = if rows == 1 { vec![width] } else { vec![rows, width] };
    Some(Piece { shape, offset: whole.offset + index * len, len, ..whole.clone() })
}

/// A row-major matrix of `columns` columns, turned.
pub(crate) fn transposed<T: Copy + Send + Sync>(values: &[T], columns: usize) -> Vec<T> {
    let rows = values.len() / columns.max(1);
    let mut out = values.to_vec();
    out.par_chunks_mut(rows.max(1)).enumerate().for_each(|(column, out)| {
        out.iter_mut().enumerate().for_each(|(row, value)| *value = values[row * columns + column]);
    });
    out
}

fn float_type(dtype: Dtype) -> Option<TensorType> {
    match dtype {
        Dtype::F32 => Some(TensorType::F32),
        Dtype::F16 => Some(TensorType::F16),
        Dtype::BF16 => Some(TensorType::Bf16),
        _ => None,
    }
}
