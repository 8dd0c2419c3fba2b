//! Autoregressive generation: prefill in one pass, then one token at a time with a KV cache.

use crate::Error;
use crate::intervention::{Intervention, PositionKind};
use crate::llama::KvCache;
use crate::lmm::{Lmm, Prepared};
use crate::weights::f32_from_tensor;
use burn::tensor::{Tensor, backend::Backend};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::ControlFlow;

/// How to pick tokens and when to stop.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens with at least this probability; 1 keeps all.
    pub top_p: f32,
    pub seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 64, temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    pub id: u32,
    /// What it adds to the text; empty while a multi-byte character is incomplete.
    pub text: String,
    /// Natural log of its probability at temperature 1.
    pub logprob: f32,
}

/// A finished text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    pub text: String,
    pub tokens: Vec<GeneratedToken>,
}

/// Generates from a prepared prompt; `on_token` sees each token and may stop the run.
///
/// # Errors
/// An intervention that names a feature or a block that does not exist.
pub fn generate<B: Backend>(
    lmm: &Lmm<B>,
    prepared: &Prepared,
    options: &GenerateOptions,
    intervention: Option<&Intervention<B>>,
    on_token: &mut dyn FnMut(&GeneratedToken) -> ControlFlow<()>,
) -> Result<Generation, Error> {
    let blocks = lmm.net.language.depth();
    if let Some(intervention) = intervention {
        intervention.check()?;
        if intervention.layer >= blocks {
            return Err(Error::UnknownLayer { layer: intervention.layer, blocks });
        }
    }
    let room = lmm.config.text_config.max_position_embeddings.saturating_sub(prepared.input_ids.len());
    let stop_tokens = lmm.config.stop_tokens();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut cache = KvCache::new(blocks);
    let kinds: Vec<PositionKind> = prepared.kinds().into_iter().map(PositionKind::Prompt).collect();
    let mut logits = step(lmm, lmm.embed(prepared), &mut cache, intervention, &kinds);
    let mut ids = Vec::new();
    let mut generation = Generation::default();
    for _ in 0..options.max_new_tokens.min(room) {
        let (id, logprob) = pick(&logits, options, &mut rng);
        if stop_tokens.contains(&id) {
            break;
        }
        ids.push(id);
        let text = new_text(lmm, &ids, generation.text.len())?;
        generation.text.push_str(&text);
        let token = GeneratedToken { id, text, logprob };
        let flow = on_token(&token);
        generation.tokens.push(token);
        if flow.is_break() {
            break;
        }
        let embedded = lmm.net.language.embed(lmm.ids(&[id]));
        logits = step(lmm, embedded, &mut cache, intervention, &[PositionKind::Generated]);
    }
    Ok(generation)
}

/// One pass over new positions; logits of the last one.
fn step<B: Backend>(
    lmm: &Lmm<B>,
    x: Tensor<B, 3>,
    cache: &mut KvCache<B>,
    intervention: Option<&Intervention<B>>,
    kinds: &[PositionKind],
) -> Vec<f32> {
    let hidden = lmm.net.language.cached_forward(x, cache, |layer, x| match intervention {
        Some(intervention) if intervention.layer == layer => intervention.apply(x.squeeze_dim(0), kinds).unsqueeze(),
        _ => x,
    });
    let last = hidden.dims()[1] - 1;
    f32_from_tensor(lmm.net.language.logits(hidden.narrow(1, last, 1)))
}

/// The part of the decoded text that is new; empty while it ends inside a character.
fn new_text<B: Backend>(lmm: &Lmm<B>, ids: &[u32], shown: usize) -> Result<String, Error> {
    let text = lmm.tokenizer.decode(ids, true).map_err(|error| Error::Tokenizer(error.to_string()))?;
    if text.ends_with('\u{fffd}') {
        return Ok(String::new());
    }
    Ok(text.get(shown..).unwrap_or_default().to_string())
}

/// Picks a token and gives its log-probability at temperature 1.
fn pick(logits: &[f32], options: &GenerateOptions, rng: &mut ChaCha8Rng) -> (u32, f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum = logits.iter().map(|logit| (logit - max).exp()).sum::<f32>().ln() + max;
    let best = || logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).map_or(0, |(i, _)| i);
    let index =
        if options.temperature <= 0.0 { best() } else { sample(logits, max, options, rng).unwrap_or_else(best) };
    (index as u32, logits[index] - log_sum)
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
