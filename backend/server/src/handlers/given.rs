//! What requests give to the model: a prompt, a picture.

use crate::{
    EngineState,
    error::AppError,
    picture::{HeldPicture, MAX_UPLOAD, bytes_from_data_url, decode_in_slot, decode_stored},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

/// Longest prompt in bytes: far above what the model takes, far below what would keep its tokenizer busy.
const MAX_PROMPT: usize = 16 << 10;

/// Refuses what no model would take, before it is tokenised.
pub(super) fn check_prompt(prompt: &str) -> Result<(), AppError> {
    if prompt.len() <= MAX_PROMPT {
        return Ok(());
    }
    Err(AppError::prompt_too_long(format!("The prompt has {} bytes; at most {MAX_PROMPT} are taken.", prompt.len())))
}

/// A picture, not decoded yet.
#[derive(Debug, Clone)]
pub(super) enum GivenPicture {
    /// The visitor's own.
    Own(Bytes),
    /// One of the store.
    Stored(Bytes),
}

impl GivenPicture {
    /// The picture of a request: its own, or the one it names.
    pub(super) async fn find(
        state: &EngineState,
        own: Option<Bytes>,
        id: Option<&str>,
    ) -> Result<Option<Self>, AppError> {
        match (own, id) {
            (Some(_), Some(_)) => Err(not_both()),
            (Some(bytes), None) => Ok(Some(Self::Own(bytes))),
            (None, Some(id)) => Ok(Some(Self::stored(state, id).await?)),
            (None, None) => Ok(None),
        }
    }

    /// The same with an own picture as a `data:` URL, which is taken out of the request.
    pub(super) async fn find_in_json(
        state: &EngineState,
        own: &mut Option<String>,
        id: Option<&str>,
    ) -> Result<Option<Self>, AppError> {
        if own.is_some() && id.is_some() {
            return Err(not_both());
        }
        let own = own.take().map(|url| bytes_from_data_url(&url)).transpose()?;
        if own.as_ref().is_some_and(|bytes| bytes.len() > MAX_UPLOAD) {
            return Err(AppError::upload_too_large(MAX_UPLOAD));
        }
        Self::find(state, own.map(Bytes::from), id).await
    }

    async fn stored(state: &EngineState, id: &str) -> Result<Self, AppError> {
        let Some(catalogue) = &state.catalogue else {
            let detail = "this engine has no pictures of its own. Send the picture itself, as `image`";
            return Err(AppError::bad_request(format!("picture: {id}: {detail}.")));
        };
        catalogue.picture(catalogue.served(), id).await?;
        Ok(Self::Stored(catalogue.picture_webp(id).await?.webp.into()))
    }

    pub(super) async fn decode(self) -> Result<HeldPicture, AppError> {
        match self {
            Self::Own(bytes) => decode_in_slot(bytes).await,
            Self::Stored(bytes) => decode_stored(bytes).await,
        }
    }

    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Own(bytes) | Self::Stored(bytes) => bytes,
        }
    }

    /// For an engine elsewhere, which looks at the bytes to know the format.
    pub(super) fn into_data_url(self) -> String {
        format!("data:application/octet-stream;base64,{}", STANDARD.encode(self.into_bytes()))
    }
}

fn not_both() -> AppError {
    AppError::bad_request("Send `image` or `picture`, not both.")
}
