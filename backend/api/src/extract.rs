//! `POST /api/v1/{model}/{source}/extract`: picture and prompt in, hidden states out.
//!
//! The request is `multipart/form-data` (`image` file, or `picture` id of the demo set; `prompt` optional);
//! the answer is a safetensors file with `hidden` f16 `[tokens, d_model]` and `input_ids` i32 `[tokens]`.
//! Its `__metadata__` holds `spans` (JSON of [`TokenSpan`]s), `grid` (JSON `[rows, columns]`) and `provenance`.

use serde::{Deserialize, Serialize};

/// Name of the response header that says which engine ran and for how long: `cpu;ms=41`.
pub const EXTRACT_KINDS_HEADER: &str = "x-engine";

/// Query of the extract route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(default)]
pub struct ExtractQuery {
    /// Use a picture of the demo set instead of an upload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
    /// The question; goes through the chat template. Empty: the picture alone (the paper's cache prompt).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// What a position of the sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// A patch of the base picture, row-major.
    Base,
    /// A patch of an AnyRes tile.
    Tile,
    /// `image_newline`.
    Newline,
    Text,
}

/// A run of positions of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenSpan {
    pub kind: TokenKind,
    /// First position.
    pub start: u32,
    /// One past the last position.
    pub end: u32,
    /// For text: the token strings, one per position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<String>,
}
