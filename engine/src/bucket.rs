//! Buckets of S3, Google Cloud Storage and Azure, and folders in their place, behind a few blocking calls.
//!
//! The only file that names object_store and an async runtime. It knows names and bytes, never what they mean. Credentials
//! and endpoints come from the environment variables of each provider; nothing of them is kept, printed or part of an address.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path as FilePath;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, GetOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig};
use tokio::runtime::Runtime;

use crate::credentials;

/// The schemes of addresses that lead to a bucket.
pub const SCHEMES: [&str; 4] = ["s3", "gs", "az", "file"];

/// Bytes asked for or sent at once. An interrupted transfer loses at most this much.
const PART: u64 = 16 << 20;
/// S3 refuses smaller parts of a larger object.
const WHOLE: u64 = 64 << 20;

/// A bucket, or everything in it under one prefix.
pub struct Bucket {
    address: String,
    prefix: String,
    store: Box<dyn ObjectStore>,
    runtime: Runtime,
}

/// An object as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Below the bucket's prefix.
    pub name: String,
    pub size: u64,
    /// Changes when the content does.
    pub etag: Option<String>,
}

/// Why a bucket did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The address itself, or the environment it needs, is wrong.
    #[error("{address}: {why}")]
    Address { address: String, why: String },
    #[error("{address}: there is no such object")]
    Missing { address: String },
    #[error("{address}: access is refused ({why})")]
    Refused { address: String, why: String },
    /// The object is no longer the one that was listed.
    #[error("{address}: changed while it was read")]
    Changed { address: String },
    #[error("{address}: {why}")]
    Failed { address: String, why: String },
    #[error("{context}: {source}")]
    Local { context: String, source: std::io::Error },
}

impl BucketError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            BucketError::Address { .. } => "write it as s3://bucket/prefix, gs://…, az://container/… or file:///folder",
            BucketError::Missing { .. } => "check the spelling, and that the object was not removed",
            BucketError::Refused { .. } => {
                "set the credentials where the provider's own tools look: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or \
                 ~/.aws/credentials, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
            }
            BucketError::Changed { .. } => "wait until it is written, then try again",
            BucketError::Failed { .. } => "check the network, the endpoint and the credentials, then try again",
            BucketError::Local { .. } => "check the folder's permissions and the room on disk",
        }
    }
}

