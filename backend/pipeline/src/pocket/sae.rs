//! Stage `train-sae`: a TopK SAE on the residual stream at the hook point (paper, section 3.1; Gao et al. 2024).
//!
//! Loss: `FVU + AuxK/32 + MultiTopK/8`. Decoder rows keep unit norm: the gradient parallel to them is removed before
//! the step and they are normalised after it. `b_dec` starts at the (geometric) median of the first tokens.

use super::conversation::Writer;
use super::lmm::load_lmm;
use super::plan::Plan;
use super::scene::{Scene, Style};
use super::sprites::Sprites;
use super::tower::seeds;
use super::trainer::Trainer;
use anyhow::Result;
use burn::module::{AutodiffModule, Module, Param};
use burn::tensor::activation::relu;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Distribution, Int, Tensor, TensorData};
use model::image_processor::ImageProcessor;
use model::weights::f32_from_tensor;
use model::{LlavaNext, LlavaNextConfig, Sae, SaeConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Tokens per step.
const BATCH: usize = 2048;
/// Tokens after which a silent latent counts as dead.
const DEAD_AFTER: usize = 200_000;
/// Text tokens of a training sample.
const TEXT_TOKENS: usize = 48;

/// The autoencoder being trained.
#[derive(Module, Debug)]
pub struct TrainedSae<B: Backend> {
    /// `[d_model, latents]`
    encoder: Param<Tensor<B, 2>>,
    encoder_bias: Param<Tensor<B, 1>>,
    /// `[latents, d_model]`, unit rows.
    w_dec: Param<Tensor<B, 2>>,
    b_dec: Param<Tensor<B, 1>>,
}

fn unit_rows<B: Backend>(w: Tensor<B, 2>) -> Tensor<B, 2> {
    let norm = w.clone().powf_scalar(2.0).sum_dim(1).sqrt().clamp_min(1e-8);
    w / norm
}

impl<B: Backend> TrainedSae<B> {
    fn new(latents: usize, d: usize, median: &[f32], device: &B::Device) -> Self {
        let w_dec = unit_rows(Tensor::<B, 2>::random([latents, d], Distribution::Normal(0.0, 1.0), device));
        Self {
            // A transposed copy: encoder and decoder start tied, then part.
            encoder: Param::from_data(w_dec.clone().transpose().into_data(), device),
            encoder_bias: Param::from_tensor(Tensor::zeros([latents], device)),
            w_dec: Param::from_data(w_dec.into_data(), device),
            b_dec: Param::from_data(TensorData::new(median.to_vec(), [d]), device),
        }
    }

    /// `ReLU((x − b_dec) W_enc + b_enc)`
    fn activations(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        relu((x - self.b_dec.val().unsqueeze()).matmul(self.encoder.val()) + self.encoder_bias.val().unsqueeze())
    }

    fn decode(&self, z: Tensor<B, 2>) -> Tensor<B, 2> {
        z.matmul(self.w_dec.val()) + self.b_dec.val().unsqueeze()
    }

    fn into_sae(self, k: usize) -> Sae<B> {
        let [latents, d] = self.w_dec.val().dims();
        let config = SaeConfig {
            expansion_factor: latents / d,
            normalize_decoder: true,
            num_latents: latents,
            k,
            signed: false,
            d_in: d,
        };
        Sae::top_k(config, self.encoder.val(), self.encoder_bias.val(), self.w_dec.val(), self.b_dec.val())
    }
}

/// Per row, 1 where the value is among the `k` largest positive ones and `allowed`; `[tokens, latents]`.
fn top_k_mask(values: &[f32], latents: usize, k: usize, allowed: impl Fn(usize) -> bool) -> Vec<bool> {
    let mut mask = vec![false; values.len()];
    let mut scratch: Vec<f32> = Vec::with_capacity(latents);
    for (row, out) in values.chunks_exact(latents).zip(mask.chunks_exact_mut(latents)) {
        scratch.clear();
        scratch
            .extend(row.iter().enumerate().filter(|(i, value)| **value > 0.0 && allowed(*i)).map(|(_, value)| *value));
        let threshold = if scratch.len() > k {
            *scratch.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::MIN_POSITIVE
        };
        for (i, value) in row.iter().enumerate() {
            out[i] = *value >= threshold && *value > 0.0 && allowed(i);
        }
    }
    mask
}

/// Hidden states of random samples: scenes with words, scenes alone, texts.
pub struct HiddenStates<'a, B: Backend> {
    pub net: &'a LlavaNext<B>,
    pub plan: &'a Plan,
    pub sprites: &'a Sprites,
    pub writer: &'a Writer,
    pub device: &'a B::Device,
}

