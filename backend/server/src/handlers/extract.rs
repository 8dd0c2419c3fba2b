use crate::{
    AppState,
    engine::{EngineError, ExtractInput, Hidden},
    error::AppError,
    extractors::{Path, Query},
    picture::{HeldPicture, MAX_UPLOAD, decode_in_slot, decode_stored},
};
use api::{EXTRACT_KINDS_HEADER, ExtractQuery};
use axum::{
    extract::{
        FromRequest, Multipart, Request, State,
        multipart::{Field, MultipartError},
    },
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use frontend::api::SourceKey;
use half::f16;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::HashMap;

/// Longest prompt in bytes: far above what the model takes, far below what would keep its tokenizer busy.
pub(crate) const MAX_PROMPT: usize = 16 << 10;

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
/// `hidden` f16 `[tokens, d_model]`, `input_ids` i32 `[tokens]`; metadata `spans`, `grid`, `provenance` (JSON each).
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
    let key = SourceKey::new(model, source);
    state.catalogue.source(&key).await?;
    let engine = super::engine_of(&state, &key)?;
    let form = ExtractForm::read(query, request).await?;
    let image = form.picture(&state, &key).await?;
    let input = ExtractInput { image, prompt: form.prompt.unwrap_or_default() };
    if input.image.is_none() && input.prompt.is_empty() {
        return Err(AppError::bad_request("Send a picture (`image`), the id of one (`picture`), or a `prompt`."));
    }
    let hidden = engine.extract(input).await?;
    extract_response(&hidden)
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

    async fn picture(&self, state: &AppState, key: &SourceKey) -> Result<Option<HeldPicture>, AppError> {
        match (&self.image, self.picture.as_deref().filter(|id| !id.is_empty())) {
            (Some(_), Some(_)) => Err(AppError::bad_request("Send `image` or `picture`, not both.")),
            (Some(bytes), None) => Ok(Some(decode_in_slot(bytes.clone()).await?)),
            (None, Some(id)) => {
                state.catalogue.picture(key, id).await?;
                Ok(Some(decode_stored(state.catalogue.picture_webp(id).await?.webp.into()).await?))
            }
            (None, None) => Ok(None),
        }
    }
}

/// Refuses what no model would take, before it is tokenised.
pub(crate) fn check_prompt(prompt: &str) -> Result<(), AppError> {
    if prompt.len() <= MAX_PROMPT {
        return Ok(());
    }
    Err(AppError::prompt_too_long(format!("The prompt has {} bytes; at most {MAX_PROMPT} are taken.", prompt.len())))
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

fn extract_response(hidden: &Hidden) -> Result<Response, AppError> {
    let body = safetensors_from_hidden(hidden)?;
    let engine = format!("cpu;ms={}", hidden.took.as_millis());
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(EXTRACT_KINDS_HEADER, HeaderValue::try_from(engine).map_err(AppError::internal)?);
    Ok(response)
}

/// The body that [`api::extract`] describes.
fn safetensors_from_hidden(hidden: &Hidden) -> Result<Vec<u8>, EngineError> {
    // A few channels of the residual stream are massive; a half float ends at 65,504.
    let half = |value: &f32| f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())).to_le_bytes();
    let values: Vec<u8> = hidden.values.iter().flat_map(half).collect();
    let input_ids: Vec<u8> = hidden.input_ids.iter().flat_map(|id| (*id as i32).to_le_bytes()).collect();
    let tensors = [
        ("hidden", TensorView::new(Dtype::F16, vec![hidden.tokens, hidden.d_model], &values)?),
        ("input_ids", TensorView::new(Dtype::I32, vec![hidden.input_ids.len()], &input_ids)?),
    ];
    let metadata = HashMap::from([
        ("spans".to_owned(), serde_json::to_string(&hidden.spans)?),
        ("grid".to_owned(), serde_json::to_string(&hidden.grid)?),
        ("provenance".to_owned(), serde_json::to_string(&hidden.provenance)?),
    ]);
    Ok(safetensors::serialize(tensors, Some(metadata))?)
}
