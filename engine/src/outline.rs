//! A coarse picture of a file, small enough to keep with a record, that shows later where a changed file first differs.
//!
//! It explains; it never decides. Two blocks in 65,536 may look alike, which costs an explanation some precision.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Blocks per file, whatever its size.
const BLOCKS: u64 = 512;
/// Larger files are described by their size alone: reading them again would cost more than it tells.
const LARGEST: u64 = 64 << 20;

/// Four hex digits per block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    block: usize,
    marks: String,
}

/// Where two versions of a file begin to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// 1-based lines of the newer file, first and last that the difference can begin in.
    pub lines: (usize, usize),
}

impl Outline {
    /// The outline of a file; `None` when it is too large, or gone.
    pub fn of(path: &Path) -> Option<Outline> {
        let bytes = read(path)?;
        let block = (bytes.len() as u64).div_ceil(BLOCKS).max(1) as usize;
        Some(Outline { block, marks: bytes.chunks(block).map(mark).collect() })
    }

    /// Where the file now at `path` first differs from the one this outline was made of.
    pub fn first_difference(&self, path: &Path) -> Option<Place> {
        let bytes = read(path)?;
        let mut old = self.marks.as_bytes().chunks(4);
        let is_equal = |chunk: &&[u8]| old.next().is_some_and(|old| old == mark(chunk).as_bytes());
        let equal = bytes.chunks(self.block).take_while(is_equal).count();
        let start = (equal * self.block).min(bytes.len());
        let end = (start + self.block).min(bytes.len());
        let line = |at: usize| bytes[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
        // A newline that ends the block ends the last line in it, and begins none.
        let last = if end > start && bytes[end - 1] == b'\n' { end - 1 } else { end };
        Some(Place { lines: (line(start), line(last)) })
    }
}

fn mark(chunk: &[u8]) -> String {
    Digest::of(chunk).to_string()[..4].to_string()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let metadata = fs::metadata(path).ok()?;
    (metadata.is_file() && metadata.len() <= LARGEST).then(|| fs::read(path).ok())?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place(before: &str, after: &str) -> (usize, usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        fs::write(&path, before).unwrap();
        let outline = Outline::of(&path).unwrap();
        fs::write(&path, after).unwrap();
        outline.first_difference(&path).unwrap().lines
    }

    #[test]
    fn the_first_difference_is_found_by_line() {
        let rows = |n: usize| (0..n).map(|i| format!("{{\"row\": {i:05}}}\n")).collect::<String>();
        let before = rows(2000);
        let (first, last) = place(&before, &before.replace("01234}", "0x234}"));
        assert!(first <= 1235 && 1235 <= last && last - first <= 8, "{first}-{last}");
        let (first, last) = place(&before, &rows(2001));
        assert!(first <= 2001 && 2001 <= last, "appended: {first}-{last}");
        let (first, _) = place(&before, &rows(1500));
        assert!((1490..=1501).contains(&first), "cut: {first}");
        assert_eq!(place("a\nb\n", "a\nc\n"), (2, 2));
        assert_eq!(place("", "a\n"), (1, 1));
    }
}
