//! What was fetched, as a recipe's paths see it: which commit an address means, what lies there, and what of it is here.
//!
//! ```text
//! downloads/pins/DIGEST.json          address -> revision, files, snapshot
//! downloads/snapshots/DIGEST/…        the files by their names, as links
//! downloads/snapshots/DIGEST/.listing.json   the names of all files there, fetched or not
//! downloads/blobs/SHA256              the bytes, once
//! ```
//! Reads this folder only; the network is `fetch`'s.

use std::fs;
use std::path::{Component, Path, PathBuf};

use pipe_engine::digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::address::{Address, Place};

/// Names of everything at the address, beside what was fetched of it.
const LISTING: &str = ".listing.json";
const SNAPSHOTS: &str = "snapshots";

/// The folder of downloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloads {
    root: PathBuf,
}

/// What an address meant when it was fetched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    /// As people read it.
    pub address: String,
    /// The commit of a hub repository, the etag of a web page; a bucket's objects have theirs.
    pub revision: String,
    /// RFC 3339, UTC.
    pub resolved: String,
    pub snapshot: Digest,
    /// The name of the one file, where the place is a file.
    pub single: Option<String>,
    pub files: Vec<Item>,
}

/// A file at an address, with whatever is known to check it by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// git's name for the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// How much of a model is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Tokenizer,
    Weights,
}

impl Downloads {
    pub fn at(root: impl Into<PathBuf>) -> Downloads {
        Downloads { root: root.into() }
    }

    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub fn drafts(&self) -> PathBuf {
        self.root.join("drafts")
    }

    /// What is known of an address since it was last resolved.
    pub fn pin(&self, address: &Address) -> Option<Pin> {
        serde_json::from_slice(&fs::read(self.pin_path(address)).ok()?).ok()
    }

    pub fn pin_path(&self, address: &Address) -> PathBuf {
        self.root.join("pins").join(format!("{}.json", address.digest()))
    }

    /// The folder with a pin's files.
    pub fn snapshot(&self, pin: &Pin) -> PathBuf {
        self.root.join(SNAPSHOTS).join(pin.snapshot.to_string())
    }

    /// Where rows at an address are. Before it is resolved that is a path at which nothing is.
    pub fn rows(&self, address: &Address) -> PathBuf {
        match self.pin(address) {
            Some(pin) => self.inside(&pin, address),
            None => self.nowhere(address),
        }
    }

    /// Where a model is, once all that is needed of it is here.
    pub fn model(&self, address: &Address, need: Need) -> PathBuf {
        let Some(pin) = self.pin(address) else { return self.nowhere(address) };
        let snapshot = self.snapshot(&pin);
        match pin.model_files(&address.inside, need) {
            Ok(files) if files.iter().all(|item| snapshot.join(&item.name).exists()) => match files.as_slice() {
                [only] if only.name.ends_with(".gguf") => snapshot.join(&only.name),
                _ => self.inside(&pin, address),
            },
            _ => self.nowhere(address),
        }
    }

    /// The path of what is not here; nothing ever is.
    pub fn nowhere(&self, address: &Address) -> PathBuf {
        self.root.join("unfetched").join(address.digest().short()).join(address.name())
    }

    fn inside(&self, pin: &Pin, address: &Address) -> PathBuf {
        let snapshot = self.snapshot(pin);
        match (&pin.single, address.inside.as_str()) {
            (Some(single), _) => snapshot.join(single),
            (None, "") => snapshot,
            (None, inside) => snapshot.join(inside),
        }
    }
}

impl Pin {
    /// The snapshot's name: equal content at equal places has the same.
    pub fn snapshot_of(place: &Place, revision: &str, files: &[Item]) -> Digest {
        let place = match place {
            Place::Hub { kind, id, .. } => format!("{kind:?} {id}"),
            Place::Web(url) => Digest::of(url.as_bytes()).to_string(),
            Place::Bucket(url) => url.clone(),
        };
        Digest::of_canonical(&json!({ "place": place, "revision": revision, "files": files }))
    }

    /// Makes the folder of a snapshot: every sub-folder, and the names of all files.
    pub fn lay_out(&self, snapshot: &Path) -> std::io::Result<()> {
        fs::create_dir_all(snapshot)?;
        for folder in self.files.iter().filter_map(|item| Path::new(&item.name).parent()) {
            fs::create_dir_all(snapshot.join(folder))?;
        }
        let names: Vec<&str> = self.files.iter().map(|item| item.name.as_str()).collect();
        let draft = tempfile::NamedTempFile::new_in(snapshot)?;
        fs::write(draft.path(), serde_json::to_vec(&names)?)?;
        draft.persist(snapshot.join(LISTING)).map_err(|error| error.error)?;
        Ok(())
    }

