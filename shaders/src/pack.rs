//! Weights as the kernels store them, for the known answer, tests and benchmarks. (`lmm-scope quantize` does the same
//! for files, row by row from disk.)

use half::f16;

use crate::shape::INT4_GROUP;
use crate::{SaeShape, WeightType};

/// A packed weight matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// `[latents, width]`
    pub rows: Vec<u8>,
    /// See [`WeightType`]; empty in f32 and f16.
    pub scales: Vec<u8>,
}

/// Packs `weights` `[latents, d_model]`; what the type cannot hold is rounded to the nearest. Whole numbers from -7 to 7
/// whose largest magnitude in a row (int8) or group (int4) does not matter get the scale 1, and stay exact.
///
/// # Panics
/// If there are not as many weights as `shape` says.
#[must_use]
pub fn pack(shape: SaeShape, weight_type: WeightType, weights: &[f32]) -> Packed {
    assert_eq!(weights.len(), shape.weights(), "weights [latents, d_model]");
    let width = weight_type.width(shape.d_model) as usize;
    let (mut packed, mut padded) = (Packed { rows: Vec::new(), scales: Vec::new() }, vec![0.0; width]);
    for row in weights.chunks_exact(shape.d_model as usize) {
        padded[..row.len()].copy_from_slice(row);
        pack_row(weight_type, &padded, &mut packed);
    }
    packed
}

fn pack_row(weight_type: WeightType, row: &[f32], packed: &mut Packed) {
    match weight_type {
        WeightType::F32 => packed.rows.extend(row.iter().flat_map(|weight| weight.to_le_bytes())),
        WeightType::F16 => packed.rows.extend(row.iter().flat_map(|&weight| f16::from_f32(weight).to_le_bytes())),
        WeightType::Int8 => {
            let scale = scale_of(row, 127.0);
            packed.scales.extend(scale.to_le_bytes());
            packed.rows.extend(row.iter().map(|weight| ((weight / scale).round() as i8).cast_unsigned()));
        }
        WeightType::Int4 => {
            for group in row.chunks(INT4_GROUP as usize) {
                let half = f16::from_f32(scale_of(group, 7.0));
                packed.scales.extend(half.to_le_bytes());
                let nibble = |weight: &f32| ((weight / half.to_f32()).round().clamp(-7.0, 7.0) + 8.0) as u8;
                let pairs = group.as_chunks::<2>().0.iter();
                packed.rows.extend(pairs.map(|[low, high]| nibble(low) | (nibble(high) << 4)));
            }
        }
    }
}

fn scale_of(weights: &[f32], most: f32) -> f32 {
    let largest = weights.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    let whole = weights.iter().all(|weight| weight.fract() == 0.0);
    if whole && largest <= 7.0 { 1.0 } else { largest / most }
}
