//! Every page, rendered on the server from a made-up source: the address decides what is in the HTML.
//! The pages are left in the target directory, to be looked at.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod fixture;
mod queue;

use fixture::FixtureClient;
use frontend::{
    api::Client,
    app::{Bundle, SiteAssets},
    render::{Rendered, init, render_page},
};
use std::sync::Arc;

fn bundle(name: &str) -> Bundle {
    Bundle { js: format!("/assets/{name}-1/{name}.js"), wasm: format!("/assets/{name}-1/{name}_bg.wasm") }
}

fn assets() -> SiteAssets {
    SiteAssets {
        browse: bundle("browse"),
        analyze: bundle("analyze"),
        steer: bundle("steer"),
        worker: bundle("worker"),
        style: "/assets/style-1.css".into(),
    }
}

async fn page(path: &str) -> Rendered {
    page_by(path, Arc::new(FixtureClient)).await
}

/// The page with somebody else's answers.
async fn page_by(path: &str, client: Arc<dyn Client>) -> Rendered {
    init();
    let rendered = render_page(path, client, assets()).await;
    let name = path.trim_matches('/').replace(['/', '?', '=', '&', ':'], "_");
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{}.html", if name.is_empty() { "index" } else { &name })), &rendered.html)
        .unwrap();
    rendered
}

fn count(html: &str, needle: &str) -> usize {
    html.matches(needle).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_landing_page_is_lit_before_any_script() {
    let Rendered { status, html, .. } = page("/").await;
    assert_eq!(status, 200);
    assert!(html.starts_with("<!DOCTYPE html>"), "{}", &html[..200]);
    assert_eq!(count(&html, "data-testid=\"patch\""), 64);
    assert!(count(&html, "data-testid=\"landing-row\"") >= 5);
    assert!(count(&html, "--mask:url(data:image/png;base64,") >= 5, "the picture and the thumbnails are lit");
    assert!(html.contains("href=\"/pocket/3-res-3k/analyze\""), "a way to one's own picture");
    assert!(html.contains("/assets/style-1.css") && html.contains("hydrate"));
    assert!(html.contains("data-worker=\"/assets/worker-1/worker.js\""), "the page knows its worker");
    assert!(html.contains("/assets/browse-1/browse_bg.wasm"), "and its bundle");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grid_has_its_state_from_the_address() {
    let Rendered { status, html, .. } = page("/pocket/3-res-3k").await;
    assert_eq!(status, 200);
    assert_eq!(count(&html, "data-testid=\"feature-card\""), 48);
    assert!(html.contains("3,072 features"), "the count");
    assert!(html.contains("href=\"/pocket/3-res-3k?page=1\""), "a way to the next page");
    let found = page("/pocket/3-res-3k?q=dog&category=object").await.html;
    assert_eq!(count(&found, "data-testid=\"feature-card\""), 1);
    assert!(found.contains("1 feature for “dog”"));
    assert!(found.contains("value=\"dog\""), "the search field says what was searched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feature_shows_label_score_baseline_and_examples() {
    let Rendered { status, html, .. } = page("/pocket/3-res-3k/0").await;
    assert_eq!(status, 200);
    assert!(html.contains("<title>dog · feature 0 of pocket 3-res-3k · LMM Scope</title>"), "the title unfurls");
    assert!(html.contains("property=\"og:title\""));
    assert!(html.contains("IoU 0.720, random places 0.0500"), "score and baseline stand together");
    assert!(html.contains("--v:25.4%;--b:3.3%;--l:21.7%;--h:29.2%"), "and its interval");
    assert!(
        html.contains("computed by a grounder, 2026-11-23, seed 0, pocket-cache (3,200 pictures)"),
        "by whom, when"
    );
    assert_eq!(count(&html, "data-effect="), 2 * 3, "the kinds of effect that answers have, as bar and as counts");
    assert!(
        html.contains("data-effect=\"mentions\" style=\"flex-grow:3;\"") && !html.contains("data-effect=\"unrelated")
    );
    assert_eq!(count(&html, "class=\"example\""), 24);
    assert!(html.contains("fires on "), "heat maps have a text summary");
    assert!(html.contains("dissect (exact masks)") && html.contains("pocket@1a2b3c4d5e6f"), "provenance");
    assert!(html.contains("href=\"/pocket/3-res-3k/0?kind=quantile\""), "the switch is made of links");
    assert!(html.contains("class=\"token token-hot\""), "text tokens are lit");
    let random = page("/pocket/3-res-3k/0?kind=random&view=outline").await.html;
    assert!(random.contains("data-view=\"outline\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_feature_says_so_and_an_unlabelled_one_too() {
    let dead = page("/pocket/3-res-3k/9").await.html;
    assert!(dead.contains("data-testid=\"dead-notice\""));
    assert_eq!(count(&dead, "class=\"example\""), 0);
    let bare = page("/pocket/3-res-3k/8").await.html;
    assert!(bare.contains("Nobody has explained this feature yet"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_404_with_a_reason() {
    for (path, reason) in [
        ("/pocket/3-res-3k/9999", "There are 3,072 features, no 9999."),
        ("/pocket/3-res-3k/dog", "is not a feature's number"),
        ("/pocket/nothing", "There is no pocket/nothing."),
        ("/no/such/page/here", "There is nothing at this address"),
    ] {
        let Rendered { status, html, .. } = page(path).await;
        assert_eq!(status, 404, "{path}");
        assert!(
            html.contains(reason) || html.contains(&reason.replace('\'', "&#x27;")),
            "{path} does not say: {reason}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn analyze_and_steer_take_their_state_from_the_address() {
    let analyze = page("/pocket/3-res-3k/analyze?picture=sample-1").await;
    assert_eq!(analyze.status, 200);
    assert_eq!(count(&analyze.html, "data-testid=\"analyze-sample\""), 6);
    assert!(analyze.html.contains("/pictures/sample-1.webp"));
    assert!(analyze.html.contains("data-testid=\"upload-input\"") && analyze.html.contains("is not stored"));
    let steer = page("/pocket/3-res-3k/steer?features=0:3&prompt=Tell+me+a+story&method=add").await.html;
    assert!(steer.contains("data-feature=\"0\"") && steer.contains("Tell me a story"));
    for column in ["steer-original", "steer-reconstructed", "steer-steered", "steer-run"] {
        assert!(steer.contains(&format!("data-testid=\"{column}\"")), "{column}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_leads_on_and_docs_name_every_error() {
    let random = page("/random").await;
    assert_eq!((random.status, random.location.as_deref()), (307, Some("/pocket/3-res-3k/3")));
    let docs = page("/docs").await.html;
    for code in ["not_found", "not_an_image", "engine_busy", "upload_too_large"] {
        assert!(docs.contains(&format!("id=\"error-{code}\"")), "{code}");
    }
}
