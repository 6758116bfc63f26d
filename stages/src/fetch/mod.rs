//! Bringing what a recipe names by address onto this machine.
//!
//! A place is resolved once: a branch to a commit, a folder to the names in it. What that gave is kept as a [`Pin`], and every
//! later run reads the same until it is asked to look again. Only the files that the recipe reads are fetched. This module
//! alone asks the network, and only when a command calls it: checks and plans look at pins.

mod address;
mod http;
mod hub;
mod pin;
mod transfer;

use std::cell::Cell;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pipe_engine::bucket::{Bucket, BucketError};
use pipe_engine::task::Cancel;

pub use self::address::{Address, HubKind, Place};
use self::http::Http;
use self::hub::Hub;
pub(crate) use self::pin::listed_below;
pub use self::pin::{Downloads, Item, Need, Pin};
use self::transfer::{Origin, Stream, Transfer, Trouble};
use crate::ingest::files::{named, reading};
use crate::project::Project;
use crate::recipe::dataset::is_builder;
use crate::recipe::{Dataset, Recipe, Role};

/// An address that a recipe names.
pub struct Source<'a> {
    /// The recipe's key, such as `datasets[0].path`.
    pub key: String,
    pub address: Address,
    pub what: What<'a>,
}

/// What is read there.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// The files that a dataset's keys choose.
    Rows(&'a Dataset, Role),
    /// One entry of `data_files`.
    File(&'a str),
    Model(Need),
}

/// What a source lacks on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nobody has looked there yet.
    Everything,
    Files(Vec<Item>),
}

/// What a source is, now that it is here.
#[derive(Clone, Debug)]
pub struct Brought {
    pub pin: Pin,
    pub files: usize,
    pub bytes: u64,
}

/// Whether a place that was resolved before is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Once,
    Again,
}

/// Whose fault it is that something did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchKind {
    /// The address, its access, or what lies there.
    Invalid,
    /// The network or the server; another time it may work.
    Unreachable,
    /// This machine's disk.
    Local,
    Cancelled,
}

/// Why something did not come.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    pub kind: FetchKind,
    pub message: String,
    pub hint: String,
}

impl FetchError {
    fn invalid(message: impl Into<String>, hint: impl Into<String>) -> FetchError {
        FetchError { kind: FetchKind::Invalid, message: message.into(), hint: hint.into() }
    }

    fn unreachable(message: impl Into<String>) -> FetchError {
        let hint = "check the network and the proxy, then run it again; what has come is kept";
        FetchError { kind: FetchKind::Unreachable, message: message.into(), hint: hint.to_string() }
    }

    fn local(doing: &str, path: &Path, error: &io::Error) -> FetchError {
        let message = format!("cannot {doing} {}: {error}", path.display());
        FetchError { kind: FetchKind::Local, message, hint: "check the folder and the room on disk".to_string() }
    }

    fn cancelled() -> FetchError {
        let hint = "run it again to go on".to_string();
        FetchError { kind: FetchKind::Cancelled, message: "interrupted".to_string(), hint }
    }
}

impl From<BucketError> for FetchError {
    fn from(error: BucketError) -> FetchError {
        let kind = match &error {
            BucketError::Failed { .. } | BucketError::Changed { .. } => FetchKind::Unreachable,
            BucketError::Local { .. } => FetchKind::Local,
            _ => FetchKind::Invalid,
        };
        FetchError { kind, hint: error.hint().to_string(), message: error.to_string() }
    }
}

/// Every address that a recipe reads from, in the recipe's order. What is on this machine under the same name is none.
pub fn sources<'a>(recipe: &'a Recipe, project: &Project) -> Vec<Source<'a>> {
    let mut found = Vec::new();
    let mut add = |key: String, path: &str, kind: HubKind, revision: Option<&str>, what: What<'a>| {
        if let Some(address) = project.address(path, kind, revision) {
            found.push(Source { key, address, what });
        }
    };
    let revision = recipe.model_revision.as_deref();
    if let Some(path) = &recipe.base_model {
        add("base_model".into(), path, HubKind::Model, revision, What::Model(crate::compile::model_need(recipe)));
    }
    if let Some(path) = &recipe.tokenizer_config {
        add("tokenizer_config".into(), path, HubKind::Model, None, What::Model(Need::Tokenizer));
    }
    if let Some(path) = &recipe.lora_model_dir {
        add("lora_model_dir".into(), path, HubKind::Model, None, What::Model(Need::Weights));
    }
    let lists = [("datasets", &recipe.datasets, Role::Train), ("test_datasets", &recipe.test_datasets, Role::Test)];
    for (list, datasets, role) in lists {
        for (i, dataset) in datasets.iter().flatten().enumerate() {
            let path = dataset.path.as_deref().unwrap_or_default();
            if !is_builder(path) {
                let revision = dataset.revision.as_deref();
                add(format!("{list}[{i}].path"), path, HubKind::Dataset, revision, What::Rows(dataset, role));
                continue;
            }
            for file in dataset.data_files.iter().flat_map(|files| &files.0) {
                add(format!("{list}[{i}].data_files"), file, HubKind::Dataset, None, What::File(file));
            }
        }
    }
    found
}

