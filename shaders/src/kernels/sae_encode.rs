//! Host code of the TopK SAE encoder (`wgsl/sae_encode.wgsl` and `wgsl/sae_select.wgsl`).
//!
//! The weights lie on the GPU in shards that fit one binding. An encode walks over batches of tokens and, within, over
//! tiles of latents in rising order; each tile is one submission of two kernels: multiply and append what passes the
//! row's threshold, then keep the k largest and raise the threshold. Memory is bounded by the tile, not by `latents`.

use wgpu::{Buffer, ComputePipeline};

use super::TileParams;
use super::sae_select::SaeSelect;
use crate::error::check_len;
use crate::gpu::{Dispatch, Gpu};
use crate::source::{constant, with_constant};
use crate::{Error, SaeShape, TopK, WeightType};

pub const WGSL: &str = include_str!("../../wgsl/sae_encode.wgsl");

/// Most tokens in a batch.
const BATCH_TOKENS: u64 = 1024;
/// Bytes of a batch's survivors.
const SURVIVOR_BYTES: u64 = 64 << 20;
/// Arithmetic of one submission: about 0.1 s at 300 GFLOP/s, far below the 2 s after which Windows resets a GPU.
const TILE_FLOP: u64 = 1 << 35;

/// How the work is cut. Every plan gives the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Latents in one buffer of weights.
    pub shard_latents: u32,
    /// Latents in one submission.
    pub tile_latents: u32,
    /// Tokens in one pass over the weights.
    pub batch_tokens: u32,
}

impl Plan {
    /// The largest pieces that stay within `max_binding_bytes` and the time one submission may take.
    ///
    /// # Errors
    /// [`Error::Size`] if even the smallest piece of weights is too large.
    pub fn new(shape: SaeShape, weight_type: WeightType, max_binding_bytes: u64) -> Result<Self, Error> {
        let grain = u64::from(constant(WGSL, "TILE_LATENTS"));
        let d_model = u64::from(shape.d_model);
        let shard = max_binding_bytes / (d_model * weight_type.bytes()) / grain * grain;
        if shard == 0 {
            let expected = format!("small enough for {grain} latents in {max_binding_bytes} bytes");
            return Err(Error::Size { what: "d_model", given: d_model, expected });
        }
        let batch = BATCH_TOKENS.min(max_binding_bytes / (4 * d_model)).max(1);
        let by_memory = SURVIVOR_BYTES.min(max_binding_bytes) / (8 * batch) - u64::from(shape.k);
        let by_time = TILE_FLOP / (2 * batch * d_model);
        let tile = (by_memory.min(by_time) / grain * grain).clamp(grain, shard);
        let all = u64::from(shape.latents).next_multiple_of(grain);
        // All are at most `all` or `BATCH_TOKENS`.
        Ok(Self {
            shard_latents: shard.min(all) as u32,
            tile_latents: tile.min(all) as u32,
            batch_tokens: batch as u32,
        })
    }
}

/// One buffer of weights.
struct Shard {
    first_latent: u32,
    end_latent: u32,
    weights: Buffer,
}

/// `sae_encode.wgsl` compiled for one number of tokens per thread.
struct Variant {
    tile_tokens: u32,
    pipeline: ComputePipeline,
}

