use crate::{AppState, EngineState, error::AppError};
use api::EngineInfo;
use axum::{
    Json,
    extract::{FromRef, State},
};
use frontend::api::SourceKey;

/// The model behind this server: what it is, where it computes, and how busy it is.
#[utoipa::path(get, path = "/api/v1/engine", tag = "engine",
    responses((status = 200, body = EngineInfo), super::Refused, super::EngineRefused))]
pub async fn engine(State(state): State<EngineState>) -> Result<Json<EngineInfo>, AppError> {
    Ok(Json(state.engine.info().await?))
}

/// What the routes of the model need, if this source's model runs here.
pub(super) async fn engine_of(state: AppState, model: String, source: String) -> Result<EngineState, AppError> {
    let key = SourceKey::new(model, source);
    state.catalogue.source(&key).await?;
    if *state.catalogue.served() == key {
        return Ok(EngineState::from_ref(&state));
    }
    let SourceKey { model, source } = key;
    Err(AppError::not_found(format!("This server has no model for {model}/{source}; its features can be read only.")))
}
