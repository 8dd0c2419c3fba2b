//! A request in, a reply and its buffers out.

use api::gpu::{GpuReply, GpuRequest};
use half::f16;
use shaders::{MapShape, SaeShape, TopK};

use crate::Error;
use crate::config::SaeConfig;
use crate::engine::{Destination, Engine, GpuEngine};
use crate::load::{SaeReader, Source, small_file};
use crate::safetensors::SaeTensors;

/// A `cfg.json` is a few hundred bytes.
const MAX_CONFIG_BYTES: usize = 64 << 10;

/// What the worker needs from the world around it.
pub trait Host: Source {
    /// Tells the page something that is not the answer to a request.
    fn post(&self, reply: &GpuReply);

    /// A clock, in milliseconds.
    fn now_ms(&self) -> f64;

    /// The GPU's name, where the host knows it better than the device.
    async fn adapter_name(&self) -> Option<String>;
}

/// A message's JSON, and the buffers beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub reply: GpuReply,
    pub buffers: Vec<Vec<u8>>,
}

impl From<GpuReply> for Answer {
    fn from(reply: GpuReply) -> Self {
        Self { reply, buffers: Vec::new() }
    }
}

/// The worker's state between requests.
pub struct Worker<H> {
    host: H,
    engine: Option<Engine>,
    /// The last encode, for maps.
    top: Option<TopK>,
}

impl<H: Host> Worker<H> {
    pub fn new(host: H) -> Self {
        Self { host, engine: None, top: None }
    }

    pub fn host(&self) -> &H {
        &self.host
    }

    /// Handles one message; what goes wrong becomes [`GpuReply::Failed`].
    pub async fn handle(&mut self, json: &str, buffers: &[Vec<u8>]) -> Answer {
        let request = match serde_json::from_str::<GpuRequest>(json) {
            Ok(request) => request,
            Err(error) => return failed(None, &Error::Message(error.to_string())),
        };
        match request {
            GpuRequest::Load { id, weights_url, config_url, force_cpu } => {
                let loaded = self.load(id, &weights_url, &config_url, force_cpu).await;
                loaded.map_or_else(|error| failed(Some(id), &error), Answer::from)
            }
            GpuRequest::Encode { id, tokens } => {
                let encoded = self.encode(id, tokens, buffers).await;
                encoded.unwrap_or_else(|error| self.give_up(id, &error))
            }
            GpuRequest::Map { id, feature, start, grid, size } => {
                let map = self.map(id, feature, start, grid, size).await;
                map.unwrap_or_else(|error| self.give_up(id, &error))
            }
        }
    }

    /// The answer to a request that failed. A device that is lost or has reported an error stays so: it is let go.
    fn give_up(&mut self, id: u32, error: &Error) -> Answer {
        let lost = matches!(error, Error::Shaders(shaders::Error::Lost(_) | shaders::Error::Gpu(_)));
        if lost {
            (self.engine, self.top) = (None, None);
        }
        GpuReply::Failed { id: Some(id), detail: error.to_string(), lost }.into()
    }