impl<B: Backend> HiddenStates<'_, B> {
    /// `[tokens, d_model]` of about 2,000 tokens, row-major; BOS dropped, as in the paper.
    pub fn batch(&self, seed: u64) -> Vec<f32> {
        let text = seed % 4 == 3;
        let count = if text { 40 } else { 16 };
        let side = self.plan.vision_config().image_size;
        let processor = ImageProcessor::default();
        let (mut pixels, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..count {
            let seed = seeds::SAE + seed * 64 + i as u64;
            let sample = if text {
                self.writer.text_chat(self.sprites, seed, TEXT_TOKENS)
            } else {
                let scene = Scene::random(self.sprites, Style::Seen, seed);
                pixels.extend(processor.normalise(&scene.draw(self.sprites, side).picture));
                // Chats and bare pictures are different prompts, so they go into different batches.
                if (seed / 64).is_multiple_of(2) {
                    self.writer.scene_chat(self.sprites, &scene, TEXT_TOKENS, &mut ChaCha8Rng::seed_from_u64(seed))
                } else {
                    self.writer.scene_caption(self.sprites, &scene, 16)
                }
            };
            before.push(sample.before);
            after.push(sample.after);
        }
        let ids = |rows: &[Vec<u32>]| {
            let shape = [rows.len(), rows[0].len()];
            let flat: Vec<i32> = rows.iter().flatten().map(|id| *id as i32).collect();
            Tensor::<B, 2, Int>::from_data(TensorData::new(flat, shape), self.device)
        };
        let mut parts = vec![self.net.language.embed(ids(&before))];
        if !text {
            let pixels = Tensor::from_data(TensorData::new(pixels, [count, 3, side, side]), self.device);
            parts.push(self.net.base_image_tokens(pixels));
        }
        parts.push(self.net.language.embed(ids(&after)));
        let hidden = self.net.language.blocks_forward(Tensor::cat(parts, 1), 0..self.plan.layer + 1);
        let [batch, tokens, d] = hidden.dims();
        let values = f32_from_tensor(hidden);
        let mut kept = Vec::with_capacity(batch * tokens * d);
        for (row, (before, after)) in before.iter().zip(&after).enumerate() {
            for token in 1..tokens {
                // Padding at the end is nobody's token.
                let position = token as i64 - (tokens - after.len()) as i64;
                if position >= 0 && after[position as usize] == 0 && token >= before.len() {
                    continue;
                }
                kept.extend_from_slice(&values[(row * tokens + token) * d..][..d]);
            }
        }
        kept
    }
}

/// A shuffling buffer over [`HiddenStates`].
struct Buffer<'a, B: Backend> {
    states: HiddenStates<'a, B>,
    next: u64,
    d: usize,
    rows: Vec<f32>,
    rng: ChaCha8Rng,
}

impl<B: Backend> Buffer<'_, B> {
    /// `count` random rows, removed from the buffer.
    fn take(&mut self, count: usize) -> Vec<f32> {
        use rand::Rng;
        let d = self.d;
        while self.rows.len() < (count * 8) * d {
            let batch = self.states.batch(self.next);
            self.rows.extend(batch);
            self.next += 1;
        }
        let mut out = Vec::with_capacity(count * d);
        for _ in 0..count {
            let rows = self.rows.len() / d;
            let row = self.rng.random_range(0..rows);
            out.extend_from_slice(&self.rows[row * d..(row + 1) * d]);
            let last = self.rows.split_off((rows - 1) * d);
            if row + 1 < rows {
                self.rows[row * d..(row + 1) * d].copy_from_slice(&last);
            }
        }
        out
    }
}

/// Componentwise median: where `b_dec` starts.
fn median(rows: &[f32], d: usize) -> Vec<f32> {
    (0..d)
        .map(|column| {
            let mut values: Vec<f32> = rows.iter().skip(column).step_by(d).copied().collect();
            let middle = values.len() / 2;
            *values.select_nth_unstable_by(middle, f32::total_cmp).1
        })
        .collect()
}

