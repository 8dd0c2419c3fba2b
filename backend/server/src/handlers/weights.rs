use crate::{
    AppState,
    error::AppError,
    extractors::{Path, Query},
};
use axum::{
    extract::{Request, State},
    response::Response,
};
use frontend::api::SourceKey;
use serde::Deserialize;
use utoipa::IntoParams;

/// Query of the weights route.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct WeightsQuery {
    /// First digits (8 or more) of the file's SHA-256, e.g. `saeRevision`: the answer is then kept for a year.
    #[param(required = false)]
    pub v: Option<String>,
}

/// The SAE's files: `sae.safetensors`, `cfg.json`, `manifest.json` or a shard that it names, whole or a range.
///
/// `manifest.json` lists the SAE in pieces of at most 128 MiB, in half floats and with fewer bits; names of shards hold
/// their hashes, so that they are kept for a year.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/weights/{file}", tag = "weights",
    params(("model" = String, Path), ("source" = String, Path), ("file" = String, Path), WeightsQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 206),
        (status = 304), (status = 416), super::Refused))]
pub async fn weights(
    State(state): State<AppState>,
    Path((model, source, file)): Path<(String, String, String)>,
    Query(query): Query<WeightsQuery>,
    request: Request,
) -> Result<Response, AppError> {
    state.weights.serve(&SourceKey::new(model, source), &file, query.v.as_deref(), request).await
}
