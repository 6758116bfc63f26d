//! Source files as a stream of raw rows, whatever the container: JSON, JSONL, CSV, TSV, Parquet, Arrow, text or Markdown,
//! plain or packed.
//!
//! Bytes are hashed as they are read. A file is never held whole: readers yield chunks of a few megabytes. Rows are cut
//! here and parsed elsewhere, in parallel; nothing here knows what a row means. A name is believed until the bytes say
//! otherwise.

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
    /// One row a file, its only column `text`.
    Markdown,
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

/// Whether the reader wants more rows. The rest of the file is hashed all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    More,
    Enough,
}

/// Takes chunks; an error stops the reading.
pub type Take<'a> = dyn FnMut(Rows) -> Result<Flow, TaskError> + 'a;

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
            Some("txt" | "text") => FileFormat::Text,
            Some("md" | "markdown") => FileFormat::Markdown,
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
    let mut magic = [0u8; 8];
    let seen = read_full(&mut file, &mut magic).map_err(|e| cannot_read(path, e))?;
    file.seek(SeekFrom::Start(0)).map_err(|e| cannot_read(path, e))?;
    let magic = &magic[..seen];
    if let Some(what) = foreign(magic) {
        return Err(TaskError::Input(format!("{}: is {what}", path.display())));
    }
    let mut hashing = Hashing { inner: file, hasher: blake3::Hasher::new() };
    match table_of(magic) {
        Some(table) => {
            let digest = Digest::of_reader(&mut hashing.inner).map_err(|e| cannot_read(path, e))?;
            table::read_table(hashing.inner, table, path, take)?;
            return Ok(digest);
        }
        None => read_stream(&mut hashing, magic, path, format, take)?,
    }
    // Trailing bytes that a decoder had no need of are still part of the file.
    io::copy(&mut hashing, &mut io::sink()).map_err(|e| cannot_read(path, e))?;
    Ok(hashing.digest())
}

/// Containers that are read by their places, told by their first bytes.
fn table_of(magic: &[u8]) -> Option<FileFormat> {
    match magic {
        [b'P', b'A', b'R', b'1', ..] => Some(FileFormat::Parquet),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] => Some(FileFormat::Arrow),
        // The stream form begins with a continuation mark and a length.
        [0xff, 0xff, 0xff, 0xff, _, _, _, 0, ..] => Some(FileFormat::Arrow),
        _ => None,
    }
}

/// What is no data file, and what to do with it.
fn foreign(magic: &[u8]) -> Option<&'static str> {
    match magic {
        [b'P', b'K', 3, 4, ..] => Some("a zip archive; unpack it, and name the files in it"),
        [b'B', b'Z', b'h', ..] => Some("packed with bzip2; unpack it, or pack it with gzip or zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some("packed with xz; unpack it, or pack it with gzip or zstd"),
        [b'%', b'P', b'D', b'F', ..] => Some("a PDF document; take its text out of it first"),
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' '] => {
            Some("a pointer that git-lfs left in place of the file; fetch the file itself with `git lfs pull`")
        }
        _ => None,
    }
}

/// Text of any kind, and tables within a packed file.
fn read_stream(
    file: &mut Hashing,
    magic: &[u8],
    path: &Path,
    format: FileFormat,
    take: &mut Take<'_>,
) -> Result<(), TaskError> {
    let (packed, reader): (bool, Box<dyn Read + '_>) = match magic {
        [0x1f, 0x8b, ..] => {
            (true, Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file))))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => (true, Box::new(zstd::Decoder::new(file).map_err(|e| cannot_read(path, e))?)),
        _ => (false, Box::new(file)),
    };
    let mut reader = BufReader::with_capacity(1 << 20, reader);
    let head = reader.fill_buf().map_err(|e| cut_off(path, 0, &e))?;
    if packed && let Some(what) = foreign(head) {
        return Err(TaskError::Input(format!("{}: holds {what}", path.display())));
    }
    if let Some(table) = table_of(head) {
        // A table's index stands at its end: unpacked, it is read from a file of its own.
        let mut unpacked = tempfile::tempfile().map_err(|e| cannot_read(path, e))?;
        io::copy(&mut reader, &mut unpacked).map_err(|e| cut_off(path, 0, &e))?;
        return table::read_table(unpacked, table, path, take);
    }
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return Err(TaskError::Input(format!("{}: is UTF-16; save it as UTF-8", path.display())));
    }
    let bom = if head.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    let format = settle(format, &head[bom..], path)?;
    reader.consume(bom);
    match format {
        FileFormat::Jsonl => read_lines(&mut reader, path, take),
        FileFormat::Json => Elements::new(path).read(&mut reader, take),
        FileFormat::Csv => table::read_csv(&mut reader, b',', path, take),
        FileFormat::Tsv => table::read_csv(&mut reader, b'\t', path, take),
        FileFormat::Text => read_plain(&mut reader, path, take),
        FileFormat::Markdown => read_document(&mut reader, path, take),
        FileFormat::Parquet | FileFormat::Arrow | FileFormat::Unknown => Err(unknown(path, format)),
    }
}

