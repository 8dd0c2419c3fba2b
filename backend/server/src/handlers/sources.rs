use crate::{AppState, error::AppError, extractors::Path};
use api::Source;
use axum::{Json, extract::State};
use frontend::api::SourceKey;

/// All sources: one SAE at one hook point of one model each.
#[utoipa::path(get, path = "/api/v1/sources", tag = "sources",
    responses((status = 200, body = Vec<Source>), super::Refused))]
pub async fn list_sources(State(state): State<AppState>) -> Result<Json<Vec<Source>>, AppError> {
    Ok(Json(state.catalogue.sources().await?))
}

/// One source.
#[utoipa::path(get, path = "/api/v1/{model}/{source}", tag = "sources",
    params(("model" = String, Path), ("source" = String, Path)),
    responses((status = 200, body = Source), super::Refused))]
pub async fn find_source(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
) -> Result<Json<Source>, AppError> {
    Ok(Json(state.catalogue.source(&SourceKey::new(model, source)).await?))
}
