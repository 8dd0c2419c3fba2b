//! Questions about the last encode, and light on a canvas.

use api::gpu::{ComputePath, GpuReply, GpuRequest};
use shaders::cpu::cosine::nearest;
use shaders::cpu::feature_pool::feature_pool;
use shaders::{Cancel, Canvas, MapShape, PoolBy};

use super::{Answer, Host, Worker, bytes_of, bytes_of_words, floats_of};
use crate::Error;
use crate::decoder::{Reading, Use};
use crate::facts::{self, Wanted};

/// How much of the full light is its colour; the rest is the picture.
const TINT: f32 = 0.2;

impl<H: Host> Worker<H> {
    /// Answers with numbers. What needs the decoder's rows is computed on the GPU, or by the CPU twins where there is none
    /// or it has just been lost.
    pub(super) async fn numbers(
        &mut self,
        id: u32,
        request: &GpuRequest,
        buffers: &[Vec<u8>],
    ) -> Result<Answer, Error> {
        let cancel = self.cancels.of(id);
        match self.compute(id, request, buffers, &cancel).await {
            Err(error) if self.let_go_if_lost(&error) => self.compute(id, request, buffers, &cancel).await,
            outcome => outcome,
        }
    }

    async fn compute(
        &self,
        id: u32,
        request: &GpuRequest,
        buffers: &[Vec<u8>],
        cancel: &Cancel,
    ) -> Result<Answer, Error> {
        let loaded = self.engine.as_ref().ok_or(Error::NotLoaded)?;
        let (latents, d_model) = (loaded.latents(), loaded.d_model());
        let host = &self.host;
        if let &GpuRequest::Facts { feature, .. } | &GpuRequest::Neighbours { feature, .. } = request
            && feature >= latents
        {
            return Err(Error::NoFeature { feature, latents });
        }
        let is_small = matches!(request, GpuRequest::Rank { .. } | GpuRequest::Facts { .. });
        let gpu = if is_small { None } else { loaded.decoding_gpu().await? };
        let path = if gpu.is_some() { ComputePath::WebGpu } else { ComputePath::Cpu };
        let answer = |buffers| Ok(Answer { reply: GpuReply::Numbers { id, path }, buffers });
        if let &GpuRequest::Neighbours { feature, count, .. } = request {
            let decoder = loaded.decoder()?;
            let only = [feature];
            let reading = Reading { host, id, cancel, wanted: Some(&only) };
            let row = decoder.read(&reading, &|| Ok(Use::Keep(Vec::new()))).await?.gathered();
            let reading = Reading { wanted: None, ..reading };
            let cosines = decoder.read(&reading, &|| Ok(Use::compare(gpu, &row))).await?.gathered();
            let (features, cosines): (Vec<u32>, Vec<f32>) =
                nearest(&cosines, count as usize, Some(feature)).into_iter().unzip();
            return answer(vec![bytes_of_words(&features), bytes_of(&cosines)]);
        }
        let encoded = self.encoded.as_ref().ok_or(Error::NotEncoded)?;
        let [tokens] = buffers else {
            return Err(Error::Message(format!("{} buffers; expected one, the selected tokens", buffers.len())));
        };
        let tokens: Vec<u32> = tokens.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
        match *request {
            GpuRequest::Rank { by_mean, count, .. } => {
                let by = if by_mean { PoolBy::Mean } else { PoolBy::Max };
                let ranked = feature_pool(&encoded.top, latents, &tokens, by, count as usize)?;
                let (features, values): (Vec<u32>, Vec<f32>) =
                    ranked.iter().map(|found| (found.feature, if by_mean { found.mean } else { found.max })).unzip();
                answer(vec![bytes_of_words(&features), bytes_of(&values)])
            }
            GpuRequest::Facts { feature, bins, count, .. } => {
                let wanted = Wanted { feature, latents, bins, count };
                let found = facts::facts(&encoded.select(&tokens)?, wanted)?;
                let (together, both): (Vec<u32>, Vec<u32>) = found.together.into_iter().unzip();
                let words = [vec![found.place, found.firing], found.counts, together, both].concat();
                answer(vec![bytes_of_words(&words), bytes_of(&[found.mean, found.max])])
            }
            _ => {
                let decoder = loaded.decoder()?;
                let top = encoded.select(&tokens)?;
                let active = top.active_latents();
                let reading = Reading { host, id, cancel, wanted: Some(&active) };
                let decode = decoder.read(&reading, &|| Use::decode(gpu, &top, d_model)).await?;
                let hidden = encoded.hidden_of(&tokens, d_model);
                let decoded = decode.decoded(&hidden, &decoder.b_dec, cancel).await?;
                let error = facts::relative_error(&decoded, &hidden, d_model);
                answer(vec![bytes_of(&[decoded.fvu as f32, error])])
            }
        }
    }

    /// Draws shares of light on the canvas.
    pub(super) fn draw(
        &mut self,
        id: u32,
        grid: [u32; 2],
        size: [u32; 2],
        buffers: &[Vec<u8>],
    ) -> Result<Answer, Error> {
        let shape = MapShape::new(grid, size)?;
        let light = floats_of(buffers.first().map_or(&[][..], Vec::as_slice));
        let loaded = self.engine.as_ref().ok_or(Error::NotLoaded)?;
        loaded.engine()?;
        let (Some(gpu), Some(screen)) = (loaded.gpu(), &self.screen) else { return Err(Error::NoCanvas) };
        if self.canvas.is_none() {
            self.canvas = Some(Canvas::new(gpu, screen)?);
        }
        self.canvas.as_mut().ok_or(Error::NoCanvas)?.draw(gpu, &light, shape, TINT)?;
        Ok(GpuReply::Numbers { id, path: ComputePath::WebGpu }.into())
    }
}
