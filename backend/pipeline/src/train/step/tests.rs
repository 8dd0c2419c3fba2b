//! Gradients against differences in f64, a few steps against PyTorch, and the same bits on any number of cores.
#![allow(clippy::unwrap_used)] // tests panic on purpose

use super::super::adam::Adam;
use super::super::settings::{Precision, Settings};
use super::*;
use serde_json::Value;

/// Numbers that any language can make; `tests/train_reference.py` makes the same.
fn wave(count: usize, frequency: f64, phase: f64) -> Vec<f64> {
    (0..count).map(|i| (i as f64 * frequency + phase).sin()).collect()
}

fn f32s(values: impl IntoIterator<Item = f64>) -> Vec<f32> {
    values.into_iter().map(|value| value as f32).collect()
}

/// Weights and `[tokens, d]` of no special form.
fn case(latents: usize, d: usize, tokens: usize) -> (Weights, Vec<f32>) {
    let mut weights = Weights::start(latents, f32s(wave(d, 1.1, 0.2).into_iter().map(|value| value * 0.2)), 9);
    weights.encoder_bias = f32s(wave(latents, 0.9, 0.1).into_iter().map(|value| value * 0.1));
    let x = wave(tokens * d, 0.731, 0.5).into_iter().zip(wave(tokens * d, 0.0173, 0.9)).map(|(a, b)| a + 0.5 * b);
    (weights, f32s(x))
}

/// The loss in f64, written as the formula stands, of chosen latents that do not change.
struct Truth {
    d: usize,
    latents: usize,
    x: Vec<f64>,
    alpha: f64,
    scale: f64,
    /// Per token: the k strongest, the rest of the 4k, the dead.
    chosen: Vec<[Vec<usize>; 3]>,
    /// `x − x̂` where the derivative is taken: a constant.
    error: Vec<f64>,
}

impl Truth {
    /// Encoder, its bias, decoder, `b_dec`, one after the other.
    fn flat(weights: &Weights) -> Vec<f64> {
        let parts = [&weights.encoder, &weights.encoder_bias, &weights.w_dec, &weights.b_dec];
        parts.into_iter().flatten().map(|value| f64::from(*value)).collect()
    }

    fn new(weights: &Weights, x: &[f32], k: usize, multi: usize, dead: &[u32], alpha: f64) -> Self {
        let (d, latents) = (weights.d_model, weights.latents());
        let x: Vec<f64> = x.iter().map(|value| f64::from(*value)).collect();
        let half = d / 2;
        let scale = (dead.len() as f64 / half as f64).min(1.0);
        let mut truth = Self { d, latents, x, alpha, scale, chosen: Vec::new(), error: Vec::new() };
        let flat = Self::flat(weights);
        for token in 0..truth.x.len() / d {
            let acts: Vec<f64> = (0..latents).map(|latent| truth.activation(&flat, token, latent)).collect();
            let mut order: Vec<usize> = (0..latents).filter(|latent| acts[*latent] > 0.0).collect();
            order.sort_by(|a, b| acts[*b].total_cmp(&acts[*a]));
            let from_dead = order.iter().copied().filter(|latent| dead.contains(&(*latent as u32)));
            let from_dead: Vec<usize> = from_dead.take(half.min(dead.len())).collect();
            order.truncate(multi.max(k));
            let rest = order.split_off(k.min(order.len()));
            truth.chosen.push([order, rest, from_dead]);
        }
        for token in 0..truth.chosen.len() {
            let reconstruction = truth.sum(&flat, token, &truth.chosen[token][0]);
            let b_dec = &flat[flat.len() - d..];
            let row = &truth.x[token * d..(token + 1) * d];
            let error: Vec<f64> = (0..d).map(|i| row[i] - reconstruction[i] - b_dec[i]).collect();
            truth.error.extend(error);
        }
        truth
    }

