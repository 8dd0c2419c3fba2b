//! Losses of a batch and their gradients, by hand.
//!
//! ```text
//! z    = ReLU((x − b_dec) W_encᵀ + b_enc)      T: a token's k strongest latents · M: its 4k strongest · A: dead ones
//! V    = Σ ‖x − mean x‖²                       x̂_S = z_S W_dec + b_dec
//! loss = ‖x̂_T − x‖²/V + ‖x̂_M − x‖²/8V + α s ‖z_A W_dec − (x − x̂_T)‖²/V
//! ```
//!
//! Chosen latents alone have a gradient: the dense part of a step is one matrix product, from which each token's choice
//! is made while it is in the cache; the rest touches the chosen rows. With `r` the gradient of a reconstruction,
//! `∂z_j = r · W_dec_j`, `∂W_dec_j = Σ z_j r`, `∂W_enc_j = Σ ∂z_j (x − b_dec)`, `∂b_dec = Σ r − ∂b_enc W_enc`.
//! As in Gao et al. (2024), what the dead latents explain, `x − x̂_T`, is a constant, and `s` is their number over
//! d_model/2, at most 1. The strongest d_model/2 of them are chosen per token.
//!
//! Sums run over pieces of fixed size in a fixed order: the number of cores does not change a bit of the result.

use super::kernels::{add_scaled, dot, multiply_transposed, scale, simd};
use super::select::{Strongest, latent_and_act};
use super::weights::{Weights, rounded};
use rayon::prelude::*;

/// Tokens of one task.
const CHUNK: usize = 256;
/// Latents that are multiplied at once: their products with a task's tokens take 1 MiB.
const TILE: usize = 1024;
/// Latents of one task of the backward pass.
const ROWS: usize = 32;
/// MultiTopK: how many times k, and its weight.
const MULTI_K: usize = 4;
const MULTI_WEIGHT: f64 = 1.0 / 8.0;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    pub k: usize,
    pub multi_topk: bool,
    /// `α`
    pub auxk_alpha: f64,
    /// Hidden states are rounded to bf16 before they are encoded. The weights must have been.
    pub bf16: bool,
}

/// The parts of a batch's loss.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// `fvu + multi_topk_fvu / 8 + α · auxk`
    pub loss: f64,
    /// Fraction of variance unexplained.
    pub fvu: f64,
    pub multi_topk_fvu: f64,
    pub auxk: f64,
    /// Active latents per token.
    pub l0: f64,
    /// Norm of all gradients together.
    pub grad_norm: f64,
}

/// In which loss a latent takes part. [`TOP`] takes part in MultiTopK as well.
const TOP: usize = 0;
const REST: usize = 1;
const DEAD: usize = 2;

/// A latent that was chosen for a token.
#[derive(Debug, Clone, Copy, Default)]
struct Pick {
    latent: u32,
    /// The token, within its chunk or within the batch, times four, plus the loss.
    place: u32,
    act: f32,
    /// Gradient of the activation.
    slope: f32,
}

impl Pick {
    #[inline(always)]
    fn part(self) -> usize {
        self.place as usize % 4
    }

    #[inline(always)]
    fn token(self) -> usize {
        self.place as usize / 4
    }
}

/// The forward pass of some tokens.
#[derive(Debug, Default)]
struct Chunk {
    /// `[tokens, d_model]`: `x − b_dec`
    input: Vec<f32>,
    /// `[tokens, d_model]` per loss: gradients of the reconstructions.
    back: [Vec<f32>; 3],
    /// Token by token, each by loss.
    picks: Vec<Pick>,
    /// Per token, where its picks end.
    ends: Vec<usize>,
    /// Squared errors per loss.
    errors: [f64; 3],
    /// Gradient of `b_dec` as a part of the reconstruction.
    bias_back: Vec<f32>,
}

/// What a thread needs while it chooses.
#[derive(Debug, Default)]
struct Scratch {
    products: Vec<f32>,
    strongest: Vec<Strongest>,
    dead: Vec<Strongest>,
    buffer: Vec<u64>,
}

/// What all chunks share.
struct Task<'a> {
    weights: &'a Weights,
    bf16: bool,
    k: usize,
    /// Latents kept per token: 4k, or k without MultiTopK.
    keep: usize,
    dead: &'a [u32],
    keep_dead: usize,
    /// Twice the weight of a loss over V.
    factors: [f32; 3],
    multi_topk: bool,
}

