use super::{
    engine::engine_of,
    tensors::{Written, octet_response, safetensors_from_written},
};
use crate::{AppState, error::AppError, extractors::Path};
use axum::{
    extract::{FromRequest, Request, State},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use std::sync::Arc;

/// Largest body: 64 MiB of numbers, and a header.
pub const MAX_HIDDEN: usize = (64 << 20) + (64 << 10);

/// Hidden states in, features out: for visitors whose own machine cannot hold the SAE.
///
/// The body is a safetensors file with `hidden` f16 or f32 `[tokens, d_model]`, at most 8,192 tokens and 64 MiB. The
/// answer is one with `top_indices` i32 and `top_acts` f32, both `[tokens, k]`: each row by falling activation, ties by
/// lower index, filled up with index 0 and activation 0.
#[utoipa::path(post, path = "/api/v1/{model}/{source}/encode", tag = "engine",
    params(("model" = String, Path), ("source" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>,
        headers(("x-engine" = String, description = "which device ran, and for how long: `cpu;ms=41`"))),
        super::Refused, super::EngineRefused))]
pub async fn encode(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
    request: Request,
) -> Result<Response, AppError> {
    let encoder = Arc::clone(&state.encoder);
    engine_of(state, model, source).await?;
    let body = Bytes::from_request(request, &()).await.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return AppError::too_many_hidden_states(MAX_HIDDEN);
        }
        AppError::bad_request(rejection.body_text())
    })?;
    let encoded = encoder.encode(body).await?;
    let (top, shape) = (&encoded.top, vec![encoded.top.tokens, encoded.top.k]);
    let tensors =
        [Written::ids("top_indices", shape.clone(), &top.indices), Written::floats("top_acts", shape, &top.acts)];
    octet_response(safetensors_from_written(&tensors, None)?, "cpu", encoded.took)
}
