//! Pages and files.

use crate::common::server;
use axum::http::header;

#[tokio::test]
async fn pages_are_rendered_with_their_data() {
    let server = server().await;
    for (path, expected) in [
        ("/", "LMM Scope"),
        ("/tiny/1-res-64", "red cat"),
        ("/tiny/1-res-64?q=happy", "happy face"),
        ("/tiny/1-res-64/1", "happy face"),
        ("/tiny/1-res-64/analyze", "picture"),
        ("/tiny/1-res-64/steer", "prompt"),
        ("/docs", "/api/v1"),
        ("/queue", "lmm-scope explain"),
    ] {
        let page = server.get(path).await;
        assert_eq!(page.status.as_u16(), 200, "{path}: {}", page.text());
        assert!(page.header("content-type").starts_with("text/html"), "{path}");
        assert!(page.text().contains(expected), "{path} lacks {expected:?}");
        let bundle = match path.rsplit('/').next() {
            Some("analyze") => "/assets/a/analyze.js",
            Some("steer" | "queue") => "/assets/s/steer.js",
            _ => "/assets/page-1/page.js",
        };
        assert!(page.text().contains(bundle), "{path}");
    }
    let random = server.get("/random").await;
    assert!((300..400).contains(&random.status.as_u16()), "{}", random.status);
    assert!(random.header("location").starts_with("/tiny/1-res-64/"), "{:?}", random.headers);
}

#[tokio::test]
async fn pages_that_do_not_exist_say_so() {
    let server = server().await;
    for path in ["/nothing", "/tiny/nothing", "/tiny/1-res-64/9999", "/tiny/1-res-64/1/2/3"] {
        let page = server.get(path).await;
        assert_eq!(page.status.as_u16(), 404, "{path}");
        assert!(page.header("content-type").starts_with("text/html"), "{path}");
    }
}

#[tokio::test]
async fn pages_run_only_their_own_scripts() {
    let server = server().await;
    let page = server.get("/tiny/1-res-64?q=%3Cscript%3Ealert(1)%3C/script%3E").await;
    let policy = page.header("content-security-policy");
    let scripts = policy.split("; ").find(|part| part.starts_with("script-src")).unwrap();
    assert!(!scripts.contains("unsafe-inline") && scripts.contains("'wasm-unsafe-eval'"), "{policy}");
    assert!(scripts.matches("'sha256-").count() >= 2, "{policy}");
    assert!(policy.contains("worker-src 'self' blob:") && policy.contains("object-src 'none'"), "{policy}");
    assert!(!page.text().contains("<script>alert(1)"), "markup from the address is in the page");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("cache-control"), "no-cache");
}

#[tokio::test]
async fn files_are_served_as_they_are() {
    let server = server().await;
    let script = server.get("/assets/page-1/page.js").await;
    assert_eq!((script.status.as_u16(), script.text().as_str()), (200, "export default 1;"));
    assert!(script.header("cache-control").contains("immutable"));
    let missing = server.get("/assets/page-0/page.js").await;
    assert_eq!(missing.status.as_u16(), 404);
    assert!(!missing.header("cache-control").contains("immutable"));
    let icon = server.get("/favicon.svg").await;
    assert_eq!((icon.status.as_u16(), icon.header("content-type")), (200, "image/svg+xml"));
    let outside = std::fs::read_to_string(server.folder.path().join("source.json")).unwrap();
    for path in ["/assets/../source.json", "/assets/..%2Fsource.json", "/../source.json", "/..%2Fsource.json"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status.as_u16(), 404, "{path}");
        assert_ne!(answer.text(), outside, "{path} leaves its folder");
    }
}

#[tokio::test]
async fn text_is_compressed() {
    let server = server().await;
    for path in ["/api/v1/tiny/1-res-64/features", "/tiny/1-res-64"] {
        let answer = server.get_with(path, header::ACCEPT_ENCODING, "gzip").await;
        assert_eq!(answer.header("content-encoding"), "gzip", "{path}");
    }
}
