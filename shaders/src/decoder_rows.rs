//! Which rows of the decoder a decode needs, and which it has been given.

use crate::error::check_len;
use crate::limits::check_finite;
use crate::{Error, TopK};

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

/// One positive activation.
struct Active {
    token: u32,
    latent: u32,
    act: f32,
}

/// What one row of a batch adds to one token.
pub(crate) struct Contribution {
    pub token: u32,
    /// Place in the batch.
    pub row: u32,
    pub act: f32,
}

/// The door of a decode: sizes, and the rows still missing.
pub(crate) struct DecoderRows {
    pub tokens: u32,
    pub d_model: u32,
    /// Positive activations, by rising token and within by rank.
    active: Vec<Active>,
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
        let needed = top.active_latents();
        let active = (0..top.tokens).flat_map(|token| {
            let (latents, acts) = top.row(token);
            let entries = latents.iter().zip(acts).filter(|&(_, &act)| act > 0.0);
            entries.map(move |(&latent, &act)| Active { token, latent, act })
        });
        let given = vec![false; needed.len()];
        Ok(Self { tokens: top.tokens, d_model, active: active.collect(), needed, given })
    }

    /// Notes the `rows` `[n, d_model]` of `latents`: rising, none given before, all finite.
    pub fn take(&mut self, latents: &[u32], rows: &[f32]) -> Result<(), Error> {
        check_len("rows [n, d_model]", rows.len(), latents.len() * self.d_model as usize)?;
        check_finite("rows [n, d_model]", rows, self.d_model)?;
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

    /// What the rows of `latents` (rising) add, by rising token and within by rank.
    pub fn contributions(&self, latents: &[u32]) -> impl Iterator<Item = Contribution> {
        self.active.iter().filter_map(move |&Active { token, latent, act }| {
            let row = latents.binary_search(&latent).ok()?;
            // A row's number fits: latents are distinct.
            Some(Contribution { token, row: row as u32, act })
        })
    }

    /// All rows must have come, and `hidden` `[tokens, d_model]` and `b_dec` `[d_model]` fit.
    pub fn check_finish(&self, hidden: &[f32], b_dec: &[f32]) -> Result<(), Error> {
        check_len("hidden [tokens, d_model]", hidden.len(), self.values())?;
        check_finite("hidden [tokens, d_model]", hidden, self.d_model)?;
        check_len("b_dec [d_model]", b_dec.len(), self.d_model as usize)?;
        check_finite("b_dec [d_model]", b_dec, 1)?;
        let given = self.given.iter().filter(|&&given| given).count();
        check_len("decoder rows of active latents", given, self.needed.len())
    }

    /// Values of a reconstruction.
    pub fn values(&self) -> usize {
        self.tokens as usize * self.d_model as usize
    }
}
