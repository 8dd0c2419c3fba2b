//! Where a feature fired: pictures with patch maps, texts with token values.

use crate::picture::{Picture, PictureObject};
use serde::{Deserialize, Serialize};

/// Which examples of a feature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ActivationKind {
    /// Highest mean over the base picture's tokens (the paper's order).
    #[default]
    Mean,
    /// Highest single patch.
    Max,
    /// Spread over the quantiles of the maximum, strongest first.
    Quantile,
    /// Drawn at random from the pictures where the feature fires.
    Random,
    /// Best examples among pictures in the held-out style (never trained on).
    Heldout,
}

impl ActivationKind {
    pub const ALL: [Self; 5] = [Self::Mean, Self::Max, Self::Quantile, Self::Random, Self::Heldout];

    /// The word used in URLs and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Quantile => "quantile",
            Self::Random => "random",
            Self::Heldout => "heldout",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// The picture part of an activation: the patch grid and the picture it lies on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", from = "FlatImage")]
pub struct ActivationImage {
    #[serde(flatten)]
    pub picture: Picture,
    /// Rows and columns of the patch grid.
    pub grid: [u32; 2],
}

/// [`ActivationImage`] field by field. Reading `flatten` keeps a copy of the JSON, and the code for it is 8 KB of the
/// page's bundle.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlatImage {
    id: String,
    url: String,
    width: u32,
    height: u32,
    caption: String,
    kind: String,
    objects: Vec<PictureObject>,
    credit: String,
    grid: [u32; 2],
}

impl From<FlatImage> for ActivationImage {
    fn from(flat: FlatImage) -> Self {
        let FlatImage { id, url, width, height, caption, kind, objects, credit, grid } = flat;
        Self { picture: Picture { id, url, width, height, caption, kind, objects, credit }, grid }
    }
}

/// One feature on one picture. Patch values are sparse: `values[i]` lies on patch `indices[i]` (row-major).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Activation {
    pub image: ActivationImage,
    /// Patches where the feature fires.
    pub feature_acts_indices: Vec<u32>,
    /// Activation at those patches.
    pub feature_acts_values: Vec<f32>,
    pub max_value: f32,
    pub max_value_token_index: u32,
    /// Mean over all patches of the base picture, zeros included.
    pub mean_value: f32,
    /// Quantile bin of the maximum, for `quantile` examples.
    pub bin_min: f32,
    pub bin_max: f32,
}

/// One feature on one text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TextActivation {
    pub tokens: Vec<String>,
    /// Activation per token, same length.
    pub values: Vec<f32>,
    pub max_value: f32,
    pub max_value_token_index: u32,
}

/// Answer of `GET …/features/{index}/activations`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Activations {
    pub kind: ActivationKind,
    pub activations: Vec<Activation>,
    /// Top texts, strongest first; the same for every kind.
    pub texts: Vec<TextActivation>,
    /// Examples of this kind that exist in all.
    pub total: u32,
}
