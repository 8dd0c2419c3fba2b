//! How close a tier comes to the SAE in f32, on hidden states.
//!
//! Latents pass by in tiles, once for all tiers. f32 and tiers are multiplied alike, so that what differs is what
//! quantising made of the weights: the f16 tier of a checkpoint in f16 agrees wholly.
//!
//! A slice is compared on its latents only. They count where they reach the token's threshold, the k-th largest
//! activation of all latents in f32, as browsers have it from the server.

use super::rows::{Packed, Unfit};
use super::source::{Matrix, Source};
use super::{HiddenStates, QuantizeError};
use api::shards::{Agreement, Tier};
use burn::tensor::{Tensor, TensorData};
use model::Cpu;
use model::sae::RowTopK;
use model::weights::f32_from_tensor;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Tokens that are used at most; of more, as many at equal distances.
const MAX_TOKENS: usize = 4096;
/// Weights of a tile of latents: 4 MiB.
const TILE_WEIGHTS: usize = 1 << 20;

/// Latents and activations of a token, strongest first.
type Features = Vec<(u32, f32)>;

/// Tiers are compared on these hidden states.
pub struct Measurement<'a> {
    source: &'a Source,
    name: &'a str,
    /// `[tokens, d_model]`
    hidden: Vec<f32>,
}

impl<'a> Measurement<'a> {
    /// # Errors
    /// When the hidden states are not those of this SAE, or not finite.
    pub fn new(source: &'a Source, hidden: &'a HiddenStates) -> Result<Self, QuantizeError> {
        let (d, HiddenStates { name, values }) = (source.d_model as usize, hidden);
        if values.is_empty() || !values.len().is_multiple_of(d) {
            let reason = format!("{name}: {} numbers are no whole number of hidden states; each has {d}", values.len());
            return Err(QuantizeError::Asked(reason));
        }
        model::Error::check_finite(&format!("the hidden states of {name}"), values)?;
        let all = values.len() / d;
        let tokens = all.min(MAX_TOKENS);
        let rows = (0..tokens).map(|token| &values[token * all / tokens * d..][..d]);
        Ok(Self { source, name, hidden: rows.flatten().copied().collect() })
    }

    pub fn tokens(&self) -> usize {
        self.hidden.len() / self.d()
    }

    fn d(&self) -> usize {
        self.source.d_model as usize
    }

    /// What is found about each of the tiers; `slice` are the latents of that tier.
    ///
    /// # Errors
    /// When the SAE's reconstructions are not finite.
    pub fn run(&self, tiers: &[Tier], slice: &[u32]) -> Result<Vec<Agreement>, QuantizeError> {
        let (exact, encoded) = self.encode(tiers, slice)?;
        let fvu_f32 = self.unexplained(&exact)?;
        let agreement = |(tier, found): (&Tier, Vec<Features>)| {
            if *tier != Tier::Slice {
                return self.agreement(&exact, &found, fvu_f32);
            }
            let k = self.source.file.k();
            let thresholds = exact.iter().map(|row| row.get(k - 1).map_or(0.0, |(_, weakest)| *weakest));
            let reaches = |(row, threshold): (Features, f32)| -> Features {
                row.into_iter().filter(|(_, act)| *act >= threshold).collect()
            };
            let found: Vec<Features> = found.into_iter().zip(thresholds).map(reaches).collect();
            let in_slice = |row: &Features| -> Features {
                row.iter().copied().filter(|(latent, _)| slice.binary_search(latent).is_ok()).collect()
            };
            let exact: Vec<Features> = exact.iter().map(in_slice).collect();
            self.agreement(&exact, &found, self.unexplained(&exact)?)
        };
        tiers.iter().zip(encoded).map(agreement).collect()
    }

    fn agreement(&self, exact: &[Features], found: &[Features], fvu_f32: f64) -> Result<Agreement, QuantizeError> {
        let Compared { overlap, overlap_min, value_error } = compare(exact, found);
        Ok(Agreement {
            hidden: self.name.to_owned(),
            tokens: self.tokens() as u32,
            overlap,
            overlap_min,
            value_error,
            fvu: self.unexplained(found)?,
            fvu_f32,
        })
    }

