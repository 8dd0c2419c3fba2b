//! On how many tokens two features fire together (`wgsl/cofire.wgsl`).

use std::cell::Cell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

pub use crate::cpu::cofire::MAX_FEATURES;
use crate::cpu::cofire::by_latent;
use crate::gpu::{Dispatch, Freed, Gpu};
use crate::limits::grid;
use crate::pace::{Pace, Paced};
use crate::source::constant;
use crate::{Cancel, Error, TopK};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/cofire.wgsl"));

/// Work of an activation, in multiply-adds of the encoder: a search among the features.
const ENTRY_WORK: f64 = 16.0;
/// Work of a word of bits for one pair of features, both ways round.
const PAIR_WORK: f64 = 2.0;
/// Few pairs are few threads, which wait for memory: a word takes at least as long as with this many.
const LEAST_PAIRS: u32 = 256;

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first: u32,
    end: u32,
    k: u32,
    features: u32,
    words: u32,
    padding: [u32; 3],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled.
pub struct Cofire {
    mark: ComputePipeline,
    count: ComputePipeline,
    threads: u32,
    side: u32,
    mark_pace: Cell<Pace>,
    count_pace: Cell<Pace>,
}

impl Cofire {
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            mark: gpu.pipeline("cofire mark", WGSL, "mark"),
            count: gpu.pipeline("cofire count", WGSL, "count"),
            threads: constant(WGSL, "THREADS"),
            side: constant(WGSL, "SIDE"),
            mark_pace: Cell::default(),
            count_pace: Cell::default(),
        }
    }

    /// Goes on with this pace.
    pub fn set_pace(&mut self, pace: Pace) {
        (self.mark_pace, self.count_pace) = (Cell::new(pace), Cell::new(pace));
    }

    /// The symmetric matrix `[features, features]` of the tokens of `top` on which both fire (activation above 0); on
    /// the diagonal those on which the feature fires.
    ///
    /// # Errors
    /// [`Error::Size`] for no features, more than [`MAX_FEATURES`], one that is listed twice, or more tokens than a
    /// binding holds; [`Error::Length`], [`Error::NotFinite`] if `top` is malformed; [`Error::Cancelled`];
    /// [`Error::Gpu`], [`Error::Lost`], [`Error::OutOfMemory`].
    pub async fn counts(&self, gpu: &Gpu, top: &TopK, features: &[u32], cancel: &Cancel) -> Result<Vec<u32>, Error> {
        top.check()?;
        let listed = by_latent(features)?;
        let entry_bytes = size_of_val(&top.top_acts[..]) as u64;
        gpu.check_binding("bytes of top_acts [tokens, k]", entry_bytes)?;
        if top.tokens == 0 {
            return Ok(vec![0; features.len() * features.len()]);
        }
        // At most `MAX_FEATURES`.
        let (count, words) = (features.len() as u32, top.tokens.div_ceil(32));
        let bit_bytes = 4 * u64::from(count) * u64::from(words);
        gpu.check_binding("bytes of bits [features, tokens]", bit_bytes)?;
        let top_indices = gpu.storage_from("cofire top_indices", bytemuck::cast_slice(&top.top_indices));
        let top_acts = gpu.storage_from("cofire top_acts", bytemuck::cast_slice(&top.top_acts));
        let listed = gpu.storage_from("cofire listed", bytemuck::cast_slice(&listed));
        let fires = gpu.storage("cofire fires", bit_bytes);
        let bytes = 4 * u64::from(count) * u64::from(count);
        let counts = gpu.storage("cofire counts", bytes);
        let _freed = Freed([&top_indices, &top_acts, &listed, &fires, &counts]);
        let params = |at: &Range<u32>| {
            let params = Params { first: at.start, end: at.end, k: top.k, features: count, words, padding: [0; 3] };
            gpu.uniform("cofire params", bytemuck::bytes_of(&params))
        };

        let mut marking = Paced::new(gpu, &self.mark_pace, cancel);
        let mark = |at: Range<u32>| {
            let params = params(&at);
            let bindings = [(0, &params), (1, &top_indices), (2, &top_acts), (3, &listed), (4, &fires)];
            let groups = grid((at.end - at.start).div_ceil(self.threads));
            let submitted = gpu.submit("cofire", &[Dispatch { pipeline: &self.mark, bindings: &bindings, groups }]);
            params.destroy();
            submitted
        };
        // Fits a binding.
        let entries = top.tokens * top.k;
        marking.each(0..entries, ENTRY_WORK, entries, mark).await?;
        marking.finish().await?;

        let mut counting = Paced::new(gpu, &self.count_pace, cancel);
        let count_words = |at: Range<u32>| {
            let params = params(&at);
            let bindings = [(0, &params), (4, &fires), (5, &counts)];
            let groups = [count.div_ceil(self.side); 2];
            let submitted = gpu.submit("cofire", &[Dispatch { pipeline: &self.count, bindings: &bindings, groups }]);
            params.destroy();
            submitted
        };
        let word_work = PAIR_WORK * f64::from((count * count).max(LEAST_PAIRS));
        counting.each(0..words, word_work, words, count_words).await?;
        Ok(bytemuck::pod_collect_to_vec(&counting.read(&counts, bytes).await?))
    }
}
