//! The page's side of the GPU worker: created on first use, spoken to in [`api::gpu`] messages.
//!
//! A message is a JS array `[json, buffer?, …]`; buffers are transferred. The worker keeps the SAE between runs,
//! so a second analysis only moves hidden states.

use api::gpu::{ComputePath, GpuReply, GpuRequest};
use futures_channel::oneshot;
use js_sys::{Array, ArrayBuffer, Float32Array, Reflect, Uint32Array};
use leptos::prelude::{ArcRwSignal, Set};
use std::{cell::RefCell, collections::BTreeMap};
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use web_sys::{Event, MessageEvent, Worker, WorkerOptions, WorkerType};

use crate::{app::SiteAssets, ranking::TopActs};

/// Bytes of the SAE that have arrived, and when it started (milliseconds of the page's clock).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    pub received: u64,
    pub total: u64,
    pub started_ms: f64,
}

/// The SAE as the worker holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub path: ComputePath,
    /// The GPU's name, if the browser tells it.
    pub adapter: String,
    /// Why the CPU twin runs, if it does.
    pub reason: Option<String>,
    pub latents: u32,
    pub d_model: u32,
    pub k: u32,
}

/// Result of an encode.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub acts: TopActs,
    pub ms: f32,
    /// What computed it: another device than before, if that one was lost.
    pub loaded: Loaded,
}

/// What to load: everything that makes a second load necessary when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LoadKey {
    weights_url: String,
    config_url: String,
    force_cpu: bool,
}

/// Why the worker did not do what it was asked for.
#[derive(Debug, Clone, PartialEq)]
struct Trouble {
    detail: String,
    /// The device is gone: loading again may help.
    lost: bool,
}

impl From<String> for Trouble {
    fn from(detail: String) -> Self {
        Self { detail, lost: false }
    }
}

type Outcome = Result<(GpuReply, Vec<ArrayBuffer>), Trouble>;

/// The worker and everything that waits for it.
struct Link {
    worker: Worker,
    ready: bool,
    /// Why the worker is gone, once it is.
    broken: Option<String>,
    waiting_for_ready: Vec<oneshot::Sender<Result<(), String>>>,
    /// The newest load; answers to older ones are dropped.
    loading: Option<(u32, LoadKey)>,
    loaded: Option<(LoadKey, Loaded)>,
    waiting_for_load: Vec<oneshot::Sender<Result<Loaded, String>>>,
    waiting: BTreeMap<u32, oneshot::Sender<Outcome>>,
    next_id: u32,
    started_ms: f64,
    /// Kept alive as long as the worker.
    _on_message: Closure<dyn FnMut(MessageEvent)>,
    _on_error: Closure<dyn FnMut(Event)>,
}

impl Link {
    fn new_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }
}

thread_local! {
    static LINK: RefCell<Option<Link>> = const { RefCell::new(None) };
    static PROGRESS: ArcRwSignal<Option<Progress>> = ArcRwSignal::new(None);
}

/// Progress of the weights, while they load.
pub fn progress() -> ArcRwSignal<Option<Progress>> {
    PROGRESS.with(ArcRwSignal::clone)
}

/// Makes sure the worker runs and holds this SAE. Callers that ask for the same SAE share one load.
pub async fn load(weights_url: &str, config_url: &str, force_cpu: bool) -> Result<Loaded, String> {
    let key = LoadKey { weights_url: weights_url.into(), config_url: config_url.into(), force_cpu };
    wait_until_ready().await?;
    let (sender, receiver) = oneshot::channel();
    with_link(|link| {
        if let Some((_, loaded)) = link.loaded.as_ref().filter(|(loaded, _)| *loaded == key) {
            // The receiver lives in this function.
            _ = sender.send(Ok(loaded.clone()));
            return Ok(());
        }
        if link.loading.as_ref().is_none_or(|(_, loading)| *loading != key) {
            fail_all(&mut link.waiting_for_load, "another autoencoder was asked for");
            let LoadKey { weights_url, config_url, force_cpu } = key.clone();
            let id = link.new_id();
            link.started_ms = crate::browser::now_ms();
            link.loaded = None;
            post(&link.worker, &GpuRequest::Load { id, weights_url, config_url, force_cpu }, &[])?;
            link.loading = Some((id, key));
        }
        link.waiting_for_load.push(sender);
        Ok(())
    })?;
    receiver.await.unwrap_or_else(|_| Err(GONE.into()))
}

