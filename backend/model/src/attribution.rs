//! Attribution: which features made the model say one answer rather than another (paper, section 3.5).
//!
//! With the SAE's reconstruction in the stream, `Δ = logit(answer) − logit(baseline)` at the last position. One forward
//! and one backward pass through the blocks after the hook point give `g = ∂Δ/∂x̂`; to first order, removing latent `j`
//! at token `t` takes `z[t,j] · (W_dec[j] · g[t])` from Δ. That is every latent at once. The way back runs every block
//! forward once more instead of keeping what happened in it.

use crate::Error;
use crate::generate::likeliest;
use crate::hook::Hook;
use crate::intervention::{Edit, EditOp, Intervention, Positions};
use crate::lmm::{Lmm, Prepared, SpanKind};
use crate::sae::{Sae, TopK};
use crate::weights::f32_from_tensor;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use std::cell::Cell;
use std::sync::Arc;

/// What to attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct AttributeOptions {
    pub hook: Hook,
    /// Tokens whose logits are compared.
    pub answer: u32,
    pub baseline: u32,
    /// The stream as it is, the reconstruction's error included; otherwise the reconstruction alone (paper).
    pub keep_error: bool,
    /// So many features with the largest attributions are really removed, one at a time.
    pub verify: usize,
}

/// One latent at one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effect {
    pub token: u32,
    pub feature: u32,
    pub activation: f32,
    /// Positive: supports the answer.
    pub attribution: f32,
}

/// A feature that was really removed, at all tokens, none taking its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verified {
    pub feature: u32,
    pub attribution: f32,
    /// Δ with the feature less Δ without it.
    pub measured: f32,
}

/// What every feature contributes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attribution {
    /// Δ with the reconstruction in the stream.
    pub logit_difference: f32,
    /// Δ of the model as it is.
    pub logit_difference_original: f32,
    /// Every active latent of every token.
    pub effects: Vec<Effect>,
    /// `[latents]`: sums over all tokens, over those of the picture, over those of the text.
    pub total: Vec<f32>,
    pub image: Vec<f32>,
    pub text: Vec<f32>,
    pub verified: Vec<Verified>,
    /// Pearson's, between attribution and measured effect of the verified features.
    pub correlation: Option<f32>,
    /// Passes through the blocks after the hook point as they were run, verification not counted: one forward for Δ, one
    /// more forward and one backward on the way back, and one forward for the model as it is, unless that is the same.
    /// The reference code takes two forward and one backward for every latent.
    pub forward_passes: usize,
    pub backward_passes: usize,
}

impl Attribution {
    /// What one feature contributes at each of `tokens` positions.
    pub fn map(&self, feature: u32, tokens: usize) -> Vec<f32> {
        let mut map = vec![0.0; tokens];
        for effect in self.effects.iter().filter(|effect| effect.feature == feature) {
            if let Some(cell) = map.get_mut(effect.token as usize) {
                *cell += effect.attribution;
            }
        }
        map
    }

    /// The `n` features with the largest contributions, whatever their sign.
    pub fn strongest(&self, n: usize) -> Vec<u32> {
        let sizes: Vec<f32> = self.total.iter().map(|value| value.abs()).collect();
        let strongest = likeliest(&sizes, n).into_iter();
        strongest.filter(|(_, size)| *size > 0.0).map(|(feature, _)| feature).collect()
    }
}

/// Attributes `logit(answer) − logit(baseline)` to every latent of `sae`.
///
/// # Errors
/// A hook point outside the language model; tokens beyond the vocabulary; an SAE of another width; numbers that are not
/// finite.
pub fn attribute<B: Backend>(
    lmm: &Lmm<B>,
    prepared: &Prepared,
    sae: &Sae<B>,
    options: &AttributeOptions,
) -> Result<Attribution, Error> {
    attribute_unless(lmm, prepared, sae, options, &|| false)
}

