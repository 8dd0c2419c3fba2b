//! Every route of the server, on one page.

use crate::{
    AppState,
    error::{AppError, REQUEST_ID, finish_problems, panic_response},
    handlers::{extract, features, health, pictures, sources, steer, weights},
    openapi, ssr, static_files,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderName, HeaderValue, Uri, header},
    middleware,
    routing::{MethodRouter, any, get, post},
};
use std::path::Path;
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::{CompressionLayer, DefaultPredicate, Predicate, predicate::NotForContentType},
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    set_header::SetResponseHeaderLayer,
    trace::TraceLayer,
};

/// Largest request that is read at all; pictures above [`crate::picture::MAX_UPLOAD`] are read to be refused politely.
const MAX_FORM: usize = 64 << 20;
/// A steer request holds its picture as base64, a third larger, and some text.
const MAX_STEER: usize = crate::picture::MAX_UPLOAD / 3 * 4 + (1 << 20);

/// Path, method and handler of everything that OpenAPI documents.
pub fn documented_routes() -> Vec<(&'static str, &'static str, MethodRouter<AppState>)> {
    vec![
        ("/healthz", "get", get(health::healthz)),
        ("/pictures/{file}", "get", get(pictures::picture_webp)),
        ("/api/v1/openapi.json", "get", get(openapi::openapi_json)),
        ("/api/v1/sources", "get", get(sources::list_sources)),
        ("/api/v1/{model}/{source}", "get", get(sources::find_source)),
        ("/api/v1/{model}/{source}/features", "get", get(features::list_features)),
        ("/api/v1/{model}/{source}/features/{index}", "get", get(features::find_feature)),
        ("/api/v1/{model}/{source}/features/{index}/activations", "get", get(features::list_activations)),
        ("/api/v1/{model}/{source}/features/{index}/neighbours", "get", get(features::find_neighbours)),
        ("/api/v1/{model}/{source}/pictures", "get", get(pictures::list_pictures)),
        ("/api/v1/{model}/{source}/pictures/{id}/activations", "get", get(pictures::find_picture_activations)),
        ("/api/v1/{model}/{source}/random", "get", get(features::random_feature)),
        ("/api/v1/{model}/{source}/weights/{file}", "get", get(weights::weights)),
        ("/api/v1/{model}/{source}/extract", "post", post(extract::extract).layer(DefaultBodyLimit::max(MAX_FORM))),
        ("/api/v1/{model}/{source}/steer", "post", post(steer::steer).layer(DefaultBodyLimit::max(MAX_STEER))),
    ]
}

/// The whole server: API, pictures, bundles in `site`, files in `public`, and pages for all other addresses.
pub fn router(state: AppState, site: &Path, public: &Path) -> Router {
    let routes = documented_routes()
        .into_iter()
        .fold(Router::new(), |router, (path, _, handler)| router.route(path, handler.fallback(wrong_method)));
    let pages = static_files::public(public, any(ssr::page), state.clone());
    let routes = routes
        .route("/api/{*rest}", any(no_route))
        .nest("/assets", static_files::assets(site))
        .fallback_service(pages)
        .with_state(state);
    with_layers(routes)
}

async fn no_route(uri: Uri) -> AppError {
    AppError::not_found(format!("There is no {}. All routes are in /api/v1/openapi.json.", uri.path()))
}

async fn wrong_method(request: Request) -> AppError {
    AppError::method_not_allowed(format!("{} does not take {}.", request.uri().path(), request.method()))
}

/// Outermost first: request id, log, security headers, compression, problems, panics.
fn with_layers(routes: Router) -> Router {
    let header = |name: HeaderName, value: &'static str| {
        SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
    };
    // Half floats do not compress; event streams and pictures are left alone by default.
    let compressed = DefaultPredicate::new().and(NotForContentType::const_new("application/octet-stream"));
    let layers = tower::ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(TraceLayer::new_for_http().make_span_with(request_span))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(header(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(header(header::REFERRER_POLICY, "strict-origin-when-cross-origin"))
        .layer(header(HeaderName::from_static("cross-origin-opener-policy"), "same-origin"))
        .layer(CompressionLayer::new().compress_when(compressed))
        .layer(middleware::from_fn(finish_problems))
        .layer(CatchPanicLayer::custom(panic_response));
    routes.layer(layers)
}

fn request_span(request: &Request) -> tracing::Span {
    let request_id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    tracing::info_span!("request", method = %request.method(), path = request.uri().path(), request_id)
}
