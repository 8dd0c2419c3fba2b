//! Pages, rendered on the server, and the headers that protect them.

use crate::AppState;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use frontend::{
    api::Client,
    render::{Rendered, render_page},
};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Renders the page of an address; the page decides the status.
pub async fn page(State(state): State<AppState>, request: Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return crate::error::AppError::method_not_allowed("Pages are only read.").into_response();
    }
    let address = request.uri().path_and_query().map_or("/", |address| address.as_str()).to_owned();
    let client: Arc<dyn Client> = Arc::new(state.catalogue.clone());
    let Rendered { status, location, html } = render_page(&address, client, state.site.clone()).await;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = page_headers(&html);
    if let Some(location) = location.and_then(|location| HeaderValue::try_from(location).ok()) {
        headers.insert(header::LOCATION, location);
    }
    (status, headers, Html(html)).into_response()
}

fn page_headers(html: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(policy) = HeaderValue::try_from(content_security_policy(html)) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers
}

/// Scripts come from here, compile WebAssembly, and run workers; nothing else runs. Inline scripts are allowed by
/// their hashes, and only where the renderer puts them, so that markup in the page's body never becomes a script.
fn content_security_policy(html: &str) -> String {
    let hashes: String =
        renderer_scripts(html).map(|script| format!(" 'sha256-{}'", STANDARD.encode(Sha256::digest(script)))).collect();
    format!(
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'{hashes}; worker-src 'self' blob:; \
         style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' blob: data:; \
         object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    )
}

/// Inline scripts before the body and after the document's end.
fn renderer_scripts(html: &str) -> impl Iterator<Item = &str> {
    let head = &html[..html.find("<body").unwrap_or(html.len())];
    let tail = html.rfind("</html>").map_or("", |end| &html[end..]);
    inline_scripts(head).chain(inline_scripts(tail))
}

fn inline_scripts(html: &str) -> impl Iterator<Item = &str> {
    html.split("<script").skip(1).filter_map(|element| {
        let (tag, rest) = element.split_once('>')?;
        let executed = !tag.contains(" src=") && !tag.contains("application/json");
        executed.then(|| rest.split("</script>").next()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_renderers_scripts_are_allowed() {
        let html = r#"<html><head><script>early</script><script src="/a.js"></script>
            <script type="application/json">{}</script><script type="module">import</script></head>
            <body><script>injected</script></html><script>injected too</script></body></html><script>data</script>"#;
        assert_eq!(renderer_scripts(html).collect::<Vec<_>>(), ["early", "import", "data"]);
        assert_eq!(renderer_scripts("no document").count(), 0);
    }

    #[test]
    fn the_policy_names_hashes() {
        let policy = content_security_policy("<head><script>alert('Hello, world.');</script></head><body>");
        assert!(policy.contains("'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"), "{policy}");
        assert!(!policy.contains("script-src 'self' 'unsafe-inline'"));
    }
}
