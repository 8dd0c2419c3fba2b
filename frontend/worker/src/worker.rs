//! A request in, a reply and its buffers out.

mod numbers;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use api::gpu::{Compute, Fault, GpuReply, GpuRequest};
use api::{SaeManifest, Tier, json};
use shaders::{Cancel, Canvas, MapShape, Screen};

use crate::Error;
use crate::facts::Encoded;
use crate::load::{Source, small_file};
use crate::sae::{LoadedEngine, Wanted};
use crate::store::Store;

/// A manifest of a thousand shards is a few hundred kilobytes.
const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// What the worker needs from the world around it.
pub trait Host: Source + Store {
    /// Tells the page something that is not the answer to a request.
    fn post(&self, reply: &GpuReply);

    /// A clock, in milliseconds.
    fn now_ms(&self) -> f64;

    /// The GPU's name, and whether it is the CPU in disguise, where the host knows it better than the device.
    async fn adapter(&self) -> Option<(String, bool)>;

    /// A small text of an earlier visit.
    async fn recall(&self, key: &str) -> Option<String>;

    async fn remember(&self, key: &str, text: &str);

    /// Lets messages in: what computes for long holds up everything else here.
    async fn breathe(&self);
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

/// Flags of the requests that run or wait, by id. Whoever receives messages sets them at once; the requests themselves
/// are handled one after another.
#[derive(Debug, Clone, Default)]
pub struct Cancels(Rc<RefCell<BTreeMap<u32, Cancel>>>);

impl Cancels {
    /// The flag of a request, made if nobody has asked for it.
    pub fn of(&self, id: u32) -> Cancel {
        self.0.borrow_mut().entry(id).or_default().clone()
    }

    fn forget(&self, id: u32) {
        self.0.borrow_mut().remove(&id);
    }
}

/// The worker's state between requests.
pub struct Worker<H> {
    host: H,
    cancels: Cancels,
    engine: Option<LoadedEngine>,
    /// The last encode, for maps and numbers.
    encoded: Option<Encoded>,
    /// What the page gave away to be drawn on, and the hold that the device has of it.
    screen: Option<Screen>,
    canvas: Option<Canvas>,
}

impl<H: Host> Worker<H> {
    pub fn new(host: H) -> Self {
        Self { host, cancels: Cancels::default(), engine: None, encoded: None, screen: None, canvas: None }
    }

    pub fn host(&self) -> &H {
        &self.host
    }

    pub fn cancels(&self) -> Cancels {
        self.cancels.clone()
    }

    /// From now on this is drawn on.
    pub fn set_screen(&mut self, screen: Screen) {
        (self.screen, self.canvas) = (Some(screen), None);
    }

    /// Handles one message; what goes wrong becomes [`GpuReply::Failed`]. `None`: nothing to answer.
    pub async fn handle(&mut self, json: &str, mut buffers: Vec<Vec<u8>>) -> Option<Answer> {
        let request = match json::read::<GpuRequest>(json) {
            Ok(request) => request,
            Err(error) => return Some(failed(None, &Error::Message(error.to_string()))),
        };
        let (id, outcome) = match request {
            GpuRequest::Load { id, base_url, tier, compute } => (id, self.load(id, base_url, tier, compute).await),
            GpuRequest::Encode { id, tokens } => (id, self.encode(id, tokens, std::mem::take(&mut buffers)).await),
            GpuRequest::Map { id, feature, start, grid, size } => (id, self.map(id, feature, start, grid, size).await),
            GpuRequest::Rank { id, .. }
            | GpuRequest::Facts { id, .. }
            | GpuRequest::Reconstruct { id }
            | GpuRequest::Neighbours { id, .. } => (id, self.numbers(id, &request, &buffers).await),
            GpuRequest::Draw { id, grid, size } => (id, self.draw(id, grid, size, &buffers)),
            GpuRequest::Cancel { id } => {
                self.cancels.of(id).cancel();
                return None;
            }
            GpuRequest::Break { fault } => {
                self.break_with(fault);
                return None;
            }
        };
        self.cancels.forget(id);
        Some(outcome.unwrap_or_else(|error| self.give_up(id, &error)))
    }

    /// The answer to a request that failed. A device that is lost or has reported an error stays so: it is let go.
    fn give_up(&mut self, id: u32, error: &Error) -> Answer {
        self.let_go_if_lost(error);
        failed(Some(id), error)
    }

