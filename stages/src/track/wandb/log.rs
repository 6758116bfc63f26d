//! The file of a run: LevelDB's log of blocks, behind a head of its own.
//!
//! Format: <https://github.com/google/leveldb/blob/main/doc/log_format.md>. Two things differ: the file begins with a head that
//! belongs to the first block, and the checksum is the plain CRC-32 of zlib over a fragment's kind and its bytes.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use flate2::Crc;

use super::failed;
use crate::track::TrackError;

/// Name, magic number and version.
const HEAD: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];
const BLOCK: usize = 32768;
/// Checksum, length and kind before each fragment.
const FRAGMENT_HEAD: usize = 7;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// A file that records are added to.
pub(super) struct Log {
    file: File,
    path: PathBuf,
    /// Bytes in the block that is being filled.
    filled: usize,
}

impl Log {
    pub fn create(path: PathBuf) -> Result<Log, TrackError> {
        let mut file = File::create(&path).map_err(failed(&path))?;
        file.write_all(&HEAD).map_err(failed(&path))?;
        Ok(Log { file, path, filled: HEAD.len() })
    }

    /// Adds records with one write.
    pub fn append(&mut self, records: &[Vec<u8>]) -> Result<(), TrackError> {
        let mut out = Vec::new();
        records.iter().for_each(|record| self.frame(record, &mut out));
        self.file.write_all(&out).and_then(|()| self.file.flush()).map_err(failed(&self.path))
    }

    pub fn sync(self) -> Result<(), TrackError> {
        self.file.sync_all().map_err(failed(&self.path))
    }

    /// A record as fragments, none of which crosses a block's end.
    fn frame(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let (mut rest, mut is_first) = (record, true);
        loop {
            let room = BLOCK - self.filled;
            if room < FRAGMENT_HEAD {
                out.resize(out.len() + room, 0);
                self.filled = 0;
                continue;
            }
            let (part, left) = rest.split_at(rest.len().min(room - FRAGMENT_HEAD));
            let kind = match (is_first, left.is_empty()) {
                (true, true) => FULL,
                (true, false) => FIRST,
                (false, false) => MIDDLE,
                (false, true) => LAST,
            };
            let mut checksum = Crc::new();
            checksum.update(&[kind]);
            checksum.update(part);
            out.extend(checksum.sum().to_le_bytes());
            // A block is shorter than 65536.
            out.extend((part.len() as u16).to_le_bytes());
            out.push(kind);
            out.extend(part);
            self.filled = (self.filled + FRAGMENT_HEAD + part.len()) % BLOCK;
            if left.is_empty() {
                return;
            }
            (rest, is_first) = (left, false);
        }
    }
}
