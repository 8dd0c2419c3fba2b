use crate::{
    AppState,
    error::AppError,
    extractors::{Path, Query},
};
use api::{ActivationKind, Activations, Feature, FeatureList, FeatureQuery, FeatureSummary, Neighbours};
use axum::{Json, extract::State};
use frontend::api::SourceKey;
use serde::Deserialize;
use utoipa::IntoParams;

/// Features of a source: searched, filtered, sorted, a page at a time.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/features", tag = "features",
    params(("model" = String, Path), ("source" = String, Path), FeatureQuery),
    responses((status = 200, body = FeatureList), super::Refused))]
pub async fn list_features(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
    Query(query): Query<FeatureQuery>,
) -> Result<Json<FeatureList>, AppError> {
    Ok(Json(state.catalogue.features(&SourceKey::new(model, source), &query).await?))
}

/// One feature, whole.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/features/{index}", tag = "features",
    params(("model" = String, Path), ("source" = String, Path), ("index" = u32, Path)),
    responses((status = 200, body = Feature), super::Refused))]
pub async fn find_feature(
    State(state): State<AppState>,
    Path((model, source, index)): Path<(String, String, u32)>,
) -> Result<Json<Feature>, AppError> {
    Ok(Json(state.catalogue.feature(&SourceKey::new(model, source), index).await?))
}

/// Query of the activations route.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ActivationsQuery {
    /// Which examples.
    pub kind: ActivationKind,
    /// Examples at most, up to 200.
    pub limit: u32,
}

impl Default for ActivationsQuery {
    fn default() -> Self {
        Self { kind: ActivationKind::default(), limit: 24 }
    }
}

/// Where a feature fired: pictures with patch maps, and texts.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/features/{index}/activations", tag = "features",
    params(("model" = String, Path), ("source" = String, Path), ("index" = u32, Path), ActivationsQuery),
    responses((status = 200, body = Activations), super::Refused))]
pub async fn list_activations(
    State(state): State<AppState>,
    Path((model, source, index)): Path<(String, String, u32)>,
    Query(query): Query<ActivationsQuery>,
) -> Result<Json<Activations>, AppError> {
    let key = SourceKey::new(model, source);
    Ok(Json(state.catalogue.activations(&key, index, query.kind, query.limit).await?))
}

/// Features near another: by decoder row, and by the patches where they fire.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/features/{index}/neighbours", tag = "features",
    params(("model" = String, Path), ("source" = String, Path), ("index" = u32, Path)),
    responses((status = 200, body = Neighbours), super::Refused))]
pub async fn find_neighbours(
    State(state): State<AppState>,
    Path((model, source, index)): Path<(String, String, u32)>,
) -> Result<Json<Neighbours>, AppError> {
    Ok(Json(state.catalogue.neighbours(&SourceKey::new(model, source), index).await?))
}

/// A living, labelled feature, another one each time.
#[utoipa::path(get, path = "/api/v1/{model}/{source}/random", tag = "features",
    params(("model" = String, Path), ("source" = String, Path)),
    responses((status = 200, body = FeatureSummary), super::Refused))]
pub async fn random_feature(
    State(state): State<AppState>,
    Path((model, source)): Path<(String, String)>,
) -> Result<Json<FeatureSummary>, AppError> {
    Ok(Json(state.catalogue.random(&SourceKey::new(model, source)).await?))
}
