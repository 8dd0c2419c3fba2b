//! What is wrong with an image set: always with the file.

use std::{
    io,
    path::{Path, PathBuf},
};
use store::files::FileError;

/// Errors of this module. One picture that cannot be read is not one of them.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    /// The list of pictures itself.
    #[error(transparent)]
    List(#[from] FileError),
}

impl ImagesError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}
