//! Which rows of the decoder a decode needs, and which it has been given.

use crate::error::check_len;
use crate::limits::check_finite;
use crate::{Error, TopK};

/// Place of an activation whose row is not among those at hand, or that is 0 and needs none.
pub(crate) const NO_ROW: u32 = u32::MAX;

impl TopK {
    /// Latents that are active on some token, rising: the decoder rows that a decode needs.
    #[must_use]
    pub fn active_latents(&self) -> Vec<u32> {
        let entries = self.top_indices.iter().zip(&self.top_acts);
        let mut latents: Vec<u32> = entries.filter(|&(_, &act)| act > 0.0).map(|(&latent, _)| latent).collect();
        latents.sort_unstable();
        latents.dedup();
        latents
    }
}

/// The door of a decode: sizes, and the rows still missing.
pub(crate) struct DecoderRows {
    pub tokens: u32,
    pub k: u32,
    pub d_model: u32,
    /// Active latents `[tokens, k]`, [`NO_ROW`] where the activation is 0.
    wanted: Vec<u32>,
    /// Latents whose rows are needed, rising.
    needed: Vec<u32>,
    /// By place in `needed`.
    given: Vec<bool>,
}

impl DecoderRows {
    pub fn new(top: &TopK, d_model: u32) -> Result<Self, Error> {
        top.check()?;
        if d_model == 0 {
            return Err(Error::Size { what: "d_model", given: 0, expected: "at least 1".to_owned() });
        }
        let entries = top.top_indices.iter().zip(&top.top_acts);
        let needed = top.active_latents();
        Ok(Self {
            tokens: top.tokens,
            k: top.k,
            d_model,
            wanted: entries.map(|(&latent, &act)| if act > 0.0 { latent } else { NO_ROW }).collect(),
            given: vec![false; needed.len()],
            needed,
        })
    }

    /// Notes the `rows` `[n, d_model]` of `latents`: rising, none given before, all finite.
    pub fn take(&mut self, latents: &[u32], rows: &[f32]) -> Result<(), Error> {
        check_len("rows [n, d_model]", rows.len(), latents.len() * self.d_model as usize)?;
        check_finite(rows, self.d_model)?;
        if let Some(pair) = latents.windows(2).find(|pair| pair[0] >= pair[1]) {
            let expected = format!("more than {}, the one before", pair[0]);
            return Err(Error::Size { what: "latent of a row", given: pair[1].into(), expected });
        }
        let places: Vec<usize> = latents.iter().filter_map(|latent| self.needed.binary_search(latent).ok()).collect();
        if let Some(&again) = places.iter().find(|&&at| self.given[at]) {
            let expected = "one whose row was not given before".to_owned();
            return Err(Error::Size { what: "latent of a row", given: self.needed[again].into(), expected });
        }
        for at in places {
            self.given[at] = true;
        }
        Ok(())
    }

    /// For each activation `[tokens, k]` its row among `latents` (rising), or [`NO_ROW`].
    pub fn places(&self, latents: &[u32]) -> Vec<u32> {
        // A row's number fits: latents are distinct.
        let place = |wanted: &u32| latents.binary_search(wanted).map_or(NO_ROW, |at| at as u32);
        self.wanted.iter().map(place).collect()
    }

    /// All rows must have come, and `hidden` `[tokens, d_model]` and `b_dec` `[d_model]` fit.
    pub fn check_finish(&self, hidden: &[f32], b_dec: &[f32]) -> Result<(), Error> {
        check_len("hidden [tokens, d_model]", hidden.len(), self.values())?;
        check_finite(hidden, self.d_model)?;
        check_len("b_dec [d_model]", b_dec.len(), self.d_model as usize)?;
        let given = self.given.iter().filter(|&&given| given).count();
        check_len("decoder rows of active latents", given, self.needed.len())
    }

    /// Values of a reconstruction.
    pub fn values(&self) -> usize {
        self.tokens as usize * self.d_model as usize
    }
}