    /// Features in f32, and in each tier. Of a slice, its strongest latents whether or not they are among the k of all.
    fn encode(&self, tiers: &[Tier], slice: &[u32]) -> Result<(Vec<Features>, Vec<Vec<Features>>), QuantizeError> {
        let (d, k, latents) = (self.d(), self.source.file.k(), self.source.file.latents());
        let (b_enc, b_dec) = self.source.file.biases();
        let centred = self.hidden.chunks_exact(d).flat_map(|row| row.iter().zip(&b_dec).map(|(x, b)| x - b));
        let centred = TensorData::new(centred.collect::<Vec<f32>>(), [self.tokens(), d]);
        let x = Tensor::<Cpu, 2>::from_data(centred, &Default::default());
        let selects = |k: usize| vec![RowTopK::new(k); self.tokens()];
        let mut exact = selects(k);
        // Rounding may lift a few more of a slice's latents over the threshold.
        let room = |tier: &Tier| if *tier == Tier::Slice { 2 * k } else { k };
        let mut found: Vec<Vec<RowTopK>> = tiers.iter().map(|tier| selects(room(tier))).collect();
        let tile = (TILE_WEIGHTS / d).clamp(64, 2048);
        let (mut rows, mut quantised) = (Vec::new(), Vec::new());
        for first in (0..latents).step_by(tile) {
            let end = (first + tile).min(latents);
            let all: Vec<u32> = (first as u32..end as u32).collect();
            let tile = Tile { first, biases: &b_enc[first..end] };
            self.source.rows(Matrix::Encoder, first..end, &mut rows);
            tile.select(&all, &multiply(&x, &rows), &mut exact);
            for (tier, selects) in tiers.iter().zip(&mut found) {
                let some: &[u32] = if *tier == Tier::Slice { within(slice, first, end) } else { &all };
                if !some.is_empty() {
                    self.quantise(*tier, first, some, &rows, &mut quantised)?;
                    tile.select(some, &multiply(&x, &quantised), selects);
                }
            }
        }
        let finish = |selects: Vec<RowTopK>| -> Vec<Features> { selects.into_iter().map(RowTopK::finish).collect() };
        Ok((finish(exact), found.into_iter().map(finish).collect()))
    }

    /// The rows of a tile, of which `some` are as the tier has them.
    fn quantise(
        &self,
        tier: Tier,
        first: usize,
        some: &[u32],
        rows: &[f32],
        quantised: &mut Vec<f32>,
    ) -> Result<(), QuantizeError> {
        let (d, d_model) = (self.d(), self.source.d_model);
        let mut packed = Packed::default();
        let source = self.source;
        let refused = |first: usize| {
            move |(row, problem): (usize, Unfit)| source.weight_error(Matrix::Encoder, first + row, problem)
        };
        if tier != Tier::Slice {
            packed.fill(tier, d_model, rows).map_err(refused(first))?;
            packed.unpack(tier, d_model, quantised);
            return Ok(());
        }
        quantised.clear();
        quantised.extend_from_slice(rows);
        let mut row = Vec::new();
        for latent in some.iter().map(|latent| *latent as usize) {
            let place = (latent - first) * d..(latent - first + 1) * d;
            packed.fill(tier, d_model, &rows[place.clone()]).map_err(refused(latent))?;
            packed.unpack(tier, d_model, &mut row);
            quantised[place].copy_from_slice(&row);
        }
        Ok(())
    }

    /// Fraction of variance that the reconstruction, through the decoder in f32, leaves unexplained.
    fn unexplained(&self, encoded: &[Features]) -> Result<f64, QuantizeError> {
        let fraction = self.residual(encoded) / self.variance();
        if fraction.is_finite() {
            return Ok(fraction);
        }
        let reason = "its reconstructions are not finite: tensor `W_dec` holds NaN, infinite or far too large values";
        Err(QuantizeError::file(self.source.file.path(), reason))
    }

    /// `Σ|x − x̂|²`
    fn residual(&self, encoded: &[Features]) -> f64 {
        let d = self.d();
        let (_, b_dec) = self.source.file.biases();
        let mut reconstructed = b_dec.repeat(self.tokens());
        let rows = encoded.iter().enumerate();
        let mut entries: Vec<(u32, usize, f32)> =
            rows.flat_map(|(token, row)| row.iter().map(move |&(latent, act)| (latent, token, act))).collect();
        entries.sort_unstable_by_key(|&(latent, token, _)| (latent, token));
        let mut row = Vec::new();
        for group in entries.chunk_by(|a, b| a.0 == b.0) {
            let latent = group[0].0 as usize;
            self.source.rows(Matrix::Decoder, latent..latent + 1, &mut row);
            for &(_, token, act) in group {
                let values = reconstructed[token * d..(token + 1) * d].iter_mut();
                values.zip(&row).for_each(|(value, weight)| *value += act * weight);
            }
        }
        self.hidden.iter().zip(&reconstructed).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
    }

