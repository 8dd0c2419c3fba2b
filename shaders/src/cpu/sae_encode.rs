//! The TopK SAE encoder in plain Rust.
//!
//! Blocks of latents stay in the cache while all tokens pass over them; within, two latents meet four tokens in
//! eight accumulators of four lanes, which compilers turn into SIMD (SSE2, NEON, wasm `simd128`). Activations go
//! straight to each row's selection: the full `[tokens, latents]` never exists.

use super::sae_select::SaeSelect;
use crate::error::check_len;
use crate::{Error, SaeShape, TopK};

const LANES: usize = 4;
const TOKENS: usize = 4;
const LATENTS: usize = 2;
/// Bytes of weights in a block: fits the second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

/// A TopK SAE's encoder in memory: `z = TopK_k(ReLU((x - b_dec) W_encᵀ + b_enc))`.
#[derive(Debug, Clone)]
pub struct SaeEncode {
    shape: SaeShape,
    /// `[latents, d_model]`
    weights: Vec<f32>,
    /// `[latents]`
    b_enc: Vec<f32>,
    /// `[d_model]`
    b_dec: Vec<f32>,
}

impl SaeEncode {
    /// # Errors
    /// [`Error::Length`] if a tensor does not have the values that `shape` says.
    pub fn new(shape: SaeShape, weights: Vec<f32>, b_enc: Vec<f32>, b_dec: Vec<f32>) -> Result<Self, Error> {
        check_len("weights [latents, d_model]", weights.len(), shape.weights())?;
        check_len("b_enc [latents]", b_enc.len(), shape.latents as usize)?;
        check_len("b_dec [d_model]", b_dec.len(), shape.d_model as usize)?;
        Ok(Self { shape, weights, b_enc, b_dec })
    }

    #[must_use]
    pub fn shape(&self) -> SaeShape {
        self.shape
    }

    /// The k largest activations of each token of `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NotFinite`].
    pub fn encode(&self, hidden: &[f32], tokens: u32) -> Result<TopK, Error> {
        self.shape.check_hidden(hidden, tokens)?;
        let d_model = self.shape.d_model as usize;
        // Rows of zeros fill the last group of tokens.
        let rows = (tokens as usize).next_multiple_of(TOKENS);
        let mut centred = vec![0.0; rows * d_model];
        for (to, from) in centred.chunks_exact_mut(d_model).zip(hidden.chunks_exact(d_model)) {
            for ((to, from), b_dec) in to.iter_mut().zip(from).zip(&self.b_dec) {
                *to = from - b_dec;
            }
        }
        let mut selects = vec![SaeSelect::new(self.shape.k); rows];
        let block_latents = (BLOCK_BYTES / (4 * d_model)).max(LATENTS) / LATENTS * LATENTS;
        for (block, weights) in self.weights.chunks(block_latents * d_model).enumerate() {
            let groups = centred.chunks_exact(TOKENS * d_model).zip(selects.chunks_exact_mut(TOKENS));
            for (hidden, selects) in groups {
                self.encode_block(hidden, weights, block * block_latents, selects);
            }
        }
        let mut top = TopK { tokens, ..TopK::empty(self.shape.k) };
        for select in selects.into_iter().take(tokens as usize) {
            select.finish(&mut top.top_indices, &mut top.top_acts);
        }
        Ok(top)
    }

    /// Four tokens over one block of latents.
    fn encode_block(&self, hidden: &[f32], weights: &[f32], first_latent: usize, selects: &mut [SaeSelect]) {
        let d_model = self.shape.d_model as usize;
        let hidden: [&[f32]; TOKENS] = std::array::from_fn(|t| &hidden[t * d_model..][..d_model]);
        for (pair, rows) in weights.chunks(LATENTS * d_model).enumerate() {
            // An odd last latent is multiplied twice and taken once.
            let weights = [&rows[..d_model], &rows[rows.len() - d_model..]];
            let dots = dots(hidden, weights);
            for (j, latent) in (first_latent + pair * LATENTS..).take(rows.len() / d_model).enumerate() {
                for (select, dots) in selects.iter_mut().zip(&dots) {
                    // Fits: it is below `latents`.
                    select.push(latent as u32, dots[j] + self.b_enc[latent]);
                }
            }
        }
    }
}

/// All dot products of four rows of `hidden` with two rows of `weights`, each `[d_model]`.
#[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
fn dots(hidden: [&[f32]; TOKENS], weights: [&[f32]; LATENTS]) -> [[f32; LATENTS]; TOKENS] {
    let whole = weights[0].len() / LANES * LANES;
    let mut sums = [[[0.0f32; LANES]; LATENTS]; TOKENS];
    let [h0, h1, h2, h3] = hidden.map(|row| row[..whole].as_chunks::<LANES>().0);
    let [w0, w1] = weights.map(|row| row[..whole].as_chunks::<LANES>().0);
    for (((((h0, h1), h2), h3), w0), w1) in h0.iter().zip(h1).zip(h2).zip(h3).zip(w0).zip(w1) {
        for (sums, h) in sums.iter_mut().zip([h0, h1, h2, h3]) {
            for (sums, w) in sums.iter_mut().zip([w0, w1]) {
                for lane in 0..LANES {
                    sums[lane] += h[lane] * w[lane];
                }
            }
        }
    }
    std::array::from_fn(|t| {
        std::array::from_fn(|j| {
            let rest: f32 = hidden[t][whole..].iter().zip(&weights[j][whole..]).map(|(h, w)| h * w).sum();
            sums[t][j].iter().sum::<f32>() + rest
        })
    })
}
