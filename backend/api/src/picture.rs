//! Pictures of the demo set and what is drawn in them.

use serde::{Deserialize, Serialize};

/// A rectangle in picture pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rect {
    pub x: f32,
    pub y: f32,
    pub width: f32,
    pub height: f32,
}

/// A known object of a composed scene (ground truth, not a model's opinion).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PictureObject {
    pub concept: String,
    pub color: String,
    /// Design family of the sprite, e.g. `noto`; `photo` for photographs.
    pub style: String,
    pub rect: Rect,
}

/// A picture the server holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Picture {
    pub id: String,
    /// Path of the picture itself, relative to the site's root.
    pub url: String,
    pub width: u32,
    pub height: u32,
    pub caption: String,
    /// `scene`, `photo` or `sample`.
    pub kind: String,
    pub objects: Vec<PictureObject>,
    /// Author and licence, one line.
    pub credit: String,
}

/// Answer of `GET …/pictures`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PictureList {
    pub pictures: Vec<Picture>,
    pub total: u32,
}

/// Every patch's top features on one sample picture, precomputed by `lmm-scope pocket index`:
/// the landing page answers the pointer from this, without GPU or wasm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PictureActivations {
    pub picture: Picture,
    pub grid: [u32; 2],
    pub k: u32,
    /// `[patches, k]`, row-major, each row by falling activation.
    pub top_indices: Vec<u32>,
    pub top_acts: Vec<f32>,
    /// One summary for each feature that occurs (no thumbnails).
    pub features: Vec<crate::feature::FeatureSummary>,
}
