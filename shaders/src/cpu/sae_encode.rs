//! The TopK SAE encoder in plain Rust.
//!
//! Blocks of latents stay in the cache while all tokens pass over them; within, two latents meet a few tokens in
//! accumulators that are SIMD registers (`lanes.rs`; in the browser `simd.rs`). Activations go straight to each row's
//! selection: the full `[tokens, latents]` never exists.

#[cfg(not(target_arch = "wasm32"))]
mod lanes;
#[cfg(target_arch = "wasm32")]
mod simd;

#[cfg(not(target_arch = "wasm32"))]
use lanes as products;
#[cfg(target_arch = "wasm32")]
use simd as products;

use super::sae_select::SaeSelect;
use crate::error::check_len;
use crate::{Error, SaeShape, TopK, WeightType};
pub use products::unpack;
use products::{LATENTS, PAD, TOKENS, dots};

/// Bytes of weights in a block: fits the second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

/// A TopK SAE's encoder in memory: `z = TopK_k(ReLU((x - b_dec) W_encᵀ + b_enc))`, its weights stored as on the GPU.
///
/// Created empty; the weights are written piece by piece.
#[derive(Debug, Clone)]
pub struct SaeEncode {
    shape: SaeShape,
    weight_type: WeightType,
    /// Packed `[latents, width]`
    rows: Vec<u8>,
    /// int8: f32 `[latents]`; int4: f16 `[latents, width / 32]`; else empty
    scales: Vec<u8>,
    /// `[latents]`
    b_enc: Vec<f32>,
    /// `[d_model]`
    b_dec: Vec<f32>,
}

