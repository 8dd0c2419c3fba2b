//! Adam (Kingma and Ba 2015) with what an SAE needs: one clipped gradient norm for all weights, decoder rows that turn
//! but do not stretch.

use super::kernels::{TASK, dot, simd};
use super::weights::{Weights, unit};
use rayon::prelude::*;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;
/// Gradients longer than this are shortened to it.
const MAX_NORM: f64 = 1.0;

/// First and second moments of the gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct Adam {
    pub mean: Weights,
    pub square: Weights,
}

/// What is the same for all weights of a step.
#[derive(Debug, Clone, Copy)]
struct Factors {
    /// Of the gradient: less than 1 where it is too long.
    clip: f32,
    /// Learning rate over `1 − β₁ᵗ`.
    rate: f32,
    /// `1/√(1 − β₂ᵗ)`
    square: f32,
}

impl Adam {
    pub fn new(latents: usize, d_model: usize) -> Self {
        Self { mean: Weights::zeros(latents, d_model), square: Weights::zeros(latents, d_model) }
    }

    /// Step `step` (from 0) with gradients of norm `norm`. The decoder's gradients are changed on the way.
    pub fn step(&mut self, weights: &mut Weights, grads: &mut Weights, norm: f64, rate: f64, step: u64) {
        let time = i32::try_from(step + 1).unwrap_or(i32::MAX);
        let factors = Factors {
            clip: (MAX_NORM / (norm + 1e-6)).min(1.0) as f32,
            rate: (rate / (1.0 - f64::from(BETA1).powi(time))) as f32,
            square: (1.0 - f64::from(BETA2).powi(time)).sqrt().recip() as f32,
        };
        let Self { mean, square } = self;
        update(&mut weights.encoder, &grads.encoder, &mut mean.encoder, &mut square.encoder, factors);
        let bias = (&mut mean.encoder_bias, &mut square.encoder_bias);
        update(&mut weights.encoder_bias, &grads.encoder_bias, bias.0, bias.1, factors);
        update(&mut weights.b_dec, &grads.b_dec, &mut mean.b_dec, &mut square.b_dec, factors);
        let d = weights.d_model;
        let rows = (TASK / d).max(1) * d;
        let tasks = weights.w_dec.par_chunks_mut(rows).zip(grads.w_dec.par_chunks_mut(rows));
        let moments = mean.w_dec.par_chunks_mut(rows).zip(square.w_dec.par_chunks_mut(rows));
        tasks.zip(moments).for_each(|((weights, grads), (mean, square))| {
            simd(
                #[inline(always)]
                || {
                    let moments = mean.chunks_exact_mut(d).zip(square.chunks_exact_mut(d));
                    let rows = weights.chunks_exact_mut(d).zip(grads.chunks_exact_mut(d));
                    for ((row, grad), (mean, square)) in rows.zip(moments) {
                        // Only the part that turns the row, not the part that stretches it.
                        let along = dot(grad, row);
                        grad.iter_mut().zip(&*row).for_each(|(grad, row)| *grad -= along * row);
                        update_slice(row, grad, mean, square, factors);
                        unit(row);
                    }
                },
            );
        });
    }
}

fn update(weights: &mut [f32], grads: &[f32], mean: &mut [f32], square: &mut [f32], factors: Factors) {
    let moments = mean.par_chunks_mut(TASK).zip(square.par_chunks_mut(TASK));
    let tasks = weights.par_chunks_mut(TASK).zip(grads.par_chunks(TASK));
    tasks.zip(moments).for_each(|((weights, grads), (mean, square))| {
        simd(
            #[inline(always)]
            || update_slice(weights, grads, mean, square, factors),
        );
    });
}

#[inline(always)]
fn update_slice(weights: &mut [f32], grads: &[f32], mean: &mut [f32], square: &mut [f32], factors: Factors) {
    let moments = mean.iter_mut().zip(square.iter_mut());
    for ((weight, grad), (mean, square)) in weights.iter_mut().zip(grads).zip(moments) {
        let grad = grad * factors.clip;
        *mean = BETA1 * *mean + (1.0 - BETA1) * grad;
        *square = BETA2 * *square + (1.0 - BETA2) * grad * grad;
        *weight -= factors.rate * *mean / (square.sqrt() * factors.square + EPSILON);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_steps_are_the_papers() {
        let mut weights = Weights::zeros(1, 2);
        weights.w_dec = vec![1.0, 0.0];
        let mut grads = Weights::zeros(1, 2);
        grads.encoder_bias = vec![0.5];
        // Along the row, and across it.
        grads.w_dec = vec![3.0, 0.25];
        let mut adam = Adam::new(1, 2);
        adam.step(&mut weights, &mut grads, 0.5, 0.01, 0);
        // The first step is the learning rate against the gradient's sign.
        assert!((weights.encoder_bias[0] + 0.01).abs() < 1e-6, "{weights:?}");
        // Only the part across the row moved it, and it is a unit vector again.
        let turned = 0.01f32.hypot(1.0);
        assert!((weights.w_dec[0] - 1.0 / turned).abs() < 1e-6 && (weights.w_dec[1] + 0.01 / turned).abs() < 1e-6);
        grads.encoder_bias = vec![-0.5];
        adam.step(&mut weights, &mut grads, 0.5, 0.01, 1);
        let (mean, square) = (0.9 * 0.05 - 0.05, 0.999 * 0.00025 + 0.00025);
        let truth = -0.01 - 0.01 * (mean / 0.19) / f32::sqrt(square / 0.001_999);
        assert!((weights.encoder_bias[0] - truth).abs() < 1e-6, "{} and {truth}", weights.encoder_bias[0]);
    }

    #[test]
    fn a_long_gradient_is_clipped() {
        let (mut long, mut short) = (Adam::new(1, 1), Adam::new(1, 1));
        let mut grads = Weights::zeros(1, 1);
        grads.encoder_bias = vec![40.0];
        long.step(&mut Weights::zeros(1, 1), &mut grads, 40.0, 0.1, 0);
        grads.encoder_bias = vec![1.0];
        short.step(&mut Weights::zeros(1, 1), &mut grads, 1.0, 0.1, 0);
        assert!((long.mean.encoder_bias[0] - short.mean.encoder_bias[0]).abs() < 1e-6);
        assert!((long.mean.encoder_bias[0] - 0.1).abs() < 1e-5);
    }
}
