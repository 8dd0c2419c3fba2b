//! Decoding of several texts at once: every weight that is read serves all of them.
//!
//! A request joins with one pass over its prompt and may leave at any step. Its variants (original, reconstructed,
//! steered) are rows of the same pass, and share everything up to the first hook point among them.

use crate::Error;
use crate::generate::{GenerateOptions, GeneratedToken, Generation, Picked, pick};
use crate::hook::Hook;
use crate::intervention::{Encoded, Intervention, PositionKind};
use crate::llama::KvCache;
use crate::lmm::{Lmm, Prepared, SpanKind};
use crate::weights::f32_from_tensor;
use burn::tensor::{DType, Tensor, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Names a text of a [`Batch`] for as long as it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowId(u64);

/// What a step did to one text.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Token(GeneratedToken),
    /// The text has ended, at a stop token or at its length, and its row is gone.
    Ended(Generation),
}

/// Texts that are generated together.
pub struct Batch<'a, B: Backend> {
    lmm: &'a Lmm<B>,
    rows: Vec<Row<B>>,
    /// One row for each text, in the same order; `None` while there are none.
    cache: Option<KvCache<B>>,
    next_id: u64,
}

struct Row<B: Backend> {
    id: RowId,
    /// At a block of the language model; what happens in the vision tower is over when the text begins.
    intervention: Option<Arc<Intervention<B>>>,
    options: GenerateOptions,
    rng: ChaCha8Rng,
    /// Logits of the next token.
    logits: Vec<f32>,
    ids: Vec<u32>,
    /// Position of the next token.
    position: usize,
    generation: Generation,
    /// Tokens that may still come.
    room: usize,
}

