//! Which features fire on the same tokens, in memory that does not grow with the tokens.
//!
//! Of each feature the [`SKETCH`] tokens with the smallest hashes are kept. A token's hash is the same for all
//! features: of two features, the tokens below the smaller of their largest kept hashes are a random sample of all
//! tokens, on which both are known completely (coordinated bottom-k sketches, Cohen and Kaplan 2007). Features with at
//! most [`SKETCH`] activations are known completely anyway, and the overlap of two such features is exact.

use super::{Pool, feature::strongest};
use rayon::prelude::*;

/// Tokens that are kept of a feature: up to 36 bytes each at the peak. The overlap of two dense features is off by 0.06
/// in the worst case (one standard deviation, at an overlap of a half).
pub(super) const SKETCH: usize = 64;

/// Tokens of all features. Which token it is does not matter any more, only the order of the hashes.
pub(super) struct Sketches {
    /// Of each feature, where its tokens begin in `tokens`; after them, how many there are.
    starts: Vec<usize>,
    /// Hashes; after [`Self::finish`], numbers of tokens in the order of their hashes.
    tokens: Vec<u64>,
    /// Whether all activations of the feature are among them.
    complete: Vec<bool>,
}

impl Sketches {
    pub fn new() -> Self {
        Self { starts: vec![0], tokens: Vec::new(), complete: Vec::new() }
    }

    /// Adds the next feature. `sketch` rises.
    pub fn push(&mut self, sketch: &[u64], activations: u64) {
        self.tokens.extend_from_slice(sketch);
        self.starts.push(self.tokens.len());
        self.complete.push(activations <= sketch.len() as u64);
    }

    /// Finds which features share each token.
    pub fn finish(mut self, pool: &Pool) -> Together {
        let mut entries: Vec<(u64, u32)> = Vec::with_capacity(self.tokens.len());
        for (feature, bounds) in (0..).zip(self.starts.windows(2)) {
            entries.extend(self.tokens[bounds[0]..bounds[1]].iter().map(|hash| (*hash, feature)));
        }
        pool.run(|| entries.par_sort_unstable());
        let mut next = self.starts.clone();
        let (mut members, mut runs) = (Vec::with_capacity(entries.len()), Vec::new());
        let mut last = None;
        for (hash, feature) in entries {
            if last.replace(hash) != Some(hash) {
                runs.push(members.len());
            }
            members.push(feature);
            let place = &mut next[feature as usize];
            self.tokens[*place] = runs.len() as u64 - 1;
            *place += 1;
        }
        runs.push(members.len());
        Together { sketches: self, members, runs }
    }
}

/// Features by token, and tokens by feature.
pub(super) struct Together {
    sketches: Sketches,
    /// Features that fire on a token, token after token.
    members: Vec<u32>,
    /// Where each token's features begin in `members`; after them, how many there are.
    runs: Vec<usize>,
}

impl Together {
    /// For each of the `features`, the `n` that overlap with it most: Jaccard overlap of the tokens where both fire.
    pub fn neighbours(&self, features: &[u32], n: usize, pool: &Pool) -> Vec<Vec<(u32, f32)>> {
        let all = self.sketches.complete.len();
        let neighbours = |counts: &mut Vec<u32>, feature: &u32| strongest(self.overlaps(*feature, counts), n);
        pool.run(|| features.par_iter().map_init(|| vec![0; all], neighbours).collect())
    }

    fn tokens_of(&self, feature: u32) -> &[u64] {
        let starts = &self.sketches.starts;
        &self.sketches.tokens[starts[feature as usize]..starts[feature as usize + 1]]
    }

    /// The last token up to which everything is known about a feature.
    fn known_to(&self, feature: u32) -> u64 {
        match self.tokens_of(feature).last() {
            Some(last) if !self.sketches.complete[feature as usize] => *last,
            _ => u64::MAX,
        }
    }

    /// All features that share one of a feature's tokens. `counts` is zero for all features, and is so again.
    fn overlaps(&self, feature: u32, counts: &mut [u32]) -> Vec<(u32, f32)> {
        let own = self.tokens_of(feature);
        let mut others = Vec::new();
        for token in own {
            let run = *token as usize;
            for &other in &self.members[self.runs[run]..self.runs[run + 1]] {
                let count = &mut counts[other as usize];
                if *count == 0 {
                    others.push(other);
                }
                *count += 1;
            }
        }
        let mut overlaps = Vec::with_capacity(others.len());
        for other in others {
            let both = u64::from(std::mem::take(&mut counts[other as usize]));
            if other == feature {
                continue;
            }
            let known = self.known_to(feature).min(self.known_to(other));
            let among = |tokens: &[u64]| tokens.partition_point(|token| *token <= known) as u64;
            let either = among(own) + among(self.tokens_of(other)) - both;
            overlaps.push((other, (both as f64 / either as f64) as f32));
        }
        overlaps
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::super::counts::{Smallest, mix};
    use super::*;

    fn together(features: &[Vec<u64>]) -> Together {
        let mut sketches = Sketches::new();
        for tokens in features {
            let mut smallest = Smallest::new(SKETCH);
            tokens.iter().for_each(|token| smallest.offer(mix(*token)));
            sketches.push(&smallest.into_sorted(), tokens.len() as u64);
        }
        sketches.finish(&Pool::new(Some(2)).unwrap())
    }

    fn jaccard(a: &[u64], b: &[u64]) -> f32 {
        let both = a.iter().filter(|token| b.contains(token)).count();
        (both as f64 / (a.len() + b.len() - both) as f64) as f32
    }

    #[test]
    fn sparse_features_are_exact() {
        let of =
            |feature: u64| (0..60).map(|i| mix(feature * 1000 + i) % 300).collect::<std::collections::BTreeSet<_>>();
        let mut features: Vec<Vec<u64>> = (0..20).map(|feature| of(feature).into_iter().collect()).collect();
        features.push(Vec::new());
        let together = together(&features);
        let asked: Vec<u32> = (0..21).collect();
        let found = together.neighbours(&asked, 5, &Pool::new(None).unwrap());
        for (own, found) in features.iter().zip(&found).take(20) {
            let others = (0..).zip(&features).filter(|(_, other)| *other != own);
            let expected = others.map(|(other, tokens)| (other, jaccard(own, tokens))).collect();
            assert_eq!(*found, strongest(expected, 5));
        }
        assert!(found[20].is_empty(), "a dead feature fires with no other");
    }

    #[test]
    fn dense_features_are_close() {
        // Features on the multiples of 2 to 9: the overlap of 2 and 4 is a half.
        let features: Vec<Vec<u64>> = (2..10).map(|step| (0..20_000u64).step_by(step).collect()).collect();
        let together = together(&features);
        let mut counts = vec![0; 8];
        for (feature, own) in (0..).zip(&features) {
            for (other, overlap) in together.overlaps(feature, &mut counts) {
                let (a, b) = (feature as usize + 2, other as usize + 2);
                let both = 20_000usize.div_ceil(a * b / gcd(a, b));
                let exact = both as f32 / (own.len() + features[other as usize].len() - both) as f32;
                assert!((overlap - exact).abs() < 0.15, "{a} and {b}: {overlap}, not {exact}");
            }
            assert!(counts.iter().all(|count| *count == 0));
        }
        let nearest = &together.neighbours(&[2], 1, &Pool::new(None).unwrap())[0];
        assert!([0, 6].contains(&nearest[0].0), "4 overlaps most with 2 and 8: {nearest:?}");
    }

    fn gcd(a: usize, b: usize) -> usize {
        if b == 0 { a } else { gcd(b, a % b) }
    }
}
