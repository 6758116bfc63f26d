//! The store: content-addressed outputs, and a record per key that leads to one.
//!
//! Only this file turns a draft into an artifact: the draft's files are hashed, made read-only and flushed, a manifest is
//! added, and one rename makes the object appear, whole or not at all; the record follows. Objects are trusted by stat data
//! when nothing reads them and by their bytes when something does. It knows nothing of plans or of running.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde_json::json;

use crate::digest::Digest;
use crate::lock::{Gate, Lock};
use crate::manifest::{MANIFEST, Manifest, ManifestError, sync_folder};
use crate::memo::Memo;
use crate::record::Record;
use crate::task::View;

/// Changes when the layout does; an older program refuses a newer store.
const FORMAT: &str = "1";
const FOLDERS: [&str; 8] = ["objects", "keys", "latest", "drafts", "locks", "work", "quarantine", "runs"];

pub(crate) const FULL_HINT: &str = "free space (`pipe cache gc` lets old outputs go) or choose another disk with --cache-dir; what was finished is kept";

/// A store that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {doing} {path}: {source}")]
    Io { doing: &'static str, path: String, source: io::Error },
    #[error("the disk is full: cannot {doing} {path}")]
    Full { doing: &'static str, path: String },
    #[error("the store at {path} has format {found}, and this program knows format {FORMAT}")]
    Format { path: String, found: String },
    #[error("the output cannot be stored: {0}")]
    Draft(ManifestError),
}

impl StoreError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            StoreError::Io { .. } => "check the folder's permissions, or choose another one with --cache-dir",
            StoreError::Full { .. } => FULL_HINT,
            StoreError::Format { .. } => "update the program, or choose another folder with --cache-dir",
            StoreError::Draft(_) => "this is a mistake in the stage",
        }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let path = path.display().to_string();
        move |source| {
            if is_full(&source) { StoreError::Full { doing, path } } else { StoreError::Io { doing, path, source } }
        }
    }
}

impl From<ManifestError> for StoreError {
    fn from(error: ManifestError) -> StoreError {
        match error {
            ManifestError::Io { doing, path, source } => StoreError::io(doing, Path::new(&path))(source),
            other => StoreError::Draft(other),
        }
    }
}

/// How closely an object is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Existence, size and stat data; a file whose stat data changed is hashed.
    Stat,
    /// Every byte.
    Bytes,
}

/// How an object was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Sound,
    Missing,
    /// Says which file and what is wrong with it.
    Damaged(String),
}

/// What the store has for a key.
#[derive(Clone, Debug)]
pub enum Lookup {
    Hit(Box<Record>),
    /// Known, and given up on purpose.
    Evicted(Box<Record>),
    Missing(Box<Record>),
    Damaged(Box<Record>, String),
    Nothing,
}

/// A store in one folder.
pub struct Store {
    root: PathBuf,
    memo: Memo,
    /// Files whose bytes this process has checked.
    checked: Mutex<HashSet<PathBuf>>,
}

/// A folder being filled for one key; gone on drop unless published.
pub struct Draft {
    path: PathBuf,
}

impl Draft {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Store {
    /// Opens the store at `root`, making what is missing and clearing what dead processes left half-made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Store, StoreError> {
        let root = root.into();
        for folder in FOLDERS {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?;
        }
        let root = fs::canonicalize(&root).map_err(StoreError::io("open", &root))?;
        let format = root.join("format");
        match fs::read_to_string(&format) {
            Ok(found) if found.trim() == FORMAT => {}
            Ok(found) => {
                return Err(StoreError::Format { path: root.display().to_string(), found: found.trim().to_string() });
            }
            Err(_) => {
                write_atomic(&format, format!("{FORMAT}\n").as_bytes())?;
                write_atomic(&root.join(".gitignore"), b"*\n")?;
            }
        }
        let store = Store::at(root);
        store.clear_dead_drafts();
        Ok(store)
    }

