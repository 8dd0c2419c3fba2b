//! What is wrong with an index or what it is made from: always with the file, and what to do.

use crate::{cache::CacheError, images::ImagesError};
use std::{
    io,
    path::{Path, PathBuf},
};
use store::files::FileError;

/// Errors of this module.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Images(#[from] ImagesError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// A file that holds something else than what is asked for.
    #[error("{path}: {reason}")]
    Other { path: PathBuf, reason: String },
    /// What the system does not give.
    #[error("{0}")]
    System(String),
}

impl IndexError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn other(path: &Path, reason: impl ToString) -> Self {
        Self::Other { path: path.to_owned(), reason: reason.to_string() }
    }
}
