//! Digests of files, memoised by stat data.
//!
//! A file whose size, mtime, ctime, inode and device are as they were when it was hashed has the digest it had then. The
//! path is no part of it, so a moved project keeps its memo; ctime cannot be set by a user, so an edit that restores size and
//! mtime is still seen. A file changed so shortly before being hashed that a second change could carry the same ctime is
//! not trusted (git calls such an entry racy). The memo only saves work: lost or damaged, everything is hashed again.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::task::{SourceFile, View};

/// Kernels stamp files with a clock that ticks every 1 to 10 ms.
const FINE_GRAIN_NS: i64 = 20_000_000;
/// File systems without sub-second stamps count seconds, or pairs of them.
const COARSE_GRAIN_NS: i64 = 2_000_000_000;
/// Beyond this the least recently hashed entries go.
const MOST_ENTRIES: usize = 200_000;
/// How often a file that changes under the reader is read again.
const ATTEMPTS: usize = 3;

/// Why a file has no digest.
#[derive(Debug, thiserror::Error)]
pub enum MemoError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path} kept changing while it was being read; wait until it is written, then run again")]
    Changing { path: String },
    #[error("{path}: {message}")]
    Part { path: String, message: String },
}

/// The memo of one store.
pub struct Memo {
    path: PathBuf,
    state: Mutex<State>,
    hashed: AtomicUsize,
}

#[derive(Default)]
struct State {
    entries: HashMap<Id, Entry>,
    dirty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Id {
    device: u64,
    inode: u64,
    view: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    stamp: Stamp,
    /// When hashing began.
    hashed: i64,
    digest: Digest,
    /// Written and hashed by this store itself: nobody else writes there, so [`Memo::save`] may wait the grain out.
    #[serde(skip)]
    ours: bool,
}

/// The stat data of a file's content; times in nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp(u64, i64, i64);

#[derive(Serialize, Deserialize)]
struct Saved {
    check: Digest,
    entries: Vec<(Id, Entry)>,
}

impl Memo {
    /// Reads the memo at `path`; a missing or damaged one is empty.
    pub fn load(path: &Path) -> Memo {
        let entries = fs::read(path).ok().and_then(|bytes| parse(&bytes)).unwrap_or_default();
        Memo {
            path: path.to_path_buf(),
            state: Mutex::new(State { entries, dirty: false }),
            hashed: AtomicUsize::new(0),
        }
    }

    /// The digest of what `view` shows of the file, or of a folder's names and contents.
    pub fn digest(&self, path: &Path, view: View) -> Result<Digest, MemoError> {
        let metadata = fs::metadata(path).map_err(|source| read_error(path, source))?;
        if metadata.is_dir() {
            return self.digest_folder(path, view);
        }
        let name = view.name();
        if let Some(digest) = self.recall(&metadata, name) {
            return Ok(digest);
        }
        for _ in 0..ATTEMPTS {
            let hashed = now();
            let before = fs::metadata(path).map_err(|source| read_error(path, source))?;
            let digest = hash(path, view)?;
            self.hashed.fetch_add(1, Ordering::Relaxed);
            let after = fs::metadata(path).map_err(|source| read_error(path, source))?;
            if stamp(&before) == stamp(&after) && before.ino() == after.ino() {
                self.insert(&after, name, Entry { stamp: stamp(&after), hashed, digest, ours: false });
                return Ok(digest);
            }
        }
        Err(MemoError::Changing { path: path.display().to_string() })
    }

