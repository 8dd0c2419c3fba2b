//! Counts of positive values in equal bins (`wgsl/histogram.wgsl`).

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

use crate::Error;
pub use crate::cpu::histogram::MAX_BINS;
use crate::cpu::histogram::factor;
use crate::gpu::{Dispatch, Gpu};
use crate::source::constant;

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/histogram.wgsl"));

/// Values of one submission: 16 MiB.
const PIECE_VALUES: usize = 1 << 22;

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    values: u32,
    bins: u32,
    factor: f32,
    padding: [u32; 5],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled.
pub struct Histogram {
    pipeline: ComputePipeline,
    group_values: u32,
}

impl Histogram {
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            pipeline: gpu.pipeline("histogram", WGSL, "main"),
            group_values: constant(WGSL, "THREADS") * constant(WGSL, "VALUES_PER_THREAD"),
        }
    }

    /// Counts `[bins]` of the positive values in `bins` equal bins from 0 to `max`. The last bin is closed and holds
    /// larger values too; what is not finite is not counted.
    ///
    /// # Errors
    /// [`Error::Size`] for no bins, more than [`MAX_BINS`], or a `max` that is not from 1e-30 to 1e30; [`Error::Gpu`],
    /// [`Error::Lost`].
    pub async fn counts(&self, gpu: &Gpu, values: &[f32], bins: u32, max: f32) -> Result<Vec<u32>, Error> {
        let factor = factor(bins, max)?;
        let bytes = 4 * u64::from(bins);
        let counts = gpu.storage("histogram counts", bytes);
        for piece in values.chunks(PIECE_VALUES) {
            // At most `PIECE_VALUES`.
            let params = Params { values: piece.len() as u32, bins, factor, padding: [0; 5] };
            let groups = [params.values.div_ceil(self.group_values), 1];
            let params = gpu.uniform("histogram params", bytemuck::bytes_of(&params));
            let values = gpu.storage_from("histogram values", bytemuck::cast_slice(piece));
            let bindings = [(0, &params), (1, &values), (2, &counts)];
            gpu.submit("histogram", &[Dispatch { pipeline: &self.pipeline, bindings: &bindings, groups }]);
            params.destroy();
            values.destroy();
        }
        let content = gpu.read(&counts, bytes).await?;
        counts.destroy();
        Ok(bytemuck::pod_collect_to_vec(&content))
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_BINS, WGSL};
    use crate::source::constant;

    #[test]
    fn a_workgroup_holds_all_bins() {
        assert_eq!(constant(WGSL, "MAX_BINS"), MAX_BINS);
    }
}
