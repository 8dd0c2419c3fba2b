//! Why an SAE cannot be trained: always with the file or the setting, and what to do.

use crate::cache::CacheError;
use std::io;
use std::path::{Path, PathBuf};

/// Errors of this module. Knows nothing of HTTP.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    /// A setting that contradicts another, or the hidden states.
    #[error("{0}")]
    Asked(String),
    #[error("step {step}: the loss is not finite; --lr is too large, or all tokens of the hidden states are alike")]
    Diverged { step: u64 },
    /// A source that hands out fewer batches than it was asked for.
    #[error("step {step}: there are no more tokens; this is a bug of their source")]
    Ended { step: u64 },
    /// Pictures, or the model that looks at them.
    #[error(transparent)]
    Pictures(#[from] CacheError),
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] store::files::FileError),
    /// The SAE's `cfg.json` cannot be written.
    #[error(transparent)]
    Model(#[from] model::Error),
}

impl TrainError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(super) fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_path_buf(), reason: reason.to_string() }
    }
}