impl SaeEncode {
    /// Room for the weights, all zero.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(shape: SaeShape, weight_type: WeightType) -> Result<Self, Error> {
        let zeros = |bytes_of_row: u64| {
            let bytes = u64::from(shape.latents) * bytes_of_row;
            let mut values = Vec::new();
            let length = usize::try_from(bytes).map_err(|_| Error::Memory { bytes })?;
            values.try_reserve_exact(length).map_err(|_| Error::Memory { bytes })?;
            values.resize(length, 0);
            Ok(values)
        };
        Ok(Self {
            shape,
            weight_type,
            rows: zeros(weight_type.row_bytes(shape.d_model))?,
            scales: zeros(weight_type.scale_bytes(shape.d_model))?,
            b_enc: vec![0.0; shape.latents as usize],
            b_dec: vec![0.0; shape.d_model as usize],
        })
    }

    #[must_use]
    pub fn shape(&self) -> SaeShape {
        self.shape
    }

    #[must_use]
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// Writes a piece of the packed weights `[latents, width]` that starts at the byte `offset`.
    ///
    /// # Errors
    /// [`Error::Size`] if the piece leaves the matrix.
    pub fn write_rows(&mut self, offset: u64, piece: &[u8]) -> Result<(), Error> {
        write("weights", &mut self.rows, offset, piece)
    }

    /// Writes a piece of the scales.
    ///
    /// # Errors
    /// [`Error::Size`] if the piece leaves them.
    pub fn write_scales(&mut self, offset: u64, piece: &[u8]) -> Result<(), Error> {
        write("scales", &mut self.scales, offset, piece)
    }

    /// Writes `b_enc` `[latents]` and `b_dec` `[d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`].
    pub fn write_biases(&mut self, b_enc: &[f32], b_dec: &[f32]) -> Result<(), Error> {
        check_len("b_enc [latents]", b_enc.len(), self.shape.latents as usize)?;
        check_len("b_dec [d_model]", b_dec.len(), self.shape.d_model as usize)?;
        (self.b_enc, self.b_dec) = (b_enc.to_vec(), b_dec.to_vec());
        Ok(())
    }

    /// The k largest activations of each token of `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NotFinite`].
    pub fn encode(&self, hidden: &[f32], tokens: u32) -> Result<TopK, Error> {
        self.shape.check_hidden(hidden, tokens)?;
        let width = self.width();
        let rows = (tokens as usize).next_multiple_of(PAD);
        let mut centred = centred(hidden, &self.b_dec, width);
        centred.resize(rows * width, 0.0);
        let mut selects = vec![SaeSelect::new(self.shape.k); rows];
        let block_latents = (BLOCK_BYTES / (4 * width)).max(LATENTS) / LATENTS * LATENTS;
        let mut weights = vec![0.0; block_latents * width];
        for first in (0..self.shape.latents as usize).step_by(block_latents) {
            let count = block_latents.min(self.shape.latents as usize - first);
            for (latent, row) in (first..first + count).zip(weights.chunks_exact_mut(width)) {
                self.unpack(latent, row);
            }
            let groups = centred.chunks(TOKENS * width).zip(selects.chunks_mut(TOKENS));
            for (hidden, selects) in groups {
                self.encode_block(hidden, &weights[..count * width], first, selects);
            }
        }
        let mut top = TopK { tokens, ..TopK::empty(self.shape.k) };
        for select in selects.into_iter().take(tokens as usize) {
            select.finish(&mut top.top_indices, &mut top.top_acts);
        }
        Ok(top)
    }

    /// Channels of a stored row.
    fn width(&self) -> usize {
        self.weight_type.width(self.shape.d_model) as usize
    }

    /// One latent's row as f32 `[width]`; in int8 without its scale.
    fn unpack(&self, latent: usize, row: &mut [f32]) {
        // Fits: the rows are in memory.
        let bytes = self.weight_type.row_bytes(self.shape.d_model) as usize;
        let packed = &self.rows[latent * bytes..][..bytes];
        let scale_bytes = self.weight_type.scale_bytes(self.shape.d_model) as usize;
        unpack(self.weight_type, packed, &self.scales[latent * scale_bytes..][..scale_bytes], row);
    }

    /// What the products of a latent's unpacked row are multiplied with.
    fn row_scale(&self, latent: usize) -> f32 {
        match self.weight_type {
            WeightType::Int8 => f32_at(&self.scales, latent),
            WeightType::F32 | WeightType::F16 | WeightType::Int4 => 1.0,
        }
    }

    /// Up to [`TOKENS`] tokens over one block of latents.
    fn encode_block(&self, hidden: &[f32], weights: &[f32], first_latent: usize, selects: &mut [SaeSelect]) {
        let width = self.width();
        let hidden = std::array::from_fn(|t| hidden.get(t * width..(t + 1) * width).unwrap_or_default());
        for (pair, rows) in weights.chunks(LATENTS * width).enumerate() {
            // An odd last latent is multiplied twice and taken once.
            let weights = [&rows[..width], &rows[rows.len() - width..]];
            let dots = dots(hidden, weights);
            for (j, latent) in
                (first_latent + pair * LATENTS..).take(if rows.len() == width { 1 } else { LATENTS }).enumerate()
            {
                let (scale, bias) = (self.row_scale(latent), self.b_enc[latent]);
                for (select, dots) in selects.iter_mut().zip(&dots) {
                    // Fits: it is below `latents`.
                    select.push(latent as u32, dots[j] * scale + bias);
                }
            }
        }
    }
}

/// `hidden - b_dec` in f32, each row of `[tokens, d_model]` filled up with zeros to `width`.
pub(crate) fn centred(hidden: &[f32], b_dec: &[f32], width: usize) -> Vec<f32> {
    let d_model = b_dec.len();
    let mut centred = vec![0.0; hidden.len() / d_model * width];
    for (to, from) in centred.chunks_exact_mut(width).zip(hidden.chunks_exact(d_model)) {
        for ((to, from), b_dec) in to.iter_mut().zip(from).zip(b_dec) {
            *to = from - b_dec;
        }
    }
    centred
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    bytes.as_chunks::<4>().0.get(at).map_or(0.0, |bytes| f32::from_le_bytes(*bytes))
}

fn write(what: &'static str, to: &mut [u8], offset: u64, piece: &[u8]) -> Result<(), Error> {
    let end = offset.saturating_add(piece.len() as u64);
    if end > to.len() as u64 {
        return Err(Error::Size { what, given: end, expected: format!("bytes up to {}", to.len()) });
    }
    // Within `to`.
    to[offset as usize..end as usize].copy_from_slice(piece);
    Ok(())
}
