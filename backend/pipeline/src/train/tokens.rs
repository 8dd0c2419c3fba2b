//! What the trainer knows of hidden states: that they come in batches, the same ones every time.

use super::TrainError;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The tokens of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[batch_tokens, d_model]`
    pub rows: Vec<f32>,
    /// Where the next batch begins, in the source's own words. Empty if that follows from the number of the step.
    pub next: String,
}

/// Which batches are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub seed: u64,
    pub batch_tokens: usize,
    /// Steps that are done.
    pub step: u64,
    /// [`Batch::next`] of the last of them; empty at the beginning.
    pub place: &'a str,
    /// The folder that [`Tokens::prepare`] had.
    pub folder: &'a Path,
    /// True when nobody waits for a batch any more. A source that takes long over one looks at it now and then.
    pub enough: &'a AtomicBool,
}

/// Hidden states, wherever they come from. Batches follow from the seed and their place alone.
pub trait Tokens: Sync {
    fn d_model(&self) -> usize;

    /// How many there are, where that is known before all of them were seen.
    fn count(&self) -> Option<u64>;

    /// Gets ready. What it keeps on disk goes into `folder`, which nobody else has; it may not be there yet.
    /// Returns the first digits of a hash of what the hidden states are: others have another.
    ///
    /// # Errors
    /// When the hidden states cannot be had, or are not those that the folder was begun with.
    fn prepare(&self, folder: &Path) -> Result<String, TrainError>;

    /// Hands out one batch after the other until `give` is false. An error is the last that it hands out.
    fn stream(&self, wanted: &Wanted<'_>, give: &mut dyn FnMut(Result<Batch, TrainError>) -> bool);
}

/// Says that it is enough when it is dropped, also by a panic.
pub(super) struct Enough<'a>(pub &'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
