//! What a device takes at once, and values that are checked before they reach it.

use std::ops::RangeInclusive;

use crate::error::check_len;
use crate::{Error, Gpu, TopK};

/// Workgroups in one dimension that every WebGPU device takes.
const MAX_GROUPS: u32 = 65_535;

/// `groups` workgroups in x and y. A shader counts them as `group.y * groups.x + group.x` and skips those too many.
pub(crate) fn grid(groups: u32) -> [u32; 2] {
    let rows = groups.div_ceil(MAX_GROUPS).max(1);
    [groups.div_ceil(rows), rows]
}

impl Gpu {
    /// `Ok` if one binding can hold `bytes`.
    pub(crate) fn check_binding(&self, what: &'static str, bytes: u64) -> Result<(), Error> {
        let most = self.max_binding_bytes();
        if bytes > most {
            return Err(Error::Size { what, given: bytes, expected: format!("at most {most}, what a binding holds") });
        }
        Ok(())
    }
}

impl TopK {
    /// Both lists must be `[tokens, k]`, and the activations finite.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.k == 0 {
            return Err(Error::Size { what: "k", given: 0, expected: "at least 1".to_owned() });
        }
        let entries = self.tokens as usize * self.k as usize;
        check_len("top_indices [tokens, k]", self.top_indices.len(), entries)?;
        check_len("top_acts [tokens, k]", self.top_acts.len(), entries)?;
        check_finite("top_acts [tokens, k]", &self.top_acts, self.k)
    }
}

/// The rows of `values` `[rows, width]`, which are called `what`, must be finite.
pub(crate) fn check_finite(what: &'static str, values: &[f32], width: u32) -> Result<(), Error> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::NotFinite { what, row: at / width as usize }),
        None => Ok(()),
    }
}

/// `Ok` if `value` is within `range`, in words `expected`; NaN never is. Code that writes any float would be 5 KiB of the
/// browser's worker, so the error has the value as a whole number.
pub(crate) fn check_range(
    what: &'static str,
    value: f32,
    range: RangeInclusive<f32>,
    expected: &'static str,
) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::Size { what, given: value as u64, expected: expected.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_all_groups_and_few_more() {
        for groups in [0, 1, 65_535, 65_536, 131_070, 131_071, 1 << 25] {
            let [x, y] = grid(groups);
            assert!(x <= MAX_GROUPS && y <= MAX_GROUPS, "{groups}: {x} x {y}");
            assert!((groups..=groups + y).contains(&(x * y)), "{groups}: {x} x {y}");
        }
    }

    #[test]
    fn what_is_no_number_is_out_of_range() {
        assert_eq!(check_range("scale", 1.0, 0.0..=1.0, "0 to 1"), Ok(()));
        for bad in [f32::NAN, -0.5, f32::INFINITY] {
            assert!(check_range("scale", bad, 0.0..=1.0, "0 to 1").is_err(), "{bad}");
        }
    }
}
