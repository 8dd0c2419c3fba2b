//! What an extract can give beside half floats at the source's hook point.

use crate::common::{Answer, SOURCE, Server, form_request, server};
use api::{ErrorCode, TokenKind, TokenSpan};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;

async fn extract(server: &Server, query: &str) -> Answer {
    let parts: [(&str, Option<&str>, &[u8]); 2] = [("picture", None, b"sample-0"), ("prompt", None, b"What is this?")];
    server.send(form_request(&format!("{SOURCE}/extract{query}"), &parts)).await
}

async fn good(server: &Server, query: &str) -> Answer {
    let answer = extract(server, query).await;
    assert_eq!(answer.status.as_u16(), 200, "{query}: {}", answer.text());
    answer
}

fn metadata(answer: &Answer, name: &str) -> String {
    let (_, header) = SafeTensors::read_metadata(&answer.body).unwrap();
    header.metadata().as_ref().unwrap()[name].clone()
}

fn floats(answer: &Answer, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensors = SafeTensors::deserialize(&answer.body).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let values = match tensor.dtype() {
        Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => tensor.data().chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        other => panic!("{name} is {other:?}"),
    };
    (tensor.shape().to_vec(), values)
}

fn ids(answer: &Answer, name: &str) -> (Vec<usize>, Vec<u32>) {
    let tensors = SafeTensors::deserialize(&answer.body).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::I32);
    let ids = tensor.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    (tensor.shape().to_vec(), ids)
}

#[tokio::test]
async fn whole_floats_are_the_same_states() {
    let server = server().await;
    let (half, whole) = (good(&server, "?dtype=f16").await, good(&server, "?dtype=f32").await);
    let tensors = SafeTensors::deserialize(&whole.body).unwrap();
    assert_eq!(tensors.tensor("hidden").unwrap().dtype(), Dtype::F32);
    let ((shape, half), (same, whole)) = (floats(&half, "hidden"), floats(&whole, "hidden"));
    assert_eq!(shape, same);
    assert!(half.iter().zip(&whole).all(|(half, whole)| half::f16::from_f32(*whole).to_f32() == *half));
    let problem = extract(&server, "?dtype=f64").await.problem(400, ErrorCode::BadRequest);
    assert!(problem.detail.contains("dtype"), "{}", problem.detail);
}

#[tokio::test]
async fn another_hook_point_of_the_model() {
    let server = server().await;
    let own = good(&server, "?dtype=f32").await;
    assert_eq!(metadata(&own, "hook_point"), "model.layers.1");
    let same = good(&server, "?dtype=f32&hook=layers.1").await;
    assert_eq!(floats(&same, "hidden"), floats(&own, "hidden"));
    let later = good(&server, "?dtype=f32&hook=model.layers.2").await;
    assert_eq!(metadata(&later, "hook_point"), "model.layers.2");
    assert_eq!(floats(&later, "hidden").0, floats(&own, "hidden").0);
    assert_ne!(floats(&later, "hidden").1, floats(&own, "hidden").1);
    let (shape, _) = floats(&good(&server, "?hook=vision.0&lens=2").await, "hidden");
    assert!(shape[0] >= 16 && shape[1] == 16, "{shape:?}");

    for (hook, expected) in [("layers.3", "layer 3"), ("vision.2", "vision block 2"), ("blocks.1", "hook")] {
        let problem = extract(&server, &format!("?hook={hook}")).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(expected), "{hook}: {}", problem.detail);
    }
    let words = form_request(&format!("{SOURCE}/extract?hook=vision.0"), &[("prompt", None, b"no picture")]);
    server.send(words).await.problem(400, ErrorCode::BadRequest);
}

