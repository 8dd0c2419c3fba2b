//! Features: a latent of the SAE as people see it.

use crate::{activation::Activation, source::Provenance};
use serde::{Deserialize, Serialize};

/// The paper's categories, and two that the pocket demo needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Category {
    Scene,
    Object,
    Part,
    Material,
    Texture,
    Color,
    Emotion,
    Position,
    Text,
    #[default]
    Unknown,
}

impl Category {
    pub const ALL: [Self; 10] = [
        Self::Object,
        Self::Emotion,
        Self::Color,
        Self::Texture,
        Self::Position,
        Self::Scene,
        Self::Part,
        Self::Material,
        Self::Text,
        Self::Unknown,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scene => "scene",
            Self::Object => "object",
            Self::Part => "part",
            Self::Material => "material",
            Self::Texture => "texture",
            Self::Color => "color",
            Self::Emotion => "emotion",
            Self::Position => "position",
            Self::Text => "text",
            Self::Unknown => "unknown",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|category| category.as_str() == name)
    }
}

/// A score of an explanation, always beside its random baseline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Score {
    /// In 0..=1, unless the type says otherwise: a `clip score` is 100 times a cosine.
    pub value: f32,
    /// The same score where the label should not fit: on maps at random places or on random pictures, under another
    /// label, or with another feature, as the type says.
    pub baseline: f32,
    /// e.g. `iou`, `token share`, `caption share`.
    pub explanation_score_type_name: String,
    /// What computed it, e.g. `dissect (exact masks)`.
    pub explanation_score_model_name: String,
    /// 95 % confidence interval of the value, where it was measured sample by sample.
    #[serde(default, deserialize_with = "two_of", skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f32; 2]>,
    /// Pictures, answers or texts that the interval is over; 0 without one. Pages have it from `provenance`.
    #[cfg(not(target_arch = "wasm32"))]
    #[serde(default, skip_serializing_if = "is_zero")]
    pub samples: u32,
    /// Of a `steering` score: what became of its answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effects: Option<SteeringEffects>,
    /// Date, seed and picture set of the computation, and the interval, one line for people; empty where they are the
    /// label's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub provenance: String,
}

/// A list of two, or nothing. (The reader of lists is in the page's bundle anyway, one of arrays would not fit.)
fn two_of<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<[f32; 2]>, D::Error> {
    Ok(Vec::deserialize(deserializer)?.try_into().ok())
}

#[cfg(not(target_arch = "wasm32"))]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Score {
    /// Whether lists may order and filter by it. Shares of words are measured on the pictures or texts that chose the
    /// word: they are high for any label, and would crowd out what was measured on others. So would what has another
    /// scale than 0..=1.
    pub fn ranks(&self) -> bool {
        !self.explanation_score_type_name.ends_with(" share") && self.full().is_none()
    }

    /// The highest value of a type that is not in 0..=1.
    pub fn full(&self) -> Option<f32> {
        match self.explanation_score_type_name.as_str() {
            "clip score" => Some(100.0),
            _ => None,
        }
    }
}

/// How many answers of a steered model changed in which way (paper, section 4.3: its four kinds of effect).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SteeringEffects {
    /// The answer stays.
    pub none: u32,
    /// The answer names what the feature is about.
    pub mentions: u32,
    /// The answer argues, feels or acts from it.
    pub reasons: u32,
    /// The answer changes, but to something else.
    pub unrelated: u32,
}

impl SteeringEffects {
    pub const NAMES: [&str; 4] = ["none", "mentions", "reasons", "unrelated"];

    /// In the order of [`Self::NAMES`].
    pub fn counts(self) -> [u32; 4] {
        [self.none, self.mentions, self.reasons, self.unrelated]
    }

    /// From counts in the order of [`Self::NAMES`].
    pub fn from_counts([none, mentions, reasons, unrelated]: [u32; 4]) -> Self {
        Self { none, mentions, reasons, unrelated }
    }
}

impl std::ops::AddAssign for SteeringEffects {
    fn add_assign(&mut self, other: Self) {
        self.none += other.none;
        self.mentions += other.mentions;
        self.reasons += other.reasons;
        self.unrelated += other.unrelated;
    }
}

/// What somebody (a person, a model, a method) says a feature is about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub id: String,
    pub description: String,
    /// Method: `dissect`, `token` or `words`.
    pub type_name: String,
    /// Author model or method, for people.
    pub explanation_model_name: String,
    pub category: Category,
    pub scores: Vec<Score>,
    /// `YYYY-MM-DD`.
    pub created_at: String,
    /// SHA-256 of the interpreter's prompts and settings, first 12 hex digits; empty where the build made the label.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt_hash: String,
}

/// Bars of a histogram: `heights[i]` counts values in `[edges[i], edges[i+1])`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Histogram {
    pub heights: Vec<f32>,
    pub edges: Vec<f32>,
}

