//! A source: one SAE at one hook point of one model.

use serde::{Deserialize, Serialize};

/// Where a number comes from: everything needed to reproduce it (invariant 1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// Model name and the SHA-256 of its weights, first 12 hex digits: `pocket@1a2b…`.
    pub model: String,
    /// SHA-256 of the SAE's weights, first 12 hex digits.
    pub sae_revision: String,
    /// Compute dtype the numbers were made with, e.g. `f32`.
    pub dtype: String,
    /// SHA-256 of the rendered prompt, first 12 hex digits.
    pub prompt_hash: String,
    /// Name and size of the picture set, e.g. `pocket-cache (3,200 pictures)`.
    pub image_set: String,
    /// Date the numbers were made, `YYYY-MM-DD`.
    pub date: String,
}

/// One SAE at one hook point.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// e.g. `pocket`.
    pub model_id: String,
    /// `{layer}-{set}`, e.g. `3-res-3k`.
    pub source_id: String,
    /// Block whose output is read, 0-based.
    pub layer: u32,
    /// Module name in the checkpoint, e.g. `model.layers.3`.
    pub hook_point: String,
    pub latents: u32,
    pub d_model: u32,
    pub k: u32,
    /// Rows and columns of the base picture's patch grid.
    pub grid: [u32; 2],
    /// Pictures in the cache set.
    pub pictures: u32,
    /// Picture tokens in the cache set.
    pub tokens: u64,
    /// Latents that fired at least once.
    pub alive: u32,
    /// Fraction of variance unexplained on the cache set's picture tokens; unknown when activations alone were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fvu: Option<f32>,
    /// Number of features with an explanation.
    pub explained: u32,
    pub provenance: Provenance,
    /// One sentence for people.
    pub description: String,
}
