//! Mean and maximum of each feature over some tokens, in plain Rust.
//!
//! A sum is a whole number of units, so it is the same in any order, on any device. The unit is a power of two, such
//! that tokens × largest activation is between 2^30 and 2^31 units; an activation is rounded to the nearest one.

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
    let entries = selection.indices.iter().zip(&selection.acts).filter(|&(_, &act)| act > 0.0);
    // Feature above, activation below.
    let mut keys: Vec<u64> =
        entries.map(|(&feature, act)| u64::from(feature) << 32 | u64::from(act.to_bits())).collect();
    keys.sort_unstable();
    let groups = keys.chunk_by(|a, b| a >> 32 == b >> 32);
    let totals = groups.map(|group| {
        let acts = || group.iter().map(|&key| f32::from_bits(key as u32));
        let sum = acts().map(|act| selection.units(act)).sum();
        Total { feature: (group[0] >> 32) as u32, sum, max: acts().fold(0.0, f32::max) }
    });
    Ok(selection.strongest(totals, by, n))
}
