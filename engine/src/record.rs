//! What is kept with a key: its ingredients, its output and how it came about.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::key::{Ingredients, Origin};
use crate::manifest::Manifest;
use crate::plan::NodeName;
use crate::task::Summary;

/// A finished piece of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub key: Digest,
    pub ingredients: Ingredients,
    pub origin: Origin,
    /// The node that did the work, as it was named then.
    pub node: NodeName,
    pub output: Digest,
    pub manifest: Manifest,
    pub summary: Summary,
    pub seconds: f64,
    pub peak_rss_bytes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// RFC 3339, UTC.
    pub created: String,
    /// Its object was given up on purpose; it is made again only when something has to read it.
    #[serde(default)]
    pub evicted: bool,
}

/// On disk a record carries a digest of itself: a flipped bit must not pass for a result.
#[derive(Serialize, Deserialize)]
struct Sealed {
    check: Digest,
    record: Value,
}

impl Record {
    /// The record as bytes that [`Record::from_bytes`] can check.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let record = serde_json::to_value(self)?;
        let mut bytes = serde_json::to_vec_pretty(&Sealed { check: Digest::of_canonical(&record), record })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The record of `key`; `None` when the bytes are not one, are damaged, or belong to another key.
    pub fn from_bytes(bytes: &[u8], key: Digest) -> Option<Record> {
        let sealed: Sealed = serde_json::from_slice(bytes).ok()?;
        if Digest::of_canonical(&sealed.record) != sealed.check {
            return None;
        }
        let record: Record = serde_json::from_value(sealed.record).ok()?;
        (record.key == key).then_some(record)
    }

    /// The digest of what a reader of `file` (or of everything) reads.
    pub fn content(&self, file: Option<&str>) -> Option<Digest> {
        match file {
            None => Some(self.output),
            Some(file) => self.manifest.digest_of(file),
        }
    }
}
