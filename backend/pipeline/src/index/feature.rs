//! What is said about one feature, whoever counts: the demo's build, which has all activations in memory, and the
//! index, which has them in a file.

use api::ActivationKind;
use burn::tensor::{DType, Tensor, backend::Backend};
use model::{Lmm, weights::f32_from_tensor};
use rayon::prelude::*;
use store::files::ExampleRow;

/// Parts of the firings by their maxima that quantile examples are drawn from.
pub(crate) const QUANTILES: usize = 5;
/// Features that are named as like a feature.
pub(crate) const NEIGHBOURS: usize = 8;
/// Output tokens that are named at either end.
pub(crate) const LOGIT_TOKENS: usize = 8;

/// One feature on the base patches of one picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Firing {
    pub picture: usize,
    /// Patches where it fires, rising.
    pub indices: Vec<u16>,
    pub values: Vec<f32>,
    pub max: f32,
    pub max_index: u32,
    /// Over all patches.
    pub mean: f32,
}

impl Firing {
    /// `indices` and `values` are of the patches where it fires, of which there is at least one.
    pub fn new(picture: usize, indices: Vec<u16>, values: Vec<f32>, patches: usize) -> Self {
        let (at, max, mean) = strength(&values, patches);
        Self { picture, max, max_index: u32::from(indices[at]), mean, indices, values }
    }

    /// `bin` has the smallest and the largest maximum of the firings that it was drawn from.
    pub fn row(
        &self,
        feature: u32,
        kind: ActivationKind,
        rank: usize,
        picture: String,
        (bin_min, bin_max): (f32, f32),
    ) -> ExampleRow {
        ExampleRow {
            feature,
            kind,
            rank: rank as u32,
            picture,
            indices: self.indices.clone(),
            values: self.values.clone(),
            max_value: self.max,
            max_index: self.max_index,
            mean_value: self.mean,
            bin_min,
            bin_max,
        }
    }
}

/// Place of the largest value, the largest value, and the mean over all patches.
pub(crate) fn strength(values: &[f32], patches: usize) -> (usize, f32, f32) {
    let (at, max) = values.iter().enumerate().fold((0, 0.0), |best, (i, v)| if *v > best.1 { (i, *v) } else { best });
    (at, max, values.iter().sum::<f32>() / patches as f32)
}

/// The bar of a histogram from 0 to `max` that counts a value.
pub(crate) fn bar_of(value: f32, max: f32, bars: usize) -> usize {
    ((value / max * bars as f32) as usize).min(bars - 1)
}

/// Bounds of a histogram's bars: one more than there are bars.
pub(crate) fn bar_edges(max: f32, bars: usize) -> Vec<f32> {
    (0..=bars).map(|bar| max * bar as f32 / bars as f32).collect()
}

/// The `n` largest, by falling value, then by rising index.
pub(crate) fn strongest(mut near: Vec<(u32, f32)>, n: usize) -> Vec<(u32, f32)> {
    near.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    near.truncate(n);
    near
}

/// Output tokens a feature raises most and by how much, and those it lowers most.
pub type TopLogits = (Vec<String>, Vec<f32>, Vec<String>, Vec<f32>);

/// Decoder rows `[features, d_model]` through the final norm and the unembedding: strongest tokens first.
pub(crate) fn top_logits<B: Backend>(lmm: &Lmm<B>, rows: Tensor<B, 2>) -> Vec<TopLogits> {
    let logits = lmm.net.language.logits(rows.cast(DType::from(lmm.dtype)).unsqueeze());
    let vocabulary = logits.dims()[2];
    let values = f32_from_tensor(logits);
    let picked: Vec<[Vec<(u32, f32)>; 2]> = values.par_chunks_exact(vocabulary).map(ends).collect();
    let texts = |tokens: Vec<(u32, f32)>| -> (Vec<String>, Vec<f32>) {
        tokens.into_iter().map(|(id, value)| (lmm.token_text(id), value)).unzip()
    };
    picked
        .into_iter()
        .map(|[raised, lowered]| {
            let ((pos, pos_values), (neg, neg_values)) = (texts(raised), texts(lowered));
            (pos, pos_values, neg, neg_values)
        })
        .collect()
}

/// The largest and the smallest values of a row, outermost first, equal ones by their ids.
fn ends(row: &[f32]) -> [Vec<(u32, f32)>; 2] {
    [1.0f32, -1.0].map(|sign| {
        let order = |a: &(u32, f32), b: &(u32, f32)| (sign * b.1).total_cmp(&(sign * a.1)).then(a.0.cmp(&b.0));
        let mut tokens: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
        if tokens.len() > LOGIT_TOKENS {
            tokens.select_nth_unstable_by(LOGIT_TOKENS - 1, order);
            tokens.truncate(LOGIT_TOKENS);
        }
        tokens.sort_unstable_by(order);
        tokens
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_row_are_those_of_the_sorted_row() {
        for length in [0, 1, 7, 8, 9, 500] {
            let row: Vec<f32> = (0..length).map(|i| ((i * 37 % 101) as f32 - 50.0) / 3.0).collect();
            let mut sorted: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            let [raised, lowered] = ends(&row);
            assert_eq!(raised, sorted[..sorted.len().min(LOGIT_TOKENS)]);
            sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
            assert_eq!(lowered, sorted[..sorted.len().min(LOGIT_TOKENS)]);
        }
    }

    #[test]
    fn bars_cover_all_values() {
        assert_eq!((bar_of(0.01, 3.0, 3), bar_of(1.0, 3.0, 3), bar_of(3.0, 3.0, 3)), (0, 1, 2));
        assert_eq!(bar_edges(3.0, 3), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(strongest(vec![(3, 0.5), (1, 0.5), (2, 0.9)], 2), [(2, 0.9), (1, 0.5)]);
    }
}
