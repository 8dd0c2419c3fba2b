//! Decoding of several texts at once: every weight that is read serves all of them.
//!
//! A request joins with one pass over its prompt and may leave at any step. Its variants (original, reconstructed,
//! steered) are rows of the same pass, and share everything up to the first hook point among them.
//!
//! What goes wrong with one request is not the others' matter. Numbers that are not finite end the text that they belong
//! to. A panic may leave anything in the cache: every request is then computed anew from its prompt and its tokens,
//! alone, and only the one that panics again ends.

mod forward;

use crate::Error;
use crate::generate::{GenerateOptions, GeneratedToken, Generation, Picked, pick};
use crate::hook::Hook;
use crate::intervention::Intervention;
use crate::llama::KvCache;
use crate::lmm::{Lmm, Prepared};
use burn::tensor::backend::Backend;
use forward::{Newest, go_on, prefill};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Names a text of a [`Batch`] for as long as it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowId(u64);

/// What a step did to one text.
#[derive(Debug)]
pub enum Step {
    Token(GeneratedToken),
    /// The text has ended, at a stop token or at its length, and its row is gone.
    Ended(Generation),
    /// The text cannot go on, and its row is gone: its numbers are not finite, or the model's code panicked over it.
    Failed(Error),
}

/// Texts that are generated together.
pub struct Batch<'a, B: Backend> {
    lmm: &'a Lmm<B>,
    rows: Vec<Row<B>>,
    /// One row for each text, in the same order; `None` while there are none.
    cache: Option<KvCache<B>>,
    next_id: u64,
    /// Texts that have failed and are not yet reported.
    failed: Vec<(RowId, Step)>,
}

struct Row<B: Backend> {
    id: RowId,
    /// First row of the request it belongs to.
    request: RowId,
    prepared: Arc<Prepared>,
    variant: Option<Arc<Intervention<B>>>,
    options: GenerateOptions,
    rng: ChaCha8Rng,
    /// Logits of the next token.
    logits: Vec<f32>,
    ids: Vec<u32>,
    /// Tokens of it that the cache holds, the prompt's among them.
    held: usize,
    generation: Generation,
    /// Bytes of the text that its tokens have told.
    told: usize,
    /// Tokens that may still come.
    room: usize,
}

impl<'a, B: Backend> Batch<'a, B> {
    pub fn new(lmm: &'a Lmm<B>) -> Self {
        Self { lmm, rows: Vec::new(), cache: None, next_id: 0, failed: Vec::new() }
    }

