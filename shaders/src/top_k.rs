//! What an encode answers.

use std::ops::Range;

/// The k largest activations of each token.
///
/// Rows are sorted by falling activation, ties by rising latent. A row with fewer than k positive activations goes on
/// with activation 0 and the lowest latents not yet listed, so a row is always the top k of `ReLU(pre)`.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    pub tokens: u32,
    pub k: u32,
    /// Latents `[tokens, k]`.
    pub top_indices: Vec<u32>,
    /// Activations `[tokens, k]`.
    pub top_acts: Vec<f32>,
}

impl TopK {
    /// No tokens yet.
    #[must_use]
    pub fn empty(k: u32) -> Self {
        Self { tokens: 0, k, top_indices: Vec::new(), top_acts: Vec::new() }
    }

    /// Latents and activations of one token.
    ///
    /// # Panics
    /// If there is no such token.
    #[must_use]
    pub fn row(&self, token: u32) -> (&[u32], &[f32]) {
        let range = self.entries(token..token + 1);
        (&self.top_indices[range.clone()], &self.top_acts[range])
    }

    /// The tokens `range`, as entries of the flat lists.
    pub(crate) fn entries(&self, tokens: Range<u32>) -> Range<usize> {
        tokens.start as usize * self.k as usize..tokens.end as usize * self.k as usize
    }
}
