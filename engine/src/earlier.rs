//! An earlier output of the same work on other inputs, offered to a task that can take over the results of single rows.
//!
//! Only a pointer is kept: per node, and per code, parameters and files that were equal, the key that was computed last.
//! What is offered has been hashed; anything missing, let go or damaged means that nothing is offered.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use indexmap::IndexMap;
use serde_json::json;

use crate::digest::Digest;
use crate::key::Ingredients;
use crate::plan::NodeName;
use crate::record::Record;
use crate::store::{Condition, Depth, Store, write_whole};
use crate::task::Earlier;

/// What two outputs share when only their inputs' contents differ.
pub(crate) fn family(node: &NodeName, ingredients: &Ingredients) -> Digest {
    let roles: BTreeMap<_, _> = ingredients.inputs.iter().map(|(role, content)| (role, &content.file)).collect();
    Digest::of_canonical(&json!({
        "node": node,
        "stage": ingredients.stage,
        "version": ingredients.version,
        "params": ingredients.params,
        "files": ingredients.files,
        "inputs": roles,
    }))
}

impl Store {
    /// The latest output of this family that is there together with what it was made of. The caller holds the gate.
    pub(crate) fn latest(&self, family: Digest) -> Option<Record> {
        let key = fs::read_to_string(self.latest_path(family)).ok()?;
        let record = self.record(Digest::parse(key.trim())?)?;
        let all_there = record.origin.objects.values().all(|&object| self.object(object).is_dir());
        let complete = record.ingredients.inputs.keys().all(|role| record.origin.objects.contains_key(role));
        (all_there && complete && self.inspect(&record, Depth::Stat) == Condition::Sound).then_some(record)
    }

    /// Notes what was just computed. Losing the note costs time later, so failure is no error.
    pub(crate) fn note_latest(&self, family: Digest, key: Digest) {
        let _ = write_whole(&self.latest_path(family), key.to_string().as_bytes());
    }

    /// The earlier output for a task to read, every byte of it and of its inputs hashed.
    pub(crate) fn earlier(&self, record: &Record) -> Option<Earlier> {
        let output = self.verified(record, None).ok()?;
        let mut inputs = IndexMap::new();
        for (role, content) in &record.ingredients.inputs {
            let object = *record.origin.objects.get(role)?;
            inputs.insert(role.clone(), self.verified_file(object, content.file.as_deref()?, content.digest)?);
        }
        Some(Earlier { output, inputs })
    }

    /// Removes notes that lead to nothing.
    pub(crate) fn clear_latest(&self) {
        let Ok(entries) = fs::read_dir(self.root().join("latest")) else { return };
        for entry in entries.flatten() {
            let key = fs::read_to_string(entry.path()).ok().and_then(|key| Digest::parse(key.trim()));
            if key.and_then(|key| self.record(key)).is_none_or(|record| record.evicted) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn latest_path(&self, family: Digest) -> PathBuf {
        self.root().join("latest").join(family.to_string())
    }
}
