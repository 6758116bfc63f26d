//! The Hugging Face Hub, or a server with its interface: what a repository holds at a revision, and its files.
//!
//! HF_ENDPOINT names another server. The token is read from where huggingface_hub reads it, is sent to that server only, and
//! goes nowhere else. HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids asking.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use super::FetchError;
use super::address::HubKind;
use super::http::{Http, refused};
use super::pin::{Item, is_plain};
use super::transfer::{Origin, Stream, Trouble};

const ENDPOINT: &str = "https://huggingface.co";
/// Tries of a listing.
const TRIES: usize = 3;

/// A hub.
pub struct Hub {
    endpoint: String,
    http: Http,
    has_token: bool,
}

/// What a repository holds at a commit.
pub struct Repository {
    pub commit: String,
    pub files: Vec<Item>,
}

/// A file of a repository.
pub struct HubFile<'a> {
    hub: &'a Hub,
    url: String,
    shown: String,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Hub {
    /// The hub that the environment names, with the token that is there for it.
    pub fn from_environment() -> Hub {
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let token = token();
        let has_token = token.is_some();
        Hub { http: Http::new(token.map(|token| (endpoint.clone(), token))), endpoint, has_token }
    }

    /// The variable that forbids asking, if one does.
    pub fn offline() -> Option<&'static str> {
        let on = |name: &&str| {
            set(name).is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(on)
    }

    /// The commit that `revision` means now, and the names of all files at it.
    pub fn list(&self, kind: HubKind, id: &str, revision: &str, shown: &str) -> Result<Repository, FetchError> {
        let kinds = if kind == HubKind::Dataset { "datasets" } else { "models" };
        let url = format!("{}/api/{kinds}/{id}/revision/{}", self.endpoint, encoded(revision, ""));
        let with_sizes = format!("{url}?blobs=true");
        let mut answer = self.ask(&with_sizes, shown)?;
        if answer == Err(404) {
            // A server without the sizes; the files themselves say them as well.
            answer = self.ask(&url, shown)?;
        }
        let text = answer.map_err(|status| refused(shown, status, self.has_token))?;
        let wrong = |why: String| {
            FetchError::unreachable(format!("{shown}: {} answered what is no listing: {why}", self.endpoint))
        };
        let listing: Listing = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if listing.sha.is_empty() || !listing.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(wrong(format!("`{}` is no commit", listing.sha)));
        }
        let files = listing.siblings.into_iter().filter(|sibling| is_plain(&sibling.rfilename)).map(item).collect();
        Ok(Repository { commit: listing.sha, files })
    }

    /// A file at a commit.
    pub fn file(&self, kind: HubKind, id: &str, commit: &str, name: &str) -> HubFile<'_> {
        let folder = if kind == HubKind::Dataset { "datasets/" } else { "" };
        let url = format!("{}/{folder}{id}/resolve/{commit}/{}", self.endpoint, encoded(name, "/"));
        HubFile { hub: self, url, shown: format!("{id}/{name} at {commit}") }
    }

    fn ask(&self, url: &str, shown: &str) -> Result<Result<String, u16>, FetchError> {
        let mut why = String::new();
        for _ in 0..TRIES {
            match self.http.text(url) {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Lasting(error)) => return Err(error),
                Err(Trouble::Passing(reason, _)) => why = reason,
                Err(Trouble::Changed) => {}
            }
        }
        Err(FetchError::unreachable(format!("{shown}: {} cannot be asked: {why}", self.endpoint)))
    }
}

impl Origin for HubFile<'_> {
    fn open(&self, from: u64) -> Result<Stream<'_>, Trouble> {
        self.hub.http.stream(&self.url, &self.shown, from, None)
    }
}

fn item(sibling: Sibling) -> Item {
    let (sha256, lfs_size) = sibling.lfs.map_or((None, None), |lfs| (lfs.sha256, lfs.size));
    let is_hex =
        |name: &String, digits: usize| name.len() == digits && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let sha256 = sha256.filter(|name| is_hex(name, 64));
    // A file in LFS has a pointer in git, and git's name is the pointer's.
    let git = sibling.blob_id.filter(|name| sha256.is_none() && lfs_size.is_none() && is_hex(name, 40));
    Item { name: sibling.rfilename, size: lfs_size.or(sibling.size), sha256, git, etag: None }
}

/// HF_TOKEN, else the file that `hf auth login` writes.
fn token() -> Option<String> {
    let file = || {
        let home =
            || set("HF_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")));
        let path = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")))?;
        fs::read_to_string(path).ok()
    };
    let token = set("HF_TOKEN").or_else(file)?.trim().to_string();
    (!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())).then_some(token)
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// As it stands in a URL; what is in `keep` stays.
fn encoded(text: &str, keep: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let c = byte as char;
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || keep.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_urls_as_they_must() {
        assert_eq!(encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encoded("data/a b#1.jsonl", "/"), "data/a%20b%231.jsonl");
    }

    #[test]
    fn a_pointer_is_not_the_file() {
        let sibling = |json: &str| item(serde_json::from_str(json).unwrap());
        let (sha, git) = ("a".repeat(64), "b".repeat(40));
        let lfs = sibling(&format!(
            r#"{{"rfilename":"m","size":5,"blobId":"{git}","lfs":{{"sha256":"{sha}","size":5,"pointerSize":1}}}}"#
        ));
        assert_eq!((lfs.sha256, lfs.git, lfs.size), (Some(sha), None, Some(5)));
        let plain = sibling(&format!(r#"{{"rfilename":"m","size":5,"blobId":"{git}"}}"#));
        assert_eq!((plain.sha256, plain.git), (None, Some(git)));
        assert_eq!(sibling(r#"{"rfilename":"m"}"#), Item { name: "m".into(), ..Item::default() });
    }
}
