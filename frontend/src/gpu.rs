//! The page's side of the GPU worker: created on first use, spoken to in [`api::gpu`] messages.
//!
//! A message is a JS array `[json, part?, …]`; parts are transferred. The worker keeps the SAE between runs,
//! so a second analysis only moves hidden states.

mod numbers;

pub use numbers::{Facts, draw, explained, facts, neighbours, rank};

use api::Tier;
use api::gpu::{Compute, ComputePath, Fault, GpuReply, GpuRequest, LoadedSae};
use api::json;
use futures_channel::oneshot;
use js_sys::{Array, ArrayBuffer, Float32Array, Reflect, Uint32Array};
use leptos::prelude::{ArcRwSignal, Set};
use std::cell::RefCell;
use wasm_bindgen::{JsCast, JsValue, closure::Closure};
use web_sys::{Event, MessageEvent, Worker, WorkerOptions, WorkerType};

use crate::{app::worker_address, by_index::ByIndex, format::fixed, ranking::TopActs};

/// Bytes of the SAE that have arrived, and when it started (milliseconds of the page's clock).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    pub received: u64,
    /// Of them over the network; the rest was on this machine.
    pub fetched: u64,
    pub total: u64,
    pub started_ms: f64,
}

/// Result of an encode.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    pub acts: TopActs,
    pub ms: f32,
    /// What computed it: another device than before, if that one was lost.
    pub loaded: LoadedSae,
    /// What a visitor should know of a device that was lost on the way.
    pub notice: Option<String>,
}

/// What to load: everything that makes a second load necessary when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Folder of the manifest, with `/` at its end.
    pub base_url: String,
    pub tier: Option<Tier>,
    pub compute: Compute,
}

/// Why the worker did not do what it was asked for.
#[derive(Debug, Clone, PartialEq)]
struct Trouble {
    detail: String,
    /// The device is gone: loading again may help.
    lost: bool,
    cancelled: bool,
}