    fn activation(&self, p: &[f64], token: usize, latent: usize) -> f64 {
        let (d, n) = (self.d, self.latents);
        let b_dec = &p[p.len() - d..];
        let row = &p[latent * d..(latent + 1) * d];
        (0..d).map(|i| (self.x[token * d + i] - b_dec[i]) * row[i]).sum::<f64>() + p[n * d + latent]
    }

    /// `z W_dec` of some latents.
    fn sum(&self, p: &[f64], token: usize, latents: &[usize]) -> Vec<f64> {
        let (d, w_dec) = (self.d, self.latents * (self.d + 1));
        let mut sum = vec![0.0; d];
        for &latent in latents {
            let act = self.activation(p, token, latent);
            (0..d).for_each(|i| sum[i] += act * p[w_dec + latent * d + i]);
        }
        sum
    }

    /// FVU, MultiTopK's, AuxK.
    fn losses(&self, p: &[f64]) -> [f64; 3] {
        let (d, tokens) = (self.d, self.chosen.len());
        let mut variance = 0.0;
        for i in 0..d {
            let mean = (0..tokens).map(|token| self.x[token * d + i]).sum::<f64>() / tokens as f64;
            variance += (0..tokens).map(|token| (self.x[token * d + i] - mean).powi(2)).sum::<f64>();
        }
        let b_dec = &p[p.len() - d..];
        let mut losses = [0.0; 3];
        for (token, [top, rest, dead]) in self.chosen.iter().enumerate() {
            let (row, error) = (&self.x[token * d..(token + 1) * d], &self.error[token * d..(token + 1) * d]);
            let (top, rest, dead) = (self.sum(p, token, top), self.sum(p, token, rest), self.sum(p, token, dead));
            for i in 0..d {
                losses[0] += (row[i] - top[i] - b_dec[i]).powi(2);
                losses[1] += (row[i] - top[i] - rest[i] - b_dec[i]).powi(2);
                losses[2] += self.scale * (error[i] - dead[i]).powi(2);
            }
        }
        losses.map(|loss| loss / variance)
    }

    fn loss(&self, p: &[f64], multi: bool) -> f64 {
        let [fvu, more, aux] = self.losses(p);
        fvu + if multi { more / 8.0 } else { 0.0 } + self.alpha * aux
    }
}

#[test]
fn gradients_are_those_of_the_formula() {
    let (latents, d, k) = (20, 6, 2);
    // Two chunks, the second not whole.
    let (weights, x) = case(latents, d, CHUNK + 44);
    let dead_sets: [&[u32]; 3] = [&[], &[4, 5], &[1, 7, 13, 14, 19]];
    for (dead, multi_topk) in dead_sets.into_iter().flat_map(|dead| [(dead, true), (dead, false)]) {
        let alpha = 0.5;
        let truth = Truth::new(&weights, &x, k, if multi_topk { 4 * k } else { k }, dead, alpha);
        let mut step = Step::new(latents, d);
        let objective = Objective { k, multi_topk, auxk_alpha: alpha, bf16: false };
        let losses = step.run(&objective, &weights, &x, dead);
        let mut p = Truth::flat(&weights);
        let [fvu, more, aux] = truth.losses(&p);
        assert!((losses.fvu - fvu).abs() < 1e-5 && (losses.auxk - aux).abs() < 1e-5, "{losses:?}: {fvu}, {aux}");
        assert!((losses.multi_topk_fvu - if multi_topk { more } else { 0.0 }).abs() < 1e-5, "{losses:?}: {more}");
        assert!((losses.loss - truth.loss(&p, multi_topk)).abs() < 1e-5);
        assert!(losses.l0 > 1.0 && losses.l0 <= k as f64);
        let found = Truth::flat(&step.grads);
        let largest = found.iter().fold(0.0, |largest: f64, grad| largest.max(grad.abs()));
        assert!(largest > 1e-3);
        let norm = found.iter().map(|grad| grad * grad).sum::<f64>().sqrt();
        assert!((losses.grad_norm - norm).abs() < 1e-6 * norm.max(1.0));
        for i in 0..p.len() {
            let (here, width) = (p[i], 1e-5);
            p[i] = here + width;
            let above = truth.loss(&p, multi_topk);
            p[i] = here - width;
            let slope = (above - truth.loss(&p, multi_topk)) / (2.0 * width);
            p[i] = here;
            assert!((found[i] - slope).abs() < 1e-4 * largest, "{dead:?}, weight {i}: {} and {slope}", found[i]);
        }
    }
}

