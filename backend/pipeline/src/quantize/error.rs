//! Why an SAE cannot be quantised: always with the file, the flag's meaning or the latent, and what to do.

use super::rows::Unfit;
use std::io;
use std::path::{Path, PathBuf};

/// Errors of this module. Knows nothing of HTTP.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The SAE's own files are missing or damaged.
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    /// What was asked for contradicts itself or the SAE.
    #[error("{0}")]
    Asked(String),
    #[error("{path}: latent {latent}: its {matrix} weights {problem}")]
    Weight { path: PathBuf, latent: usize, matrix: &'static str, problem: Unfit },
}

impl QuantizeError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(super) fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File { path: path.to_path_buf(), reason: reason.to_string() }
    }
}
