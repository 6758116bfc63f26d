//! Addresses in a recipe, read: where something lies, at which revision, and which part of it is meant.
//!
//! ```text
//! hf://datasets/ORG/NAME@v1/data/*.parquet  ->  dataset ORG/NAME, revision v1, inside data/*.parquet
//! ORG/NAME                                  ->  what the key is for, revision main, all of it
//! s3://bucket/rows/part-*.jsonl             ->  everything below s3://bucket/rows, of that part-*.jsonl
//! ```
//! Form alone decides; nothing is looked up here.

use std::fmt;

use pipe_engine::digest::Digest;

use crate::ingest::files::is_pattern;

/// What a hub keeps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubKind {
    Dataset,
    Model,
}

/// Where something lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Hub {
        kind: HubKind,
        /// `ORG/NAME`.
        id: String,
        /// As asked for: a branch, a tag or a commit.
        revision: String,
    },
    /// One file behind `https://` or `http://`.
    Web(String),
    /// An object, or all objects below a prefix, in S3, Google Cloud Storage or Azure.
    Bucket(String),
}

/// A place, and what is meant of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub place: Place,
    /// A file, a folder or a pattern; all of it when empty.
    pub inside: String,
}

/// The branch that is meant where none is named.
const MAIN: &str = "main";
const BUCKETS: [&str; 3] = ["s3", "gs", "az"];

impl Address {
    /// Reads an address or a bare hub id. `kind` is what a bare id is of; `revision` is a key beside it.
    ///
    /// # Errors
    /// Says what is wrong with it and what to write.
    pub fn parse(text: &str, kind: HubKind, revision: Option<&str>) -> Result<Address, String> {
        let Some((scheme, rest)) = text.split_once("://") else { return hub(text, kind, revision) };
        match scheme {
            "hf" => match rest.split_once('/') {
                Some(("datasets", rest)) => hub(rest, HubKind::Dataset, revision),
                Some(("models", rest)) => hub(rest, HubKind::Model, revision),
                Some(("spaces", _)) => Err(format!("`{text}` is a space; write hf://datasets/… or hf://models/…")),
                _ => hub(rest, kind, revision),
            },
            "https" | "http" => Ok(Address { place: Place::Web(text.to_string()), inside: String::new() }),
            "gcs" => bucket(&format!("gs://{rest}")),
            "s3a" | "s3n" => bucket(&format!("s3://{rest}")),
            "abfs" | "abfss" | "adl" | "wasbs" => {
                Err(format!("`{scheme}://` is not read; write az://CONTAINER/PATH and set AZURE_STORAGE_ACCOUNT_NAME"))
            }
            scheme if BUCKETS.contains(&scheme) => bucket(text),
            other => Err(format!("`{other}://` is not read; hf, https, s3, gs and az are")),
        }
    }

    /// Tells the place from every other.
    pub fn digest(&self) -> Digest {
        let exact = match &self.place {
            Place::Web(url) => url.clone(),
            _ => self.place.to_string(),
        };
        Digest::of(exact.as_bytes())
    }

    /// What the folder or file is called on this machine while nothing of it is known.
    pub fn name(&self) -> String {
        let place = match &self.place {
            Place::Hub { id, .. } => id.clone(),
            Place::Web(url) => without_query(url).to_string(),
            Place::Bucket(url) => url.clone(),
        };
        let whole = if self.inside.is_empty() { place } else { self.inside.clone() };
        let last = whole.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if last.is_empty() || is_pattern(last) { "data".to_string() } else { last.to_string() }
    }
}

impl fmt::Display for Place {
    /// As people read it: without what a web address may hide in its query.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Hub { kind, id, revision } => {
                let kind = if *kind == HubKind::Dataset { "datasets" } else { "models" };
                write!(f, "hf://{kind}/{id}@{revision}")
            }
            Place::Web(url) => {
                let url = without_query(url);
                match (url.split_once("://"), url.rsplit_once('@')) {
                    (Some((scheme, _)), Some((_, host))) => write!(f, "{scheme}://{host}"),
                    _ => f.write_str(url),
                }
            }
            Place::Bucket(url) => f.write_str(url),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.inside.is_empty() { "" } else { "/" };
        write!(f, "{}{slash}{}", self.place, self.inside)
    }
}

