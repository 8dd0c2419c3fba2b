//! A server whose engines are other processes (here: other routers on real sockets).

use crate::common::{
    Answer, SOURCE, Server, form_request, json_request, picture_bytes, send, serve_args, server, start_engine,
    steer_request, steered, tiny_source, write_artifacts,
};
use api::{AttributeRequest, AttributeResult, EngineInfo, ErrorCode, SteerRequest};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{Request, Response, StatusCode},
};
use futures::StreamExt;
use image::ImageFormat;
use safetensors::SafeTensors;
use server::{
    EngineState,
    config::{EngineChoice, ServeArgs},
    engine::Engine,
    router::engine_router,
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};
use tower::ServiceExt;

/// A router on a socket and a runtime of its own, as a process would be; its POST requests are counted.
struct Remote {
    url: String,
    requests: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Remote {
    fn start(router: Router) -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted: Router = Router::new().fallback(count).with_state((router, Arc::clone(&requests)));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move { axum::serve(TcpListener::from_std(listener).unwrap(), counted).await });
        Self { url, requests, runtime: Some(runtime) }
    }

    fn posts(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Listener and connections are gone, as after a crash.
    async fn stop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
        let address = self.url.strip_prefix("http://").unwrap();
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // To wait for a runtime is not allowed inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn count(State((router, posts)): State<(Router, Arc<AtomicUsize>)>, request: Request<Body>) -> Response<Body> {
    if request.method() == "POST" {
        posts.fetch_add(1, Ordering::Relaxed);
    }
    router.oneshot(request).await.unwrap()
}

/// An address where nobody listens.
async fn down() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn alone(engine: Engine) -> Router {
    engine_router(EngineState { engine: engine.into(), catalogue: None })
}

/// Has the right model, and no room ever: what an engine with a full queue answers.
fn busy(engine: Engine) -> Router {
    let engine = alone(engine);
    Router::new().route("/api/v1/engine", axum::routing::get(info).with_state(engine)).fallback(no_room)
}

async fn info(State(engine): State<Router>, request: Request<Body>) -> Response<Body> {
    engine.oneshot(request).await.unwrap()
}

async fn no_room() -> StatusCode {
    StatusCode::SERVICE_UNAVAILABLE
}

async fn server_with(folder: &Path, urls: &[&str]) -> anyhow::Result<Router> {
    let engine = EngineChoice::Remote(urls.iter().map(|url| (*url).to_owned()).collect());
    let args = ServeArgs { engine, ..serve_args(folder) };
    Ok(server::serve::app(&args).await?.0)
}

/// A server and its one engine.
async fn with_engine() -> (Server, Remote, Engine) {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let engine = start_engine(folder.path(), 8).await;
    let remote = Remote::start(alone(engine.clone()));
    let router = server_with(folder.path(), &[&remote.url]).await.unwrap();
    (Server { router, folder }, remote, engine)
}

fn steer(request: &SteerRequest) -> Request<Body> {
    json_request(&format!("{SOURCE}/steer"), serde_json::to_string(request).unwrap())
}

fn words() -> Request<Body> {
    form_request(&format!("{SOURCE}/extract"), &[("prompt", None, b"a red cat")])
}

fn hidden(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    SafeTensors::deserialize(&answer.body).unwrap().tensor("hidden").unwrap().data().to_vec()
}

#[tokio::test]
async fn answers_come_through() {
    let (server, remote, _engine) = with_engine().await;
    let stored: [(&str, Option<&str>, &[u8]); 1] = [("picture", None, b"sample-0")];
    let extracted = server.send(form_request(&format!("{SOURCE}/extract?dtype=f32&lens=2"), &stored)).await;
    assert_eq!(hidden(&extracted).len() % 128, 0);
    assert!(extracted.header("x-engine").starts_with("cpu;ms="));
    assert_eq!(extracted.header("content-type"), "application/octet-stream");
    assert_eq!(SafeTensors::deserialize(&extracted.body).unwrap().len(), 6);
    let upload = picture_bytes(32, 32, ImageFormat::WebP);
    let own: [(&str, Option<&str>, &[u8]); 1] = [("image", Some("own.webp"), &upload)];
    let uploaded = server.send(form_request(&format!("{SOURCE}/extract?dtype=f32"), &own)).await;
    assert_eq!(hidden(&uploaded), hidden(&extracted));

    let result = steered(&server.send(steer(&steer_request())).await);
    assert!(!result.steered.tokens.is_empty());
    let request = AttributeRequest {
        prompt: "What is this?".into(),
        picture: Some("sample-0".into()),
        answer: Some("red".into()),
        baseline: Some("blue".into()),
        ..AttributeRequest::default()
    };
    let body = serde_json::to_string(&request).unwrap();
    let answer = server.send(json_request(&format!("{SOURCE}/attribute"), body)).await;
    let attributed: AttributeResult = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(attributed.grid, [4, 4]);
    assert_eq!(remote.posts(), 4);
    let info: EngineInfo = server.json("/api/v1/engine").await;
    assert_eq!((info.free, info.latents), (8, 64));
    let health: serde_json::Value = server.json("/healthz").await;
    assert_eq!(health, serde_json::json!({ "sources": 1, "engineFree": 8 }));
}

