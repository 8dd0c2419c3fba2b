//! Files that are served as they are: the bundles under `/assets`, and `public/` where nothing else answers.

use axum::{
    Router,
    extract::Request,
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::Response,
    routing::MethodRouter,
};
use std::path::Path;
use tower_http::services::ServeDir;

/// The bundles. Their names hold their hashes, so that they never change.
pub fn assets<S: Clone + Send + Sync + 'static>(site: &Path) -> Router<S> {
    let files = ServeDir::new(site).append_index_html_on_directories(false).precompressed_br().precompressed_gzip();
    Router::new().fallback_service(files).layer(middleware::from_fn(immutable))
}

/// `public/`, then `otherwise`.
pub fn public<S: Clone + Send + Sync + 'static>(
    folder: &Path,
    otherwise: MethodRouter<S>,
    state: S,
) -> ServeDir<MethodRouter> {
    ServeDir::new(folder)
        .append_index_html_on_directories(false)
        .call_fallback_on_method_not_allowed(true)
        .fallback(otherwise.with_state(state))
}

async fn immutable(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if response.status().is_success() {
        let value = HeaderValue::from_static("public, max-age=31536000, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, value);
    }
    response
}
