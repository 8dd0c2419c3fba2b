//! Reconstruction from a [`TopK`], and its error (`wgsl/sae_decode.wgsl`).

use bytemuck::{Pod, Zeroable};
use wgpu::{Buffer, ComputePipeline};

use crate::decoded::fraction_unexplained;
use crate::decoder_rows::DecoderRows;
use crate::gpu::{Dispatch, Gpu};
use crate::limits::grid;
use crate::source::constant;
use crate::{Decoded, Error, TopK};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/sae_decode.wgsl"));

/// Bytes of decoder rows on the GPU at once.
const ROWS_BYTES: usize = 64 << 20;
/// Multiply-adds of one submission: some 30 ms on a GPU that gathers 40 GB/s.
const DISPATCH_WORK: u64 = 1 << 28;

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first_token: u32,
    end_token: u32,
    d_model: u32,
    k: u32,
    padding: [u32; 4],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// One decode, `x̂[t] = Σ_i top_acts[t, i] W_dec[top_indices[t, i]] + b_dec`, on the GPU: [`Self::start`], the rows of
/// the active latents in any number of calls of [`Self::add_rows`], [`Self::finish`].
pub struct SaeDecode {
    rows: DecoderRows,
    add_rows: ComputePipeline,
    finish: ComputePipeline,
    threads: u32,
    top_acts: Buffer,
    reconstruction: Buffer,
}

impl SaeDecode {
    /// A reconstruction of zeros `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NotFinite`] if `top` is malformed; [`Error::Size`] if there are too many tokens for
    /// one binding, or no channels.
    pub fn start(gpu: &Gpu, top: &TopK, d_model: u32) -> Result<Self, Error> {
        let rows = DecoderRows::new(top, d_model)?;
        gpu.check_binding("bytes of hidden [tokens, d_model]", 4 * rows.values() as u64)?;
        gpu.check_binding("bytes of top_acts [tokens, k]", 4 * top.top_acts.len() as u64)?;
        Ok(Self {
            add_rows: gpu.pipeline("sae_decode add_rows", WGSL, "add_rows"),
            finish: gpu.pipeline("sae_decode finish", WGSL, "finish"),
            threads: constant(WGSL, "THREADS"),
            top_acts: gpu.storage_from("sae_decode top_acts", bytemuck::cast_slice(&top.top_acts)),
            reconstruction: gpu.storage("sae_decode reconstruction", 4 * rows.values() as u64),
            rows,
        })
    }

    /// Adds what the latents (rising) with these decoder `rows` `[n, d_model]` contribute. Inactive ones may be among
    /// them.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Size`] if the latents do not rise or a row was given before; [`Error::NotFinite`]
    /// with the number of the row.
    pub fn add_rows(&mut self, gpu: &Gpu, latents: &[u32], rows: &[f32]) -> Result<(), Error> {
        self.rows.take(latents, rows)?;
        let d_model = self.rows.d_model as usize;
        let most = (ROWS_BYTES / (4 * d_model)).max(1);
        for (latents, rows) in latents.chunks(most).zip(rows.chunks(most * d_model)) {
            self.add_piece(gpu, latents, rows);
        }
        Ok(())
    }

    /// As [`Self::add_rows`], for rows that fit one buffer.
    fn add_piece(&self, gpu: &Gpu, latents: &[u32], rows: &[f32]) {
        let places = gpu.storage_from("sae_decode places", bytemuck::cast_slice(&self.rows.places(latents)));
        let rows = gpu.storage_from("sae_decode rows", bytemuck::cast_slice(rows));
        let tokens = self.rows.tokens;
        let blocks = self.rows.d_model.div_ceil(self.threads);
        let work = u64::from(self.rows.k) * u64::from(self.rows.d_model);
        // At most the work of a dispatch, and at least one token.
        let most = (DISPATCH_WORK / work).max(1) as u32;
        for first_token in (0..tokens).step_by(most as usize) {
            let end_token = first_token.saturating_add(most).min(tokens);
            let params = self.params(gpu, first_token, end_token);
            let bindings = [(0, &params), (1, &self.top_acts), (2, &places), (3, &rows), (4, &self.reconstruction)];
            let groups = grid((end_token - first_token) * blocks);
            gpu.submit("sae_decode", &[Dispatch { pipeline: &self.add_rows, bindings: &bindings, groups }]);
            params.destroy();
        }
        places.destroy();
        rows.destroy();
    }

    /// Adds `b_dec` `[d_model]` and compares with `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`], also if an active latent never got its row; [`Error::NotFinite`]; [`Error::Gpu`],
    /// [`Error::Lost`].
    pub async fn finish(self, gpu: &Gpu, hidden: &[f32], b_dec: &[f32]) -> Result<Decoded, Error> {
        self.rows.check_finish(hidden, b_dec)?;
        let tokens = self.rows.tokens;
        if tokens == 0 {
            return Ok(Decoded::default());
        }
        let params = self.params(gpu, 0, tokens);
        let hidden_buffer = gpu.storage_from("sae_decode hidden", bytemuck::cast_slice(hidden));
        let b_dec = gpu.storage_from("sae_decode b_dec", bytemuck::cast_slice(b_dec));
        let error_bytes = 4 * u64::from(tokens);
        let squared_error = gpu.storage("sae_decode squared_error", error_bytes);
        let bindings = [(0, &params), (4, &self.reconstruction), (5, &hidden_buffer), (6, &b_dec), (7, &squared_error)];
        gpu.submit(
            "sae_decode finish",
            &[Dispatch { pipeline: &self.finish, bindings: &bindings, groups: grid(tokens) }],
        );
        let reconstruction = gpu.read(&self.reconstruction, 4 * self.rows.values() as u64).await?;
        let errors = gpu.read(&squared_error, error_bytes).await?;
        for buffer in [&params, &hidden_buffer, &b_dec, &squared_error, &self.top_acts, &self.reconstruction] {
            buffer.destroy();
        }
        let squared_error: Vec<f32> = bytemuck::pod_collect_to_vec(&errors);
        let fvu = fraction_unexplained(hidden, self.rows.d_model, &squared_error);
        Ok(Decoded { reconstruction: bytemuck::pod_collect_to_vec(&reconstruction), squared_error, fvu })
    }

    fn params(&self, gpu: &Gpu, first_token: u32, end_token: u32) -> Buffer {
        let (d_model, k) = (self.rows.d_model, self.rows.k);
        let params = Params { first_token, end_token, d_model, k, padding: [0; 4] };
        gpu.uniform("sae_decode params", bytemuck::bytes_of(&params))
    }
}

#[cfg(test)]
mod tests {
    use super::WGSL;
    use crate::decoder_rows::NO_ROW;
    use crate::source::constant;

    #[test]
    fn host_and_shader_mark_a_missing_row_alike() {
        assert_eq!(constant(WGSL, "NO_ROW"), NO_ROW);
    }
}
