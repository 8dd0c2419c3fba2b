//! Cosine of one row with each row of a matrix (`wgsl/cosine.wgsl`).

use std::cell::Cell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use wgpu::ComputePipeline;

pub use crate::cpu::cosine::nearest;
use crate::cpu::cosine::{Rows, inverse_norm};
use crate::gpu::{Dispatch, Freed, Gpu};
use crate::limits::grid;
use crate::pace::{Pace, Paced};
use crate::{Cancel, Error};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/cosine.wgsl"));

/// Most bytes of rows in one submission; a longer row goes alone.
const PIECE_BYTES: u64 = 64 << 20;
/// Work of a value, in multiply-adds of the encoder: it is uploaded, and read from memory once.
const VALUE_WORK: f64 = 8.0;

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first_row: u32,
    end_row: u32,
    d_model: u32,
    inverse_norm: f32,
    padding: [u32; 4],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// The kernel, compiled.
pub struct Cosine {
    pipeline: ComputePipeline,
    pace: Cell<Pace>,
}

impl Cosine {
    #[must_use]
    pub fn new(gpu: &Gpu) -> Self {
        Self { pipeline: gpu.pipeline("cosine", WGSL, "main"), pace: Cell::default() }
    }

    /// Goes on with this pace.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = Cell::new(pace);
    }

    /// Cosines `[n]` of `row` `[d_model]` with each of `rows` `[n, d_model]`; 0 where either is zero. The rows pass
    /// through one buffer, some at a time.
    ///
    /// # Errors
    /// [`Error::Size`] for an empty row, one longer than a binding, or too many of them; [`Error::Length`] if the last
    /// row is not whole; [`Error::NotFinite`] with the number of the row; [`Error::Cancelled`]; [`Error::Gpu`],
    /// [`Error::Lost`], [`Error::OutOfMemory`].
    pub async fn similarities(&self, gpu: &Gpu, row: &[f32], rows: &[f32], cancel: &Cancel) -> Result<Vec<f32>, Error> {
        let Rows { n, d_model } = Rows::new(row, rows)?;
        let (row_bytes, bytes) = (4 * u64::from(d_model), 4 * u64::from(n));
        gpu.check_binding("bytes of a row [d_model]", row_bytes)?;
        gpu.check_binding("bytes of cosines [n]", bytes)?;
        if n == 0 {
            return Ok(Vec::new());
        }
        // At most `n`.
        let most = (PIECE_BYTES / row_bytes).clamp(1, n.into()) as u32;
        let one = gpu.storage_from("cosine row", bytemuck::cast_slice(row));
        let piece = gpu.storage("cosine rows", u64::from(most) * row_bytes);
        let cosines = gpu.storage("cosine cosines", bytes);
        let _freed = Freed([&one, &piece, &cosines]);
        let inverse_norm = inverse_norm(row);
        let mut paced = Paced::new(gpu, &self.pace, cancel);
        let submit = |at: Range<u32>| {
            let values = &rows[at.start as usize * row.len()..at.end as usize * row.len()];
            gpu.write(&piece, 0, bytemuck::cast_slice(values));
            let params = Params { first_row: at.start, end_row: at.end, d_model, inverse_norm, padding: [0; 4] };
            let params = gpu.uniform("cosine params", bytemuck::bytes_of(&params));
            let bindings = [(0, &params), (1, &one), (2, &piece), (3, &cosines)];
            let groups = grid(at.end - at.start);
            let submitted = gpu.submit("cosine", &[Dispatch { pipeline: &self.pipeline, bindings: &bindings, groups }]);
            params.destroy();
            submitted
        };
        paced.each(0..n, VALUE_WORK * f64::from(d_model), most, submit).await?;
        let cosines: Vec<f32> = bytemuck::pod_collect_to_vec(&paced.read(&cosines, bytes).await?);
        // Rounding may leave the range by a hair.
        Ok(cosines.into_iter().map(|cosine| cosine.clamp(-1.0, 1.0)).collect())
    }
}