/// A TopK SAE's encoder on the GPU: `z = TopK_k(ReLU((x - b_dec) W_encᵀ + b_enc))`.
///
/// Created empty; the weights are written piece by piece, so that they never need to be in memory at once.
pub struct SaeEncode {
    shape: SaeShape,
    plan: Plan,
    weight_type: WeightType,
    shards: Vec<Shard>,
    b_enc: Buffer,
    b_dec: Buffer,
    /// By rising number of tokens.
    variants: Vec<Variant>,
    select: SaeSelect,
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
        let row_bytes = u64::from(shape.d_model) * weight_type.bytes();
        let shards = (0..shape.latents)
            .step_by(plan.shard_latents as usize)
            .map(|first_latent| {
                let end_latent = first_latent.saturating_add(plan.shard_latents).min(shape.latents);
                let weights = gpu.storage("sae encoder.weight", u64::from(end_latent - first_latent) * row_bytes);
                Shard { first_latent, end_latent, weights }
            })
            .collect();
        Self {
            shape,
            plan,
            weight_type,
            shards,
            b_enc: gpu.storage("sae encoder.bias", 4 * u64::from(shape.latents)),
            b_dec: gpu.storage("sae b_dec", 4 * u64::from(shape.d_model)),
            variants: [1, 2, 4].map(|tokens_per_thread| Variant::new(gpu, weight_type, tokens_per_thread)).into(),
            select: SaeSelect::new(gpu),
        }
    }

    #[must_use]
    pub fn shape(&self) -> SaeShape {
        self.shape
    }

    /// Bytes of the whole weight matrix `[latents, d_model]`, as [`Self::write_weights`] takes them.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.shape.weights() as u64 * self.weight_type.bytes()
    }

    /// Writes a piece of the little-endian, row-major weight matrix that starts at the byte `offset`.
    ///
    /// # Errors
    /// [`Error::Size`] if the piece leaves the matrix, or does not begin and end on whole words (only the last piece
    /// may end within one).
    pub fn write_weights(&self, gpu: &Gpu, offset: u64, piece: &[u8]) -> Result<(), Error> {
        let (total, end) = (self.weight_bytes(), offset + piece.len() as u64);
        if end > total {
            return Err(Error::Size { what: "end of the weights", given: end, expected: format!("at most {total}") });
        }
        if !offset.is_multiple_of(4) || (!end.is_multiple_of(4) && end != total) {
            let expected = "a multiple of 4, or the end of the weights".to_owned();
            return Err(Error::Size { what: "offset of the weights", given: offset, expected });
        }
        let row_bytes = u64::from(self.shape.d_model) * self.weight_type.bytes();
        for shard in &self.shards {
            let shard_start = u64::from(shard.first_latent) * row_bytes;
            let start = offset.max(shard_start);
            let stop = end.min(u64::from(shard.end_latent) * row_bytes);
            if start < stop {
                // Both are within `piece`.
                let part = &piece[(start - offset) as usize..(stop - offset) as usize];
                write_words(gpu, &shard.weights, start - shard_start, part);
            }
        }
        Ok(())
    }

    /// Writes `b_enc` `[latents]` and `b_dec` `[d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`].
    pub fn write_biases(&self, gpu: &Gpu, b_enc: &[f32], b_dec: &[f32]) -> Result<(), Error> {
        check_len("b_enc [latents]", b_enc.len(), self.shape.latents as usize)?;
        check_len("b_dec [d_model]", b_dec.len(), self.shape.d_model as usize)?;
        gpu.write(&self.b_enc, 0, bytemuck::cast_slice(b_enc));
        gpu.write(&self.b_dec, 0, bytemuck::cast_slice(b_dec));
        Ok(())
    }

    /// The k largest activations of each token of `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NotFinite`]; [`Error::Gpu`], [`Error::Lost`].
    pub async fn encode(&self, gpu: &Gpu, hidden: &[f32], tokens: u32) -> Result<TopK, Error> {
        self.shape.check_hidden(hidden, tokens)?;
        let mut top = TopK::empty(self.shape.k);
        let batch_values = self.plan.batch_tokens as usize * self.shape.d_model as usize;
        for batch in hidden.chunks(batch_values) {
            self.encode_batch(gpu, batch, &mut top).await?;
        }
        Ok(top)
    }

    /// One pass over the weights; appends to `top`.
    async fn encode_batch(&self, gpu: &Gpu, hidden: &[f32], top: &mut TopK) -> Result<(), Error> {
        // At most `batch_tokens`.
        let tokens = (hidden.len() / self.shape.d_model as usize) as u32;
        let batch = Batch::new(gpu, self, hidden, tokens);
        for shard in &self.shards {
            for first_latent in (shard.first_latent..shard.end_latent).step_by(self.plan.tile_latents as usize) {
                let end_latent = first_latent.saturating_add(self.plan.tile_latents).min(shard.end_latent);
                self.submit_tile(gpu, &batch, shard, first_latent..end_latent);
            }
        }
        let values = tokens as usize * self.shape.k as usize;
        let content = gpu.read(&batch.top, 8 * values as u64).await?;
        batch.destroy();
        let (indices, acts) = content.split_at(4 * values);
        top.tokens += tokens;
        top.top_indices.extend(bytemuck::pod_collect_to_vec::<u8, u32>(indices));
        top.top_acts.extend(bytemuck::pod_collect_to_vec::<u8, f32>(acts));
        Ok(())
    }

    /// Multiplies one tile of latents and selects.
    fn submit_tile(&self, gpu: &Gpu, batch: &Batch, shard: &Shard, latents: std::ops::Range<u32>) {
        let variant = self.variant(batch.tokens);
        let tile_latents = constant(WGSL, "TILE_LATENTS");
        let params = TileParams {
            tokens: batch.tokens,
            d_model: self.shape.d_model,
            first_latent: latents.start,
            end_latent: latents.end,
            shard_latent: shard.first_latent,
            row_capacity: self.row_capacity(),
            k: self.shape.k,
            last_tile: u32::from(latents.end == self.shape.latents),
        };
        let params = gpu.uniform("sae tile", bytemuck::bytes_of(&params));
        let encode = Dispatch {
            pipeline: &variant.pipeline,
            bindings: &[
                (0, &params),
                (1, &batch.hidden),
                (2, &self.b_dec),
                (3, &shard.weights),
                (4, &self.b_enc),
                (5, &batch.thresholds),
                (6, &batch.counts),
                (7, &batch.survivors),
            ],
            groups: [latents.len().div_ceil(tile_latents as usize) as u32, batch.tokens.div_ceil(variant.tile_tokens)],
        };
        let select_bindings =
            [(0, &params), (1, &batch.survivors), (2, &batch.counts), (3, &batch.thresholds), (4, &batch.top)];
        gpu.submit("sae tile", &[encode, self.select.dispatch(batch.tokens, &select_bindings)]);
    }

    /// Survivors a row has room for: those it kept and one whole tile.
    fn row_capacity(&self) -> u32 {
        self.shape.k + self.plan.tile_latents
    }

    /// The variant that computes least beyond `tokens`. Fewer tokens per thread reuse less of what they load: one that
    /// loads twice as much is worth it only if it computes clearly less.
    fn variant(&self, tokens: u32) -> &Variant {
        let cost = |variant: &Variant| {
            let computed = u64::from(tokens.next_multiple_of(variant.tile_tokens));
            computed * (8 + u64::from(4 * self.variants[0].tile_tokens / variant.tile_tokens))
        };
        let mut best = &self.variants[0];
        for variant in &self.variants[1..] {
            if cost(variant) <= cost(best) {
                best = variant;
            }
        }
        best
    }
}

