//! What is wrong with a cache: always with the file or the picture, and what to do.

use crate::images::ImagesError;
use std::{
    io,
    path::{Path, PathBuf},
};
use store::files::FileError;

/// Errors of this module.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    Images(#[from] ImagesError),
    #[error(transparent)]
    File(#[from] FileError),
    /// The model or the SAE, whatever picture it is given.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model, with the picture it was given.
    #[error("picture {image} ({id}): {source}")]
    Picture { image: u32, id: String, source: Box<model::Error> },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// A folder that holds something else than what is asked for.
    #[error("{path}: {reason}")]
    Other { path: PathBuf, reason: String },
}

impl CacheError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn other(path: &Path, reason: impl ToString) -> Self {
        Self::Other { path: path.to_owned(), reason: reason.to_string() }
    }
}
