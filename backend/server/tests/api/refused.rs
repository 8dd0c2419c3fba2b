//! What is refused, and how it is said.

use crate::common::{SOURCE, server};
use api::ErrorCode;
use axum::{body::Body, http::Request};

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let server = server().await;
    for path in [
        "/api/v1/nothing/1-res-64".to_owned(),
        "/api/v1/tiny/nothing".to_owned(),
        "/api/v1/nothing/nothing/features".to_owned(),
        "/api/v1/tiny/nothing/features/1/activations".to_owned(),
        "/api/v1/tiny/nothing/random".to_owned(),
        "/api/v1/tiny/nothing/weights/cfg.json".to_owned(),
        format!("{SOURCE}/features/64"),
        format!("{SOURCE}/features/4294967295/activations"),
        format!("{SOURCE}/features/64/neighbours"),
        format!("{SOURCE}/pictures/nothing/activations"),
        format!("{SOURCE}/pictures/scene-0/activations"),
        format!("{SOURCE}/weights/model.safetensors"),
        format!("{SOURCE}/weights/..%2Fcfg.json"),
        format!("{SOURCE}/nonsense"),
        "/api/v1/nonsense".to_owned(),
        "/api/nonsense".to_owned(),
        "/api/v1/a/b/c/d/e/f".to_owned(),
        "/pictures/nothing.webp".to_owned(),
        "/pictures/scene-0.png".to_owned(),
        "/pictures/..%2F..%2Fsource.json".to_owned(),
    ] {
        let answer = server.get(&path).await;
        assert_eq!(answer.status.as_u16(), 404, "{path}: {}", answer.text());
        answer.problem(404, ErrorCode::NotFound);
    }
    let problem = server.get(&format!("{SOURCE}/features/64")).await.problem(404, ErrorCode::NotFound);
    assert!(problem.detail.contains("64 latents (0 to 63)"), "{}", problem.detail);
}

#[tokio::test]
async fn wrong_parameters_are_named() {
    let server = server().await;
    for (path, named) in [
        ("features?page=-1", "page"),
        ("features?perPage=many", "perPage"),
        ("features?category=animal", "category"),
        ("features?sort=best", "sort"),
        ("features?dead=maybe", "dead"),
        ("features?minScore=high", "minScore"),
        ("features?minScore=NaN", "minScore"),
        ("features?ids=1,two", "ids"),
        ("features/one", "one"),
        ("features/-1", "-1"),
        ("features/4294967296", "4294967296"),
        ("features/1/activations?kind=best", "kind"),
        ("features/1/activations?limit=-1", "limit"),
        ("pictures?page=x", "page"),
    ] {
        let problem = server.get(&format!("{SOURCE}/{path}")).await.problem(400, ErrorCode::BadRequest);
        assert!(problem.detail.contains(named), "{path}: {}", problem.detail);
    }
}

#[tokio::test]
async fn a_wrong_method_says_which_is_right() {
    let server = server().await;
    let delete = Request::delete("/api/v1/sources").body(Body::empty()).unwrap();
    let answer = server.send(delete).await;
    answer.problem(405, ErrorCode::BadRequest);
    assert!(answer.header("allow").contains("GET"), "{:?}", answer.headers);
    server.get(&format!("{SOURCE}/steer")).await.problem(405, ErrorCode::BadRequest);
    let post = Request::post("/some/page").body(Body::empty()).unwrap();
    server.send(post).await.problem(405, ErrorCode::BadRequest);
}

#[tokio::test]
async fn a_request_id_from_outside_is_kept() {
    let server = server().await;
    let request = Request::get("/api/v1/x/y").header("x-request-id", "from-the-proxy").body(Body::empty()).unwrap();
    let problem = server.send(request).await.problem(404, ErrorCode::NotFound);
    assert_eq!(problem.request_id, "from-the-proxy");
}