    /// The store at `root` for looking only: nothing is created, and a folder that is not there is an empty store.
    pub fn peek(root: impl Into<PathBuf>) -> Store {
        let root = root.into();
        Store::at(fs::canonicalize(&root).unwrap_or(root))
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn memo(&self) -> &Memo {
        &self.memo
    }

    /// The folder of an output.
    pub fn object(&self, output: Digest) -> PathBuf {
        self.root.join("objects").join(output.to_string())
    }

    /// Where stages keep what was bought from outside, such as a model's answers. Never collected: it cannot be made again.
    pub fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }

    /// Where a key's work folders are while it is being computed, across processes.
    pub fn work(&self, key: Digest) -> PathBuf {
        self.root.join("work").join(key.to_string())
    }

    /// Whether an attempt at a key has left something, such as a checkpoint.
    pub(crate) fn is_begun(&self, key: Digest) -> bool {
        let holds_something = |folder: PathBuf| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        fs::read_dir(self.work(key))
            .is_ok_and(|attempts| attempts.flatten().any(|attempt| holds_something(attempt.path())))
    }

    /// The work folder for one attempt at a key, with what the attempt before left in it. The caller holds the key's lock.
    ///
    /// It is moved to a name of its own every time: a child of a killed run may live a few seconds longer, and must not
    /// write among its successor's checkpoints.
    pub(crate) fn take_work(&self, key: Digest) -> Result<PathBuf, StoreError> {
        let all = self.work(key);
        let folder = all.join(unique());
        let take = || -> io::Result<()> {
            fs::create_dir_all(&all)?;
            let mut left: Vec<(SystemTime, PathBuf)> = Vec::new();
            for entry in fs::read_dir(&all)? {
                let entry = entry?;
                left.push((entry.metadata()?.modified()?, entry.path()));
            }
            left.sort();
            match left.pop() {
                Some((_, latest)) => fs::rename(latest, &folder)?,
                None => fs::create_dir(&folder)?,
            }
            left.iter().try_for_each(|(_, older)| fs::remove_dir_all(older))
        };
        take().map_err(StoreError::io("create", &folder))?;
        Ok(folder)
    }

    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    pub(crate) fn lock_path(&self, key: Digest) -> PathBuf {
        self.root.join("locks").join(key.to_string())
    }

    /// Held shared while an object is looked up or published, alone while objects are given up.
    pub(crate) fn gate(&self) -> Result<Gate, StoreError> {
        let path = self.root.join("locks").join("gate");
        Gate::shared(&path).map_err(StoreError::io("lock", &path))
    }

    pub(crate) fn gate_alone(&self) -> Result<Gate, StoreError> {
        let path = self.root.join("locks").join("gate");
        Gate::alone(&path).map_err(StoreError::io("lock", &path))
    }

    /// The record of a key; a damaged one counts as absent.
    pub fn record(&self, key: Digest) -> Option<Record> {
        Record::from_bytes(&fs::read(self.record_path(key)).ok()?, key)
    }

    /// All keys that have a record file.
    pub fn keys(&self) -> Vec<Digest> {
        let Ok(entries) = fs::read_dir(self.root.join("keys")) else {
            return Vec::new();
        };
        let name = |entry: fs::DirEntry| entry.file_name().to_str().map(str::to_string);
        let mut keys: Vec<Digest> =
            entries.flatten().filter_map(name).filter_map(|name| Digest::parse(name.strip_suffix(".json")?)).collect();
        keys.sort();
        keys
    }

    /// What there is for a key.
    pub fn lookup(&self, key: Digest, depth: Depth) -> Lookup {
        let Some(record) = self.record(key).map(Box::new) else {
            return Lookup::Nothing;
        };
        match self.inspect(&record, depth) {
            Condition::Sound => Lookup::Hit(record),
            Condition::Missing if record.evicted => Lookup::Evicted(record),
            Condition::Missing => Lookup::Missing(record),
            Condition::Damaged(what) => Lookup::Damaged(record, what),
        }
    }

