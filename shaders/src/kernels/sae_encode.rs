//! Host code of the TopK SAE encoder (`wgsl/sae_encode.wgsl` and `wgsl/sae_select.wgsl`).
//!
//! The weights lie on the GPU in shards that fit one binding. An encode walks over batches of tokens and, within, over
//! tiles of latents in rising order, each one submission: multiply and append what passes the row's threshold. Whenever
//! the latents have doubled, the k largest are kept and the threshold rises; about as many pass it until then. Memory
//! is bounded by the plan, not by `latents`; a tile is as large as the measured speed allows ([`Pace`]).

use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use web_time::Instant;
use wgpu::{Buffer, ComputePipeline};

use super::TileParams;
use super::sae_select::SaeSelect;
use crate::error::check_len;
use crate::gpu::{Dispatch, Gpu, Submitted};
use crate::pace::{Pace, Paced};
use crate::tile_shape::{MAX_TILE_LATENTS, Speeds, TILE_SHAPES};
use crate::{Cancel, Error, SaeShape, TopK, WeightType};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/sae_encode.wgsl"));

/// Most tokens in a batch.
const BATCH_TOKENS: u64 = 1024;
/// Runs of a shape in a probe.
const PROBE_ROUNDS: u32 = 4;
/// Workgroups of a dispatch in one dimension: the default limit.
const MAX_GROUPS: u32 = 65_535;
/// Bytes of a batch's survivors.
const SURVIVOR_BYTES: u64 = 64 << 20;

/// How the work is cut. Every plan gives the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Latents in one buffer of weights.
    pub shard_latents: u32,
    /// Most latents between two selections, hence also in one submission.
    pub tile_latents: u32,
    /// Most tokens in one pass over the weights.
    pub batch_tokens: u32,
}

impl Plan {
    /// The largest pieces that stay within `max_binding_bytes`.
    ///
    /// # Errors
    /// [`Error::Size`] if even the smallest piece of weights is too large.
    pub fn new(shape: SaeShape, weight_type: WeightType, max_binding_bytes: u64) -> Result<Self, Error> {
        let grain = u64::from(MAX_TILE_LATENTS);
        let shard = max_binding_bytes / weight_type.row_bytes(shape.d_model) / grain * grain;
        if shard == 0 {
            let expected = format!("small enough for {grain} latents in {max_binding_bytes} bytes");
            return Err(Error::Size { what: "d_model", given: shape.d_model.into(), expected });
        }
        let batch = BATCH_TOKENS.min(max_binding_bytes / (4 * u64::from(weight_type.width(shape.d_model)))).max(1);
        let all = u64::from(shape.latents).next_multiple_of(grain);
        let shard_latents = shard.min(all) as u32;
        // Both are at most `all` or `BATCH_TOKENS`.
        Ok(Self { shard_latents, tile_latents: shard_latents, batch_tokens: batch as u32 })
    }
}

/// One buffer of weights, and in int4 one of their scales.
struct Shard {
    latents: Range<u32>,
    weights: Buffer,
    scales: Option<Buffer>,
}

/// A TopK SAE's encoder on the GPU: `z = TopK_k(ReLU((x - b_dec) W_encᵀ + b_enc))`.
///
/// Created empty; the weights are written piece by piece, so that they never need to be in memory at once.
pub struct SaeEncode {
    shape: SaeShape,
    plan: Plan,
    weight_type: WeightType,
    shards: Vec<Shard>,
    /// int8: `[latents]`. Else one word that nobody reads.
    row_scales: Buffer,
    b_enc: Buffer,
    /// `[d_model]`
    b_dec: Vec<f32>,
    /// Of [`TILE_SHAPES`], compiled when first used.
    pipelines: [OnceLock<ComputePipeline>; TILE_SHAPES.len()],
    select: SaeSelect,
    speeds: Speeds,
    pace: Cell<Pace>,
}

impl SaeEncode {
    /// Room for the weights (all zero), and the compiled kernels.
    ///
    /// # Errors
    /// [`Error::Size`] if the SAE does not fit the device's limits.
    pub fn new(gpu: &Gpu, shape: SaeShape, weight_type: WeightType) -> Result<Self, Error> {
        let plan = Plan::new(shape, weight_type, gpu.max_binding_bytes())?;
        Ok(Self::with_plan(gpu, shape, weight_type, plan))
    }