    /// Whether the device was let go. What was encoded stays: the CPU can answer questions about it.
    fn let_go_if_lost(&mut self, error: &Error) -> bool {
        match (error, &mut self.engine) {
            (Error::Shaders(cause), Some(loaded)) if error.is_lost() && loaded.gpu().is_some() => {
                loaded.let_go(cause.clone());
                self.canvas = None;
                true
            }
            _ => false,
        }
    }

    async fn load(&mut self, id: u32, base_url: String, tier: Option<Tier>, compute: Compute) -> Result<Answer, Error> {
        // The old one goes first: there may not be room for both.
        (self.engine, self.encoded, self.canvas) = (None, None, None);
        let json = small_file(&self.host, &format!("{base_url}{}", api::shards::MANIFEST), MAX_MANIFEST_BYTES).await?;
        let json = std::str::from_utf8(&json).map_err(|error| Error::Manifest(error.to_string()))?;
        let manifest: SaeManifest = json::read(json).map_err(|error| Error::Manifest(error.to_string()))?;
        manifest.check().map_err(Error::Manifest)?;
        let cancel = self.cancels.of(id);
        let wanted = Wanted { id, base_url: &base_url, manifest: &manifest, tier, compute, cancel: &cancel };
        let (engine, sae) = wanted.load(&self.host).await?;
        self.engine = Some(engine);
        Ok(GpuReply::Loaded { id, sae }.into())
    }

    /// Encodes one buffer of f16 `[tokens, d_model]`, and for a slice one of f32 `[tokens]`.
    async fn encode(&mut self, id: u32, tokens: u32, buffers: Vec<Vec<u8>>) -> Result<Answer, Error> {
        let cancel = self.cancels.of(id);
        self.encoded = None;
        let loaded = self.engine.as_ref().ok_or(Error::NotLoaded)?;
        let expected = 1 + usize::from(loaded.is_slice());
        if buffers.len() != expected {
            return Err(Error::Message(format!("encode came with {} buffers; expected {expected}", buffers.len())));
        }
        let d_model = loaded.d_model();
        let mut buffers = buffers.into_iter();
        let (bytes, expected) = (buffers.next().unwrap_or_default(), u64::from(tokens) * u64::from(d_model) * 2);
        if bytes.len() as u64 != expected {
            let given = bytes.len();
            let expected = format!("{tokens} tokens × {d_model} f16 = {expected}");
            return Err(Error::Message(format!("the hidden states have {given} bytes; expected {expected}")));
        }
        let thresholds: Vec<f32> = match buffers.next() {
            Some(bytes) if bytes.len() as u64 == 4 * u64::from(tokens) => floats_of(&bytes),
            Some(bytes) => {
                return Err(Error::Message(format!("{} bytes of thresholds for {tokens} tokens", bytes.len())));
            }
            None => Vec::new(),
        };
        let start = self.host.now_ms();
        let top = loaded.encode(&self.host, &bytes, tokens, &thresholds, &cancel).await?;
        let ms = (self.host.now_ms() - start) as f32;
        let buffers = vec![bytes_of_words(&top.top_indices), bytes_of(&top.top_acts)];
        let reply = GpuReply::Encoded { id, tokens, k: top.k, ms };
        self.encoded = Some(Encoded { top, hidden: bytes });
        Ok(Answer { reply, buffers })
    }

    /// Draws one feature of the last encode.
    async fn map(&self, id: u32, feature: u32, start: u32, grid: [u32; 2], size: [u32; 2]) -> Result<Answer, Error> {
        let cancel = self.cancels.of(id);
        let loaded = self.engine.as_ref().ok_or(Error::NotLoaded)?;
        let encoded = self.encoded.as_ref().ok_or(Error::NotEncoded)?;
        let latents = loaded.latents();
        if feature >= latents {
            return Err(Error::NoFeature { feature, latents });
        }
        let map = loaded.engine()?.map(&encoded.top, feature, start, MapShape::new(grid, size)?, &cancel).await?;
        let max = map.iter().copied().fold(0.0, f32::max);
        Ok(Answer { reply: GpuReply::Map { id, size, max }, buffers: vec![bytes_of(&map)] })
    }

    fn break_with(&self, fault: Fault) {
        if let Some(Ok(engine)) = self.engine.as_ref().map(LoadedEngine::engine) {
            engine.break_with(fault);
        }
    }
}

/// The answer to a request that failed.
pub fn failed(id: Option<u32>, error: &Error) -> Answer {
    let (lost, cancelled) = (error.is_lost(), error.is_cancelled());
    GpuReply::Failed { id, detail: error.to_string(), lost, cancelled }.into()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn bytes_of_words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[cfg(test)]
pub(crate) mod sample;
#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests;
