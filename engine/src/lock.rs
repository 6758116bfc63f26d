//! Advisory file locks that die with their process, so that no lock ever needs unlocking by hand.
//!
//! A lock is an flock on a file of its own, and is free the moment its owner is gone, however it went. The file is removed
//! on release; a waiter that got hold of a removed file notices and takes the new one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a waiter looks again; also how fast it notices a dead owner.
const POLL: Duration = Duration::from_millis(25);

/// An exclusive lock, released on drop.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock if nobody has it.
    pub fn try_take(path: &Path) -> io::Result<Option<Lock>> {
        loop {
            let file = open(path)?;
            match file.try_lock() {
                Ok(()) if is_current(&file, path)? => {
                    return Ok(Some(Lock { _file: file, path: path.to_path_buf() }));
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Waits for the lock; `None` when `stop` says so first.
    pub fn take(path: &Path, stop: impl Fn() -> bool) -> io::Result<Option<Lock>> {
        loop {
            if let Some(lock) = Lock::try_take(path)? {
                return Ok(Some(lock));
            }
            if stop() {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Whether somebody holds it now.
    pub fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else {
            return false;
        };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While still held, so that nobody can have locked this very file in between.
        let _ = fs::remove_file(&self.path);
    }
}

/// A readers-writer lock: runs pass it shared for moments, the garbage collector holds it alone.
#[derive(Debug)]
pub struct Gate {
    _file: File,
}

impl Gate {
    pub fn shared(path: &Path) -> io::Result<Gate> {
        let file = open(path)?;
        file.lock_shared()?;
        Ok(Gate { _file: file })
    }

    pub fn alone(path: &Path) -> io::Result<Gate> {
        let file = open(path)?;
        file.lock()?;
        Ok(Gate { _file: file })
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn is_current(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(now) => Ok(now.ino() == held.ino() && now.dev() == held.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_owner_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        let lock = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::is_held(&path));
        assert!(Lock::try_take(&path).unwrap().is_none());
        assert!(Lock::take(&path, || true).unwrap().is_none());
        drop(lock);
        assert!(!path.exists() && !Lock::is_held(&path));
        assert!(Lock::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn many_threads_never_hold_it_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let _lock = Lock::take(&path, || false).unwrap().unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::sleep(Duration::from_millis(1));
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
