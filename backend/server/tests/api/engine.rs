//! The routes that use the model.

use crate::common::{
    Answer, Part, SOURCE, Server, events, form_request, json_request, picture_bytes, send, server, start_engine,
    steer_request,
};
use api::{
    Column, EngineInfo, ErrorCode, Positions, Provenance, SteerEvent, SteerFeature, SteerMethod, SteerRequest,
    TokenKind, TokenSpan,
};
use axum::{body::Body, http::Request};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use frontend::api::SourceKey;
use image::ImageFormat;
use safetensors::{Dtype, SafeTensors};
use server::{
    AppState,
    catalogue::Catalogue,
    encoder::Encoder,
    engine::{Engine, ExtractInput, SteerInput},
    router::router,
    weights::Weights,
};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use store::Store;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

async fn extract(server: &Server, parts: &[Part<'_>]) -> Answer {
    server.send(form_request(&format!("{SOURCE}/extract"), parts)).await
}

/// Spans and grid of a good extract answer, after checking shapes against each other.
fn checked_extract(answer: &Answer) -> (Vec<TokenSpan>, [u32; 2]) {
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    assert!(answer.header("x-engine").starts_with("cpu;ms="));
    let (_, header) = SafeTensors::read_metadata(&answer.body).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let spans: Vec<TokenSpan> = serde_json::from_str(&metadata["spans"]).unwrap();
    let provenance: Provenance = serde_json::from_str(&metadata["provenance"]).unwrap();
    assert!(provenance.model.starts_with("tiny@") && provenance.prompt_hash.len() == 12, "{provenance:?}");
    let tensors = SafeTensors::deserialize(&answer.body).unwrap();
    let (hidden, ids) = (tensors.tensor("hidden").unwrap(), tensors.tensor("input_ids").unwrap());
    let tokens = ids.shape()[0];
    assert_eq!((hidden.dtype(), hidden.shape()), (Dtype::F16, &[tokens, 32][..]));
    let values: Vec<f32> =
        hidden.data().chunks_exact(2).map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect();
    assert!(values.iter().all(|value| value.is_finite()) && values.iter().any(|value| *value != 0.0));
    assert_eq!(spans.first().unwrap().start, 0);
    assert_eq!(spans.last().unwrap().end as usize, tokens);
    (spans, serde_json::from_str(&metadata["grid"]).unwrap())
}

#[tokio::test]
async fn pictures_become_hidden_states() {
    let server = server().await;
    let by_id = extract(&server, &[("picture", None, b"sample-0")]).await;
    let (spans, grid) = checked_extract(&by_id);
    assert_eq!(grid, [4, 4]);
    let base = spans.iter().find(|span| span.kind == TokenKind::Base).unwrap();
    assert_eq!(base.end - base.start, 16);

    let upload = picture_bytes(32, 32, ImageFormat::WebP);
    let uploaded = extract(&server, &[("image", Some("own.webp"), &upload)]).await;
    checked_extract(&uploaded);
    let hidden =
        |answer: &Answer| SafeTensors::deserialize(&answer.body).unwrap().tensor("hidden").unwrap().data().to_vec();
    assert_eq!(hidden(&uploaded), hidden(&by_id), "the same picture gives the same hidden states");

    for (width, height) in [(1, 1), (900, 1), (1, 900)] {
        let thin = picture_bytes(width, height, ImageFormat::Png);
        checked_extract(&extract(&server, &[("image", Some("thin.png"), &thin)]).await);
    }
    let other = picture_bytes(50, 20, ImageFormat::Png);
    let parts: [Part<'_>; 2] = [("image", Some("own.png"), &other), ("prompt", None, b"What is this?")];
    let (spans, _) = checked_extract(&extract(&server, &parts).await);
    let words: String = spans.iter().flat_map(|span| span.tokens.iter().cloned()).collect();
    assert!(words.contains("What is this?"), "{words}");
    assert!(
        spans
            .iter()
            .filter(|span| span.kind == TokenKind::Text)
            .all(|span| span.tokens.len() as u32 == span.end - span.start)
    );
}

#[tokio::test]
async fn a_prompt_alone_and_a_query_are_enough() {
    let server = server().await;
    let (spans, grid) = checked_extract(&extract(&server, &[("prompt", None, b"a red cat")]).await);
    assert_eq!((grid, spans.len()), ([0, 0], 1));
    let path = format!("{SOURCE}/extract?picture=scene-0&prompt=why");
    let request = Request::post(path).body(Body::empty()).unwrap();
    checked_extract(&server.send(request).await);
}

#[tokio::test]
async fn bad_uploads_get_clear_answers() {
    let server = server().await;
    let png = picture_bytes(64, 64, ImageFormat::Png);
    let own: [(&str, &[u8], u16, ErrorCode, &str); 4] = [
        ("text", b"just words", 422, ErrorCode::NotAnImage, "not a picture"),
        ("empty file", b"", 422, ErrorCode::NotAnImage, "not a picture"),
        ("truncated", &png[..png.len() / 2], 422, ErrorCode::NotAnImage, "damaged or cut off"),
        ("bomb", &bomb_png(), 413, ErrorCode::ImageTooLarge, "40000×40000"),
    ];
    for (what, bytes, status, code, expected) in own {
        let problem = extract(&server, &[("image", Some("own.png"), bytes)]).await.problem(status, code);
        assert!(problem.detail.contains(expected), "{what}: {}", problem.detail);
    }
    let large = vec![0; (10 << 20) + 1];
    let problem = extract(&server, &[("image", Some("own.png"), &large)]).await;
    assert!(problem.problem(413, ErrorCode::UploadTooLarge).detail.contains("10 MiB"));
    let huge = vec![0; 65 << 20];
    extract(&server, &[("image", Some("own.png"), &huge)]).await.problem(413, ErrorCode::UploadTooLarge);
}

#[tokio::test]
async fn bad_forms_get_clear_answers() {
    let server = server().await;
    let png = picture_bytes(8, 8, ImageFormat::Png);
    extract(&server, &[]).await.problem(400, ErrorCode::BadRequest);
    extract(&server, &[("prompt", None, b"")]).await.problem(400, ErrorCode::BadRequest);
    extract(&server, &[("imge", None, b"x")]).await.problem(400, ErrorCode::BadRequest);
    extract(&server, &[("prompt", None, b"\xff\xfe")]).await.problem(400, ErrorCode::BadRequest);
    let both: [Part<'_>; 2] = [("image", Some("a.png"), &png), ("picture", None, b"scene-0")];
    extract(&server, &both).await.problem(400, ErrorCode::BadRequest);
    extract(&server, &[("picture", None, b"nothing")]).await.problem(404, ErrorCode::NotFound);
    let words = "word ".repeat(400);
    extract(&server, &[("prompt", None, words.as_bytes())]).await.problem(400, ErrorCode::PromptTooLong);
    let book = "x".repeat(1 << 20);
    extract(&server, &[("prompt", None, book.as_bytes())]).await.problem(400, ErrorCode::PromptTooLong);
    let named: [Part<'_>; 2] = [("image", Some("a.png"), &png), ("prompt", None, b"two <image> pictures")];
    extract(&server, &named).await.problem(400, ErrorCode::BadRequest);

    let path = format!("{SOURCE}/extract");
    let none = Request::post(&path).body(Body::empty()).unwrap();
    server.send(none).await.problem(400, ErrorCode::BadRequest);
    server.send(json_request(&path, "{}")).await.problem(400, ErrorCode::BadRequest);
    let cut =
        Request::post(&path).header("content-type", "multipart/form-data; boundary=b").body("--b\r\nContent".into());
    server.send(cut.unwrap()).await.problem(400, ErrorCode::BadRequest);
    let elsewhere = form_request("/api/v1/tiny/nothing/extract", &[("prompt", None, b"a")]);
    server.send(elsewhere).await.problem(404, ErrorCode::NotFound);
}

/// A PNG that claims 40,000 × 40,000 pixels in a few bytes.
fn bomb_png() -> Vec<u8> {
    let mut bytes = picture_bytes(1, 1, ImageFormat::Png);
    bytes[16..20].copy_from_slice(&40_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&40_000u32.to_be_bytes());
    let crc = !bytes[12..29].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

async fn steer(server: &Server, request: &SteerRequest) -> Answer {
    let body = serde_json::to_string(request).unwrap();
    server.send(json_request(&format!("{SOURCE}/steer"), body)).await
}

#[tokio::test]
async fn three_texts_are_streamed() {
    let server = server().await;
    let mut events = events(&steer(&server, &steer_request()).await);
    let Some(SteerEvent::Done { result }) = events.pop() else { panic!("no end: {events:?}") };
    for (column, text) in [
        (Column::Default, &result.default),
        (Column::Reconstructed, &result.reconstructed),
        (Column::Steered, &result.steered),
    ] {
        let streamed = events.iter().filter_map(|event| match event {
            SteerEvent::Token { column: of, token } if *of == column => Some(token.clone()),
            _ => None,
        });
        assert_eq!(streamed.collect::<Vec<_>>(), text.tokens, "{column:?}");
        assert!(text.tokens.len() <= 6);
        assert!(text.tokens.iter().all(|token| token.logprob <= 0.0), "{column:?}");
    }
    let ids = |text: &api::SteeredText| text.tokens.iter().map(|token| token.id).collect::<Vec<_>>();
    assert_ne!(ids(&result.steered), ids(&result.reconstructed), "a strong clamp changes the text");
    assert!(result.provenance.model.starts_with("tiny@") && result.provenance.sae_revision.len() == 12);

    let none = SteerRequest { features: Vec::new(), ..steer_request() };
    let again = self::events(&steer(&server, &none).await);
    let Some(SteerEvent::Done { result: same }) = again.last() else { panic!("no end: {again:?}") };
    assert_eq!(ids(&same.steered), ids(&same.reconstructed), "nothing changed, nothing steered");
    assert_eq!(ids(&same.default), ids(&result.default), "greedy text is the same each time");
}

#[tokio::test]
async fn a_visitors_own_picture_steers_too() {
    let server = server().await;
    let image = STANDARD.encode(picture_bytes(40, 30, ImageFormat::Jpeg));
    let request = SteerRequest {
        picture: None,
        image: Some(format!("data:image/png;base64,{image}")),
        n_tokens: 2,
        ..steer_request()
    };
    let events = events(&steer(&server, &request).await);
    assert!(matches!(events.last(), Some(SteerEvent::Done { .. })), "{events:?}");
}

#[tokio::test]
async fn bad_steer_requests_are_refused_before_anything_streams() {
    let server = server().await;
    let good = steer_request();
    let feature = |index, strength| SteerFeature { index, strength };
    let bad: [(&str, SteerRequest); 10] = [
        ("feature 64 does not exist", SteerRequest { features: vec![feature(64, 1.0)], ..good.clone() }),
        ("CLAMP of 5 to -3", SteerRequest { features: vec![feature(5, -3.0)], ..good.clone() }),
        ("named twice", SteerRequest { features: vec![feature(1, 1.0), feature(1, 2.0)], ..good.clone() }),
        ("at most 64", SteerRequest { features: (0..65).map(|index| feature(index, 1.0)).collect(), ..good.clone() }),
        ("at most 256", SteerRequest { n_tokens: 257, ..good.clone() }),
        ("temperature", SteerRequest { temperature: -1.0, ..good.clone() }),
        ("prompt", SteerRequest { prompt: " ".into(), picture: None, ..good.clone() }),
        ("not both", SteerRequest { image: Some("data:image/png;base64,".into()), ..good.clone() }),
        ("`<image>`", SteerRequest { prompt: "<image> <image>".into(), ..good.clone() }),
        ("`<image>`", SteerRequest { prompt: "<image>".into(), picture: None, ..good.clone() }),
    ];
    for (expected, request) in bad {
        let problem = steer(&server, &request).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(expected), "{} lacks {expected:?}", problem.detail);
    }
    let long = SteerRequest { prompt: "word ".repeat(400), ..good.clone() };
    steer(&server, &long).await.problem(400, ErrorCode::PromptTooLong);
    let nowhere = SteerRequest { picture: Some("nothing".into()), ..good.clone() };
    steer(&server, &nowhere).await.problem(404, ErrorCode::NotFound);
    for url in ["data:image/png;base64,aGVsbG8=", "https://example.org/a.png", "data:image/png;base64,***"] {
        let own = SteerRequest { picture: None, image: Some(url.into()), ..good.clone() };
        steer(&server, &own).await.problem(422, ErrorCode::NotAnImage);
    }
    let large = format!("data:image/png;base64,{}", "A".repeat(20 << 20));
    let own = SteerRequest { picture: None, image: Some(large), ..good };
    steer(&server, &own).await.problem(413, ErrorCode::UploadTooLarge);
    let path = format!("{SOURCE}/steer");
    for body in ["", "{", "[]", r#"{"features":[{"index":-1,"strength":1}]}"#, r#"{"steer_method":"PUSH"}"#] {
        server.send(json_request(&path, body)).await.problem(400, ErrorCode::BadRequest);
    }
    for (body, unknown) in [
        (r#"{"prompt":"a","nTokens":3}"#, "nTokens"),
        (r#"{"prompt":"a","features":[{"index":1,"strength":1,"layer":2}]}"#, "layer"),
    ] {
        let problem = server.send(json_request(&path, body)).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(unknown), "{}", problem.detail);
    }
}

#[tokio::test]
async fn what_cannot_be_clamped_can_be_pushed_and_the_result_says_how() {
    let server = server().await;
    for (steer_method, strength) in
        [(SteerMethod::SimpleAdditive, -3.0), (SteerMethod::Ablate, -3.0), (SteerMethod::Clamp, 0.0)]
    {
        let features = vec![SteerFeature { index: 5, strength }];
        let positions = Positions::Generated;
        let request = SteerRequest { features, steer_method, positions, n_tokens: 1, ..steer_request() };
        let events = events(&steer(&server, &request).await);
        let Some(SteerEvent::Done { result }) = events.last() else { panic!("no end: {events:?}") };
        assert_eq!((result.steer_method, result.positions), (steer_method, positions));
    }
}

/// Splits a checkpoint's file into two, as large ones are published.
fn split_checkpoint(model: &Path) {
    let whole = model.join("model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let mut shards = [Vec::new(), Vec::new()];
    let mut names = BTreeMap::new();
    let shard_name = |number: usize| format!("model-0000{}-of-00002.safetensors", number + 1);
    for (number, (name, view)) in SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().enumerate() {
        names.insert(name.clone(), shard_name(number % 2));
        shards[number % 2].push((name, view));
    }
    for (number, tensors) in shards.into_iter().enumerate() {
        std::fs::write(model.join(shard_name(number)), safetensors::serialize(tensors, None).unwrap()).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": names });
    std::fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(whole).unwrap();
}

#[tokio::test]
async fn a_checkpoint_in_shards_is_served() {
    let folder = tempfile::tempdir().unwrap();
    crate::common::write_artifacts(folder.path());
    let words = || ExtractInput { prompt: "the same words".into(), ..ExtractInput::default() };
    let engine = start_engine(folder.path(), 1).await;
    let whole = engine.extract(words()).await.unwrap();

    split_checkpoint(&folder.path().join("model"));
    let engine = start_engine(folder.path(), 1).await;
    let sharded = engine.extract(words()).await.unwrap();
    assert_eq!(sharded.values, whole.values);
    let (model, other) = (sharded.provenance.model, whole.provenance.model);
    assert!(model.starts_with("tiny@") && model.len() == other.len() && model != other, "{model} and {other}");
}

/// A run that is long enough to be seen ending early.
fn long_request() -> SteerRequest {
    SteerRequest { n_tokens: 200, temperature: 1.0, picture: None, ..steer_request() }
}

#[tokio::test]
async fn a_closed_connection_ends_its_run() {
    let server = server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = server.router.clone();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });

    let started = Instant::now();
    let tokens = events(&steer(&server, &long_request()).await).len();
    let whole_run = started.elapsed();
    assert!(tokens > 100, "only {tokens} tokens: too short a run to tell");

    let started = Instant::now();
    let body = serde_json::to_string(&long_request()).unwrap();
    let head = format!("POST {SOURCE}/steer HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("event: steer") {
        let read = stream.read_buf(&mut answer).await.unwrap();
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer));
    }
    // What comes meanwhile does not wait for the run's end.
    checked_extract(&extract(&server, &[("prompt", None, b"next")]).await);
    assert_eq!(server.json::<EngineInfo>("/api/v1/engine").await.running, 1);
    drop(stream);
    while server.json::<EngineInfo>("/api/v1/engine").await.running > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let cancelled = started.elapsed();
    assert!(cancelled < whole_run / 2, "{cancelled:?} of {whole_run:?}: the run went on for nobody");
    serving.abort();
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_run() {
    let folder = tempfile::tempdir().unwrap();
    crate::common::write_artifacts(folder.path());
    let engine = start_engine(folder.path(), 4).await;
    let request = long_request();
    let input = || SteerInput { request: request.clone(), image: None };

    let started = Instant::now();
    let mut events = engine.steer(input()).await.unwrap();
    let mut tokens = 0;
    while let Some(event) = events.recv().await {
        tokens += usize::from(matches!(event, SteerEvent::Token { .. }));
    }
    let whole_run = started.elapsed();
    assert!(tokens > 100, "only {tokens} tokens: too short a run to tell");

    let started = Instant::now();
    let mut events = engine.steer(input()).await.unwrap();
    assert!(events.recv().await.is_some());
    drop(events);
    while engine.running() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    engine.extract(ExtractInput { prompt: "next".into(), ..ExtractInput::default() }).await.unwrap();
    let cancelled = started.elapsed();
    assert!(cancelled < whole_run / 2, "{cancelled:?} of {whole_run:?}: the run went on for nobody");
}

#[tokio::test]
async fn a_full_queue_asks_to_come_back() {
    let server = server().await;
    let key = SourceKey::new("tiny", "1-res-64");
    let store = Store::open("sqlite::memory:").await.unwrap();
    store.import_artifacts(server.folder.path()).await.unwrap();
    let (engine, _queue) = Engine::without_worker(1);
    let sae = server.folder.path().join("sae/model.layers.1");
    let state = AppState {
        catalogue: Catalogue::new(store, key.clone()),
        engine: engine.clone().into(),
        weights: Arc::new(Weights::open(key, &sae, None).unwrap()),
        encoder: Arc::new(Encoder::open(&sae).unwrap()),
        site: Default::default(),
    };
    let router = router(state, server.folder.path(), server.folder.path());

    let first = form_request(&format!("{SOURCE}/extract"), &[("prompt", None, b"first")]);
    let waiting = tokio::spawn({
        let router = router.clone();
        async move { send(&router, first).await }
    });
    while engine.free() > 0 {
        tokio::task::yield_now().await;
    }
    let second = form_request(&format!("{SOURCE}/extract"), &[("prompt", None, b"second")]);
    let answer = send(&router, second).await;
    answer.problem(503, ErrorCode::EngineBusy);
    assert_eq!(answer.header("retry-after"), "2");
    let body = serde_json::to_string(&SteerRequest { picture: None, ..steer_request() }).unwrap();
    send(&router, json_request(&format!("{SOURCE}/steer"), body)).await.problem(503, ErrorCode::EngineBusy);
    waiting.abort();
}