    /// The files that loading a model (or its tokenizer) reads: those of its folder, weights as safetensors, else one GGUF.
    ///
    /// # Errors
    /// There are no weights that can be read, or several to choose from.
    pub fn model_files(&self, inside: &str, need: Need) -> Result<Vec<&Item>, String> {
        if let Some(file) =
            self.files.iter().find(|item| item.name == inside || self.single.as_ref() == Some(&item.name))
        {
            return Ok(vec![file]);
        }
        let own = |item: &&Item| {
            let below = || item.name.strip_prefix(inside)?.strip_prefix('/');
            let rest = if inside.is_empty() { Some(item.name.as_str()) } else { below() };
            rest.is_some_and(|rest| !rest.contains('/'))
        };
        let own: Vec<&Item> = self.files.iter().filter(own).collect();
        let with = |endings: &[&str]| ending(&own, endings);
        let (weights, ggufs) = (with(&[".safetensors"]), with(&[".gguf"]));
        let mut files = with(&[".json", ".jinja", ".txt", ".model", ".tiktoken"]);
        if weights.is_empty() && !ggufs.is_empty() {
            let names: Vec<&str> = ggufs.iter().map(|item| item.name.as_str()).collect();
            return match ggufs.as_slice() {
                [only] => Ok(vec![*only]),
                _ => Err(format!("{} holds several models; name one of them: {}", self.address, names.join(", "))),
            };
        }
        match need {
            Need::Tokenizer => Ok(files),
            Need::Weights if weights.is_empty() => {
                Err(format!("{} holds no weights as .safetensors or .gguf", self.address))
            }
            Need::Weights => {
                files.extend(weights);
                Ok(files)
            }
        }
    }
}

/// The files whose names end so.
fn ending<'a>(files: &[&'a Item], endings: &[&str]) -> Vec<&'a Item> {
    let ends = |item: &&&Item| endings.iter().any(|ending| item.name.ends_with(ending));
    files.iter().filter(ends).copied().collect()
}

/// Names of all files below a folder of a snapshot, fetched or not; nothing when the folder is of another kind.
pub fn listed_below(folder: &Path) -> Option<Vec<String>> {
    let is_snapshot = |folder: &&Path| folder.parent().is_some_and(|parent| parent.ends_with(SNAPSHOTS));
    let snapshot = folder.ancestors().find(is_snapshot)?;
    let names: Vec<String> = serde_json::from_slice(&fs::read(snapshot.join(LISTING)).ok()?).ok()?;
    let below = folder.strip_prefix(snapshot).ok()?;
    let inside = |name: &String| Path::new(name).strip_prefix(below).ok()?.to_str().map(str::to_string);
    let visible = |name: &String| !name.is_empty() && name.split('/').all(|part| !part.starts_with('.'));
    let mut names: Vec<String> = names.iter().filter_map(inside).filter(visible).collect();
    names.sort();
    Some(names)
}

/// A name that stays within its folder, whoever sent it.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(names: &[&str]) -> Pin {
        let files: Vec<Item> = names.iter().map(|name| Item { name: name.to_string(), ..Item::default() }).collect();
        let snapshot = Digest::of(b"x");
        Pin {
            address: "hf://models/a/b".into(),
            revision: "c".into(),
            resolved: String::new(),
            snapshot,
            single: None,
            files,
        }
    }

    fn files(names: &[&str], inside: &str, need: Need) -> String {
        let pin = pin(names);
        let names = |items: Vec<&Item>| items.iter().map(|item| item.name.clone()).collect::<Vec<_>>().join(" ");
        pin.model_files(inside, need).map_or_else(|why| why, names)
    }

    #[test]
    fn of_a_model_only_what_is_read_is_fetched() {
        let all = ["README.md", "config.json", "m.safetensors", "onnx/m.onnx", "original/x.json", "pytorch_model.bin"];
        assert_eq!(files(&all, "", Need::Weights), "config.json m.safetensors");
        assert_eq!(files(&all, "", Need::Tokenizer), "config.json");
        assert_eq!(files(&all, "original", Need::Tokenizer), "original/x.json");
        assert_eq!(files(&["a.gguf", "config.json"], "", Need::Weights), "a.gguf");
        assert!(files(&["a.gguf", "b.gguf"], "", Need::Weights).contains("several models"));
        assert_eq!(files(&["a.gguf", "b.gguf"], "b.gguf", Need::Weights), "b.gguf");
        assert!(files(&["config.json", "pytorch_model.bin"], "", Need::Weights).contains("no weights"));
    }

    #[test]
    fn a_snapshot_lists_what_was_not_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("snapshots/abc");
        pin(&["README.md", "data/a.jsonl", "data/.b", "other/c.csv"]).lay_out(&snapshot).unwrap();
        assert_eq!(listed_below(&snapshot).unwrap(), ["README.md", "data/a.jsonl", "other/c.csv"]);
        assert_eq!(listed_below(&snapshot.join("data")).unwrap(), ["a.jsonl"]);
        assert_eq!(listed_below(folder.path()), None);
        assert!(is_plain("a/b.c") && !is_plain("../a") && !is_plain("/a") && !is_plain(""));
    }
}
