//! AnyRes: which tiles a picture is cut into, and which tile patches survive unpadding.
//!
//! Source: LLaVA-NeXT (`select_best_resolution`, `unpad_image`), as in Hugging Face `transformers`. Sizes are
//! `(height, width)`.

use std::ops::Range;

/// The tile layout of one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileGrid {
    /// Tiles downwards and across.
    pub rows: usize,
    pub columns: usize,
    /// Patch rows and columns that show the picture and not its padding.
    pub kept_rows: Range<usize>,
    pub kept_columns: Range<usize>,
}

impl TileGrid {
    /// Layout for a picture of `size` with the given pinpoints; `None` if there are none.
    ///
    /// `side` is the tile's side in pixels, `grid` its side in patches.
    pub fn new(size: [usize; 2], pinpoints: &[[usize; 2]], side: usize, grid: usize) -> Option<Self> {
        let best = select_best_resolution(size, pinpoints)?;
        let (rows, columns) = (best[0] / side, best[1] / side);
        let (kept_rows, kept_columns) = unpadded([rows * grid, columns * grid], size);
        Some(Self { rows, columns, kept_rows, kept_columns })
    }

    /// Tokens of the tile part: every kept row and its newline.
    pub fn tokens(&self) -> usize {
        self.kept_rows.len() * (self.kept_columns.len() + 1)
    }
}

/// The pinpoint that keeps the most of the picture's pixels; ties by least waste, then by order.
pub fn select_best_resolution(size: [usize; 2], pinpoints: &[[usize; 2]]) -> Option<[usize; 2]> {
    let [height, width] = size;
    let effective_and_waste = |&[h, w]: &[usize; 2]| {
        let scale = f64::min(w as f64 / width as f64, h as f64 / height as f64);
        let (scaled_w, scaled_h) = ((width as f64 * scale) as usize, (height as f64 * scale) as usize);
        let effective = (scaled_w * scaled_h).min(width * height);
        (effective, h * w - effective)
    };
    let mut best: Option<([usize; 2], (usize, usize))> = None;
    for pinpoint in pinpoints {
        let (effective, waste) = effective_and_waste(pinpoint);
        let better = best.is_none_or(|(_, (e, w))| effective > e || (effective == e && waste < w));
        if better {
            best = Some((*pinpoint, (effective, waste)));
        }
    }
    best.map(|(pinpoint, _)| pinpoint)
}

/// Rows and columns of a `current` patch grid that the picture of `original` size covers.
///
/// The new side is `int(round(x, 7))`; `(current − new) // 2` rows or columns go on both sides. Of an odd number of
/// padding rows or columns one stays, at the bottom or on the right: the checkpoints were trained with it there.
fn unpadded(current: [usize; 2], original: [usize; 2]) -> (Range<usize>, Range<usize>) {
    let [height, width] = current;
    let [original_h, original_w] = original.map(|side| side as f64);
    let round7 = |x: f64| ((x * 1e7).round() / 1e7) as usize;
    if original_w / original_h > width as f64 / height as f64 {
        let new_height = round7(original_h * (width as f64 / original_w));
        let padding = (height - new_height.min(height)) / 2;
        (padding..height - padding, 0..width)
    } else {
        let new_width = round7(original_w * (height as f64 / original_h));
        let padding = (width - new_width.min(width)) / 2;
        (0..height, padding..width - padding)
    }
}

/// Size of the picture inside a `target` canvas when its proportions are kept (Hugging Face `get_patch_output_size`).
pub fn fitted_size(original: [usize; 2], target: [usize; 2]) -> [usize; 2] {
    let [original_h, original_w] = original.map(|side| side as f64);
    let [target_h, target_w] = target;
    let (scale_w, scale_h) = (target_w as f64 / original_w, target_h as f64 / original_h);
    if scale_w < scale_h {
        [((original_h * scale_w).ceil() as usize).min(target_h), target_w]
    } else {
        [target_h, ((original_w * scale_h).ceil() as usize).min(target_w)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINPOINTS: [[usize; 2]; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

    #[test]
    fn a_small_picture_does_not_gain_from_a_larger_canvas() {
        // Effective area is capped by the original: all layouts that hold 100×100 keep it whole; least waste wins.
        assert_eq!(select_best_resolution([100, 100], &PINPOINTS), Some([336, 672]));
    }

    #[test]
    fn wide_and_tall_pictures_pick_their_own_layout() {
        assert_eq!(select_best_resolution([300, 1200], &PINPOINTS), Some([336, 1008]));
        assert_eq!(select_best_resolution([1200, 300], &PINPOINTS), Some([1008, 336]));
        assert_eq!(select_best_resolution([2000, 2000], &PINPOINTS), Some([672, 672]));
    }

    #[test]
    fn a_square_picture_keeps_all_patches() {
        let tiles = TileGrid::new([672, 672], &PINPOINTS, 336, 24);
        assert_eq!(tiles.as_ref().map(TileGrid::tokens), Some(48 * 49));
        // 576 base tokens and the largest grid: the 2,928 of the paper's model.
        assert_eq!(tiles.map(|tiles| 576 + tiles.tokens()), Some(2928));
    }

    #[test]
    fn padding_is_removed_symmetrically() {
        // 400 × 600 on a 672 × 672 canvas: 48 patch rows, of which 32 show the picture.
        let tiles = TileGrid::new([400, 600], &[[672, 672]], 336, 24);
        let tiles = tiles.unwrap_or_else(|| unreachable!("one pinpoint is given"));
        assert_eq!((tiles.kept_rows, tiles.kept_columns), (8..40, 0..48));
    }

    #[test]
    fn no_pinpoints_no_tiles() {
        assert_eq!(TileGrid::new([64, 64], &[], 64, 8), None);
    }
}