impl From<String> for Trouble {
    fn from(detail: String) -> Self {
        Self { detail, lost: false, cancelled: false }
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
    loading: Option<(u32, Wanted)>,
    loaded: Option<(Wanted, LoadedSae)>,
    waiting_for_load: Vec<oneshot::Sender<Result<LoadedSae, String>>>,
    waiting: ByIndex<oneshot::Sender<Outcome>>,
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
pub async fn load(wanted: &Wanted) -> Result<LoadedSae, String> {
    wait_until_ready().await?;
    let (sender, receiver) = oneshot::channel();
    with_link(|link| {
        if let Some((_, loaded)) = link.loaded.as_ref().filter(|(loaded, _)| loaded == wanted) {
            // The receiver lives in this function.
            _ = sender.send(Ok(loaded.clone()));
            return Ok(());
        }
        if link.loading.as_ref().is_none_or(|(_, loading)| loading != wanted) {
            fail_all(&mut link.waiting_for_load, "another autoencoder was asked for");
            if let Some((id, _)) = &link.loading {
                post(&link.worker, &GpuRequest::Cancel { id: *id }, &Array::new())?;
            }
            let Wanted { base_url, tier, compute } = wanted.clone();
            let id = link.new_id();
            link.started_ms = crate::browser::now_ms();
            link.loaded = None;
            post(&link.worker, &GpuRequest::Load { id, base_url, tier, compute }, &Array::new())?;
            link.loading = Some((id, wanted.clone()));
        }
        link.waiting_for_load.push(sender);
        Ok(())
    })?;
    receiver.await.unwrap_or_else(|_| Err(GONE.into()))
}

/// Gives up whatever the worker is doing; with `keep_load` all but a load, which the next analysis shares.
pub fn cancel(keep_load: bool) {
    LINK.with_borrow_mut(|slot| {
        let Some(link) = slot.as_mut() else { return };
        let loading = link.loading.iter().filter(|_| !keep_load).map(|(id, _)| *id);
        for id in loading.chain(link.waiting.indices()) {
            // A worker that takes no messages has nothing to give up.
            _ = post(&link.worker, &GpuRequest::Cancel { id }, &Array::new());
        }
        if !keep_load {
            // Who asks for it from now on wants a load that goes on.
            link.loading = None;
            fail_all(&mut link.waiting_for_load, "it was cancelled");
        }
    });
}

/// Breaks the device, to see how the page recovers.
fn break_with(fault: Fault) {
    // Without a worker there is nothing to break.
    _ = with_link(|link| post(&link.worker, &GpuRequest::Break { fault }, &Array::new()));
}

/// Encodes hidden states (f16 `[tokens, d_model]`) with the SAE that was loaded last; a slice also wants each token's
/// threshold (f32 `[tokens]`).
///
/// A lost device (a driver that restarted, a laptop that woke up) is replaced, with the SAE from this machine's storage;
/// if the new one is lost as well, by one with a smaller tier; then the CPU computes. `faults` break the device on
/// purpose, before the first try and those after it.
pub async fn encode(
    hidden: ArrayBuffer,
    thresholds: Option<ArrayBuffer>,
    tokens: u32,
    faults: &[Fault],
) -> Result<Encoded, String> {
    let (wanted, mut loaded) =
        with_link(|link| link.loaded.clone().ok_or_else(|| "no autoencoder is loaded".to_owned()))?;
    let smaller = match loaded.tier {
        Tier::F16 => Tier::Int8,
        Tier::Int8 | Tier::Int4 => Tier::Int4,
        Tier::Slice => Tier::Slice,
    };
    let again =
        [wanted.clone(), Wanted { tier: Some(smaller), ..wanted.clone() }, Wanted { compute: Compute::Cpu, ..wanted }];
    let mut again = again.into_iter();
    let mut faults = faults.iter();
    let mut notice = None;
    loop {
        if let Some(fault) = faults.next() {
            break_with(*fault);
        }
        let parts = Array::new();
        for buffer in std::iter::once(&hidden).chain(&thresholds) {
            parts.push(&buffer.slice(0));
        }
        let trouble = match encode_once(&parts, tokens, &loaded).await {
            Ok(encoded) => return Ok(Encoded { notice, ..encoded }),
            Err(trouble) if trouble.cancelled => return Err("it was cancelled".to_owned()),
            Err(trouble) if !trouble.lost => return Err(trouble.detail),
            Err(trouble) => trouble,
        };
        forget_loaded();
        let started = crate::browser::now_ms();
        // A tier that this SAE does not have, or a device that does not come back: the next one, then.
        loop {
            let Some(next) = again.next() else { return Err(trouble.detail) };
            if let Ok(now) = load(&next).await {
                let seconds = crate::format::sig3(((crate::browser::now_ms() - started) / 1000.0) as f32);
                notice = Some(format!("The GPU was lost and replaced in {seconds} s: {}", trouble.detail));
                loaded = now;
                break;
            }
        }
    }
}

/// The buffers are given away.
async fn encode_once(parts: &Array, tokens: u32, loaded: &LoadedSae) -> Result<Encoded, Trouble> {
    let (reply, buffers) = ask(&|id| GpuRequest::Encode { id, tokens }, parts).await?;
    let (GpuReply::Encoded { k, ms, .. }, [indices, acts]) = (&reply, buffers.as_slice()) else {
        return Err(format!("the worker answered an encode with something else, and {} buffers", buffers.len()).into());
    };
    let indices = Uint32Array::new(indices).to_vec();
    let acts = Float32Array::new(acts).to_vec();
    let expected = tokens as usize * *k as usize;
    if indices.len() != expected || acts.len() != expected {
        return Err(format!("the worker sent {} of {expected} activations", acts.len()).into());
    }
    Ok(Encoded { acts: TopActs { k: *k as usize, indices, acts }, ms: *ms, loaded: loaded.clone(), notice: None })
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
    let asked = ask(&|id| GpuRequest::Map { id, feature, start, grid, size }, &Array::new()).await;
    let (reply, buffers) = asked.map_err(|trouble| trouble.detail)?;
    match (&reply, buffers.as_slice()) {
        (GpuReply::Map { max, .. }, [values]) => Ok((Float32Array::new(values).to_vec(), *max)),
        _ => Err("the worker answered a map with something else".into()),
    }
}

const GONE: &str = "the worker ended without an answer; reload the page";

async fn ask(request: &dyn Fn(u32) -> GpuRequest, parts: &Array) -> Outcome {
    let (sender, receiver) = oneshot::channel();
    with_link(|link| {
        if !link.ready {
            return Err(GONE.into());
        }
        let id = link.new_id();
        post(&link.worker, &request(id), parts)?;
        link.waiting.insert(id, sender);
        Ok(())
    })?;
    receiver.await.unwrap_or_else(|_| Err(GONE.to_owned().into()))
}

/// `parts` are given away.
fn post(worker: &Worker, request: &GpuRequest, parts: &Array) -> Result<(), String> {
    let json = serde_json::to_string(request).map_err(|error| error.to_string())?;
    let message = Array::of1(&JsValue::from_str(&json));
    for part in parts.iter() {
        message.push(&part);
    }
    worker.post_message_with_transfer(&message, parts).map_err(|error| format!("the worker refused: {error:?}"))
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
    let address = worker_address().ok_or("this page does not say where its worker is")?;
    let options = WorkerOptions::new();
    options.set_type(WorkerType::Module);
    let worker = Worker::new_with_options(&address, &options)
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
        waiting: ByIndex::new(),
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
    match json::read(&json) {
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
            GpuReply::Progress { id, received, fetched, total } => {
                if link.loading.as_ref().is_some_and(|(loading, _)| *loading == id) {
                    progress = Some(Some(Progress { received, fetched, total, started_ms: link.started_ms }));
                }
            }
            GpuReply::Loaded { id, sae } => {
                if let Some((_, wanted)) = link.loading.take_if(|(loading, _)| *loading == id) {
                    link.loaded = Some((wanted, sae.clone()));
                    finish(&mut link.waiting_for_load, &Ok(sae));
                    progress = Some(None);
                }
            }
            GpuReply::Encoded { id, .. } | GpuReply::Map { id, .. } | GpuReply::Numbers { id, .. } => {
                if let Some(sender) = link.waiting.remove(id) {
                    // A receiver that is gone no longer wants the answer.
                    _ = sender.send(Ok((reply, buffers)));
                }
            }
            GpuReply::Failed { id: Some(id), detail, lost, cancelled } => {
                if link.loading.take_if(|(loading, _)| *loading == id).is_some() {
                    fail_all(&mut link.waiting_for_load, &detail);
                    progress = Some(None);
                } else if let Some(sender) = link.waiting.remove(id) {
                    _ = sender.send(Err(Trouble { detail, lost, cancelled }));
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

/// Where something was computed.
pub fn place(path: ComputePath) -> &'static str {
    match path {
        ComputePath::WebGpu => "your GPU",
        ComputePath::Cpu => "your CPU",
        ComputePath::Server => "the server",
    }
}

/// The line under the picture that says what computed it: `your GPU (M2) · f16 weights · exact top-32 · 41.2 ms`.
pub fn path_line(loaded: &LoadedSae, ms: f32) -> String {
    let place = match (loaded.path, loaded.adapter.as_str()) {
        (ComputePath::WebGpu, adapter) if !adapter.is_empty() => format!("your GPU ({adapter})"),
        (ComputePath::Cpu, _) if loaded.reason.starts_with("no WebGPU") => "your CPU (no WebGPU)".to_owned(),
        (path, _) => place(path).to_owned(),
    };
    let (k, tier) = (loaded.k, loaded.tier);
    let top = match (tier, &loaded.agreement) {
        (Tier::F16, _) => format!("exact top-{k}"),
        (Tier::Slice, _) => format!("exact top-{k} of some features"),
        (_, Some(agreement)) => format!("top-{k}, {}% as in f32", fixed(100.0 * agreement.overlap, 1)),
        (_, None) => format!("top-{k}, close to f32"),
    };
    format!("{place} · {tier} weights · {top} · {} ms", crate::format::sig3(ms))
}

/// Why it was computed there, and where the autoencoder came from.
pub fn why_line(loaded: &LoadedSae) -> String {
    let bytes = crate::format::bytes;
    let from = match (loaded.origin.stored, loaded.origin.fetched) {
        (0, 0) => String::new(),
        (stored, 0) => format!(" · {} from this machine", bytes(stored)),
        (0, fetched) => format!(" · {} fetched", bytes(fetched)),
        (stored, fetched) => format!(" · {} from this machine, {} fetched", bytes(stored), bytes(fetched)),
    };
    let not_kept = loaded.not_kept.as_ref().map(|reason| format!(" · not kept: {reason}")).unwrap_or_default();
    format!("{}{from}{not_kept}", loaded.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::gpu::Origin;

    #[test]
    fn the_path_line_says_what_ran() {
        let mut loaded = LoadedSae {
            path: ComputePath::WebGpu,
            adapter: "M2".into(),
            reason: "measured".into(),
            tier: Tier::F16,
            agreement: None,
            latents: 3_072,
            d_model: 192,
            k: 32,
            origin: Origin { stored: 0, fetched: 1_200_000 },
            not_kept: Some("private window".into()),
            decoder: None,
            software: false,
        };
        assert_eq!(path_line(&loaded, 41.23), "your GPU (M2) · f16 weights · exact top-32 · 41.2 ms");
        assert_eq!(why_line(&loaded), "measured · 1.20 MB fetched · not kept: private window");
        loaded.path = ComputePath::Cpu;
        loaded.tier = Tier::Int8;
        assert_eq!(path_line(&loaded, 120.4), "your CPU · int8 weights · top-32, close to f32 · 120 ms");
    }

    #[test]
    fn messages_keep_the_shape_the_worker_reads() {
        let json = serde_json::to_string(&GpuRequest::Encode { id: 3, tokens: 65 });
        assert_eq!(json.ok().as_deref(), Some(r#"{"encode":{"id":3,"tokens":65}}"#));
    }
}
