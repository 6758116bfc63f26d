//! The shared layer of the store: one bucket that many stores take finished work from and give theirs to.
//!
//! ```text
//! objects/OUTPUT/FILE…           the files of an output
//! objects/OUTPUT/manifest.json   written after them: where it is, all of them are
//! keys/KEY.json                  the record that leads to the output, written last
//! ```
//! What comes from there is believed no more than a damaged disk: names are checked, every byte is hashed, and only what
//! equals its record is published. It knows nothing of plans; that its failures never fail a run is the caller's part.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bucket::{Bucket, BucketError};
use crate::digest::Digest;
use crate::manifest::MANIFEST;
use crate::record::Record;
use crate::store::{Condition, Depth, Draft, Store, StoreError, manifest_text};

/// A shared store.
pub struct Remote {
    bucket: Bucket,
    /// Set at the first failure: a server that is gone is asked once.
    off: AtomicBool,
    /// Keys whose shared output was found wrong, and is to be replaced.
    wrong: Mutex<HashSet<Digest>>,
}

/// What the shared store had for a key.
pub(crate) enum Taken {
    Nothing,
    /// Now in the local store as well.
    Output(Box<Record>),
    /// It was there, and is not what it claims to be.
    Wrong(String),
}

/// Why the shared store is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Remote {
    /// The shared store at `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///folder`.
    pub fn open(address: &str) -> Result<Remote, BucketError> {
        let bucket = Bucket::open(address)?;
        Ok(Remote { bucket, off: AtomicBool::new(false), wrong: Mutex::default() })
    }

    pub fn address(&self) -> &str {
        self.bucket.address()
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.off.load(Ordering::SeqCst)
    }

    /// Asks nothing more of it; true for the first who says so.
    pub(crate) fn give_up(&self) -> bool {
        !self.off.swap(true, Ordering::SeqCst)
    }

    /// Brings a key's output into `store`. The caller holds the key's lock.
    pub(crate) fn take(&self, store: &Store, key: Digest) -> Result<Taken, RemoteError> {
        let Some(bytes) = self.bucket.read(&record_name(key))? else { return Ok(Taken::Nothing) };
        let taken = match sound_record(&bytes, key) {
            Ok(record) => self.bring(store, record)?,
            Err(what) => Taken::Wrong(what),
        };
        if matches!(taken, Taken::Wrong(_))
            && let Ok(mut wrong) = self.wrong.lock()
        {
            wrong.insert(key);
        }
        Ok(taken)
    }

    fn bring(&self, store: &Store, record: Record) -> Result<Taken, RemoteError> {
        if store.inspect(&record, Depth::Bytes) == Condition::Sound {
            store.put_record(&record)?;
            return Ok(Taken::Output(Box::new(record)));
        }
        let draft = store.draft(record.key)?;
        for entry in &record.manifest.files {
            match self.download(&record, &entry.name, entry.size, &draft) {
                Ok(()) => {}
                Err(RemoteError::Bucket(BucketError::Missing { .. } | BucketError::Changed { .. })) => {
                    return Ok(Taken::Wrong(format!("{} is missing or too short", entry.name)));
                }
                Err(error) => return Err(error),
            }
        }
        let found = store.seal(&draft)?;
        if let Some(wrong) = found.files.iter().zip(&record.manifest.files).find(|(found, told)| found != told) {
            return Ok(Taken::Wrong(format!("{} has other content than its record says", wrong.1.name)));
        }
        store.publish(draft, &record)?;
        Ok(Taken::Output(Box::new(record)))
    }

    fn download(&self, record: &Record, name: &str, size: u64, draft: &Draft) -> Result<(), RemoteError> {
        let to = draft.path().join(name);
        let folder = to.parent().unwrap_or(draft.path());
        std::fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        self.bucket.download(&object_name(record.output, name), size, &to)?;
        Ok(())
    }

    /// Puts a stored output there, unless it is there already.
    pub(crate) fn give(&self, store: &Store, record: &Record) -> Result<(), RemoteError> {
        let replace = self.wrong.lock().is_ok_and(|mut wrong| wrong.remove(&record.key));
        let record_name = record_name(record.key);
        if !replace && self.bucket.find(&record_name)?.is_some() {
            return Ok(());
        }
        let manifest = object_name(record.output, MANIFEST);
        if replace || self.bucket.find(&manifest)?.is_none() {
            let folder = store.object(record.output);
            for entry in &record.manifest.files {
                self.bucket.upload(&object_name(record.output, &entry.name), &folder.join(&entry.name))?;
            }
            self.bucket.write(&manifest, manifest_text(record).into_bytes())?;
        }
        let bytes = shared(record)
            .to_bytes()
            .map_err(|error| StoreError::io("write", Path::new(&record_name))(error.into()))?;
        Ok(self.bucket.write(&record_name, bytes)?)
    }
}

/// The record as others may see it: folders of this machine are nobody else's business.
fn shared(record: &Record) -> Record {
    let mut record = record.clone();
    record.evicted = false;
    for fact in record.origin.files.values_mut() {
        let name = PathBuf::from(&fact.path);
        fact.path = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    }
    record
}

/// The record in `bytes`, if it is this key's and holds together.
fn sound_record(bytes: &[u8], key: Digest) -> Result<Record, String> {
    let record = Record::from_bytes(bytes, key).ok_or("its record is damaged")?;
    if record.ingredients.key() != key || record.manifest.digest() != record.output {
        return Err("its record contradicts itself".to_string());
    }
    match record.manifest.files.iter().find(|entry| !is_plain(&entry.name)) {
        Some(entry) => Err(format!("its record names a file outside the output ({})", entry.name)),
        None => Ok(Record { evicted: false, ..record }),
    }
}

/// A name that stays within its folder.
fn is_plain(name: &str) -> bool {
    let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
    !name.is_empty() && name != MANIFEST && Path::new(name).components().all(normal)
}

fn record_name(key: Digest) -> String {
    format!("keys/{key}.json")
}

fn object_name(output: Digest, file: &str) -> String {
    format!("objects/{output}/{file}")
}
