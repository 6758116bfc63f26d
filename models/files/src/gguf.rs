//! The GGUF container, versions 2 and 3: metadata and the table of tensors. No tensor is read here.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;

use crate::FilesError;
use crate::blocks::TensorType;
use crate::mapped::Mapped;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    /// Element type code and elements.
    Array(u32, Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// One tensor's place. `shape` is in row-major order (slowest first), the reverse of the file's.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: TensorType,
    /// From the start of the file.
    pub offset: usize,
    pub len: usize,
}

/// A GGUF file's metadata and tensor table.
#[derive(Debug)]
pub struct Gguf {
    pub path: PathBuf,
    pub metadata: IndexMap<String, Value>,
    pub tensors: Vec<GgufTensor>,
    /// Divisors of rotary frequencies, which are kept as small tensors, by tensor name.
    pub rope_factors: IndexMap<String, Vec<f32>>,
}

impl Value {
    /// The code of this value's type in the file.
    pub fn code(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Str(_) => 8,
            Self::Array(..) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Any integer, as far as it fits.
    pub fn as_i64(&self) -> Option<i64> {
        Some(match self {
            Self::U8(v) => i64::from(*v),
            Self::I8(v) => i64::from(*v),
            Self::U16(v) => i64::from(*v),
            Self::I16(v) => i64::from(*v),
            Self::U32(v) => i64::from(*v),
            Self::I32(v) => i64::from(*v),
            Self::U64(v) => i64::try_from(*v).ok()?,
            Self::I64(v) => *v,
            _ => return None,
        })
    }

    /// A float by its shortest decimal: 1e-5 stored as f32 is read as 1e-5, which is what was meant.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::F32(v) => v.to_string().parse().ok(),
            Self::F64(v) => Some(*v),
            other => other.as_i64().map(|v| v as f64),
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(s) = self { Some(s) } else { None }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(b) = self { Some(*b) } else { None }
    }

    pub fn as_array(&self) -> Option<&[Value]> {
        if let Self::Array(_, v) = self { Some(v) } else { None }
    }
}

/// What was opened last. Configuration, tokenizer and vocabulary are asked one after the other, and reading a hundred
/// thousand token texts each time would be most of what a fully cached run does.
static LAST: Mutex<Option<(Identity, Arc<Gguf>)>> = Mutex::new(None);

/// A file as it is now: a replaced or rewritten one is another.
#[derive(PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl Gguf {
    /// Reads metadata and table, or takes them from memory if this file was the last one opened and is unchanged.
    pub fn open(path: &Path) -> Result<Arc<Self>, FilesError> {
        let identity = Identity::of(path);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some((known, gguf)), Some(identity)) = (last.as_ref(), &identity)
            && known == identity
        {
            return Ok(gguf.clone());
        }
        let gguf = Arc::new(Self::open_mapped(path)?.0);
        *last = identity.map(|identity| (identity, gguf.clone()));
        Ok(gguf)
    }

    pub(crate) fn open_mapped(path: &Path) -> Result<(Self, Mapped), FilesError> {
        let mapped = Mapped::open(path)?;
        let mut cursor = Cursor { path, bytes: mapped.bytes(), at: 0, version: 3 };
        let gguf = cursor.file()?;
        Ok((gguf, mapped))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The metadata's architecture name, such as `llama`.
    pub fn architecture(&self) -> &str {
        self.get("general.architecture").and_then(Value::as_str).unwrap_or("")
    }

    /// A key under the architecture's prefix, such as `llama.block_count`.
    pub fn arch(&self, key: &str) -> Option<&Value> {
        self.get(&format!("{}.{key}", self.architecture()))
    }
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    version: u32,
}

