//! Hidden states to features on the server.

use crate::common::{Answer, SOURCE, Server, form_request, server};
use api::ErrorCode;
use axum::{
    body::Body,
    http::{Request, header},
};
use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::process::Command;

fn file(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    safetensors::serialize([(name, view)], None).unwrap()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Hidden states of some tokens.
fn states(tokens: usize) -> Vec<f32> {
    (0..tokens * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect()
}

async fn encode(server: &Server, body: Vec<u8>) -> Answer {
    let request = Request::post(format!("{SOURCE}/encode")).header(header::CONTENT_TYPE, "application/octet-stream");
    server.send(request.body(Body::from(body)).unwrap()).await
}

/// Bytes of `top_indices` and `top_acts`, after checking their shapes.
fn features(file: &[u8], tokens: usize) -> [Vec<u8>; 2] {
    let tensors = SafeTensors::deserialize(file).unwrap();
    [("top_indices", Dtype::I32), ("top_acts", Dtype::F32)].map(|(name, dtype)| {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[tokens, 8][..]), "{name}");
        tensor.data().to_vec()
    })
}

#[tokio::test]
async fn features_are_those_of_the_command_line() {
    let server = server().await;
    let folder = server.folder.path();
    let values = states(5);
    let halves: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    for (dtype, bytes) in [(Dtype::F32, floats(&values)), (Dtype::F16, halves)] {
        let body = file("hidden", dtype, &[5, 32], &bytes);
        std::fs::write(folder.join("hidden.safetensors"), &body).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lmm-scope"));
        command.arg("encode").arg("--sae").arg(folder.join("sae"));
        command.arg("--hidden").arg(folder.join("hidden.safetensors")).arg("--out").arg(folder.join("out.safetensors"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let expected = features(&std::fs::read(folder.join("out.safetensors")).unwrap(), 5);

        let answer = encode(&server, body).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), "application/octet-stream");
        assert!(answer.header("x-engine").starts_with("cpu;ms="));
        assert_eq!(features(&answer.body, 5), expected, "{dtype:?}");
    }
}

#[tokio::test]
async fn what_extract_sends_can_be_sent_back() {
    let server = server().await;
    let words: [(&str, Option<&str>, &[u8]); 1] = [("prompt", None, b"a red cat")];
    let hidden = server.send(form_request(&format!("{SOURCE}/extract"), &words)).await;
    let tokens = SafeTensors::deserialize(&hidden.body).unwrap().tensor("hidden").unwrap().shape()[0];
    let answer = encode(&server, hidden.body).await;
    features(&answer.body, tokens);
}

#[tokio::test]
async fn bad_bodies_get_clear_answers() {
    let server = server().await;
    let good = file("hidden", Dtype::F32, &[5, 32], &floats(&states(5)));
    let mut nan = states(2);
    nan[40] = f32::NAN;
    for (body, expected) in [
        (Vec::new(), "not a safetensors file"),
        (b"just words, but more than eight of them".to_vec(), "not a safetensors file"),
        (good[..good.len() / 2].to_vec(), "not a safetensors file"),
        (file("states", Dtype::F32, &[1, 32], &[0; 128]), "no tensor `hidden`; the file has: states"),
        (file("hidden", Dtype::F32, &[2, 16], &[0; 128]), "shape [2, 16], but the SAE reads [tokens, 32]"),
        (file("hidden", Dtype::F32, &[0, 32], &[]), "shape [0, 32]"),
        (file("hidden", Dtype::I32, &[1, 32], &[0; 128]), "dtype I32"),
        (file("hidden", Dtype::F32, &[2, 32], &floats(&nan)), "token 1 holds NaN"),
        (file("hidden", Dtype::F16, &[8193, 32], &[0; 8193 * 64]), "8193 tokens; at most 8192"),
    ] {
        let problem = encode(&server, body).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(expected), "{} lacks {expected:?}", problem.detail);
    }
    let problem = encode(&server, vec![0; 65 << 20]).await.problem(413, ErrorCode::UploadTooLarge);
    assert!(problem.detail.contains("64 MiB"), "{}", problem.detail);
    let elsewhere = Request::post("/api/v1/tiny/nothing/encode").body(Body::from(good)).unwrap();
    server.send(elsewhere).await.problem(404, ErrorCode::NotFound);
    server.get(&format!("{SOURCE}/encode")).await.problem(405, ErrorCode::BadRequest);
}
