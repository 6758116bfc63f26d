//! Source files as a stream of raw rows, whatever the container: JSON, JSONL, CSV, TSV, Parquet or text, plain or packed.
//!
//! Bytes are hashed as they are read. A file is never held whole: readers yield chunks of a few megabytes. Rows are cut
//! here and parsed elsewhere, in parallel; nothing here knows what a row means.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use pipe_engine::digest::Digest;
use pipe_engine::task::TaskError;
use serde::Serialize;
use serde_json::{Map, Value};

use super::elements::Elements;
use super::table;

/// How a source file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// An array of rows, or rows one after another with any white space between.
    Json,
    /// One row a line.
    Jsonl,
    Csv,
    Tsv,
    Parquet,
    /// Arrow IPC, file or stream.
    Arrow,
    /// One row a line, its only column `text`.
    Text,
    /// To be told from the first bytes.
    Unknown,
}

/// Rows as they were cut from the file, with the place of each.
pub enum Rows {
    /// JSON texts within `bytes`.
    Json {
        bytes: Vec<u8>,
        spans: Vec<Span>,
    },
    Values(Vec<(u64, Map<String, Value>)>),
}

/// A row within a chunk's bytes. `place` counts lines (JSONL, CSV, text) or rows (JSON, Parquet) from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub end: usize,
    pub place: u64,
}

/// Takes chunks; an error stops the reading.
pub type Take<'a> = dyn FnMut(Rows) -> Result<(), TaskError> + 'a;

/// About how much source text a chunk holds.
pub const CHUNK_BYTES: usize = 4 << 20;

impl FileFormat {
    /// What the file's name promises; the extension of the packed file inside a `.gz` or `.zst`.
    pub fn of_path(path: &Path) -> FileFormat {
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
        match name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("json") => FileFormat::Json,
            Some("jsonl" | "ndjson") => FileFormat::Jsonl,
            Some("csv") => FileFormat::Csv,
            Some("tsv" | "tab") => FileFormat::Tsv,
            Some("parquet" | "pq") => FileFormat::Parquet,
            Some("arrow" | "feather" | "ipc") => FileFormat::Arrow,
            Some("txt" | "text" | "md") => FileFormat::Text,
            _ => FileFormat::Unknown,
        }
    }

    /// The format that `ds_type` names.
    pub fn of_name(name: &str) -> Option<FileFormat> {
        Some(match name {
            "json" => FileFormat::Json,
            "jsonl" => FileFormat::Jsonl,
            "csv" => FileFormat::Csv,
            "tsv" => FileFormat::Tsv,
            "parquet" => FileFormat::Parquet,
            "arrow" => FileFormat::Arrow,
            "text" | "txt" => FileFormat::Text,
            _ => return None,
        })
    }

    /// What the first bytes say.
    fn of_bytes(head: &[u8]) -> Option<FileFormat> {
        let first = head.iter().find(|byte| !byte.is_ascii_whitespace())?;
        match first {
            _ if head.starts_with(b"PAR1") => Some(FileFormat::Parquet),
            b'[' => Some(FileFormat::Json),
            b'{' => Some(FileFormat::Json),
            _ => None,
        }
    }
}

/// Reads `path` to its end, hands out its rows, and returns the digest of the bytes that were read.
pub fn read(path: &Path, format: FileFormat, take: &mut Take<'_>) -> Result<Digest, TaskError> {
    let mut file = File::open(path).map_err(|e| cannot_read(path, e))?;
    if file.metadata().map_err(|e| cannot_read(path, e))?.is_dir() {
        return Err(TaskError::Input(format!("{}: is a folder, and a data file was expected", path.display())));
    }
    let mut magic = [0u8; 4];
    let seen = read_full(&mut file, &mut magic).map_err(|e| cannot_read(path, e))?;
    file.seek(SeekFrom::Start(0)).map_err(|e| cannot_read(path, e))?;
    if format == FileFormat::Parquet || magic[..seen] == *b"PAR1" {
        return table::read_parquet(file, path, take);
    }
    if format == FileFormat::Arrow || magic[..seen] == *b"ARRO" {
        return table::read_arrow(file, path, take);
    }
    let mut hashing = Hashing { inner: file, hasher: blake3::Hasher::new() };
    read_text(&mut hashing, &magic[..seen], path, format, take)?;
    // Trailing bytes that a decoder had no need of are still part of the file.
    io::copy(&mut hashing, &mut io::sink()).map_err(|e| cannot_read(path, e))?;
    Ok(hashing.digest())
}

fn read_text(
    file: &mut Hashing,
    magic: &[u8],
    path: &Path,
    format: FileFormat,
    take: &mut Take<'_>,
) -> Result<(), TaskError> {
    let reader: Box<dyn Read + '_> = match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(file).map_err(|e| cannot_read(path, e))?),
        _ => Box::new(file),
    };
    let mut reader = BufReader::with_capacity(1 << 20, reader);
    let head = reader.fill_buf().map_err(|e| cannot_read(path, e))?;
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return Err(TaskError::Input(format!("{}: is UTF-16; save it as UTF-8", path.display())));
    }
    let bom = if head.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let head = &head[bom..];
    let format = settle(format, head, path)?;
    reader.consume(bom);
    match format {
        FileFormat::Jsonl => read_lines(&mut reader, path, take),
        FileFormat::Json => Elements::new(path).read(&mut reader, take),
        FileFormat::Csv => table::read_csv(&mut reader, b',', path, take),
        FileFormat::Tsv => table::read_csv(&mut reader, b'\t', path, take),
        FileFormat::Text => read_plain(&mut reader, path, take),
        FileFormat::Parquet | FileFormat::Arrow | FileFormat::Unknown => Err(unknown(path)),
    }
}

