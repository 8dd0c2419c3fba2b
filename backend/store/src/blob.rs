//! Number lists as little-endian blobs.

use crate::StoreError;

pub(crate) fn from_u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn from_u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(crate) fn from_f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Activations with four significant digits: as much as half precision holds, and short as JSON.
pub(crate) fn from_activations(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| four_digits(*value).to_le_bytes()).collect()
}

fn four_digits(value: f32) -> f32 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// `u16` list, widened to the wire's `u32`.
pub(crate) fn u16s_widened(blob: &[u8]) -> Result<Vec<u32>, StoreError> {
    Ok(numbers(blob)?.map(u16::from_le_bytes).map(u32::from).collect())
}

pub(crate) fn u32s(blob: &[u8]) -> Result<Vec<u32>, StoreError> {
    Ok(numbers(blob)?.map(u32::from_le_bytes).collect())
}

pub(crate) fn f32s(blob: &[u8]) -> Result<Vec<f32>, StoreError> {
    Ok(numbers(blob)?.map(f32::from_le_bytes).collect())
}

fn numbers<const N: usize>(blob: &[u8]) -> Result<impl Iterator<Item = [u8; N]>, StoreError> {
    let (chunks, rest) = blob.as_chunks::<N>();
    if rest.is_empty() {
        return Ok(chunks.iter().copied());
    }
    Err(StoreError::Row { what: "list", reason: format!("{} bytes are not a multiple of {N}", blob.len()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn lists_come_back() {
        assert_eq!(u16s_widened(&from_u16s(&[0, 7, u16::MAX])).unwrap(), [0, 7, 65_535]);
        assert_eq!(u32s(&from_u32s(&[0, u32::MAX])).unwrap(), [0, u32::MAX]);
        assert_eq!(f32s(&from_f32s(&[-1.5, 0.1])).unwrap(), [-1.5, 0.1]);
        assert!(u32s(&[1, 2, 3]).is_err());
    }

    #[test]
    fn activations_keep_four_digits() {
        assert_eq!(f32s(&from_activations(&[0.099_975_586, 12.346_78, 0.0])).unwrap(), [0.09998, 12.35, 0.0]);
    }
}