impl Variant {
    fn new(gpu: &Gpu, weight_type: WeightType, tokens_per_thread: u32) -> Self {
        let source = variant_source(weight_type, tokens_per_thread);
        Self {
            tile_tokens: constant(WGSL, "SIDE") * tokens_per_thread,
            pipeline: gpu.pipeline(&format!("sae_encode {tokens_per_thread} tokens per thread"), &source, "main"),
        }
    }
}

/// `sae_encode.wgsl` with its `// host:` lines filled in.
#[must_use]
pub fn variant_source(weight_type: WeightType, tokens_per_thread: u32) -> String {
    let source = with_constant(WGSL, "WEIGHTS_F16", &(weight_type == WeightType::F16).to_string());
    with_constant(&source, "TOKENS_PER_THREAD", &tokens_per_thread.to_string())
}

/// Buffers of one pass over the weights.
struct Batch {
    tokens: u32,
    hidden: Buffer,
    thresholds: Buffer,
    counts: Buffer,
    survivors: Buffer,
    top: Buffer,
}

impl Batch {
    fn new(gpu: &Gpu, sae: &SaeEncode, hidden: &[f32], tokens: u32) -> Self {
        let rows = u64::from(tokens);
        Self {
            tokens,
            hidden: gpu.storage_from("sae hidden", bytemuck::cast_slice(hidden)),
            thresholds: gpu.storage("sae thresholds", 4 * rows),
            counts: gpu.storage("sae counts", 4 * rows),
            survivors: gpu.storage("sae survivors", 8 * rows * u64::from(sae.row_capacity())),
            top: gpu.storage("sae top", 8 * rows * u64::from(sae.shape.k)),
        }
    }

    /// Frees the memory now; a browser would wait for its garbage collector.
    fn destroy(&self) {
        for buffer in [&self.hidden, &self.thresholds, &self.counts, &self.survivors, &self.top] {
            buffer.destroy();
        }
    }
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
        let shape = SaeShape::new(4096, 65_536, 256).unwrap();
        let f32s = Plan::new(shape, WeightType::F32, DEFAULT_BINDING).unwrap();
        let f16s = Plan::new(shape, WeightType::F16, DEFAULT_BINDING).unwrap();
        assert_eq!((f32s.shard_latents, f16s.shard_latents), (8_192, 16_384));
    }

    #[test]
    fn a_plan_stays_within_the_default_limits() {
        for (d_model, latents, k) in [(1, 1, 1), (192, 3_072, 32), (4_096, 65_536, 256), (8_192, 131_072, 256)] {
            let shape = SaeShape::new(d_model, latents, k).unwrap();
            let plan = Plan::new(shape, WeightType::F32, DEFAULT_BINDING).unwrap();
            let batch = u64::from(plan.batch_tokens);
            assert!(u64::from(plan.shard_latents) * u64::from(d_model) * 4 <= DEFAULT_BINDING);
            assert!(batch * u64::from(d_model) * 4 <= DEFAULT_BINDING);
            assert!(batch * u64::from(plan.tile_latents + k) * 8 <= DEFAULT_BINDING);
            assert!(2 * batch * u64::from(plan.tile_latents) * u64::from(d_model) <= TILE_FLOP);
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