    /// Hashes what is not memoised, on `threads` threads; errors are left for [`Memo::digest`] to report.
    pub fn warm(&self, files: &[SourceFile], threads: usize) {
        let cold: Vec<&SourceFile> = files.iter().filter(|file| !self.knows(file)).collect();
        if cold.len() < 2 {
            return;
        }
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(cold.len()) {
                scope.spawn(|| {
                    while let Some(file) = cold.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let _ = self.digest(&file.path, file.view);
                    }
                });
            }
        });
    }

    /// Notes the digest of a file that this store has just written.
    pub fn remember(&self, path: &Path, digest: Digest) {
        if let Ok(metadata) = fs::metadata(path) {
            self.insert(&metadata, "", Entry { stamp: stamp(&metadata), hashed: now(), digest, ours: true });
        }
    }

    /// Drops what is known of a file, also for later processes.
    pub fn forget(&self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else { return };
        // An entry nobody can match, rather than none: saving keeps what other processes noted.
        let nothing = Entry { stamp: Stamp(u64::MAX, 0, 0), hashed: now(), digest: Digest::of(b""), ours: false };
        self.insert(&metadata, "", nothing);
    }

    /// How many files were really read since loading.
    pub fn files_hashed(&self) -> usize {
        self.hashed.load(Ordering::Relaxed)
    }

    /// Writes the memo if it changed. Failure only costs time later, so it is no error.
    pub fn save(&self) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        if !state.dirty || !self.path.parent().is_some_and(Path::is_dir) {
            return;
        }
        wait_out_the_grain(&mut state);
        let mut entries = fs::read(&self.path).ok().and_then(|bytes| parse(&bytes)).unwrap_or_default();
        entries.extend(state.entries.iter().map(|(id, entry)| (id.clone(), entry.clone())));
        let mut entries: Vec<(Id, Entry)> = entries.into_iter().collect();
        entries.sort_by_key(|(id, entry)| (-entry.hashed, id.device, id.inode));
        entries.truncate(MOST_ENTRIES);
        let Ok(check) = check(&entries) else { return };
        let Ok(bytes) = serde_json::to_vec(&Saved { check, entries }) else {
            return;
        };
        let draft = self.path.with_extension(format!("{}.draft", std::process::id()));
        if fs::write(&draft, bytes).and_then(|()| fs::rename(&draft, &self.path)).is_ok() {
            state.dirty = false;
        } else {
            let _ = fs::remove_file(&draft);
        }
    }

    fn digest_folder(&self, folder: &Path, view: View) -> Result<Digest, MemoError> {
        if let View::Part { name, bytes } = view {
            return self.digest_part_of_folder(folder, name, bytes);
        }
        let mut names: Vec<_> = fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .map_err(|source| read_error(folder, source))?;
        names.sort();
        let mut listing = Vec::new();
        for name in names {
            let digest = self.digest(&folder.join(&name), view)?;
            let name = name.as_encoded_bytes();
            listing.extend_from_slice(&(name.len() as u64).to_le_bytes());
            listing.extend_from_slice(name);
            listing.extend_from_slice(digest.as_bytes());
        }
        Ok(Digest::of(&listing))
    }

    /// A part of a folder is read from the folder as a whole: only its maker knows which files it is made of. It is
    /// memoised by the stat data of all files directly in the folder.
    fn digest_part_of_folder(
        &self,
        folder: &Path,
        name: &str,
        bytes: fn(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<Digest, MemoError> {
        let metadata = fs::metadata(folder).map_err(|source| read_error(folder, source))?;
        let stamp = folder_stamp(folder)?;
        let known = self.state.lock().ok().and_then(|state| state.entries.get(&id(&metadata, name)).cloned());
        if let Some(entry) = known.filter(|entry| entry.stamp == stamp && stamp.settled_by() <= entry.hashed) {
            return Ok(entry.digest);
        }
        let hashed = now();
        let part = bytes(folder);
        let part = part.map_err(|message| MemoError::Part { path: folder.display().to_string(), message })?;
        self.hashed.fetch_add(1, Ordering::Relaxed);
        let digest = Digest::of(&part);
        self.insert(&metadata, name, Entry { stamp, hashed, digest, ours: false });
        Ok(digest)
    }

    fn knows(&self, file: &SourceFile) -> bool {
        fs::metadata(&file.path).is_ok_and(|metadata| self.recall(&metadata, file.view.name()).is_some())
    }

    fn recall(&self, metadata: &Metadata, view: &str) -> Option<Digest> {
        let state = self.state.lock().ok()?;
        let entry = state.entries.get(&id(metadata, view))?;
        let trusted = entry.ours || entry.stamp.settled_by() <= entry.hashed;
        (entry.stamp == stamp(metadata) && trusted).then_some(entry.digest)
    }

    fn insert(&self, metadata: &Metadata, view: &str, entry: Entry) {
        if let Ok(mut state) = self.state.lock() {
            state.entries.insert(id(metadata, view), entry);
            state.dirty = true;
        }
    }
}

impl Stamp {
    /// From this moment on, a further change cannot carry the same ctime.
    fn settled_by(self) -> i64 {
        let Stamp(_, _, ctime) = self;
        ctime + if ctime % 1_000_000_000 == 0 { COARSE_GRAIN_NS } else { FINE_GRAIN_NS }
    }
}

/// The stat data of all files directly in a folder, as one stamp: their digest, and the latest of their times.
fn folder_stamp(folder: &Path) -> Result<Stamp, MemoError> {
    let failed = |source| read_error(folder, source);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A link counts as what it leads to.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        let Stamp(size, modified, changed) = stamp(&metadata);
        files.push((entry.file_name(), metadata.ino(), size, modified, changed));
    }
    files.sort();
    let latest = |times: &mut dyn Iterator<Item = i64>| times.max().unwrap_or(0);
    let modified = latest(&mut files.iter().map(|file| file.3));
    let changed = latest(&mut files.iter().map(|file| file.4));
    let digest = Digest::of(format!("{files:?}").as_bytes());
    let head = digest.as_bytes().iter().take(8).fold(0u64, |head, &byte| head << 8 | u64::from(byte));
    Ok(Stamp(head, modified, changed))
}

/// Our own fresh files become trustworthy once a later change must show; that is at most a grain away.
fn wait_out_the_grain(state: &mut State) {
    let ours = state.entries.values_mut().filter(|entry| entry.ours);
    let fresh: Vec<&mut Entry> = ours.filter(|entry| entry.stamp.settled_by() > entry.hashed).collect();
    let Some(settled) = fresh.iter().map(|entry| entry.stamp.settled_by()).max() else {
        return;
    };
    let wait = (settled - now()).clamp(0, COARSE_GRAIN_NS);
    std::thread::sleep(Duration::from_nanos(wait as u64));
    for entry in fresh {
        entry.hashed = settled;
    }
}

