//! Autoregressive generation: prefill in one pass, then one token at a time with a KV cache.

use crate::Error;
use crate::batch::{Batch, RowId, Step};
use crate::intervention::Intervention;
use crate::lmm::{Lmm, Prepared};
use burn::tensor::backend::Backend;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::ops::ControlFlow;
use std::sync::Arc;

/// How to pick tokens and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens with at least this probability; 1 keeps all.
    pub top_p: f32,
    pub seed: u64,
    /// So many of the likeliest tokens are told with each token.
    pub top_alternatives: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 64, temperature: 0.0, top_p: 1.0, seed: 0, top_alternatives: 0 }
    }
}

/// One generated token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GeneratedToken {
    pub id: u32,
    /// What it adds to the text; empty while a multi-byte character is incomplete. Without the clean-up of spaces that
    /// some tokenizers ask for.
    pub text: String,
    /// Natural log of its probability at temperature 1.
    pub logprob: f32,
    /// The likeliest tokens here and the natural logs of their probabilities, likeliest first.
    pub alternatives: Vec<(u32, f32)>,
}

/// A finished text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    /// The decoding of all tokens.
    pub text: String,
    pub tokens: Vec<GeneratedToken>,
}

impl Generation {
    /// Ids of the tokens, the stop token not among them.
    pub fn token_ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// The three texts of a steering run. Only the difference between the last two is the features'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The model as it is.
    Original,
    /// The SAE's reconstruction in the stream, nothing changed.
    Reconstructed,
    /// The reconstruction with the features changed.
    Steered,
}

impl Variant {
    pub const ALL: [Self; 3] = [Self::Original, Self::Reconstructed, Self::Steered];
}

/// The three texts, whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steered {
    pub original: Generation,
    pub reconstructed: Generation,
    pub steered: Generation,
}

/// The interventions of the three texts, in the order of [`Variant::ALL`].
pub fn variants<B: Backend>(intervention: &Intervention<B>) -> [Option<Arc<Intervention<B>>>; 3] {
    [None, Some(Arc::new(intervention.reconstruction())), Some(Arc::new(intervention.clone()))]
}

/// Generates from a prepared prompt; `on_token` sees each token and may stop the run.
///
/// # Errors
/// An intervention that names a feature or a block that does not exist; numbers that are not finite.
pub fn generate<B: Backend>(
    lmm: &Lmm<B>,
    prepared: &Prepared,
    options: &GenerateOptions,
    intervention: Option<&Intervention<B>>,
    on_token: &mut dyn FnMut(&GeneratedToken) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    let variant = intervention.map(|intervention| Arc::new(intervention.clone()));
    let mut texts = together(lmm, prepared, options, &[variant], &mut |_, token| on_token(token))?;
    Ok(texts.pop().unwrap_or_default())
}

/// Generates the three texts side by side; what they share, up to the hook point, is computed once.
///
/// # Errors
/// As [`generate`].
pub fn steer<B: Backend>(
    lmm: &Lmm<B>,
    prepared: &Prepared,
    options: &GenerateOptions,
    intervention: &Intervention<B>,
    on_token: &mut dyn FnMut(Variant, &GeneratedToken) -> ControlFlow<()>,
) -> Result<Steered, Error> {
    let mut tell = |row: usize, token: &GeneratedToken| on_token(Variant::ALL[row], token);
    let mut texts = together(lmm, prepared, options, &variants(intervention), &mut tell)?.into_iter();
    let mut next = || texts.next().unwrap_or_default();
    Ok(Steered { original: next(), reconstructed: next(), steered: next() })
}

/// One text for each variant, in order. A run that `on_token` stops returns what there is.
fn together<B: Backend>(
    lmm: &Lmm<B>,
    prepared: &Prepared,
    options: &GenerateOptions,
    variants: &[Option<Arc<Intervention<B>>>],
    on_token: &mut dyn FnMut(usize, &GeneratedToken) -> ControlFlow<()>,
) -> Result<Vec<Generation>, Error> {
    let mut batch = Batch::new(lmm);
    let ids: Vec<RowId> = batch.join(prepared, options, variants)?;
    let mut texts = vec![Generation::default(); ids.len()];
    while !batch.is_empty() {
        for (id, step) in batch.step() {
            let Some(row) = ids.iter().position(|known| *known == id) else { continue };
            let token = match step {
                Step::Token(token) => token,
                Step::Ended(generation) => {
                    texts[row] = generation;
                    continue;
                }
                Step::Failed(error) => return Err(error),
            };
            let flow = on_token(row, &token);
            texts[row].text.push_str(&token.text);
            texts[row].tokens.push(token);
            if flow.is_break() {
                return Ok(texts);
            }
        }
    }
    Ok(texts)
}

/// A chosen token.
pub(crate) struct Picked {
    pub id: u32,
    pub logprob: f32,
    pub alternatives: Vec<(u32, f32)>,
}

/// Picks a token and gives its log-probability at temperature 1.
pub(crate) fn pick(logits: &[f32], options: &GenerateOptions, rng: &mut ChaCha8Rng) -> Picked {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum = logits.iter().map(|logit| (logit - max).exp()).sum::<f32>().ln() + max;
    let best = || logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).map_or(0, |(i, _)| i);
    let index =
        if options.temperature <= 0.0 { best() } else { sample(logits, max, options, rng).unwrap_or_else(best) };
    let alternatives = likeliest(logits, options.top_alternatives);
    let alternatives = alternatives.into_iter().map(|(id, logit)| (id, logit - log_sum)).collect();
    Picked { id: index as u32, logprob: logits[index] - log_sum, alternatives }
}

/// The `n` largest values and their places, largest first, ties by lower place.
pub(crate) fn likeliest(values: &[f32], n: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let n = n.min(values.len());
    if n == 0 {
        return Vec::new();
    }
    let mut all: Vec<(u32, f32)> = values.iter().enumerate().map(|(i, &value)| (i as u32, value)).collect();
    all.select_nth_unstable_by(n - 1, order);
    all.truncate(n);
    all.sort_unstable_by(order);
    all
}

/// Draws from the softmax at `temperature`, cut to the nucleus `top_p`.
fn sample(logits: &[f32], max: f32, options: &GenerateOptions, rng: &mut ChaCha8Rng) -> Option<usize> {
    let mut weights: Vec<(usize, f32)> =
        logits.iter().enumerate().map(|(i, logit)| (i, ((logit - max) / options.temperature).exp())).collect();
    weights.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f32 = weights.iter().map(|(_, weight)| weight).sum();
    let mut kept = 0.0;
    let nucleus = weights.iter().position(|(_, weight)| {
        kept += weight;
        kept >= options.top_p * total
    });
    weights.truncate(nucleus.map_or(weights.len(), |last| last + 1));
    let mut left = rng.random::<f32>() * weights.iter().map(|(_, weight)| weight).sum::<f32>();
    weights.iter().find_map(|&(i, weight)| {
        left -= weight;
        (left <= 0.0).then_some(i)
    })
}
