//! Steering: its further fields, and several requests at once.

use crate::common::{
    Answer, SOURCE, Server, json_request, serve_args, server, start_engine, steer_request, steered, write_artifacts,
};
use api::{ErrorCode, Positions, SteerEvent, SteerFeature, SteerMethod, SteerRequest, SteerResult, SteeredText};
use server::engine::{Engine, SteerInput};

async fn steer(server: &Server, request: &SteerRequest) -> Answer {
    let body = serde_json::to_string(request).unwrap();
    server.send(json_request(&format!("{SOURCE}/steer"), body)).await
}

fn ids(text: &SteeredText) -> Vec<u32> {
    text.tokens.iter().map(|token| token.id).collect()
}

#[tokio::test]
async fn a_direction_is_set_by_its_component() {
    let server = server().await;
    let request = SteerRequest { steer_method: SteerMethod::Orthogonal, ..steer_request() };
    assert!(serde_json::to_string(&request).unwrap().contains("ORTHOGONAL_DECOMP"));
    let result = steered(&steer(&server, &request).await);
    assert_eq!(result.steer_method, SteerMethod::Orthogonal);
    assert_ne!(ids(&result.steered), ids(&result.reconstructed), "a large component changes the text");
    let below = SteerRequest { features: vec![SteerFeature { index: 5, strength: -2.0 }], n_tokens: 1, ..request };
    steered(&steer(&server, &below).await);
}

#[tokio::test]
async fn with_the_error_kept_the_reconstruction_is_the_original() {
    let server = server().await;
    let result = steered(&steer(&server, &SteerRequest { keep_error: true, ..steer_request() }).await);
    assert!(result.keep_error);
    assert_eq!(ids(&result.reconstructed), ids(&result.default));
    assert_ne!(ids(&result.steered), ids(&result.default));
}

#[tokio::test]
async fn single_positions_can_be_named() {
    let server = server().await;
    let named = SteerRequest { token_positions: Some(vec![0, 3]), ..steer_request() };
    let result = steered(&steer(&server, &named).await);
    assert_eq!(result.token_positions, Some(vec![0, 3]));
    for (positions, expected) in
        [(vec![3, 250], "250"), (Vec::new(), "token_positions: is empty"), ((0..5000).collect(), "at most 4096")]
    {
        let request = SteerRequest { token_positions: Some(positions), ..steer_request() };
        let problem = steer(&server, &request).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(expected), "{}", problem.detail);
    }
}

#[tokio::test]
async fn alternatives_are_listed_when_asked_for() {
    let server = server().await;
    let plain = steer(&server, &steer_request()).await;
    assert!(!plain.text().contains("alternatives"), "nobody asked");
    let result = steered(&steer(&server, &SteerRequest { top_alternatives: 3, ..steer_request() }).await);
    assert_eq!(ids(&result.steered), ids(&steered(&plain).steered));
    for token in result.default.tokens.iter().chain(&result.steered.tokens) {
        assert_eq!(token.alternatives.len(), 3);
        assert_eq!(token.alternatives[0].id, token.id, "greedy: the likeliest was chosen");
        assert!((token.alternatives[0].logprob - token.logprob).abs() < 1e-4);
        assert!(token.alternatives.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
    }

    // A nucleus of next to nothing holds the likeliest token alone.
    let narrow = SteerRequest { temperature: 1.0, top_p: Some(1e-6), seed: 3, ..steer_request() };
    assert_eq!(ids(&steered(&steer(&server, &narrow).await).default), ids(&result.default));
    for (expected, request) in [
        ("top_p", SteerRequest { top_p: Some(0.0), ..steer_request() }),
        ("top_p", SteerRequest { top_p: Some(1.5), ..steer_request() }),
        ("at most 10", SteerRequest { top_alternatives: 11, ..steer_request() }),
    ] {
        let problem = steer(&server, &request).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(expected), "{}", problem.detail);
    }
}

/// Steers without HTTP, to the end.
async fn texts(engine: &Engine, request: SteerRequest) -> SteerResult {
    let mut events = engine.steer(SteerInput { request, image: None }).await.unwrap();
    let mut last = None;
    while let Some(event) = events.recv().await {
        last = Some(event);
    }
    match last {
        Some(SteerEvent::Done { result }) => result,
        other => panic!("no end: {other:?}"),
    }
}

