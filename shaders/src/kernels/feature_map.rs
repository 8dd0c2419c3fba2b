//! One feature's activations over the patch grid, upsampled to pixels (`wgsl/feature_map.wgsl`).

use std::cell::Cell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

use crate::error::check_len;
use crate::gpu::{Dispatch, Freed, Gpu};
use crate::limits::grid;
use crate::pace::{Pace, Paced};
use crate::source::constant;
use crate::{Cancel, Error, MapShape, TopK};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/feature_map.wgsl"));

/// Work of a pixel, in multiply-adds of the encoder.
const PIXEL_WORK: f64 = 32.0;

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
    first_row: u32,
    end_row: u32,
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled.
pub struct FeatureMap {
    gather: ComputePipeline,
    upsample: ComputePipeline,
    threads: u32,
    side: u32,
    pace: Cell<Pace>,
}

impl FeatureMap {
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            gather: gpu.pipeline("feature_map gather", WGSL, "gather"),
            upsample: gpu.pipeline("feature_map", WGSL, "main"),
            threads: constant(WGSL, "THREADS"),
            side: constant(WGSL, "SIDE"),
            pace: Cell::default(),
        }
    }

    /// Goes on with this pace.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = Cell::new(pace);
    }

    /// Map `[height, width]` of `feature` over the tokens `start ..` of `top`, row-major over the grid.
    ///
    /// # Errors
    /// [`Error::Length`] if `top` has too few tokens; [`Error::Cancelled`]; [`Error::Gpu`], [`Error::Lost`].
    pub async fn map(
        &self,
        gpu: &Gpu,
        top: &TopK,
        feature: u32,
        start: u32,
        shape: MapShape,
        cancel: &Cancel,
    ) -> Result<Vec<f32>, Error> {
        let (indices, acts) = top.patches(start, shape)?;
        let top_indices = gpu.storage_from("feature_map top_indices", bytemuck::cast_slice(indices));
        let top_acts = gpu.storage_from("feature_map top_acts", bytemuck::cast_slice(acts));
        let patches = gpu.storage("feature_map patches", 4 * shape.patches() as u64);
        let bytes = 4 * shape.pixels() as u64;
        let map = gpu.storage("feature_map map", bytes);
        let _freed = Freed([&top_indices, &top_acts, &patches, &map]);
        let mut paced = Paced::new(gpu, &self.pace, cancel);
        let submit = |at: Range<u32>| {
            let MapShape { rows, columns, height, width } = shape;
            let params =
                Params { feature, k: top.k, rows, columns, height, width, first_row: at.start, end_row: at.end };
            let params = gpu.uniform("feature_map params", bytemuck::bytes_of(&params));
            let gather = Dispatch {
                pipeline: &self.gather,
                bindings: &[(0, &params), (1, &top_indices), (2, &top_acts), (3, &patches)],
                groups: grid((rows * columns).div_ceil(self.threads)),
            };
            let upsample = Dispatch {
                pipeline: &self.upsample,
                bindings: &[(0, &params), (3, &patches), (4, &map)],
                groups: [width.div_ceil(self.side), (at.end - at.start).div_ceil(self.side)],
            };
            // The patches are gathered once.
            let dispatches = [gather, upsample];
            let submitted = gpu.submit("feature_map", &dispatches[usize::from(at.start > 0)..]);
            params.destroy();
            submitted
        };
        paced.each(0..shape.height, PIXEL_WORK * f64::from(shape.width), shape.height, submit).await?;
        let content = paced.read(&map, bytes).await?;
        check_len("map [height, width]", content.len() / 4, shape.pixels())?;
        Ok(bytemuck::pod_collect_to_vec(&content))
    }
}
