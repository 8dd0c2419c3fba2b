use super::{
    engine::engine_of,
    given::{GivenPicture, check_prompt},
    tensors::{Written, octet_response, safetensors_from_written},
};
use crate::{
    AppState, EngineState,
    engine::{EngineError, ExtractInput, Hidden, Runner, remote::RemoteEngines},
    error::AppError,
    extractors::{Path, Query},
    picture::MAX_UPLOAD,
};
use api::{ExtractDtype, ExtractQuery};
use axum::{
    extract::{
        FromRequest, Multipart, Request, State,
        multipart::{Field, MultipartError},
    },
    http::{StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use model::hook::Hook;
use reqwest::multipart;
use std::collections::HashMap;

/// Tokens per position that the lenses name at most.
const MAX_LENS: u32 = 20;

/// Form of the extract route.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the form in the OpenAPI document; `ExtractForm` reads it")]
pub struct ExtractBody {
    /// The visitor's picture: PNG, JPEG, WebP, GIF or BMP, at most 10 MiB, 40 megapixels and 16,384
    /// pixels on a side. Never stored.
    #[schema(value_type = Option<String>, format = Binary)]
    image: Option<Vec<u8>>,
    /// Or the id of a demo picture.
    picture: Option<String>,
    /// The question; goes through the chat template. Empty: the picture alone.
    prompt: Option<String>,
}

/// Picture and prompt in, hidden states at the hook point out, as a safetensors file.
///
/// `hidden` f16 or f32 `[tokens, d_model]`, `input_ids` i32 `[tokens]`; metadata `spans`, `grid`, `provenance` (JSON
/// each), `hook_point`. With `threshold`: `threshold` f32 `[tokens]`. With `lens`: `lens_logit_ids`,
/// `lens_logit_scores` `[tokens, n]`, `lens_embedding_ids`, `lens_embedding_scores` `[picture positions, n]`, metadata
/// `lens_tokens` (JSON, id → string).
#[utoipa::path(post, path = "/api/v1/{model}/{source}/extract", tag = "engine",
    params(("model" = String, Path), ("source" = String, Path), ExtractQuery),
    request_body(content = ExtractBody, content_type = "multipart/form-data"),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>,
        headers(("x-engine" = String, description = "which engine ran, and for how long: `cpu;ms=41`"))),
        super::Refused, super::EngineRefused))]
pub async fn extract(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
    Query(query): Query<ExtractQuery>,
    request: Request,
) -> Result<Response, AppError> {
    answer(engine_of(state, model, source).await?, query, request).await
}

/// The same for the one source whose model runs here.
#[utoipa::path(post, path = "/api/v1/extract", tag = "engine", params(ExtractQuery),
    request_body(content = ExtractBody, content_type = "multipart/form-data"),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>,
        headers(("x-engine" = String, description = "which engine ran, and for how long: `cpu;ms=41`"))),
        super::Refused, super::EngineRefused))]
pub async fn extract_here(
    State(state): State<EngineState>,
    Query(query): Query<ExtractQuery>,
    request: Request,
) -> Result<Response, AppError> {
    answer(state, query, request).await
}

async fn answer(state: EngineState, query: ExtractQuery, request: Request) -> Result<Response, AppError> {
    let options = ExtractOptions::read(&query)?;
    let form = ExtractForm::read(query, request).await?;
    let id = form.picture.as_deref().filter(|id| !id.is_empty());
    let picture = GivenPicture::find(&state, form.image, id).await?;
    let prompt = form.prompt.unwrap_or_default();
    if picture.is_none() && prompt.is_empty() {
        return Err(AppError::bad_request("Send a picture (`image`), the id of one (`picture`), or a `prompt`."));
    }
    let engine = match &state.engine {
        Runner::Local(engine) => engine,
        Runner::Remote(engines) => return forward(engines, options, picture, prompt).await,
    };
    let image = match picture {
        Some(picture) => Some(picture.decode().await?),
        None => None,
    };
    let ExtractOptions { dtype, lens, hook, threshold } = options;
    let input = ExtractInput { image, prompt, hook, lens: lens as usize, threshold: threshold.then_some(dtype) };
    let hidden = engine.extract(input).await?;
    octet_response(safetensors_from_hidden(&hidden, dtype)?, &engine.info().device, hidden.took)
}

async fn forward(
    engines: &RemoteEngines,
    options: ExtractOptions,
    picture: Option<GivenPicture>,
    prompt: String,
) -> Result<Response, AppError> {
    let ExtractOptions { dtype, lens, hook, threshold } = options;
    let hook = hook.map(|hook| hook.to_string());
    let query = ExtractQuery { dtype, lens, hook, threshold, ..ExtractQuery::default() };
    let image = picture.map(GivenPicture::into_bytes);
    let fill = |request: reqwest::RequestBuilder| {
        let form = multipart::Form::new().text("prompt", prompt.clone());
        let form = match image.clone() {
            Some(bytes) => form.part("image", multipart::Part::stream(bytes).file_name("picture")),
            None => form,
        };
        request.query(&query).multipart(form)
    };
    engines.post("/api/v1/extract", fill).await
}

