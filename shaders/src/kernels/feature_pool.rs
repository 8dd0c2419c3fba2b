//! Mean and maximum of each feature over some tokens (`wgsl/feature_pool.wgsl`).

use bytemuck::{Pod, Zeroable};
use wgpu::{Buffer, ComputePipeline};

use crate::gpu::{Dispatch, Gpu};
use crate::limits::grid;
use crate::pooled::{Selection, Total};
use crate::source::constant;
use crate::{Error, MAX_LATENTS, PoolBy, Pooled, TopK};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/feature_pool.wgsl"));

/// Words of an `Entry` of the shader.
const ENTRY_WORDS: usize = 3;

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    entries: u32,
    latents: u32,
    double_scale: f32,
    padding: [u32; 5],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled, and its memory: pooling runs whenever the pointer moves.
pub struct FeaturePool {
    scatter: ComputePipeline,
    compact: ComputePipeline,
    threads: u32,
    latents: u32,
    /// `[latents]`, zero between calls.
    sums: Buffer,
    /// `[latents]`, zero between calls.
    maxima: Buffer,
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
            sums: gpu.storage("feature_pool sums", 4 * u64::from(latents)),
            maxima: gpu.storage("feature_pool maxima", 4 * u64::from(latents)),
        })
    }

    /// The `n` features that are strongest on `tokens` of `top`, by their mean over all of these tokens or by their
    /// maximum; ties to the lower feature. A token that is listed twice counts twice; features that are silent are not
    /// listed.
    ///
    /// # Errors
    /// [`Error::Size`] for a token or latent out of range, or more than a binding holds; [`Error::Length`],
    /// [`Error::NotFinite`] if `top` is malformed; [`Error::Gpu`], [`Error::Lost`].
    pub async fn strongest(
        &self,
        gpu: &Gpu,
        top: &TopK,
        tokens: &[u32],
        by: PoolBy,
        n: usize,
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
        let params = Params { entries, latents: self.latents, double_scale: selection.double_scale, padding: [0; 5] };
        let params = gpu.uniform("feature_pool params", bytemuck::bytes_of(&params));
        let top_indices = gpu.storage_from("feature_pool top_indices", bytemuck::cast_slice(&selection.indices));
        let top_acts = gpu.storage_from("feature_pool top_acts", bytemuck::cast_slice(&selection.acts));
        let list = gpu.storage("feature_pool list", list_bytes);
        // One submission: a caller who gives up cannot leave the sums half done.
        gpu.submit(
            "feature_pool",
            &[
                Dispatch {
                    pipeline: &self.scatter,
                    bindings: &[(0, &params), (1, &top_indices), (2, &top_acts), (3, &self.sums), (4, &self.maxima)],
                    groups: grid(entries.div_ceil(self.threads)),
                },
                Dispatch {
                    pipeline: &self.compact,
                    bindings: &[(0, &params), (3, &self.sums), (4, &self.maxima), (5, &list)],
                    groups: grid(self.latents.div_ceil(self.threads)),
                },
            ],
        );
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read(&list, list_bytes).await?);
        for buffer in [params, top_indices, top_acts, list] {
            buffer.destroy();
        }
        let (count, entries) = words.split_at(1);
        let listed = entries.chunks_exact(ENTRY_WORDS).take(count[0] as usize);
        let totals = listed.map(|entry| Total { feature: entry[0], sum: entry[1], max: f32::from_bits(entry[2]) });
        Ok(selection.strongest(totals, by, n))
    }
}
