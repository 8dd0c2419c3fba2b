//! The strongest latents of a token while their activations come tile by tile.
//!
//! A candidate is one number: the activation's bits (which order positive floats) above the inverted index. The larger
//! number is the stronger latent, and of equal activations the one with the lower index, as everywhere else.

/// The strongest `keep` positive activations so far.
#[derive(Debug, Clone, Default)]
pub struct Strongest {
    keep: usize,
    threshold: f32,
    keys: Vec<u64>,
}

#[inline(always)]
fn key(activation: f32, latent: u32) -> u64 {
    (u64::from(activation.to_bits()) << 32) | u64::from(!latent)
}

/// Latent and activation of a candidate.
pub fn latent_and_act(key: u64) -> (u32, f32) {
    (!(key as u32), f32::from_bits((key >> 32) as u32))
}

impl Strongest {
    /// Begins a token.
    pub fn begin(&mut self, keep: usize) {
        self.keep = keep;
        self.threshold = 0.0;
        self.keys.clear();
    }

    /// Takes the activations `products + bias` of the latents from `first` on. `buffer` is scratch of any length.
    pub fn take(&mut self, first: usize, products: &[f32], bias: &[f32], buffer: &mut Vec<u64>) {
        let mut found = self.fill(products.len(), buffer);
        let candidates = buffer.as_mut_slice();
        for ((product, bias), latent) in products.iter().zip(bias).zip(first as u32..) {
            let activation = product + bias;
            // Without a branch: at first every second latent is positive.
            candidates[found] = key(activation, latent);
            found += usize::from(activation > self.threshold);
        }
        self.keep_strongest(found, buffer);
    }

    /// The same of some latents only: `latents` rise and lie within the tile.
    pub fn take_some(&mut self, first: usize, products: &[f32], bias: &[f32], latents: &[u32], buffer: &mut Vec<u64>) {
        let mut found = self.fill(latents.len(), buffer);
        for &latent in latents {
            let at = latent as usize - first;
            let activation = products[at] + bias[at];
            buffer[found] = key(activation, latent);
            found += usize::from(activation > self.threshold);
        }
        self.keep_strongest(found, buffer);
    }

    /// What was kept, the `k` strongest first; no other order.
    pub fn split_at_strongest(&mut self, k: usize) -> &[u64] {
        if k > 0 && self.keys.len() > k {
            self.keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        }
        &self.keys
    }

    /// Copies what is kept to the buffer's begin, with room for `more` and one that does not count.
    fn fill(&self, more: usize, buffer: &mut Vec<u64>) -> usize {
        let held = self.keys.len();
        if buffer.len() < held + more + 1 {
            buffer.resize(held + more + 1, 0);
        }
        buffer[..held].copy_from_slice(&self.keys);
        held
    }

    fn keep_strongest(&mut self, found: usize, buffer: &mut [u64]) {
        if found == self.keys.len() {
            return;
        }
        let candidates = &mut buffer[..found];
        if found > self.keep {
            if self.keep == 0 {
                return;
            }
            let (_, weakest, _) = candidates.select_nth_unstable_by(self.keep - 1, |a, b| b.cmp(a));
            // A later latent that only equals it has lost the tie.
            self.threshold = latent_and_act(*weakest).1;
        }
        self.keys.clear();
        self.keys.extend_from_slice(&candidates[..found.min(self.keep)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(strongest: &mut Strongest, k: usize) -> Vec<(u32, f32)> {
        let mut pairs: Vec<_> = strongest.split_at_strongest(k).iter().map(|&key| latent_and_act(key)).collect();
        pairs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        pairs
    }

    #[test]
    fn tiles_give_what_the_whole_row_gives_ties_included() {
        // Few distinct values, so that ties cross the tiles.
        let row: Vec<f32> = (0..3000u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 20) % 37) as f32 - 9.0).collect();
        let bias = vec![0.5; row.len()];
        let shifted: Vec<f32> = row.iter().zip(&bias).map(|(value, bias)| value + bias).collect();
        for keep in [1, 3, 64, 700, 5000] {
            let mut strongest = Strongest::default();
            let mut buffer = Vec::new();
            strongest.begin(keep);
            for first in (0..row.len()).step_by(1024) {
                let end = (first + 1024).min(row.len());
                strongest.take(first, &row[first..end], &bias[first..end], &mut buffer);
            }
            assert_eq!(kept(&mut strongest, keep), model::sae::top_k_of_row(&shifted, keep), "keep = {keep}");
            let first = keep / 2;
            let all = strongest.split_at_strongest(first);
            let mut half: Vec<_> = all[..first.min(all.len())].iter().map(|&key| latent_and_act(key)).collect();
            half.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let truth = model::sae::top_k_of_row(&shifted, first);
            assert_eq!(half, truth, "the {first} strongest come first");
        }
    }

    #[test]
    fn only_named_latents_and_only_positive_ones_are_taken() {
        let mut strongest = Strongest::default();
        strongest.begin(2);
        let row = [5.0, 1.0, f32::NAN, 3.0, -2.0, 4.0];
        strongest.take_some(10, &row, &[0.0; 6], &[11, 12, 13, 14, 15], &mut Vec::new());
        assert_eq!(kept(&mut strongest, 2), [(15, 4.0), (13, 3.0)]);
    }
}
