//! Reconstruction from a [`TopK`], and its error (`wgsl/sae_decode.wgsl`).

use std::cell::Cell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use wgpu::{Buffer, ComputePipeline};

use crate::decoded::fraction_unexplained;
use crate::decoder_rows::{Contribution, DecoderRows};
use crate::gpu::{Dispatch, Freed, Gpu};
use crate::limits::grid;
use crate::pace::{Pace, Paced};
use crate::source::constant;
use crate::{Cancel, Decoded, Error, TopK};

pub const WGSL: &str = include_str!(concat!(env!("OUT_DIR"), "/sae_decode.wgsl"));

/// Bytes of decoder rows on the GPU at once; a longer row goes alone.
const ROWS_BYTES: usize = 64 << 20;
/// Work of one channel of a row that is added or compared, in multiply-adds of the encoder: it comes from memory.
const CHANNEL_WORK: f64 = 4.0;

/// `Params` of the shader.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first_token: u32,
    end_token: u32,
    d_model: u32,
    padding: [u32; 5],
}

const _: () = assert!(size_of::<Params>() == super::PARAMS_BYTES as usize);

/// One decode, `x̂[t] = Σ_i top_acts[t, i] W_dec[top_indices[t, i]] + b_dec`, on the GPU: [`Self::start`], the rows of
/// the active latents in any number of calls of [`Self::add_rows`], [`Self::finish`].
pub struct SaeDecode {
    rows: DecoderRows,
    add_rows: ComputePipeline,
    finish: ComputePipeline,
    threads: u32,
    reconstruction: Buffer,
    add_pace: Cell<Pace>,
    finish_pace: Cell<Pace>,
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
        gpu.check_binding("bytes of latents and activations [tokens, k]", 8 * top.top_acts.len() as u64)?;
        gpu.check_binding("bytes of a row [d_model]", 4 * u64::from(d_model))?;
        Ok(Self {
            add_rows: gpu.pipeline("sae_decode add_rows", WGSL, "add_rows"),
            finish: gpu.pipeline("sae_decode finish", WGSL, "finish"),
            threads: constant(WGSL, "THREADS"),
            reconstruction: gpu.storage("sae_decode reconstruction", 4 * rows.values() as u64),
            rows,
            add_pace: Cell::default(),
            finish_pace: Cell::default(),
        })
    }

    /// Goes on with this pace.
    pub fn set_pace(&mut self, pace: Pace) {
        (self.add_pace, self.finish_pace) = (Cell::new(pace), Cell::new(pace));
    }

    /// Adds what the latents (rising) with these decoder `rows` `[n, d_model]` contribute. Inactive ones may be among
    /// them. After an error that came from the GPU, or a cancellation, the decode is of no use.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Size`] if the latents do not rise or a row was given before; [`Error::NotFinite`]
    /// with the number of the row; [`Error::Cancelled`]; [`Error::Gpu`], [`Error::Lost`], [`Error::OutOfMemory`].
    pub async fn add_rows(&mut self, gpu: &Gpu, latents: &[u32], rows: &[f32], cancel: &Cancel) -> Result<(), Error> {
        self.rows.take(latents, rows)?;
        let d_model = self.rows.d_model as usize;
        let most = (ROWS_BYTES / (4 * d_model)).max(1);
        for (latents, rows) in latents.chunks(most).zip(rows.chunks(most * d_model)) {
            self.add_piece(gpu, latents, rows, cancel).await?;
        }
        Ok(())
    }

    /// As [`Self::add_rows`], for rows that fit one buffer.
    async fn add_piece(&self, gpu: &Gpu, latents: &[u32], rows: &[f32], cancel: &Cancel) -> Result<(), Error> {
        cancel.check()?;
        let (entries, starts) = self.entries(latents);
        if entries.is_empty() {
            return Ok(());
        }
        let entry_buffer = gpu.storage_from("sae_decode entries", bytemuck::cast_slice(&entries));
        let start_buffer = gpu.storage_from("sae_decode starts", bytemuck::cast_slice(&starts));
        let rows = gpu.storage_from("sae_decode rows", bytemuck::cast_slice(rows));
        let _freed = Freed([&entry_buffer, &start_buffer, &rows]);
        gpu.uploaded().await?;
        let blocks = self.rows.d_model.div_ceil(self.threads);
        let entry_work = CHANNEL_WORK * f64::from(self.rows.d_model);
        let mut paced = Paced::new(gpu, &self.add_pace, cancel);
        let mut first = 0;
        while first < self.rows.tokens {
            let most = paced.next_items(entry_work, u32::MAX)?;
            // As many tokens as have no more entries, and at least one.
            let start = starts[first as usize];
            let ends = &starts[first as usize + 1..];
            let count = ends.partition_point(|end| end - start <= most).max(1);
            // At most the tokens that are left.
            let tokens = first..first + count as u32;
            first = tokens.end;
            let added = starts[tokens.end as usize] - start;
            if added == 0 {
                continue;
            }
            let params = self.params(gpu, &tokens);
            let bindings =
                [(0, &params), (1, &entry_buffer), (2, &start_buffer), (3, &rows), (4, &self.reconstruction)];
            let groups = grid(tokens.len() as u32 * blocks);
            let submitted =
                gpu.submit("sae_decode", &[Dispatch { pipeline: &self.add_rows, bindings: &bindings, groups }]);
            params.destroy();
            paced.submitted(submitted, entry_work * f64::from(added)).await?;
        }
        paced.finish().await
    }

    /// What rows contribute, as (row, bits of the activation) by token, and where each token starts, `[tokens + 1]`.
    fn entries(&self, latents: &[u32]) -> (Vec<[u32; 2]>, Vec<u32>) {
        let mut entries = Vec::new();
        let mut starts = vec![0; self.rows.tokens as usize + 1];
        for Contribution { token, row, act } in self.rows.contributions(latents) {
            entries.push([row, act.to_bits()]);
            starts[token as usize + 1] += 1;
        }
        // Counts become places; they fit, `start` has looked.
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        (entries, starts)
    }

    /// Adds `b_dec` `[d_model]` and compares with `hidden` `[tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::Length`], also if an active latent never got its row; [`Error::NotFinite`] with the number of the row;
    /// [`Error::Cancelled`]; [`Error::Gpu`], [`Error::Lost`], [`Error::OutOfMemory`].
    pub async fn finish(self, gpu: &Gpu, hidden: &[f32], b_dec: &[f32], cancel: &Cancel) -> Result<Decoded, Error> {
        self.rows.check_finish(hidden, b_dec)?;
        let tokens = self.rows.tokens;
        if tokens == 0 {
            return Ok(Decoded::default());
        }
        cancel.check()?;
        let hidden_buffer = gpu.storage_from("sae_decode hidden", bytemuck::cast_slice(hidden));
        let b_dec = gpu.storage_from("sae_decode b_dec", bytemuck::cast_slice(b_dec));
        let error_bytes = 4 * u64::from(tokens);
        let squared_error = gpu.storage("sae_decode squared_error", error_bytes);
        let _freed = Freed([&hidden_buffer, &b_dec, &squared_error]);
        gpu.uploaded().await?;
        let mut paced = Paced::new(gpu, &self.finish_pace, cancel);
        let submit = |at: Range<u32>| {
            let params = self.params(gpu, &at);
            let bindings =
                [(0, &params), (4, &self.reconstruction), (5, &hidden_buffer), (6, &b_dec), (7, &squared_error)];
            let groups = grid(at.end - at.start);
            let submitted =
                gpu.submit("sae_decode finish", &[Dispatch { pipeline: &self.finish, bindings: &bindings, groups }]);
            params.destroy();
            submitted
        };
        paced.each(0..tokens, CHANNEL_WORK * f64::from(self.rows.d_model), tokens, submit).await?;
        let errors = paced.read(&squared_error, error_bytes).await?;
        cancel.check()?;
        let reconstruction = gpu.read(&self.reconstruction, 4 * self.rows.values() as u64).await?;
        let squared_error: Vec<f32> = bytemuck::pod_collect_to_vec(&errors);
        let fvu = fraction_unexplained(hidden, self.rows.d_model, &squared_error);
        Ok(Decoded { reconstruction: bytemuck::pod_collect_to_vec(&reconstruction), squared_error, fvu })
    }

    fn params(&self, gpu: &Gpu, tokens: &Range<u32>) -> Buffer {
        let (first_token, end_token) = (tokens.start, tokens.end);
        let params = Params { first_token, end_token, d_model: self.rows.d_model, padding: [0; 5] };
        gpu.uniform("sae_decode params", bytemuck::bytes_of(&params))
    }
}

impl Drop for SaeDecode {
    /// Frees the memory now; a browser would wait for its garbage collector.
    fn drop(&mut self) {
        self.reconstruction.destroy();
    }
}