/// The sources of nodes that read no weights: tokenizers and rows.
pub fn without_weights<'a>(sources: Vec<Source<'a>>) -> Vec<Source<'a>> {
    let lighter = |source: Source<'a>| match source.what {
        What::Model(Need::Weights) if source.key == "lora_model_dir" => None,
        What::Model(_) => Some(Source { what: What::Model(Need::Tokenizer), ..source }),
        _ => Some(source),
    };
    sources.into_iter().filter_map(lighter).collect()
}

impl Source<'_> {
    /// What has to be fetched before it can be read; nothing when all of it is here.
    pub fn missing(&self, project: &Project) -> Option<Missing> {
        let Some(pin) = project.downloads.pin(&self.address) else { return Some(Missing::Everything) };
        let snapshot = project.downloads.snapshot(&pin);
        let mut files = self.read(project, &pin).unwrap_or_default();
        files.retain(|item| !snapshot.join(&item.name).exists());
        (!files.is_empty()).then_some(Missing::Files(files))
    }

    /// The path under which the recipe's nodes look for it.
    pub fn place(&self, project: &Project) -> PathBuf {
        match self.what {
            What::Model(need) => project.downloads.model(&self.address, need),
            What::Rows(..) | What::File(_) => project.downloads.rows(&self.address),
        }
    }

    /// The files of a pin that the recipe reads.
    fn read(&self, project: &Project, pin: &Pin) -> Result<Vec<Item>, String> {
        let snapshot = project.downloads.snapshot(pin);
        let paths = match self.what {
            What::Model(need) => {
                return Ok(pin.model_files(&self.address.inside, need)?.into_iter().cloned().collect());
            }
            What::Rows(dataset, role) => reading(project, dataset, role).map_err(|wrong| wrong.message)?.sources,
            What::File(name) => {
                let files = named(project, &[name.to_string()]).map_err(|wrong| wrong.message)?;
                files.into_iter().map(PathBuf::from).collect()
            }
        };
        let mut items = Vec::new();
        for name in paths.iter().filter_map(|path| path.strip_prefix(&snapshot).ok()?.to_str()) {
            match pin.files.iter().find(|item| item.name == name) {
                Some(item) => items.push(item.clone()),
                None => return Err(format!("there is no `{name}` at {}{}", self.address.place, near(pin, name))),
            }
        }
        Ok(items)
    }
}

/// The names closest to one that is not there.
fn near(pin: &Pin, name: &str) -> String {
    let mut names: Vec<&str> = pin.files.iter().map(|item| item.name.as_str()).collect();
    names.sort_by_key(|other| strsim::osa_distance(other, name));
    if names.is_empty() { String::new() } else { format!("; there is {}", names[..names.len().min(3)].join(", ")) }
}

/// Fetches sources of one project.
pub struct Fetcher<'a> {
    pub project: &'a Project,
    pub cancel: &'a Cancel,
    /// Told what happens, one line each.
    pub tell: &'a dyn Fn(&str),
}

/// How often the progress of one file is told.
const EVERY: Duration = Duration::from_secs(5);