    /// As [`Self::new`], cut as `plan` says.
    #[must_use]
    pub fn with_plan(gpu: &Gpu, shape: SaeShape, weight_type: WeightType, plan: Plan) -> Self {
        let bytes = |rows: u32, row_bytes: u64| u64::from(rows) * row_bytes;
        let shard = |first: u32| {
            let latents = first..first.saturating_add(plan.shard_latents).min(shape.latents);
            let rows = latents.end - latents.start;
            let weights = gpu.storage("sae encoder.weight", bytes(rows, weight_type.row_bytes(shape.d_model)));
            let scales = (weight_type == WeightType::Int4)
                .then(|| gpu.storage("sae scales", bytes(rows, weight_type.scale_bytes(shape.d_model))));
            Shard { latents, weights, scales }
        };
        let row_scales = if weight_type == WeightType::Int8 { shape.latents } else { 1 };
        Self {
            shape,
            plan,
            weight_type,
            shards: (0..shape.latents).step_by(plan.shard_latents as usize).map(shard).collect(),
            row_scales: gpu.storage("sae row scales", bytes(row_scales, 4)),
            b_enc: gpu.storage("sae encoder.bias", bytes(shape.latents, 4)),
            b_dec: vec![0.0; shape.d_model as usize],
            pipelines: Default::default(),
            select: SaeSelect::default(),
            speeds: Speeds::default(),
            pace: Cell::default(),
        }
    }

    #[must_use]
    pub fn shape(&self) -> SaeShape {
        self.shape
    }

