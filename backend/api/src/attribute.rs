//! `POST …/attribute`: which features made the model prefer one answer over another (paper, section 3.5).
//!
//! The linear approximation of every active feature's effect on `logit(answer) − logit(baseline)` at the last position
//! of the prompt, from one gradient with the SAE's reconstruction in the stream; the strongest ones can be verified by
//! taking each out and measuring.

use crate::{extract::TokenSpan, source::Provenance};
use serde::{Deserialize, Serialize};

/// Body of the attribute route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct AttributeRequest {
    /// Goes through the chat template.
    pub prompt: String,
    /// Id of a demo picture, if one is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<String>,
    /// The visitor's own picture as a `data:` URL (base64); never stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The answer to explain; its first token counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Or its token id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_id: Option<u32>,
    /// The answer to compare with; its first token counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Or its token id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_id: Option<u32>,
    /// Keep what the SAE does not reconstruct in the stream.
    pub keep_error: bool,
    /// Take this many of the strongest features out, one by one, and measure; at most 64.
    pub verify: u32,
    /// Features in the answer; 0 means the default of 50, at most 1,000.
    pub top: u32,
    /// Also the attribution of this feature at every position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<u32>,
}

/// A token of the vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VocabularyToken {
    pub id: u32,
    pub text: String,
}

/// One feature's part in the answer, in logits. Positive: it speaks for the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttributedFeature {
    pub index: u32,
    /// Over all positions.
    pub attribution: f32,
    /// Over the picture's positions.
    pub image: f32,
    /// Over the text's positions.
    pub text: f32,
}

/// An attribution and what taking the feature out really changed, in logits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifiedFeature {
    pub index: u32,
    pub attribution: f32,
    /// Logit difference with the feature minus that without it.
    pub measured: f32,
}

/// What the answer cost: passes through the blocks after the hook point, as they were run; `verify` not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Passes {
    pub forward: u32,
    pub backward: u32,
}

/// Answer of the attribute route.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct AttributeResult {
    pub answer: VocabularyToken,
    pub baseline: VocabularyToken,
    /// `logit(answer) − logit(baseline)` with the reconstruction in the stream: what the attributions explain.
    pub logit_difference: f32,
    /// The same of the model as it is.
    pub logit_difference_original: f32,
    /// By falling absolute attribution.
    pub top: Vec<AttributedFeature>,
    /// Attribution of the feature asked for by `map`, one value per position of the sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Vec<f32>>,
    pub verified: Vec<VerifiedFeature>,
    /// Pearson correlation of attributed and measured effects, if two or more were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<f32>,
    pub passes: Passes,
    /// What the positions are.
    pub spans: Vec<TokenSpan>,
    /// Rows and columns of the base picture's patches; `[0, 0]` without a picture.
    pub grid: [u32; 2],
    pub provenance: Provenance,
}
