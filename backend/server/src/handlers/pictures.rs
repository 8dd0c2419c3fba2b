use crate::{
    AppState,
    error::AppError,
    extractors::{Path, Query},
    weights::{cache_headers, is_current},
};
use api::{PictureActivations, PictureList};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use frontend::api::SourceKey;
use serde::Deserialize;
use utoipa::IntoParams;

/// Query of the pictures route.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct PicturesQuery {
    /// `scene`, `photo` or `sample`; empty: all.
    pub kind: String,
    /// 0-based page.
    pub page: u32,
    /// Pictures per page, at most 200; 0 means the default of 48.
    pub per_page: u32,
}

/// Pictures of the demo set.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/pictures", tag = "pictures",
    params(("model" = String, Path), ("source" = String, Path), PicturesQuery),
    responses((status = 200, body = PictureList), super::Refused))]
pub async fn list_pictures(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
    Query(query): Query<PicturesQuery>,
) -> Result<Json<PictureList>, AppError> {
    let key = SourceKey::new(model, source);
    Ok(Json(state.catalogue.pictures(&key, &query.kind, query.page, query.per_page).await?))
}

/// Every patch's top features on a sample picture.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/pictures/{id}/activations", tag = "pictures",
    params(("model" = String, Path), ("source" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = PictureActivations), super::Refused))]
pub async fn find_picture_activations(
    State(state): State<AppState>,
    Path((model, source, id)): Path<(String, String, String)>,
) -> Result<Json<PictureActivations>, AppError> {
    Ok(Json(state.catalogue.picture_activations(&SourceKey::new(model, source), &id).await?))
}

/// A picture itself: `{id}.webp`.
#[utoipa::path(get, path = "/pictures/{file}", tag = "pictures", params(("file" = String, Path)),
    responses((status = 200, content_type = "image/webp", body = Vec<u8>), (status = 304), super::Refused))]
pub async fn picture_webp(
    State(state): State<AppState>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Result<Response, AppError> {
    let id = file.strip_suffix(".webp");
    let id = id.ok_or_else(|| AppError::not_found(format!("There is no picture {file}; names end with .webp.")))?;
    let week = |etag: &str| {
        let mut headers = cache_headers(etag, false);
        let value = HeaderValue::from_static("public, max-age=604800, stale-while-revalidate=86400");
        headers.insert(header::CACHE_CONTROL, value);
        headers
    };
    if headers.contains_key(header::IF_NONE_MATCH) {
        let etag = state.catalogue.picture_etag(id).await?;
        if is_current(&headers, &etag) {
            return Ok((StatusCode::NOT_MODIFIED, week(&etag)).into_response());
        }
    }
    let picture = state.catalogue.picture_webp(id).await?;
    let webp = [(header::CONTENT_TYPE, HeaderValue::from_static("image/webp"))];
    Ok((week(&picture.etag), webp, picture.webp).into_response())
}