impl Fetcher<'_> {
    /// Brings one source in; what is here already stays as it is.
    pub fn bring(&self, source: &Source<'_>, look: Look) -> Result<Brought, FetchError> {
        if let Place::Hub { .. } = source.address.place
            && let Some(variable) = Hub::offline()
            && source.missing(self.project).is_some()
        {
            let message =
                format!("{} is not on this machine, and {variable} forbids asking the hub for it", source.address);
            let hint = format!("unset {variable} and run `pipe fetch` once, or name a local copy");
            return Err(FetchError::invalid(message, hint));
        }
        let known = self.project.downloads.pin(&source.address).filter(|_| look == Look::Once);
        let pin = match known {
            Some(pin) => pin,
            None => self.resolve(source)?,
        };
        let wrong =
            |why: String| FetchError::invalid(why, "see what is there, and name a file, a split or a folder of it");
        let snapshot = self.project.downloads.snapshot(&pin);
        let files = source.read(self.project, &pin).map_err(wrong)?;
        let files: Vec<&Item> = files.iter().filter(|item| !snapshot.join(&item.name).exists()).collect();
        let mut brought = Brought { pin: pin.clone(), files: files.len(), bytes: 0 };
        if !files.is_empty() {
            let size: Option<u64> = files.iter().map(|item| item.size).sum();
            let size = size.map_or_else(String::new, |size| format!(", {}", shown_size(size)));
            let count = if files.len() == 1 { "1 file".to_string() } else { format!("{} files", files.len()) };
            (self.tell)(&format!("fetching {} ({count}{size})", source.address));
        }
        for item in files {
            brought.bytes += self.one(&source.address.place, &pin, item)?;
        }
        Ok(brought)
    }

    /// Looks at what is there now, and keeps it as the address's meaning.
    fn resolve(&self, source: &Source<'_>) -> Result<Pin, FetchError> {
        let place = &source.address.place;
        let (revision, single, files) = match place {
            Place::Hub { kind, id, revision } => {
                let found = Hub::from_environment().list(*kind, id, revision, &place.to_string())?;
                (found.commit, None, found.files)
            }
            Place::Web(url) => {
                let stream = Http::new(None)
                    .stream(url, &place.to_string(), 0, None)
                    .map_err(|trouble| lasting(place, trouble))?;
                let (name, etag) = (source.address.name(), stream.etag);
                let item = Item { name: name.clone(), size: stream.total, etag: etag.clone(), ..Item::default() };
                (etag.unwrap_or_default(), Some(name), vec![item])
            }
            Place::Bucket(url) => {
                let (single, files) = objects(url)?;
                (String::new(), single, files)
            }
        };
        let snapshot = Pin::snapshot_of(place, &revision, &files);
        let resolved = Timestamp::now().to_string();
        let pin = Pin { address: place.to_string(), revision, resolved, snapshot, single, files };
        let folder = self.project.downloads.snapshot(&pin);
        pin.lay_out(&folder).map_err(|error| FetchError::local("create", &folder, &error))?;
        if matches!(source.what, What::Rows(..)) {
            // These say which of the other files are meant.
            for item in pin.files.iter().filter(|item| describes(&item.name) && !folder.join(&item.name).exists()) {
                self.one(place, &pin, item)?;
            }
        }
        self.keep(&source.address, &pin)?;
        Ok(pin)
    }

    fn keep(&self, address: &Address, pin: &Pin) -> Result<(), FetchError> {
        let path = self.project.downloads.pin_path(address);
        let folder = path.parent().unwrap_or(&path);
        let write = || -> io::Result<()> {
            fs::create_dir_all(folder)?;
            let draft = tempfile::NamedTempFile::new_in(folder)?;
            fs::write(draft.path(), serde_json::to_vec_pretty(pin)?)?;
            draft.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|error| FetchError::local("write", &path, &error))
    }

    /// One file into the snapshot; its size.
    fn one(&self, place: &Place, pin: &Pin, item: &Item) -> Result<u64, FetchError> {
        let shown = if pin.single.is_some() { place.to_string() } else { format!("{place}/{}", item.name) };
        let last = Cell::new(Instant::now());
        let tell = |at: u64| {
            if last.get().elapsed() >= EVERY {
                last.set(Instant::now());
                let of = item.size.map_or_else(String::new, |size| format!(" of {}", shown_size(size)));
                (self.tell)(&format!("  {}: {}{of}", item.name, shown_size(at)));
            }
        };
        let transfer = Transfer { downloads: &self.project.downloads, cancel: self.cancel, tell: &tell };
        let identity = format!("{} {} {} {:?}", pin.snapshot, pin.revision, item.name, item.etag);
        let blob = match place {
            Place::Hub { kind, id, .. } => {
                let hub = Hub::from_environment();
                transfer.bring(item, &shown, &identity, &hub.file(*kind, id, &pin.revision, &item.name))?
            }
            Place::Web(url) => {
                let page = Page { http: Http::new(None), url, shown: &shown, etag: item.etag.as_deref() };
                transfer.bring(item, &shown, &identity, &page)?
            }
            Place::Bucket(url) => {
                // An object that stands alone is read from the folder it is in.
                let folder =
                    if pin.single.is_some() { url.rsplit_once('/').map_or(url.as_str(), |(up, _)| up) } else { url };
                transfer.bring(
                    item,
                    &shown,
                    &identity,
                    &Object { bucket: Bucket::open(folder)?, item: item.clone() },
                )?
            }
        };
        let size = fs::metadata(&blob).map_or(0, |metadata| metadata.len());
        let link = self.project.downloads.snapshot(pin).join(&item.name);
        link_to(&link, &blob, &item.name).map_err(|error| FetchError::local("link", &link, &error))?;
        Ok(size)
    }
}

/// Files that say how a dataset is laid out.
fn describes(name: &str) -> bool {
    name == "README.md"
        || name.rsplit('/').next().is_some_and(|file| file == "dataset_dict.json" || file == "state.json")
}

