//! What can be wrong with model files, each with the place and the remedy.

use std::path::{Path, PathBuf};

/// A problem with files on disk. Every message names the path, the reason and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("no model at {path}: there is no such file or folder; check the path or download the model there first")]
    Missing { path: PathBuf },
    #[error("{path} holds no model weights: {why}")]
    NoWeights { path: PathBuf, why: String },
    #[error("{path} is damaged: {what}; fetch the file again")]
    Damaged { path: PathBuf, what: String },
    #[error("{path}: {what}")]
    Unsupported { path: PathBuf, what: String },
    #[error(
        "{path}: architecture {architecture} is not supported; supported are {}. Choose a model of one of these",
        supported.join(", ")
    )]
    Architecture { path: PathBuf, architecture: String, supported: Vec<String> },
    #[error("{path}: tensor {name} {what}; the weights do not belong to this configuration, or a shard is missing")]
    Tensor { path: PathBuf, name: String, what: String },
    #[error("{path}: {key} {what}")]
    Config { path: PathBuf, key: String, what: String },
    #[error("{path}: the tokenizer cannot be used: {what}")]
    Tokenizer { path: PathBuf, what: String },
    #[error("{path} cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be written: {source}; check free space and permissions, then run again")]
    Write { path: PathBuf, source: std::io::Error },
}

impl FilesError {
    /// Whether what was given is at fault (exit code 2) rather than the work itself (1).
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| match source.kind() {
            std::io::ErrorKind::NotFound => Self::Missing { path: path.to_owned() },
            _ => Self::Read { path: path.to_owned(), source },
        }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Write { path: path.to_owned(), source }
    }
}
