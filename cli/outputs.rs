//! The recipe's `output_dir`: links to (or copies of) the final artifacts, under the names the contract gives them.
//!
//! Files there share their bytes with the store where the disk allows it; what is right already is left untouched.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use pipe_engine::plan::NodeName;

use crate::failure::Failure;

/// Stage that makes an artifact, and the folder it gets.
const NAMES: [(&str, &str); 4] = [("convert", "adapter"), ("merge", "merged"), ("quantize", "gguf"), ("eval", "eval")];

/// Says which folders in `output_dir` this program wrote, so that no other is ever replaced.
const MARKER: &str = ".pipe-outputs";

/// One artifact in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub name: String,
    pub path: PathBuf,
    /// Files that became links now: their stat data in the store changed with the link count.
    pub linked: Vec<PathBuf>,
    /// Where a folder that was not ours went.
    pub moved_aside: Option<PathBuf>,
}

/// Puts the artifacts of finished nodes in place.
///
/// # Errors
/// The folder cannot be written; what was there before is still there.
pub fn publish(output_dir: &Path, outputs: &IndexMap<NodeName, PathBuf>) -> Result<Vec<Published>, Failure> {
    let mut published = Vec::new();
    for (stage, name) in NAMES {
        let Some((_, source)) = outputs.iter().find(|(node, _)| node.as_str() == stage) else { continue };
        let placed = place(output_dir, name, source).map_err(|e| {
            let target = output_dir.join(name);
            Failure::stage(format!("cannot put {name} in {}: {e}", target.display()))
                .hint(format!("the result is safe in {}; set output_dir to a folder that can be written", source.display()))
        })?;
        published.push(placed);
    }
    Ok(published)
}

fn place(output_dir: &Path, name: &str, source: &Path) -> io::Result<Published> {
    let target = output_dir.join(name);
    let mut published = Published { name: name.to_string(), path: target.clone(), linked: Vec::new(), moved_aside: None };
    let files = files_below(source)?;
    if is_right(&target, source, &files) {
        return Ok(published);
    }
    fs::create_dir_all(output_dir)?;
    let draft = output_dir.join(format!(".{name}.new-{}", std::process::id()));
    let _ = fs::remove_dir_all(&draft);
    for file in &files {
        let (from, to) = (source.join(file), draft.join(file));
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        if link_or_copy(&from, &to)? {
            published.linked.push(from);
        }
    }
    if target.symlink_metadata().is_ok() {
        if is_ours(output_dir, name) {
            let old = output_dir.join(format!(".{name}.old-{}", std::process::id()));
            fs::rename(&target, &old)?;
            fs::rename(&draft, &target)?;
            fs::remove_dir_all(&old)?;
            return Ok(published);
        }
        let aside = free_name(output_dir, name);
        fs::rename(&target, &aside)?;
        published.moved_aside = Some(aside);
    }
    fs::rename(&draft, &target)?;
    claim(output_dir, name)?;
    Ok(published)
}

/// The same files and no others, each the store's own or an untouched copy of it.
fn is_right(target: &Path, source: &Path, files: &[PathBuf]) -> bool {
    let Ok(found) = files_below(target) else { return false };
    found == files && files.iter().all(|file| is_same(&source.join(file), &target.join(file)))
}

fn is_same(a: &Path, b: &Path) -> bool {
    let (Ok(a), Ok(b)) = (fs::metadata(a), fs::symlink_metadata(b)) else { return false };
    let one_file = a.dev() == b.dev() && a.ino() == b.ino();
    one_file || (a.len() == b.len() && a.mtime() == b.mtime() && a.mtime_nsec() == b.mtime_nsec())
}

/// Whether a link was possible; a copy gets the time of its source, by which it is known again.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<bool> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(true);
    }
    fs::copy(from, to)?;
    let mut writable = fs::metadata(to)?.permissions();
    let sealed = writable.clone();
    std::os::unix::fs::PermissionsExt::set_mode(&mut writable, 0o644);
    fs::set_permissions(to, writable)?;
    File::options().write(true).open(to)?.set_modified(fs::metadata(from)?.modified()?)?;
    fs::set_permissions(to, sealed)?;
    Ok(false)
}

/// Paths of all files below `folder`, sorted; the store's own manifest is not part of an artifact.
fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(folder.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                open.push(path);
            } else if path != Path::new(pipe_engine::manifest::MANIFEST) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn is_ours(output_dir: &Path, name: &str) -> bool {
    let known = fs::read_to_string(output_dir.join(MARKER)).unwrap_or_default();
    known.lines().any(|line| line == name)
}

fn claim(output_dir: &Path, name: &str) -> io::Result<()> {
    let path = output_dir.join(MARKER);
    let mut known = fs::read_to_string(&path).unwrap_or_default();
    if !known.lines().any(|line| line == name) {
        known.push_str(name);
        known.push('\n');
        fs::write(&path, known)?;
    }
    Ok(())
}

fn free_name(output_dir: &Path, name: &str) -> PathBuf {
    let candidates = (1..).map(|n| output_dir.join(format!("{name}.before-{n}")));
    let mut free = candidates.filter(|path| path.symlink_metadata().is_err());
    free.next().unwrap_or_else(|| output_dir.join(format!("{name}.before")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(root: &Path, name: &str, text: &str) -> PathBuf {
        let folder = root.join(name);
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("weights"), text).unwrap();
        fs::write(folder.join("sub/more"), text).unwrap();
        fs::write(folder.join(pipe_engine::manifest::MANIFEST), "{}").unwrap();
        folder
    }

    #[test]
    fn artifacts_are_placed_once_and_replaced_when_they_change() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let one = source(root.path(), "one", "1");
        let first = place(&out, "adapter", &one).unwrap();
        assert_eq!(first.linked.len(), 2);
        assert_eq!(fs::read_to_string(out.join("adapter/sub/more")).unwrap(), "1");
        assert!(!out.join("adapter").join(pipe_engine::manifest::MANIFEST).exists());
        assert!(place(&out, "adapter", &one).unwrap().linked.is_empty());
        let two = source(root.path(), "two", "2");
        assert!(place(&out, "adapter", &two).unwrap().moved_aside.is_none());
        assert_eq!(fs::read_to_string(out.join("adapter/weights")).unwrap(), "2");
        assert_eq!(fs::read_to_string(one.join("weights")).unwrap(), "1");
    }

    #[test]
    fn a_folder_of_somebody_else_is_moved_aside() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        fs::create_dir_all(out.join("merged")).unwrap();
        fs::write(out.join("merged/precious"), "mine").unwrap();
        let placed = place(&out, "merged", &source(root.path(), "one", "1")).unwrap();
        let aside = placed.moved_aside.unwrap();
        assert_eq!(fs::read_to_string(aside.join("precious")).unwrap(), "mine");
    }

    #[test]
    fn copies_keep_their_time() {
        let root = tempfile::tempdir().unwrap();
        let one = source(root.path(), "one", "1");
        let target = root.path().join("copy");
        fs::create_dir_all(&target).unwrap();
        fs::copy(one.join("weights"), target.join("weights")).unwrap();
        assert!(!is_right(&target, &one, &files_below(&one).unwrap()));
    }
}