/// `.json` files often hold JSONL, a table may have been saved under another format's name, and a name may promise nothing:
/// the first bytes decide where they can, and a line that is a whole object means lines.
fn settle(format: FileFormat, head: &[u8], path: &Path) -> Result<FileFormat, TaskError> {
    let line = head.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let line = line.trim_ascii();
    // The first line may be longer than what was read so far: then it is cut, and only its start is known.
    let whole = || serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok();
    let json = FileFormat::of_bytes(head) == Some(FileFormat::Json);
    let format = match format {
        FileFormat::Csv | FileFormat::Tsv if json && line.starts_with(b"{\"") && whole() => FileFormat::Json,
        FileFormat::Unknown | FileFormat::Parquet | FileFormat::Arrow => {
            FileFormat::of_bytes(head).ok_or_else(|| unknown(path, format))?
        }
        FileFormat::Jsonl if json && starts_array(head) => FileFormat::Json,
        known => known,
    };
    if format == FileFormat::Json && line.starts_with(b"{") && line.len() > 1 && (whole() || !head.contains(&b'\n')) {
        return Ok(FileFormat::Jsonl);
    }
    Ok(format)
}

/// An array that opens before the first line ends in an object: not a JSONL file with a list on its first line.
fn starts_array(head: &[u8]) -> bool {
    let rest = head.trim_ascii_start();
    rest.first() == Some(&b'[') && matches!(rest[1..].trim_ascii_start().first(), Some(b'{' | b']') | None)
}

/// One row a line; empty lines are counted and skipped.
fn read_lines(reader: &mut dyn BufRead, path: &Path, take: &mut Take<'_>) -> Result<(), TaskError> {
    let mut lines = Blocks::default();
    while let Some(bytes) = lines.next(reader).map_err(|e| cut_off(path, lines.line, &e))? {
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
        if take(Rows::Json { bytes, spans })? == Flow::Enough {
            break;
        }
    }
    Ok(())
}

fn read_plain(reader: &mut dyn BufRead, path: &Path, take: &mut Take<'_>) -> Result<(), TaskError> {
    let mut lines = Blocks::default();
    while let Some(bytes) = lines.next(reader).map_err(|e| cut_off(path, lines.line, &e))? {
        let mut rows = Vec::new();
        for line in bytes.strip_suffix(b"\n").unwrap_or(&bytes).split(|&byte| byte == b'\n') {
            lines.line += 1;
            let text = std::str::from_utf8(line).map_err(|e| not_utf8(path, lines.line, &e))?;
            let text = text.strip_suffix('\r').unwrap_or(text);
            if !text.trim().is_empty() {
                rows.push((lines.line, text_row(text)));
            }
        }
        if take(Rows::Values(rows))? == Flow::Enough {
            break;
        }
    }
    Ok(())
}

/// The whole file as one row.
fn read_document(reader: &mut dyn BufRead, path: &Path, take: &mut Take<'_>) -> Result<(), TaskError> {
    let mut bytes = Vec::new();
    reader.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes).map_err(|e| cut_off(path, 0, &e))?;
    if bytes.len() as u64 > LARGEST_DOCUMENT {
        let size = LARGEST_DOCUMENT >> 20;
        return Err(TaskError::Input(format!(
            "{}: is a document of more than {size} MB, which is read as one row; cut it, or name it .txt to have a row a line",
            path.display()
        )));
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() as u64 + 1;
        bad_row(path, line, "not UTF-8; save the file as UTF-8")
    })?;
    if !text.trim().is_empty() {
        take(Rows::Values(vec![(1, text_row(text))]))?;
    }
    Ok(())
}

const LARGEST_DOCUMENT: u64 = 256 << 20;

fn text_row(text: &str) -> Map<String, Value> {
    Map::from_iter([("text".to_string(), Value::from(text))])
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

/// Packed data that ends too soon, or is no longer what was packed.
pub fn cut_off(path: &Path, line: u64, error: &io::Error) -> TaskError {
    let after = if line > 0 { format!(" after line {line}") } else { String::new() };
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            let why = "the packed data ends too soon; is the file cut off? Copy or download it again";
            TaskError::Input(format!("{}: cannot be read{after}: {why}", path.display()))
        }
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other => {
            let why = format!("the packed data is damaged ({error}); copy or download it again");
            TaskError::Input(format!("{}: cannot be read{after}: {why}", path.display()))
        }
        _ => cannot_read(path, error),
    }
}

fn unknown(path: &Path, format: FileFormat) -> TaskError {
    let path = path.display();
    TaskError::Input(match format {
        FileFormat::Parquet => {
            format!("{path}: is named as Parquet, and does not begin as Parquet files do; is it cut off?")
        }
        FileFormat::Arrow => format!("{path}: is named as Arrow, and does not begin as Arrow files do; is it cut off?"),
        _ => format!(
            "{path}: its name and first bytes do not say what format it has; set `ds_type` to json, jsonl, csv, tsv, \
             parquet, arrow or text"
        ),
    })
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
