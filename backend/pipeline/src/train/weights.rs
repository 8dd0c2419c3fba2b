//! What is trained, and where it starts.

use super::kernels::{TASK, dot};
use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// `x̂ = TopK(ReLU((x − b_dec) W_encᵀ + b_enc)) W_dec + b_dec`; also the gradients and moments of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    pub d_model: usize,
    /// `[latents, d_model]`
    pub encoder: Vec<f32>,
    /// `[latents]`
    pub encoder_bias: Vec<f32>,
    /// `[latents, d_model]`, unit rows.
    pub w_dec: Vec<f32>,
    /// `[d_model]`
    pub b_dec: Vec<f32>,
}

impl Weights {
    /// All zero.
    pub fn zeros(latents: usize, d_model: usize) -> Self {
        Self {
            d_model,
            encoder: vec![0.0; latents * d_model],
            encoder_bias: vec![0.0; latents],
            w_dec: vec![0.0; latents * d_model],
            b_dec: vec![0.0; d_model],
        }
    }

    /// Encoder uniform within `±1/√d_model`, its rows as unit vectors the decoder, no bias, and the given `b_dec`.
    pub fn start(latents: usize, b_dec: Vec<f32>, seed: u64) -> Self {
        let d_model = b_dec.len();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bound = (d_model as f32).sqrt().recip();
        let encoder: Vec<f32> = (0..latents * d_model).map(|_| rng.random_range(-bound..bound)).collect();
        let mut w_dec = encoder.clone();
        w_dec.par_chunks_exact_mut(d_model).for_each(unit);
        Self { d_model, encoder, encoder_bias: vec![0.0; latents], w_dec, b_dec }
    }

    pub fn latents(&self) -> usize {
        self.encoder_bias.len()
    }

    /// Fills this with the other's matrices rounded to bf16, and its vectors as they are.
    pub fn round_from(&mut self, other: &Self) {
        round(&mut self.encoder, &other.encoder);
        round(&mut self.w_dec, &other.w_dec);
        self.encoder_bias.copy_from_slice(&other.encoder_bias);
        self.b_dec.copy_from_slice(&other.b_dec);
    }
}

fn round(out: &mut [f32], values: &[f32]) {
    out.par_chunks_mut(TASK).zip(values.par_chunks(TASK)).for_each(|(out, values)| {
        out.iter_mut().zip(values).for_each(|(out, value)| *out = rounded(*value));
    });
}

/// The nearest bf16.
#[inline(always)]
pub fn rounded(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

/// Makes a row a unit vector; a row of zeros stays.
#[inline(always)]
pub fn unit(row: &mut [f32]) {
    let norm = dot(row, row).sqrt();
    if norm > f32::MIN_POSITIVE {
        row.iter_mut().for_each(|value| *value /= norm);
    }
}

/// Steps of Weiszfeld's iteration at most, and the move, relative to a token's distance, at which it ends.
const MEDIAN_STEPS: usize = 100;
const MEDIAN_TOLERANCE: f64 = 1e-9;
/// Tokens that are added up together: fixed, so that the sum does not depend on the number of cores.
const MEDIAN_CHUNK: usize = 256;

/// Geometric median of `[tokens, d_model]`: the point with the smallest sum of distances to all tokens. A few massive
/// tokens do not move it as they move the mean.
pub fn geometric_median(tokens: &[f32], d_model: usize) -> Vec<f32> {
    let mut median = weighted_mean(tokens, d_model, |_| 1.0);
    let spread = distance(&median, &tokens[..d_model.min(tokens.len())]).max(1e-20);
    for _ in 0..MEDIAN_STEPS {
        // A token that lies on the median would have an infinite weight.
        let next = weighted_mean(tokens, d_model, |row| 1.0 / distance(&median, row).max(spread * MEDIAN_TOLERANCE));
        let moved = median.iter().zip(&next).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        median = next;
        if moved <= MEDIAN_TOLERANCE * spread {
            break;
        }
    }
    median.into_iter().map(|value| value as f32).collect()
}

fn distance(point: &[f64], row: &[f32]) -> f64 {
    point.iter().zip(row).map(|(point, value)| (point - f64::from(*value)).powi(2)).sum::<f64>().sqrt()
}

fn weighted_mean(tokens: &[f32], d: usize, weight: impl Fn(&[f32]) -> f64 + Sync) -> Vec<f64> {
    let parts: Vec<(f64, Vec<f64>)> = tokens
        .par_chunks(MEDIAN_CHUNK * d)
        .map(|rows| {
            let (mut total, mut sum) = (0.0, vec![0.0; d]);
            for row in rows.chunks_exact(d) {
                let weight = weight(row);
                total += weight;
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * f64::from(*value));
            }
            (total, sum)
        })
        .collect();
    let (mut total, mut sum) = (0.0, vec![0.0; d]);
    for (part_total, part) in parts {
        total += part_total;
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sum.iter_mut().for_each(|sum| *sum /= total);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_withstands_outliers() {
        // Of points on a line the geometric median is the median.
        let line: Vec<f32> = [1.0, 2.0, 3.0, 4.0, 1e6].into_iter().flat_map(|x| [x, 2.0]).collect();
        let median = geometric_median(&line, 2);
        assert!((median[0] - 3.0).abs() < 0.05 && (median[1] - 2.0).abs() < 1e-5, "{median:?}");
        // Of a symmetric cross it is the middle.
        let cross = [[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]].concat();
        assert!(geometric_median(&cross, 2).iter().all(|value| value.abs() < 1e-4));
        assert_eq!(geometric_median(&[7.0, 7.0, 7.0, 7.0], 2), [7.0, 7.0], "all alike");
    }

    #[test]
    fn decoder_rows_start_as_the_encoders_directions() {
        let weights = Weights::start(10, vec![0.5; 48], 3);
        assert_eq!(weights, Weights::start(10, vec![0.5; 48], 3));
        assert_ne!(weights.encoder, Weights::start(10, vec![0.5; 48], 4).encoder);
        for (encoder, decoder) in weights.encoder.chunks_exact(48).zip(weights.w_dec.chunks_exact(48)) {
            assert!((dot(decoder, decoder) - 1.0).abs() < 1e-5);
            assert!((dot(encoder, decoder) - dot(encoder, encoder).sqrt()).abs() < 1e-5);
        }
    }

    #[test]
    fn bf16_keeps_eight_bits() {
        let weights = Weights::start(3, vec![0.1; 5], 1);
        let mut half = Weights::zeros(3, 5);
        half.round_from(&weights);
        assert_eq!(half.b_dec, weights.b_dec);
        for (half, value) in half.encoder.iter().zip(&weights.encoder) {
            assert_eq!(half.to_bits() & 0xffff, 0);
            assert!((half - value).abs() <= value.abs() / 256.0);
        }
    }
}
