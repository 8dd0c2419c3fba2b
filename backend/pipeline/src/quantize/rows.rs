//! Rows of weights in a tier, and back.
//!
//! | tier | a weight `w` is stored as | scale |
//! |---|---|---|
//! | f16, slice | the nearest half float, ties to even | |
//! | int8 | `q = round(w / scale)` | `max\|w\| / 127` of the row |
//! | int4 | `q = round(w / scale)` | `max\|w\| / 7` of 32 channels, rounded up to a half float, so that no q leaves ±7 |
//!
//! `round` takes halves away from zero. Where all weights are zero, so is every q, and the scale is 1.

use api::shards::{INT4_GROUP, Tier};
use half::f16;
use rayon::prelude::*;

/// Channels that share a scale in int4.
const GROUP: usize = INT4_GROUP as usize;
const INT8_MAX: f32 = 127.0;
const INT4_MAX: f32 = 7.0;
/// Added to a q of int4, so that it is never negative: a zero is stored as this.
const INT4_ZERO: u8 = 8;
/// Largest finite half float.
const HALF_MAX: f32 = 65504.0;

/// What a tier cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Unfit {
    #[error("hold {0}; a checkpoint's weights must be finite numbers")]
    NotFinite(f32),
    #[error("reach {value}, but {tier} ends at ±{limit}; leave this tier out (int8 has no limit)")]
    Beyond { value: f32, tier: Tier, limit: f32 },
}

/// Bytes of a row's scales.
pub fn scale_bytes(tier: Tier, d_model: u32) -> u64 {
    match tier {
        Tier::F16 | Tier::Slice => 0,
        Tier::Int8 | Tier::Int4 => tier.side_bytes(d_model),
    }
}

/// Some rows as they lie in a file.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// `[rows, width]`
    pub weight: Vec<u8>,
    /// Empty in f16.
    pub scale: Vec<u8>,
}

impl Packed {
    /// Quantises `rows [rows, d_model]` on all cores, in place of what was held.
    ///
    /// # Errors
    /// The first row with a weight that the tier cannot hold.
    pub fn fill(&mut self, tier: Tier, d_model: u32, rows: &[f32]) -> Result<(), (usize, Unfit)> {
        let (row_bytes, scale_bytes) = (tier.row_bytes(d_model) as usize, scale_bytes(tier, d_model) as usize);
        let count = rows.len() / d_model as usize;
        self.weight.resize(count * row_bytes, 0);
        self.scale.resize(count * scale_bytes, 0);
        let mut none = Vec::new();
        let scale = if scale_bytes == 0 {
            // Something to walk along with: one byte a row, which nobody reads.
            none.resize(count, 0);
            &mut none
        } else {
            &mut self.scale
        };
        let weight = self.weight.par_chunks_exact_mut(row_bytes);
        let packed = weight.zip(scale.par_chunks_exact_mut(scale_bytes.max(1)));
        let rows = rows.par_chunks_exact(d_model as usize).zip(packed).enumerate();
        let refused = rows.filter_map(|(number, (row, (weight, scale)))| {
            quantize_row(tier, row, weight, scale).err().map(|problem| (number, problem))
        });
        refused.min_by_key(|(number, _)| *number).map_or(Ok(()), Err)
    }

    /// The held rows as numbers `[rows, d_model]`, in place of what `rows` held.
    pub fn unpack(&self, tier: Tier, d_model: u32, rows: &mut Vec<f32>) {
        let (row_bytes, scale_bytes) = (tier.row_bytes(d_model) as usize, scale_bytes(tier, d_model) as usize);
        let count = self.weight.len() / row_bytes;
        rows.resize(count * d_model as usize, 0.0);
        rows.par_chunks_exact_mut(d_model as usize).zip(self.weight.par_chunks_exact(row_bytes)).enumerate().for_each(
            |(number, (row, weight))| {
                dequantize_row(tier, weight, &self.scale[number * scale_bytes..][..scale_bytes], row);
            },
        );
    }
}