#[tokio::test]
async fn lenses_name_tokens() {
    let server = server().await;
    let answer = good(&server, "?lens=3").await;
    let (hidden, _) = floats(&answer, "hidden");
    let spans: Vec<TokenSpan> = serde_json::from_str(&metadata(&answer, "spans")).unwrap();
    let pictured: u32 =
        spans.iter().filter(|span| span.kind != TokenKind::Text).map(|span| span.end - span.start).sum();
    let strings: BTreeMap<u32, String> = serde_json::from_str(&metadata(&answer, "lens_tokens")).unwrap();
    for (kind, rows) in [("logit", hidden[0]), ("embedding", pictured as usize)] {
        let (shape, ids) = ids(&answer, &format!("lens_{kind}_ids"));
        assert_eq!(shape, [rows, 3], "{kind}");
        assert!(ids.iter().all(|id| strings.contains_key(id)), "{kind}");
        let (shape, scores) = floats(&answer, &format!("lens_{kind}_scores"));
        assert_eq!(shape, [rows, 3], "{kind}");
        assert!(scores.chunks_exact(3).all(|row| row[0] >= row[1] && row[1] >= row[2]), "{kind}: likeliest first");
        assert!(scores.iter().all(|score| score.abs() <= 1.001), "{kind}: probabilities and cosines");
    }

    let words = form_request(&format!("{SOURCE}/extract?lens=1"), &[("prompt", None, b"a red cat")]);
    let answer = server.send(words).await;
    let tensors = SafeTensors::deserialize(&answer.body).unwrap();
    let names: Vec<&str> = tensors.names().into_iter().map(AsRef::as_ref).collect();
    assert!(names.contains(&"lens_logit_ids") && !names.contains(&"lens_embedding_ids"), "{names:?}");
    let none = good(&server, "?lens=0").await;
    assert_eq!(SafeTensors::deserialize(&none.body).unwrap().len(), 2);
    let problem = extract(&server, "?lens=21").await.problem(400, ErrorCode::BadRequest);
    assert!(problem.detail.contains("at most 20"), "{}", problem.detail);
}

#[tokio::test]
async fn thresholds_are_those_of_the_states_as_they_are_sent() {
    let server = server().await;
    let sae = model::SaeFile::open(&server.folder.path().join("sae/model.layers.1")).unwrap();
    for query in ["?threshold=true", "?threshold=true&dtype=f32", "?threshold=true&hook=layers.1&lens=1"] {
        let answer = good(&server, query).await;
        let (shape, hidden) = floats(&answer, "hidden");
        let (tokens, thresholds) = floats(&answer, "threshold");
        assert_eq!(tokens, [shape[0]], "{query}");
        let top = sae.encode(&hidden).unwrap();
        let mut positive = 0;
        for (row, threshold) in top.acts.chunks_exact(top.k).zip(&thresholds) {
            let weakest = row[top.k - 1];
            assert!((weakest - threshold).abs() <= 1e-5 * weakest.max(1.0), "{query}: {weakest} and {threshold}");
            positive += usize::from(*threshold > 0.0);
        }
        assert!(positive > 0, "{query}");
    }
    let answer = good(&server, "?threshold=false").await;
    assert_eq!(SafeTensors::deserialize(&answer.body).unwrap().len(), 2);

    let states = floats(&good(&server, "").await, "hidden");
    assert_eq!(floats(&good(&server, "?threshold=true").await, "hidden"), states);
    for (query, expected) in [
        ("?threshold=true&hook=layers.2", "the SAE reads model.layers.1, not model.layers.2"),
        ("?threshold=true&hook=vision.0", "not vision.0"),
        ("?threshold=often", "threshold"),
    ] {
        let problem = extract(&server, query).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(expected), "{query}: {}", problem.detail);
    }
}

#[tokio::test]
async fn a_picture_for_print_is_refused() {
    let server = server().await;
    let cmyk = include_bytes!("../fixtures/cmyk.jpg");
    let parts: [(&str, Option<&str>, &[u8]); 1] = [("image", Some("print.jpg"), cmyk)];
    let problem = server.send(form_request(&format!("{SOURCE}/extract"), &parts)).await;
    assert!(problem.problem(422, ErrorCode::NotAnImage).detail.contains("CMYK"));
}
