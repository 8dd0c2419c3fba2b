//! The strongest latents of each token, found while activations are computed.

use std::cmp::Ordering;
use std::ops::Range;

/// The k strongest latents of each token, by falling activation, ties by lower index.
///
/// A token with fewer than k positive latents is filled up with index 0 and activation 0. Where the activation is not
/// TopK, k is the largest number of active latents of any token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopK {
    pub tokens: usize,
    pub k: usize,
    /// `[tokens, k]`
    pub indices: Vec<u32>,
    /// `[tokens, k]`
    pub acts: Vec<f32>,
    /// `[tokens]`: what undoes the normalisation of each hidden state; empty if the SAE normalises none.
    pub norms: Vec<TokenNorm>,
}

/// A reconstruction `y` of a normalised hidden state stands for the hidden state `y · scale + mean`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenNorm {
    pub mean: f32,
    pub scale: f32,
}

impl TopK {
    /// Rows as [`RowTopK::finish`] gives them, at most `k` long each.
    pub(super) fn from_rows(rows: &[Vec<(u32, f32)>], k: usize, norms: Vec<TokenNorm>) -> Self {
        let tokens = rows.len();
        let mut out = Self { tokens, k, indices: vec![0; tokens * k], acts: vec![0.0; tokens * k], norms };
        for (token, row) in rows.iter().enumerate() {
            for (slot, &(index, act)) in row.iter().enumerate() {
                out.indices[token * k + slot] = index;
                out.acts[token * k + slot] = act;
            }
        }
        out
    }

    /// Some of the tokens.
    pub fn narrow(&self, tokens: Range<usize>) -> Self {
        let range = tokens.start * self.k..tokens.end * self.k;
        Self {
            tokens: tokens.len(),
            k: self.k,
            indices: self.indices[range.clone()].to_vec(),
            acts: self.acts[range].to_vec(),
            norms: self.norms.get(tokens).map(<[TokenNorm]>::to_vec).unwrap_or_default(),
        }
    }

    /// Index and activation pairs of one token.
    pub fn row(&self, token: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let range = token * self.k..(token + 1) * self.k;
        self.indices[range.clone()].iter().copied().zip(self.acts[range].iter().copied())
    }
}

/// The k strongest positive values of one row, which comes piece by piece, in memory that does not grow with the row.
///
/// Candidates above the threshold are collected; when there are many, the k strongest are kept and the threshold rises
/// to the weakest of them. A later latent that only equals it has lost the tie.
#[derive(Debug, Clone)]
pub struct RowTopK {
    k: usize,
    threshold: f32,
    candidates: Vec<(u32, f32)>,
}

impl RowTopK {
    /// `k` above the length of the row keeps all that is positive.
    pub fn new(k: usize) -> Self {
        Self { k, threshold: if k == 0 { f32::INFINITY } else { 0.0 }, candidates: Vec::new() }
    }

    /// Takes the activation of a latent; latents must come in rising order. NaN is not taken.
    #[inline]
    pub fn push(&mut self, latent: u32, activation: f32) {
        if activation > self.threshold {
            self.candidates.push((latent, activation));
            if self.candidates.len() >= self.k.saturating_mul(2).saturating_add(64) {
                self.keep_strongest();
            }
        }
    }

    /// Takes the activations of the latents from `first` on.
    pub fn extend(&mut self, first: usize, activations: &[f32]) {
        for (latent, &activation) in (first as u32..).zip(activations) {
            self.push(latent, activation);
        }
    }

    /// Takes what was selected from another part of the same row. Nothing may be pushed after it.
    pub fn merge(&mut self, other: Self) {
        self.candidates.extend(other.candidates);
        self.keep_strongest();
    }

    /// Latents and activations in their final order.
    pub fn finish(mut self) -> Vec<(u32, f32)> {
        self.keep_strongest();
        self.candidates.sort_unstable_by(by_rank);
        self.candidates
    }

    fn keep_strongest(&mut self) {
        if self.candidates.len() > self.k && self.k > 0 {
            let (_, weakest, _) = self.candidates.select_nth_unstable_by(self.k - 1, by_rank);
            self.threshold = weakest.1;
            self.candidates.truncate(self.k);
        }
    }
}

/// Falling activation, then rising latent.
fn by_rank(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The k strongest positive values of one row.
pub fn top_k_of_row(row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut select = RowTopK::new(k);
    select.extend(0, row);
    select.finish()
}

/// Top k of each row of a `[tokens, latents]` matrix.
pub fn top_k(pre: &[f32], latents: usize, k: usize) -> TopK {
    let rows: Vec<Vec<(u32, f32)>> = pre.chunks_exact(latents.max(1)).map(|row| top_k_of_row(row, k)).collect();
    TopK::from_rows(&rows, k, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_orders_by_activation_then_index() {
        let z = top_k(&[0.0, 2.0, 5.0, 2.0, -1.0, 3.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0], 6, 3);
        assert_eq!(z.indices, [2, 5, 1, 2, 0, 0]);
        assert_eq!(z.acts, [5.0, 3.0, 2.0, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn ties_at_the_boundary_keep_the_lower_index() {
        let z = top_k(&[1.0, 1.0, 1.0, 1.0, 2.0], 5, 3);
        assert_eq!(z.indices, [4, 0, 1]);
    }

    #[test]
    fn parts_of_a_row_merge_to_what_the_row_gives() {
        // Few distinct values, so that ties cross the parts and the buffer is emptied many times.
        let row: Vec<f32> = (0..5000u32).map(|i| ((i.wrapping_mul(2_654_435_761) >> 20) % 37) as f32 - 5.0).collect();
        for k in [1, 3, 64, 700, 6000] {
            let mut sorted: Vec<(u32, f32)> =
                (0..).zip(row.iter().copied()).filter(|(_, value)| *value > 0.0).collect();
            sorted.sort_by(by_rank);
            sorted.truncate(k);
            let mut parts = row.chunks(1300).enumerate().map(|(part, values)| {
                let mut select = RowTopK::new(k);
                select.extend(part * 1300, values);
                select
            });
            let mut merged = parts.next().unwrap_or_else(|| RowTopK::new(k));
            parts.for_each(|part| merged.merge(part));
            assert_eq!(merged.finish(), sorted, "k = {k}");
            assert_eq!(top_k_of_row(&row, k), sorted, "k = {k}");
        }
    }

    #[test]
    fn nothing_is_kept_of_a_row_without_positive_values() {
        assert!(top_k_of_row(&[-1.0, 0.0, -0.0, f32::NAN], 2).is_empty());
        assert!(top_k_of_row(&[1.0, 2.0], 0).is_empty());
    }
}
