//! The engine alone, and the routes that name no source.

use crate::common::{
    Answer, SOURCE, Server, form_request, json_request, picture_bytes, send, serve_args, server, steer_request,
    steered, write_artifacts,
};
use api::{AttributeRequest, AttributeResult, EngineInfo, ErrorCode, SteerRequest};
use axum::{Router, body::Body, http::Request};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::ImageFormat;
use safetensors::SafeTensors;
use server::config::{ComputeArgs, EngineArgs};
use std::path::Path;
use tempfile::TempDir;

fn engine_args(folder: &Path) -> EngineArgs {
    EngineArgs {
        model: folder.join("model").display().to_string(),
        revision: None,
        name: Some("tiny".into()),
        sae: folder.join("sae"),
        hook: None,
        compute: ComputeArgs::default(),
        listen: "127.0.0.1:0".parse().unwrap(),
        engine_queue: 8,
    }
}

async fn engine() -> (Router, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    (server::serve::engine_app(&engine_args(folder.path())).await.unwrap(), folder)
}

async fn get(router: &Router, path: &str) -> Answer {
    send(router, Request::get(path).body(Body::empty()).unwrap()).await
}

fn steer(request: &SteerRequest) -> Request<Body> {
    json_request("/api/v1/steer", serde_json::to_string(request).unwrap())
}

fn attribute(request: &AttributeRequest) -> Request<Body> {
    json_request("/api/v1/attribute", serde_json::to_string(request).unwrap())
}

fn hidden(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    SafeTensors::deserialize(&answer.body).unwrap().tensor("hidden").unwrap().data().to_vec()
}

#[tokio::test]
async fn a_server_answers_for_its_one_source() {
    let server = server().await;
    let parts: [(&str, Option<&str>, &[u8]); 1] = [("picture", None, b"sample-0")];
    let named = server.send(form_request(&format!("{SOURCE}/extract"), &parts)).await;
    let unnamed = server.send(form_request("/api/v1/extract", &parts)).await;
    assert_eq!(hidden(&named), hidden(&unnamed));
    let result = steered(&server.send(steer(&steer_request())).await);
    assert!(!result.default.tokens.is_empty());
    let request = AttributeRequest {
        prompt: "What is this?".into(),
        answer: Some("red".into()),
        baseline: Some("blue".into()),
        ..AttributeRequest::default()
    };
    assert_eq!(server.send(attribute(&request)).await.status.as_u16(), 200);
    let info: EngineInfo = server.json("/api/v1/engine").await;
    assert_eq!((info.d_model, info.latents, info.k, info.free), (32, 64, 8, 8));
    assert_eq!((info.device.as_str(), info.dtype.as_str(), info.hook_point.as_str()), ("cpu", "f32", "model.layers.1"));
    assert!(info.model.starts_with("tiny@") && info.sae_revision == result.provenance.sae_revision);
}

#[tokio::test]
async fn an_engine_alone_answers_without_a_store() {
    let (router, _folder) = engine().await;
    let upload = picture_bytes(32, 32, ImageFormat::WebP);
    let parts: [(&str, Option<&str>, &[u8]); 1] = [("image", Some("own.webp"), &upload)];
    assert!(!hidden(&send(&router, form_request("/api/v1/extract", &parts)).await).is_empty());
    let url = format!("data:image/webp;base64,{}", STANDARD.encode(&upload));
    let request = SteerRequest { picture: None, image: Some(url.clone()), ..steer_request() };
    assert!(steered(&send(&router, steer(&request)).await).provenance.model.starts_with("tiny@"));
    let request = AttributeRequest {
        prompt: "What is this?".into(),
        image: Some(url),
        answer: Some("red".into()),
        baseline: Some("blue".into()),
        ..AttributeRequest::default()
    };
    let answer = send(&router, attribute(&request)).await;
    let result: AttributeResult = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(result.grid, [4, 4]);

    let health: serde_json::Value = serde_json::from_slice(&get(&router, "/healthz").await.body).unwrap();
    assert_eq!(health, serde_json::json!({ "sources": 0, "engineFree": 8 }));
    let info: EngineInfo = serde_json::from_slice(&get(&router, "/api/v1/engine").await.body).unwrap();
    assert_eq!((info.latents, info.running), (64, 0));
    let openapi: serde_json::Value = serde_json::from_slice(&get(&router, "/api/v1/openapi.json").await.body).unwrap();
    assert!(openapi["paths"]["/api/v1/steer"]["post"].is_object() && openapi["paths"]["/api/v1/sources"].is_null());
}

#[tokio::test]
async fn an_engine_alone_says_what_it_has_not() {
    let (router, _folder) = engine().await;
    let named = form_request("/api/v1/extract", &[("picture", None, b"sample-0")]);
    let problem = send(&router, named).await.problem(400, ErrorCode::BadRequest);
    assert!(problem.detail.contains("sample-0") && problem.detail.contains("`image`"), "{}", problem.detail);
    let problem = send(&router, steer(&steer_request())).await.problem(400, ErrorCode::BadRequest);
    assert!(problem.detail.contains("no pictures of its own"), "{}", problem.detail);
    for path in ["/", "/api/v1/sources", format!("{SOURCE}/features").as_str(), "/pictures/sample-0.webp"] {
        get(&router, path).await.problem(404, ErrorCode::NotFound);
    }
    let answer = get(&router, "/api/v1/steer").await;
    answer.problem(405, ErrorCode::BadRequest);
    assert_eq!(answer.header("allow"), "POST");
}

#[tokio::test]
async fn what_cannot_be_an_engine_is_said() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let good = engine_args(folder.path());
    for (expected, args) in [
        ("no SAE here", EngineArgs { sae: folder.path().join("model"), ..good.clone() }),
        ("nowhere", EngineArgs { sae: folder.path().join("nowhere"), ..good.clone() }),
        ("model.layers.7 is asked for", EngineArgs { hook: Some("layers.7".parse().unwrap()), ..good.clone() }),
        ("vision.0 is asked for", EngineArgs { hook: Some("vision.0".parse().unwrap()), ..good.clone() }),
        (
            "cuda:9",
            EngineArgs {
                compute: ComputeArgs { device: "cuda:9".parse().unwrap(), ..ComputeArgs::default() },
                ..good.clone()
            },
        ),
    ] {
        let error = server::serve::engine_app(&args).await.unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{error:#} lacks {expected:?}");
    }
    let mut args = serve_args(folder.path());
    args.compute.device = "cuda:9".parse().unwrap();
    let Err(error) = server::serve::app(&args).await else { panic!("there is no card 9") };
    assert!(format!("{error:#}").contains("cuda:9"), "{error:#}");
}

/// An engine's answers come from the same model as a server's.
#[tokio::test]
async fn an_engine_and_a_server_agree() {
    let folder = tempfile::tempdir().unwrap();
    write_artifacts(folder.path());
    let router = server::serve::engine_app(&engine_args(folder.path())).await.unwrap();
    let (app, _store) = server::serve::app(&serve_args(folder.path())).await.unwrap();
    let server = Server { router: app, folder };
    let words: [(&str, Option<&str>, &[u8]); 1] = [("prompt", None, b"a red cat")];
    let here = server.send(form_request("/api/v1/extract", &words)).await;
    let there = send(&router, form_request("/api/v1/extract", &words)).await;
    assert_eq!(hidden(&here), hidden(&there));
}
