//! Safetensors files of a folder, written front to back: shards, their headers, and the index over several.
//!
//! Bytes come from the caller, tensor after tensor in the order announced; nothing is held but the header.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};

use crate::FilesError;
use crate::write_folder::write_json;

/// One tensor as safetensors describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    pub name: String,
    /// Safetensors' name of the element type, such as `BF16` or `U8`.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: usize,
}

/// Writes a folder's weight files.
#[derive(Debug)]
pub struct ShardWriter {
    folder: PathBuf,
    shards: Vec<Vec<StoredTensor>>,
    shard: usize,
    next: usize,
    /// Bytes of the next tensor that are written.
    written: usize,
    file: Option<BufWriter<File>>,
}

impl ShardWriter {
    /// Plans the shards of `tensors`. A shard holds at most `max_bytes` unless a single tensor is larger.
    pub fn create(folder: &Path, tensors: Vec<StoredTensor>, max_bytes: u64) -> Result<Self, FilesError> {
        std::fs::create_dir_all(folder).map_err(FilesError::write(folder))?;
        let mut shards: Vec<Vec<StoredTensor>> = vec![Vec::new()];
        let mut filled = 0u64;
        for tensor in tensors {
            let size = tensor.bytes as u64;
            if filled > 0 && filled + size > max_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += size;
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        Ok(Self { folder: folder.to_owned(), shards, shard: 0, next: 0, written: 0, file: None })
    }

    /// The tensor whose turn it is.
    pub fn awaited(&self) -> Option<&StoredTensor> {
        self.shards.get(self.shard).and_then(|shard| shard.get(self.next))
    }

    /// Writes the next tensor; name and length must be the announced ones.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), FilesError> {
        self.expect(name, bytes.len())?;
        self.write_piece(name, bytes)
    }

    /// An error unless the next tensor is this one.
    pub fn expect(&self, name: &str, bytes: usize) -> Result<(), FilesError> {
        let next = self.awaited().filter(|tensor| tensor.name == name && tensor.bytes == bytes && self.written == 0);
        next.map(|_| ()).ok_or_else(|| self.out_of_turn(name))
    }

    /// Writes more of the next tensor, whose turn ends with its last byte.
    pub fn write_piece(&mut self, name: &str, bytes: &[u8]) -> Result<(), FilesError> {
        let path = self.path(self.shard);
        let Some(whole) = self.awaited().filter(|tensor| tensor.name == name).map(|tensor| tensor.bytes) else {
            return Err(self.out_of_turn(name));
        };
        if self.written + bytes.len() > whole {
            return Err(self.out_of_turn(name));
        }
        if self.file.is_none() {
            self.file = Some(self.start(&path)?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes).map_err(FilesError::write(&path))?;
        }
        self.written += bytes.len();
        if self.written < whole {
            return Ok(());
        }
        self.written = 0;
        self.next += 1;
        if self.next == self.shards[self.shard].len() {
            self.end(&path)?;
            self.shard += 1;
            self.next = 0;
        }
        Ok(())
    }

    /// Writes the index where there are several shards.
    pub fn finish(self) -> Result<(), FilesError> {
        if let Some(tensor) = self.awaited() {
            let (name, what) = (tensor.name.clone(), "was never written".to_owned());
            return Err(FilesError::Tensor { path: self.folder, name, what });
        }
        if self.shards.len() < 2 {
            return Ok(());
        }
        let mut map = Map::new();
        let mut total = 0;
        for (shard, tensors) in self.shards.iter().enumerate() {
            let file = self.path(shard);
            for tensor in tensors {
                total += tensor.bytes;
                map.insert(tensor.name.clone(), json!(file.file_name().and_then(|f| f.to_str())));
            }
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        write_json(&self.folder.join("model.safetensors.index.json"), &index)
    }

    fn out_of_turn(&self, name: &str) -> FilesError {
        let what = "was written out of turn".to_owned();
        FilesError::Tensor { path: self.path(self.shard), name: name.to_owned(), what }
    }

    fn path(&self, shard: usize) -> PathBuf {
        let count = self.shards.len();
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        };
        self.folder.join(name)
    }

    /// Creates the current shard with its header.
    fn start(&self, path: &Path) -> Result<BufWriter<File>, FilesError> {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut at = 0;
        for tensor in &self.shards[self.shard] {
            let end = at + tensor.bytes;
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]});
            header.insert(tensor.name.clone(), entry);
            at = end;
        }
        let mut text = Json::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(FilesError::write(path))?);
        file.write_all(&(text.len() as u64).to_le_bytes()).map_err(FilesError::write(path))?;
        file.write_all(&text).map_err(FilesError::write(path))?;
        Ok(file)
    }

    fn end(&mut self, path: &Path) -> Result<(), FilesError> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let file = file.into_inner().map_err(|e| FilesError::write(path)(e.into_error()))?;
        file.sync_all().map_err(FilesError::write(path))
    }
}
