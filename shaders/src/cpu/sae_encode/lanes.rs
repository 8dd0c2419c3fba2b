//! Unpacking and products in plain Rust: accumulators of eight lanes, which compilers turn into SIMD (SSE2, NEON).

use half::f16;

use crate::WeightType;
use crate::shape::INT4_GROUP;

const LANES: usize = 8;
/// Tokens that share the loads of a pair of weights.
pub const TOKENS: usize = 2;
/// Rows of zeros fill the last group of tokens.
pub const PAD: usize = TOKENS;
pub const LATENTS: usize = 2;

/// One packed row as f32 `[width]`. int8 comes without its scale, which is one for the whole row; int4 with its scales.
pub fn unpack(weight_type: WeightType, packed: &[u8], scales: &[u8], row: &mut [f32]) {
    match weight_type {
        WeightType::F32 => {
            row.iter_mut().zip(packed.as_chunks::<4>().0).for_each(|(to, bytes)| *to = f32::from_le_bytes(*bytes));
        }
        WeightType::F16 => {
            let halves = packed.as_chunks::<2>().0.iter();
            row.iter_mut().zip(halves).for_each(|(to, bytes)| *to = f16::from_le_bytes(*bytes).to_f32());
        }
        WeightType::Int8 => {
            row.iter_mut().zip(packed).for_each(|(to, byte)| *to = f32::from(byte.cast_signed()));
        }
        WeightType::Int4 => {
            for (group, to) in row.chunks_mut(INT4_GROUP as usize).enumerate() {
                let scale = f16::from_le_bytes([scales[2 * group], scales[2 * group + 1]]).to_f32();
                let pairs = &packed[group * INT4_GROUP as usize / 2..];
                for (to, byte) in to.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
                    *to = [byte & 15, byte >> 4].map(|nibble| (f32::from(nibble) - 8.0) * scale);
                }
            }
        }
    }
}

/// Partial sums of the dot products of two rows of hidden states with two of weights, by lane.
type Sums = [[[f32; LANES]; LATENTS]; TOKENS];

/// All dot products of `hidden` with `weights`, each `[width]`.
pub fn dots(hidden: [&[f32]; TOKENS], weights: [&[f32]; LATENTS]) -> [[f32; LATENTS]; TOKENS] {
    let mut sums = Sums::default();
    // Nothing is left over: rows are whole lanes.
    accumulate(hidden.map(|row| row.as_chunks().0), weights.map(|row| row.as_chunks().0), &mut sums);
    sums.map(|sums| sums.map(|lanes| lanes.iter().sum()))
}

/// The hot loop. A function of its own: where the sum over lanes is in sight, LLVM lays the accumulators out for that
/// sum and shuffles in every step, four times slower (measured on x86-64).
#[inline(never)]
fn accumulate(hidden: [&[[f32; LANES]]; TOKENS], weights: [&[[f32; LANES]]; LATENTS], sums: &mut Sums) {
    let steps = weights[0].len();
    let hidden = hidden.map(|row| &row[..steps]);
    let weights = weights.map(|row| &row[..steps]);
    let mut partial = Sums::default();
    for i in 0..steps {
        for t in 0..TOKENS {
            for j in 0..LATENTS {
                for lane in 0..LANES {
                    partial[t][j][lane] += hidden[t][i][lane] * weights[j][i][lane];
                }
            }
        }
    }
    *sums = partial;
}