    #[must_use]
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// Bytes of the whole weight matrix `[latents, width]`, as [`Self::write_rows`] takes them.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        u64::from(self.shape.latents) * self.weight_type.row_bytes(self.shape.d_model)
    }

    /// Writes a piece of the packed, row-major weights `[latents, width]` that starts at the byte `offset`.
    ///
    /// # Errors
    /// [`Error::Size`] if the piece leaves the matrix, or does not begin and end on whole words.
    pub fn write_rows(&self, gpu: &Gpu, offset: u64, piece: &[u8]) -> Result<(), Error> {
        check_piece("weights", offset, piece, self.row_bytes())?;
        self.write_sharded(gpu, self.weight_type.row_bytes(self.shape.d_model), offset, piece, |shard| {
            Some(&shard.weights)
        });
        Ok(())
    }

    /// Writes a piece of the scales: f32 `[latents]` in int8, f16 `[latents, width / 32]` in int4.
    ///
    /// # Errors
    /// [`Error::Size`] if the piece leaves the scales, or does not begin on a whole word, or ends within one that is
    /// not the last.
    pub fn write_scales(&self, gpu: &Gpu, offset: u64, piece: &[u8]) -> Result<(), Error> {
        let row_bytes = self.weight_type.scale_bytes(self.shape.d_model);
        check_piece("scales", offset, piece, u64::from(self.shape.latents) * row_bytes)?;
        if self.weight_type == WeightType::Int8 {
            gpu.write(&self.row_scales, offset, piece);
        } else {
            self.write_sharded(gpu, row_bytes, offset, piece, |shard| shard.scales.as_ref());
        }
        Ok(())
    }

    fn write_sharded(
        &self,
        gpu: &Gpu,
        row_bytes: u64,
        offset: u64,
        piece: &[u8],
        buffer: impl Fn(&Shard) -> Option<&Buffer>,
    ) {
        let end = offset + piece.len() as u64;
        for shard in &self.shards {
            let first = u64::from(shard.latents.start) * row_bytes;
            let (start, stop) = (offset.max(first), end.min(u64::from(shard.latents.end) * row_bytes));
            if let (Some(buffer), true) = (buffer(shard), start < stop) {
                // Both are within `piece`.
                let part = &piece[(start - offset) as usize..(stop - offset) as usize];
                write_words(gpu, buffer, start - first, part);
            }
        }
    }

    /// Writes `b_enc` `[latents]` and `b_dec` `[d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`].
    pub fn write_biases(&mut self, gpu: &Gpu, b_enc: &[f32], b_dec: &[f32]) -> Result<(), Error> {
        check_len("b_enc [latents]", b_enc.len(), self.shape.latents as usize)?;
        check_len("b_dec [d_model]", b_dec.len(), self.shape.d_model as usize)?;
        gpu.write(&self.b_enc, 0, bytemuck::cast_slice(b_enc));
        self.b_dec = b_dec.to_vec();
        Ok(())
    }

    /// Uses these speeds from now on: those of an earlier [`Self::probe`] on the same adapter.
    pub fn set_speeds(&mut self, speeds: Speeds) {
        self.speeds = speeds;
    }

    /// Goes on with this pace.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = Cell::new(pace);
    }

    /// Times every shape on the first shard, and uses the fastest from now on.
    ///
    /// Shapes take turns: a GPU's clock rises while it works, and the first would seem slow.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [`Error::Gpu`], [`Error::Lost`], [`Error::OutOfMemory`].
    pub async fn probe(&mut self, gpu: &Gpu, cancel: &Cancel) -> Result<Speeds, Error> {
        let mut speeds = Speeds([f32::INFINITY; TILE_SHAPES.len()]);
        // The first round compiles. Few latents then, the pace's share after.
        for round in 0..PROBE_ROUNDS {
            for (at, shape) in TILE_SHAPES.iter().enumerate() {
                cancel.check()?;
                let batch = Batch::new(gpu, self, &vec![0.0; (shape.tokens() * self.width()) as usize], shape.tokens());
                let most = if round == 0 { MAX_TILE_LATENTS } else { self.tile_latents(shape.tokens(), at) };
                let latents = 0..most.min(batch.tile_latents).min(self.shards[0].latents.end);
                let work = self.work(shape.tokens(), latents.len() as u32);
                let start = Instant::now();
                gpu.wait(self.submit_tile(gpu, &batch, &self.shards[0], latents, at, true)).await?;
                let took = start.elapsed().as_secs_f64();
                if round > 0 {
                    speeds.0[at] = speeds.0[at].min((took / work) as f32);
                    self.measured(work, took);
                }
            }
        }
        self.speeds = speeds;
        Ok(speeds)
    }

    /// The k largest activations of each token of `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NotFinite`], [`Error::Cancelled`]; [`Error::Gpu`], [`Error::Lost`],
    /// [`Error::OutOfMemory`].
    pub async fn encode(&self, gpu: &Gpu, hidden: &[f32], tokens: u32, cancel: &Cancel) -> Result<TopK, Error> {
        self.shape.check_hidden(hidden, tokens)?;
        let d_model = self.shape.d_model as usize;
        let mut top = TopK::empty(self.shape.k);
        while top.tokens < tokens {
            let first = top.tokens;
            let count = self.batch_tokens().min(tokens - first);
            let rows = &hidden[first as usize * d_model..(first + count) as usize * d_model];
            let centred = crate::cpu::sae_encode::centred(rows, &self.b_dec, self.width() as usize);
            let batch = Batch::new(gpu, self, &centred, count);
            let content = self.encode_batch(gpu, &batch, cancel).await?;
            let (indices, acts) = content.split_at(content.len() / 2);
            top.tokens += count;
            top.top_indices.extend(bytemuck::pod_collect_to_vec::<u8, u32>(indices));
            top.top_acts.extend(bytemuck::pod_collect_to_vec::<u8, f32>(acts));
        }
        Ok(top)
    }

    /// One pass over the weights: the batch's `top`.
    async fn encode_batch(&self, gpu: &Gpu, batch: &Batch, cancel: &Cancel) -> Result<Vec<u8>, Error> {
        let at = self.speeds.fastest(batch.tokens);
        let rows = batch.tokens.next_multiple_of(TILE_SHAPES[at].tokens());
        let mut paced = Paced::new(gpu, &self.pace, cancel);
        // Latents up to the last selection, and those since then.
        let (mut selected, mut waiting) = (0, 0);
        for shard in &self.shards {
            let mut first = shard.latents.start;
            while first < shard.latents.end {
                cancel.check()?;
                let room = batch.tile_latents - waiting;
                let end = first.saturating_add(self.tile_latents(rows, at).min(room)).min(shard.latents.end);
                waiting += end - first;
                let is_full = batch.tile_latents - waiting < TILE_SHAPES[at].latents();
                let select = is_full || waiting >= selected || end == self.shape.latents;
                let submitted = self.submit_tile(gpu, batch, shard, first..end, at, select);
                paced.submitted(submitted, self.work(rows, end - first)).await?;
                if select {
                    (selected, waiting) = (selected + waiting, 0);
                }
                first = end;
            }
        }
        paced.read(&batch.top, 8 * u64::from(batch.tokens) * u64::from(self.shape.k)).await
    }

    /// Multiplies one tile of latents, and selects what is kept of all so far.
    fn submit_tile(
        &self,
        gpu: &Gpu,
        batch: &Batch,
        shard: &Shard,
        latents: Range<u32>,
        at: usize,
        select: bool,
    ) -> Submitted {
        let tile = TILE_SHAPES[at];
        let params = TileParams {
            tokens: batch.tokens,
            width: self.width(),
            first_latent: latents.start,
            end_latent: latents.end,
            shard_latent: shard.latents.start,
            row_capacity: self.shape.k + batch.tile_latents,
            k: self.shape.k,
            last_tile: u32::from(latents.end == self.shape.latents),
        };
        let params_buffer = gpu.uniform("sae tile", bytemuck::bytes_of(&params));
        let params = &params_buffer;
        let compile =
            || gpu.pipeline(&format!("sae_encode shape {at}"), &tile.source(self.weight_type), tile.entry_point());
        let encode = Dispatch {
            pipeline: self.pipelines[at].get_or_init(compile),
            bindings: &[
                (0, params),
                (1, &batch.centred),
                (2, &shard.weights),
                (3, shard.scales.as_ref().unwrap_or(&self.row_scales)),
                (4, &self.b_enc),
                (5, &batch.thresholds),
                (6, &batch.counts),
                (7, &batch.survivors),
            ],
            groups: [(latents.len() as u32).div_ceil(tile.latents()), batch.tokens.div_ceil(tile.tokens())],
        };
        let select_bindings =
            [(0, params), (1, &batch.survivors), (2, &batch.counts), (3, &batch.thresholds), (4, &batch.top)];
        let dispatches = [encode, self.select.dispatch(gpu, tile.waits_for_nobody(), batch.tokens, &select_bindings)];
        let submitted = gpu.submit("sae tile", &dispatches[..if select { 2 } else { 1 }]);
        params_buffer.destroy();
        submitted
    }

    /// Channels of a stored row.
    fn width(&self) -> u32 {
        self.weight_type.width(self.shape.d_model)
    }

    /// Multiply-adds.
    fn work(&self, tokens: u32, latents: u32) -> f64 {
        f64::from(tokens) * f64::from(latents) * f64::from(self.width())
    }

    fn measured(&self, work: f64, seconds: f64) {
        let mut pace = self.pace.get();
        pace.measured(work, seconds);
        self.pace.set(pace);
    }

    /// Tokens of the next batch: as many as may pass one workgroup's latents in one submission. Whole workgroups: fewer
    /// tokens would leave threads idle, or take a shape that reads more for each product.
    fn batch_tokens(&self) -> u32 {
        let tile = TILE_SHAPES[self.speeds.fastest(self.plan.batch_tokens)];
        let groups = (self.pace.get().next_work() / self.work(tile.tokens(), tile.latents())) as u32;
        groups.max(1).saturating_mul(tile.tokens()).min(self.plan.batch_tokens)
    }

    /// Latents of the next tile in one of [`TILE_SHAPES`], for as many tokens as its workgroups have: whole workgroups,
    /// and no more than one dispatch may have.
    fn tile_latents(&self, tokens: u32, at: usize) -> u32 {
        let latents = TILE_SHAPES[at].latents();
        let groups = (self.pace.get().next_work() / self.work(tokens, latents)) as u32;
        groups.clamp(1, MAX_GROUPS) * latents
    }
}

