use super::extract::check_prompt;
use crate::{
    AppState,
    engine::SteerInput,
    error::AppError,
    extractors::{Json, Path},
    picture::{HeldPicture, MAX_UPLOAD, bytes_from_data_url, decode_in_slot, decode_stored},
};
use api::{SteerEvent, SteerMethod, SteerRequest};
use axum::{
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use frontend::api::SourceKey;
use futures::StreamExt;
use std::collections::BTreeSet;
use tokio_stream::wrappers::UnboundedReceiverStream;

const MAX_FEATURES: usize = 64;
const MAX_TOKENS: u32 = 256;
const MAX_TEMPERATURE: f32 = 5.0;

/// Original, reconstructed and steered text, streamed.
///
/// Server-sent events named `steer`; `data` is a `SteerEvent`. The last one is `done` or `failed`. Closing the
/// connection ends the run.
#[utoipa::path(post, path = "/api/v1/{model}/{source}/steer", tag = "engine",
    params(("model" = String, Path), ("source" = String, Path)), request_body = SteerRequest,
    responses((status = 200, content_type = "text/event-stream", body = SteerEvent),
        super::Refused, super::EngineRefused))]
pub async fn steer(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
    Json(mut request): Json<SteerRequest>,
) -> Result<Response, AppError> {
    let key = SourceKey::new(model, source);
    state.catalogue.source(&key).await?;
    let engine = super::engine_of(&state, &key)?;
    check_request(&request)?;
    let image = picture_of(&state, &key, &mut request).await?;
    let events = engine.steer(SteerInput { request, image }).await?;
    let stream = UnboundedReceiverStream::new(events).map(|event| Event::default().event("steer").json_data(event));
    let mut response = Sse::new(stream).keep_alive(KeepAlive::default()).into_response();
    // Proxies such as nginx would collect the tokens otherwise.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

fn check_request(request: &SteerRequest) -> Result<(), AppError> {
    let refuse = |detail: String| Err(AppError::bad_request(detail));
    check_prompt(&request.prompt)?;
    if request.prompt.trim().is_empty() && request.picture.is_none() && request.image.is_none() {
        return refuse("prompt: is empty. Ask something, or give a picture.".into());
    }
    if request.features.len() > MAX_FEATURES {
        return refuse(format!("features: {} of them; at most {MAX_FEATURES} are taken.", request.features.len()));
    }
    if let Some(feature) = request.features.iter().find(|feature| !feature.strength.is_finite()) {
        return refuse(format!("features: the strength of {} is not a number.", feature.index));
    }
    let below = request.features.iter().find(|feature| feature.strength < 0.0);
    if let Some(feature) = below.filter(|_| request.steer_method == SteerMethod::Clamp) {
        let detail =
            "an activation is never negative. Use 0 or ABLATE to take it out, SIMPLE_ADDITIVE to push against it";
        return refuse(format!("features: CLAMP of {} to {}: {detail}.", feature.index, feature.strength));
    }
    let distinct: BTreeSet<u32> = request.features.iter().map(|feature| feature.index).collect();
    if distinct.len() < request.features.len() {
        return refuse("features: one of them is named twice.".into());
    }
    if request.n_tokens > MAX_TOKENS {
        return refuse(format!("n_tokens: {} were asked for; at most {MAX_TOKENS} are made.", request.n_tokens));
    }
    if !(0.0..=MAX_TEMPERATURE).contains(&request.temperature) {
        return refuse(format!("temperature: {} is not between 0 and {MAX_TEMPERATURE}.", request.temperature));
    }
    Ok(())
}

/// The picture of a request, decoded; the request keeps no copy of it.
async fn picture_of(
    state: &AppState,
    key: &SourceKey,
    request: &mut SteerRequest,
) -> Result<Option<HeldPicture>, AppError> {
    match (request.image.take(), request.picture.as_deref()) {
        (Some(_), Some(_)) => Err(AppError::bad_request("Send `image` or `picture`, not both.")),
        (Some(url), None) => {
            let bytes = bytes_from_data_url(&url)?;
            if bytes.len() > MAX_UPLOAD {
                return Err(AppError::upload_too_large(MAX_UPLOAD));
            }
            Ok(Some(decode_in_slot(bytes.into()).await?))
        }
        (None, Some(id)) => {
            state.catalogue.picture(key, id).await?;
            Ok(Some(decode_stored(state.catalogue.picture_webp(id).await?.webp.into()).await?))
        }
        (None, None) => Ok(None),
    }
}
