//! A server on small artefacts, and a client without a network.

use api::{ErrorCode, Problem, SteerEvent, SteerFeature, SteerRequest, SteerResult};
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
};
use image::{ImageFormat, RgbImage};
use serde::de::DeserializeOwned;
use server::{
    cli::InterpreterArgs,
    config::{ComputeArgs, EngineChoice, ServeArgs},
    engine::{Engine, EngineSpec},
};
use std::{io::Cursor, path::Path};
use store::testing::{Artifacts, small_source};
use tempfile::TempDir;
use tower::ServiceExt;

/// Prefix of the source's routes.
pub const SOURCE: &str = "/api/v1/tiny/1-res-64";

/// A running server (without a socket) and its files.
pub struct Server {
    pub router: Router,
    pub folder: TempDir,
}

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// The source that fits `model::testing::tiny_checkpoint`.
pub fn tiny_source() -> api::Source {
    api::Source { source_id: "1-res-64".into(), latents: 64, d_model: 32, k: 8, grid: [4, 4], ..small_source() }
}

pub fn picture_bytes(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let picture = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 128]));
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Model, SAE, features, bundles and public files in `folder`.
pub fn write_artifacts(folder: &Path) {
    model::testing::tiny_checkpoint::<model::Cpu>(folder, &Default::default()).unwrap();
    Artifacts::new(tiny_source(), &picture_bytes(32, 32, ImageFormat::WebP)).write(folder).unwrap();
    let site = folder.join("site");
    std::fs::create_dir_all(site.join("page-1")).unwrap();
    std::fs::write(site.join("page-1/page.js"), "export default 1;").unwrap();
    let json = r#"{"browse":{"js":"/assets/page-1/page.js","wasm":"/assets/page-1/page_bg.wasm"},
        "analyze":{"js":"/assets/a/analyze.js","wasm":"/assets/a/analyze_bg.wasm"},
        "steer":{"js":"/assets/s/steer.js","wasm":"/assets/s/steer_bg.wasm"},
        "worker":{"js":"/assets/w/worker.js","wasm":"/assets/w/worker_bg.wasm"},"style":"/assets/style-1.css"}"#;
    std::fs::write(site.join("site.json"), json).unwrap();
    let public = folder.join("public");
    std::fs::create_dir_all(&public).unwrap();
    std::fs::write(public.join("favicon.svg"), "<svg xmlns='http://www.w3.org/2000/svg'/>").unwrap();
}

pub fn serve_args(folder: &Path) -> ServeArgs {
    ServeArgs {
        listen: None,
        database: Some("sqlite::memory:".into()),
        queue: None,
        artifacts: folder.to_owned(),
        site: Some(folder.join("site")),
        public: folder.join("public"),
        engine: EngineChoice::Local,
        compute: ComputeArgs::default(),
        engine_queue: 8,
        by: InterpreterArgs::default(),
    }
}

/// The engine of what [`write_artifacts`] wrote.
pub async fn start_engine(folder: &Path, queue: usize) -> Engine {
    Engine::start(EngineSpec::of_source(folder, &tiny_source()).unwrap(), queue).await.unwrap()
}

pub async fn server() -> Server {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let (router, _store) = server::serve::app(&serve_args(folder.path())).await.unwrap();
    Server { router, folder }
}

impl Server {
    pub async fn send(&self, request: Request<Body>) -> Answer {
        send(&self.router, request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// GET with one request header.
    pub async fn get_with(&self, path: &str, name: header::HeaderName, value: &str) -> Answer {
        self.send(Request::get(path).header(name, value).body(Body::empty()).unwrap()).await
    }

    pub async fn json<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }
}

pub async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec();
    Answer { status, headers, body }
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The problem in it, after checking what all problems have in common.
    pub fn problem(&self, status: u16, code: ErrorCode) -> Problem {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!((problem.status, problem.code), (status, code), "{problem:?}");
        assert_eq!(problem.kind, format!("/docs#error-{}", code.as_str()));
        assert!(!problem.request_id.is_empty() && !problem.detail.is_empty(), "{problem:?}");
        assert_eq!(self.header("x-request-id"), problem.request_id);
        problem
    }
}

/// A part of a form: name, file name, content.
pub type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

pub fn form_request(path: &str, parts: &[Part<'_>]) -> Request<Body> {
    const BOUNDARY: &str = "lmm-scope-test-boundary";
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let file = file.map_or(String::new(), |file| format!("; filename=\"{file}\""));
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    Request::post(path)
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(Body::from(body))
        .unwrap()
}

/// The events of a good steer answer.
pub fn events(answer: &Answer) -> Vec<SteerEvent> {
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let text = answer.text();
    let blocks = text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    let data = blocks.map(|block| {
        let (name, data) = block.split_once('\n').unwrap();
        assert_eq!(name, "event: steer");
        data.strip_prefix("data: ").unwrap()
    });
    data.map(|json| serde_json::from_str(json).unwrap()).collect()
}

/// The result of a good steer answer.
pub fn steered(answer: &Answer) -> SteerResult {
    match events(answer).pop() {
        Some(SteerEvent::Done { result }) => result,
        other => panic!("no end: {other:?}"),
    }
}

pub fn steer_request() -> SteerRequest {
    SteerRequest {
        features: vec![SteerFeature { index: 5, strength: 80.0 }],
        prompt: "What is this?".into(),
        picture: Some("sample-0".into()),
        n_tokens: 6,
        ..SteerRequest::default()
    }
}

pub fn json_request(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}