/// `.json` files often hold JSONL, and a name may promise nothing: the first bytes decide between the two, and a line
/// that is a whole object means lines.
fn settle(format: FileFormat, head: &[u8], path: &Path) -> Result<FileFormat, TaskError> {
    let format = match format {
        FileFormat::Unknown => FileFormat::of_bytes(head).ok_or_else(|| unknown(path))?,
        FileFormat::Jsonl if FileFormat::of_bytes(head) == Some(FileFormat::Json) && starts_array(head) => {
            FileFormat::Json
        }
        known => known,
    };
    if format == FileFormat::Json {
        let mut lines = head.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let first = lines.next().unwrap_or_default().trim_ascii();
        // The first line may be longer than what was read so far: then it is cut, and only its start is known.
        let whole = serde_json::from_slice::<serde::de::IgnoredAny>(first).is_ok();
        if first.starts_with(b"{") && first.len() > 1 && (whole || !head.contains(&b'\n')) {
            return Ok(FileFormat::Jsonl);
        }
    }
    Ok(format)
}

/// An array that opens before the first line ends in an object: not a JSONL file with a list on its first line.
fn starts_array(head: &[u8]) -> bool {
    let rest = head.trim_ascii_start();
    rest.first() == Some(&b'[') && matches!(rest[1..].trim_ascii_start().first(), Some(b'{') | None)
}

/// One row a line; empty lines are counted and skipped.
fn read_lines(reader: &mut dyn BufRead, path: &Path, take: &mut Take<'_>) -> Result<(), TaskError> {
    let mut lines = Blocks::default();
    while let Some(bytes) = lines.next(reader).map_err(|e| cannot_read(path, e))? {
        let mut spans = Vec::new();
        let mut start = 0;
        while start < bytes.len() {
            let end = memchr::memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at);
            lines.line += 1;
            if !bytes[start..end].trim_ascii().is_empty() {
                spans.push(Span { start, end, place: lines.line });
            }
            start = end + 1;
        }
        take(Rows::Json { bytes, spans })?;
    }
    Ok(())
}

fn read_plain(reader: &mut dyn BufRead, path: &Path, take: &mut Take<'_>) -> Result<(), TaskError> {
    let mut lines = Blocks::default();
    while let Some(bytes) = lines.next(reader).map_err(|e| cannot_read(path, e))? {
        let mut rows = Vec::new();
        for line in bytes.strip_suffix(b"\n").unwrap_or(&bytes).split(|&byte| byte == b'\n') {
            lines.line += 1;
            let text = std::str::from_utf8(line).map_err(|e| not_utf8(path, lines.line, &e))?;
            let text = text.strip_suffix('\r').unwrap_or(text);
            if !text.trim().is_empty() {
                rows.push((lines.line, Map::from_iter([("text".to_string(), Value::from(text))])));
            }
        }
        take(Rows::Values(rows))?;
    }
    Ok(())
}

/// Whole lines, a few megabytes at a time; a longer line comes in one piece.
#[derive(Default)]
struct Blocks {
    rest: Vec<u8>,
    line: u64,
    done: bool,
}

impl Blocks {
    fn next(&mut self, reader: &mut dyn BufRead) -> io::Result<Option<Vec<u8>>> {
        if self.done {
            return Ok(None);
        }
        let mut block = std::mem::take(&mut self.rest);
        let mut searched = 0;
        loop {
            let wanted = CHUNK_BYTES.max(block.len());
            block.reserve(wanted);
            let read = (&mut *reader).take(wanted as u64).read_to_end(&mut block)?;
            if read == 0 {
                self.done = true;
                return Ok((!block.is_empty()).then_some(block));
            }
            if let Some(at) = memchr::memrchr(b'\n', &block[searched..]) {
                self.rest = block.split_off(searched + at + 1);
                return Ok(Some(block));
            }
            searched = block.len();
        }
    }
}

/// Hashes what passes.
struct Hashing {
    inner: File,
    hasher: blake3::Hasher,
}

impl Hashing {
    fn digest(&self) -> Digest {
        self.hasher.finalize().into()
    }
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// `file: cannot be read: why`.
pub fn cannot_read(path: &Path, error: impl std::fmt::Display) -> TaskError {
    TaskError::Input(format!("{}: cannot be read: {error}", path.display()))
}

/// `file:row: why`.
pub fn bad_row(path: &Path, place: u64, why: impl std::fmt::Display) -> TaskError {
    TaskError::Input(format!("{}:{place}: {why}", path.display()))
}

fn not_utf8(path: &Path, place: u64, error: &std::str::Utf8Error) -> TaskError {
    bad_row(path, place, format!("not UTF-8 at byte {} of the row; save the file as UTF-8", error.valid_up_to() + 1))
}

fn unknown(path: &Path) -> TaskError {
    TaskError::Input(format!(
        "{}: its name and first bytes do not say what format it has; set `ds_type` to json, jsonl, csv, tsv, parquet, arrow or text",
        path.display()
    ))
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