#[test]
fn the_number_of_cores_does_not_change_a_bit() {
    let (latents, d) = (150, 17);
    let (weights, x) = case(latents, d, 5 * CHUNK - 3);
    let objective = Objective { k: 5, multi_topk: true, auxk_alpha: 0.1, bf16: false };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut step = Step::new(latents, d);
            let losses = step.run(&objective, &weights, &x, &[3, 50, 149]);
            // Buffers of an earlier batch leave no trace.
            step.run(&objective, &weights, &x[..d * 300], &[]);
            assert_eq!(step.run(&objective, &weights, &x, &[3, 50, 149]), losses);
            (losses, step.grads, step.fired)
        })
    };
    let one = run(1);
    assert!(one.2.iter().any(|fired| *fired));
    for threads in [2, 3, 7] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn bf16_is_near_f32_and_not_the_same() {
    let (latents, d) = (60, 24);
    let (weights, x) = case(latents, d, 400);
    let run = |weights: &Weights, bf16: bool| {
        let mut step = Step::new(latents, d);
        step.run(&Objective { k: 4, multi_topk: true, auxk_alpha: 0.0, bf16 }, weights, &x, &[])
    };
    let mut rounded = Weights::zeros(latents, d);
    rounded.round_from(&weights);
    let (exact, half) = (run(&weights, false), run(&rounded, true));
    assert!(exact.fvu != half.fvu && (exact.fvu - half.fvu).abs() < 0.01 * exact.fvu, "{exact:?} and {half:?}");
}

/// Whole steps, Adam and rates included: what `tests/train_reference.py --check` prints.
#[test]
fn steps_are_those_of_pytorch() {
    let reference: Value = serde_json::from_str(include_str!("../../../tests/fixtures/train_reference.json")).unwrap();
    let (d, latents, batch, steps) = (12, 40, 300, 6);
    let mut weights = Weights::zeros(latents, d);
    weights.encoder = f32s(wave(latents * d, 1.7, 0.3).into_iter().map(|value| value * 0.3));
    weights.encoder_bias = f32s(wave(latents, 0.9, 0.1).into_iter().map(|value| value * 0.05));
    weights.encoder_bias.iter_mut().step_by(7).for_each(|bias| *bias = -0.35);
    weights.w_dec = f32s(wave(latents * d, 2.3, 0.7));
    weights.w_dec.chunks_exact_mut(d).for_each(super::super::weights::unit);
    weights.b_dec = f32s(wave(d, 1.1, 0.2).into_iter().map(|value| value * 0.2));
    let count = steps * batch * d;
    let x = f32s(wave(count, 0.731, 0.5).into_iter().zip(wave(count, 0.0173, 0.9)).map(|(a, b)| a + 0.5 * b));
    let settings = Settings {
        latents,
        k: 3,
        tokens: (steps * batch) as u64,
        batch_tokens: batch,
        lr: 0.01,
        warmup_steps: 2,
        decay_share: 0.5,
        auxk_alpha: 1.0 / 32.0,
        multi_topk: true,
        dead_tokens: batch as u64,
        seed: 0,
        dtype: Precision::F32,
        hidden: String::new(),
    };
    let (mut step, mut adam) = (Step::new(latents, d), Adam::new(latents, d));
    let mut silent = vec![0; latents];
    for (at, x) in x.chunks_exact(batch * d).enumerate() {
        let dead: Vec<u32> = (0..latents as u32).filter(|latent| silent[*latent as usize] > batch).collect();
        let losses = step.run(&settings.objective(), &weights, x, &dead);
        let row = &reference["log"][at];
        assert_eq!(row["dead"].as_f64().unwrap(), dead.len() as f64, "step {at}");
        let Losses { loss, fvu, multi_topk_fvu, auxk, grad_norm, .. } = losses;
        let pairs = [
            ("loss", loss),
            ("fvu", fvu),
            ("multi_topk_fvu", multi_topk_fvu),
            ("auxk_loss", auxk),
            ("grad_norm", grad_norm),
        ];
        for (name, found) in pairs {
            let truth = row[name].as_f64().unwrap();
            assert!((found - truth).abs() < 1e-5, "step {at}: {name} is {found}, PyTorch's {truth}");
        }
        adam.step(&mut weights, &mut step.grads, grad_norm, settings.rate(at as u64), at as u64);
        for (silent, fired) in silent.iter_mut().zip(&step.fired) {
            *silent = if *fired { 0 } else { *silent + batch };
        }
    }
    let found = [
        ("encoder.weight", &weights.encoder),
        ("encoder.bias", &weights.encoder_bias),
        ("W_dec", &weights.w_dec),
        ("b_dec", &weights.b_dec),
    ];
    for (name, found) in found {
        let truth = reference["weights"][name].as_array().unwrap();
        assert_eq!(truth.len(), found.len());
        for (i, (truth, found)) in truth.iter().zip(found).enumerate() {
            let truth = truth.as_f64().unwrap();
            assert!((truth - f64::from(*found)).abs() < 2e-5, "{name} {i}: {found}, PyTorch's {truth}");
        }
    }
}