/// Quantises one row into `weight` (as long as the tier's row, padding included) and `scale` (not touched in f16).
///
/// # Errors
/// A weight that is not finite, or larger than the tier can hold.
pub fn quantize_row(tier: Tier, row: &[f32], weight: &mut [u8], scale: &mut [u8]) -> Result<(), Unfit> {
    if let Some(value) = row.iter().find(|value| !value.is_finite()) {
        return Err(Unfit::NotFinite(*value));
    }
    let limit = match tier {
        Tier::F16 | Tier::Slice => HALF_MAX,
        Tier::Int8 => f32::MAX,
        Tier::Int4 => HALF_MAX * INT4_MAX,
    };
    let value = largest(row);
    if value > limit {
        return Err(Unfit::Beyond { value, tier, limit });
    }
    match tier {
        Tier::F16 | Tier::Slice => {
            weight.fill(0);
            let (halves, _) = weight.as_chunks_mut::<2>();
            halves.iter_mut().zip(row).for_each(|(half, value)| *half = f16::from_f32(*value).to_le_bytes());
        }
        Tier::Int8 => {
            let step = step_or_one(value / INT8_MAX);
            scale.copy_from_slice(&step.to_le_bytes());
            weight.fill(0);
            weight.iter_mut().zip(row).for_each(|(byte, value)| *byte = level(*value, step, INT8_MAX) as u8);
        }
        Tier::Int4 => {
            let groups = row.chunks(GROUP).zip(weight.chunks_exact_mut(GROUP / 2)).zip(scale.as_chunks_mut::<2>().0);
            for ((values, bytes), scale) in groups {
                let step = half_at_least(step_or_one(largest(values) / INT4_MAX));
                *scale = step.to_le_bytes();
                let step = step.to_f32();
                let stored = |channel: usize| {
                    let q = values.get(channel).map_or(0, |value| level(*value, step, INT4_MAX));
                    q.wrapping_add_unsigned(INT4_ZERO) as u8
                };
                let bytes = bytes.iter_mut().enumerate();
                bytes.for_each(|(pair, byte)| *byte = stored(2 * pair) | (stored(2 * pair + 1) << 4));
            }
        }
    }
    Ok(())
}

