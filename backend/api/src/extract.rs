//! `POST …/extract`: picture and prompt in, hidden states out.
//!
//! The request is `multipart/form-data` (`image` file, or `picture` id of the demo set; `prompt` optional);
//! the answer is a safetensors file with `hidden` f16 or f32 `[tokens, d_model]` and `input_ids` i32 `[tokens]`.
//! Its `__metadata__` holds `spans` (JSON of [`TokenSpan`]s), `grid` (JSON `[rows, columns]`), `provenance` and
//! `hook_point`.
//!
//! At a hook point of the vision tower, `hidden` is `[tiles · positions, d_vision]`: the tower's own positions, tile by
//! tile, which are not those of `input_ids` and `spans`.
//!
//! With `threshold=true` there is `threshold` f32 `[tokens]`: the SAE's k-th largest activation at each token, 0 where
//! fewer than k are positive, of the hidden states as they are sent. Whoever holds only a slice of the SAE needs it to
//! know which of its latents are among the k. Only at the SAE's own hook point.
//!
//! With `lens=n` there is more, each row likeliest first:
//!
//! - `lens_logit_ids` i32 and `lens_logit_scores` f32 `[tokens, n]`: the tokens that the final norm and the unembedding
//!   read off each position, with their probabilities (hook points of the language model only);
//! - `lens_embedding_ids` i32 and `lens_embedding_scores` f32 `[picture positions, n]`: the vocabulary's embeddings
//!   nearest to each projected patch, with their cosines (with a picture only);
//! - metadata `lens_tokens`: JSON object, token id → string, of all ids used.

use serde::{Deserialize, Serialize};

/// Name of the response header that says which engine ran and for how long: `cpu;ms=41`.
pub const EXTRACT_KINDS_HEADER: &str = "x-engine";

/// Number format of `hidden`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ExtractDtype {
    /// Half floats, clamped to ±65,504: what the page's GPU reads.
    #[default]
    F16,
    F32,
}

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
    /// Number format of `hidden`.
    pub dtype: ExtractDtype,
    /// Tokens per position that the logit lens and the embedding lens name, at most 20; 0: no lenses.
    pub lens: u32,
    /// Another hook point of the model than the source's: `layers.N` or `vision.N`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Also the SAE's k-th largest activation at each token; at the source's own hook point only.
    pub threshold: bool,
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
