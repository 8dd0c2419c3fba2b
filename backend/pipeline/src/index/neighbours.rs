//! Nearest features by cosine of decoder rows, block by block from the SAE's file.

use super::{IndexError, Pool, feature::strongest};
use burn::tensor::{Tensor, TensorData};
use model::{Cpu, SaeFile};
use rayon::prelude::*;

/// Rows that are compared at once: `[QUERIES, KEYS]` cosines, and both sides' rows.
const QUERIES: usize = 2048;
const KEYS: usize = 4096;
/// Shorter rows are of length one afterwards only nearly.
const SHORTEST: f32 = 1e-8;

/// Decoder rows of some latents, which rise: `[features, d_model]`.
///
/// # Errors
/// When a row has numbers that are not finite.
pub(super) fn decoder_rows(sae: &SaeFile, features: &[u32]) -> Result<Vec<f32>, IndexError> {
    let (mut rows, mut part) = (Vec::with_capacity(features.len() * sae.d_in()), Vec::new());
    for run in features.chunk_by(|a, b| a + 1 == *b) {
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            sae.decoder_rows(*first as usize..*last as usize + 1, &mut part);
            rows.extend_from_slice(&part);
        }
    }
    match rows.iter().position(|value| !value.is_finite()) {
        None => Ok(rows),
        Some(at) => {
            let latent = features[at / sae.d_in()];
            let reason = format!("the decoder row of latent {latent} holds NaN or infinite values");
            Err(IndexError::other(sae.path(), reason))
        }
    }
}

/// The same, each row of length one.
fn unit_rows(sae: &SaeFile, features: &[u32], pool: &Pool) -> Result<Tensor<Cpu, 2>, IndexError> {
    let d = sae.d_in();
    let mut rows = decoder_rows(sae, features)?;
    pool.run(|| {
        rows.par_chunks_exact_mut(d).for_each(|row| {
            let norm = row.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt() as f32;
            row.iter_mut().for_each(|value| *value /= norm.max(SHORTEST));
        });
    });
    Ok(Tensor::from_data(TensorData::new(rows, [features.len(), d]), &Default::default()))
}

/// Features that a feature is near to, nearest first: index and cosine.
pub(super) type Near = Vec<(u32, f32)>;

/// Which neighbours are asked for.
pub(super) struct Wanted<'a> {
    pub n: usize,
    /// Of each feature, whether it may be one; all may if it is not said.
    pub among: Option<&'a [bool]>,
}

/// Of each of the `features`, which rise, all that is wanted, in this order. `done` is told how many have been compared
/// with all.
pub(super) fn decoder_neighbours(
    sae: &SaeFile,
    features: &[u32],
    wanted: &[Wanted<'_>],
    pool: &Pool,
    done: &dyn Fn(usize),
) -> Result<Vec<Vec<Near>>, IndexError> {
    let mut all = Vec::with_capacity(features.len());
    for queries in features.chunks(QUERIES) {
        let rows = unit_rows(sae, queries, pool)?;
        let mut nearest: Vec<Vec<Near>> = vec![vec![Near::new(); wanted.len()]; queries.len()];
        for (block, keys) in features.chunks(KEYS).enumerate() {
            let key_rows = unit_rows(sae, keys, pool)?;
            let cosines = pool.run(|| model::weights::f32_from_tensor(rows.clone().matmul(key_rows.transpose())));
            let first = block * KEYS;
            pool.run(|| {
                let rows = cosines.par_chunks_exact(keys.len()).zip(queries).zip(&mut nearest);
                rows.for_each(|((row, own), nearest)| {
                    for (Wanted { n, among }, nearest) in wanted.iter().zip(nearest) {
                        let among = among.map(|among| &among[first..first + keys.len()]);
                        let may = |at: usize| among.is_none_or(|among| among[at]);
                        let near = keys.iter().zip(row).enumerate().filter(|(at, _)| may(*at));
                        add(nearest, *own, near.map(|(_, (key, cosine))| (*key, *cosine)), *n);
                    }
                });
            });
        }
        all.append(&mut nearest);
        done(all.len());
    }
    Ok(all)
}

/// Adds what is nearer than the farthest so far.
fn add(nearest: &mut Near, own: u32, near: impl Iterator<Item = (u32, f32)>, n: usize) {
    let mut farthest = if nearest.len() < n { f32::NEG_INFINITY } else { nearest.last().map_or(1.0, |last| last.1) };
    for (key, cosine) in near {
        if cosine > farthest && key != own {
            nearest.push((key, cosine));
            if nearest.len() > 2 * n {
                *nearest = strongest(std::mem::take(nearest), n);
                farthest = nearest.last().map_or(farthest, |last| last.1);
            }
        }
    }
    *nearest = strongest(std::mem::take(nearest), n);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn neighbours_are_those_of_f64() {
        let folder = tempfile::tempdir().unwrap();
        model::testing::tiny_checkpoint::<Cpu>(folder.path(), &Default::default()).unwrap();
        let sae = SaeFile::open(&folder.path().join("sae/model.layers.1")).unwrap();
        let d = sae.d_in();
        for features in [(0..64).collect::<Vec<u32>>(), vec![3, 4, 5, 9, 10, 40, 63]] {
            let even: Vec<bool> = features.iter().map(|feature| feature % 2 == 0).collect();
            let rows = decoder_rows(&sae, &features).unwrap();
            let row = |at: usize| rows[at * d..(at + 1) * d].iter().map(|value| f64::from(*value));
            let product = |a: usize, b: usize| row(a).zip(row(b)).map(|(a, b)| a * b).sum::<f64>();
            let pool = Pool::new(None).unwrap();
            let wanted = [Wanted { n: 4, among: None }, Wanted { n: 2, among: Some(&even) }];
            let found = decoder_neighbours(&sae, &features, &wanted, &pool, &|_| {}).unwrap();
            for (at, found) in found.iter().enumerate() {
                let mut expected: Vec<(f64, u32)> = (0..features.len())
                    .filter(|other| *other != at)
                    .map(|other| {
                        let norms = (product(at, at) * product(other, other)).sqrt();
                        (product(at, other) / norms, features[other])
                    })
                    .collect();
                expected.sort_by(|a, b| b.0.total_cmp(&a.0));
                let [all, of_even] = found.as_slice() else { panic!("{} lists", found.len()) };
                assert_eq!(all.len(), 4);
                for ((index, cosine), (exact, feature)) in all.iter().zip(&expected) {
                    assert_eq!(index, feature, "{at}");
                    assert!((f64::from(*cosine) - exact).abs() < 1e-5, "{cosine} and {exact}");
                }
                let expected = expected.iter().map(|(_, feature)| *feature).filter(|feature| feature % 2 == 0).take(2);
                assert!(of_even.iter().map(|(feature, _)| *feature).eq(expected), "{at}");
            }
        }
    }

    #[test]
    fn equal_cosines_go_by_index() {
        let mut nearest = Vec::new();
        add(&mut nearest, 1, (0..).zip([0.5, 1.0, 0.5, 0.5, 0.9, 0.5, 0.1]), 3);
        add(&mut nearest, 1, [(7, 0.5), (8, 0.7)].into_iter(), 3);
        assert_eq!(nearest, [(4, 0.9), (8, 0.7), (0, 0.5)]);
    }
}
