//! One file from anywhere into the folder of downloads: taken up where it broke off, checked, and there whole or not at all.
//!
//! A draft is locked while it is written, and keeps its bytes when the program ends. A finished one is hashed, compared with
//! what is known of the file, flushed, and renamed to its SHA-256.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pipe_engine::digest::Digest;
use pipe_engine::task::Cancel;
use sha2::Digest as _;

use super::FetchError;
use super::pin::{Downloads, Item};
use crate::hex::hex;

/// Tries in a row that bring nothing.
const TRIES: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(300);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(50);
const PIECE: usize = 1 << 20;

/// Where a file's bytes come from.
pub trait Origin {
    /// The bytes from `from` on, or from the start where that cannot be had.
    fn open(&self, from: u64) -> Result<Stream<'_>, Trouble>;
}

/// Bytes on their way.
pub struct Stream<'a> {
    /// The place of the first one.
    pub start: u64,
    /// All bytes of the file, where it is known.
    pub total: Option<u64>,
    pub etag: Option<String>,
    /// What the server says of the content.
    pub check: Option<Check>,
    pub reader: Box<dyn Read + 'a>,
}

/// A name of content that can be computed from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    Sha256(String),
    /// git's: SHA-1 over a head and the bytes.
    Git(String),
}

/// Why bytes stopped coming.
#[derive(Debug)]
pub enum Trouble {
    /// Another try may help; the wait that the server asks for.
    Passing(String, Option<Duration>),
    Lasting(FetchError),
    /// What was there before is no longer the file: start over.
    Changed,
}

impl Check {
    /// A hub's etags are names of content; other servers' are not.
    pub fn of_etag(etag: &str) -> Option<Check> {
        let name = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let is_hex = name.bytes().all(|byte| byte.is_ascii_hexdigit());
        match name.len() {
            64 if is_hex => Some(Check::Sha256(name)),
            40 if is_hex => Some(Check::Git(name)),
            _ => None,
        }
    }
}

/// Brings files in.
pub struct Transfer<'a> {
    pub downloads: &'a Downloads,
    pub cancel: &'a Cancel,
    /// Told how many bytes have come.
    pub tell: &'a dyn Fn(u64),
}

impl Transfer<'_> {
    /// The blob with the file's bytes. `shown` names the file in errors; `identity` tells it from all others.
    pub fn bring(&self, item: &Item, shown: &str, identity: &str, origin: &dyn Origin) -> Result<PathBuf, FetchError> {
        let blobs = self.downloads.blobs();
        if let Some(blob) = item.sha256.as_ref().map(|sha256| blobs.join(sha256)).filter(|blob| blob.is_file()) {
            return Ok(blob);
        }
        for folder in [&blobs, &self.downloads.drafts()] {
            fs::create_dir_all(folder).map_err(|error| FetchError::local("create", folder, &error))?;
        }
        let path = self.downloads.drafts().join(format!("{}.part", Digest::of(identity.as_bytes())));
        let failed = |error: io::Error| FetchError::local("write", &path, &error);
        let mut file = lock(&path).map_err(failed)?;
        // Without a validator nobody can say that the rest belongs to what is here.
        if item.sha256.is_none() && item.git.is_none() && item.etag.is_none() {
            file.set_len(0).map_err(failed)?;
        }
        for attempt in 0..2 {
            let said = self.fill(&mut file, item, shown, origin).map_err(|error| error.of(&path))?;
            let (sha256, git) = names(&mut file).map_err(failed)?;
            let size = file.metadata().map_err(failed)?.len();
            let fits = |check: &Check| match check {
                Check::Sha256(name) => *name == sha256,
                Check::Git(name) => *name == git,
            };
            let known = [item.sha256.clone().map(Check::Sha256), item.git.clone().map(Check::Git)];
            if known.iter().flatten().chain(&said).all(fits) && item.size.is_none_or(|told| told == size) {
                file.sync_all().map_err(failed)?;
                let blob = blobs.join(sha256);
                fs::rename(&path, &blob).map_err(failed)?;
                return Ok(blob);
            }
            if attempt == 0 {
                file.set_len(0).map_err(failed)?;
            }
        }
        let _ = fs::remove_file(&path);
        Err(FetchError::invalid(
            format!("{shown}: came twice with other bytes than it is said to have"),
            "the copy there is damaged, or something on the way changes it; try another network, or another revision",
        ))
    }

    /// Reads until the file is whole; what the server said of its content.
    fn fill(&self, file: &mut File, item: &Item, shown: &str, origin: &dyn Origin) -> Result<Option<Check>, Broken> {
        let (mut fruitless, mut wait) = (0, FIRST_WAIT);
        loop {
            let before = file.metadata()?.len();
            if item.size == Some(before) && (item.sha256.is_some() || item.git.is_some()) {
                return Ok(None);
            }
            let (why, asked) = match self.pour(file, before, item, origin)? {
                Ok(check) => return Ok(check),
                Err(Trouble::Lasting(error)) => return Err(Broken::Told(error)),
                Err(Trouble::Changed) => {
                    file.set_len(0)?;
                    ("the file there changed while it was read".to_string(), None)
                }
                Err(Trouble::Passing(why, asked)) => (why, asked),
            };
            fruitless = if file.metadata()?.len() > before { 0 } else { fruitless + 1 };
            if fruitless >= TRIES {
                return Err(Broken::Told(FetchError::unreachable(format!("{shown}: {why}, {TRIES} times in a row"))));
            }
            self.sleep(asked.unwrap_or(wait).min(LONGEST_WAIT))?;
            wait = if fruitless == 0 { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        }
    }

    /// One response into the file.
    fn pour(
        &self,
        file: &mut File,
        from: u64,
        item: &Item,
        origin: &dyn Origin,
    ) -> Result<Result<Option<Check>, Trouble>, Broken> {
        let mut stream = match origin.open(from) {
            Ok(stream) => stream,
            Err(trouble) => return Ok(Err(trouble)),
        };
        file.set_len(stream.start)?;
        file.seek(SeekFrom::Start(stream.start))?;
        let mut at = stream.start;
        let mut piece = vec![0; PIECE];
        loop {
            self.cancel.check().map_err(|_| Broken::Told(FetchError::cancelled()))?;
            let read = match stream.reader.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Err(Trouble::Passing(error.to_string(), None))),
            };
            file.write_all(&piece[..read])?;
            at += read as u64;
            (self.tell)(at);
        }
        match stream.total.or(item.size) {
            Some(total) if at < total => {
                Ok(Err(Trouble::Passing(format!("the transfer ended after {at} of {total} bytes"), None)))
            }
            _ => Ok(Ok(stream.check)),
        }
    }

    fn sleep(&self, time: Duration) -> Result<(), Broken> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.cancel.check().map_err(|_| Broken::Told(FetchError::cancelled()))?;
            std::thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}

