//! A read-only memory-mapped file whose pages can be handed back.
//!
//! The only place in this crate that may use `unsafe`. Model files are inputs nobody writes while they are read; a file
//! that another process shortens meanwhile would fault, which is the price every mapping reader pays.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::FilesError;

#[derive(Debug)]
pub(crate) struct Mapped {
    pub path: PathBuf,
    map: Mmap,
}

impl Mapped {
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        let file = File::open(path).map_err(FilesError::read(path))?;
        // SAFETY: the mapping is read-only and private to this process; see the module head for concurrent writers.
        let map = unsafe { Mmap::map(&file) }.map_err(FilesError::read(path))?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Asks the system to read a range into its page cache, where it does not count as this process's memory.
    pub fn fetch(&self, offset: usize, len: usize) {
        // Not to be served only costs time.
        let _ = self.map.advise_range(Advice::WillNeed, offset, len);
    }

    /// Drops the pages of a range from resident memory; the next read fetches them from the file again.
    pub fn release(&self, offset: usize, len: usize) {
        // SAFETY: the mapping is backed by a file and read-only, so dropped pages come back unchanged. Failure to drop
        // only costs memory, so the result is of no interest.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
    }
}