    /// `Σ|x − x̄|²`, never zero: a single token scatters around nothing, and is compared with its own size.
    fn variance(&self) -> f64 {
        let (d, tokens) = (self.d(), self.tokens() as f64);
        let mut means = vec![0.0; d];
        for row in self.hidden.chunks_exact(d) {
            means.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x) / tokens);
        }
        let around = |means: &[f64]| -> f64 {
            let rows = self.hidden.chunks_exact(d);
            rows.flat_map(|row| row.iter().zip(means)).map(|(x, mean)| (f64::from(*x) - mean).powi(2)).sum()
        };
        [around(&means), around(&vec![0.0; d]), 1.0].into_iter().find(|sum| *sum > 0.0).unwrap_or(1.0)
    }
}

/// Some latents, as many as their biases.
struct Tile<'a> {
    first: usize,
    biases: &'a [f32],
}

impl Tile<'_> {
    /// Takes the activations of `some` of the tile's latents; `products` is `[tokens, latents of the tile]`.
    fn select(&self, some: &[u32], products: &[f32], selects: &mut [RowTopK]) {
        let rows = products.par_chunks_exact(self.biases.len());
        selects.par_iter_mut().zip(rows).for_each(|(select, row)| {
            for &latent in some {
                let place = latent as usize - self.first;
                select.push(latent, row[place] + self.biases[place]);
            }
        });
    }
}

/// `x [tokens, d_model]` times `rows [latents, d_model]`, transposed: `[tokens, latents]`.
fn multiply(x: &Tensor<Cpu, 2>, rows: &[f32]) -> Vec<f32> {
    let [_, d] = x.dims();
    let rows = TensorData::new(rows.to_vec(), [rows.len() / d, d]);
    let rows = Tensor::<Cpu, 2>::from_data(rows, &x.device());
    f32_from_tensor(x.clone().matmul(rows.transpose()))
}

/// Those of the rising `latents` that lie in `first..end`.
fn within(latents: &[u32], first: usize, end: usize) -> &[u32] {
    let place = |bound: usize| latents.partition_point(|latent| (*latent as usize) < bound);
    &latents[place(first)..place(end)]
}

#[derive(Debug, PartialEq)]
struct Compared {
    overlap: f64,
    overlap_min: f64,
    value_error: f64,
}

/// Token by token; one without features in f32 has nothing to miss.
fn compare(exact: &[Features], found: &[Features]) -> Compared {
    let (mut sum, mut overlap_min, mut squares, mut errors) = (0.0, 1.0f64, 0.0, 0.0);
    for (exact, found) in exact.iter().zip(found) {
        let found: BTreeMap<u32, f32> = found.iter().copied().collect();
        let mut both = 0;
        for (latent, act) in exact {
            if let Some(other) = found.get(latent) {
                both += 1;
                squares += f64::from(*act).powi(2);
                errors += (f64::from(*act) - f64::from(*other)).powi(2);
            }
        }
        let share = if exact.is_empty() { 1.0 } else { f64::from(both) / exact.len() as f64 };
        sum += share;
        overlap_min = overlap_min.min(share);
    }
    let value_error = if squares > 0.0 { (errors / squares).sqrt() } else { 0.0 };
    Compared { overlap: sum / exact.len().max(1) as f64, overlap_min, value_error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_latents_are_counted_and_their_values_compared() {
        let exact = vec![vec![(5, 4.0), (7, 3.0)], Vec::new(), vec![(1, 2.0)]];
        let found = vec![vec![(7, 3.5), (9, 3.0)], vec![(2, 1.0)], vec![(1, 2.0), (0, 0.5)]];
        let expected = Compared { overlap: 2.5 / 3.0, overlap_min: 0.5, value_error: (0.25 / 13f64).sqrt() };
        assert_eq!(compare(&exact, &found), expected);
        assert_eq!(compare(&exact, &exact), Compared { overlap: 1.0, overlap_min: 1.0, value_error: 0.0 });
    }

    #[test]
    fn a_slice_is_cut_into_tiles() {
        let latents = [0, 3, 4, 9];
        assert_eq!(within(&latents, 0, 4), [0, 3]);
        assert_eq!(within(&latents, 4, 8), [4]);
        assert!(within(&latents, 5, 9).is_empty());
    }
}