/// Encodes hidden states (f16 `[tokens, d_model]`) with the SAE that was loaded last.
///
/// A lost device (a driver that restarted, a laptop that woke up) is replaced once; if the new one is lost as well, the
/// CPU twin computes.
pub async fn encode(hidden: ArrayBuffer, tokens: u32) -> Result<Encoded, String> {
    let (key, mut loaded) = with_link(|link| link.loaded.clone().ok_or_else(|| "no autoencoder is loaded".to_owned()))?;
    for force_cpu in [key.force_cpu, true] {
        match encode_once(hidden.slice(0), tokens, &loaded).await {
            Err(trouble) if trouble.lost => {
                forget_loaded();
                loaded = load(&key.weights_url, &key.config_url, force_cpu).await?;
            }
            outcome => return outcome.map_err(|trouble| trouble.detail),
        }
    }
    encode_once(hidden, tokens, &loaded).await.map_err(|trouble| trouble.detail)
}

/// The buffer is given away.
async fn encode_once(hidden: ArrayBuffer, tokens: u32, loaded: &Loaded) -> Result<Encoded, Trouble> {
    let (reply, buffers) = ask(|id| GpuRequest::Encode { id, tokens }, &[hidden]).await?;
    let (GpuReply::Encoded { k, ms, .. }, [indices, acts]) = (&reply, buffers.as_slice()) else {
        return Err(format!("the worker answered an encode with {reply:?} and {} buffers", buffers.len()).into());
    };
    let indices = Uint32Array::new(indices).to_vec();
    let acts = Float32Array::new(acts).to_vec();
    let expected = tokens as usize * *k as usize;
    if indices.len() != expected || acts.len() != expected {
        return Err(format!("the worker sent {} of {expected} activations", acts.len()).into());
    }
    Ok(Encoded { acts: TopActs { k: *k as usize, indices, acts }, ms: *ms, loaded: loaded.clone() })
}

fn forget_loaded() {
    LINK.with_borrow_mut(|slot| {
        if let Some(link) = slot.as_mut() {
            link.loaded = None;
        }
    });
}

/// Smooth map of one feature of the last encode: f32 `[height, width]` and its maximum.
pub async fn map(feature: u32, start: u32, grid: [u32; 2], size: [u32; 2]) -> Result<(Vec<f32>, f32), String> {
    let asked = ask(|id| GpuRequest::Map { id, feature, start, grid, size }, &[]).await;
    let (reply, buffers) = asked.map_err(|trouble| trouble.detail)?;
    match (&reply, buffers.as_slice()) {
        (GpuReply::Map { max, .. }, [values]) => Ok((Float32Array::new(values).to_vec(), *max)),
        _ => Err(format!("the worker answered a map with {reply:?}")),
    }
}

const GONE: &str = "the worker ended without an answer; reload the page";

async fn ask(request: impl FnOnce(u32) -> GpuRequest, buffers: &[ArrayBuffer]) -> Outcome {
    let (sender, receiver) = oneshot::channel();
    with_link(|link| {
        if !link.ready {
            return Err(GONE.into());
        }
        let id = link.new_id();
        post(&link.worker, &request(id), buffers)?;
        link.waiting.insert(id, sender);
        Ok(())
    })?;
    receiver.await.unwrap_or_else(|_| Err(GONE.to_owned().into()))
}