    /// Puts the SAE on the GPU, or into the CPU twin where the GPU will not do.
    async fn load(&mut self, id: u32, weights_url: &str, config_url: &str, force_cpu: bool) -> Result<GpuReply, Error> {
        // The old one goes first: there may not be room for both.
        (self.engine, self.top) = (None, None);
        let config = SaeConfig::parse(&small_file(&self.host, config_url, MAX_CONFIG_BYTES).await?)?;
        let (mut reader, tensors) = SaeReader::open(&self.host, weights_url).await?;
        config.check(tensors.latents, tensors.d_model)?;
        let shape = SaeShape::new(tensors.d_model, tensors.latents, config.k)?;

        let (mut adapter, mut reason) = (String::new(), None);
        if force_cpu {
            reason = Some("as asked for in the address".to_owned());
        } else {
            match self.load_on_gpu(id, &mut reader, &tensors, shape).await {
                Ok((engine, name)) => {
                    adapter = name;
                    self.engine = Some(engine);
                }
                Err(Error::Shaders(error)) => reason = Some(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        if self.engine.is_none() {
            let destination = Destination::cpu(shape, tensors.weight.dtype)?;
            self.engine = Some(self.fill(id, &mut reader, &tensors, destination).await?);
        }
        let engine = self.engine.as_ref().ok_or(Error::NotLoaded)?;
        let SaeShape { d_model, latents, k } = shape;
        Ok(GpuReply::Loaded { id, path: engine.path(), adapter, reason, latents, d_model, k })
    }

    /// The SAE on the GPU, and the GPU's name.
    async fn load_on_gpu(
        &self,
        id: u32,
        reader: &mut SaeReader<'_, H>,
        tensors: &SaeTensors,
        shape: SaeShape,
    ) -> Result<(Engine, String), Error> {
        let engine = GpuEngine::new(shape, tensors.weight.dtype).await?;
        let adapter = match self.host.adapter_name().await {
            Some(name) => name,
            None => engine.adapter().to_owned(),
        };
        let engine = self.fill(id, reader, tensors, Destination::Gpu(Box::new(engine))).await?;
        Ok((engine, adapter))
    }

    /// Streams the tensors in the order they have in the file, and reports the progress.
    async fn fill(
        &self,
        id: u32,
        reader: &mut SaeReader<'_, H>,
        tensors: &SaeTensors,
        mut destination: Destination,
    ) -> Result<Engine, Error> {
        let SaeTensors { weight, b_enc, b_dec, .. } = tensors;
        let total = weight.bytes() + b_enc.bytes() + b_dec.bytes();
        let (mut b_enc_values, mut b_dec_values) = (Vec::new(), Vec::new());
        let mut received = 0;
        let mut in_order = [weight, b_enc, b_dec];
        in_order.sort_by_key(|tensor| tensor.start);
        for tensor in in_order {
            if tensor == weight {
                let progress = |offset: u64, piece: &[u8]| {
                    destination.write_weights(offset, piece)?;
                    let received = received + offset + piece.len() as u64;
                    self.host.post(&GpuReply::Progress { id, received, total });
                    Ok(())
                };
                reader.stream_tensor(weight, progress).await?;
            } else if tensor == b_enc {
                b_enc_values = reader.read_tensor(b_enc).await?;
            } else {
                b_dec_values = reader.read_tensor(b_dec).await?;
            }
            received += tensor.bytes();
        }
        self.host.post(&GpuReply::Progress { id, received, total });
        destination.finish(b_enc_values, b_dec_values).await
    }

    /// Encodes one buffer of f16 `[tokens, d_model]`.
    async fn encode(&mut self, id: u32, tokens: u32, buffers: &[Vec<u8>]) -> Result<Answer, Error> {
        let engine = self.engine.as_ref().ok_or(Error::NotLoaded)?;
        let [hidden] = buffers else {
            return Err(Error::Message(format!("encode came with {} buffers; expected 1", buffers.len())));
        };
        let d_model = engine.shape().d_model;
        let expected = u64::from(tokens) * u64::from(d_model) * 2;
        if hidden.len() as u64 != expected {
            let given = hidden.len();
            let expected = format!("{tokens} tokens × {d_model} f16 = {expected}");
            return Err(Error::Message(format!("the hidden states have {given} bytes; expected {expected}")));
        }
        let start = self.host.now_ms();
        let hidden: Vec<f32> =
            hidden.as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect();
        let top = engine.encode(&hidden, tokens).await?;
        let ms = (self.host.now_ms() - start) as f32;
        let indices = top.top_indices.iter().flat_map(|latent| latent.to_le_bytes()).collect();
        let acts = bytes_of(&top.top_acts);
        let reply = GpuReply::Encoded { id, tokens, k: top.k, ms };
        self.top = Some(top);
        Ok(Answer { reply, buffers: vec![indices, acts] })
    }

    /// Draws one feature of the last encode.
    async fn map(&self, id: u32, feature: u32, start: u32, grid: [u32; 2], size: [u32; 2]) -> Result<Answer, Error> {
        let engine = self.engine.as_ref().ok_or(Error::NotLoaded)?;
        let top = self.top.as_ref().ok_or(Error::NotEncoded)?;
        let latents = engine.shape().latents;
        if feature >= latents {
            return Err(Error::NoFeature { feature, latents });
        }
        let map = engine.map(top, feature, start, MapShape::new(grid, size)?).await?;
        let max = map.iter().copied().fold(0.0, f32::max);
        Ok(Answer { reply: GpuReply::Map { id, size, max }, buffers: vec![bytes_of(&map)] })
    }
}

/// The answer to a request that failed.
pub fn failed(id: Option<u32>, error: &Error) -> Answer {
    GpuReply::Failed { id, detail: error.to_string(), lost: false }.into()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;
