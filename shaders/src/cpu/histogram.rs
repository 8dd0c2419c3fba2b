//! Counts of positive values in equal bins, in plain Rust.

use crate::Error;
use crate::limits::check_range;

/// Most bins: a workgroup counts them in its own memory.
pub const MAX_BINS: u32 = 1024;

/// `bins / max`, checked.
pub(crate) fn factor(bins: u32, max: f32) -> Result<f32, Error> {
    if bins == 0 || bins > MAX_BINS {
        return Err(Error::Size { what: "bins", given: bins.into(), expected: format!("1 to {MAX_BINS}") });
    }
    // Far enough from the ends of f32 that the factor is an ordinary number.
    check_range("largest value of a histogram", max, 1e-30..=1e30, "1e-30 to 1e30")?;
    Ok(bins as f32 / max)
}

/// Counts `[bins]` of the positive values in `bins` equal bins from 0 to `max`. The last bin is closed and holds larger
/// values too; what is not finite is not counted. The product is f32 in the kernel as here, so that both agree on
/// values at the edge of a bin.
///
/// # Errors
/// [`Error::Size`] for no bins, more than [`MAX_BINS`], or a `max` that is not from 1e-30 to 1e30.
pub fn histogram(values: &[f32], bins: u32, max: f32) -> Result<Vec<u32>, Error> {
    let factor = factor(bins, max)?;
    let mut counts = vec![0; bins as usize];
    for &value in values.iter().filter(|value| **value > 0.0 && value.is_finite()) {
        counts[(value * factor).min((bins - 1) as f32) as usize] += 1;
    }
    Ok(counts)
}
