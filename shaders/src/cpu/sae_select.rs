//! Exact top-k of one row, fed in rising order of latent.

/// The k largest activations seen so far, in bounded memory.
///
/// Candidates above the threshold are collected; when there are many, the k largest are kept and the threshold rises
/// to the smallest of them. A later latent that only equals it has lost the tie.
#[derive(Debug, Clone)]
pub struct SaeSelect {
    k: usize,
    threshold: f32,
    /// Keys of activations and latents, in no order.
    candidates: Vec<u64>,
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
            self.candidates.push(key(activation, latent));
            if self.candidates.len() == Self::room(self.k) {
                self.keep_largest();
            }
        }
    }

    /// Appends the row in its final order, padded with activation 0 and the lowest latents not listed.
    pub fn finish(mut self, top_indices: &mut Vec<u32>, top_acts: &mut Vec<f32>) {
        self.keep_largest();
        self.candidates.sort_unstable();
        top_indices.extend(self.candidates.iter().map(|&key| latent(key)));
        top_acts.extend(self.candidates.iter().map(|&key| activation(key)));
        let missing = self.k - self.candidates.len();
        let mut listed: Vec<u64> = self.candidates.iter().map(|&key| latent(key).into()).collect();
        listed.sort_unstable();
        let padding = (0..).filter(|latent| listed.binary_search(&u64::from(*latent)).is_err());
        top_indices.extend(padding.take(missing));
        top_acts.extend(std::iter::repeat_n(0.0, missing));
    }

    fn keep_largest(&mut self) {
        if self.candidates.len() > self.k {
            self.candidates.select_nth_unstable(self.k - 1);
            self.candidates.truncate(self.k);
            self.threshold = activation(self.candidates[self.k - 1]);
        }
    }

    fn room(k: usize) -> usize {
        4 * k + 64
    }
}

/// Rises as the rank falls: falling activation, then rising latent. (Positive floats order like their bits.)
fn key(activation: f32, latent: u32) -> u64 {
    u64::from(!activation.to_bits()) << 32 | u64::from(latent)
}

fn activation(key: u64) -> f32 {
    f32::from_bits(!((key >> 32) as u32))
}

/// The lower half.
fn latent(key: u64) -> u32 {
    key as u32
}