fn post(worker: &Worker, request: &GpuRequest, buffers: &[ArrayBuffer]) -> Result<(), String> {
    let json = serde_json::to_string(request).map_err(|error| error.to_string())?;
    let message = Array::of1(&JsValue::from_str(&json));
    let transfer = Array::new();
    for buffer in buffers {
        message.push(buffer);
        transfer.push(buffer);
    }
    worker.post_message_with_transfer(&message, &transfer).map_err(|error| format!("the worker refused: {error:?}"))
}

/// Runs with the link, starting the worker on first use or after it broke.
fn with_link<T>(run: impl FnOnce(&mut Link) -> Result<T, String>) -> Result<T, String> {
    LINK.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|link| link.broken.is_some()) {
            *slot = Some(start()?);
        }
        slot.as_mut().ok_or_else(|| GONE.to_owned()).and_then(run)
    })
}

async fn wait_until_ready() -> Result<(), String> {
    let (sender, receiver) = oneshot::channel();
    with_link(|link| {
        if link.ready {
            // The receiver lives in this function.
            _ = sender.send(Ok(()));
        } else {
            link.waiting_for_ready.push(sender);
        }
        Ok(())
    })?;
    receiver.await.unwrap_or_else(|_| Err(GONE.into()))
}

fn start() -> Result<Link, String> {
    let assets = SiteAssets::from_document().ok_or("this page does not say where its worker is")?;
    let options = WorkerOptions::new();
    options.set_type(WorkerType::Module);
    let worker = Worker::new_with_options(&assets.worker_js, &options)
        .map_err(|error| format!("the worker could not be started: {error:?}"))?;
    let on_message = Closure::new(|event: MessageEvent| receive(&event.data()));
    // A module that cannot be fetched gives a plain event without a message.
    let on_error = Closure::new(|event: Event| {
        let message = Reflect::get(&event, &JsValue::from_str("message")).ok().and_then(|text| text.as_string());
        break_link(&message.unwrap_or_default());
    });
    worker.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
    worker.set_onerror(Some(on_error.as_ref().unchecked_ref()));
    Ok(Link {
        worker,
        ready: false,
        broken: None,
        waiting_for_ready: Vec::new(),
        loading: None,
        loaded: None,
        waiting_for_load: Vec::new(),
        waiting: BTreeMap::new(),
        next_id: 0,
        started_ms: 0.0,
        _on_message: on_message,
        _on_error: on_error,
    })
}

fn receive(data: &JsValue) {
    let message: &Array = data.unchecked_ref();
    let json = message.get(0).as_string().unwrap_or_default();
    let buffers: Vec<ArrayBuffer> = message.iter().skip(1).filter_map(|buffer| buffer.dyn_into().ok()).collect();
    match serde_json::from_str(&json) {
        Ok(reply) => dispatch(reply, buffers),
        Err(error) => break_link(&format!("a message cannot be read: {error}")),
    }
}