fn hash(path: &Path, view: View) -> Result<Digest, MemoError> {
    match view {
        View::Whole => {
            let mut file = File::open(path).map_err(|source| read_error(path, source))?;
            Digest::of_reader(&mut file).map_err(|source| read_error(path, source))
        }
        View::Part { bytes, .. } => match bytes(path) {
            Ok(bytes) => Ok(Digest::of(&bytes)),
            Err(message) => Err(MemoError::Part { path: path.display().to_string(), message }),
        },
    }
}

fn id(metadata: &Metadata, view: &str) -> Id {
    Id { device: metadata.dev(), inode: metadata.ino(), view: view.to_string() }
}

fn stamp(metadata: &Metadata) -> Stamp {
    let mtime = metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec());
    let ctime = metadata.ctime().wrapping_mul(1_000_000_000).wrapping_add(metadata.ctime_nsec());
    Stamp(metadata.len(), mtime, ctime)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

fn check(entries: &[(Id, Entry)]) -> serde_json::Result<Digest> {
    serde_json::to_vec(entries).map(|bytes| Digest::of(&bytes))
}

fn parse(bytes: &[u8]) -> Option<HashMap<Id, Entry>> {
    let saved: Saved = serde_json::from_slice(bytes).ok()?;
    (check(&saved.entries).ok()? == saved.check).then(|| saved.entries.into_iter().collect())
}

fn read_error(path: &Path, source: io::Error) -> MemoError {
    MemoError::Read { path: path.display().to_string(), source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn settled(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        std::thread::sleep(Duration::from_millis(30));
    }

    #[test]
    fn an_unchanged_file_is_read_once_even_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let (project, memo_path) = (folder.path().join("before"), folder.path().join("memo.json"));
        fs::create_dir(&project).unwrap();
        settled(&project.join("a"), "abc");
        let memo = Memo::load(&memo_path);
        assert_eq!(memo.digest(&project.join("a"), View::Whole).unwrap(), Digest::of(b"abc"));
        assert_eq!(memo.digest(&project.join("a"), View::Whole).unwrap(), Digest::of(b"abc"));
        assert_eq!(memo.files_hashed(), 1);
        memo.save();
        let moved = folder.path().join("after");
        fs::rename(&project, &moved).unwrap();
        let again = Memo::load(&memo_path);
        assert_eq!(again.digest(&moved.join("a"), View::Whole).unwrap(), Digest::of(b"abc"));
        assert_eq!(again.files_hashed(), 0);
    }

    #[test]
    fn an_edit_that_restores_size_and_mtime_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        settled(&file, "abc");
        let memo = Memo::load(&folder.path().join("memo.json"));
        memo.digest(&file, View::Whole).unwrap();
        let mtime = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "abd").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(mtime).unwrap();
        assert_eq!(memo.digest(&file, View::Whole).unwrap(), Digest::of(b"abd"));
    }

    #[test]
    fn edits_within_one_clock_tick_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        let memo = Memo::load(&folder.path().join("memo.json"));
        for i in 0..200u32 {
            let text = format!("{i:04}");
            fs::write(&file, &text).unwrap();
            assert_eq!(memo.digest(&file, View::Whole).unwrap(), Digest::of(text.as_bytes()));
        }
    }

    #[test]
    fn a_damaged_memo_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let (file, memo_path) = (folder.path().join("a"), folder.path().join("memo.json"));
        settled(&file, "abc");
        let memo = Memo::load(&memo_path);
        memo.digest(&file, View::Whole).unwrap();
        memo.save();
        let good = fs::read_to_string(&memo_path).unwrap();
        let digest = Digest::of(b"abc").to_string();
        let lie = good.replace(&digest, &Digest::of(b"lie").to_string());
        for bad in [lie.as_str(), &good[..good.len() / 2], "", "{}"] {
            fs::write(&memo_path, bad).unwrap();
            assert_eq!(Memo::load(&memo_path).digest(&file, View::Whole).unwrap(), Digest::of(b"abc"));
        }
    }

    #[test]
    fn parts_and_folders_have_digests_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("in");
        fs::create_dir(&inner).unwrap();
        settled(&inner.join("a"), "abc");
        let memo = Memo::load(&folder.path().join("memo.json"));
        let part =
            View::Part { name: "first", bytes: |path| Ok(fs::read(path).map_err(|e| e.to_string())?[..1].to_vec()) };
        assert_eq!(memo.digest(&inner.join("a"), part).unwrap(), Digest::of(b"a"));
        let before = memo.digest(&inner, View::Whole).unwrap();
        settled(&inner.join("b"), "");
        let two = memo.digest(&inner, View::Whole).unwrap();
        assert_ne!(two, before);
        fs::rename(inner.join("b"), inner.join("c")).unwrap();
        assert_ne!(memo.digest(&inner, View::Whole).unwrap(), two, "a name counts");
    }
}
