//! Questions about the last encode, answered by the CPU twins of `feature_pool`, `histogram` and `cofire`: for the few
//! tokens of one picture, whose activations are here already, they need less time than a GPU needs to begin
//! (`docs/performance.md`).

use half::f16;
use shaders::cpu::cofire::MAX_FEATURES;
use shaders::{Decoded, Error, PoolBy, Pooled, TopK, cpu};

/// Activations up to this one are too small for a histogram.
const SMALLEST_MAX: f32 = 1e-30;

/// An encode, and what was encoded.
pub struct Encoded {
    pub top: TopK,
    /// f16 little endian `[tokens, d_model]`.
    pub hidden: Vec<u8>,
}

impl Encoded {
    /// Some tokens as an encode of their own.
    ///
    /// # Errors
    /// [`Error::Size`] if there is no such token.
    pub fn select(&self, tokens: &[u32]) -> Result<TopK, Error> {
        let all = &self.top;
        // Fits: a token takes memory.
        let mut top = TopK { tokens: tokens.len() as u32, ..TopK::empty(all.k) };
        for &token in tokens {
            if token >= all.tokens {
                let expected = format!("less than {}, the number of tokens", all.tokens);
                return Err(Error::Size { what: "token", given: token.into(), expected });
            }
            let (indices, acts) = all.row(token);
            top.top_indices.extend_from_slice(indices);
            top.top_acts.extend_from_slice(acts);
        }
        Ok(top)
    }

    /// Hidden states `[selected, d_model]` of tokens that [`Self::select`] takes.
    #[must_use]
    pub fn hidden_of(&self, tokens: &[u32], d_model: u32) -> Vec<f32> {
        let width = 2 * d_model as usize;
        let rows = tokens.iter().filter_map(|&token| self.hidden.get(token as usize * width..)?.get(..width));
        rows.flat_map(floats_of_halves).collect()
    }
}

/// Half floats, little endian, as f32.
pub fn floats_of_halves(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32())
}

/// One feature on all tokens of `top`.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Among the features that fire, by their maximum, from 1; 0: it is silent.
    pub place: u32,
    /// How many features fire.
    pub firing: u32,
    /// Its activations in equal bins from 0 to its maximum.
    pub counts: Vec<u32>,
    /// Features that fire on the same tokens, most alike first, and on how many tokens they do.
    pub together: Vec<(u32, u32)>,
    pub mean: f32,
    pub max: f32,
}

/// What is to be found out.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub feature: u32,
    pub latents: u32,
    pub bins: u32,
    /// Features that fire together with it.
    pub count: u32,
}

/// # Errors
/// As of the twins.
pub fn facts(top: &TopK, wanted: Wanted) -> Result<Facts, Error> {
    let Wanted { feature, latents, bins, count } = wanted;
    let tokens: Vec<u32> = (0..top.tokens).collect();
    let ranked: Vec<Pooled> = cpu::feature_pool::feature_pool(top, latents, &tokens, PoolBy::Max, usize::MAX)?;
    let place = ranked.iter().position(|found| found.feature == feature);
    let (mean, max) = place.map_or((0.0, 0.0), |at| (ranked[at].mean, ranked[at].max));
    let act_on = |token: u32| {
        let (indices, acts) = top.row(token);
        indices.iter().position(|&latent| latent == feature).map_or(0.0, |at| acts[at])
    };
    let values: Vec<f32> = tokens.iter().map(|&token| act_on(token)).collect();
    let counts =
        if max <= SMALLEST_MAX { vec![0; bins as usize] } else { cpu::histogram::histogram(&values, bins, max)? };
    let others = ranked.iter().map(|found| found.feature).filter(|&other| other != feature);
    let features: Vec<u32> = std::iter::once(feature).chain(others).take(MAX_FEATURES).collect();
    let pairs = cpu::cofire::cofire(top, &features)?;
    // Places fit: tokens and latents are counted in u32.
    Ok(Facts {
        place: place.map_or(0, |at| at as u32 + 1),
        firing: ranked.len() as u32,
        counts,
        together: most_alike(&features, &pairs, count as usize),
        mean,
        max,
    })
}

/// Of the features after the first those that fire most nearly where the first does, by the Jaccard overlap of their
/// tokens, ties to the lower feature; and on how many tokens both fire. `pairs` is `[features, features]`.
fn most_alike(features: &[u32], pairs: &[u32], count: usize) -> Vec<(u32, u32)> {
    let n = features.len();
    let own = |at: usize| u64::from(pairs[at * n + at]);
    let mut found: Vec<(u64, u64, u32)> = (1..n)
        .filter(|&at| pairs[at] > 0)
        .map(|at| (u64::from(pairs[at]), own(0) + own(at) - u64::from(pairs[at]), features[at]))
        .collect();
    found.sort_unstable_by(|a, b| (b.0 * a.1).cmp(&(a.0 * b.1)).then(a.2.cmp(&b.2)));
    // Counts of tokens.
    found.into_iter().take(count).map(|(both, _, feature)| (feature, both as u32)).collect()
}

/// The mean over the tokens of `‖x − x̂‖ / ‖x‖`.
#[must_use]
pub fn relative_error(decoded: &Decoded, hidden: &[f32], d_model: u32) -> f32 {
    let norms = hidden.chunks_exact(d_model as usize).map(|row| row.iter().map(|x| x * x).sum::<f32>());
    let ratios = norms.zip(&decoded.squared_error).map(|(norm, error)| (error / norm.max(f32::MIN_POSITIVE)).sqrt());
    ratios.sum::<f32>() / decoded.squared_error.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_fire_everywhere_are_not_the_most_alike() {
        // Feature 7 fires on 2 tokens; 5 on both and 8 more, 4 and 9 on both only, 2 on one of them, 1 elsewhere.
        let features = [7, 5, 9, 4, 2, 1];
        let mut pairs = vec![0; 36];
        for (at, (own, both)) in [(2, 2), (10, 2), (2, 2), (2, 2), (1, 1), (3, 0)].into_iter().enumerate() {
            pairs[at * 6 + at] = own;
            pairs[at] = both;
        }
        assert_eq!(most_alike(&features, &pairs, 9), [(4, 2), (9, 2), (2, 1), (5, 2)]);
        assert_eq!(most_alike(&features, &pairs, 1), [(4, 2)]);
        assert!(most_alike(&[7], &[0], 9).is_empty());
    }

    #[test]
    fn errors_are_relative_to_each_token() {
        let decoded = Decoded { squared_error: vec![25.0, 1.0], ..Decoded::default() };
        assert_eq!(relative_error(&decoded, &[6.0, 8.0, 1.0, 0.0], 2), 0.75);
        assert_eq!(relative_error(&Decoded::default(), &[], 2), 0.0);
    }
}