/// Buffers of a step, kept for the next one.
#[derive(Debug)]
pub struct Step {
    chunks: Vec<Chunk>,
    /// Where the picks of each latent begin.
    starts: Vec<usize>,
    /// All picks of the batch by latent, then by token.
    picks: Vec<Pick>,
    /// Gradients of the last batch.
    pub grads: Weights,
    /// Latents that were among the k strongest of a token of the last batch.
    pub fired: Vec<bool>,
}

impl Step {
    pub fn new(latents: usize, d_model: usize) -> Self {
        Self {
            chunks: Vec::new(),
            starts: Vec::new(),
            picks: Vec::new(),
            grads: Weights::zeros(latents, d_model),
            fired: vec![false; latents],
        }
    }

    /// Losses of `x [tokens, d_model]`; leaves their gradients in [`Self::grads`]. `dead` rises.
    pub fn run(&mut self, objective: &Objective, weights: &Weights, x: &[f32], dead: &[u32]) -> Losses {
        let (d, latents) = (weights.d_model, weights.latents());
        let tokens = x.len() / d;
        let variance = variance(x, d);
        let half = (d / 2).max(1);
        let aux_weight = objective.auxk_alpha * (dead.len() as f64 / half as f64).min(1.0);
        let keep = if objective.multi_topk { MULTI_K * objective.k } else { objective.k };
        let task = Task {
            weights,
            bf16: objective.bf16,
            k: objective.k,
            keep: keep.min(latents),
            dead,
            keep_dead: half.min(dead.len()),
            factors: [1.0, MULTI_WEIGHT, aux_weight].map(|weight| (2.0 * weight / variance) as f32),
            multi_topk: objective.multi_topk,
        };
        self.chunks.resize_with(tokens.div_ceil(CHUNK), Chunk::default);
        let chunks = self.chunks.par_iter_mut().zip(x.par_chunks(CHUNK * d));
        chunks.for_each_init(Scratch::default, |scratch, (chunk, x)| chunk.run(&task, scratch, x));
        let active = self.sort_picks(latents);
        let grad_norm = self.backward(weights);

        let mut errors = [0.0; 3];
        for chunk in &self.chunks {
            errors.iter_mut().zip(chunk.errors).for_each(|(sum, error)| *sum += error);
        }
        let [fvu, multi_topk_fvu, unexplained] = errors.map(|error| error / variance);
        let auxk = unexplained * (dead.len() as f64 / half as f64).min(1.0);
        let loss = fvu + MULTI_WEIGHT * multi_topk_fvu + objective.auxk_alpha * auxk;
        Losses { loss, fvu, multi_topk_fvu, auxk, l0: active as f64 / tokens as f64, grad_norm }
    }

    /// Brings all picks into the order of latents. Says how many were among the k strongest.
    fn sort_picks(&mut self, latents: usize) -> usize {
        self.fired.fill(false);
        self.starts.clear();
        self.starts.resize(latents + 1, 0);
        let mut active = 0;
        for pick in self.chunks.iter().flat_map(|chunk| &chunk.picks) {
            self.starts[pick.latent as usize + 1] += 1;
            if pick.part() == TOP {
                self.fired[pick.latent as usize] = true;
                active += 1;
            }
        }
        for latent in 0..latents {
            self.starts[latent + 1] += self.starts[latent];
        }
        let mut next = self.starts.clone();
        self.picks.resize(self.starts[latents], Pick::default());
        for (at, chunk) in self.chunks.iter().enumerate() {
            for pick in &chunk.picks {
                let slot = &mut next[pick.latent as usize];
                self.picks[*slot] = Pick { place: pick.place + (at * CHUNK * 4) as u32, ..*pick };
                *slot += 1;
            }
        }
        active
    }

