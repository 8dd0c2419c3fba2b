//! One feature's activations over the patch grid, upsampled to pixels (`wgsl/feature_map.wgsl`).

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

use crate::error::check_len;
use crate::gpu::{Dispatch, Gpu};
use crate::source::constant;
use crate::{Error, MapShape, TopK};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/feature_map.wgsl"));

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    feature: u32,
    k: u32,
    rows: u32,
    columns: u32,
    height: u32,
    width: u32,
    padding: [u32; 2],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled.
pub struct FeatureMap {
    gather: ComputePipeline,
    upsample: ComputePipeline,
    threads: u32,
    side: u32,
}

impl FeatureMap {
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            gather: gpu.pipeline("feature_map gather", WGSL, "gather"),
            upsample: gpu.pipeline("feature_map", WGSL, "main"),
            threads: constant(WGSL, "THREADS"),
            side: constant(WGSL, "SIDE"),
        }
    }

    /// Map `[height, width]` of `feature` over the tokens `start ..` of `top`, row-major over the grid.
    ///
    /// # Errors
    /// [`Error::Length`] if `top` has too few tokens; [`Error::Gpu`], [`Error::Lost`].
    pub async fn map(
        &self,
        gpu: &Gpu,
        top: &TopK,
        feature: u32,
        start: u32,
        shape: MapShape,
    ) -> Result<Vec<f32>, Error> {
        let (indices, acts) = top.patches(start, shape)?;
        let params = Params {
            feature,
            k: top.k,
            rows: shape.rows,
            columns: shape.columns,
            height: shape.height,
            width: shape.width,
            padding: [0; 2],
        };
        let params = gpu.uniform("feature_map params", bytemuck::bytes_of(&params));
        let top_indices = gpu.storage_from("feature_map top_indices", bytemuck::cast_slice(indices));
        let top_acts = gpu.storage_from("feature_map top_acts", bytemuck::cast_slice(acts));
        let patches = gpu.storage("feature_map patches", 4 * shape.patches() as u64);
        let bytes = 4 * shape.pixels() as u64;
        let map = gpu.storage("feature_map map", bytes);
        gpu.submit(
            "feature_map",
            &[
                Dispatch {
                    pipeline: &self.gather,
                    bindings: &[(0, &params), (1, &top_indices), (2, &top_acts), (3, &patches)],
                    groups: [(shape.rows * shape.columns).div_ceil(self.threads), 1],
                },
                Dispatch {
                    pipeline: &self.upsample,
                    bindings: &[(0, &params), (3, &patches), (4, &map)],
                    groups: [shape.width.div_ceil(self.side), shape.height.div_ceil(self.side)],
                },
            ],
        );
        let content = gpu.read(&map, bytes).await?;
        for buffer in [params, top_indices, top_acts, patches, map] {
            buffer.destroy();
        }
        check_len("map [height, width]", content.len() / 4, shape.pixels())?;
        Ok(bytemuck::pod_collect_to_vec(&content))
    }
}
