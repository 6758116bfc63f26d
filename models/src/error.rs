//! What can go wrong on the libtorch side, and whether the user's input or the work is to blame.

use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, ModelError>;

/// A failure with a sentence a person can act on.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Something given is wrong; running again will not help.
    #[error("{0}")]
    Input(String),
    /// The work itself failed.
    #[error("{0}")]
    Work(String),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// A model file is not what it should be.
    #[error(transparent)]
    Files(#[from] pipe_files::FilesError),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
    /// The parent asked to stop; everything needed to go on is on disk.
    #[error("cancelled")]
    Cancelled,
}

impl ModelError {
    /// An input error with this sentence.
    pub fn input(message: impl Into<String>) -> Self {
        Self::Input(message.into())
    }

    /// A work error with this sentence.
    pub fn work(message: impl Into<String>) -> Self {
        Self::Work(message.into())
    }

    /// An I/O error at `path`.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    /// Whether what was given is at fault, rather than the work.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Input(_) => true,
            Self::Files(error) => error.is_input(),
            _ => false,
        }
    }
}

impl From<tch::TchError> for ModelError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(first_line(&error.to_string()))
    }
}

/// libtorch appends a C++ backtrace to its messages; the first line is the part for people.
pub fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim().to_string()
}
