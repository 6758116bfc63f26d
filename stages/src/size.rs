//! How many rows and tokens a data set has, guessed from a file's size and its first rows: for plans, before it is read.
//!
//! Reads a small part of local files and never the network. Every number from here is an estimate, and is shown as one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::project::Project;
use crate::recipe::Dataset;
use crate::recipe::dataset::is_builder;
use crate::rows::{batches, list_column, row_count};

/// Bytes of each file that are looked at.
const HEAD: usize = 256 * 1024;
/// English text has about this many characters to a token.
const CHARACTERS_PER_TOKEN: f64 = 4.2;
/// Tokens that a prompt or a template puts around a row.
const AROUND: f64 = 28.0;

/// A guess.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    pub rows: u64,
    pub tokens_per_row: f64,
}

/// The size of a data set, where its files are on this machine and tell.
pub fn of(dataset: &Dataset, project: &Project) -> Option<Size> {
    let path = dataset.path.as_deref()?;
    let base = project.rows(path, dataset.revision.as_deref());
    let files: Vec<PathBuf> = match (&dataset.data_files, is_builder(path)) {
        (Some(files), true) => files.0.iter().map(|file| project.rows(file, None)).collect(),
        (Some(files), false) => files.0.iter().map(|file| base.join(file)).collect(),
        (None, false) => vec![base],
        (None, true) => return None,
    };
    let sizes: Option<Vec<Size>> = files.iter().map(|file| one(file)).collect();
    let sizes = sizes.filter(|sizes| !sizes.is_empty())?;
    let rows = sizes.iter().map(|size| size.rows).sum::<u64>();
    let tokens: f64 = sizes.iter().map(|size| size.rows as f64 * size.tokens_per_row).sum();
    Some(Size { rows, tokens_per_row: tokens / rows.max(1) as f64 })
}

/// Tokens of the longest row and of the fullest pack in a table of packs, read exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fullest {
    pub row: u64,
    pub pack: u64,
}

/// The longest row and the fullest pack of the table at `packs`; `None` where it cannot be read or is empty.
pub fn fullest(packs: &Path) -> Option<Fullest> {
    row_count(packs).ok()?;
    let mut fullest = Fullest { row: 0, pack: 0 };
    for batch in batches(packs, &["lengths"], 1024).ok()? {
        let batch = batch.ok()?;
        let lengths = list_column(&batch, "lengths").ok()?;
        for row in 0..batch.num_rows() {
            let lengths = crate::rows::int_list(lengths, row).ok()?.iter().filter_map(|&n| u64::try_from(n).ok());
            fullest.row = fullest.row.max(lengths.clone().max().unwrap_or(0));
            fullest.pack = fullest.pack.max(lengths.sum());
        }
    }
    (fullest.pack > 0).then_some(fullest)
}

fn one(path: &Path) -> Option<Size> {
    let extension = path.extension()?.to_str()?.to_lowercase();
    if extension == "parquet" {
        // Columns are not looked into: the row count is exact, and a row is taken to be of a usual length.
        return Some(Size { rows: row_count(path).ok()?, tokens_per_row: 250.0 });
    }
    let total = std::fs::metadata(path).ok()?.len();
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD as u64).read_to_end(&mut head).ok()?;
    let whole = head.len() as u64 == total;
    let text = String::from_utf8_lossy(&head);
    let rows: Vec<&str> = match extension.as_str() {
        "jsonl" | "ndjson" | "txt" | "text" => lines(&text, whole),
        "csv" | "tsv" => lines(&text, whole).into_iter().skip(1).collect(),
        "json" => elements(&text),
        _ => return None,
    };
    let bytes: usize = rows.iter().map(|row| row.len() + 1).sum();
    if rows.is_empty() || bytes == 0 {
        return None;
    }
    let count = if whole { rows.len() as u64 } else { (total as f64 * rows.len() as f64 / bytes as f64) as u64 };
    let characters: usize = rows.iter().map(|row| characters(row)).sum();
    let tokens_per_row = characters as f64 / rows.len() as f64 / CHARACTERS_PER_TOKEN + AROUND;
    Some(Size { rows: count.max(1), tokens_per_row })
}

/// Whole lines with something on them; the last one counts only at the end of the file.
fn lines(text: &str, whole: bool) -> Vec<&str> {
    let end = if whole { text.len() } else { text.rfind('\n').unwrap_or(text.len()) };
    text[..end].lines().filter(|line| !line.trim().is_empty()).collect()
}

/// The whole elements of a JSON array, as they are written.
fn elements(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut depth, mut start, mut quoted, mut escaped) = (0_u32, 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => {
                depth += 1;
                if depth == 2 {
                    start = at;
                }
            }
            b'}' | b']' => {
                if depth == 2 {
                    found.push(&text[start..=at]);
                }
                depth = depth.saturating_sub(1);
            }
            _ => {}
        }
    }
    found
}

/// Characters of the texts in a row; of the line where it is no JSON.
fn characters(row: &str) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::String(text) => text.chars().count(),
            Value::Array(items) => items.iter().map(of).sum(),
            Value::Object(map) => map.values().map(of).sum(),
            _ => 0,
        }
    }
    serde_json::from_str(row).map_or_else(|_| row.chars().count(), |value| of(&value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(name: &str, text: &str) -> Option<Size> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        one(&file)
    }

    #[test]
    fn small_files_are_counted() {
        let row = r#"{"instruction": "a [b] \" {c}", "output": "d"}"#;
        assert_eq!(size("a.jsonl", &format!("{row}\n\n{row}\n")).unwrap().rows, 2);
        assert_eq!(size("a.json", &format!("[\n{row},\n{row}, {row}]")).unwrap().rows, 3);
        assert_eq!(size("a.csv", "x,y\n1,2\n").unwrap().rows, 1);
        assert_eq!(size("a.jsonl.gz", "no"), None);
    }

    #[test]
    fn large_files_are_estimated_from_their_head() {
        let line = format!("{{\"text\": \"{}\"}}\n", "word ".repeat(200));
        let found = size("a.jsonl", &line.repeat(1000)).unwrap();
        assert!((980..=1020).contains(&found.rows), "{found:?}");
        assert!((220.0..310.0).contains(&found.tokens_per_row), "{found:?}");
    }
}
