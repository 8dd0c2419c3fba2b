//! One feature's activations over the patch grid, upsampled to pixels, in plain Rust.

use crate::error::check_len;
use crate::{Error, MapShape, TopK};

impl TopK {
    /// Latents and activations of the patches from token `start` on, `[rows columns, k]` each.
    ///
    /// # Errors
    /// [`Error::Length`] if there are too few tokens.
    pub(crate) fn patches(&self, start: u32, shape: MapShape) -> Result<(&[u32], &[f32]), Error> {
        let end = start as usize + shape.patches();
        if end > self.tokens as usize {
            let given = (self.tokens as usize).saturating_sub(start as usize);
            return Err(Error::Length { what: "patch tokens", given, expected: shape.patches() });
        }
        // Not above `tokens`.
        let range = self.entries(start..end as u32);
        check_len("top_acts", self.top_acts.len(), self.top_indices.len())?;
        Ok((&self.top_indices[range.clone()], &self.top_acts[range]))
    }
}

/// Map `[height, width]` of `feature` over the tokens `start ..` of `top`, row-major over the grid: bilinear between
/// patch centres (`align_corners = false`), clamped at the edges.
///
/// # Errors
/// [`Error::Length`] if `top` has too few tokens.
pub fn feature_map(top: &TopK, feature: u32, start: u32, shape: MapShape) -> Result<Vec<f32>, Error> {
    let patches = gather(top, feature, start, shape)?;
    let columns = shape.columns as usize;
    let across: Vec<_> = (0..shape.width).map(|x| between(x, shape.width, shape.columns)).collect();
    let mut map = Vec::with_capacity(shape.pixels());
    for y in 0..shape.height {
        let (above, below, share) = between(y, shape.height, shape.rows);
        let row: Vec<f32> =
            (0..columns).map(|x| mix(patches[above * columns + x], patches[below * columns + x], share)).collect();
        map.extend(across.iter().map(|&(left, right, share)| mix(row[left], row[right], share)));
    }
    Ok(map)
}

/// Activation of `feature` at each patch; 0 where it is not among the top k.
fn gather(top: &TopK, feature: u32, start: u32, shape: MapShape) -> Result<Vec<f32>, Error> {
    let (indices, acts) = top.patches(start, shape)?;
    let k = top.k as usize;
    let rows = indices.chunks_exact(k).zip(acts.chunks_exact(k));
    Ok(rows
        .map(|(indices, acts)| indices.iter().position(|&latent| latent == feature).map_or(0.0, |at| acts[at]))
        .collect())
}

/// Where pixel `at` of `size` lies between `cells` patch centres: first patch, second patch, share of the second.
fn between(at: u32, size: u32, cells: u32) -> (usize, usize, f32) {
    let last = (cells - 1) as f32;
    // `clamp` would bring its message, and with it the code that writes floats: 6 KiB of the browser's worker.
    let position = ((at as f32 + 0.5) * cells as f32 / size as f32 - 0.5).max(0.0).min(last);
    let first = position.floor();
    (first as usize, (first + 1.0).min(last) as usize, position - first)
}

fn mix(a: f32, b: f32, share: f32) -> f32 {
    a * (1.0 - share) + b * share
}
