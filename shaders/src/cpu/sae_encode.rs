//! The TopK SAE encoder in plain Rust.
//!
//! Blocks of latents stay in the cache while all tokens pass over them; within, two latents meet two tokens in
//! accumulators of eight lanes, which compilers turn into SIMD (SSE2, NEON, wasm `simd128`). Activations go
//! straight to each row's selection: the full `[tokens, latents]` never exists.

use super::sae_select::SaeSelect;
use crate::error::check_len;
use crate::{Error, SaeShape, TopK};

const LANES: usize = 8;
const TOKENS: usize = 2;
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

    /// Two tokens over one block of latents.
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

/// Partial sums of the dot products of two rows of hidden states with two of weights, by lane.
type Sums = [[[f32; LANES]; LATENTS]; TOKENS];

/// All dot products of `hidden` with `weights`, each `[d_model]`.
fn dots(hidden: [&[f32]; TOKENS], weights: [&[f32]; LATENTS]) -> [[f32; LATENTS]; TOKENS] {
    let mut sums = Sums::default();
    let hidden_lanes = hidden.map(|row| row.as_chunks::<LANES>());
    let weight_lanes = weights.map(|row| row.as_chunks::<LANES>());
    accumulate(hidden_lanes.map(|(lanes, _)| lanes), weight_lanes.map(|(lanes, _)| lanes), &mut sums);
    std::array::from_fn(|t| {
        std::array::from_fn(|j| {
            let rest: f32 = hidden_lanes[t].1.iter().zip(weight_lanes[j].1).map(|(h, w)| h * w).sum();
            sums[t][j].iter().sum::<f32>() + rest
        })
    })
}

/// The hot loop. A function of its own: where the sum over lanes is in sight, LLVM lays the accumulators out for that
/// sum and shuffles in every step, four times slower (measured on x86-64).
#[inline(never)]
#[cfg_attr(target_arch = "wasm32", target_feature(enable = "simd128"))]
fn accumulate(hidden: [&[[f32; LANES]]; TOKENS], weights: [&[[f32; LANES]]; LATENTS], sums: &mut Sums) {
    let steps = weights[0].len();
    let hidden = hidden.map(|row| &row[..steps]);
    let weights = weights.map(|row| &row[..steps]);
    let mut partial = Sums::default();
    for i in 0..steps {
        for t in 0..TOKENS {
            for j in 0..LATENTS {
                for lane in 0..LANES {
                    partial[t][j][lane] += hidden[t][i][lane] * weights[j][i][lane];
                }
            }
        }
    }
    *sums = partial;
}