/// Buffers of one pass over the weights.
struct Batch {
    tokens: u32,
    /// Most latents between two selections: a row has room for them and the k that were kept.
    tile_latents: u32,
    centred: Buffer,
    thresholds: Buffer,
    counts: Buffer,
    survivors: Buffer,
    top: Buffer,
}

impl Batch {
    /// `centred`: `[tokens, width]`.
    fn new(gpu: &Gpu, sae: &SaeEncode, centred: &[f32], tokens: u32) -> Self {
        let (rows, k) = (u64::from(tokens), u64::from(sae.shape.k));
        let by_memory = (SURVIVOR_BYTES / (8 * rows)).saturating_sub(k).max(u64::from(MAX_TILE_LATENTS));
        let tile_latents = by_memory.min(u64::from(sae.plan.tile_latents.min(sae.plan.shard_latents)));
        Self {
            tokens,
            // At most a shard.
            tile_latents: tile_latents as u32,
            centred: gpu.storage_from("sae centred", bytemuck::cast_slice(centred)),
            thresholds: gpu.storage("sae thresholds", 4 * rows),
            counts: gpu.storage("sae counts", 4 * rows),
            survivors: gpu.storage("sae survivors", 8 * rows * (k + tile_latents)),
            top: gpu.storage("sae top", 8 * rows * k),
        }
    }
}

