//! Why a command ends with exit code 2.

use crate::picture::PictureError;
use std::{
    io,
    path::{Path, PathBuf},
};

/// One line: the flag or the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{flag}: {reason}")]
    Flag { flag: &'static str, reason: String },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path}: {source}")]
    Picture { path: PathBuf, source: PictureError },
    #[error("{0}")]
    Model(#[from] model::Error),
    #[error("{0}")]
    Images(#[from] pipeline::images::ImagesError),
    #[error("{0}")]
    Cache(pipeline::cache::CacheError),
    #[error("{0}")]
    Index(pipeline::index::IndexError),
    #[error("{0}")]
    Quantize(#[from] pipeline::quantize::QuantizeError),
    #[error("{0}")]
    Train(pipeline::train::TrainError),
    #[error("{0}")]
    Store(#[from] store::StoreError),
    #[error("{0}")]
    Interpret(#[from] pipeline::interpret::InterpretError),
    #[error("{0}")]
    Score(#[from] pipeline::score::ScoreError),
    #[error("the answer cannot be written to the standard output: {0}")]
    Stdout(io::Error),
    #[error("this is a bug, please report it with the command and its files: {0}")]
    Bug(String),
}

impl From<pipeline::cache::CacheError> for CliError {
    /// The model's errors stay the model's, whichever command they end.
    fn from(error: pipeline::cache::CacheError) -> Self {
        match error {
            pipeline::cache::CacheError::Model(error) => Self::Model(error),
            other => Self::Cache(other),
        }
    }
}

impl From<pipeline::index::IndexError> for CliError {
    /// The same.
    fn from(error: pipeline::index::IndexError) -> Self {
        match error {
            pipeline::index::IndexError::Model(error) => Self::Model(error),
            pipeline::index::IndexError::Cache(error) => error.into(),
            other => Self::Index(other),
        }
    }
}

impl From<pipeline::train::TrainError> for CliError {
    /// The same; numbers that are not finite are not one picture's fault.
    fn from(error: pipeline::train::TrainError) -> Self {
        use pipeline::{cache::CacheError, train::TrainError};
        match error {
            TrainError::Model(error) => Self::Model(error),
            TrainError::Pictures(CacheError::Picture { source, .. })
                if matches!(*source, model::Error::NotFinite { .. }) =>
            {
                Self::Model(*source)
            }
            TrainError::Pictures(error) => error.into(),
            other => Self::Train(other),
        }
    }
}

impl CliError {
    pub fn flag(flag: &'static str, reason: impl Into<String>) -> Self {
        Self::Flag { flag, reason: reason.into() }
    }

    pub fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}