/// The numbers that a stored row stands for.
pub fn dequantize_row(tier: Tier, weight: &[u8], scale: &[u8], row: &mut [f32]) {
    match tier {
        Tier::F16 | Tier::Slice => {
            let (halves, _) = weight.as_chunks::<2>();
            row.iter_mut().zip(halves).for_each(|(value, half)| *value = f16::from_le_bytes(*half).to_f32());
        }
        Tier::Int8 => {
            let step = scale.first_chunk::<4>().map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
            row.iter_mut().zip(weight).for_each(|(value, byte)| *value = f32::from(*byte as i8) * step);
        }
        Tier::Int4 => {
            let groups = row.chunks_mut(GROUP).zip(weight.chunks_exact(GROUP / 2)).zip(scale.as_chunks::<2>().0);
            for ((values, bytes), scale) in groups {
                let step = f16::from_le_bytes(*scale).to_f32();
                for (channel, value) in values.iter_mut().enumerate() {
                    let stored = (bytes[channel / 2] >> (channel % 2 * 4)) & 0xf;
                    *value = (f32::from(stored) - f32::from(INT4_ZERO)) * step;
                }
            }
        }
    }
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

/// Nothing is divided by zero, and nothing is to be stored where a step is too small to be a number.
fn step_or_one(step: f32) -> f32 {
    if step > 0.0 { step } else { 1.0 }
}

/// The smallest half float from `value` (at most [`HALF_MAX`]) up.
fn half_at_least(value: f32) -> f16 {
    let nearest = f16::from_f32(value);
    // The bits of positive floats rise with their values.
    if nearest.to_f32() < value { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
}

fn level(value: f32, step: f32, max: f32) -> i8 {
    (value / step).round().clamp(-max, max) as i8
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    /// What a row is after both ways, and its scales.
    fn round_trip(tier: Tier, row: &[f32]) -> (Vec<f32>, Packed) {
        let d_model = row.len() as u32;
        let mut packed = Packed::default();
        packed.fill(tier, d_model, row).unwrap();
        assert_eq!(packed.weight.len() as u64, tier.row_bytes(d_model));
        let mut back = vec![9.0; 3];
        packed.unpack(tier, d_model, &mut back);
        (back, packed)
    }

    fn refused(tier: Tier, rows: &[f32], d_model: u32) -> (usize, String) {
        let (row, problem) = Packed::default().fill(tier, d_model, rows).unwrap_err();
        (row, problem.to_string())
    }

    #[test]
    fn weights_come_back_within_half_a_step() {
        for d in [1, 2, 20, 31, 32, 33, 64, 200] {
            let row: Vec<f32> = (0..d).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
            let (halves, _) = round_trip(Tier::F16, &row);
            assert!(row.iter().zip(&halves).all(|(w, half)| f16::from_f32(*w).to_f32() == *half), "{d}");
            let (bytes, _) = round_trip(Tier::Int8, &row);
            let step = largest(&row) / INT8_MAX;
            assert!(row.iter().zip(&bytes).all(|(w, back)| (w - back).abs() <= 0.5001 * step), "{d}");
            let (nibbles, packed) = round_trip(Tier::Int4, &row);
            for (group, (values, back)) in row.chunks(GROUP).zip(nibbles.chunks(GROUP)).enumerate() {
                let step = f16::from_le_bytes([packed.scale[2 * group], packed.scale[2 * group + 1]]).to_f32();
                assert!(step >= largest(values) / INT4_MAX && step <= largest(values) / INT4_MAX * 1.001, "{d}");
                assert!(values.iter().zip(back).all(|(w, back)| (w - back).abs() <= 0.5001 * step), "{d}");
            }
        }
    }

    #[test]
    fn padding_and_zeros_are_zeros() {
        let (_, halves) = round_trip(Tier::F16, &[1.0; 20]);
        assert_eq!(halves.weight[40..], [0; 8]);
        let (_, bytes) = round_trip(Tier::Int8, &[-1.0; 20]);
        assert_eq!((bytes.weight[19] as i8, &bytes.weight[20..]), (-127, &[0; 12][..]));
        let (_, nibbles) = round_trip(Tier::Int4, &[-1.0; 21]);
        assert_eq!(nibbles.weight[9..], [0x11, 0x81, 0x88, 0x88, 0x88, 0x88, 0x88]);
        for tier in Tier::ALL {
            let (back, _) = round_trip(tier, &[0.0; 5]);
            assert_eq!(back, [0.0; 5], "{tier}");
            // So small that the step would be no number.
            let (back, _) = round_trip(tier, &[1e-45; 5]);
            assert!(back.iter().all(|value| value.abs() < 1e-7), "{tier}: {back:?}");
        }
    }

    #[test]
    fn ties_go_away_from_zero_and_the_lower_four_bits_come_first() {
        // The largest weight makes the step 1.
        let (back, packed) = round_trip(Tier::Int4, &[7.0, 2.5, -2.5, 0.5]);
        assert_eq!(back, [7.0, 3.0, -3.0, 1.0]);
        assert_eq!(packed.weight[..2], [0xbf, 0x95]);
        let (back, _) = round_trip(Tier::Int8, &[127.0, 2.5, -2.5]);
        assert_eq!(back, [127.0, 3.0, -3.0]);
    }

    #[test]
    fn what_a_tier_cannot_hold_is_named() {
        let (row, reason) = refused(Tier::F16, &[1.0, 2.0, 3.0, -70_000.0, f32::NAN, 0.0], 2);
        assert_eq!(row, 1);
        assert!(reason.contains("reach 70000") && reason.contains("f16 ends at ±65504"), "{reason}");
        let (row, reason) = refused(Tier::Int8, &[1.0, 2.0, f32::NAN, 0.0], 2);
        assert!(row == 1 && reason.contains("hold NaN"), "{reason}");
        assert!(refused(Tier::Int4, &[f32::NEG_INFINITY], 1).1.contains("hold -inf"));
        assert!(refused(Tier::Int4, &[500_000.0], 1).1.contains("int4 ends at ±458528"));
        assert!(Packed::default().fill(Tier::Int4, 1, &[458_528.0]).is_ok());
        assert!(Packed::default().fill(Tier::Int8, 1, &[f32::MAX]).is_ok());
        assert!(Packed::default().fill(Tier::Slice, 1, &[65_504.0]).is_ok());
    }
}
