//! What can go wrong with a model: always with the file, what was expected and what was found.

use std::path::{Path, PathBuf};

/// Errors of this crate. Knows nothing of HTTP.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    BadFile { path: PathBuf, reason: String },
    #[error("{path}: tensor `{name}` is missing")]
    MissingTensor { path: PathBuf, name: String },
    #[error("{path}: tensor `{name}` has shape {found:?}, expected {expected:?}")]
    TensorShape { path: PathBuf, name: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("{path}: tensors that no part of the model knows: {names}")]
    ExtraTensors { path: PathBuf, names: String },
    #[error("the chat template failed: {0}")]
    Template(String),
    /// What the template itself raised: an unknown role, turns in a wrong order.
    #[error("the chat template failed: {0}")]
    TemplateRefused(String),
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    #[error("{0}")]
    BadInput(String),
    #[error("the prompt needs {tokens} tokens, but the model takes at most {limit}; shorten it")]
    PromptTooLong { tokens: usize, limit: usize },
    #[error("feature {index} does not exist: the SAE has {latents} latents (0 to {})", latents - 1)]
    UnknownFeature { index: usize, latents: usize },
    #[error("layer {layer} does not exist: the model has {blocks} blocks (0 to {})", blocks - 1)]
    UnknownLayer { layer: usize, blocks: usize },
    #[error("vision block {block} does not exist: the vision tower has {blocks} blocks (0 to {})", blocks - 1)]
    UnknownVisionBlock { block: usize, blocks: usize },
    #[error("{what} are not finite: the checkpoint holds NaN or infinite weights, or its numbers overflow the dtype")]
    NotFinite { what: String },
    #[error("{what} overflow with the features changed so far from what they are: give smaller values")]
    Overflow { what: String },
    #[error("the text cannot go on: {0}")]
    Interrupted(String),
    #[error("given up: nobody waits for the answer any more")]
    Cancelled,
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    /// Fails if a value is NaN or infinite; `what` is said in the error.
    pub fn check_finite(what: &str, values: &[f32]) -> Result<(), Self> {
        if values.iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        Err(Self::NotFinite { what: what.to_string() })
    }

    /// Fails if nobody waits for the answer any more.
    pub(crate) fn check_wanted(gone: &dyn Fn() -> bool) -> Result<(), Self> {
        if gone() { Err(Self::Cancelled) } else { Ok(()) }
    }

    /// What a caught panic said.
    pub(crate) fn from_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        Self::Interrupted(message.unwrap_or("the model's code stopped unexpectedly").to_string())
    }

    pub(crate) fn bad_file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::BadFile { path: path.to_path_buf(), reason: reason.to_string() }
    }
}
