//! Encoding straight from the memory map: select while multiplying.
//!
//! A tile of latents is multiplied with all tokens, and each token's selection takes the pre-activations while they
//! are in the cache. `[tokens, latents]` never exists, and f32 weights are multiplied where the file has them.

use super::files::{SaeFile, Tile};
use super::select::{RowTopK, TokenNorm, TopK};
use super::{Activation, Normalisation};
use crate::Error;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens that pass over the weights together: bounds what their selections take, and is far past the number at which
/// multiplying, not reading weights, takes the time.
const TOKENS_AT_ONCE: usize = 512;
/// Tokens are filled up to a multiple of it with zeros: whole SIMD registers, and a token's activations do not depend
/// on how many others come with it.
const LANES: usize = 16;
/// Weights of a tile: 256 latents of 4,096 dimensions. Smaller tiles pack the tokens more often than pays.
const TILE_WEIGHTS: usize = 1 << 20;

/// Hidden states as the encoder multiplies them.
struct Panel {
    tokens: usize,
    /// Tokens filled up to whole [`LANES`].
    width: usize,
    /// `[d_in, width]`
    values: Vec<f32>,
}

impl SaeFile {
    /// The strongest latents of each row of `[tokens, d_in]`: the k strongest, or all that are active.
    ///
    /// Runs on all cores of the current rayon pool.
    ///
    /// # Errors
    /// [`Error::BadInput`] for a length that is no multiple of `d_in`, [`Error::NotFinite`] for hidden states that are
    /// not finite, [`Error::BadFile`] for an encoder that holds NaN or infinite values.
    pub fn encode(&self, hidden: &[f32]) -> Result<TopK, Error> {
        let d = self.d_in();
        if !hidden.len().is_multiple_of(d) {
            let given = hidden.len();
            return Err(Error::BadInput(format!("{given} numbers are no whole number of hidden states; each has {d}")));
        }
        Error::check_finite("the hidden states given to the SAE", hidden)?;
        let (mut rows, mut norms) = (Vec::with_capacity(hidden.len() / d), Vec::new());
        for block in hidden.chunks(TOKENS_AT_ONCE * d) {
            let panel = self.panel(block, &mut norms);
            rows.extend(self.encode_panel(&panel)?);
        }
        let width = match self.activation {
            Activation::TopK => self.k(),
            Activation::Relu | Activation::JumpRelu => rows.iter().map(Vec::len).max().unwrap_or_default().max(1),
        };
        Ok(TopK::from_rows(&rows, width, norms))
    }

    /// Normalises `[tokens, d_in]`, subtracts `b_dec`, transposes.
    fn panel(&self, hidden: &[f32], norms: &mut Vec<TokenNorm>) -> Panel {
        let d = self.d_in();
        let tokens = hidden.len() / d;
        let width = tokens.next_multiple_of(LANES);
        let mut values = vec![0.0; d * width];
        for (token, row) in hidden.chunks_exact(d).enumerate() {
            let (mean, factor) = match self.normalisation.of_row(row) {
                Some((norm, divisor)) => {
                    norms.push(norm);
                    (norm.mean, self.scale / divisor)
                }
                None => (0.0, self.scale),
            };
            for (i, (value, b_dec)) in row.iter().zip(&self.b_dec).enumerate() {
                let b_dec = if self.subtract_b_dec { *b_dec } else { 0.0 };
                values[i * width + token] = (value - mean) * factor - b_dec;
            }
        }
        Panel { tokens, width, values }
    }

    /// Latents and activations of each token. Every core takes an equal part of the latents.
    fn encode_panel(&self, panel: &Panel) -> Result<Vec<Vec<(u32, f32)>>, Error> {
        let tile = (TILE_WEIGHTS / self.d_in()).clamp(64, 2048);
        let tiles = self.latents().div_ceil(tile);
        let parts = rayon::current_num_threads().clamp(1, tiles);
        let selected: Result<Vec<Vec<RowTopK>>, Error> = (0..parts)
            .into_par_iter()
            .map(|part| self.encode_tiles(panel, tile, tiles * part / parts..tiles * (part + 1) / parts))
            .collect();
        let mut selected = selected?.into_iter();
        let mut rows = selected.next().unwrap_or_default();
        for part in selected {
            rows.iter_mut().zip(part).for_each(|(row, part)| row.merge(part));
        }
        Ok(rows.into_par_iter().map(RowTopK::finish).collect())
    }