/// [`attribute`], given up between two blocks when `gone` says that nobody waits.
///
/// # Errors
/// Those of [`attribute`]; [`Error::Cancelled`].
pub fn attribute_unless<B: Backend>(
    lmm: &Lmm<B>,
    prepared: &Prepared,
    sae: &Sae<B>,
    options: &AttributeOptions,
    gone: &dyn Fn() -> bool,
) -> Result<Attribution, Error> {
    let layer = check(lmm, sae, options)?;
    let (answer, baseline) = (options.answer as usize, options.baseline as usize);
    let after = After { lmm, layer, answer, baseline, gone, forward: Cell::new(0), backward: Cell::new(0) };
    let hidden = lmm.hidden_unless(prepared, options.hook, gone)?;
    let z = sae.encode(hidden.clone());
    let stream = if options.keep_error { hidden.clone() } else { sae.decode(&z) };

    let (logit_difference, gradient) = after.difference_and_gradient(stream)?;
    let logit_difference_original =
        if options.keep_error { logit_difference } else { after.difference(hidden.clone())? };
    Error::check_finite("the logits", &[logit_difference, logit_difference_original])?;

    let mut found = Attribution {
        logit_difference,
        logit_difference_original,
        effects: effects(sae, &z, gradient),
        forward_passes: after.forward.get(),
        backward_passes: after.backward.get(),
        ..Attribution::default()
    };
    Error::check_finite("the attributions", &found.effects.iter().map(|e| e.attribution).collect::<Vec<_>>())?;
    sum_up(&mut found, sae.latents(), &prepared.kinds());
    let strongest = found.strongest(options.verify);
    for feature in strongest {
        let edits = vec![Edit { feature: feature as usize, op: EditOp::Ablate }];
        let without = Intervention {
            hook: options.hook,
            sae: Arc::new(sae.clone()),
            edits,
            positions: Positions::All,
            keep_error: options.keep_error,
        };
        let changed = without.apply_selected(hidden.clone(), &vec![true; z.tokens]);
        let measured = logit_difference - after.difference(changed)?;
        found.verified.push(Verified { feature, attribution: found.total[feature as usize], measured });
    }
    found.correlation = correlation(&found.verified);
    Ok(found)
}

/// The block of the hook point, if everything fits together.
fn check<B: Backend>(lmm: &Lmm<B>, sae: &Sae<B>, options: &AttributeOptions) -> Result<usize, Error> {
    lmm.check_hook(options.hook)?;
    let Hook::Block(layer) = options.hook else {
        return Err(Error::BadInput(format!(
            "attribution needs a hook point in the language model, not {}",
            options.hook
        )));
    };
    let (found, expected) = (sae.config.d_in, lmm.width_at(options.hook));
    if found != expected {
        return Err(Error::BadInput(format!(
            "the SAE reads {found} numbers, but {} puts out {expected}",
            options.hook
        )));
    }
    let vocabulary = lmm.config.text_config.vocab_size;
    for (name, id) in [("answer", options.answer), ("baseline", options.baseline)] {
        if id as usize >= vocabulary {
            return Err(Error::BadInput(format!(
                "the {name} token {id} does not exist: the vocabulary has {vocabulary}"
            )));
        }
    }
    if options.answer == options.baseline {
        return Err(Error::BadInput(format!("answer and baseline are the same token {}", options.answer)));
    }
    Ok(layer)
}

/// The model after the hook point, as a function of the stream `[tokens, d_model]` there.
struct After<'a, B: Backend> {
    lmm: &'a Lmm<B>,
    layer: usize,
    answer: usize,
    baseline: usize,
    /// Nobody waits any more.
    gone: &'a dyn Fn() -> bool,
    /// Passes so far.
    forward: Cell<usize>,
    backward: Cell<usize>,
}

impl<B: Backend> After<'_, B> {
    /// The stream in the model's own format, as a batch of one.
    fn input(&self, stream: Tensor<B, 2>) -> Tensor<B, 3> {
        stream.cast(DType::from(self.lmm.dtype)).unsqueeze()
    }

    fn last(x: &Tensor<B, 3>) -> Tensor<B, 2> {
        let tokens = x.dims()[1];
        x.clone().narrow(1, tokens - 1, 1).squeeze_dim(0)
    }

    fn count(passes: &Cell<usize>) {
        passes.set(passes.get() + 1);
    }

    /// Δ alone.
    fn difference(&self, stream: Tensor<B, 2>) -> Result<f32, Error> {
        let language = &self.lmm.net.language;
        let after = self.layer + 1..language.depth();
        Self::count(&self.forward);
        let x = language.checked_forward(self.input(stream), after, || Error::check_wanted(self.gone))?;
        Ok(language.difference_vjp(Self::last(&x), self.answer, self.baseline).0)
    }

    /// Δ and its gradient at the stream, `[tokens, d_model]` in f32. Block inputs are kept, and each block is run once
    /// more on the way back: memory for one block's intermediate values, whatever the depth.
    fn difference_and_gradient(&self, stream: Tensor<B, 2>) -> Result<(f32, Tensor<B, 2>), Error> {
        let language = &self.lmm.net.language;
        let mut inputs = vec![self.input(stream)];
        Self::count(&self.forward);
        for layer in self.layer + 1..language.depth() {
            Error::check_wanted(self.gone)?;
            let next = language.blocks_forward(inputs[inputs.len() - 1].clone(), layer..layer + 1);
            inputs.push(next);
        }
        let output = inputs.remove(inputs.len() - 1);
        let (difference, at_last) = language.difference_vjp(Self::last(&output), self.answer, self.baseline);
        let [_, tokens, _] = output.dims();
        let mut gradient = output.zeros_like().cast(DType::F32);
        let [_, _, d_model] = gradient.dims();
        gradient = gradient.slice_assign([0..1, tokens - 1..tokens, 0..d_model], at_last.unsqueeze());
        if !inputs.is_empty() {
            Self::count(&self.forward);
        }
        Self::count(&self.backward);
        for (layer, input) in (self.layer + 1..language.depth()).zip(inputs).rev() {
            Error::check_wanted(self.gone)?;
            gradient = language.block_vjp(layer, input, gradient).cast(DType::F32);
        }
        Ok((difference, gradient.squeeze_dim(0)))
    }
}

