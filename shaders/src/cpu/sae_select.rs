//! Exact top-k of one row, fed in rising order of latent.

use std::cmp::Ordering;

/// The k largest activations seen so far, in bounded memory.
///
/// Candidates above the threshold are collected; when there are many, the k largest are kept and the threshold rises
/// to the smallest of them. A later latent that only equals it has lost the tie.
#[derive(Debug, Clone)]
pub struct SaeSelect {
    k: usize,
    threshold: f32,
    /// Activation and latent, in no order.
    candidates: Vec<(f32, u32)>,
}

impl SaeSelect {
    #[must_use]
    pub fn new(k: u32) -> Self {
        let k = k as usize;
        Self { k, threshold: 0.0, candidates: Vec::with_capacity(Self::room(k)) }
    }

    /// Takes `activation` of `latent`; latents must come in rising order.
    #[inline]
    pub fn push(&mut self, latent: u32, activation: f32) {
        if activation > self.threshold {
            self.candidates.push((activation, latent));
            if self.candidates.len() == Self::room(self.k) {
                self.keep_largest();
            }
        }
    }

    /// Appends the row in its final order, padded with activation 0 and the lowest latents not listed.
    pub fn finish(mut self, top_indices: &mut Vec<u32>, top_acts: &mut Vec<f32>) {
        self.keep_largest();
        self.candidates.sort_unstable_by(by_rank);
        let mut listed: Vec<u32> = self.candidates.iter().map(|&(_, latent)| latent).collect();
        top_indices.extend(&listed);
        top_acts.extend(self.candidates.iter().map(|&(activation, _)| activation));
        let missing = self.k - listed.len();
        listed.sort_unstable();
        top_indices.extend((0..).filter(|latent| listed.binary_search(latent).is_err()).take(missing));
        top_acts.extend(std::iter::repeat_n(0.0, missing));
    }

    fn keep_largest(&mut self) {
        if self.candidates.len() > self.k {
            self.candidates.select_nth_unstable_by(self.k - 1, by_rank);
            self.candidates.truncate(self.k);
            self.threshold = self.candidates[self.k - 1].0;
        }
    }

    fn room(k: usize) -> usize {
        4 * k + 64
    }
}

/// Falling activation, then rising latent.
fn by_rank(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}