/// What the query asks for beside picture and prompt.
#[derive(Debug, Clone, Copy)]
struct ExtractOptions {
    dtype: ExtractDtype,
    lens: u32,
    hook: Option<Hook>,
    threshold: bool,
}

impl ExtractOptions {
    fn read(query: &ExtractQuery) -> Result<Self, AppError> {
        let ExtractQuery { dtype, lens, ref hook, threshold, .. } = *query;
        if lens > MAX_LENS {
            return Err(AppError::bad_request(format!("lens: {lens} tokens were asked for; at most {MAX_LENS}.")));
        }
        let hook = hook.as_deref().map(str::parse::<Hook>).transpose();
        let hook = hook.map_err(|reason| AppError::bad_request(format!("hook: {reason}.")))?;
        Ok(Self { dtype, lens, hook, threshold })
    }
}

/// The parts of the form, over those of the query.
#[derive(Debug, Default)]
struct ExtractForm {
    image: Option<Bytes>,
    picture: Option<String>,
    prompt: Option<String>,
}

impl ExtractForm {
    async fn read(query: ExtractQuery, request: Request) -> Result<Self, AppError> {
        let mut form = Self { image: None, picture: query.picture, prompt: query.prompt };
        if request.headers().contains_key(header::CONTENT_TYPE) {
            let multipart = Multipart::from_request(request, &()).await;
            form.read_fields(multipart.map_err(|error| AppError::bad_request(error.body_text()))?).await?;
        }
        check_prompt(form.prompt.as_deref().unwrap_or_default())?;
        Ok(form)
    }

    async fn read_fields(&mut self, mut multipart: Multipart) -> Result<(), AppError> {
        while let Some(field) = multipart.next_field().await.map_err(multipart_error)? {
            match field.name().unwrap_or_default() {
                "image" => self.image = Some(read_up_to(field, MAX_UPLOAD).await?.into()),
                "picture" => self.picture = Some(read_text(field).await?),
                "prompt" => self.prompt = Some(read_text(field).await?),
                other => {
                    let detail = format!("The form has a field `{other}`; `image`, `picture` and `prompt` are known.");
                    return Err(AppError::bad_request(detail));
                }
            }
        }
        Ok(())
    }
}

async fn read_text(field: Field<'_>) -> Result<String, AppError> {
    let bytes = read_up_to(field, MAX_UPLOAD).await?;
    String::from_utf8(bytes).map_err(|error| AppError::bad_request(format!("A form field is not UTF-8: {error}.")))
}

/// Reads a field. One that is too large is read to its end without being kept: a browser shows the answer only when
/// it was allowed to finish sending.
async fn read_up_to(mut field: Field<'_>, limit: usize) -> Result<Vec<u8>, AppError> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(chunk) = field.chunk().await.map_err(multipart_error)? {
        length += chunk.len();
        if length <= limit {
            bytes.extend_from_slice(&chunk);
        } else {
            bytes = Vec::new();
        }
    }
    if length > limit { Err(AppError::upload_too_large(limit)) } else { Ok(bytes) }
}

fn multipart_error(error: MultipartError) -> AppError {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return AppError::upload_too_large(MAX_UPLOAD);
    }
    AppError::bad_request(format!("The form cannot be read: {}", error.body_text()))
}

/// The body that [`api::extract`] describes.
fn safetensors_from_hidden(hidden: &Hidden, dtype: ExtractDtype) -> Result<Vec<u8>, EngineError> {
    let shape = vec![hidden.tokens, hidden.d_model];
    let mut tensors = vec![
        match dtype {
            ExtractDtype::F16 => Written::halves("hidden", shape, &hidden.values),
            ExtractDtype::F32 => Written::floats("hidden", shape, &hidden.values),
        },
        Written::ids("input_ids", vec![hidden.input_ids.len()], &hidden.input_ids),
    ];
    let mut metadata = HashMap::from([
        ("spans".to_owned(), serde_json::to_string(&hidden.spans)?),
        ("grid".to_owned(), serde_json::to_string(&hidden.grid)?),
        ("provenance".to_owned(), serde_json::to_string(&hidden.provenance)?),
        ("hook_point".to_owned(), hidden.hook.to_string()),
    ]);
    tensors.extend(hidden.thresholds.iter().map(|values| Written::floats("threshold", vec![values.len()], values)));
    if let Some(lenses) = &hidden.lenses {
        let logit = lenses.logit.iter().map(|lens| (["lens_logit_ids", "lens_logit_scores"], lens));
        let embedding = lenses.embedding.iter().map(|lens| (["lens_embedding_ids", "lens_embedding_scores"], lens));
        tensors.extend(logit.chain(embedding).flat_map(|(names, lens)| Written::lens(names, lens)));
        metadata.insert("lens_tokens".to_owned(), serde_json::to_string(&lenses.tokens)?);
    }
    safetensors_from_written(&tensors, Some(metadata))
}
