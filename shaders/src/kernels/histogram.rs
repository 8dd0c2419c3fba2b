//! Counts of positive values in equal bins (`wgsl/histogram.wgsl`).

use std::cell::Cell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

pub use crate::cpu::histogram::MAX_BINS;
use crate::cpu::histogram::factor;
use crate::gpu::{Dispatch, Freed, Gpu};
use crate::pace::{Pace, Paced};
use crate::source::constant;
use crate::{Cancel, Error};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/histogram.wgsl"));

/// Most values of one submission: 16 MiB.
const PIECE_VALUES: usize = 1 << 22;
/// Work of a value, in multiply-adds of the encoder: it is uploaded, and counted atomically.
const VALUE_WORK: f64 = 8.0;

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
    pace: Cell<Pace>,
}

impl Histogram {
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self {
            pipeline: gpu.pipeline("histogram", WGSL, "main"),
            group_values: constant(WGSL, "THREADS") * constant(WGSL, "VALUES_PER_THREAD"),
            pace: Cell::default(),
        }
    }

    /// Goes on with this pace.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = Cell::new(pace);
    }

    /// Counts `[bins]` of the positive values in `bins` equal bins from 0 to `max`. The last bin is closed and holds
    /// larger values too; what is not finite is not counted. The values pass through one buffer, some at a time.
    ///
    /// # Errors
    /// [`Error::Size`] for no bins, more than [`MAX_BINS`], or a `max` that is not from 1e-30 to 1e30;
    /// [`Error::Cancelled`]; [`Error::Gpu`], [`Error::Lost`], [`Error::OutOfMemory`].
    pub async fn counts(
        &self,
        gpu: &Gpu,
        values: &[f32],
        bins: u32,
        max: f32,
        cancel: &Cancel,
    ) -> Result<Vec<u32>, Error> {
        let factor = factor(bins, max)?;
        let bytes = 4 * u64::from(bins);
        let counts = gpu.storage("histogram counts", bytes);
        let piece = gpu.storage("histogram values", 4 * values.len().min(PIECE_VALUES) as u64);
        let _freed = Freed([&counts, &piece]);
        let mut paced = Paced::new(gpu, &self.pace, cancel);
        for values in values.chunks(PIECE_VALUES) {
            let submit = |at: Range<u32>| {
                gpu.write(&piece, 0, bytemuck::cast_slice(&values[at.start as usize..at.end as usize]));
                let params = Params { values: at.end - at.start, bins, factor, padding: [0; 5] };
                let groups = [params.values.div_ceil(self.group_values), 1];
                let params = gpu.uniform("histogram params", bytemuck::bytes_of(&params));
                let bindings = [(0, &params), (1, &piece), (2, &counts)];
                let submitted =
                    gpu.submit("histogram", &[Dispatch { pipeline: &self.pipeline, bindings: &bindings, groups }]);
                params.destroy();
                submitted
            };
            // At most `PIECE_VALUES`.
            let count = values.len() as u32;
            paced.each(0..count, VALUE_WORK, count, submit).await?;
        }
        Ok(bytemuck::pod_collect_to_vec(&paced.read(&counts, bytes).await?))
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