#[tokio::test]
async fn requests_side_by_side_say_what_they_say_alone() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let engine = start_engine(folder.path(), 16).await;
    let request = |number: u32| SteerRequest {
        features: vec![SteerFeature { index: number, strength: 20.0 }],
        prompt: ["What is this?", "a red cat", "Why?", "Alice feels happy. Why? She saw a dog."][number as usize % 4]
            .into(),
        n_tokens: 10 + 7 * number,
        temperature: if number.is_multiple_of(2) { 0.0 } else { 0.7 },
        seed: u64::from(number),
        ..SteerRequest::default()
    };
    let mut alone = Vec::new();
    for number in 0..6 {
        alone.push(texts(&engine, request(number)).await);
    }
    // More than run at once: the last ones wait for room.
    let together = futures::future::join_all((0..6).map(|number| texts(&engine, request(number)))).await;
    for (number, (alone, together)) in alone.iter().zip(&together).enumerate() {
        for (what, alone, together) in [
            ("original", &alone.default, &together.default),
            ("reconstructed", &alone.reconstructed, &together.reconstructed),
            ("steered", &alone.steered, &together.steered),
        ] {
            assert_eq!(ids(alone), ids(together), "{what} text of request {number}");
            assert_eq!(alone.text, together.text);
        }
    }
    assert_eq!((engine.free(), engine.running()), (16, 0));
}

/// Together they leave f32; one by one they do not.
fn overflowing(positions: Positions) -> SteerRequest {
    let features = (0..64).map(|index| SteerFeature { index, strength: 3e38 }).collect();
    let (steer_method, picture, n_tokens) = (SteerMethod::SimpleAdditive, None, 40);
    SteerRequest { features, steer_method, positions, picture, n_tokens, ..steer_request() }
}

#[tokio::test]
async fn a_request_that_overflows_costs_no_other_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let engine = start_engine(folder.path(), 16).await;
    let good = || SteerRequest { picture: None, n_tokens: 60, ..steer_request() };
    let alone = texts(&engine, good()).await;
    // The good one is being written when the bad one joins it, and goes wrong with its first generated token.
    let mut running = engine.steer(SteerInput { request: good(), image: None }).await.unwrap();
    assert!(matches!(running.recv().await, Some(SteerEvent::Token { .. })));
    let request = overflowing(Positions::Generated);
    let mut spoiled = engine.steer(SteerInput { request, image: None }).await.unwrap();
    let (mut end, mut failure) = (None, None);
    while let Some(event) = spoiled.recv().await {
        failure = Some(event);
    }
    while let Some(event) = running.recv().await {
        end = Some(event);
    }
    let Some(SteerEvent::Failed { detail }) = failure else { panic!("{failure:?}") };
    assert!(detail.contains("overflow") && detail.contains("smaller values"), "{detail}");
    let Some(SteerEvent::Done { result }) = end else { panic!("{end:?}") };
    assert_eq!(ids(&result.steered), ids(&alone.steered));
    assert_eq!(ids(&result.default), ids(&alone.default));
    assert_eq!((engine.free(), engine.running()), (16, 0));
}

#[tokio::test]
async fn numbers_that_overflow_in_the_prompt_are_a_bad_request() {
    let server = server().await;
    let problem = steer(&server, &overflowing(Positions::All)).await.problem(400, ErrorCode::BadRequest);
    assert!(problem.detail.contains("smaller values"), "{}", problem.detail);
}

#[tokio::test]
async fn what_the_template_refuses_is_a_bad_request() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let template = "{{ raise_exception('Only pictures of cats are taken!') }}";
    std::fs::write(folder.path().join("model/chat_template.jinja"), template).unwrap();
    let (router, _store) = server::serve::app(&serve_args(folder.path())).await.unwrap();
    let server = Server { router, folder };
    let problem = steer(&server, &steer_request()).await.problem(400, ErrorCode::BadRequest);
    assert!(problem.detail.contains("Only pictures of cats are taken!"), "{}", problem.detail);
}
