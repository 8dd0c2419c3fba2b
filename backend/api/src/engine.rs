//! `GET /api/v1/engine`: what an engine holds, so that a server knows whether it fits.

use serde::{Deserialize, Serialize};

/// An engine's model and SAE, and how busy it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EngineInfo {
    /// Model name and the SHA-256 of its weights, first 12 hex digits: `pocket@1a2b…`.
    pub model: String,
    /// SHA-256 of the SAE's weights, first 12 hex digits.
    pub sae_revision: String,
    /// Module whose output the SAE reads, e.g. `model.layers.3`.
    pub hook_point: String,
    /// Values per token at the hook point.
    pub d_model: u32,
    pub latents: u32,
    pub k: u32,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// What the model computes in: `f32`, `f16` or `bf16`.
    pub dtype: String,
    /// Requests it could accept at this moment.
    pub free: u32,
    /// Steer requests that are being written at this moment.
    pub running: u32,
}