#[tokio::test]
async fn thresholds_come_through() {
    let (server, _remote, _engine) = with_engine().await;
    let words: [(&str, Option<&str>, &[u8]); 1] = [("prompt", None, b"a red cat")];
    let path = format!("{SOURCE}/extract?threshold=true");
    let answer = server.send(form_request(&path, &words)).await;
    assert!(!hidden(&answer).is_empty());
    let tensors = SafeTensors::deserialize(&answer.body).unwrap();
    assert_eq!(tensors.tensor("threshold").unwrap().shape(), tensors.tensor("input_ids").unwrap().shape());
    let elsewhere = server.send(form_request(&format!("{path}&hook=layers.2"), &words)).await;
    assert!(elsewhere.problem(400, ErrorCode::BadRequest).detail.contains("the SAE reads model.layers.1"));
}

#[tokio::test]
async fn a_local_engine_says_the_same() {
    let (remote, _remote, _engine) = with_engine().await;
    let local = server().await;
    let (there, here) = (remote.send(steer(&steer_request())).await, local.send(steer(&steer_request())).await);
    let (there, here) = (steered(&there), steered(&here));
    assert_eq!((there.default.text, there.steered.text), (here.default.text, here.steered.text));
}

#[tokio::test]
async fn what_an_engine_refuses_is_refused_here() {
    let (server, _remote, _engine) = with_engine().await;
    let no_picture: [(&str, Option<&str>, &[u8]); 1] = [("image", Some("a.png"), b"just words")];
    let problem = server.send(form_request(&format!("{SOURCE}/extract"), &no_picture)).await;
    assert!(problem.problem(422, ErrorCode::NotAnImage).detail.contains("not a picture"));
    let long = SteerRequest { prompt: "word ".repeat(400), ..steer_request() };
    server.send(steer(&long)).await.problem(400, ErrorCode::PromptTooLong);
    let nowhere = SteerRequest { picture: Some("nothing".into()), ..steer_request() };
    server.send(steer(&nowhere)).await.problem(404, ErrorCode::NotFound);
}

#[tokio::test]
async fn requests_go_round_and_past_engines_that_are_down_or_busy() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let engine = start_engine(folder.path(), 8).await;
    let (mut one, mut two) = (Remote::start(alone(engine.clone())), Remote::start(alone(engine.clone())));
    let full = Remote::start(busy(engine));
    let nobody = down().await;
    let router = server_with(folder.path(), &[&one.url, &nobody, &full.url, &two.url]).await.unwrap();
    for _ in 0..8 {
        hidden(&send(&router, words()).await);
    }
    assert_eq!(one.posts() + two.posts(), 8);
    assert!(one.posts() >= 2 && two.posts() >= 2, "{} and {}", one.posts(), two.posts());
    assert!(full.posts() >= 2);

    // Gone while serving: its connections are cut, and the next one answers.
    one.stop().await;
    let before = two.posts();
    for _ in 0..4 {
        hidden(&send(&router, words()).await);
    }
    assert_eq!(two.posts(), before + 4);
    two.stop().await;
    let answer = send(&router, words()).await;
    answer.problem(503, ErrorCode::EngineBusy);
    assert_eq!(answer.header("retry-after"), "2");
    send(&router, steer(&steer_request())).await.problem(503, ErrorCode::EngineBusy);
}

#[tokio::test]
async fn a_client_that_leaves_here_leaves_there() {
    let (server, _remote, engine) = with_engine().await;
    let long = SteerRequest { n_tokens: 256, temperature: 1.0, picture: None, ..steer_request() };
    let response = server.router.clone().oneshot(steer(&long)).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body().into_data_stream();
    let first = body.next().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("event: steer"), "token by token, not all at the end");
    drop(body);
    tokio::time::timeout(Duration::from_secs(20), async {
        while engine.running() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the run went on for nobody");
}

#[tokio::test]
async fn engines_that_do_not_fit_or_do_not_answer_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let engine = start_engine(folder.path(), 8).await;
    let remote = Remote::start(alone(engine));

    // Another SAE of the same size.
    let other: TempDir = tempfile::tempdir().unwrap();
    write_artifacts(other.path());
    let weights = "sae/model.layers.1/sae.safetensors";
    let bytes = std::fs::read(other.path().join(weights)).unwrap();
    let changed = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = changed.tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let note = [("note".to_owned(), "another file".to_owned())].into();
    std::fs::write(other.path().join(weights), safetensors::serialize(tensors, Some(note)).unwrap()).unwrap();
    let error = server_with(other.path(), &[&remote.url]).await.unwrap_err();
    assert!(format!("{error:#}").contains(&remote.url) && format!("{error:#}").contains("SAE is"), "{error:#}");

    let source = api::Source { latents: 65, ..tiny_source() };
    std::fs::write(folder.path().join("source.json"), serde_json::to_string(&source).unwrap()).unwrap();
    let error = server_with(folder.path(), &[&remote.url]).await.unwrap_err();
    assert!(format!("{error:#}").contains("latents is 64, but source.json says 65"), "{error:#}");

    let nobody = down().await;
    let error = server_with(other.path(), &[&nobody]).await.unwrap_err();
    assert!(format!("{error:#}").contains(&nobody), "{error:#}");
}