    /// Selections of all tokens among the latents of some tiles.
    fn encode_tiles(&self, panel: &Panel, tile: usize, tiles: Range<usize>) -> Result<Vec<RowTopK>, Error> {
        let k = if self.activation == Activation::TopK { self.k() } else { usize::MAX };
        let mut selects = vec![RowTopK::new(k); panel.tokens];
        let (mut weights, mut products) = (Vec::new(), Vec::new());
        for first in tiles.map(|index| index * tile) {
            let latents = first..(first + tile).min(self.latents());
            // Written whole by the multiplication.
            products.resize(latents.len() * panel.width, 0.0);
            multiply(panel, &self.encoder_tile(latents.clone(), &mut weights), latents.len(), &mut products);
            for (latent, products) in latents.zip(products.chunks_exact_mut(panel.width)) {
                self.activate(latent, products)?;
                let threshold = self.threshold.get(latent).copied().unwrap_or_default();
                for (select, &activation) in selects.iter_mut().zip(&*products) {
                    if activation > threshold {
                        select.push(latent as u32, activation);
                    }
                }
            }
        }
        Ok(selects)
    }

    /// Products of one latent with all tokens to pre-activations.
    fn activate(&self, latent: usize, products: &mut [f32]) -> Result<(), Error> {
        let (bias, gain) = (self.encoder_bias[latent], self.gains.get(latent).copied().unwrap_or(1.0));
        let mut finite = true;
        for product in products {
            *product = (*product + bias) * gain;
            finite &= product.is_finite();
        }
        if finite {
            return Ok(());
        }
        let name = &self.encoder.name;
        let reason =
            format!("latent {latent} is not finite: tensor `{name}` holds NaN, infinite or far too large values");
        Err(self.bad(reason))
    }
}

/// `products [latents, width] = weights · panel`
fn multiply(panel: &Panel, tile: &Tile<'_>, latents: usize, products: &mut [f32]) {
    let (width, d) = (panel.width, panel.values.len() / panel.width);
    let last = (latents - 1) * tile.latent_stride + (d - 1) * tile.input_stride;
    assert!(products.len() == latents * width && last < tile.weights.len(), "sizes of the tile");
    // SAFETY: column-major `[width, latents] = [width, d] [d, latents]`. The destination and the panel are as long as
    // these shapes say, the last weight that is read lies in the slice (both just checked), and nothing overlaps:
    // `products` is borrowed mutably.
    unsafe {
        gemm::gemm(
            width,
            latents,
            d,
            products.as_mut_ptr(),
            width as isize,
            1,
            false,
            panel.values.as_ptr(),
            width as isize,
            1,
            tile.weights.as_ptr(),
            tile.latent_stride as isize,
            tile.input_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

impl Normalisation {
    /// What undoes the normalisation of one hidden state, and the divisor that makes it (the mean goes first).
    pub(super) fn of_row(self, row: &[f32]) -> Option<(TokenNorm, f32)> {
        let d = row.len() as f64;
        match self {
            Self::None => None,
            Self::ConstantNorm => {
                let squares: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
                let scale = (squares / d).sqrt() as f32;
                let scale = if scale > 0.0 { scale } else { 1.0 };
                Some((TokenNorm { mean: 0.0, scale }, scale))
            }
            Self::LayerNorm => {
                let mean = row.iter().map(|&value| f64::from(value)).sum::<f64>() / d;
                let squares: f64 = row.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
                let scale = (squares / (d - 1.0).max(1.0)).sqrt() as f32;
                Some((TokenNorm { mean: mean as f32, scale }, scale + super::LAYER_NORM_EPSILON))
            }
        }
    }
}
