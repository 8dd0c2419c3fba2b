//! The routes that read.

use crate::common::{SOURCE, Server, picture_bytes, serve_args, server, tiny_source, write_artifacts};
use api::{Activations, Feature, FeatureList, FeatureSummary, Neighbours, PictureActivations, PictureList, Source};
use axum::http::header;
use image::ImageFormat;

#[tokio::test]
async fn sources_and_health() {
    let server = server().await;
    assert_eq!(server.json::<Vec<Source>>("/api/v1/sources").await, [tiny_source()]);
    assert_eq!(server.json::<Source>(SOURCE).await, tiny_source());
    let health: serde_json::Value = server.json("/healthz").await;
    assert_eq!(health, serde_json::json!({ "sources": 1, "engineFree": 8 }));
    let openapi: serde_json::Value = server.json("/api/v1/openapi.json").await;
    assert!(openapi["paths"]["/api/v1/sources"]["get"].is_object());
}

#[tokio::test]
async fn features_are_listed_and_searched() {
    let server = server().await;
    let all: FeatureList = server.json(&format!("{SOURCE}/features")).await;
    assert_eq!((all.total, all.features.len(), all.per_page), (64, 48, 48));
    let found: FeatureList = server.json(&format!("{SOURCE}/features?q=cat&category=object")).await;
    assert_eq!(found.features.iter().map(|feature| feature.index).collect::<Vec<_>>(), [0]);
    assert!(found.features[0].thumbnail.is_some());
    let found: FeatureList = server.json(&format!("{SOURCE}/features?q=%22*%28&sort=index")).await;
    assert_eq!(found.total, 0);
    let some: FeatureList = server.json(&format!("{SOURCE}/features?ids=63,5&sort=index&perPage=1&page=1")).await;
    assert_eq!((some.total, some.features[0].index, some.features[0].dead), (2, 63, true));
}

#[tokio::test]
async fn a_feature_with_everything_about_it() {
    let server = server().await;
    let feature: Feature = server.json(&format!("{SOURCE}/features/1")).await;
    assert_eq!(feature.label().unwrap().description, "happy face");
    let activations: Activations = server.json(&format!("{SOURCE}/features/1/activations?kind=mean&limit=2")).await;
    assert_eq!((activations.activations.len(), activations.total, activations.texts.len()), (2, 3, 1));
    let defaults: Activations = server.json(&format!("{SOURCE}/features/1/activations")).await;
    assert_eq!(defaults.activations.len(), 3);
    let near: Neighbours = server.json(&format!("{SOURCE}/features/1/neighbours")).await;
    assert_eq!((near.by_decoder[0].feature.index, near.by_firing[0].feature.index), (2, 4));
    let random: FeatureSummary = server.json(&format!("{SOURCE}/random")).await;
    assert!(random.label.is_some() && !random.dead);
}

#[tokio::test]
async fn the_map_is_a_picture_with_links() {
    let server = server().await;
    let map = server.get_with(&format!("{SOURCE}/map.svg"), header::ACCEPT_ENCODING, "gzip").await;
    assert_eq!((map.status.as_u16(), map.header("content-type")), (200, "image/svg+xml"));
    assert_eq!(map.header("content-encoding"), "gzip", "it is text");
    assert!(map.header("content-security-policy").starts_with("default-src 'none'"));
    let map = server.get(&format!("{SOURCE}/map.svg")).await.text();
    resvg::usvg::Tree::from_str(&map, &resvg::usvg::Options::default()).unwrap();
    assert_eq!(map.matches("<a href=\"/tiny/1-res-64/").count(), 63, "all but the dead one");
    assert!(map.contains("<a href=\"/tiny/1-res-64/1\"><title>#1 happy face (emotion)</title>"), "{map}");
    assert!(map.contains("63 of 64 features"), "{map}");
    let feature: Feature = server.json(&format!("{SOURCE}/features/1")).await;
    assert_eq!((feature.umap_x, feature.umap_y), (Some(-0.5), Some(1.0)));
    let page = server.get("/tiny/1-res-64").await.text();
    assert!(page.contains(&format!("href=\"{SOURCE}/map.svg\"")), "the page of the source leads there");
    let problem = server.get("/api/v1/tiny/9-res-1k/map.svg").await.problem(404, api::ErrorCode::NotFound);
    assert!(problem.detail.contains("no source tiny/9-res-1k"), "{}", problem.detail);
}

