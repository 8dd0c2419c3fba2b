//! On how many tokens two features fire together, in plain Rust.

use crate::{Error, TopK};

/// Most features that are compared with each other.
pub const MAX_FEATURES: usize = 256;

/// (latent, place in the list) by rising latent; each feature once.
pub(crate) fn by_latent(features: &[u32]) -> Result<Vec<[u32; 2]>, Error> {
    if features.is_empty() || features.len() > MAX_FEATURES {
        let expected = format!("1 to {MAX_FEATURES}");
        return Err(Error::Size { what: "number of features", given: features.len() as u64, expected });
    }
    let mut keys: Vec<u64> =
        features.iter().zip(0u64..).map(|(&latent, place)| u64::from(latent) << 32 | place).collect();
    keys.sort_unstable();
    let listed: Vec<[u32; 2]> = keys.iter().map(|key| [(key >> 32) as u32, *key as u32]).collect();
    match listed.windows(2).find(|pair| pair[0][0] == pair[1][0]) {
        Some(pair) => {
            let expected = "listed once, but it is there twice".to_owned();
            Err(Error::Size { what: "feature", given: pair[0][0].into(), expected })
        }
        None => Ok(listed),
    }
}

/// The symmetric matrix `[features, features]` of the tokens of `top` on which both fire (activation above 0); on the
/// diagonal those on which the feature fires.
///
/// # Errors
/// [`Error::Size`] for no features, more than [`MAX_FEATURES`], or one that is listed twice; [`Error::Length`],
/// [`Error::NotFinite`] if `top` is malformed.
pub fn cofire(top: &TopK, features: &[u32]) -> Result<Vec<u32>, Error> {
    top.check()?;
    let listed = by_latent(features)?;
    let mut counts = vec![0; features.len() * features.len()];
    for token in 0..top.tokens {
        let (latents, acts) = top.row(token);
        let firing = latents.iter().zip(acts).filter(|&(_, &act)| act > 0.0);
        let places: Vec<usize> = firing
            .filter_map(|(latent, _)| listed.binary_search_by_key(latent, |&[listed, _]| listed).ok())
            .map(|at| listed[at][1] as usize)
            .collect();
        for a in &places {
            for b in &places {
                counts[a * features.len() + b] += 1;
            }
        }
    }
    Ok(counts)
}
