//! The browser's half of [`crate::api`]: `fetch`, problems, uploads, and streams.

use crate::{
    api::{Answer, Client, Endpoint, Pending, SourceKey, local_problem},
    gpu::Encoded,
    links::api_path,
    safetensors::{ExtractHeader, extract_header, header_length, top_acts},
    sse::SseParser,
};
use api::{
    EXTRACT_KINDS_HEADER, ErrorCode, Problem, SteerEvent, SteerRequest, Tier,
    gpu::{ComputePath, LoadedSae, Origin},
    json,
};
use js_sys::{Array, ArrayBuffer, Reflect, Uint8Array};
use send_wrapper::SendWrapper;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{AbortSignal, Blob, FormData, Headers, ReadableStreamDefaultReader, RequestInit, Response};

/// `fetch` against the page's own origin.
pub struct HttpClient;

impl Client for HttpClient {
    fn get(&self, endpoint: Endpoint) -> Pending {
        // The browser has one thread; the wrapper only satisfies `Send`.
        Box::pin(SendWrapper::new(async move {
            let response = send(&endpoint.path(), &RequestInit::new()).await?;
            body_text(&response).await
        }))
    }
}

/// Which picture an extract is about.
#[derive(Debug, Clone, PartialEq)]
pub enum PictureInput {
    /// A picture of the demo set, by id.
    Demo(String),
    /// The visitor's own; it goes to the server for its hidden states and is not kept.
    Own(OwnFile),
}

/// A file of the visitor's, comparable by identity.
#[derive(Debug, Clone)]
pub struct OwnFile(SendWrapper<web_sys::File>);

impl OwnFile {
    pub fn new(file: web_sys::File) -> Self {
        Self(SendWrapper::new(file))
    }
}