/// Latents that are too weak to be among the k strongest come to life through AuxK, and without it they do not.
#[test]
fn auxk_revives_dead_latents() {
    use rand::{Rng, SeedableRng};
    let (d, latents, k, batch, steps) = (16, 64, 2, 256, 200);
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut directions: Vec<f32> = (0..40 * d).map(|_| rng.random_range(-1.0..1.0)).collect();
    directions.chunks_exact_mut(d).for_each(super::super::weights::unit);
    let batches: Vec<Vec<f32>> = (0..steps)
        .map(|_| {
            let mut x = vec![0.0; batch * d];
            for row in x.chunks_exact_mut(d) {
                for _ in 0..3 {
                    let direction = rng.random_range(0..40usize) * d;
                    add_scaled(row, rng.random_range(0.5..1.5), &directions[direction..direction + d]);
                }
            }
            x
        })
        .collect();
    let dead_at_the_end = |auxk_alpha: f64| {
        let mut weights = Weights::start(latents, super::super::geometric_median(&batches[0], d), 2);
        weights.encoder[8 * d..].iter_mut().for_each(|weight| *weight *= 0.05);
        let (mut step, mut adam, mut silent) = (Step::new(latents, d), Adam::new(latents, d), vec![0; latents]);
        let objective = Objective { k, multi_topk: false, auxk_alpha, bf16: false };
        let dead =
            |silent: &[usize]| (0..latents as u32).filter(|i| silent[*i as usize] > 5 * batch).collect::<Vec<_>>();
        for (at, x) in batches.iter().enumerate() {
            let losses = step.run(&objective, &weights, x, &dead(&silent));
            adam.step(&mut weights, &mut step.grads, losses.grad_norm, 3e-3, at as u64);
            for (silent, fired) in silent.iter_mut().zip(&step.fired) {
                *silent = if *fired { 0 } else { *silent + batch };
            }
        }
        dead(&silent).len()
    };
    let (without, with) = (dead_at_the_end(0.0), dead_at_the_end(1.0 / 32.0));
    assert!(without > latents / 2 && with * 4 < without * 3, "dead: {without} without AuxK, {with} with it");
}
