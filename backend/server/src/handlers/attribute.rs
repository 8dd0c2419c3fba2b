use super::{
    engine::engine_of,
    given::{GivenPicture, check_prompt},
};
use crate::{
    AppState, EngineState,
    engine::{AttributeInput, Runner},
    error::AppError,
    extractors::{Json, Path},
};
use api::{AttributeRequest, AttributeResult};
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};

const MAX_VERIFY: u32 = 64;
const MAX_TOP: u32 = 1000;

/// Which features made the model prefer `answer` over `baseline`.
///
/// First-order effects of every active feature on the difference of the two logits, the strongest listed, split by
/// picture and text; with `verify`, the measured effects of taking the strongest out.
#[utoipa::path(post, path = "/api/v1/{model}/{source}/attribute", tag = "engine",
    params(("model" = String, Path), ("source" = String, Path)), request_body = AttributeRequest,
    responses((status = 200, body = AttributeResult), super::Refused, super::EngineRefused))]
pub async fn attribute(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
    Json(request): Json<AttributeRequest>,
) -> Result<Response, AppError> {
    answer(engine_of(state, model, source).await?, request).await
}

/// The same for the one source whose model runs here.
#[utoipa::path(post, path = "/api/v1/attribute", tag = "engine", request_body = AttributeRequest,
    responses((status = 200, body = AttributeResult), super::Refused, super::EngineRefused))]
pub async fn attribute_here(
    State(state): State<EngineState>,
    Json(request): Json<AttributeRequest>,
) -> Result<Response, AppError> {
    answer(state, request).await
}

async fn answer(state: EngineState, mut request: AttributeRequest) -> Result<Response, AppError> {
    check_request(&request)?;
    let picture = GivenPicture::find_in_json(&state, &mut request.image, request.picture.as_deref()).await?;
    let engine = match &state.engine {
        Runner::Local(engine) => engine,
        Runner::Remote(engines) => {
            let image = picture.map(GivenPicture::into_data_url);
            let request = AttributeRequest { picture: None, image, ..request };
            return engines.post("/api/v1/attribute", |post| post.json(&request)).await;
        }
    };
    let image = match picture {
        Some(picture) => Some(picture.decode().await?),
        None => None,
    };
    Ok(axum::Json(engine.attribute(AttributeInput { request, image }).await?).into_response())
}

fn check_request(request: &AttributeRequest) -> Result<(), AppError> {
    let refuse = |detail: String| Err(AppError::bad_request(detail));
    check_prompt(&request.prompt)?;
    if request.prompt.trim().is_empty() && request.picture.is_none() && request.image.is_none() {
        return refuse("prompt: is empty. Ask something, or give a picture.".into());
    }
    for (what, text, id) in
        [("answer", &request.answer, request.answer_id), ("baseline", &request.baseline, request.baseline_id)]
    {
        match (text.as_deref(), id) {
            (Some(_), Some(_)) => return refuse(format!("{what}: send `{what}` or `{what}_id`, not both.")),
            (None, None) => {
                return refuse(format!("{what}: is missing. Send its text (`{what}`) or its token (`{what}_id`)."));
            }
            (Some(""), None) => return refuse(format!("{what}: is empty. Send the text whose first token counts.")),
            (Some(text), None) => check_prompt(text)?,
            (None, Some(_)) => {}
        }
    }
    if request.verify > MAX_VERIFY {
        return refuse(format!("verify: {} were asked for; at most {MAX_VERIFY} are measured.", request.verify));
    }
    if request.top > MAX_TOP {
        return refuse(format!("top: {} were asked for; at most {MAX_TOP} are listed.", request.top));
    }
    Ok(())
}