/// Decoder rows gathered at once, in numbers: 256 MiB.
const GATHERED: usize = 1 << 26;

/// `z[t,j] · (W_dec[j] · g[t])` of every active latent.
fn effects<B: Backend>(sae: &Sae<B>, z: &TopK, gradient: Tensor<B, 2>) -> Vec<Effect> {
    let d = sae.config.d_in;
    let device = gradient.device();
    let at_once = (GATHERED / (z.k * d).max(1)).max(1);
    let mut effects = Vec::new();
    for first in (0..z.tokens).step_by(at_once) {
        let tokens = at_once.min(z.tokens - first);
        let range = first * z.k..(first + tokens) * z.k;
        let ids: Vec<i64> = z.indices[range.clone()].iter().map(|&index| i64::from(index)).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [tokens * z.k]), &device);
        let rows = sae.w_dec.clone().select(0, ids).reshape([tokens, z.k, d]);
        let g = gradient.clone().narrow(0, first, tokens).reshape([tokens, d, 1]);
        let along = f32_from_tensor(rows.matmul(g));
        for (slot, along) in range.zip(along) {
            let activation = z.acts[slot];
            if activation != 0.0 {
                let (token, feature) = (slot / z.k, z.indices[slot]);
                // What the decoder's output is multiplied by, in SAEs that normalise each token.
                let scale = z.norms.get(token).map_or(1.0, |norm| norm.scale);
                let attribution = activation * along * scale;
                effects.push(Effect { token: token as u32, feature, activation, attribution });
            }
        }
    }
    effects
}

fn sum_up(found: &mut Attribution, latents: usize, kinds: &[SpanKind]) {
    let (mut image, mut text) = (vec![0.0f64; latents], vec![0.0f64; latents]);
    for effect in &found.effects {
        let in_text = kinds.get(effect.token as usize) == Some(&SpanKind::Text);
        let part = if in_text { &mut text } else { &mut image };
        part[effect.feature as usize] += f64::from(effect.attribution);
    }
    found.total = image.iter().zip(&text).map(|(a, b)| (a + b) as f32).collect();
    found.image = image.into_iter().map(|value| value as f32).collect();
    found.text = text.into_iter().map(|value| value as f32).collect();
}

/// Pearson's correlation; `None` for fewer than two features or without any spread.
fn correlation(verified: &[Verified]) -> Option<f32> {
    let n = verified.len() as f64;
    let pairs: Vec<(f64, f64)> =
        verified.iter().map(|one| (f64::from(one.attribution), f64::from(one.measured))).collect();
    let mean = |pick: fn(&(f64, f64)) -> f64| pairs.iter().map(pick).sum::<f64>() / n;
    let (mean_a, mean_b) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let sum = |f: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|(a, b)| f(a - mean_a, b - mean_b)).sum::<f64>();
    let spread = (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt();
    (verified.len() > 1 && spread > 0.0).then(|| (sum(&|a, b| a * b) / spread) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_is_pearsons() {
        let pairs = |list: &[(f32, f32)]| -> Vec<Verified> {
            list.iter().map(|&(attribution, measured)| Verified { feature: 0, attribution, measured }).collect()
        };
        assert_eq!(correlation(&pairs(&[(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)])), Some(1.0));
        assert_eq!(correlation(&pairs(&[(1.0, -1.0), (2.0, -2.0)])), Some(-1.0));
        let half = correlation(&pairs(&[(0.0, 0.0), (1.0, 1.0), (2.0, 0.0)]));
        assert!(half.is_some_and(|value| value.abs() < 1e-6));
        assert_eq!(correlation(&pairs(&[(1.0, 2.0)])), None);
        assert_eq!(correlation(&pairs(&[(1.0, 2.0), (1.0, 3.0)])), None);
    }
}