/// `ORG/NAME[@REVISION][/inside]`, or one of the hub's oldest ids, which have no owner.
fn hub(text: &str, kind: HubKind, key: Option<&str>) -> Result<Address, String> {
    let (id, rest) = match text.split_once('@') {
        Some((id, rest)) => (id.to_string(), Some(rest)),
        None => (text.splitn(3, '/').take(2).collect::<Vec<_>>().join("/"), None),
    };
    let id = id.trim_end_matches('/').to_string();
    let (revision, inside) = match rest {
        Some(rest) => split_revision(rest),
        None => (String::new(), text.get(id.len()..).unwrap_or_default().to_string()),
    };
    let part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if id.split('/').count() > 2 || !id.split('/').all(part) || id.split('/').any(|part| part.starts_with('.')) {
        return Err(format!("`{text}` is no hub id; write ORG/NAME, or hf://datasets/ORG/NAME@REVISION/FILE"));
    }
    let key = key.map(str::trim).filter(|key| !key.is_empty());
    let revision = match (revision.as_str(), key) {
        ("", key) => key.unwrap_or(MAIN).to_string(),
        (written, Some(key)) if key != written => {
            return Err(format!("`{text}` names the revision {written}, and the revision key says {key}"));
        }
        (written, _) => written.to_string(),
    };
    let named = |part: &str| part != "." && part != "..";
    if !revision.split('/').all(|part| !part.is_empty() && named(part)) {
        return Err(format!("`{revision}` is no revision; write a branch, a tag or a commit"));
    }
    let inside = inside.trim_matches('/').to_string();
    if !inside.split('/').all(named) {
        return Err(format!("`{text}` leads out of the repository"));
    }
    Ok(Address { place: Place::Hub { kind, id, revision }, inside })
}

/// A revision ends at the next slash, except for the two kinds of references that hold slashes.
fn split_revision(text: &str) -> (String, String) {
    let parts = if text.starts_with("refs/convert/") || text.starts_with("refs/pr/") { 3 } else { 1 };
    let end = text.match_indices('/').nth(parts - 1).map_or(text.len(), |(at, _)| at);
    (text[..end].replace("%2F", "/"), text[end..].to_string())
}

/// A bucket's address; a pattern counts from the folder above it.
fn bucket(text: &str) -> Result<Address, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    let mut parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return Err(format!("`{text}` names no bucket; write {scheme}://BUCKET/PATH"));
    }
    let fixed = parts.iter().position(|part| is_pattern(part)).unwrap_or(parts.len());
    let inside = parts.split_off(fixed).join("/");
    if parts.is_empty() {
        return Err(format!("`{text}`: a pattern may not stand in the bucket's name"));
    }
    Ok(Address { place: Place::Bucket(format!("{scheme}://{}", parts.join("/"))), inside })
}

fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        Address::parse(text, HubKind::Dataset, None)
            .map_or_else(|why| why, |found| format!("{}|{}", found.place, found.inside))
    }

    #[test]
    fn places_and_what_is_inside() {
        assert_eq!(read("hf://datasets/a/b"), "hf://datasets/a/b@main|");
        assert_eq!(read("hf://datasets/a/b@v1/data/*.parquet"), "hf://datasets/a/b@v1|data/*.parquet");
        assert_eq!(read("hf://datasets/a/b@refs/convert/parquet/x"), "hf://datasets/a/b@refs/convert/parquet|x");
        assert_eq!(read("hf://models/a/b/m.gguf"), "hf://models/a/b@main|m.gguf");
        assert_eq!(read("a/b@abc"), "hf://datasets/a/b@abc|");
        assert_eq!(read("s3://b/rows/part-*.jsonl"), "s3://b/rows|part-*.jsonl");
        assert_eq!(read("gcs://b/x.jsonl"), "gs://b/x.jsonl|");
    }

    #[test]
    fn what_is_no_place_says_what_to_write() {
        for wrong in [
            "hf://datasets/a/b/../c",
            "hf://datasets/",
            "s3://",
            "ftp://a/b",
            "abfss://a@b/c",
            "a/b@x/../y",
            "hf://spaces/a/b",
        ] {
            assert!(Address::parse(wrong, HubKind::Model, None).is_err(), "{wrong}: {}", read(wrong));
        }
        assert!(Address::parse("a/b@x", HubKind::Model, Some("y")).is_err());
        assert!(Address::parse("a/b@x", HubKind::Model, Some("x")).is_ok());
    }

    #[test]
    fn a_web_address_keeps_its_secrets() {
        let address = Address::parse("https://me:pw@host/rows.jsonl?sig=abc", HubKind::Dataset, None);
        let address = address.unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((address.to_string(), address.name()), ("https://host/rows.jsonl".into(), "rows.jsonl".into()));
    }
}
