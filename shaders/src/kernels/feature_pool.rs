//! Mean and maximum of each feature over some tokens (`wgsl/feature_pool.wgsl`).

use std::cell::Cell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

use crate::gpu::{Dispatch, Freed, Gpu};
use crate::limits::grid;
use crate::pace::{Pace, Paced};
use crate::pooled::{Selection, Total};
use crate::source::constant;
use crate::{Cancel, Error, MAX_LATENTS, PoolBy, Pooled, TopK};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/feature_pool.wgsl"));

/// Words of an `Entry` of the shader.
const ENTRY_WORDS: usize = 3;
/// Work of an activation, in multiply-adds of the encoder: two atomic operations in memory.
const ENTRY_WORK: f64 = 16.0;

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first_entry: u32,
    end_entry: u32,
    latents: u32,
    double_scale: f32,
    padding: [u32; 4],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled.
pub struct FeaturePool {
    scatter: ComputePipeline,
    compact: ComputePipeline,
    threads: u32,
    latents: u32,
    pace: Cell<Pace>,
}

impl FeaturePool {
    /// For top k of an SAE with this many latents.
    ///
    /// # Errors
    /// [`Error::Size`] for no latents, or more than [`MAX_LATENTS`].
    pub fn new(gpu: &Gpu, latents: u32) -> Result<Self, Error> {
        if latents == 0 || latents > MAX_LATENTS {
            let expected = format!("1 to {MAX_LATENTS}");
            return Err(Error::Size { what: "latents", given: latents.into(), expected });
        }
        Ok(Self {
            scatter: gpu.pipeline("feature_pool scatter", WGSL, "scatter"),
            compact: gpu.pipeline("feature_pool compact", WGSL, "compact"),
            threads: constant(WGSL, "THREADS"),
            latents,
            pace: Cell::default(),
        })
    }

    /// Goes on with this pace.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = Cell::new(pace);
    }

    /// The `n` features that are strongest on `tokens` of `top`, by their mean over all of these tokens or by their
    /// maximum; ties to the lower feature. A token that is listed twice counts twice; features that are silent are not
    /// listed.
    ///
    /// Adding is split where it takes long; before anything is measured, two million activations go at once. Listing
    /// what occurred is not split: it reads 4 bytes a latent, half a MiB for 131,072, 64 MiB for the most there may be.
    ///
    /// # Errors
    /// [`Error::Size`] for a token or latent out of range, or more than a binding holds; [`Error::Length`],
    /// [`Error::NotFinite`] if `top` is malformed; [`Error::Cancelled`]; [`Error::Gpu`], [`Error::Lost`],
    /// [`Error::OutOfMemory`].
    pub async fn strongest(
        &self,
        gpu: &Gpu,
        top: &TopK,
        tokens: &[u32],
        by: PoolBy,
        n: usize,
        cancel: &Cancel,
    ) -> Result<Vec<Pooled>, Error> {
        let selection = Selection::new(top, tokens, self.latents)?;
        let entries = selection.indices.len();
        // As many features at most.
        let capacity = entries.min(self.latents as usize);
        let list_bytes = 4 * (1 + ENTRY_WORDS * capacity) as u64;
        gpu.check_binding("bytes of selected activations", (4 * entries as u64).max(list_bytes))?;
        if entries == 0 {
            return Ok(Vec::new());
        }
        // Fits a binding.
        let entries = entries as u32;
        let top_indices = gpu.storage_from("feature_pool top_indices", bytemuck::cast_slice(&selection.indices));
        let top_acts = gpu.storage_from("feature_pool top_acts", bytemuck::cast_slice(&selection.acts));
        // Zeros for every call: one that is cancelled leaves nothing behind.
        let sums = gpu.storage("feature_pool sums", 4 * u64::from(self.latents));
        let maxima = gpu.storage("feature_pool maxima", 4 * u64::from(self.latents));
        let list = gpu.storage("feature_pool list", list_bytes);
        let _freed = Freed([&top_indices, &top_acts, &sums, &maxima, &list]);
        let mut paced = Paced::new(gpu, &self.pace, cancel);
        let submit = |at: Range<u32>| {
            let params = Params {
                first_entry: at.start,
                end_entry: at.end,
                latents: self.latents,
                double_scale: selection.double_scale,
                padding: [0; 4],
            };
            let params = gpu.uniform("feature_pool params", bytemuck::bytes_of(&params));
            let scatter = Dispatch {
                pipeline: &self.scatter,
                bindings: &[(0, &params), (1, &top_indices), (2, &top_acts), (3, &sums), (4, &maxima)],
                groups: grid((at.end - at.start).div_ceil(self.threads)),
            };
            let compact = Dispatch {
                pipeline: &self.compact,
                bindings: &[(0, &params), (3, &sums), (4, &maxima), (5, &list)],
                groups: grid(self.latents.div_ceil(self.threads)),
            };
            // What occurred is listed once everything is added.
            let dispatches = [scatter, compact];
            let submitted = gpu.submit("feature_pool", &dispatches[..if at.end == entries { 2 } else { 1 }]);
            params.destroy();
            submitted
        };
        paced.each(0..entries, ENTRY_WORK, entries, submit).await?;
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&paced.read(&list, list_bytes).await?);
        let (count, entries) = words.split_at(1);
        let listed = entries.chunks_exact(ENTRY_WORDS).take(count[0] as usize);
        let totals = listed.map(|entry| Total { feature: entry[0], sum: entry[1], max: f32::from_bits(entry[2]) });
        Ok(selection.strongest(totals, by, n))
    }
}
