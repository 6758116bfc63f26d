//! Keys: what a node is, and the content of what it reads.
//!
//! A key never covers a path, a name, a time or a thread count. Its [`Ingredients`] are kept beside every stored output, so
//! that a changed key can be explained by comparing them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::outline::Outline;
use crate::plan::NodeName;

/// Everything that decides a node's output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ingredients {
    pub stage: String,
    pub version: String,
    pub params: Value,
    /// Content of source files by role.
    pub files: BTreeMap<String, Digest>,
    /// Content of upstream outputs by role.
    pub inputs: BTreeMap<String, InputContent>,
}

/// What is read of an upstream output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputContent {
    /// The one file read, or the whole folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    pub digest: Digest,
}

impl Ingredients {
    /// BLAKE3 over the canonical JSON of all fields.
    pub fn key(&self) -> Digest {
        // A plain struct of strings, maps and JSON always serialises.
        Digest::of_canonical(&serde_json::to_value(self).unwrap_or(Value::Null))
    }
}

/// Where ingredients came from: for people and for `why`, never part of a key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub files: BTreeMap<String, FileFact>,
    pub upstream: BTreeMap<String, NodeName>,
    /// The outputs that were read, by role.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, Digest>,
}

/// A source file as it was when read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileFact {
    pub path: String,
    pub size: u64,
    /// Kept with finished work only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outline: Option<Outline>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ingredients() -> Ingredients {
        Ingredients {
            stage: "train".into(),
            version: "1".into(),
            params: json!({"learning_rate": 1e-4, "epochs": 1}),
            files: BTreeMap::from([("weights".into(), Digest::of(b"w"))]),
            inputs: BTreeMap::from([("rows".into(), InputContent { file: None, digest: Digest::of(b"r") })]),
        }
    }

    #[test]
    fn every_ingredient_counts() {
        let base = ingredients();
        let mut others = vec![base.clone(); 6];
        others[0].stage = "eval".into();
        others[1].version = "2".into();
        others[2].params = json!({"learning_rate": 2e-4, "epochs": 1});
        others[3].files.insert("weights".into(), Digest::of(b"other"));
        others[4].inputs.insert("rows".into(), InputContent { file: Some("a".into()), digest: Digest::of(b"r") });
        others[5].inputs.insert("more".into(), InputContent { file: None, digest: Digest::of(b"r") });
        assert!(others.iter().all(|other| other.key() != base.key()));
    }

    #[test]
    fn spelling_of_parameters_does_not_count() {
        let mut other = ingredients();
        other.params = serde_json::from_str(r#"{"epochs": 1.0, "learning_rate": 0.0001}"#).unwrap();
        assert_eq!(other.key(), ingredients().key());
    }

    #[test]
    fn a_key_survives_being_stored() {
        let text = serde_json::to_string(&ingredients()).unwrap();
        assert_eq!(serde_json::from_str::<Ingredients>(&text).unwrap().key(), ingredients().key());
    }
}
