//! Passes of several texts through the model, each with its own intervention.

use crate::Error;
use crate::hook::Hook;
use crate::intervention::{Encoded, Intervention, PositionKind};
use crate::llama::KvCache;
use crate::lmm::{Lmm, Prepared, SpanKind};
use crate::weights::f32_from_tensor;
use burn::tensor::{DType, Tensor, backend::Backend};
use std::sync::Arc;

/// One pass over the prompt: logits of the next token of each variant, and their cache.
pub(super) fn prefill<B: Backend>(
    lmm: &Lmm<B>,
    prepared: &Prepared,
    variants: &[Option<Arc<Intervention<B>>>],
) -> Result<(Vec<Vec<f32>>, KvCache<B>), Error> {
    let language = &lmm.net.language;
    let depth = language.depth();
    let mut cache = KvCache::new(depth);
    let in_tower = variants.iter().flatten().any(|variant| matches!(variant.hook, Hook::Vision(_)));
    let hooks = blocks(variants.iter().map(Option::as_deref));
    // One row until the variants part: in the tower, or at the first hook point, where all rows are still alike.
    let mut alike = !in_tower;
    let (mut x, mut done) = if in_tower {
        cache.expand(variants.len());
        (embed_variants(lmm, prepared, variants)?, 0)
    } else {
        let parting = hooks.first().map_or(depth, |block| block + 1);
        let x = language.cached_forward(lmm.embed(prepared), &mut cache, 0..parting);
        cache.expand(variants.len());
        (x.repeat_dim(0, variants.len()), parting)
    };
    let kinds: Vec<PositionKind> = prepared.kinds().into_iter().map(PositionKind::Prompt).collect();
    for &block in &hooks {
        if done <= block {
            x = language.cached_forward(x, &mut cache, done..block + 1);
            done = block + 1;
        }
        let rows: Vec<Option<&Intervention<B>>> = variants.iter().map(Option::as_deref).collect();
        x = intervene(x, block, &rows, alike, |intervention, _| intervention.selected(0, &kinds));
        alike = false;
    }
    if done < depth {
        x = language.cached_forward(x, &mut cache, done..depth);
    }
    let last = x.dims()[1] - 1;
    Ok((logits(lmm, x.narrow(1, last, 1)), cache))
}

/// Input embeddings of each variant, the tower run once up to each hook point: `[variants, tokens, d_model]`.
fn embed_variants<B: Backend>(
    lmm: &Lmm<B>,
    prepared: &Prepared,
    variants: &[Option<Arc<Intervention<B>>>],
) -> Result<Tensor<B, 3>, Error> {
    let mut hidden_at: Option<(usize, Tensor<B, 3>)> = None;
    let mut rows = Vec::new();
    for variant in variants {
        let Some((intervention, block)) = variant.as_deref().and_then(|variant| match variant.hook {
            Hook::Vision(block) => Some((variant, block)),
            Hook::Block(_) => None,
        }) else {
            rows.push(lmm.embed(prepared));
            continue;
        };
        let hidden = match hidden_at.take() {
            Some((held, hidden)) if held == block => hidden,
            _ => lmm.vision_hidden(prepared, block)?,
        };
        let [tiles, positions, width] = hidden.dims();
        let kinds = vec![PositionKind::Prompt(SpanKind::Base); tiles * positions];
        let flat = hidden.clone().reshape([tiles * positions, width]).cast(DType::F32);
        let changed = intervention.apply(flat, 0, &kinds).reshape([tiles, positions, width]);
        rows.push(lmm.embed_from_vision(prepared, changed, block));
        hidden_at = Some((block, hidden));
    }
    Ok(Tensor::cat(rows, 0))
}

/// A text's newest token.
pub(super) struct Newest<'a, B: Backend> {
    pub token: u32,
    pub position: usize,
    pub intervention: Option<&'a Intervention<B>>,
}

/// Logits after one more token of every row of the cache.
pub(super) fn go_on<B: Backend>(lmm: &Lmm<B>, cache: &mut KvCache<B>, newest: &[Newest<'_, B>]) -> Vec<Vec<f32>> {
    let language = &lmm.net.language;
    let tokens: Vec<u32> = newest.iter().map(|row| row.token).collect();
    let mut x = language.embed(lmm.ids(&tokens)).swap_dims(0, 1);
    let rows: Vec<Option<&Intervention<B>>> = newest.iter().map(|row| row.intervention).collect();
    let mut done = 0;
    for block in blocks(rows.iter().copied()) {
        x = language.cached_forward(x, cache, done..block + 1);
        done = block + 1;
        x = intervene(x, block, &rows, false, |intervention, row| {
            intervention.selected(newest[row].position, &[PositionKind::Generated])
        });
    }
    if done < language.depth() {
        x = language.cached_forward(x, cache, done..language.depth());
    }
    logits(lmm, x)
}

/// Blocks of the language model after which something is changed, in order.
fn blocks<'a, B: Backend>(rows: impl Iterator<Item = Option<&'a Intervention<B>>>) -> Vec<usize> {
    let block = |intervention: &Intervention<B>| match intervention.hook {
        Hook::Block(block) => Some(block),
        // What happens in the vision tower is over when the text begins.
        Hook::Vision(_) => None,
    };
    let mut blocks: Vec<usize> = rows.flatten().filter_map(block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// `[rows, 1, d_model]` to each row's logits, in f32.
fn logits<B: Backend>(lmm: &Lmm<B>, last: Tensor<B, 3>) -> Vec<Vec<f32>> {
    let logits = lmm.net.language.logits(last);
    let vocabulary = logits.dims()[2];
    f32_from_tensor(logits).chunks_exact(vocabulary).map(<[f32]>::to_vec).collect()
}

/// Replaces the rows of `[rows, positions, d_model]` that have an intervention at `block`, encoding once for all that
/// share an SAE. `alike`: all rows hold the same. `selected` says which positions of a row are changed.
fn intervene<B: Backend>(
    x: Tensor<B, 3>,
    block: usize,
    rows: &[Option<&Intervention<B>>],
    alike: bool,
    selected: impl Fn(&Intervention<B>, usize) -> Vec<bool>,
) -> Tensor<B, 3> {
    let [_, positions, d_model] = x.dims();
    let dtype = x.dtype();
    let mut out: Vec<Tensor<B, 3>> = (0..rows.len()).map(|row| x.clone().narrow(0, row, 1)).collect();
    let here = rows.iter().enumerate().filter_map(|(row, found)| found.map(|found| (row, found)));
    let mut left: Vec<(usize, &Intervention<B>)> =
        here.filter(|(_, intervention)| intervention.hook == Hook::Block(block)).collect();
    while let Some(&(first, of_first)) = left.first() {
        let (group, rest): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|(_, other)| Arc::ptr_eq(&other.sae, &of_first.sae));
        left = rest;
        let states = if alike {
            out[first].clone()
        } else {
            Tensor::cat(group.iter().map(|(row, _)| out[*row].clone()).collect(), 0)
        };
        let [held, _, _] = states.dims();
        let states = states.reshape([held * positions, d_model]).cast(DType::F32);
        let clamps = group.iter().map(|(_, intervention)| intervention.clamps()).max().unwrap_or_default();
        let encoded = Encoded::new(&of_first.sae, states, clamps);
        for (place, (row, intervention)) in group.into_iter().enumerate() {
            let place = if alike { 0 } else { place };
            let own = encoded.narrow(place * positions..(place + 1) * positions);
            out[row] = intervention.apply_encoded(&own, &selected(intervention, row)).cast(dtype).unsqueeze();
        }
    }
    Tensor::cat(out, 0)
}
