//! Which features made the model prefer an answer.

use crate::common::{Answer, SOURCE, Server, json_request, picture_bytes, server};
use api::{AttributeRequest, AttributeResult, ErrorCode};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::ImageFormat;

fn request() -> AttributeRequest {
    AttributeRequest {
        prompt: "What is this?".into(),
        picture: Some("sample-0".into()),
        answer: Some("red".into()),
        baseline: Some("blue".into()),
        ..AttributeRequest::default()
    }
}

async fn attribute(server: &Server, request: &AttributeRequest) -> Answer {
    let body = serde_json::to_string(request).unwrap();
    server.send(json_request(&format!("{SOURCE}/attribute"), body)).await
}

async fn found(server: &Server, request: &AttributeRequest) -> AttributeResult {
    let answer = attribute(server, request).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

fn close(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-4 + 1e-3 * b.abs()
}

#[tokio::test]
async fn features_are_ranked_split_and_verified() {
    let server = server().await;
    let all = found(&server, &AttributeRequest { verify: 3, top: 1000, ..request() }).await;
    assert!(all.logit_difference.is_finite() && all.logit_difference_original.is_finite());
    assert_ne!(all.answer.id, all.baseline.id);
    assert!(!all.answer.text.is_empty() && !all.baseline.text.is_empty());
    assert!(!all.top.is_empty() && all.top.len() <= 64);
    assert!(all.top.windows(2).all(|pair| pair[0].attribution.abs() >= pair[1].attribution.abs()));
    for feature in &all.top {
        assert!(close(feature.attribution, feature.image + feature.text), "{feature:?}");
    }
    assert!(all.top.iter().any(|feature| feature.image != 0.0) && all.top.iter().any(|feature| feature.text != 0.0));
    assert_eq!(all.verified.len(), 3);
    for (verified, top) in all.verified.iter().zip(&all.top) {
        assert_eq!(verified.index, top.index, "the strongest are verified");
        assert!(close(verified.attribution, top.attribution) && verified.measured.is_finite());
    }
    assert!(all.passes.forward >= 1 && all.passes.backward >= 1);
    assert_eq!((all.grid, all.map.as_ref()), ([4, 4], None));
    assert!(all.provenance.model.starts_with("tiny@") && all.provenance.prompt_hash.len() == 12);

    let first = all.top[0];
    let mapped = found(&server, &AttributeRequest { map: Some(first.index), top: 1, ..request() }).await;
    assert_eq!((mapped.top.len(), mapped.top[0].index, mapped.verified.len()), (1, first.index, 0));
    let map = mapped.map.unwrap();
    assert_eq!(map.len() as u32, mapped.spans.last().unwrap().end);
    assert!(close(map.iter().sum::<f32>(), first.attribution), "{} and {}", map.iter().sum::<f32>(), first.attribution);
}

#[tokio::test]
async fn answers_may_be_named_by_their_tokens() {
    let server = server().await;
    let by_text = found(&server, &request()).await;
    assert!(by_text.top.len() <= 50, "the default");
    let by_id = AttributeRequest {
        answer: None,
        baseline: None,
        answer_id: Some(by_text.answer.id),
        baseline_id: Some(by_text.baseline.id),
        ..request()
    };
    assert_eq!(found(&server, &by_id).await, by_text);
    let turned = AttributeRequest { answer: request().baseline, baseline: request().answer, ..request() };
    assert!(close(found(&server, &turned).await.logit_difference, -by_text.logit_difference));

    let whole = found(&server, &AttributeRequest { keep_error: true, ..request() }).await;
    assert!(close(whole.logit_difference, whole.logit_difference_original), "{whole:?}");
    let words = AttributeRequest { picture: None, ..request() };
    assert!(found(&server, &words).await.top.iter().all(|feature| feature.image == 0.0));
    let image = STANDARD.encode(picture_bytes(32, 32, ImageFormat::WebP));
    let own = AttributeRequest { image: Some(format!("data:image/webp;base64,{image}")), ..words };
    assert_eq!(found(&server, &own).await, by_text, "the same picture from outside");
}

#[tokio::test]
async fn bad_requests_are_named() {
    let server = server().await;
    let good = request();
    let bad: [(&str, AttributeRequest); 14] = [
        ("prompt", AttributeRequest { prompt: " ".into(), picture: None, ..good.clone() }),
        ("answer: is missing", AttributeRequest { answer: None, ..good.clone() }),
        ("baseline: is missing", AttributeRequest { baseline: None, ..good.clone() }),
        ("answer: is empty", AttributeRequest { answer: Some(String::new()), ..good.clone() }),
        ("`answer_id`, not both", AttributeRequest { answer_id: Some(5), ..good.clone() }),
        ("`baseline_id`, not both", AttributeRequest { baseline_id: Some(5), ..good.clone() }),
        ("same token", AttributeRequest { baseline: good.answer.clone(), ..good.clone() }),
        ("9999999", AttributeRequest { answer: None, answer_id: Some(9_999_999), ..good.clone() }),
        ("at most 64", AttributeRequest { verify: 65, ..good.clone() }),
        ("at most 1000", AttributeRequest { top: 1001, ..good.clone() }),
        ("feature 64 does not exist", AttributeRequest { map: Some(64), ..good.clone() }),
        ("not both", AttributeRequest { image: Some("data:image/png;base64,".into()), ..good.clone() }),
        ("`<image>`", AttributeRequest { prompt: "<image>".into(), picture: None, ..good.clone() }),
        ("`<image>`", AttributeRequest { prompt: "<image> <image>".into(), ..good.clone() }),
    ];
    for (expected, request) in bad {
        let problem = attribute(&server, &request).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(expected), "{} lacks {expected:?}", problem.detail);
    }
    let long = AttributeRequest { prompt: "word ".repeat(400), ..good.clone() };
    attribute(&server, &long).await.problem(400, ErrorCode::PromptTooLong);
    let nowhere = AttributeRequest { picture: Some("nothing".into()), ..good.clone() };
    attribute(&server, &nowhere).await.problem(404, ErrorCode::NotFound);
    let no_picture = AttributeRequest { picture: None, image: Some("data:;base64,aGVsbG8=".into()), ..good };
    attribute(&server, &no_picture).await.problem(422, ErrorCode::NotAnImage);
    let path = format!("{SOURCE}/attribute");
    for body in ["", "{", r#"{"prompt":"a","answer":"b","baseline":"c","verify":-1}"#, r#"{"prompt":"a","answerId":1}"#]
    {
        server.send(json_request(&path, body)).await.problem(400, ErrorCode::BadRequest);
    }
    let elsewhere = json_request("/api/v1/tiny/nothing/attribute", "{}");
    server.send(elsewhere).await.problem(404, ErrorCode::NotFound);
}
