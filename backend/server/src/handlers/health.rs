use crate::{AppState, EngineState, error::AppError};
use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

/// What a load balancer asks.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Sources in the database.
    pub sources: usize,
    /// Requests the engine could accept at this moment.
    pub engine_free: usize,
}

/// Whether the server can answer: its database is read.
#[utoipa::path(get, path = "/healthz", tag = "server", responses((status = 200, body = Health), super::Refused))]
pub async fn healthz(State(state): State<AppState>) -> Result<Json<Health>, AppError> {
    let sources = state.catalogue.sources().await?.len();
    Ok(Json(Health { sources, engine_free: state.engine.free().await }))
}

/// The same of an engine alone, which has no database.
pub async fn engine_healthz(State(state): State<EngineState>) -> Json<Health> {
    Json(Health { sources: 0, engine_free: state.engine.free().await })
}