fn dispatch(reply: GpuReply, buffers: Vec<ArrayBuffer>) {
    let mut progress = None;
    let mut broken = None;
    LINK.with_borrow_mut(|slot| {
        let Some(link) = slot.as_mut() else { return };
        match reply {
            GpuReply::Ready => {
                link.ready = true;
                finish(&mut link.waiting_for_ready, &Ok(()));
            }
            GpuReply::Progress { id, received, total } => {
                if link.loading.as_ref().is_some_and(|(loading, _)| *loading == id) {
                    progress = Some(Some(Progress { received, total, started_ms: link.started_ms }));
                }
            }
            GpuReply::Loaded { id, path, adapter, reason, latents, d_model, k } => {
                if let Some((_, key)) = link.loading.take_if(|(loading, _)| *loading == id) {
                    let loaded = Loaded { path, adapter, reason, latents, d_model, k };
                    link.loaded = Some((key, loaded.clone()));
                    finish(&mut link.waiting_for_load, &Ok(loaded));
                    progress = Some(None);
                }
            }
            GpuReply::Encoded { id, .. } | GpuReply::Map { id, .. } => {
                if let Some(sender) = link.waiting.remove(&id) {
                    // A receiver that is gone no longer wants the answer.
                    _ = sender.send(Ok((reply, buffers)));
                }
            }
            GpuReply::Failed { id: Some(id), detail, lost } => {
                if link.loading.take_if(|(loading, _)| *loading == id).is_some() {
                    fail_all(&mut link.waiting_for_load, &detail);
                    progress = Some(None);
                } else if let Some(sender) = link.waiting.remove(&id) {
                    _ = sender.send(Err(Trouble { detail, lost }));
                }
            }
            GpuReply::Failed { id: None, detail, .. } => broken = Some(detail),
        }
    });
    if let Some(detail) = broken {
        break_link(&detail);
    }
    // Outside the borrow: whoever reads the signal may ask the worker at once.
    if let Some(progress) = progress {
        PROGRESS.with(|signal| signal.set(progress));
    }
}

fn break_link(detail: &str) {
    let detail = if detail.is_empty() { "the worker could not be loaded" } else { detail };
    LINK.with_borrow_mut(|slot| {
        let Some(link) = slot.as_mut() else { return };
        link.broken = Some(detail.into());
        link.worker.terminate();
        fail_all(&mut link.waiting_for_ready, detail);
        fail_all(&mut link.waiting_for_load, detail);
        for (_, sender) in std::mem::take(&mut link.waiting) {
            _ = sender.send(Err(detail.to_owned().into()));
        }
    });
    PROGRESS.with(|signal| signal.set(None));
}

fn fail_all<T: Clone>(waiting: &mut Vec<oneshot::Sender<Result<T, String>>>, detail: &str) {
    finish(waiting, &Err(detail.to_owned()));
}

fn finish<T: Clone>(waiting: &mut Vec<oneshot::Sender<Result<T, String>>>, outcome: &Result<T, String>) {
    for sender in waiting.drain(..) {
        // A receiver that is gone no longer wants the answer.
        _ = sender.send(outcome.clone());
    }
}

/// The line under the picture that says what computed it: `your GPU (M2) · f16 weights · exact top-32 · 41.2 ms`.
pub fn path_line(loaded: &Loaded, ms: f32) -> String {
    let place = match (loaded.path, loaded.adapter.as_str(), &loaded.reason) {
        (ComputePath::WebGpu, "", _) => "your GPU".to_owned(),
        (ComputePath::WebGpu, adapter, _) => format!("your GPU ({adapter})"),
        (ComputePath::Cpu, _, Some(reason)) => format!("your CPU (no WebGPU: {reason})"),
        (ComputePath::Cpu, _, None) => "your CPU".to_owned(),
    };
    format!("{place} · f16 weights · exact top-{} · {} ms", loaded.k, crate::format::sig3(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_line_says_what_ran() {
        let mut loaded = Loaded {
            path: ComputePath::WebGpu,
            adapter: "M2".into(),
            reason: None,
            latents: 3_072,
            d_model: 192,
            k: 32,
        };
        assert_eq!(path_line(&loaded, 41.23), "your GPU (M2) · f16 weights · exact top-32 · 41.2 ms");
        loaded.path = ComputePath::Cpu;
        loaded.reason = Some("no adapter".into());
        assert_eq!(path_line(&loaded, 120.4), "your CPU (no WebGPU: no adapter) · f16 weights · exact top-32 · 120 ms");
    }

    #[test]
    fn messages_keep_the_shape_the_worker_reads() {
        let json = serde_json::to_string(&GpuRequest::Encode { id: 3, tokens: 65 });
        assert_eq!(json.ok().as_deref(), Some(r#"{"type":"encode","id":3,"tokens":65}"#));
    }
}
