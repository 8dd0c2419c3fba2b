//! Cosine of one row with each row of a matrix, in plain Rust; the nearest rows.

use crate::Error;
use crate::error::check_len;
use crate::limits::check_finite;

/// Sizes of a matrix, checked.
pub(crate) struct Rows {
    pub n: u32,
    pub d_model: u32,
}

impl Rows {
    /// `rows` must be `[n, d_model]` for the `d_model` of `row`, and both finite.
    pub fn new(row: &[f32], rows: &[f32]) -> Result<Self, Error> {
        if row.is_empty() {
            return Err(Error::Size { what: "d_model", given: 0, expected: "at least 1".to_owned() });
        }
        let n = rows.len() / row.len();
        check_len("rows [n, d_model]", rows.len(), n * row.len())?;
        let fits = |what, given: usize| {
            let expected = "less than 2^32".to_owned();
            u32::try_from(given).map_err(|_| Error::Size { what, given: given as u64, expected })
        };
        let sizes = Self { n: fits("number of rows", n)?, d_model: fits("d_model", row.len())? };
        check_finite("row [d_model]", row, sizes.d_model)?;
        check_finite("rows [n, d_model]", rows, sizes.d_model)?;
        Ok(sizes)
    }
}

/// `1 / |row|`; 0 for a zero row, and for one so small that f32 has no such number.
pub(crate) fn inverse_norm(row: &[f32]) -> f32 {
    let norm = squared_norm(row).sqrt();
    if norm < f64::from(f32::MIN_POSITIVE) { 0.0 } else { (1.0 / norm) as f32 }
}

fn squared_norm(row: &[f32]) -> f64 {
    row.iter().map(|&value| f64::from(value).powi(2)).sum()
}

/// Cosines `[n]` of `row` `[d_model]` with each of `rows` `[n, d_model]`: `(a · b) / (|a| |b|)`, 0 where either is
/// zero.
///
/// # Errors
/// [`Error::Size`] for an empty row, [`Error::Length`] if the last row is not whole, [`Error::NotFinite`] with the
/// number of the row.
pub fn similarities(row: &[f32], rows: &[f32]) -> Result<Vec<f32>, Error> {
    Rows::new(row, rows)?;
    let square = squared_norm(row);
    let cosine = |other: &[f32]| {
        let dot: f64 = row.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let norms = (square * squared_norm(other)).sqrt();
        if norms == 0.0 { 0.0 } else { (dot / norms).clamp(-1.0, 1.0) as f32 }
    };
    Ok(rows.chunks_exact(row.len()).map(cosine).collect())
}

/// The `n` most similar rows and their cosines, falling, ties to the lower index; `exclude` is the row itself.
#[must_use]
pub fn nearest(similarities: &[f32], n: usize, exclude: Option<u32>) -> Vec<(u32, f32)> {
    let listed = (0..).zip(similarities).filter(|&(index, _)| Some(index) != exclude);
    let mut keys: Vec<u64> = listed.map(|(index, similarity)| key(*similarity, index)).collect();
    keys.sort_unstable();
    let ranked = keys.iter().take(n).map(|&key| key as u32);
    ranked.map(|index| (index, similarities[index as usize] + 0.0)).collect()
}

/// Rises as the rank falls: falling similarity, then rising index.
fn key(similarity: f32, index: u32) -> u64 {
    // Adding 0 turns -0 into 0: they are a tie. The bits of negative numbers rise as the numbers fall.
    let bits = (similarity + 0.0).to_bits();
    let falling = if bits >> 31 == 0 { !bits ^ (1 << 31) } else { bits };
    u64::from(falling) << 32 | u64::from(index)
}