impl std::ops::Deref for OwnFile {
    type Target = web_sys::File;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl PartialEq for OwnFile {
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

/// Hidden states on their way to the GPU: the bytes stay in a JS buffer.
pub struct Extracted {
    pub header: ExtractHeader,
    /// f16 little endian `[tokens, d_model]`.
    pub hidden: ArrayBuffer,
    /// f32 little endian `[tokens]`, if they were asked for.
    pub thresholds: Option<ArrayBuffer>,
    /// Which engine ran and for how long: `cpu;ms=41`.
    pub engine: String,
}

/// `POST …/extract`: multipart, safetensors back.
pub async fn extract(
    key: &SourceKey,
    picture: &PictureInput,
    prompt: &str,
    thresholds: bool,
    signal: Option<&AbortSignal>,
) -> Answer<Extracted> {
    let form = FormData::new().map_err(|error| unexpected(&error))?;
    match picture {
        PictureInput::Demo(id) => form.append_with_str("picture", id),
        PictureInput::Own(file) => form.append_with_blob_and_filename("image", file, &file.name()),
    }
    .and_then(|()| if prompt.is_empty() { Ok(()) } else { form.append_with_str("prompt", prompt) })
    .map_err(|error| unexpected(&error))?;

    let init = RequestInit::new();
    init.set_method("POST");
    init.set_body(&form);
    init.set_signal(signal);
    let query = if thresholds { "/extract?threshold=true" } else { "/extract" };
    let response = send(&api_path(key, query), &init).await?;
    let engine = response.headers().get(EXTRACT_KINDS_HEADER).ok().flatten().unwrap_or_default();
    let promise = response.array_buffer().map_err(|error| unexpected(&error))?;
    let file: ArrayBuffer = JsFuture::from(promise).await.map_err(|error| network_problem(&error))?.unchecked_into();
    let (header, hidden) = split_extract(&file)
        .map_err(|detail| local_problem(ErrorCode::Internal, "The hidden states cannot be read", detail))?;
    let thresholds = header.threshold.map(|[begin, end]| file.slice_with_end(begin, end));
    Ok(Extracted { header, hidden, thresholds, engine })
}

/// `POST …/encode`: the server finds the features, where neither the visitor's GPU nor CPU can.
pub async fn encode_hidden(
    key: &SourceKey,
    header: &ExtractHeader,
    hidden: &ArrayBuffer,
    reason: &str,
    signal: Option<&AbortSignal>,
) -> Answer<Encoded> {
    let unreadable = |detail: String| local_problem(ErrorCode::Internal, "The features cannot be read", detail);
    let (tokens, d_model) = (header.tokens, header.d_model);
    let bytes = hidden.byte_length();
    let json = format!(r#"{{"hidden":{{"dtype":"F16","shape":[{tokens},{d_model}],"data_offsets":[0,{bytes}]}}}}"#);
    let head = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    let parts = Array::of2(&Uint8Array::from(head.as_slice()), hidden);
    let body = Blob::new_with_buffer_source_sequence(&parts).map_err(|error| unexpected(&error))?;
    let init = RequestInit::new();
    init.set_method("POST");
    init.set_body(&body);
    init.set_signal(signal);
    let started = crate::browser::now_ms();
    let response = send(&api_path(key, "/encode"), &init).await?;
    let promise = response.array_buffer().map_err(|error| unexpected(&error))?;
    let file: ArrayBuffer = JsFuture::from(promise).await.map_err(|error| network_problem(&error))?.unchecked_into();
    let acts = top_acts(&Uint8Array::new(&file).to_vec()).map_err(unreadable)?;
    let loaded = LoadedSae {
        path: ComputePath::Server,
        adapter: String::new(),
        reason: reason.to_owned(),
        tier: Tier::F16,
        agreement: None,
        latents: 0,
        d_model,
        k: acts.k as u32,
        origin: Origin::default(),
        not_kept: None,
        decoder: None,
        software: false,
    };
    Ok(Encoded { acts, ms: (crate::browser::now_ms() - started) as f32, loaded, notice: None })
}

/// Only the header comes into wasm memory; the data is cut out on the JS side, ready to be transferred.
fn split_extract(file: &ArrayBuffer) -> Result<(ExtractHeader, ArrayBuffer), String> {
    let bytes = Uint8Array::new(file);
    let length = header_length(&bytes.subarray(0, 8).to_vec())?;
    let json = bytes.subarray(8, 8 + length).to_vec();
    let header = extract_header(&json, file.byte_length())?;
    let [begin, end] = header.hidden;
    Ok((header, file.slice_with_end(begin, end)))
}

/// `POST …/steer`: calls `on_event` for every event until the stream ends. A stream without a last event is an error.
pub async fn steer(
    key: &SourceKey,
    request: &SteerRequest,
    signal: Option<&AbortSignal>,
    mut on_event: impl FnMut(SteerEvent),
) -> Answer<()> {
    let body = serde_json::to_string(request)
        .map_err(|error| local_problem(ErrorCode::Internal, "The request cannot be written", error.to_string()))?;
    let headers = Headers::new().map_err(|error| unexpected(&error))?;
    headers.set("content-type", "application/json").map_err(|error| unexpected(&error))?;
    headers.set("accept", "text/event-stream").map_err(|error| unexpected(&error))?;
    let init = RequestInit::new();
    init.set_method("POST");
    init.set_headers(&headers);
    init.set_body(&JsValue::from_str(&body));
    init.set_signal(signal);
    let response = send(&api_path(key, "/steer"), &init).await?;
    let stream = response
        .body()
        .ok_or_else(|| local_problem(ErrorCode::Internal, "No stream", "The server answered without a body."))?;
    let reader: ReadableStreamDefaultReader = stream.get_reader().unchecked_into();
    let mut parser = SseParser::default();
    let mut ended = false;
    while let Some(bytes) = next_chunk(&reader).await? {
        for event in parser.push(&bytes) {
            let event: SteerEvent = json::read(&event.data).map_err(|error| {
                local_problem(ErrorCode::Internal, "An event cannot be read", format!("{}: {error}", event.data))
            })?;
            ended |= !matches!(event, SteerEvent::Token { .. });
            on_event(event);
        }
    }
    if ended { Ok(()) } else { Err(local_problem(ErrorCode::Internal, "The answer was cut off", "Run it again.")) }
}

async fn next_chunk(reader: &ReadableStreamDefaultReader) -> Answer<Option<Vec<u8>>> {
    let chunk = JsFuture::from(reader.read()).await.map_err(|error| network_problem(&error))?;
    let field = |name: &str| Reflect::get(&chunk, &JsValue::from_str(name)).unwrap_or_default();
    if field("done").is_truthy() {
        return Ok(None);
    }
    Ok(Some(Uint8Array::new(&field("value")).to_vec()))
}

/// Sends, and turns everything that is not a success into a [`Problem`].
async fn send(path: &str, init: &RequestInit) -> Answer<Response> {
    let window = web_sys::window()
        .ok_or_else(|| local_problem(ErrorCode::Internal, "No window", "This code runs in pages only."))?;
    let response: Response = JsFuture::from(window.fetch_with_str_and_init(path, init))
        .await
        .map_err(|error| network_problem(&error))?
        .unchecked_into();
    if response.ok() {
        return Ok(response);
    }
    let status = response.status();
    let text = body_text(&response).await.unwrap_or_default();
    Err(json::read::<Problem>(&text).unwrap_or_else(|_| {
        let code = if status == 404 { ErrorCode::NotFound } else { ErrorCode::Internal };
        let detail = format!("The server answered {status} for {path}. Try again in a moment.");
        Problem { status, ..local_problem(code, "The server could not answer", detail) }
    }))
}

async fn body_text(response: &Response) -> Answer<String> {
    let promise = response.text().map_err(|error| unexpected(&error))?;
    let text = JsFuture::from(promise).await.map_err(|error| network_problem(&error))?;
    Ok(text.as_string().unwrap_or_default())
}

/// Title of the problem that a cancelled request ends with; pages do not show it.
pub const CANCELLED: &str = "Cancelled";

fn network_problem(error: &JsValue) -> Problem {
    let name = Reflect::get(error, &JsValue::from_str("name")).ok().and_then(|name| name.as_string());
    if name.as_deref() == Some("AbortError") {
        return local_problem(ErrorCode::BadRequest, CANCELLED, "The request was cancelled.");
    }
    let detail = "The server cannot be reached. Check the connection and try again.";
    local_problem(ErrorCode::Internal, "No connection", detail)
}

fn unexpected(error: &JsValue) -> Problem {
    local_problem(ErrorCode::Internal, "The browser refused", format!("{error:?}"))
}