    /// Nothing runs, and nothing is left to report.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.failed.is_empty()
    }

    /// Texts that run.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Prefills the variants of one request and adds them; `None` is the model as it is. Their ids, in order.
    ///
    /// # Errors
    /// An intervention that names a feature, a position or a block that does not exist; numbers that are not finite.
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
        let (logits, cache) = prefill(self.lmm, prepared, variants)?;
        for (logits, variant) in logits.iter().zip(variants) {
            check_logits(variant.as_deref(), logits)?;
        }
        self.hold(cache);
        let (request, prepared) = (RowId(self.next_id), Arc::new(prepared.clone()));
        let mut ids = Vec::new();
        for (logits, variant) in logits.into_iter().zip(variants) {
            let id = RowId(self.next_id);
            self.next_id += 1;
            ids.push(id);
            self.rows.push(Row {
                id,
                request,
                prepared: Arc::clone(&prepared),
                variant: variant.clone(),
                options: options.clone(),
                rng: ChaCha8Rng::seed_from_u64(options.seed),
                logits,
                ids: Vec::new(),
                held: prepared.input_ids.len(),
                generation: Generation::default(),
                told: 0,
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
        self.lmm.check_positions(prepared, intervention.hook, &intervention.positions)
    }

    /// Adds rows at the end of the cache.
    fn hold(&mut self, cache: KvCache<B>) {
        match &mut self.cache {
            Some(held) => held.join(cache),
            None => self.cache = Some(cache),
        }
    }

    /// One token for every text. Those that end or fail are reported and leave.
    pub fn step(&mut self) -> Vec<(RowId, Step)> {
        let lmm = self.lmm;
        let mut steps = std::mem::take(&mut self.failed);
        let mut going = Vec::new();
        for (place, row) in self.rows.iter_mut().enumerate() {
            match guarded(|| row.next(lmm)) {
                Ok(token) => {
                    let ended = token.is_none() || row.room == 0;
                    steps.extend(token.map(|token| (row.id, Step::Token(token))));
                    if ended {
                        steps.push((row.id, guarded(|| row.end(lmm)).map_or_else(Step::Failed, Step::Ended)));
                    } else {
                        going.push(place);
                    }
                }
                Err(error) => steps.push((row.id, Step::Failed(error))),
            }
        }
        self.keep(&going);
        self.forward();
        steps.append(&mut self.failed);
        steps
    }

    /// Ends a text early; nothing if it has ended already.
    pub fn leave(&mut self, id: RowId) {
        let staying: Vec<usize> = (0..self.rows.len()).filter(|&row| self.rows[row].id != id).collect();
        self.keep(&staying);
        self.failed.retain(|(failed, _)| *failed != id);
    }

    /// Keeps the rows at these places, which are in order.
    fn keep(&mut self, places: &[usize]) {
        if places.len() == self.rows.len() {
            return;
        }
        let mut place = 0;
        self.rows.retain(|_| {
            place += 1;
            places.binary_search(&(place - 1)).is_ok()
        });
        if self.rows.is_empty() {
            self.cache = None;
        }
        let Some(cache) = &mut self.cache else { return };
        let kept = guarded(|| {
            cache.keep(places);
            Ok(())
        });
        if kept.is_err() {
            self.rebuild();
        }
    }

    /// Logits after the token that each row has just got.
    fn forward(&mut self) {
        let Some(cache) = &mut self.cache else { return };
        if self.rows.iter().all(Row::is_held) {
            // They have been computed anew in the meantime.
            return;
        }
        let (lmm, rows) = (self.lmm, &self.rows);
        let logits = guarded(|| {
            let newest: Vec<Newest<'_, B>> = rows.iter().filter_map(|row| row.newest(row.ids.len())).collect();
            Ok(go_on(lmm, cache, &newest))
        });
        match logits {
            Ok(logits) => {
                for (row, logits) in self.rows.iter_mut().zip(logits) {
                    row.logits = logits;
                    row.held += 1;
                }
                self.let_go_of_failed();
            }
            Err(_) => self.rebuild(),
        }
    }

    /// Ends the texts whose logits are no numbers.
    fn let_go_of_failed(&mut self) {
        let mut going = Vec::new();
        for (place, row) in self.rows.iter().enumerate() {
            match check_logits(row.variant.as_deref(), &row.logits) {
                Ok(()) => going.push(place),
                Err(error) => self.failed.push((row.id, Step::Failed(error))),
            }
        }
        self.keep(&going);
    }

    /// After a panic: computes every request anew, alone. Those that cannot be computed end.
    fn rebuild(&mut self) {
        self.cache = None;
        let mut left = std::mem::take(&mut self.rows);
        while let Some(request) = left.first().map(|row| row.request) {
            let (mut rows, others): (Vec<Row<B>>, Vec<Row<B>>) =
                left.into_iter().partition(|row| row.request == request);
            left = others;
            match guarded(|| self.revive(&mut rows)) {
                Ok(()) => self.rows.append(&mut rows),
                Err(error) => {
                    let reason = match error {
                        Error::Interrupted(reason) => reason,
                        other => other.to_string(),
                    };
                    let failed = |row: &Row<B>| (row.id, Step::Failed(Error::Interrupted(reason.clone())));
                    self.failed.extend(rows.iter().map(failed));
                }
            }
        }
        self.let_go_of_failed();
    }

    /// Computes the texts of one request up to their newest token and adds them to the cache.
    fn revive(&mut self, rows: &mut [Row<B>]) -> Result<(), Error> {
        let Some(first) = rows.first() else { return Ok(()) };
        let variants: Vec<Option<Arc<Intervention<B>>>> = rows.iter().map(|row| row.variant.clone()).collect();
        let (mut logits, mut cache) = prefill(self.lmm, &first.prepared, &variants)?;
        // Texts of one request get their tokens in the same steps.
        for count in 1..=first.ids.len() {
            let newest: Vec<Newest<'_, B>> = rows.iter().filter_map(|row| row.newest(count)).collect();
            logits = go_on(self.lmm, &mut cache, &newest);
        }
        self.hold(cache);
        for (row, logits) in rows.iter_mut().zip(logits) {
            row.logits = logits;
            row.held = row.prepared.input_ids.len() + row.ids.len();
        }
        Ok(())
    }
}

/// Makes a panic an error of what panicked.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Error::from_panic(panic.as_ref())))
}

/// Fails if the logits are not finite: through what the request changes, or through the model itself.
fn check_logits<B: Backend>(variant: Option<&Intervention<B>>, logits: &[f32]) -> Result<(), Error> {
    let checked = Error::check_finite("the logits", logits);
    match variant {
        Some(variant) if !variant.edits.is_empty() => {
            checked.map_err(|_| Error::Overflow { what: "the logits".to_string() })
        }
        _ => checked,
    }
}

impl<B: Backend> Row<B> {
    /// True if the cache holds all its tokens.
    fn is_held(&self) -> bool {
        self.held == self.prepared.input_ids.len() + self.ids.len()
    }

    /// The `count`th generated token, counted from 1.
    fn newest(&self, count: usize) -> Option<Newest<'_, B>> {
        let place = count.checked_sub(1)?;
        Some(Newest {
            token: *self.ids.get(place)?,
            position: self.prepared.input_ids.len() + place,
            intervention: self.variant.as_deref().filter(|variant| matches!(variant.hook, Hook::Block(_))),
        })
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
        let (text, told) = lmm.new_text(&self.ids, self.told, self.room == 0)?;
        self.told = told;
        let token = GeneratedToken { id, text, logprob, alternatives };
        self.generation.tokens.push(token.clone());
        Ok(Some(token))
    }

    /// The whole text. What no token has told, because it ended inside a character, is the last one's.
    fn end(&mut self, lmm: &Lmm<B>) -> Result<Generation, Error> {
        let (rest, told) = lmm.new_text(&self.ids, self.told, true)?;
        self.told = told;
        let mut generation = std::mem::take(&mut self.generation);
        if let Some(last) = generation.tokens.last_mut() {
            last.text.push_str(&rest);
        }
        generation.text = lmm.decode(&self.ids)?;
        Ok(generation)
    }
}
