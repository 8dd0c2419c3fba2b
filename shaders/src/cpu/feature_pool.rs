//! Mean and maximum of each feature over some tokens, in plain Rust.
//!
//! A sum is a whole number of units, so it is the same in any order, on any device. The unit is a power of two, such
//! that tokens × largest activation is between 2^30 and 2^31 units; an activation is rounded to the nearest one.

use std::collections::BTreeMap;

use crate::pooled::{Selection, Total};
use crate::{Error, PoolBy, Pooled, TopK};

/// The `n` features that are strongest on `tokens` of `top`, by their mean over all of these tokens or by their
/// maximum; ties to the lower feature. A token that is listed twice counts twice; features that are silent are not
/// listed.
///
/// # Errors
/// [`Error::Size`] for a token or latent out of range; [`Error::Length`], [`Error::NotFinite`] if `top` is malformed.
pub fn feature_pool(top: &TopK, latents: u32, tokens: &[u32], by: PoolBy, n: usize) -> Result<Vec<Pooled>, Error> {
    let selection = Selection::new(top, tokens, latents)?;
    let mut totals: BTreeMap<u32, (u32, f32)> = BTreeMap::new();
    for (&feature, &act) in selection.indices.iter().zip(&selection.acts).filter(|&(_, &act)| act > 0.0) {
        let (sum, max) = totals.entry(feature).or_default();
        *sum += selection.units(act);
        *max = act.max(*max);
    }
    let totals = totals.into_iter().map(|(feature, (sum, max))| Total { feature, sum, max });
    Ok(selection.strongest(totals, by, n))
}
