use crate::{AppState, error::AppError, extractors::Path, map};
use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use frontend::api::SourceKey;

/// The picture loads nothing and runs nothing, whatever labels say; links lead to pages of this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'self'";

/// All living features on a plane, those with similar decoder rows near each other: a picture with links.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/map.svg", tag = "features",
    params(("model" = String, Path), ("source" = String, Path)),
    responses((status = 200, content_type = "image/svg+xml", body = String), super::Refused))]
pub async fn map_svg(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
) -> Result<Response, AppError> {
    let (source, points) = state.catalogue.map(&SourceKey::new(model, source)).await?;
    // Of a hundred thousand points, nobody else shall wait for it.
    let drawn = tokio::task::spawn_blocking(move || map::svg(&source, &points)).await.map_err(AppError::internal)?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("image/svg+xml")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    ];
    Ok((headers, drawn).into_response())
}