impl<'a, B: Backend> Batch<'a, B> {
    pub fn new(lmm: &'a Lmm<B>) -> Self {
        Self { lmm, rows: Vec::new(), cache: None, next_id: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Texts that run.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Prefills the variants of one request and adds them; `None` is the model as it is. Their ids, in order.
    ///
    /// # Errors
    /// An intervention that names a feature or a block that does not exist; numbers that are not finite.
    pub fn join(
        &mut self,
        prepared: &Prepared,
        options: &GenerateOptions,
        variants: &[Option<Arc<Intervention<B>>>],
    ) -> Result<Vec<RowId>, Error> {
        for intervention in variants.iter().flatten() {
            self.check(prepared, intervention)?;
        }
        let limit = self.lmm.config.text_config.max_position_embeddings;
        let room = options.max_new_tokens.min(limit.saturating_sub(prepared.input_ids.len()));
        let (logits, cache) = self.prefill(prepared, variants)?;
        match &mut self.cache {
            Some(held) => held.join(cache),
            None => self.cache = Some(cache),
        }
        let mut ids = Vec::new();
        for (logits, variant) in logits.into_iter().zip(variants) {
            let id = RowId(self.next_id);
            self.next_id += 1;
            ids.push(id);
            self.rows.push(Row {
                id,
                intervention: variant.clone().filter(|variant| matches!(variant.hook, Hook::Block(_))),
                options: options.clone(),
                rng: ChaCha8Rng::seed_from_u64(options.seed),
                logits,
                ids: Vec::new(),
                position: prepared.input_ids.len(),
                generation: Generation::default(),
                room,
            });
        }
        Ok(ids)
    }

    fn check(&self, prepared: &Prepared, intervention: &Intervention<B>) -> Result<(), Error> {
        intervention.check()?;
        self.lmm.check_steerable(intervention.hook)?;
        let (found, expected) = (intervention.sae.config.d_in, self.lmm.width_at(intervention.hook));
        if found != expected {
            let hook = intervention.hook;
            return Err(Error::BadInput(format!("the SAE reads {found} numbers, but {hook} puts out {expected}")));
        }
        if let (crate::Positions::Tokens(tokens), Hook::Block(_)) = (&intervention.positions, intervention.hook) {
            let end = prepared.input_ids.len();
            if let Some(token) = tokens.iter().find(|&&token| token >= end) {
                return Err(Error::BadInput(format!("position {token} does not exist: the prompt has {end} tokens")));
            }
        }
        Ok(())
    }

    /// One pass over the prompt: logits of the next token of each variant, and their cache.
    fn prefill(
        &self,
        prepared: &Prepared,
        variants: &[Option<Arc<Intervention<B>>>],
    ) -> Result<(Vec<Vec<f32>>, KvCache<B>), Error> {
        let language = &self.lmm.net.language;
        let depth = language.depth();
        let mut cache = KvCache::new(depth);
        let in_tower = variants.iter().flatten().any(|variant| matches!(variant.hook, Hook::Vision(_)));
        let at = |variant: &Option<Arc<Intervention<B>>>| match variant.as_ref().map(|variant| variant.hook) {
            Some(Hook::Block(block)) => Some(block),
            _ => None,
        };
        let mut hooks: Vec<usize> = variants.iter().filter_map(at).collect();
        hooks.sort_unstable();
        hooks.dedup();
        // One row until the variants part: in the tower, or at the first hook point, where all rows are still alike.
        let mut alike = !in_tower;
        let (mut x, mut done) = if in_tower {
            cache.expand(variants.len());
            (self.embed_variants(prepared, variants)?, 0)
        } else {
            let parting = hooks.first().map_or(depth, |block| block + 1);
            let x = language.cached_forward(self.lmm.embed(prepared), &mut cache, 0..parting);
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
        Ok((self.logits(x.narrow(1, last, 1))?, cache))
    }

    /// Input embeddings of each variant, the tower run once up to each hook point: `[variants, tokens, d_model]`.
    fn embed_variants(
        &self,
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
                rows.push(self.lmm.embed(prepared));
                continue;
            };
            let hidden = match hidden_at.take() {
                Some((held, hidden)) if held == block => hidden,
                _ => self.lmm.vision_hidden(prepared, block)?,
            };
            let [tiles, positions, width] = hidden.dims();
            let kinds = vec![PositionKind::Prompt(SpanKind::Base); tiles * positions];
            let flat = hidden.clone().reshape([tiles * positions, width]).cast(DType::F32);
            let changed = intervention.apply(flat, 0, &kinds).reshape([tiles, positions, width]);
            rows.push(self.lmm.embed_from_vision(prepared, changed, block));
            hidden_at = Some((block, hidden));
        }
        Ok(Tensor::cat(rows, 0))
    }

    /// `[rows, 1, d_model]` to each row's logits, in f32 and finite.
    fn logits(&self, last: Tensor<B, 3>) -> Result<Vec<Vec<f32>>, Error> {
        let logits = self.lmm.net.language.logits(last);
        let vocabulary = logits.dims()[2];
        let values = f32_from_tensor(logits);
        Error::check_finite("the logits", &values)?;
        Ok(values.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect())
    }

    /// One token for every text. Those that end are reported and leave.
    ///
    /// # Errors
    /// A tokenizer that cannot decode; numbers that are not finite.
    pub fn step(&mut self) -> Result<Vec<(RowId, Step)>, Error> {
        let mut steps = Vec::new();
        let mut going = Vec::new();
        for (index, row) in self.rows.iter_mut().enumerate() {
            match row.next(self.lmm)? {
                Some(token) => steps.push((row.id, Step::Token(token))),
                None => row.room = 0,
            }
            if row.room == 0 {
                steps.push((row.id, Step::Ended(std::mem::take(&mut row.generation))));
            } else {
                going.push(index);
            }
        }
        self.keep(&going);
        self.forward()?;
        Ok(steps)
    }

    /// Ends a text early; nothing if it has ended already.
    pub fn leave(&mut self, id: RowId) {
        let staying: Vec<usize> = (0..self.rows.len()).filter(|&row| self.rows[row].id != id).collect();
        self.keep(&staying);
    }

    /// Keeps the rows at these places, which are in order.
    fn keep(&mut self, places: &[usize]) {
        if places.len() == self.rows.len() {
            return;
        }
        match &mut self.cache {
            Some(cache) if !places.is_empty() => cache.keep(places),
            cache => *cache = None,
        }
        let mut place = 0;
        self.rows.retain(|_| {
            place += 1;
            places.binary_search(&(place - 1)).is_ok()
        });
    }

    /// Logits after the token that each row has just got.
    fn forward(&mut self) -> Result<(), Error> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let language = &self.lmm.net.language;
        let last: Vec<u32> = self.rows.iter().filter_map(|row| row.ids.last().copied()).collect();
        let mut x = language.embed(self.lmm.ids(&last)).swap_dims(0, 1);
        let mut hooks: Vec<usize> = self.rows.iter().filter_map(Row::block).collect();
        hooks.sort_unstable();
        hooks.dedup();
        let positions: Vec<usize> = self.rows.iter().map(|row| row.position).collect();
        let mut done = 0;
        for block in hooks {
            x = language.cached_forward(x, cache, done..block + 1);
            done = block + 1;
            let rows: Vec<Option<&Intervention<B>>> = self.rows.iter().map(|row| row.intervention.as_deref()).collect();
            x = intervene(x, block, &rows, false, |intervention, row| {
                intervention.selected(positions[row], &[PositionKind::Generated])
            });
        }
        if done < language.depth() {
            x = language.cached_forward(x, cache, done..language.depth());
        }
        let logits = self.logits(x)?;
        for (row, logits) in self.rows.iter_mut().zip(logits) {
            row.logits = logits;
            row.position += 1;
        }
        Ok(())
    }
}

impl<B: Backend> Row<B> {
    fn block(&self) -> Option<usize> {
        match self.intervention.as_ref()?.hook {
            Hook::Block(block) => Some(block),
            Hook::Vision(_) => None,
        }
    }

    /// Picks the next token; `None` at a stop token or when there is no room.
    fn next(&mut self, lmm: &Lmm<B>) -> Result<Option<GeneratedToken>, Error> {
        if self.room == 0 {
            return Ok(None);
        }
        let Picked { id, logprob, alternatives } = pick(&self.logits, &self.options, &mut self.rng);
        if lmm.config.stop_tokens().contains(&id) {
            return Ok(None);
        }
        self.room -= 1;
        self.ids.push(id);
        let text = crate::generate::new_text(lmm, &self.ids, self.generation.text.len())?;
        self.generation.text.push_str(&text);
        let token = GeneratedToken { id, text, logprob, alternatives };
        self.generation.tokens.push(token.clone());
        Ok(Some(token))
    }
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
