//! One feature's patch activations as light over a picture, in plain Rust.

use super::feature_map::feature_map;
use crate::error::check_len;
use crate::limits::{check_finite, check_range};
use crate::{Error, MapShape, TopK};

/// How much of the picture's brightness goes where the feature is silent.
pub(crate) const DIM: f32 = 0.75;
/// Red, green and blue of the light, in 255ths.
pub(crate) const WARM: [f32; 3] = [255.0, 178.0, 64.0];

/// `patches` must be `[rows, columns]` and finite, `scale_max` positive, `tint` a share.
pub(crate) fn check(patches: &[f32], shape: MapShape, scale_max: f32, tint: f32) -> Result<(), Error> {
    check_len("patches [rows, columns]", patches.len(), shape.patches())?;
    check_finite("patches [rows columns]", patches, 1)?;
    check_range("scale_max", scale_max, 1e-30..=1e30, "1e-30 to 1e30")?;
    check_range("tint", tint, 0.0..=1.0, "0 to 1")
}

/// RGBA8, premultiplied, `[height, width, 4]`: `tint · light` of a warm colour over black of opacity `(1 - light) ·
/// 0.75`, where `light = clamp(activation / scale_max, 0, 1)` and `patches` `[rows, columns]` are upsampled as in
/// [`feature_map`].
///
/// # Errors
/// [`Error::Length`]; [`Error::NotFinite`] with the number of the patch; [`Error::Size`] if `scale_max` is not from
/// 1e-30 to 1e30 or `tint` not from 0 to 1.
pub fn feature_draw(patches: &[f32], shape: MapShape, scale_max: f32, tint: f32) -> Result<Vec<u8>, Error> {
    check(patches, shape, scale_max, tint)?;
    // A top 1 in which every patch lists feature 0. Fits: a grid has at most MAX_SIDE² patches.
    let tokens = patches.len() as u32;
    let top = TopK { tokens, k: 1, top_indices: vec![0; patches.len()], top_acts: patches.to_vec() };
    let map = feature_map(&top, 0, 0, shape)?;
    Ok(map.iter().flat_map(|&activation| pixel((activation / scale_max).clamp(0.0, 1.0), tint)).collect())
}

fn pixel(light: f32, tint: f32) -> [u8; 4] {
    let warmth = tint * light;
    let shade = (1.0 - light) * DIM;
    let [red, green, blue] = WARM.map(|level| (level * warmth).round() as u8);
    [red, green, blue, (255.0 * (warmth + shade * (1.0 - warmth))).round() as u8]
}
