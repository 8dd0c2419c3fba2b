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

/// The `n` nearest of each of the `features`, which rise, among them: index and cosine. `done` is told how many have
/// been compared with all.
pub(super) fn decoder_neighbours(
    sae: &SaeFile,
    features: &[u32],
    n: usize,
    pool: &Pool,
    done: &dyn Fn(usize),
) -> Result<Vec<Vec<(u32, f32)>>, IndexError> {
    let mut all = Vec::with_capacity(features.len());
    for queries in features.chunks(QUERIES) {
        let rows = unit_rows(sae, queries, pool)?;
        let mut nearest: Vec<Vec<(u32, f32)>> = vec![Vec::new(); queries.len()];
        for keys in features.chunks(KEYS) {
            let key_rows = unit_rows(sae, keys, pool)?;
            let cosines = pool.run(|| model::weights::f32_from_tensor(rows.clone().matmul(key_rows.transpose())));
            pool.run(|| {
                let rows = cosines.par_chunks_exact(keys.len()).zip(queries).zip(&mut nearest);
                rows.for_each(|((row, own), nearest)| add(nearest, *own, keys, row, n));
            });
        }
        all.append(&mut nearest);
        done(all.len());
    }
    Ok(all)
}

/// Adds what is nearer than the farthest so far.
fn add(nearest: &mut Vec<(u32, f32)>, own: u32, keys: &[u32], cosines: &[f32], n: usize) {
    let mut farthest = if nearest.len() < n { f32::NEG_INFINITY } else { nearest.last().map_or(1.0, |last| last.1) };
    for (key, cosine) in keys.iter().zip(cosines) {
        if *cosine > farthest && *key != own {
            nearest.push((*key, *cosine));
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
            let rows = decoder_rows(&sae, &features).unwrap();
            let row = |at: usize| rows[at * d..(at + 1) * d].iter().map(|value| f64::from(*value));
            let product = |a: usize, b: usize| row(a).zip(row(b)).map(|(a, b)| a * b).sum::<f64>();
            let pool = Pool::new(None).unwrap();
            let found = decoder_neighbours(&sae, &features, 4, &pool, &|_| {}).unwrap();
            for (at, found) in found.iter().enumerate() {
                let mut expected: Vec<(f64, u32)> = (0..features.len())
                    .filter(|other| *other != at)
                    .map(|other| {
                        let norms = (product(at, at) * product(other, other)).sqrt();
                        (product(at, other) / norms, features[other])
                    })
                    .collect();
                expected.sort_by(|a, b| b.0.total_cmp(&a.0));
                assert_eq!(found.len(), 4);
                for ((index, cosine), (exact, feature)) in found.iter().zip(&expected) {
                    assert_eq!(index, feature, "{at}");
                    assert!((f64::from(*cosine) - exact).abs() < 1e-5, "{cosine} and {exact}");
                }
            }
        }
    }

    #[test]
    fn equal_cosines_go_by_index() {
        let mut nearest = Vec::new();
        add(&mut nearest, 1, &[0, 1, 2, 3, 4, 5, 6], &[0.5, 1.0, 0.5, 0.5, 0.9, 0.5, 0.1], 3);
        add(&mut nearest, 1, &[7, 8], &[0.5, 0.7], 3);
        assert_eq!(nearest, [(4, 0.9), (8, 0.7), (0, 0.5)]);
    }
}