/// The object at an address, or everything below it.
fn objects(url: &str) -> Result<(Option<String>, Vec<Item>), FetchError> {
    let item = |found: pipe_engine::bucket::Found| Item {
        name: found.name,
        size: Some(found.size),
        etag: found.etag,
        ..Item::default()
    };
    let (folder, name) = url.rsplit_once('/').unwrap_or((url, ""));
    if !folder.ends_with('/')
        && let Some(found) = Bucket::open(folder)?.find(name)?
    {
        return Ok((Some(name.to_string()), vec![item(found)]));
    }
    let files: Vec<Item> =
        Bucket::open(url)?.list("")?.into_iter().map(item).filter(|item| pin::is_plain(&item.name)).collect();
    if files.is_empty() {
        return Err(FetchError::invalid(
            format!("{url}: there is nothing"),
            "check the spelling of the bucket and the path",
        ));
    }
    Ok((None, files))
}

/// A file behind a web address, as long as it is the one that was seen first.
struct Page<'a> {
    http: Http,
    url: &'a str,
    shown: &'a str,
    etag: Option<&'a str>,
}

impl Origin for Page<'_> {
    fn open(&self, from: u64) -> Result<Stream<'_>, Trouble> {
        // Any server's etag may look like a digest, and be none.
        let stream = self.http.stream(self.url, self.shown, from, self.etag)?;
        if self.etag.is_some() && stream.etag.as_deref() != self.etag {
            let why = format!("{}: is no longer the file that was looked at first", self.shown);
            return Err(Trouble::Lasting(FetchError::invalid(why, "run `pipe fetch --update` to take the new one")));
        }
        Ok(Stream { check: None, ..stream })
    }
}

/// An object in a bucket.
struct Object {
    bucket: Bucket,
    item: Item,
}

impl Origin for Object {
    fn open(&self, from: u64) -> Result<Stream<'_>, Trouble> {
        let total = self.item.size.unwrap_or_default();
        let bytes = match total.saturating_sub(from) {
            0 => Vec::new(),
            left => self.bucket.read_part(&self.item.name, from, left, self.item.etag.as_deref()).map_err(|error| {
                let passing = matches!(error, BucketError::Failed { .. });
                if passing { Trouble::Passing(error.to_string(), None) } else { Trouble::Lasting(changed(error)) }
            })?,
        };
        let reader = Box::new(Parts { object: self, next: from + bytes.len() as u64, part: io::Cursor::new(bytes) });
        Ok(Stream { start: from, total: Some(total), etag: self.item.etag.clone(), check: None, reader })
    }
}

/// An object's bytes, asked for part by part.
struct Parts<'a> {
    object: &'a Object,
    part: io::Cursor<Vec<u8>>,
    next: u64,
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.part.read(buffer)?;
        let left = self.object.item.size.unwrap_or_default().saturating_sub(self.next);
        if read > 0 || left == 0 || buffer.is_empty() {
            return Ok(read);
        }
        let (bucket, item) = (&self.object.bucket, &self.object.item);
        let bytes = bucket.read_part(&item.name, self.next, left, item.etag.as_deref()).map_err(io::Error::other)?;
        self.next += bytes.len() as u64;
        self.part = io::Cursor::new(bytes);
        self.part.read(buffer)
    }
}

/// An object that changed since it was listed is another one.
fn changed(error: BucketError) -> FetchError {
    let is_other = matches!(error, BucketError::Changed { .. });
    let mut error = FetchError::from(error);
    if is_other {
        error.hint = "run `pipe fetch --update` to take what is there now".to_string();
    }
    error
}

fn lasting(place: &Place, trouble: Trouble) -> FetchError {
    match trouble {
        Trouble::Lasting(error) => error,
        Trouble::Passing(why, _) => FetchError::unreachable(format!("{place}: cannot be asked: {why}")),
        Trouble::Changed => FetchError::unreachable(format!("{place}: changed while it was read")),
    }
}

/// Makes `link` lead to a blob, from wherever the folder of downloads is moved to.
fn link_to(link: &Path, blob: &Path, name: &str) -> io::Result<()> {
    let up = "../".repeat(name.matches('/').count() + 2);
    let target = format!("{up}blobs/{}", blob.file_name().unwrap_or_default().to_string_lossy());
    let folder = link.parent().unwrap_or(link);
    fs::create_dir_all(folder)?;
    let draft =
        tempfile::Builder::new().prefix(".link").make_in(folder, |path| std::os::unix::fs::symlink(&target, path))?;
    fs::rename(draft.path(), link)?;
    // Renamed away: there is nothing left to remove.
    let _ = draft.into_temp_path().keep();
    Ok(())
}

/// Bytes for people.
pub fn shown_size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