impl Cursor<'_> {
    fn file(&mut self) -> Result<Gguf, FilesError> {
        if self.bytes.len() < 4 || &self.bytes[..4] != b"GGUF" {
            return Err(FilesError::damaged(self.path, "it does not start with GGUF, so it is no GGUF file"));
        }
        self.at = 4;
        self.version = self.u32()?;
        if !(2..=3).contains(&self.version) {
            let what = format!("GGUF version {} is not supported (2 and 3 are); convert the model again", self.version);
            return Err(FilesError::unsupported(self.path, what));
        }
        let tensor_count = self.size()?;
        let key_count = self.size()?;
        let mut metadata = IndexMap::new();
        for _ in 0..key_count {
            let key = self.string()?;
            let code = self.u32()?;
            let value = self.value(code)?;
            metadata.insert(key, value);
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(self.tensor()?);
        }
        let alignment = metadata.get("general.alignment").and_then(Value::as_i64).unwrap_or(32);
        let alignment = usize::try_from(alignment)
            .ok()
            .filter(|a| a.is_power_of_two())
            .ok_or_else(|| FilesError::damaged(self.path, "general.alignment is not a power of two"))?;
        let start = self.at.next_multiple_of(alignment);
        self.place(&mut tensors, start)?;
        let (factors, tensors) =
            tensors.into_iter().partition::<Vec<_>, _>(|t: &GgufTensor| t.name.starts_with("rope_f"));
        let decoded = factors.into_iter().map(|t| {
            let mut values = vec![0.0; t.shape.iter().product()];
            t.dtype.decode(&self.bytes[t.offset..t.offset + t.len], &mut values);
            (t.name, values)
        });
        let rope_factors = decoded.collect();
        Ok(Gguf { path: self.path.to_owned(), metadata, tensors, rope_factors })
    }

    /// Turns offsets from the data section's start into offsets in the file, and proves that every tensor is inside.
    fn place(&self, tensors: &mut [GgufTensor], start: usize) -> Result<(), FilesError> {
        let mut end = start;
        for t in tensors {
            t.offset = t.offset.checked_add(start).ok_or_else(|| self.truncated())?;
            end = end.max(t.offset.checked_add(t.len).ok_or_else(|| self.truncated())?);
        }
        if end > self.bytes.len() {
            let what = format!(
                "it is truncated: its tensors need {end} bytes, but the file has {} (an interrupted download?)",
                self.bytes.len()
            );
            return Err(FilesError::damaged(self.path, what));
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<GgufTensor, FilesError> {
        let name = self.string()?;
        let rank = self.u32()? as usize;
        if rank > 8 {
            return Err(FilesError::damaged(self.path, format!("tensor {name} has {rank} dimensions")));
        }
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            shape.push(self.size()?);
        }
        shape.reverse();
        let code = self.u32()?;
        let offset = self.size()?;
        let dtype = TensorType::from_code(code).ok_or_else(|| {
            let what =
                format!("tensor {name} has GGUF type {code}, which is not supported; use an f16, q8_0 or k-quant file");
            FilesError::unsupported(self.path, what)
        })?;
        let elements = shape.iter().try_fold(1usize, |a, b| a.checked_mul(*b)).ok_or_else(|| self.truncated())?;
        let (block, _) = dtype.block();
        if shape.last().is_none_or(|row| row % block != 0) {
            let what = format!("tensor {name} has rows that are no multiple of its block of {block}");
            return Err(FilesError::damaged(self.path, what));
        }
        Ok(GgufTensor { name, shape, dtype, offset, len: dtype.bytes(elements) })
    }

    fn value(&mut self, code: u32) -> Result<Value, FilesError> {
        Ok(match code {
            0 => Value::U8(self.take::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.take()?)),
            2 => Value::U16(u16::from_le_bytes(self.take()?)),
            3 => Value::I16(i16::from_le_bytes(self.take()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.take()?)),
            6 => Value::F32(f32::from_le_bytes(self.take()?)),
            7 => Value::Bool(self.take::<1>()?[0] != 0),
            8 => Value::Str(self.string()?),
            9 => self.array()?,
            10 => Value::U64(u64::from_le_bytes(self.take()?)),
            11 => Value::I64(i64::from_le_bytes(self.take()?)),
            12 => Value::F64(f64::from_le_bytes(self.take()?)),
            _ => {
                return Err(FilesError::damaged(self.path, format!("unknown metadata type {code}")));
            }
        })
    }

    fn array(&mut self) -> Result<Value, FilesError> {
        let code = self.u32()?;
        if code == 9 {
            return Err(FilesError::unsupported(self.path, "nested metadata arrays are not supported"));
        }
        let len = self.size()?;
        // Every element takes at least a byte, so a length beyond the file is a lie that must not allocate.
        if len > self.bytes.len() - self.at {
            return Err(self.truncated());
        }
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.value(code)?);
        }
        Ok(Value::Array(code, items))
    }

    fn string(&mut self) -> Result<String, FilesError> {
        let len = self.size()?;
        let end = self.at.checked_add(len).filter(|e| *e <= self.bytes.len()).ok_or_else(|| self.truncated())?;
        let text = String::from_utf8_lossy(&self.bytes[self.at..end]).into_owned();
        self.at = end;
        Ok(text)
    }

    fn u32(&mut self) -> Result<u32, FilesError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn size(&mut self) -> Result<usize, FilesError> {
        usize::try_from(u64::from_le_bytes(self.take()?)).map_err(|_| self.truncated())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], FilesError> {
        let end = self.at + N;
        let bytes = self.bytes.get(self.at..end).and_then(|b| b.try_into().ok()).ok_or_else(|| self.truncated())?;
        self.at = end;
        Ok(bytes)
    }

    fn truncated(&self) -> FilesError {
        let what = format!("it is truncated or corrupt in its header near byte {} (an interrupted download?)", self.at);
        FilesError::damaged(self.path, what)
    }
}