/// One feature, whole. Names of statistics are Neuronpedia's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Feature {
    #[serde(rename = "modelId")]
    pub model_id: String,
    /// The source id, e.g. `3-res-3k` (Neuronpedia calls it `layer`).
    pub layer: String,
    pub index: u32,
    /// Largest activation seen on the cache set.
    #[serde(rename = "maxActApprox")]
    pub max_act_approx: f32,
    /// Mean of the non-zero activations.
    #[serde(rename = "meanAct")]
    pub mean_act: f32,
    /// Share of picture tokens where it fires (its density).
    pub frac_nonzero: f32,
    /// Share of pictures where it fires on at least one patch.
    #[serde(rename = "fracPictures")]
    pub frac_pictures: f32,
    pub freq_hist_data_bar_heights: Vec<f32>,
    pub freq_hist_data_bar_values: Vec<f32>,
    /// Output tokens that the decoder row raises most, through the final norm and the unembedding.
    pub pos_str: Vec<String>,
    pub pos_values: Vec<f32>,
    /// Output tokens it lowers most.
    pub neg_str: Vec<String>,
    pub neg_values: Vec<f32>,
    #[serde(rename = "topkCosSimIndices")]
    pub topk_cos_sim_indices: Vec<u32>,
    #[serde(rename = "topkCosSimValues")]
    pub topk_cos_sim_values: Vec<f32>,
    /// Place on the map of all living features, in no unit; a feature that is not on it has none. No page reads it.
    #[cfg(not(target_arch = "wasm32"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umap_x: Option<f32>,
    #[cfg(not(target_arch = "wasm32"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umap_y: Option<f32>,
    pub explanations: Vec<Explanation>,
    pub dead: bool,
    pub provenance: Provenance,
}

impl Feature {
    /// The best explanation, if there is one.
    pub fn label(&self) -> Option<&Explanation> {
        self.explanations.first()
    }
}

/// One feature as a row or a card.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FeatureSummary {
    #[serde(rename = "modelId")]
    pub model_id: String,
    pub layer: String,
    pub index: u32,
    pub label: Option<String>,
    pub category: Category,
    /// Best score of the label.
    pub score: Option<Score>,
    #[serde(rename = "maxActApprox")]
    pub max_act_approx: f32,
    pub frac_nonzero: f32,
    pub dead: bool,
    /// Its best picture, for a thumbnail with a heat map.
    pub thumbnail: Option<Activation>,
}

/// Order of a feature list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum FeatureSort {
    /// Best-scored labels first.
    #[default]
    Score,
    Index,
    /// Densest first.
    Density,
    /// Largest maximum first.
    Max,
}

impl FeatureSort {
    pub const ALL: [Self; 4] = [Self::Score, Self::Index, Self::Density, Self::Max];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Index => "index",
            Self::Density => "density",
            Self::Max => "max",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.as_str() == name)
    }
}

/// Query of `GET …/features`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
#[serde(default)]
pub struct FeatureQuery {
    /// Words to find in labels (prefix match), or a feature index.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub q: String,
    /// Only these features, comma separated (`17,293`): the summaries of a ranked list in one request.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ids: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    pub sort: FeatureSort,
    /// Only features with a score at least this high.
    #[serde(rename = "minScore", skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f32>,
    /// Only dead (`true`) or living (`false`) features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead: Option<bool>,
    /// 0-based page.
    pub page: u32,
    /// Features per page, at most 200; 0 means the default of 48.
    #[serde(rename = "perPage")]
    pub per_page: u32,
}

/// Answer of `GET …/features`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct FeatureList {
    pub features: Vec<FeatureSummary>,
    pub total: u32,
    pub page: u32,
    pub per_page: u32,
}

/// A feature near another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Neighbour {
    pub feature: FeatureSummary,
    /// Cosine of the decoder rows, or the Jaccard overlap of the patches where both fire.
    pub value: f32,
}

/// Answer of `GET …/features/{index}/neighbours`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Neighbours {
    /// Nearest by cosine of decoder rows.
    pub by_decoder: Vec<Neighbour>,
    /// Features that fire on the same patches.
    pub by_firing: Vec<Neighbour>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_words_do_not_rank() {
        let score = |name: &str| Score { explanation_score_type_name: name.into(), ..Score::default() };
        assert!(score("iou").ranks());
        assert!(!score("token share").ranks() && !score("caption share").ranks());
        assert!(!score("clip score").ranks(), "it would be above every IoU");
    }

    #[test]
    fn what_a_score_does_not_have_is_not_written_and_may_be_missing() {
        let bare = Score { value: 0.5, explanation_score_type_name: "iou".into(), ..Score::default() };
        let json = serde_json::to_string(&bare).unwrap_or_default();
        assert!(json.ends_with("\"explanationScoreModelName\":\"\"}"), "{json}");
        assert_eq!(crate::json::read::<Score>(&json).ok(), Some(bare.clone()));
        let effects = Some(SteeringEffects::from_counts([1, 3, 1, 0]));
        let whole = Score { interval: Some([0.25, 0.75]), samples: 20, effects, provenance: "seed 0".into(), ..bare };
        let json = serde_json::to_string(&whole).unwrap_or_default();
        assert!(json.contains("\"interval\":[0.25,0.75],\"samples\":20"), "{json}");
        assert!(json.contains("\"effects\":{\"none\":1,\"mentions\":3,\"reasons\":1,\"unrelated\":0}"), "{json}");
        assert_eq!(crate::json::read::<Score>(&json).ok(), Some(whole));
    }

    #[test]
    fn effects_add_up_by_their_names() {
        let mut effects = SteeringEffects { none: 1, mentions: 2, reasons: 3, unrelated: 4 };
        let json = serde_json::to_value(effects).unwrap_or_default();
        assert_eq!(
            SteeringEffects::NAMES.map(|name| json[name].as_u64()),
            effects.counts().map(|n| Some(u64::from(n)))
        );
        effects += SteeringEffects::from_counts([10, 20, 30, 40]);
        assert_eq!(effects.counts(), [11, 22, 33, 44]);
    }
}