    /// Looks at a record's object.
    pub fn inspect(&self, record: &Record, depth: Depth) -> Condition {
        let folder = self.object(record.output);
        if !folder.is_dir() {
            return Condition::Missing;
        }
        for entry in &record.manifest.files {
            if let Err(what) = self.inspect_file(&folder.join(&entry.name), entry.size, entry.digest, depth) {
                return Condition::Damaged(format!("{} {what}", entry.name));
            }
        }
        let listing = manifest_text(record);
        let (size, digest) = (listing.len() as u64, Digest::of(listing.as_bytes()));
        if let Err(what) = self.inspect_file(&folder.join(MANIFEST), size, digest, depth) {
            return Condition::Damaged(format!("{MANIFEST} {what}"));
        }
        if depth == Depth::Stat {
            return Condition::Sound;
        }
        match extra_file(&folder, &record.manifest) {
            Some(name) => Condition::Damaged(format!("{name} does not belong there")),
            None => Condition::Sound,
        }
    }

    /// The path a reader of `file` (or of the whole output) is given, its bytes checked once per process.
    pub fn verified(&self, record: &Record, file: Option<&str>) -> Result<PathBuf, Condition> {
        let folder = self.object(record.output);
        if !folder.is_dir() {
            return Err(Condition::Missing);
        }
        for entry in record.manifest.entries(file) {
            let path = folder.join(&entry.name);
            let depth = if self.is_checked(&path) { Depth::Stat } else { Depth::Bytes };
            self.inspect_file(&path, entry.size, entry.digest, depth)
                .map_err(|what| Condition::Damaged(format!("{} {what}", entry.name)))?;
            self.note_checked(path);
        }
        match file {
            Some(file) => Ok(folder.join(file)),
            None => match extra_file(&folder, &record.manifest) {
                Some(name) => Err(Condition::Damaged(format!("{name} does not belong there"))),
                None => Ok(folder),
            },
        }
    }

    /// One file of an object, if its content is `digest`.
    pub(crate) fn verified_file(&self, object: Digest, file: &str, digest: Digest) -> Option<PathBuf> {
        let path = self.object(object).join(file);
        let size = fs::symlink_metadata(&path).ok()?.len();
        let depth = if self.is_checked(&path) { Depth::Stat } else { Depth::Bytes };
        self.inspect_file(&path, size, digest, depth).ok()?;
        self.note_checked(path.clone());
        Some(path)
    }

