//! The one place where errors become HTTP: RFC 9457 problems, with the request's id, logged once.

use crate::{engine::EngineError, picture::PictureError};
use api::{ErrorCode, Problem};
use axum::{
    Json,
    extract::{Request, rejection},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{any::Any, borrow::Cow, fmt::Display, sync::Arc};
use store::StoreError;

/// Every response carries the request's id under this name.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What a client waits after "busy".
const RETRY_AFTER_SECS: u16 = 2;

/// A failed request.
#[derive(Debug, Clone)]
pub struct AppError {
    status: StatusCode,
    code: ErrorCode,
    title: Cow<'static, str>,
    /// For the caller: what happened and what to do.
    detail: String,
    /// For the log only.
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl AppError {
    fn new(status: StatusCode, code: ErrorCode, title: &'static str, detail: impl Display) -> Self {
        Self { status, code, title: title.into(), detail: detail.to_string(), cause: None }
    }

    pub fn not_found(detail: impl Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, "Not found", detail)
    }

    pub fn bad_request(detail: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, "Bad request", detail)
    }

    pub fn method_not_allowed(detail: impl Display) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::BadRequest, "Method not allowed", detail)
    }

    pub fn upload_too_large(limit: usize) -> Self {
        let detail = format!("The upload is larger than {} MiB. Send a smaller picture.", limit >> 20);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::UploadTooLarge, "Upload too large", detail)
    }

    pub fn too_many_hidden_states(limit: usize) -> Self {
        let detail = format!("The body is larger than {} MiB. Send fewer tokens, as half floats.", limit >> 20);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::UploadTooLarge, "Too many hidden states", detail)
    }

    pub fn prompt_too_long(detail: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::PromptTooLong, "Prompt too long", detail)
    }

    pub fn busy() -> Self {
        let detail = "The model has as many requests waiting as it takes. Try again in a few seconds.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::EngineBusy, "The engine is busy", detail)
    }

    /// No engine has room, or none can be reached.
    pub fn no_engine() -> Self {
        let detail = "All engines are busy or cannot be reached. Try again in a few seconds.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::EngineBusy, "No engine is free", detail)
    }

    /// What another server of ours said was wrong with the request.
    pub fn from_problem(status: StatusCode, problem: Problem) -> Self {
        let Problem { code, title, detail, .. } = problem;
        Self { status, code, title: title.into(), detail, cause: None }
    }

    pub fn internal(cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        let detail = "Something went wrong on the server. Try again; if it stays, report it with the request id.";
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal, "Internal error", detail);
        Self { cause: Some(Arc::new(cause)), ..error }
    }

    /// The wire form.
    pub fn problem(&self, request_id: &str) -> Problem {
        Problem {
            kind: format!("/docs#error-{}", self.code.as_str()),
            title: self.title.clone().into_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code,
            request_id: request_id.to_owned(),
        }
    }

    /// In one line for who may see the cause as well: a command's user.
    pub fn reason(&self) -> String {
        let why = self.cause.as_ref().map(|cause| causes(cause.as_ref()).join(": "));
        format!("{}: {}", self.title, why.as_deref().unwrap_or(&self.detail))
    }

    /// Writes the cause to the log, once; the request's span has its path and id.
    pub fn log(&self) {
        let status = self.status.as_u16();
        if !self.status.is_server_error() {
            return tracing::info!(status, detail = self.detail, "refused");
        }
        let causes = self.cause.iter().flat_map(|cause| causes(cause.as_ref())).collect::<Vec<_>>().join(": ");
        tracing::error!(status, cause = causes, "{}", self.title);
    }
}

/// An error and what it came from, outermost first, without repeating what a message already says.
fn causes<'a>(error: &'a (dyn std::error::Error + 'static)) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    for cause in std::iter::successors(Some(error), |error| error.source()) {
        let message = cause.to_string();
        if messages.last().is_none_or(|last| !last.contains(&message)) {
            messages.push(message);
        }
    }
    messages
}

impl IntoResponse for AppError {
    /// Only the status and a note for [`finish_problems`], which knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the problem of a failed request into its response, and into the log.
pub async fn finish_problems(request: Request, next: Next) -> Response {
    let request_id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let response = next.run(request).await;
    let Some(error) = response.extensions().get::<AppError>() else { return response };
    error.log();
    let mut problem = (error.status, Json(error.problem(&request_id))).into_response();
    let headers = problem.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if error.status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECS.into());
    }
    if let Some(allow) = response.headers().get(header::ALLOW) {
        headers.insert(header::ALLOW, allow.clone());
    }
    problem
}

/// A panic in a handler is a bug: say so like any other internal error.
pub fn panic_response(panic: Box<dyn Any + Send>) -> Response {
    let message = panic_message(panic.as_ref());
    AppError::internal(std::io::Error::other(format!("a handler panicked: {message}"))).into_response()
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

impl From<StoreError> for AppError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Query { .. } => Self::bad_request(error),
            other => Self::internal(other),
        }
    }
}

impl From<EngineError> for AppError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Busy => Self::busy(),
            EngineError::Model(error @ model::Error::PromptTooLong { .. }) => Self::prompt_too_long(error),
            EngineError::Model(
                error @ (model::Error::BadInput(_)
                | model::Error::Overflow { .. }
                | model::Error::TemplateRefused(_)
                | model::Error::UnknownFeature { .. }
                | model::Error::UnknownLayer { .. }
                | model::Error::UnknownVisionBlock { .. }),
            ) => Self::bad_request(error),
            other => Self::internal(other),
        }
    }
}

impl From<PictureError> for AppError {
    fn from(error: PictureError) -> Self {
        let (status, code, title) = match error {
            PictureError::NotAnImage | PictureError::Damaged(_) | PictureError::Cmyk => {
                (StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::NotAnImage, "Not a picture")
            }
            PictureError::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::ImageTooLarge, "Picture too large")
            }
        };
        Self::new(status, code, title, error)
    }
}

impl From<rejection::QueryRejection> for AppError {
    fn from(rejection: rejection::QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<rejection::PathRejection> for AppError {
    fn from(rejection: rejection::PathRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<rejection::JsonRejection> for AppError {
    fn from(rejection: rejection::JsonRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::upload_too_large(crate::picture::MAX_UPLOAD);
        }
        Self::bad_request(rejection.body_text())
    }
}