    /// Fills the gradients; their norm.
    fn backward(&mut self, weights: &Weights) -> f64 {
        let d = weights.d_model;
        let Self { chunks, starts, picks, grads, .. } = self;
        let (chunks, starts, picks) = (&*chunks, &*starts, &*picks);
        let rows = grads.encoder.par_chunks_mut(ROWS * d).zip(grads.w_dec.par_chunks_mut(ROWS * d));
        let tasks = rows.zip(grads.encoder_bias.par_chunks_mut(ROWS)).enumerate();
        let squares = tasks.map(|(task, ((encoder, w_dec), bias))| {
            simd(
                #[inline(always)]
                || {
                    let mut squares = 0.0f64;
                    let rows = encoder.chunks_exact_mut(d).zip(w_dec.chunks_exact_mut(d)).zip(bias);
                    for (latent, ((encoder, w_dec), bias)) in (task * ROWS..).zip(rows) {
                        encoder.fill(0.0);
                        w_dec.fill(0.0);
                        *bias = 0.0;
                        for pick in &picks[starts[latent]..starts[latent + 1]] {
                            let chunk = &chunks[pick.token() / CHUNK];
                            let place = pick.token() % CHUNK * d;
                            add_scaled(w_dec, pick.act, &chunk.back[pick.part()][place..place + d]);
                            add_scaled(encoder, pick.slope, &chunk.input[place..place + d]);
                            *bias += pick.slope;
                        }
                        squares += f64::from(dot(encoder, encoder)) + f64::from(dot(w_dec, w_dec));
                        squares += f64::from(*bias) * f64::from(*bias);
                    }
                    squares
                },
            )
        });
        let squares: Vec<f64> = squares.collect();
        b_dec_gradient(&mut grads.b_dec, chunks, &grads.encoder_bias, &weights.encoder);
        let b_dec: f64 = grads.b_dec.iter().map(|grad| f64::from(*grad).powi(2)).sum();
        (squares.into_iter().sum::<f64>() + b_dec).sqrt()
    }
}

/// `Σ r − ∂b_enc W_enc`: what `b_dec` adds to reconstructions, and what it takes from what is encoded.
fn b_dec_gradient(out: &mut [f32], chunks: &[Chunk], bias: &[f32], encoder: &[f32]) {
    const TOGETHER: usize = 4096;
    let d = out.len();
    out.fill(0.0);
    for chunk in chunks {
        add_scaled(out, 1.0, &chunk.bias_back);
    }
    let tasks = bias.par_chunks(TOGETHER).zip(encoder.par_chunks(TOGETHER * d));
    let parts = tasks.map(|(bias, encoder)| {
        let mut part = vec![0.0f32; d];
        bias.iter().zip(encoder.chunks_exact(d)).for_each(|(bias, row)| add_scaled(&mut part, *bias, row));
        part
    });
    let parts: Vec<Vec<f32>> = parts.collect();
    parts.iter().for_each(|part| add_scaled(out, -1.0, part));
}

/// `Σ ‖x − mean x‖²`
fn variance(x: &[f32], d: usize) -> f64 {
    let parts = x.par_chunks(CHUNK * d).map(|rows| {
        let (mut sums, mut squares) = (vec![0.0f64; d], vec![0.0f64; d]);
        for row in rows.chunks_exact(d) {
            for ((sum, square), value) in sums.iter_mut().zip(&mut squares).zip(row) {
                let value = f64::from(*value);
                *sum += value;
                *square += value * value;
            }
        }
        (sums, squares.into_iter().sum::<f64>())
    });
    let parts: Vec<(Vec<f64>, f64)> = parts.collect();
    let (mut sums, mut squares) = (vec![0.0f64; d], 0.0f64);
    for (part, square) in parts {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        squares += square;
    }
    let tokens = (x.len() / d) as f64;
    squares - sums.into_iter().map(|sum| sum * sum).sum::<f64>() / tokens
}

impl Chunk {
    fn run(&mut self, task: &Task<'_>, scratch: &mut Scratch, x: &[f32]) {
        let d = task.weights.d_model;
        self.input.clear();
        for row in x.chunks_exact(d) {
            // In f32 before any rounding: the residual stream has a few massive channels.
            self.input.extend(row.iter().zip(&task.weights.b_dec).map(|(x, b_dec)| x - b_dec));
        }
        if task.bf16 {
            self.input.iter_mut().for_each(|value| *value = rounded(*value));
        }
        self.choose(task, scratch, x.len() / d);
        self.back.iter_mut().for_each(|back| back.resize(x.len(), 0.0));
        simd(
            #[inline(always)]
            || self.decode(task, x),
        );
    }

