//! Reconstruction from a [`TopK`], and its error, in plain Rust.

use crate::decoded::fraction_unexplained;
use crate::decoder_rows::{Contribution, DecoderRows};
use crate::{Decoded, Error, TopK};

/// One decode, `x̂[t] = Σ_i top_acts[t, i] W_dec[top_indices[t, i]] + b_dec`: [`Self::start`], the rows of the active
/// latents in any number of calls of [`Self::add_rows`], [`Self::finish`].
pub struct SaeDecode {
    rows: DecoderRows,
    /// `[tokens, d_model]`
    reconstruction: Vec<f32>,
}

impl SaeDecode {
    /// # Errors
    /// [`Error::Length`], [`Error::NotFinite`] if `top` is malformed; [`Error::Size`] if there are no channels.
    pub fn start(top: &TopK, d_model: u32) -> Result<Self, Error> {
        let rows = DecoderRows::new(top, d_model)?;
        Ok(Self { reconstruction: vec![0.0; rows.values()], rows })
    }

    /// Adds what the latents (rising) with these decoder `rows` `[n, d_model]` contribute.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Size`] if the latents do not rise or a row was given before; [`Error::NotFinite`]
    /// with the number of the row.
    pub fn add_rows(&mut self, latents: &[u32], rows: &[f32]) -> Result<(), Error> {
        self.rows.take(latents, rows)?;
        let d_model = self.rows.d_model as usize;
        for Contribution { token, row, act } in self.rows.contributions(latents) {
            let reconstruction = &mut self.reconstruction[token as usize * d_model..][..d_model];
            for (sum, weight) in reconstruction.iter_mut().zip(&rows[row as usize * d_model..]) {
                *sum += act * weight;
            }
        }
        Ok(())
    }

    /// Adds `b_dec` `[d_model]` and compares with `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`], also if an active latent never got its row; [`Error::NotFinite`] with the number of the row.
    pub fn finish(mut self, hidden: &[f32], b_dec: &[f32]) -> Result<Decoded, Error> {
        self.rows.check_finish(hidden, b_dec)?;
        if self.rows.tokens == 0 {
            return Ok(Decoded::default());
        }
        let d_model = self.rows.d_model as usize;
        let mut squared_error = Vec::with_capacity(self.rows.tokens as usize);
        for (reconstruction, hidden) in self.reconstruction.chunks_exact_mut(d_model).zip(hidden.chunks_exact(d_model))
        {
            let mut sum = 0.0;
            for ((value, bias), x) in reconstruction.iter_mut().zip(b_dec).zip(hidden) {
                *value += bias;
                sum += f64::from(x - *value).powi(2);
            }
            squared_error.push(sum as f32);
        }
        let fvu = fraction_unexplained(hidden, self.rows.d_model, &squared_error);
        Ok(Decoded { reconstruction: self.reconstruction, squared_error, fvu })
    }
}
