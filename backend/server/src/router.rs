//! Every route of the server, on one page.

use crate::{
    AppState, EngineState,
    error::{AppError, REQUEST_ID, finish_problems, panic_response},
    handlers::{attribute, encode, engine, extract, features, health, jobs, map, pictures, sources, steer, weights},
    openapi, ssr, static_files,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRef, Request},
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
/// A steer or attribute request holds its picture as base64, a third larger, and some text.
const MAX_JSON: usize = crate::picture::MAX_UPLOAD / 3 * 4 + (1 << 20);

/// Path, method and handler.
type Route<S> = (&'static str, &'static str, MethodRouter<S>);

/// Everything that OpenAPI documents.
pub fn documented_routes() -> Vec<Route<AppState>> {
    let form = || DefaultBodyLimit::max(MAX_FORM);
    let json = || DefaultBodyLimit::max(MAX_JSON);
    let mut routes: Vec<Route<AppState>> = vec![
        ("/healthz", "get", get(health::healthz)),
        ("/api/v1/openapi.json", "get", get(openapi::openapi_json)),
        ("/pictures/{file}", "get", get(pictures::picture_webp)),
        ("/api/v1/sources", "get", get(sources::list_sources)),
        ("/api/v1/{model}/{source}", "get", get(sources::find_source)),
        ("/api/v1/{model}/{source}/features", "get", get(features::list_features)),
        ("/api/v1/{model}/{source}/features/{index}", "get", get(features::find_feature)),
        ("/api/v1/{model}/{source}/features/{index}/activations", "get", get(features::list_activations)),
        ("/api/v1/{model}/{source}/features/{index}/neighbours", "get", get(features::find_neighbours)),
        ("/api/v1/{model}/{source}/features/{index}/explain", "post", post(jobs::explain)),
        ("/api/v1/jobs", "get", get(jobs::list_jobs)),
        ("/api/v1/jobs/{id}", "get", get(jobs::find_job)),
        ("/api/v1/{model}/{source}/pictures", "get", get(pictures::list_pictures)),
        ("/api/v1/{model}/{source}/pictures/{id}/activations", "get", get(pictures::find_picture_activations)),
        ("/api/v1/{model}/{source}/random", "get", get(features::random_feature)),
        ("/api/v1/{model}/{source}/map.svg", "get", get(map::map_svg)),
        ("/api/v1/{model}/{source}/weights/{file}", "get", get(weights::weights)),
        ("/api/v1/{model}/{source}/extract", "post", post(extract::extract).layer(form())),
        (
            "/api/v1/{model}/{source}/encode",
            "post",
            post(encode::encode).layer(DefaultBodyLimit::max(encode::MAX_HIDDEN)),
        ),
        ("/api/v1/{model}/{source}/steer", "post", post(steer::steer).layer(json())),
        ("/api/v1/{model}/{source}/attribute", "post", post(attribute::attribute).layer(json())),
    ];
    routes.extend(model_routes());
    routes
}

/// What an engine alone serves, too: no source in the path, for it has only one.
fn model_routes<S>() -> Vec<Route<S>>
where
    S: Clone + Send + Sync + 'static,
    EngineState: FromRef<S>,
{
    let json = || DefaultBodyLimit::max(MAX_JSON);
    vec![
        ("/api/v1/engine", "get", get(engine::engine)),
        ("/api/v1/extract", "post", post(extract::extract_here).layer(DefaultBodyLimit::max(MAX_FORM))),
        ("/api/v1/steer", "post", post(steer::steer_here).layer(json())),
        ("/api/v1/attribute", "post", post(attribute::attribute_here).layer(json())),
    ]
}

/// Everything that `lmm-scope engine` serves.
pub fn engine_routes() -> Vec<Route<EngineState>> {
    let mut routes: Vec<Route<EngineState>> = vec![
        ("/healthz", "get", get(health::engine_healthz)),
        ("/api/v1/openapi.json", "get", get(openapi::engine_openapi_json)),
    ];
    routes.extend(model_routes());
    routes
}

fn with_routes<S: Clone + Send + Sync + 'static>(routes: Vec<Route<S>>) -> Router<S> {
    routes
        .into_iter()
        .fold(Router::new(), |router, (path, _, handler)| router.route(path, handler.fallback(wrong_method)))
}

/// The engine alone.
pub fn engine_router(state: EngineState) -> Router {
    with_layers(with_routes(engine_routes()).fallback(no_route).with_state(state))
}

/// The whole server: API, pictures, bundles in `site`, files in `public`, and pages for all other addresses.
pub fn router(state: AppState, site: &Path, public: &Path) -> Router {
    let pages = static_files::public(public, any(ssr::page), state.clone());
    let routes = with_routes(documented_routes())
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
