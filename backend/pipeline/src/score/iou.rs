//! IoU of a feature's area with the masks of its label (paper, section 4.1), mean over its top pictures.
//!
//! The *area*: where the feature fires, the map upsampled to the masks' size. The paper's code upsamples the map of
//! silent patches bilinearly, as 8-bit grey levels, and takes everything that is not fully silent; so does [`area`].
//! Masks that lie on the patches themselves need no upsampling. A picture in which nothing is grounded counts 0.
//!
//! The *baseline* is that of the pocket's labels ([`crate::pocket::dissect`]): the areas of the next picture, moved by
//! random offsets, against the same masks. It is what the size of areas and masks alone is worth. The paper's own
//! baseline, the feature on random pictures, is next to nothing by construction (.005): it does not fire there.

use super::{
    Measured, PendingScore, ScoreError, Scorer, Shown, Subject,
    grounder::{Grounder, Mask, Protocol},
    interval::mean,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Random offsets per picture of the baseline.
const OFFSETS: usize = 4;
/// Below this share of a firing patch, a pixel of the upsampled map rounds to fully silent (224 of 224).
const SILENT: f32 = 0.5 / 224.0;

/// Overlap with what a [`Grounder`] finds.
pub struct Iou {
    grounder: Arc<dyn Grounder>,
}

impl Iou {
    pub fn new(grounder: Arc<dyn Grounder>) -> Self {
        Self { grounder }
    }

    async fn measure(&self, subject: &Subject) -> Result<Option<Measured>, ScoreError> {
        let label = subject.explanation.description.as_str();
        let Protocol { pictures, every_other, threshold } = self.grounder.protocol();
        if !self.grounder.knows(label) {
            return Ok(None);
        }
        let highest = subject.shown.iter().map(|shown| shown.activation.max_value).fold(0.0, f32::max);
        let mut seen = Vec::new();
        for shown in &subject.shown {
            if seen.len() == pictures {
                break;
            }
            if let Some(mask) = self.grounder.ground(shown, label).await? {
                seen.push(Seen { patches: patches(shown, threshold * highest)?, grid: grid(shown), mask });
            }
        }
        let measuring: Vec<Seen> = if every_other { seen.into_iter().skip(1).step_by(2).collect() } else { seen };
        Ok(measured(&measuring, subject.seed))
    }
}

impl Scorer for Iou {
    fn type_name(&self) -> &str {
        "iou"
    }

    fn author(&self) -> &str {
        self.grounder.author()
    }

    fn score<'a>(&'a self, subject: &'a Subject) -> PendingScore<'a> {
        Box::pin(self.measure(subject))
    }
}

/// One picture: where the feature fires on its patches, and what shows the label.
struct Seen {
    patches: Vec<bool>,
    /// Rows and columns of the patches.
    grid: [usize; 2],
    mask: Mask,
}

fn grid(shown: &Shown) -> [usize; 2] {
    shown.activation.image.grid.map(|length| length as usize)
}

/// Patches where the activation is above `least`, row-major.
fn patches(shown: &Shown, least: f32) -> Result<Vec<bool>, ScoreError> {
    let [rows, columns] = grid(shown);
    let mut patches = vec![false; rows * columns];
    let firing = &shown.activation;
    for (index, value) in firing.feature_acts_indices.iter().zip(&firing.feature_acts_values) {
        let Some(patch) = patches.get_mut(*index as usize) else {
            let reason = format!("patch {index} is not on a grid of {rows} by {columns}");
            return Err(ScoreError::Picture { id: shown.id().to_owned(), reason });
        };
        *patch = *value > least;
    }
    Ok(patches)
}

fn measured(seen: &[Seen], seed: u64) -> Option<Measured> {
    let values: Vec<f32> = seen.iter().map(|picture| iou(&picture.area(&picture.patches), &picture.mask.on)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let baseline: Vec<f32> = seen
        .iter()
        .enumerate()
        .map(|(number, picture)| {
            let other = &seen[(number + 1) % seen.len()];
            let [rows, columns] = other.grid;
            let offsets = (0..OFFSETS).map(|_| {
                let offset = [rng.random_range(0..rows.max(1)), rng.random_range(0..columns.max(1))];
                let moved = moved(&other.patches, other.grid, offset);
                iou(&area(&moved, other.grid, picture.mask.size()), &picture.mask.on)
            });
            mean(&offsets.collect::<Vec<_>>())
        })
        .collect();
    Measured::mean(&values, &baseline, seed)
}

impl Seen {
    fn area(&self, patches: &[bool]) -> Vec<bool> {
        area(patches, self.grid, self.mask.size())
    }
}

/// Intersection over union of two areas of the same size; 0 where nothing is grounded.
fn iou(area: &[bool], mask: &[bool]) -> f32 {
    let (mut both, mut either) = (0_u32, 0_u32);
    for (&on, &shows) in area.iter().zip(mask) {
        both += u32::from(on && shows);
        either += u32::from(on || shows);
    }
    if either == 0 { 0.0 } else { both as f32 / either as f32 }
}

/// Patches moved down and right, around the edges.
fn moved(patches: &[bool], [rows, columns]: [usize; 2], [down, right]: [usize; 2]) -> Vec<bool> {
    let from = |patch: usize| {
        let (row, column) = (patch / columns, patch % columns);
        (row + rows - down) % rows * columns + (column + columns - right) % columns
    };
    (0..patches.len()).map(|patch| patches[from(patch)]).collect()
}

/// The area of patches on `rows` × `columns`, upsampled to `height` × `width`.
pub fn area(patches: &[bool], grid: [usize; 2], size: [usize; 2]) -> Vec<bool> {
    let ([rows, columns], [height, width]) = (grid, size);
    if grid == size || rows == 0 || columns == 0 {
        return patches.to_vec();
    }
    // The two patches between whose centres a pixel lies, and the share of the second.
    let between = |pixel: usize, pixels: usize, count: usize| {
        let at = ((pixel as f32 + 0.5) / pixels as f32 * count as f32 - 0.5).clamp(0.0, (count - 1) as f32);
        let first = at as usize;
        (first, (first + 1).min(count - 1), at - first as f32)
    };
    let places: Vec<_> = (0..width).map(|x| between(x, width, columns)).collect();
    let mut upsampled = Vec::with_capacity(height * width);
    for y in 0..height {
        let (top, bottom, down) = between(y, height, rows);
        let fires = |row: usize, column: usize| f32::from(u8::from(patches[row * columns + column]));
        upsampled.extend(places.iter().map(|&(left, right, across)| {
            let upper = fires(top, left) * (1.0 - across) + fires(top, right) * across;
            let lower = fires(bottom, left) * (1.0 - across) + fires(bottom, right) * across;
            upper * (1.0 - down) + lower * down > SILENT
        }));
    }
    upsampled
}

#[cfg(test)]
mod tests;
