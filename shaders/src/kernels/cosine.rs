//! Cosine of one row with each row of a matrix (`wgsl/cosine.wgsl`).

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

use crate::Error;
pub use crate::cpu::cosine::nearest;
use crate::cpu::cosine::{Rows, inverse_norm};
use crate::gpu::{Dispatch, Gpu};
use crate::limits::grid;

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/cosine.wgsl"));

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    n: u32,
    d_model: u32,
    inverse_norm: f32,
    padding: [u32; 5],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled.
pub struct Cosine {
    pipeline: ComputePipeline,
}

impl Cosine {
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self { pipeline: gpu.pipeline("cosine", WGSL, "main") }
    }

    /// Cosines `[n]` of `row` `[d_model]` with each of `rows` `[n, d_model]`; 0 where either is zero. A large matrix
    /// comes in batches of rows that each fit one binding.
    ///
    /// # Errors
    /// [`Error::Size`] for an empty row or too many of them, [`Error::Length`] if the last row is not whole,
    /// [`Error::NotFinite`] with the number of the row; [`Error::Gpu`], [`Error::Lost`].
    pub async fn similarities(&self, gpu: &Gpu, row: &[f32], rows: &[f32]) -> Result<Vec<f32>, Error> {
        let Rows { n, d_model } = Rows::new(row, rows)?;
        gpu.check_binding("bytes of rows [n, d_model]", size_of_val(rows) as u64)?;
        if n == 0 {
            return Ok(Vec::new());
        }
        let params = Params { n, d_model, inverse_norm: inverse_norm(row), padding: [0; 5] };
        let params = gpu.uniform("cosine params", bytemuck::bytes_of(&params));
        let row = gpu.storage_from("cosine row", bytemuck::cast_slice(row));
        let rows = gpu.storage_from("cosine rows", bytemuck::cast_slice(rows));
        let bytes = 4 * u64::from(n);
        let cosines = gpu.storage("cosine cosines", bytes);
        let bindings = [(0, &params), (1, &row), (2, &rows), (3, &cosines)];
        gpu.submit("cosine", &[Dispatch { pipeline: &self.pipeline, bindings: &bindings, groups: grid(n) }]);
        let content = gpu.read(&cosines, bytes).await?;
        for buffer in [params, row, rows, cosines] {
            buffer.destroy();
        }
        let cosines: Vec<f32> = bytemuck::pod_collect_to_vec(&content);
        // Rounding may leave the range by a hair.
        Ok(cosines.into_iter().map(|cosine| cosine.clamp(-1.0, 1.0)).collect())
    }
}
