//! The worker in the browser: fetch, storage, messages, the adapter's name.

mod store;

use std::cell::RefCell;

use api::gpu::{GpuReply, GpuRequest};
use api::json;
use futures_channel::mpsc::UnboundedReceiver;
use js_sys::{Array, ArrayBuffer, JsString, Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{JsFuture, spawn_local};
use web_sys::{
    DedicatedWorkerGlobalScope, Headers, OffscreenCanvas, ReadableStream, ReadableStreamByobReader,
    ReadableStreamDefaultReader, RequestInit, Response,
};

use crate::Error;
use crate::load::{Source, Stream};
use crate::worker::{Answer, Cancels, Host, Worker, failed};
use shaders::Screen;
use store::Shelf;

/// Bytes of the buffer that a stream fills again and again.
const CHUNK_BYTES: u32 = 256 << 10;

/// Runs when the module is instantiated in a dedicated worker; elsewhere (in a test, on a page) it does nothing.
#[cfg(not(test))]
#[wasm_bindgen(start)]
pub fn start() {
    let Ok(scope) = js_sys::global().dyn_into::<DedicatedWorkerGlobalScope>() else {
        return;
    };
    report_panics(scope.clone());
    let (sender, requests) = futures_channel::mpsc::unbounded();
    let worker = Worker::new(BrowserHost::new(scope.clone()));
    let cancels = worker.cancels();
    let on_message = Closure::<dyn FnMut(web_sys::MessageEvent)>::new(move |event: web_sys::MessageEvent| {
        if !cancels_at_once(&event.data(), &cancels) {
            // The receiver lives as long as the worker.
            let _ = sender.unbounded_send(event.data());
        }
    });
    scope.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
    on_message.forget();
    worker.host().post(&GpuReply::Ready);
    spawn_local(serve(worker, requests));
}

/// A cancel does not wait for what it cancels.
fn cancels_at_once(message: &JsValue, cancels: &Cancels) -> bool {
    let json = message.dyn_ref::<Array>().and_then(|parts| parts.get(0).as_string());
    match json.filter(|json| json.contains("\"cancel\"")).map(|json| json::read(&json)) {
        Some(Ok(GpuRequest::Cancel { id })) => {
            cancels.of(id).cancel();
            true
        }
        _ => false,
    }
}

/// Handles messages one after another.
#[cfg_attr(test, expect(dead_code, reason = "tests have no page to serve"))]
async fn serve(mut worker: Worker<BrowserHost>, mut requests: UnboundedReceiver<JsValue>) {
    while let Ok(message) = requests.recv().await {
        let answer = match read_message(&message) {
            Ok((json, buffers, canvas)) => {
                if let Some(canvas) = canvas {
                    worker.set_screen(Screen::Canvas(canvas));
                }
                worker.handle(&json, buffers).await
            }
            Err(error) => Some(failed(None, &error)),
        };
        if let Some(answer) = answer {
            worker.host().send(answer);
        }
    }
}

/// A panic stops the worker; the page should hear of it.
#[cfg_attr(test, expect(dead_code, reason = "tests have their own panic hook"))]
fn report_panics(scope: DedicatedWorkerGlobalScope) {
    std::panic::set_hook(Box::new(move |info| {
        console_error_panic_hook::hook(info);
        let detail = format!("the GPU worker stopped ({info}). Reload the page to start it again");
        let host = BrowserHost::new(scope.clone());
        host.post(&GpuReply::Failed { id: None, detail, lost: false, cancelled: false });
    }));
}

/// A message as text, bytes, and the canvas if there is one.
type Parts = (String, Vec<Vec<u8>>, Option<OffscreenCanvas>);

/// `[json, buffer or canvas, …]`.
fn read_message(message: &JsValue) -> Result<Parts, Error> {
    let wrong = |what: &str| Error::Message(format!("{what}; expected [json, ArrayBuffer or OffscreenCanvas, …]"));
    let parts = message.dyn_ref::<Array>().ok_or_else(|| wrong("not an array"))?;
    let json = parts.get(0).as_string().ok_or_else(|| wrong("its first part is not text"))?;
    let (mut buffers, mut canvas) = (Vec::new(), None);
    for part in parts.iter().skip(1) {
        match part.dyn_into::<ArrayBuffer>() {
            Ok(buffer) => buffers.push(Uint8Array::new(&buffer).to_vec()),
            Err(part) => canvas = Some(part.dyn_into().map_err(|_| wrong("a later part is neither"))?),
        }
    }
    Ok((json, buffers, canvas))
}

/// The browser around a dedicated worker.
pub struct BrowserHost {
    scope: DedicatedWorkerGlobalScope,
    /// Opened when first used.
    shelf: RefCell<Option<Shelf>>,
}

impl BrowserHost {
    fn new(scope: DedicatedWorkerGlobalScope) -> Self {
        Self { scope, shelf: RefCell::default() }
    }

    /// Where files are kept.
    async fn shelf(&self) -> Shelf {
        if let Some(shelf) = &*self.shelf.borrow() {
            return shelf.clone();
        }
        let shelf = Shelf::open(&self.scope).await;
        self.shelf.replace(Some(shelf.clone()));
        shelf
    }

    /// Posts a message; its buffers are transferred.
    fn send(&self, answer: Answer) {
        let Ok(json) = serde_json::to_string(&answer.reply) else {
            return;
        };
        let message = Array::of1(&JsString::from(json));
        let transfer = Array::new();
        for bytes in answer.buffers {
            let buffer = Uint8Array::from(bytes.as_slice()).buffer();
            message.push(&buffer);
            transfer.push(&buffer);
        }
        // It can fail only for things that cannot be transferred, and these are fresh ArrayBuffers.
        let _ = self.scope.post_message_with_transfer(&message, &transfer);
    }

    async fn fetch(&self, url: &str, start: u64) -> Result<Response, JsValue> {
        let init = RequestInit::new();
        if start > 0 {
            let headers = Headers::new()?;
            headers.set("Range", &format!("bytes={start}-"))?;
            init.set_headers(&headers);
        }
        JsFuture::from(self.scope.fetch_with_str_and_init(url, &init)).await?.dyn_into()
    }
}

impl Host for BrowserHost {
    fn post(&self, reply: &GpuReply) {
        self.send(reply.clone().into());
    }

    fn now_ms(&self) -> f64 {
        self.scope.performance().map_or_else(js_sys::Date::now, |clock| clock.now())
    }

    async fn recall(&self, key: &str) -> Option<String> {
        self.recall_text(key).await
    }

    async fn remember(&self, key: &str, text: &str) {
        self.remember_text(key, text).await;
    }

    async fn breathe(&self) {
        self.timeout(0).await;
    }

    /// wgpu passes on the description only, which browsers often leave empty.
    async fn adapter(&self) -> Option<(String, bool)> {
        let get = |object: &JsValue, name: &str| Reflect::get(object, &JsString::from(name)).ok();
        let gpu = get(&get(&self.scope, "navigator")?, "gpu")?;
        let request = get(&gpu, "requestAdapter")?.dyn_into::<js_sys::Function>().ok()?;
        let options = js_sys::Object::new();
        Reflect::set(&options, &"powerPreference".into(), &"high-performance".into()).ok()?;
        let adapter = JsFuture::from(request.call1(&gpu, &options).ok()?.dyn_into::<Promise>().ok()?).await.ok()?;
        let info = get(&adapter, "info")?;
        let text = |name: &str| get(&info, name).and_then(|value| value.as_string()).filter(|text| !text.is_empty());
        let name = text("description").unwrap_or_else(|| {
            let parts: Vec<String> = ["vendor", "architecture", "device"].into_iter().filter_map(text).collect();
            parts.join(" ")
        });
        // Older browsers say it of the adapter.
        let is_fallback = |object: &JsValue| get(object, "isFallbackAdapter").is_some_and(|value| value.is_truthy());
        Some((name, is_fallback(&info) || is_fallback(&adapter)))
    }
}

impl Source for BrowserHost {
    type Stream = BodyStream;

    async fn open(&self, url: &str, start: u64) -> Result<BodyStream, Error> {
        let fail = |reason: String| Error::Fetch { url: url.to_owned(), reason };
        let response = self.fetch(url, start).await.map_err(|error| fail(text_of(&error)))?;
        if !response.ok() {
            return Err(fail(format!("the server answered {} {}", response.status(), response.status_text())));
        }
        let body = response.body().ok_or_else(|| fail("the answer has no body".to_owned()))?;
        // 200 to a request for a range: the whole file.
        let position = if response.status() == 206 { start } else { 0 };
        BodyStream::new(url, body, position)
    }
}

/// Reads the body of a response or a file. Into one buffer again and again, where the browser can do that: chunks of new
/// memory pile up until they are collected, to 180 MB for an SAE of 512 MiB out of storage (Chromium 156).
enum BodyReader {
    Reusing(ReadableStreamByobReader),
    Plain(ReadableStreamDefaultReader),
}

impl BodyReader {
    fn new(body: &ReadableStream) -> Result<Self, JsValue> {
        match ReadableStreamByobReader::new(body) {
            Ok(reader) => Ok(Self::Reusing(reader)),
            // A browser without such readers, or a stream of something else than bytes.
            Err(_) => ReadableStreamDefaultReader::new(body).map(Self::Plain),
        }
    }

    /// `{ done, value }`; `buffer` is given away, and comes back as that of the value.
    async fn read(&self, buffer: &ArrayBuffer) -> Result<JsValue, JsValue> {
        let result = match self {
            Self::Reusing(reader) => reader.read_with_array_buffer_view(&Uint8Array::new(buffer)),
            Self::Plain(reader) => reader.read(),
        };
        JsFuture::from(result).await
    }

    fn cancel(&self) -> Promise {
        match self {
            Self::Reusing(reader) => reader.cancel(),
            Self::Plain(reader) => reader.cancel(),
        }
    }
}

/// The body of a response; chunks stay in JS until they are copied, slice by slice.
pub struct BodyStream {
    url: String,
    reader: BodyReader,
    position: u64,
    chunk: Uint8Array,
    /// Bytes of `chunk` that were read.
    used: u32,
}

impl BodyStream {
    fn new(url: &str, body: ReadableStream, position: u64) -> Result<Self, Error> {
        let reader = BodyReader::new(&body)
            .map_err(|_| Error::Fetch { url: url.to_owned(), reason: "the answer cannot be streamed".to_owned() })?;
        let used = if matches!(reader, BodyReader::Reusing(_)) { CHUNK_BYTES } else { 0 };
        Ok(Self { url: url.to_owned(), reader, position, chunk: Uint8Array::new_with_length(used), used })
    }

    /// Gets the next chunk; whether there was one.
    async fn refill(&mut self) -> Result<bool, JsValue> {
        let buffer = self.chunk.buffer();
        // So that a read after one that failed finds nothing instead of a buffer that is gone.
        (self.chunk, self.used) = (Uint8Array::new_with_length(0), 0);
        let result = self.reader.read(&buffer).await?;
        // At its end a stream gives the buffer back with nothing in it.
        if let Ok(chunk) = Reflect::get(&result, &"value".into())?.dyn_into() {
            self.chunk = chunk;
        }
        Ok(!Reflect::get(&result, &"done".into())?.is_truthy())
    }
}

impl Stream for BodyStream {
    fn position(&self) -> u64 {
        self.position
    }

    async fn read(&mut self, slice: &mut [u8]) -> Result<usize, Error> {
        while self.used == self.chunk.length() {
            match self.refill().await {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    let reason = format!("the connection broke after {} bytes: {}", self.position, text_of(&error));
                    return Err(Error::Fetch { url: self.url.clone(), reason });
                }
            }
        }
        // A slice is below 4 GiB on wasm.
        let length = (self.chunk.length() - self.used).min(slice.len() as u32);
        self.chunk.subarray(self.used, self.used + length).copy_to(&mut slice[..length as usize]);
        self.used += length;
        self.position += u64::from(length);
        Ok(length as usize)
    }
}

impl Drop for BodyStream {
    /// Stops the download.
    fn drop(&mut self) {
        let cancelled = self.reader.cancel();
        spawn_local(async move {
            // A stream that already broke says so again.
            let _ = JsFuture::from(cancelled).await;
        });
    }
}

/// What a JS exception says.
fn text_of(error: &JsValue) -> String {
    match error.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => error.as_string().unwrap_or_else(|| format!("{error:?}")),
    }
}

#[cfg(test)]
mod tests;