#[tokio::test]
async fn pictures_and_their_bytes() {
    let server = server().await;
    let list: PictureList = server.json(&format!("{SOURCE}/pictures?kind=scene&perPage=1")).await;
    assert_eq!((list.total, list.pictures[0].id.as_str()), (2, "scene-0"));
    let sample: PictureActivations = server.json(&format!("{SOURCE}/pictures/sample-0/activations")).await;
    assert_eq!((sample.grid, sample.top_indices.len()), ([4, 4], 128));

    let picture = server.get(&list.pictures[0].url).await;
    assert_eq!(picture.header("content-type"), "image/webp");
    assert_eq!(picture.body, picture_bytes(32, 32, ImageFormat::WebP));
    assert!(picture.header("cache-control").contains("max-age=604800"));
    let again = server.get_with(&list.pictures[0].url, header::IF_NONE_MATCH, picture.header("etag")).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
    let other = server.get_with(&list.pictures[0].url, header::IF_NONE_MATCH, "\"other\"").await;
    assert_eq!(other.status.as_u16(), 200);
}

#[tokio::test]
async fn weights_in_whole_and_in_ranges() {
    let server = server().await;
    let path = format!("{SOURCE}/weights/sae.safetensors");
    let file = std::fs::read(server.folder.path().join("sae/model.layers.1/sae.safetensors")).unwrap();
    let whole = server.get_with(&path, header::ACCEPT_ENCODING, "gzip, br").await;
    assert_eq!((whole.status.as_u16(), &whole.body), (200, &file));
    assert_eq!(whole.header("content-encoding"), "", "half floats are not worth compressing");
    assert_eq!(whole.header("cache-control"), "public, no-cache");
    let etag = whole.header("etag");

    let part = server.get_with(&path, header::RANGE, "bytes=10-19").await;
    assert_eq!((part.status.as_u16(), part.body.as_slice()), (206, &file[10..20]));
    assert_eq!(part.header("content-range"), format!("bytes 10-19/{}", file.len()));
    let beyond = server.get_with(&path, header::RANGE, &format!("bytes={}-", file.len())).await;
    assert_eq!(beyond.status.as_u16(), 416);
    assert_eq!(server.get_with(&path, header::IF_NONE_MATCH, etag).await.status.as_u16(), 304);

    let ranged = |if_range: &str| {
        let request =
            axum::http::Request::get(&path).header(header::RANGE, "bytes=0-0").header(header::IF_RANGE, if_range);
        request.body(axum::body::Body::empty()).unwrap()
    };
    assert_eq!(server.send(ranged(etag)).await.status.as_u16(), 206);
    assert_eq!(
        server.send(ranged("\"old\"")).await.status.as_u16(),
        200,
        "a range of an old version is the whole file"
    );

    versions_are_kept_or_refused(&server, &path, etag).await;
    let config: serde_json::Value = server.json(&format!("{SOURCE}/weights/cfg.json")).await;
    assert_eq!((&config["k"], &config["d_in"]), (&8.into(), &32.into()));
}

async fn versions_are_kept_or_refused(server: &Server, path: &str, etag: &str) {
    let version = &etag[1..13];
    let named = server.get(&format!("{path}?v={version}")).await;
    assert!(named.header("cache-control").contains("immutable"));
    for wrong in ["abc", "000000000000", ""] {
        let refused = server.get(&format!("{path}?v={wrong}")).await;
        refused.problem(404, api::ErrorCode::NotFound);
    }
}

#[tokio::test]
async fn the_source_whose_model_runs_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", folder.path().join("scope.db").display());
    let earlier = tempfile::tempdir().unwrap();
    let source = Source { model_id: "an-earlier-model".into(), ..tiny_source() };
    let webp = picture_bytes(32, 32, ImageFormat::WebP);
    store::testing::Artifacts::new(source, &webp).write(earlier.path()).unwrap();
    let store = store::Store::open(&database).await.unwrap();
    store.import_artifacts(earlier.path()).await.unwrap();
    store.close().await;

    write_artifacts(folder.path());
    let args = server::config::ServeArgs { database: Some(database), ..serve_args(folder.path()) };
    let (router, _store) = server::serve::app(&args).await.unwrap();
    let server = Server { router, folder };
    let models: Vec<String> =
        server.json::<Vec<Source>>("/api/v1/sources").await.into_iter().map(|source| source.model_id).collect();
    assert_eq!(models, ["tiny", "an-earlier-model"]);
    let extract = crate::common::form_request("/api/v1/an-earlier-model/1-res-64/extract", &[("prompt", None, b"a")]);
    let problem = server.send(extract).await.problem(404, api::ErrorCode::NotFound);
    assert!(problem.detail.contains("can be read only"), "{}", problem.detail);
}
