//! `POST …/steer`: original, reconstructed and steered text, streamed as SSE.

use crate::source::Provenance;
use serde::{Deserialize, Serialize};

/// How a feature is changed (Neuronpedia's names, and the paper's clamp).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SteerMethod {
    /// Set the latent to `strength`, re-run TopK, decode (paper section 3.4).
    #[default]
    Clamp,
    /// Add `strength` times the decoder row to the stream.
    SimpleAdditive,
    /// Set the stream's component along the decoder row, as a unit vector, to `strength`; the rest stays.
    #[serde(rename = "ORTHOGONAL_DECOMP")]
    Orthogonal,
    /// Set the latent to zero.
    Ablate,
}

/// Where the change applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    #[default]
    All,
    Prefill,
    Image,
    Text,
    Generated,
}

impl Positions {
    pub const ALL: [Self; 5] = [Self::All, Self::Prefill, Self::Image, Self::Text, Self::Generated];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Prefill => "prefill",
            Self::Image => "image",
            Self::Text => "text",
            Self::Generated => "generated",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|positions| positions.as_str() == name)
    }
}

/// One steered feature.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SteerFeature {
    pub index: u32,
    /// Clamp value (0 or more; 0 takes the feature out, as `ABLATE` does), the factor of the decoder row, or the
    /// stream's new component along it; ignored by `ABLATE`.
    pub strength: f32,
}

/// Body of the steer route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SteerRequest {
    pub features: Vec<SteerFeature>,
    pub steer_method: SteerMethod,
    pub positions: Positions,
    /// Exactly these positions of the prompt, counted from 0, instead of `positions`; at most 4,096.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_positions: Option<Vec<u32>>,
    /// Keep what the SAE does not reconstruct in the stream, in the reconstructed and in the steered text: the
    /// reconstructed one is then the original.
    pub keep_error: bool,
    /// Goes through the chat template.
    pub prompt: String,
    /// Id of a demo picture, if one is shown.
    pub picture: Option<String>,
    /// The visitor's own picture as a `data:` URL (base64); never stored.
    pub image: Option<String>,
    /// 0 is greedy.
    pub temperature: f32,
    /// New tokens at most; 0 means the default of 64, at most 256.
    pub n_tokens: u32,
    pub seed: u64,
    /// Draw from the smallest set of tokens with at least this probability; without it, from all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// The likeliest tokens that are listed beside each chosen one, at most 10.
    pub top_alternatives: u32,
}

/// Which of the three texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Column {
    /// The model as it is (`original`).
    Default,
    /// The SAE's reconstruction in the stream, nothing changed.
    Reconstructed,
    /// The reconstruction with the features changed.
    Steered,
}

/// A token that could have been chosen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Alternative {
    pub text: String,
    pub id: u32,
    /// Natural log of its probability.
    pub logprob: f32,
}

/// One generated token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TextToken {
    pub text: String,
    pub id: u32,
    /// Natural log of its probability.
    pub logprob: f32,
    /// The likeliest tokens at this place, if they were asked for, likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Alternative>,
}

/// SSE events (`event: steer`, JSON in `data`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case", try_from = "FlatEvent")]
// One `Done` ends a run of many `Token`s; a box would only make every reader unpack it.
#[allow(clippy::large_enum_variant)]
pub enum SteerEvent {
    /// One token of one column.
    Token { column: Column, token: TextToken },
    /// All three texts, whole; the last event of a good run.
    Done { result: SteerResult },
    /// The last event of a failed run.
    Failed { detail: String },
}

/// [`SteerEvent`] field by field. Reading a tag keeps a copy of the JSON, and the code for it is in the page's bundle.
#[derive(Deserialize)]
struct FlatEvent {
    r#type: String,
    column: Option<Column>,
    token: Option<TextToken>,
    result: Option<SteerResult>,
    detail: Option<String>,
}

impl TryFrom<FlatEvent> for SteerEvent {
    type Error = String;

    fn try_from(flat: FlatEvent) -> Result<Self, String> {
        match flat {
            FlatEvent { r#type, column: Some(column), token: Some(token), .. } if r#type == "token" => {
                Ok(Self::Token { column, token })
            }
            FlatEvent { r#type, result: Some(result), .. } if r#type == "done" => Ok(Self::Done { result }),
            FlatEvent { r#type, detail: Some(detail), .. } if r#type == "failed" => Ok(Self::Failed { detail }),
            FlatEvent { r#type, .. } => Err(format!("an event `{}` without its fields", r#type)),
        }
    }
}

/// One of the three texts, whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SteeredText {
    pub text: String,
    pub tokens: Vec<TextToken>,
}

/// Result of a steer run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SteerResult {
    #[serde(rename = "DEFAULT")]
    pub default: SteeredText,
    #[serde(rename = "RECONSTRUCTED")]
    pub reconstructed: SteeredText,
    #[serde(rename = "STEERED")]
    pub steered: SteeredText,
    /// What was asked for: the same features say something else with another method or at other positions.
    #[serde(rename = "steerMethod", default)]
    pub steer_method: SteerMethod,
    #[serde(default)]
    pub positions: Positions,
    #[serde(rename = "tokenPositions", default, skip_serializing_if = "Option::is_none")]
    pub token_positions: Option<Vec<u32>>,
    #[serde(rename = "keepError", default)]
    pub keep_error: bool,
    pub provenance: Provenance,
}