/// Trains the SAE and writes it to `out`.
pub fn train_sae<B: AutodiffBackend>(
    plan: &Plan,
    sprites: &Sprites,
    writer: &Writer,
    config: &LlavaNextConfig,
    work: &Path,
    out: &Path,
    device: &B::Device,
) -> Result<()> {
    let net = load_lmm::<B>(config, work, device)?;
    let d = config.text_config.hidden_size;
    let (latents, k) = (d * plan.sae_expansion, plan.sae_k);
    let folder = work.join("sae");
    let states = HiddenStates { net: &net, plan, sprites, writer, device };
    let start = super::trainer::read_progress(&folder)?.unwrap_or_default();
    let mut buffer =
        Buffer { states, next: start.tokens / 1500, d, rows: Vec::new(), rng: ChaCha8Rng::seed_from_u64(start.tokens) };
    let first = buffer.take(BATCH);
    let module = TrainedSae::<B>::new(latents, d, &median(&first, d), device);
    let mut trainer = Trainer::new(module, &folder, plan.sae_tokens, 1.2e-3, device)?;
    let mut silent_for = vec![0usize; latents];
    while !trainer.finished() {
        let x = Tensor::<B, 2>::from_data(TensorData::new(buffer.take(BATCH), [BATCH, d]), device);
        let (loss, fired) = sae_loss(&trainer.module, x, k, &silent_for);
        for (silent, fired) in silent_for.iter_mut().zip(fired) {
            *silent = if fired { 0 } else { *silent + BATCH };
        }
        trainer.step_edited(
            loss,
            BATCH,
            BATCH,
            |module, grads| {
                // Only the part of the gradient that turns a row, not the part that stretches it.
                if let Some(grad) = grads.remove::<B::InnerBackend, 2>(module.w_dec.id) {
                    let rows = module.w_dec.val().inner();
                    let along = (grad.clone() * rows.clone()).sum_dim(1);
                    grads.register::<B::InnerBackend, 2>(module.w_dec.id, grad - rows * along);
                }
            },
            |mut module| {
                module.w_dec = module.w_dec.map(|w| Tensor::from_inner(unit_rows(w.inner())).require_grad());
                module
            },
        )?;
    }
    trainer.save()?;
    let dead = silent_for.iter().filter(|silent| **silent >= DEAD_AFTER).count();
    tracing::info!(dead, latents, "the SAE is trained");
    trainer.module.valid().into_sae(k).save(&out.join("sae").join(plan.hook_point()))?;
    Ok(())
}

/// The loss of one batch, and which latents fired.
fn sae_loss<B: AutodiffBackend>(
    module: &TrainedSae<B>,
    x: Tensor<B, 2>,
    k: usize,
    silent_for: &[usize],
) -> (Tensor<B, 1>, Vec<bool>) {
    let device = x.device();
    let latents = silent_for.len();
    let [tokens, _] = x.dims();
    let activations = module.activations(x.clone());
    let values = f32_from_tensor(activations.clone().inner());
    let keep = |mask: Vec<bool>| {
        let mask = Tensor::<B, 2, Bool>::from_data(TensorData::new(mask, [tokens, latents]), &device);
        activations.clone().mask_fill(mask.bool_not(), 0.0)
    };
    let mean = x.clone().mean_dim(0);
    let variance = (x.clone() - mean).powf_scalar(2.0).sum();
    let mask = top_k_mask(&values, latents, k, |_| true);
    let mut fired = vec![false; latents];
    for row in mask.chunks_exact(latents) {
        fired.iter_mut().zip(row).for_each(|(fired, on)| *fired |= on);
    }
    let residual = x.clone() - module.decode(keep(mask));
    let mut loss = residual.clone().powf_scalar(2.0).sum() / variance.clone();
    let multi = keep(top_k_mask(&values, latents, 4 * k, |_| true));
    loss = loss + (x - module.decode(multi)).powf_scalar(2.0).sum() / variance / 8.0;
    let dead: Vec<bool> = silent_for.iter().map(|silent| *silent >= DEAD_AFTER).collect();
    if dead.iter().filter(|dead| **dead).count() > 0 {
        // AuxK: the dead latents learn to explain what the living ones leave over.
        let auxiliary = keep(top_k_mask(&values, latents, 2 * k, |i| dead[i]));
        let target = residual.detach();
        let scale = target.clone().powf_scalar(2.0).sum();
        let guess = auxiliary.matmul(module.w_dec.val());
        loss = loss + (target - guess).powf_scalar(2.0).sum() / scale / 32.0;
    }
    (loss, fired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_keeps_the_k_largest_allowed_values() {
        let mask = top_k_mask(&[5.0, 1.0, 3.0, 0.0, -2.0, 4.0], 6, 2, |i| i != 0);
        assert_eq!(mask, [false, false, true, false, false, true]);
    }

    #[test]
    fn fewer_positive_values_than_k_are_all_kept() {
        assert_eq!(top_k_mask(&[0.0, 2.0, -1.0, 0.0], 4, 3, |_| true), [false, true, false, false]);
    }

    #[test]
    fn the_median_is_componentwise() {
        assert_eq!(median(&[1.0, 10.0, 2.0, 20.0, 9.0, 0.0], 2), [2.0, 10.0]);
    }
}
