//! Importance matrices: for each column of a weight, the mean square of what the model multiplies it with. They tell the
//! encoders of small types which values must be kept best.
//!
//! Files are llama.cpp's (GGUF of type `imatrix`): sums of squares and counts by GGUF tensor name, a row for each expert.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use indexmap::IndexMap;

use crate::blocks::TensorType;
use crate::gguf::{Gguf, Value};
use crate::parts::Place;
use crate::write_gguf::{Listed, header, padded};
use crate::{FilesError, ModelConfig, gguf_names};

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// GGUF type code of texts, and of what llama.cpp calls these files.
const STRING: u32 = 8;
const TYPE: &str = "imatrix";

/// Sums of squared inputs of one weight, row by row for stacked experts.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    /// `[experts, inputs]`
    sums: Vec<f32>,
    /// Rows that were summed, for each expert.
    counts: Vec<f32>,
}

/// What was measured of a model's weights, by GGUF tensor name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    entries: IndexMap<String, Sums>,
    /// Tokens that went through the model together, and how often that was.
    chunk_size: u32,
    chunks: u32,
}

impl Importance {
    /// An empty one, for rows that go through the model in chunks.
    pub fn new(chunk_size: u32, chunks: u32) -> Self {
        Self { entries: IndexMap::new(), chunk_size, chunks }
    }

    /// Files what was measured at `place`: the sum of squares of each input over `count` rows.
    pub fn add(&mut self, config: &ModelConfig, place: &Place, sums: &[f32], count: u64) {
        let spot = gguf_names::spot(config, place, gguf_names::is_split(config));
        let (index, copies) = spot.share.unwrap_or((0, 1));
        for name in spot.names {
            let entry = self.entries.entry(name).or_default();
            entry.sums.resize(copies * sums.len(), 0.0);
            entry.counts.resize(copies, 0.0);
            entry.sums[index * sums.len()..(index + 1) * sums.len()].copy_from_slice(sums);
            entry.counts[index] = count as f32;
        }
    }

    /// Weights that something is known of.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Chunks of rows behind it.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// The mean squares that were measured for the GGUF tensor `name`, one row for each expert.
    pub fn mean_squares(&self, name: &str) -> Option<Vec<f32>> {
        let entry = self.entries.get(name)?;
        self.of(name, entry.counts.len(), entry.sums.len() / entry.counts.len().max(1))
    }

    /// Mean squares for a tensor, `[experts, inputs]`, where it was measured. An expert that no row went to weighs all its
    /// inputs the same.
    pub(crate) fn of(&self, name: &str, experts: usize, inputs: usize) -> Option<Vec<f32>> {
        let entry = self.entries.get(name)?;
        if entry.counts.len() != experts || entry.sums.len() != experts * inputs {
            return None;
        }
        let rows = entry.sums.chunks(inputs.max(1)).zip(&entry.counts);
        let mean = |(sums, count): (&[f32], &f32)| match *count > 0.0 {
            true => sums.iter().map(|sum| sum / count).collect(),
            false => vec![1.0; inputs],
        };
        Some(rows.flat_map(mean).collect::<Vec<f32>>())
    }

    /// Reads a file of llama.cpp's or of [`Importance::write`].
    ///
    /// # Errors
    /// A file that is no importance matrix in GGUF, the older format included.
    pub fn read(path: &Path) -> Result<Self, FilesError> {
        let (gguf, mapped) = Gguf::open_mapped(path)?;
        if gguf.get("general.type").and_then(Value::as_str) != Some(TYPE) {
            let what =
                "it is no importance matrix; llama-imatrix writes one (in GGUF), and so does quantize.importance";
            return Err(FilesError::unsupported(path, what));
        }
        let number = |key: &str| gguf.get(key).and_then(Value::as_i64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let mut entries: IndexMap<String, Sums> = IndexMap::new();
        for tensor in &gguf.tensors {
            let mut values = vec![0.0; tensor.shape.iter().product()];
            tensor.dtype.decode(&mapped.bytes()[tensor.offset..tensor.offset + tensor.len], &mut values);
            if let Some(name) = tensor.name.strip_suffix(SUMS) {
                entries.entry(name.to_owned()).or_default().sums = values;
            } else if let Some(name) = tensor.name.strip_suffix(COUNTS) {
                entries.entry(name.to_owned()).or_default().counts = values;
            }
        }
        Ok(Self { entries, chunk_size: number("imatrix.chunk_size"), chunks: number("imatrix.chunk_count") })
    }

    /// Writes the file. Equal content gives equal bytes.
    pub fn write(&self, path: &Path) -> Result<(), FilesError> {
        let metadata: IndexMap<String, Value> = [
            ("general.type", Value::Str(TYPE.to_owned())),
            ("imatrix.datasets", Value::Array(STRING, vec![Value::Str("training rows".to_owned())])),
            ("imatrix.chunk_count", Value::U32(self.chunks)),
            ("imatrix.chunk_size", Value::U32(self.chunk_size)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .collect();
        let mut listed = Vec::new();
        for (name, entry) in &self.entries {
            let experts = entry.counts.len();
            let shape = vec![experts, entry.sums.len() / experts.max(1)];
            listed.push((Listed { name: format!("{name}{SUMS}"), shape, kind: TensorType::F32 }, &entry.sums));
            let shape = vec![experts, 1];
            listed.push((Listed { name: format!("{name}{COUNTS}"), shape, kind: TensorType::F32 }, &entry.counts));
        }
        let failed = |e| FilesError::write(path)(e);
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        let names: Vec<&Listed> = listed.iter().map(|(listed, _)| listed).collect();
        file.write_all(&header(&metadata, &names)).map_err(failed)?;
        for (_, values) in &listed {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&padded(bytes)).map_err(failed)?;
        }
        file.into_inner().map_err(|e| failed(e.into_error()))?.sync_all().map_err(failed)
    }
}
