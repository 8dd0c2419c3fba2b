//! The rows, with Neuronpedia's names.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A feature's index: Neuronpedia writes a string; a number is read as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Index(pub u32);

impl Serialize for Index {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u32),
            Text(String),
        }
        match Either::deserialize(deserializer) {
            Ok(Either::Number(index)) => Ok(Self(index)),
            Ok(Either::Text(text)) => match text.parse() {
                Ok(index) => Ok(Self(index)),
                Err(_) => Err(serde::de::Error::custom(format!("index {text:?} is not a feature's index"))),
            },
            Err(_) => Err(serde::de::Error::custom("index is neither a string nor a number from 0 on")),
        }
    }
}

/// `null` where a column has no value.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A row of the table `Neuron`. Columns that are not here are not read and not written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Neuron {
    #[serde(rename = "modelId")]
    pub model_id: String,
    pub layer: String,
    pub index: Index,
    #[serde(rename = "creatorId", default, skip_serializing_if = "Option::is_none")]
    pub creator_id: Option<String>,
    #[serde(rename = "sourceSetName", default, skip_serializing_if = "Option::is_none")]
    pub source_set_name: Option<String>,
    #[serde(rename = "hookName", default, skip_serializing_if = "Option::is_none")]
    pub hook_name: Option<String>,
    #[serde(rename = "maxActApprox", default, deserialize_with = "or_default")]
    pub max_act_approx: f32,
    #[serde(default, deserialize_with = "or_default")]
    pub frac_nonzero: f32,
    #[serde(default, deserialize_with = "or_default")]
    pub freq_hist_data_bar_heights: Vec<f32>,
    #[serde(default, deserialize_with = "or_default")]
    pub freq_hist_data_bar_values: Vec<f32>,
    #[serde(default, deserialize_with = "or_default")]
    pub pos_str: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub pos_values: Vec<f32>,
    #[serde(default, deserialize_with = "or_default")]
    pub neg_str: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub neg_values: Vec<f32>,
    #[serde(rename = "topkCosSimIndices", default, deserialize_with = "or_default")]
    pub topk_cos_sim_indices: Vec<u32>,
    #[serde(rename = "topkCosSimValues", default, deserialize_with = "or_default")]
    pub topk_cos_sim_values: Vec<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umap_x: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umap_y: Option<f32>,
}

/// A row of the table `Explanation`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explanation {
    pub id: String,
    pub model_id: String,
    pub layer: String,
    pub index: Index,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_id: Option<String>,
    pub description: String,
    #[serde(default, deserialize_with = "or_default")]
    pub type_name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub explanation_model_name: String,
}

/// A row of the table `ExplanationScore`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Score {
    pub id: String,
    pub value: f32,
    pub explanation_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub explanation_score_type_name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub explanation_score_model_name: String,
    /// A JSON object as text; ours is [`Details`].
    #[serde(default, deserialize_with = "or_default")]
    pub json_details: String,
}

/// What `jsonDetails` says of a score here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Details {
    /// The same score on random pictures.
    pub baseline: f32,
    /// As in [`api::Score`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f32; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effects: Option<api::SteeringEffects>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub provenance: String,
}

/// A row of the table `Activation`: a feature on a text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Activation {
    #[serde(default, deserialize_with = "or_default")]
    pub id: String,
    pub model_id: String,
    pub layer: String,
    pub index: Index,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator_id: Option<String>,
    pub tokens: Vec<String>,
    pub values: Vec<f32>,
    #[serde(default, deserialize_with = "or_default")]
    pub max_value: f32,
    #[serde(default, deserialize_with = "or_default")]
    pub max_value_token_index: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub min_value: f32,
}

/// A feature on a picture: no table of Neuronpedia's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PictureActivation {
    pub model_id: String,
    pub layer: String,
    pub index: Index,
    pub kind: api::ActivationKind,
    pub rank: u32,
    pub image: Image,
    pub feature_acts_indices: Vec<u16>,
    pub feature_acts_values: Vec<f32>,
    pub max_value: f32,
    pub max_value_token_index: u32,
    pub mean_value: f32,
    pub bin_min: f32,
    pub bin_max: f32,
}

/// The picture of a [`PictureActivation`]; it lies in `images/`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Image {
    pub id: String,
    /// Rows and columns of patches.
    pub grid: [u32; 2],
}