    /// Encodes; what is chosen of each token goes into `picks`.
    fn choose(&mut self, task: &Task<'_>, scratch: &mut Scratch, tokens: usize) {
        let (d, latents) = (task.weights.d_model, task.weights.latents());
        let Scratch { products, strongest, dead, buffer } = scratch;
        strongest.resize_with(tokens, Strongest::default);
        strongest.iter_mut().for_each(|strongest| strongest.begin(task.keep));
        dead.resize_with(tokens, Strongest::default);
        dead.iter_mut().for_each(|dead| dead.begin(task.keep_dead));
        let mut dead_left = task.dead;
        for first in (0..latents).step_by(TILE) {
            let end = (first + TILE).min(latents);
            let width = end - first;
            products.resize(tokens * width, 0.0);
            multiply_transposed(&self.input, &task.weights.encoder[first * d..end * d], d, products);
            let bias = &task.weights.encoder_bias[first..end];
            let here = dead_left.partition_point(|&latent| (latent as usize) < end);
            let (dead_here, later) = dead_left.split_at(here);
            dead_left = later;
            let rows = products.chunks_exact(width).zip(strongest.iter_mut().zip(dead.iter_mut()));
            for (row, (strongest, dead)) in rows {
                strongest.take(first, row, bias, buffer);
                if !dead_here.is_empty() {
                    dead.take_some(first, row, bias, dead_here, buffer);
                }
            }
        }
        self.picks.clear();
        self.ends.clear();
        for (token, (strongest, dead)) in strongest.iter_mut().zip(dead.iter_mut()).enumerate() {
            let pick = |key: u64, part: usize| {
                let (latent, act) = latent_and_act(key);
                Pick { latent, place: (token * 4 + part) as u32, act, slope: 0.0 }
            };
            let keys = strongest.split_at_strongest(task.k);
            let part = |rank: usize| if rank < task.k { TOP } else { REST };
            self.picks.extend(keys.iter().enumerate().map(|(rank, &key)| pick(key, part(rank))));
            self.picks.extend(dead.split_at_strongest(0).iter().map(|&key| pick(key, DEAD)));
            self.ends.push(self.picks.len());
        }
    }

    /// Reconstructs; errors, their gradients, and the activations' gradients.
    #[inline(always)]
    fn decode(&mut self, task: &Task<'_>, x: &[f32]) {
        let Self { back: [top_back, rest_back, dead_back], picks, ends, errors, bias_back, .. } = self;
        let Task { weights: Weights { d_model: d, w_dec, b_dec, .. }, factors, .. } = task;
        let row = |latent: u32| &w_dec[latent as usize * d..][..*d];
        *errors = [0.0; 3];
        bias_back.clear();
        bias_back.resize(*d, 0.0);
        let mut begin = 0;
        for (token, &end) in ends.iter().enumerate() {
            let picks = &mut picks[begin..end];
            begin = end;
            let place = token * d..(token + 1) * d;
            let (top, rest, dead) =
                (&mut top_back[place.clone()], &mut rest_back[place.clone()], &mut dead_back[place.clone()]);
            let tops = picks.partition_point(|pick| pick.part() == TOP);
            let rests = picks.partition_point(|pick| pick.part() != DEAD);
            // x̂ − x
            top.iter_mut().zip(&x[place]).zip(b_dec).for_each(|((top, x), b_dec)| *top = b_dec - x);
            for pick in &picks[..tops] {
                add_scaled(top, pick.act, row(pick.latent));
            }
            errors[TOP] += f64::from(dot(top, top));
            if !task.dead.is_empty() {
                dead.copy_from_slice(top);
                for pick in &picks[rests..] {
                    add_scaled(dead, pick.act, row(pick.latent));
                }
                errors[DEAD] += f64::from(dot(dead, dead));
                scale(dead, factors[DEAD]);
            }
            if task.multi_topk {
                rest.copy_from_slice(top);
                for pick in &picks[tops..rests] {
                    add_scaled(rest, pick.act, row(pick.latent));
                }
                errors[REST] += f64::from(dot(rest, rest));
                scale(rest, factors[REST]);
            }
            scale(top, factors[TOP]);
            if task.multi_topk {
                // The k strongest are among the 4k.
                add_scaled(top, 1.0, rest);
            }
            add_scaled(bias_back, 1.0, top);
            for pick in picks {
                let back = match pick.part() {
                    TOP => &*top,
                    REST => &*rest,
                    _ => &*dead,
                };
                pick.slope = dot(back, row(pick.latent));
            }
        }
    }
}

#[cfg(test)]
mod tests;