    /// Moves a damaged object out of the way, where it can be looked at.
    pub fn quarantine(&self, output: Digest) -> Result<(), StoreError> {
        let from = self.object(output);
        let to = self.root.join("quarantine").join(format!("{output}.{}", unique()));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("quarantine", &from)(error)),
            _ => {
                if let Ok(mut checked) = self.checked.lock() {
                    checked.retain(|path| !path.starts_with(&from));
                }
                Ok(())
            }
        }
    }

    /// An empty folder for one key's output. The caller holds the key's lock.
    pub fn draft(&self, key: Digest) -> Result<Draft, StoreError> {
        let path = self.root.join("drafts").join(format!("{key}.{}", unique()));
        fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
        Ok(Draft { path })
    }

    /// Hashes, freezes and flushes a draft's files; from here on it can only be published or dropped.
    pub fn seal(&self, draft: &Draft) -> Result<Manifest, StoreError> {
        Ok(Manifest::seal(draft.path())?)
    }

    /// Makes a sealed draft an object, and `record` lead to it.
    pub fn publish(&self, draft: Draft, record: &Record) -> Result<(), StoreError> {
        let text = manifest_text(record);
        write_file(&draft.path.join(MANIFEST), text.as_bytes())?;
        sync_folder(&draft.path).map_err(StoreError::io("flush", &draft.path))?;
        let _gate = self.gate()?;
        let object = self.object(record.output);
        while let Err(error) = fs::rename(&draft.path, &object) {
            if !object.is_dir() {
                return Err(StoreError::io("publish", &object)(error));
            }
            // The same bytes are there already, from another key or another run; unless they are no longer the same.
            if self.inspect(record, Depth::Stat) == Condition::Sound {
                return self.put_record(record);
            }
            self.quarantine(record.output)?;
        }
        let objects = self.root.join("objects");
        sync_folder(&objects).map_err(StoreError::io("flush", &objects))?;
        for entry in &record.manifest.files {
            let path = object.join(&entry.name);
            self.memo.remember(&path, entry.digest);
            self.note_checked(path);
        }
        self.memo.remember(&object.join(MANIFEST), Digest::of(text.as_bytes()));
        self.put_record(record)
    }

    /// Writes a record, replacing an older one of the same key.
    pub(crate) fn put_record(&self, record: &Record) -> Result<(), StoreError> {
        let path = self.record_path(record.key);
        let bytes = record.to_bytes().map_err(|error| StoreError::io("write", &path)(error.into()))?;
        write_atomic(&path, &bytes)
    }

    pub(crate) fn record_path(&self, key: Digest) -> PathBuf {
        self.root.join("keys").join(format!("{key}.json"))
    }

    fn at(root: PathBuf) -> Store {
        let memo = Memo::load(&root.join("memo.json"));
        Store { root, memo, checked: Mutex::default() }
    }

    fn inspect_file(&self, path: &Path, size: u64, digest: Digest, depth: Depth) -> Result<(), String> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("is missing".to_string());
            }
            Err(error) => return Err(format!("cannot be read ({error})")),
        };
        if !metadata.is_file() {
            return Err("is not a plain file".to_string());
        }
        if metadata.len() != size {
            return Err(format!("has {} bytes instead of {size}", metadata.len()));
        }
        let found = match depth {
            Depth::Stat => self.memo.digest(path, View::Whole).map_err(|error| error.to_string())?,
            Depth::Bytes => File::open(path)
                .and_then(|mut file| Digest::of_reader(&mut file))
                .map_err(|error| format!("cannot be read ({error})"))?,
        };
        if found == digest {
            return Ok(());
        }
        // The stat data did not show it, or will not the next time: nobody may believe it any longer.
        self.memo.forget(path);
        Err("has other content than was stored".to_string())
    }

    fn is_checked(&self, path: &Path) -> bool {
        self.checked.lock().is_ok_and(|checked| checked.contains(path))
    }

    fn note_checked(&self, path: PathBuf) {
        if let Ok(mut checked) = self.checked.lock() {
            checked.insert(path);
        }
    }

    /// A draft lives while its key's lock is held.
    fn clear_dead_drafts(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("drafts")) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let key = name.to_str().and_then(|name| Digest::parse(name.split('.').next()?));
            let owner = key.map(|key| Lock::try_take(&self.lock_path(key)));
            if !matches!(owner, Some(Ok(None) | Err(_))) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Writes `bytes` to `path` so that a reader, or a crash, sees the old file or the new one; durable on return.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace(path, |draft| {
        let mut file = File::create(draft)?;
        file.write_all(bytes)?;
        file.sync_all()
    })?;
    path.parent().map_or(Ok(()), sync_folder).map_err(StoreError::io("flush", path))
}

/// The same without waiting for the disk: for what a power cut may take, such as the record of a run.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace(path, |draft| fs::write(draft, bytes))
}

fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), StoreError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.{}", unique()));
    write(&draft).and_then(|()| fs::rename(&draft, path)).map_err(|error| {
        let _ = fs::remove_file(&draft);
        StoreError::io("write", path)(error)
    })
}

/// Whether the disk, or the user's share of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A short name that no other process or thread uses.
pub(crate) fn unique() -> String {
    use std::hash::{BuildHasher, RandomState};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}", RandomState::new().hash_one((std::process::id(), count)) as u32)
}

/// What lies beside an object's files, for readers without this program.
pub(crate) fn manifest_text(record: &Record) -> String {
    json!({ "digest": record.output, "files": record.manifest.files }).to_string()
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(StoreError::io("write", path))
}

fn extra_file(folder: &Path, manifest: &Manifest) -> Option<String> {
    let names = Manifest::names(folder).ok()?;
    names.into_iter().find(|name| manifest.files.iter().all(|entry| &entry.name != name))
}