/// Scheme, bucket and prefix of an address; a folder has no bucket.
fn parts(address: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = address.split_once("://")?;
    if scheme == "file" {
        return rest.starts_with('/').then_some((scheme, "", rest));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    (!bucket.is_empty()).then_some((scheme, bucket, prefix.trim_matches('/')))
}

impl Bucket {
    /// The bucket at `s3://bucket/prefix`, `gs://…`, `az://container/…` or `file:///folder`. Nothing is asked of it yet.
    pub fn open(address: &str) -> Result<Bucket, BucketError> {
        let wrong = |why: String| BucketError::Address { address: address.to_string(), why };
        let (scheme, bucket, prefix) = parts(address).ok_or_else(|| wrong("is no address of a bucket".to_string()))?;
        let store: Box<dyn ObjectStore> = match scheme {
            "s3" => Box::new(s3(bucket).map_err(|error| wrong(root(&error)))?),
            "gs" => Box::new(gs(bucket).map_err(|error| wrong(root(&error)))?),
            "az" => Box::new(az(bucket).map_err(|error| wrong(root(&error)))?),
            "file" => {
                std::fs::create_dir_all(prefix).map_err(|error| wrong(error.to_string()))?;
                Box::new(LocalFileSystem::new_with_prefix(prefix).map_err(|error| wrong(root(&error)))?)
            }
            other => return Err(wrong(format!("`{other}` is not one of {}", SCHEMES.join(", ")))),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Bucket {
            address: address.trim_end_matches('/').to_string(),
            prefix: if scheme == "file" { String::new() } else { prefix.to_string() },
            store,
            runtime: runtime.map_err(|error| wrong(error.to_string()))?,
        })
    }

    /// As it was written, without a slash at its end.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Everything below `folder` (all of it when empty), in name order.
    pub fn list(&self, folder: &str) -> Result<Vec<Found>, BucketError> {
        let path = self.path(folder)?;
        let listed = self.runtime.block_on(self.store.list(Some(&path)).try_collect::<Vec<_>>());
        let strip = |path: &Path| {
            let name = path.as_ref();
            name.strip_prefix(self.prefix.as_str()).unwrap_or(name).trim_start_matches('/').to_string()
        };
        let found =
            |meta: object_store::ObjectMeta| Found { name: strip(&meta.location), size: meta.size, etag: meta.e_tag };
        let mut found: Vec<Found> =
            listed.map_err(|error| self.failed(folder, error))?.into_iter().map(found).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// One object, if it is there.
    pub fn find(&self, name: &str) -> Result<Option<Found>, BucketError> {
        let path = self.path(name)?;
        match self.runtime.block_on(self.store.head(&path)) {
            Ok(meta) => Ok(Some(Found { name: name.to_string(), size: meta.size, etag: meta.e_tag })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    /// A small object's bytes, if it is there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, BucketError> {
        let path = self.path(name)?;
        let read = async { self.store.get(&path).await?.bytes().await };
        match self.runtime.block_on(read) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    /// Some bytes of an object, as long as it has this etag.
    pub fn read_part(&self, name: &str, from: u64, size: u64, etag: Option<&str>) -> Result<Vec<u8>, BucketError> {
        let options = GetOptions::default().with_range(Some(from..from + size.min(PART))).with_if_match(etag);
        let path = self.path(name)?;
        let read = async { self.store.get_opts(&path, options).await?.bytes().await };
        self.runtime.block_on(read).map(|bytes| bytes.to_vec()).map_err(|error| self.failed(name, error))
    }

    /// Copies an object into a file, part by part; one that is shorter than told is another one.
    pub fn download(&self, name: &str, size: u64, to: &FilePath) -> Result<(), BucketError> {
        let local = |source| BucketError::Local { context: format!("cannot write {}", to.display()), source };
        let mut file = File::create(to).map_err(local)?;
        let mut at = 0;
        while at < size {
            let part = match self.read_part(name, at, size - at, None) {
                // Servers differ in what they say of bytes beyond the end.
                Err(BucketError::Failed { .. }) if self.find(name)?.is_some_and(|found| found.size != size) => {
                    Vec::new()
                }
                part => part?,
            };
            if (part.len() as u64) < PART.min(size - at) {
                return Err(BucketError::Changed { address: self.named(name) });
            }
            file.write_all(&part).map_err(local)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    pub fn write(&self, name: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        let path = self.path(name)?;
        let put = self.runtime.block_on(self.store.put(&path, PutPayload::from(bytes)));
        put.map(|_| ()).map_err(|error| self.failed(name, error))
    }

    /// Copies a file into the bucket. It appears there whole or not at all.
    pub fn upload(&self, name: &str, from: &FilePath) -> Result<(), BucketError> {
        let local = |source| BucketError::Local { context: format!("cannot read {}", from.display()), source };
        let mut file = File::open(from).map_err(local)?;
        let size = file.metadata().map_err(local)?.len();
        if size <= WHOLE {
            let mut bytes = Vec::with_capacity(size as usize);
            file.read_to_end(&mut bytes).map_err(local)?;
            return self.write(name, bytes);
        }
        let path = self.path(name)?;
        let failed = |error| self.failed(name, error);
        let mut upload = self.runtime.block_on(self.store.put_multipart(&path)).map_err(failed)?;
        loop {
            let mut part = Vec::new();
            (&mut file).take(PART).read_to_end(&mut part).map_err(local)?;
            if part.is_empty() {
                break;
            }
            let sent = self.runtime.block_on(upload.put_part(PutPayload::from(part)));
            if let Err(error) = sent {
                let _ = self.runtime.block_on(upload.abort());
                return Err(failed(error));
            }
        }
        self.runtime.block_on(upload.complete()).map(|_| ()).map_err(failed)
    }

    fn named(&self, name: &str) -> String {
        if name.is_empty() { self.address.clone() } else { format!("{}/{name}", self.address) }
    }

    fn path(&self, name: &str) -> Result<Path, BucketError> {
        let both = [self.prefix.as_str(), name].join("/");
        let why = |error: object_store::path::Error| BucketError::Address {
            address: self.named(name),
            why: error.to_string(),
        };
        Path::parse(both.trim_matches('/')).map_err(why)
    }

    fn failed(&self, name: &str, error: object_store::Error) -> BucketError {
        use object_store::Error;
        let address = self.named(name);
        match &error {
            Error::NotFound { .. } => BucketError::Missing { address },
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                BucketError::Refused { address, why: root(&error) }
            }
            Error::Precondition { .. } => BucketError::Changed { address },
            _ => BucketError::Failed { address, why: root(&error) },
        }
    }
}

fn s3(bucket: &str) -> object_store::Result<impl ObjectStore> {
    let key = |name| AmazonS3ConfigKey::Client(name);
    let mut builder = AmazonS3Builder::from_env();
    for (name, value) in credentials::aws() {
        if let Ok(name) = name.parse::<AmazonS3ConfigKey>()
            && builder.get_config_value(&name).is_none()
        {
            builder = builder.with_config(name, value);
        }
    }
    for (name, value) in LIMITS {
        builder = builder.with_config(key(name), value);
    }
    builder.with_bucket_name(bucket).with_retry(retry()).build()
}

fn gs(bucket: &str) -> object_store::Result<impl ObjectStore> {
    let mut builder = GoogleCloudStorageBuilder::from_env();
    for (name, value) in LIMITS {
        builder = builder.with_config(GoogleConfigKey::Client(name), value);
    }
    builder.with_bucket_name(bucket).with_retry(retry()).build()
}

fn az(container: &str) -> object_store::Result<impl ObjectStore> {
    let mut builder = MicrosoftAzureBuilder::from_env();
    for (name, value) in LIMITS {
        builder = builder.with_config(AzureConfigKey::Client(name), value);
    }
    builder.with_container_name(container).with_retry(retry()).build()
}

/// A part must come within two minutes, a connection within five seconds.
const LIMITS: [(ClientConfigKey, &str); 2] =
    [(ClientConfigKey::ConnectTimeout, "5 seconds"), (ClientConfigKey::Timeout, "120 seconds")];

/// A hiccup is waited out; a server that is gone is noticed within seconds.
fn retry() -> RetryConfig {
    use std::time::Duration;
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 };
    RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(15) }
}

/// The innermost reason; what wraps it repeats addresses and retry counts.
fn root(error: &object_store::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_serves_as_a_bucket() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::open(&format!("file://{}/shared/", folder.path().display())).unwrap();
        assert_eq!(bucket.read("a/b").unwrap(), None);
        bucket.write("a/b", b"hello".to_vec()).unwrap();
        assert_eq!(bucket.read("a/b").unwrap().unwrap(), b"hello");
        assert_eq!(bucket.find("a/b").unwrap().unwrap().size, 5);
        assert_eq!(bucket.read_part("a/b", 1, 3, None).unwrap(), b"ell");
        let copy = folder.path().join("copy");
        bucket.download("a/b", 5, &copy).unwrap();
        bucket.upload("c", &copy).unwrap();
        let names: Vec<String> = bucket.list("").unwrap().into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["a/b", "c"]);
        assert!(matches!(bucket.read_part("none", 0, 1, None), Err(BucketError::Missing { .. })));
    }

    #[test]
    fn an_address_says_where() {
        assert_eq!(parts("s3://b/some/where/"), Some(("s3", "b", "some/where")));
        assert_eq!(parts("gs://b"), Some(("gs", "b", "")));
        assert_eq!(parts("file:///x/y"), Some(("file", "", "/x/y")));
        for wrong in ["s3://", "file://x", "/x/y", "ftp://x/y", "s3:/b"] {
            assert!(Bucket::open(wrong).is_err(), "{wrong}");
        }
    }
}