impl Drop for Batch {
    /// Frees the memory now; a browser would wait for its garbage collector.
    fn drop(&mut self) {
        for buffer in [&self.centred, &self.thresholds, &self.counts, &self.survivors, &self.top] {
            buffer.destroy();
        }
    }
}

/// A piece lies within `total` bytes, and on whole words but for the end.
fn check_piece(what: &'static str, offset: u64, piece: &[u8], total: u64) -> Result<(), Error> {
    let end = offset.saturating_add(piece.len() as u64);
    if end > total {
        return Err(Error::Size { what, given: end, expected: format!("bytes up to {total}") });
    }
    if !offset.is_multiple_of(4) || (!end.is_multiple_of(4) && end != total) {
        let expected = "pieces on whole words".to_owned();
        return Err(Error::Size { what, given: offset, expected });
    }
    Ok(())
}

/// Writes bytes that may end within a word; the rest of that word becomes 0.
fn write_words(gpu: &Gpu, buffer: &Buffer, offset: u64, bytes: &[u8]) {
    let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
    if !words.is_empty() {
        gpu.write(buffer, offset, words);
    }
    if !rest.is_empty() {
        let mut word = [0; 4];
        word[..rest.len()].copy_from_slice(rest);
        gpu.write(buffer, offset + words.len() as u64, &word);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    const DEFAULT_BINDING: u64 = 128 << 20;

    #[test]
    fn shards_of_the_reference_sae_divide_as_designed() {
        let shape = SaeShape::new(4096, 131_072, 256).unwrap();
        let shard = |weight_type| Plan::new(shape, weight_type, DEFAULT_BINDING).unwrap().shard_latents;
        assert_eq!(WeightType::ALL.map(shard), [8_192, 16_384, 32_768, 65_536]);
    }

    #[test]
    fn a_plan_stays_within_the_default_limits() {
        for (d_model, latents, k) in [(1, 1, 1), (192, 3_072, 32), (4_096, 65_536, 256), (8_192, 131_072, 1024)] {
            let shape = SaeShape::new(d_model, latents, k).unwrap();
            for weight_type in WeightType::ALL {
                let plan = Plan::new(shape, weight_type, DEFAULT_BINDING).unwrap();
                let (batch, shard) = (u64::from(plan.batch_tokens), u64::from(plan.shard_latents));
                assert!(shard * weight_type.row_bytes(d_model) <= DEFAULT_BINDING);
                assert!(shard * weight_type.scale_bytes(d_model) <= DEFAULT_BINDING);
                assert!(batch * u64::from(weight_type.width(d_model)) * 4 <= DEFAULT_BINDING);
                assert!(batch * u64::from(MAX_TILE_LATENTS + k) * 8 <= DEFAULT_BINDING);
            }
        }
    }

    #[test]
    fn a_row_too_long_for_a_binding_is_refused() {
        let shape = SaeShape::new(1 << 20, 64, 1).unwrap();
        assert!(matches!(
            Plan::new(shape, WeightType::F32, DEFAULT_BINDING),
            Err(Error::Size { what: "d_model", given: 1_048_576, .. })
        ));
    }
}
