//! One thin handler per route: extractors, one call, wire type.

pub mod attribute;
pub mod encode;
pub mod engine;
pub mod extract;
pub mod features;
mod given;
pub mod health;
pub mod jobs;
pub mod map;
pub mod pictures;
pub mod sources;
pub mod steer;
mod tensors;
pub mod weights;

use api::Problem;
use utoipa::IntoResponses;

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