/// Why a draft was not filled.
enum Broken {
    Told(FetchError),
    Disk(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Disk(error)
    }
}

impl Broken {
    fn of(self, path: &Path) -> FetchError {
        match self {
            Broken::Told(error) => error,
            Broken::Disk(error) => FetchError::local("write", path, &error),
        }
    }
}

/// The draft, held by this process alone; another one that fetches the same waits here.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.lock()?;
        // Whoever held it may have finished and renamed it away.
        let held = file.metadata()?;
        if fs::metadata(path).is_ok_and(|now| now.ino() == held.ino()) {
            return Ok(file);
        }
    }
}

/// SHA-256, and git's name, of what the file holds.
fn names(file: &mut File) -> io::Result<(String, String)> {
    let mut sha256 = sha2::Sha256::new();
    let mut git = <sha1::Sha1 as sha1::Digest>::new();
    sha1::Digest::update(&mut git, format!("blob {}\0", file.metadata()?.len()).as_bytes());
    file.seek(SeekFrom::Start(0))?;
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            break;
        }
        sha256.update(&piece[..read]);
        sha1::Digest::update(&mut git, &piece[..read]);
    }
    Ok((hex(&sha256.finalize()), hex(&sha1::Digest::finalize(git))))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Gives `pieces` one after another, each request from where the last ended, unless it is told to start over.
    struct Pieces {
        all: &'static [u8],
        cuts: RefCell<Vec<usize>>,
        asked: RefCell<Vec<u64>>,
        resumes: bool,
    }

    impl Origin for Pieces {
        fn open(&self, from: u64) -> Result<Stream<'_>, Trouble> {
            self.asked.borrow_mut().push(from);
            let start = if self.resumes { from as usize } else { 0 };
            let end = self.cuts.borrow_mut().pop().unwrap_or(self.all.len());
            let reader: Box<dyn Read> = Box::new(&self.all[start.min(end)..end]);
            Ok(Stream { start: start as u64, total: Some(self.all.len() as u64), etag: None, check: None, reader })
        }
    }

    fn bring(origin: &Pieces, item: Item) -> (tempfile::TempDir, Result<String, String>) {
        let folder = tempfile::tempdir().unwrap();
        let downloads = Downloads::at(folder.path());
        let transfer = Transfer { downloads: &downloads, cancel: &Cancel::default(), tell: &|_| {} };
        let blob = transfer.bring(&item, "shown", "identity", origin);
        let text = blob.map(|blob| fs::read_to_string(blob).unwrap()).map_err(|error| error.message);
        (folder, text)
    }

    /// git hash-object.
    const HELLO: &str = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";

    fn item(git: &str) -> Item {
        Item { name: "x".into(), git: Some(git.into()), ..Item::default() }
    }

    #[test]
    fn a_broken_transfer_goes_on_where_it_broke() {
        for resumes in [true, false] {
            let origin = Pieces { all: b"hello", cuts: RefCell::new(vec![4, 2]), asked: RefCell::default(), resumes };
            let (folder, text) = bring(&origin, item(HELLO));
            assert_eq!(text.unwrap(), "hello");
            assert_eq!(*origin.asked.borrow(), [0, 2, 4]);
            assert_eq!(fs::read_dir(folder.path().join("drafts")).unwrap().count(), 0);
        }
    }

    #[test]
    fn other_bytes_than_promised_are_refused_and_not_kept() {
        let origin = Pieces { all: b"hellO", cuts: RefCell::default(), asked: RefCell::default(), resumes: true };
        let (folder, text) = bring(&origin, item(HELLO));
        assert!(text.unwrap_err().contains("other bytes"));
        assert_eq!(*origin.asked.borrow(), [0, 0]);
        let left = |name: &str| fs::read_dir(folder.path().join(name)).unwrap().count();
        assert_eq!((left("drafts"), left("blobs")), (0, 0));
    }

    #[test]
    fn etags_that_name_content_are_told_from_others() {
        assert_eq!(Check::of_etag(&format!("\"{HELLO}\"")), Some(Check::Git(HELLO.into())));
        assert!(matches!(Check::of_etag(&format!("W/\"{}\"", "a".repeat(64))), Some(Check::Sha256(_))));
        assert_eq!(Check::of_etag("\"5d41402abc4b2a76b9719d911017c592\""), None);
    }
}
