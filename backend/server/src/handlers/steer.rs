use super::{
    engine::engine_of,
    given::{GivenPicture, check_prompt},
};
use crate::{
    AppState, EngineState,
    engine::{Runner, SteerInput},
    error::AppError,
    extractors::{Json, Path},
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
use futures::StreamExt;
use std::collections::BTreeSet;
use tokio_stream::wrappers::UnboundedReceiverStream;

const MAX_FEATURES: usize = 64;
const MAX_TOKENS: u32 = 256;
const MAX_TEMPERATURE: f32 = 5.0;
const MAX_POSITIONS: usize = 4096;
const MAX_ALTERNATIVES: u32 = 10;

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
    Json(request): Json<SteerRequest>,
) -> Result<Response, AppError> {
    answer(engine_of(state, model, source).await?, request).await
}

/// The same for the one source whose model runs here.
#[utoipa::path(post, path = "/api/v1/steer", tag = "engine", request_body = SteerRequest,
    responses((status = 200, content_type = "text/event-stream", body = SteerEvent),
        super::Refused, super::EngineRefused))]
pub async fn steer_here(
    State(state): State<EngineState>,
    Json(request): Json<SteerRequest>,
) -> Result<Response, AppError> {
    answer(state, request).await
}

async fn answer(state: EngineState, mut request: SteerRequest) -> Result<Response, AppError> {
    check_request(&request)?;
    let picture = GivenPicture::find_in_json(&state, &mut request.image, request.picture.as_deref()).await?;
    let engine = match &state.engine {
        Runner::Local(engine) => engine,
        Runner::Remote(engines) => {
            let image = picture.map(GivenPicture::into_data_url);
            let request = SteerRequest { picture: None, image, ..request };
            return engines.post("/api/v1/steer", |post| post.json(&request)).await;
        }
    };
    let image = match picture {
        Some(picture) => Some(picture.decode().await?),
        None => None,
    };
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
    check_details(request)
}

fn check_details(request: &SteerRequest) -> Result<(), AppError> {
    let refuse = |detail: String| Err(AppError::bad_request(detail));
    if let Some(top_p) = request.top_p.filter(|top_p| !(*top_p > 0.0 && *top_p <= 1.0)) {
        return refuse(format!("top_p: {top_p} is not above 0 and at most 1."));
    }
    if request.top_alternatives > MAX_ALTERNATIVES {
        let asked = request.top_alternatives;
        return refuse(format!("top_alternatives: {asked} were asked for; at most {MAX_ALTERNATIVES} are listed."));
    }
    match request.token_positions.as_ref().map(Vec::len) {
        Some(0) => refuse("token_positions: is empty. Name at least one, or leave it out.".into()),
        Some(named) if named > MAX_POSITIONS => {
            refuse(format!("token_positions: {named} of them; at most {MAX_POSITIONS} are taken."))
        }
        _ => Ok(()),
    }
}
