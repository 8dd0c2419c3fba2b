//! On how many tokens two features fire together (`wgsl/cofire.wgsl`).

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

pub use crate::cpu::cofire::MAX_FEATURES;
use crate::cpu::cofire::by_latent;
use crate::gpu::{Dispatch, Gpu};
use crate::limits::grid;
use crate::source::constant;
use crate::{Error, TopK};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/cofire.wgsl"));

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    k: u32,
    features: u32,
    words: u32,
    padding: [u32; 4],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled.
pub struct Cofire {
    mark: ComputePipeline,
    count: ComputePipeline,
    threads: u32,
    side: u32,
}

impl Cofire {
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            mark: gpu.pipeline("cofire mark", WGSL, "mark"),
            count: gpu.pipeline("cofire count", WGSL, "count"),
            threads: constant(WGSL, "THREADS"),
            side: constant(WGSL, "SIDE"),
        }
    }

    /// The symmetric matrix `[features, features]` of the tokens of `top` on which both fire (activation above 0); on
    /// the diagonal those on which the feature fires.
    ///
    /// # Errors
    /// [`Error::Size`] for no features, more than [`MAX_FEATURES`], one that is listed twice, or more tokens than a
    /// binding holds; [`Error::Length`], [`Error::NotFinite`] if `top` is malformed; [`Error::Gpu`], [`Error::Lost`].
    pub async fn counts(&self, gpu: &Gpu, top: &TopK, features: &[u32]) -> Result<Vec<u32>, Error> {
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
        let params = Params { tokens: top.tokens, k: top.k, features: count, words, padding: [0; 4] };
        let params = gpu.uniform("cofire params", bytemuck::bytes_of(&params));
        let top_indices = gpu.storage_from("cofire top_indices", bytemuck::cast_slice(&top.top_indices));
        let top_acts = gpu.storage_from("cofire top_acts", bytemuck::cast_slice(&top.top_acts));
        let listed = gpu.storage_from("cofire listed", bytemuck::cast_slice(&listed));
        let fires = gpu.storage("cofire fires", bit_bytes);
        let bytes = 4 * u64::from(count) * u64::from(count);
        let counts = gpu.storage("cofire counts", bytes);
        gpu.submit(
            "cofire",
            &[
                Dispatch {
                    pipeline: &self.mark,
                    bindings: &[(0, &params), (1, &top_indices), (2, &top_acts), (3, &listed), (4, &fires)],
                    groups: grid((top.tokens * top.k).div_ceil(self.threads)),
                },
                Dispatch {
                    pipeline: &self.count,
                    bindings: &[(0, &params), (4, &fires), (5, &counts)],
                    groups: [count.div_ceil(self.side); 2],
                },
            ],
        );
        let content = gpu.read(&counts, bytes).await?;
        for buffer in [params, top_indices, top_acts, listed, fires, counts] {
            buffer.destroy();
        }
        Ok(bytemuck::pod_collect_to_vec(&content))
    }
}
