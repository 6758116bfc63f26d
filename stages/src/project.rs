//! Where a recipe's relative paths start, and which paths are remote.
//!
//! Reads folder names, and what earlier fetches noted; never the network, never the current folder except for hints.

use std::path::{Component, Path, PathBuf};

use crate::fetch::{Address, Downloads, HubKind, Need};

/// The folder that a recipe's relative paths start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// The nearest folder at or above the recipe that holds `.pipe` or `.git`, else the recipe's own; absolute.
    pub root: PathBuf,
    /// The folder of the recipe; absolute.
    pub recipe_dir: PathBuf,
    /// Where what lies at addresses is kept.
    pub downloads: Downloads,
}

/// What a path in a recipe stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Exists on this machine.
    Local(PathBuf),
    /// A hub id or address; valid, and never fetched by checks.
    Remote(String),
    /// Meant to be local, and absent; the place looked at.
    Missing(PathBuf),
}

impl Project {
    pub fn of(recipe: &Path) -> Project {
        let absolute = std::path::absolute(recipe).unwrap_or_else(|_| recipe.to_path_buf());
        let recipe_dir = absolute.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        let marked = |dir: &&Path| dir.join(".pipe").exists() || dir.join(".git").exists();
        let root = recipe_dir.ancestors().find(marked).unwrap_or(&recipe_dir).to_path_buf();
        let downloads = Downloads::at(root.join(".pipe/downloads"));
        Project { root, recipe_dir, downloads }
    }

    /// The same with downloads in this store.
    pub fn with_store(self, store: &Path) -> Project {
        let store = std::path::absolute(store).unwrap_or_else(|_| store.to_path_buf());
        Project { downloads: Downloads::at(store.join("downloads")), ..self }
    }

    /// A recipe's path as a path of this machine: `~` is the home folder, and relative ones start at the root.
    pub fn resolve(&self, path: &str) -> PathBuf {
        let home = path.strip_prefix("~/").or(if path == "~" { Some("") } else { None });
        let path = match (home, std::env::home_dir()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(path),
        };
        tidy(&self.root.join(path))
    }

    /// What `path` stands for. Something that exists locally is local, even if it looks like a hub id.
    pub fn place(&self, path: &str) -> Place {
        if is_address(path) {
            return match path.strip_prefix("file://") {
                Some(local) => self.local(local),
                None => Place::Remote(path.to_string()),
            };
        }
        match self.local(path) {
            Place::Missing(_) if is_hub_id(path) => Place::Remote(path.to_string()),
            place => place,
        }
    }

    /// The address that `path` is, unless it names something on this machine or is no address that can be read.
    pub fn address(&self, path: &str, kind: HubKind, revision: Option<&str>) -> Option<Address> {
        match self.place(path) {
            Place::Remote(written) => Address::parse(&written, kind, revision).ok(),
            Place::Local(_) | Place::Missing(_) => None,
        }
    }

    /// Where rows are on this machine; of an address that was not fetched, a path at which nothing is.
    pub fn rows(&self, path: &str, revision: Option<&str>) -> PathBuf {
        match self.address(path, HubKind::Dataset, revision) {
            Some(address) => self.downloads.rows(&address),
            None => self.here(path),
        }
    }

    /// Where a model, adapter or tokenizer is on this machine, once all that is needed of it is here.
    pub fn model(&self, path: &str, revision: Option<&str>, need: Need) -> PathBuf {
        match self.address(path, HubKind::Model, revision) {
            Some(address) => self.downloads.model(&address, need),
            None => self.here(path),
        }
    }

    /// Whether `path` is an address of rows that nobody has looked at yet.
    pub fn is_unfetched(&self, path: &str, revision: Option<&str>) -> bool {
        let address = self.address(path, HubKind::Dataset, revision);
        address.is_some_and(|address| self.downloads.pin(&address).is_none())
    }

    fn here(&self, path: &str) -> PathBuf {
        match self.place(path) {
            Place::Local(path) | Place::Missing(path) => path,
            Place::Remote(written) => self.resolve(&written),
        }
    }

    /// The spelling under which a missing path would be found, if it lies beside the recipe or in the current folder.
    pub fn hint(&self, path: &str) -> Option<String> {
        let current = std::env::current_dir().ok();
        let beside = Some(self.recipe_dir.clone());
        for start in [beside, current].into_iter().flatten() {
            let found = tidy(&start.join(path));
            if found.exists() {
                let spelled = relative_to(&found, &self.root).unwrap_or_else(|| found.clone());
                return Some(spelled.display().to_string());
            }
        }
        None
    }

    fn local(&self, path: &str) -> Place {
        let place = self.resolve(path);
        if place.exists() { Place::Local(place) } else { Place::Missing(place) }
    }
}

/// Whether `path` names something outside this machine by its form alone.
pub fn is_remote(path: &str) -> bool {
    is_address(path) && !path.starts_with("file://") || is_hub_id(path)
}

fn is_address(path: &str) -> bool {
    path.split_once("://")
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+'))
}

/// `organisation/name`, as hubs write it: one slash, plain characters, and no extension of a data or model file.
pub(crate) fn is_hub_id(path: &str) -> bool {
    let Some((owner, name)) = path.split_once('/') else { return false };
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-', '~'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let name = name.split('@').next().unwrap_or(name);
    plain(owner) && plain(name) && !has_file_extension(name)
}

fn has_file_extension(name: &str) -> bool {
    let known = [
        "json",
        "jsonl",
        "ndjson",
        "csv",
        "tsv",
        "parquet",
        "arrow",
        "txt",
        "text",
        "gz",
        "zst",
        "gguf",
        "safetensors",
        "bin",
        "pt",
        "yml",
        "yaml",
        "jinja",
        "md",
    ];
    name.rsplit_once('.').is_some_and(|(_, extension)| known.contains(&extension.to_ascii_lowercase().as_str()))
}

/// Without `.` and inner `..`, so that two spellings of a place compare equal.
fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn relative_to(path: &Path, root: &Path) -> Option<PathBuf> {
    let mut up = PathBuf::new();
    for base in root.ancestors().take(4) {
        if let Ok(rest) = path.strip_prefix(base) {
            return (base.parent().is_some() || base == root).then(|| up.join(rest));
        }
        up.push("..");
    }
    None
}
