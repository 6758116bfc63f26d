//! The list of an output's files, and the digest of that list.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The file that lists the others in a stored object.
pub const MANIFEST: &str = "manifest.json";

/// One file of an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path below the output folder, `/` between its parts.
    pub name: String,
    pub size: u64,
    pub digest: Digest,
}

/// All files of an output, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub files: Vec<Entry>,
}

/// Why a folder cannot become an output.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: String, source: io::Error },
    #[error("{path} is neither a file nor a folder; an output holds nothing else")]
    Strange { path: String },
    #[error("{path} has a name that is not UTF-8")]
    Name { path: String },
    #[error("an output may not hold a file named {MANIFEST}: the store writes its own")]
    Reserved,
}

impl Manifest {
    /// Hashes every file below `folder`, makes it read-only and flushes it and its folders to disk.
    pub fn seal(folder: &Path) -> Result<Manifest, ManifestError> {
        let mut files = Vec::new();
        walk(folder, "", &mut |path, name| {
            if name == MANIFEST {
                return Err(ManifestError::Reserved);
            }
            files.push(seal_file(path, name)?);
            Ok(())
        })?;
        sync_folders(folder)?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Manifest { files })
    }

    /// Names of all files below `folder`, the manifest itself left out.
    pub fn names(folder: &Path) -> Result<Vec<String>, ManifestError> {
        let mut names = Vec::new();
        walk(folder, "", &mut |_, name| {
            if name != MANIFEST {
                names.push(name.to_string());
            }
            Ok(())
        })?;
        names.sort();
        Ok(names)
    }

    /// The output's digest: over name, size and digest of every file.
    pub fn digest(&self) -> Digest {
        Digest::of(&listing(self.files.iter().map(|entry| (entry.name.as_str(), entry))))
    }

    /// The digest of one file, or of everything below one sub-folder.
    pub fn digest_of(&self, name: &str) -> Option<Digest> {
        if let Some(entry) = self.files.iter().find(|entry| entry.name == name) {
            return Some(entry.digest);
        }
        let below: Vec<(&str, &Entry)> = self.below(name).collect();
        (!below.is_empty()).then(|| Digest::of(&listing(below.into_iter())))
    }

    /// The entries that reading `file` (or everything) reads.
    pub fn entries<'a>(&'a self, file: Option<&str>) -> Vec<&'a Entry> {
        match file {
            None => self.files.iter().collect(),
            Some(file) => match self.files.iter().find(|entry| entry.name == file) {
                Some(entry) => vec![entry],
                None => self.below(file).map(|(_, entry)| entry).collect(),
            },
        }
    }

    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|entry| entry.size).sum()
    }

    fn below<'a, 'b>(&'a self, folder: &'b str) -> impl Iterator<Item = (&'a str, &'a Entry)> + use<'a, 'b> {
        self.files.iter().filter_map(move |entry| Some((entry.name.strip_prefix(folder)?.strip_prefix('/')?, entry)))
    }
}

/// Flushes a folder's own entries, so that a rename into or out of it survives a power cut.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn listing<'a>(entries: impl Iterator<Item = (&'a str, &'a Entry)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, entry) in entries {
        bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(&entry.size.to_le_bytes());
        bytes.extend_from_slice(entry.digest.as_bytes());
    }
    bytes
}

fn seal_file(path: &Path, name: &str) -> Result<Entry, ManifestError> {
    let seal = || -> io::Result<Entry> {
        let mut file = File::open(path)?;
        let digest = Digest::of_reader(&mut file)?;
        let metadata = file.metadata()?;
        file.set_permissions(fs::Permissions::from_mode(0o444 | (metadata.permissions().mode() & 0o111)))?;
        file.sync_all()?;
        Ok(Entry { name: name.to_string(), size: metadata.len(), digest })
    };
    seal().map_err(|source| ManifestError::Io { doing: "seal", path: path.display().to_string(), source })
}

fn sync_folders(folder: &Path) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Io { doing: "flush", path: folder.display().to_string(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    sync_folder(folder).map_err(failed)
}

fn walk(
    folder: &Path,
    prefix: &str,
    visit: &mut dyn FnMut(&Path, &str) -> Result<(), ManifestError>,
) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::Io { doing: "list", path: folder.display().to_string(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| ManifestError::Name { path: path.display().to_string() })?;
        let name = if prefix.is_empty() { name.to_string() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            walk(&path, &name, visit)?;
        } else if kind.is_file() {
            visit(&path, &name)?;
        } else {
            return Err(ManifestError::Strange { path: path.display().to_string() });
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sealed(files: &[(&str, &str)]) -> (tempfile::TempDir, Manifest) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let manifest = Manifest::seal(folder.path()).unwrap();
        (folder, manifest)
    }

    #[test]
    fn the_digest_covers_names_and_contents_only() {
        let (_a, one) = sealed(&[("x", "1"), ("d/y", "2")]);
        let (_b, two) = sealed(&[("d/y", "2"), ("x", "1")]);
        assert_eq!(one, two);
        assert_eq!(one.digest(), two.digest());
        for other in [[("x", "1"), ("d/y", "3")], [("x", "1"), ("d/z", "2")], [("x1", ""), ("d/y", "2")]] {
            assert_ne!(sealed(&other).1.digest(), one.digest());
        }
    }

    #[test]
    fn a_sub_folder_has_a_digest_of_its_own() {
        let (_a, one) = sealed(&[("x", "1"), ("d/y", "2")]);
        let (_b, two) = sealed(&[("x", "changed"), ("d/y", "2")]);
        assert_eq!(one.digest_of("d"), two.digest_of("d"));
        assert_ne!(one.digest_of("x"), two.digest_of("x"));
        assert_eq!(one.digest_of("none"), None);
        assert_eq!(one.entries(Some("d")).len(), 1);
    }

    #[test]
    fn files_become_read_only_and_links_are_refused() {
        let (folder, _) = sealed(&[("x", "1")]);
        assert_eq!(fs::metadata(folder.path().join("x")).unwrap().permissions().mode() & 0o777, 0o444);
        std::os::unix::fs::symlink("x", folder.path().join("link")).unwrap();
        assert!(matches!(Manifest::seal(folder.path()), Err(ManifestError::Strange { .. })));
        fs::remove_file(folder.path().join("link")).unwrap();
        fs::write(folder.path().join(MANIFEST), "{}").unwrap();
        assert!(matches!(Manifest::seal(folder.path()), Err(ManifestError::Reserved)));
    }
}
