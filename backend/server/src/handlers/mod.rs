//! One thin handler per route: extractors, one call, wire type.

pub mod extract;
pub mod features;
pub mod health;
pub mod pictures;
pub mod sources;
pub mod steer;
pub mod weights;

use crate::{AppState, engine::Engine, error::AppError};
use api::Problem;
use frontend::api::SourceKey;
use utoipa::IntoResponses;

/// The engine, if it has this source's model.
fn engine_of<'a>(state: &'a AppState, key: &SourceKey) -> Result<&'a Engine, AppError> {
    if state.engine.source() == key {
        return Ok(&state.engine);
    }
    let SourceKey { model, source } = key;
    Err(AppError::not_found(format!("This server has no model for {model}/{source}; its features can be read only.")))
}

/// Answers of the routes that read.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "names the answers in the OpenAPI document; responses are made by `error`")]
pub enum Refused {
    /// A parameter is wrong; `detail` says which and why.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(Problem),
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// A bug or a broken database; the log has the cause under the request id.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Problem),
}

/// Further answers of the routes that use the model.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "names the answers in the OpenAPI document; responses are made by `error`")]
pub enum EngineRefused {
    /// The upload or the picture is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// The upload is not a picture.
    #[response(status = 422, content_type = "application/problem+json")]
    NotAnImage(Problem),
    /// The queue is full; `Retry-After` says when to come back.
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(Problem),
}
