//! The OpenAPI document, collected from the handlers.

use crate::handlers::{
    attribute, encode, engine, extract, features, health, jobs, map, pictures, sources, steer, weights,
};
use axum::Json;
use std::collections::BTreeSet;
use utoipa::OpenApi;

/// `GET /api/v1/openapi.json`
#[derive(OpenApi)]
#[openapi(
    info(
        title = "LMM Scope",
        description = "Features of a large multimodal model: what they mean, where they fire, and what the model says \
            when one is turned up or off. Errors are RFC 9457 problems with a request id."
    ),
    paths(
        openapi_json,
        health::healthz,
        sources::list_sources,
        sources::find_source,
        features::list_features,
        features::find_feature,
        features::list_activations,
        features::find_neighbours,
        features::random_feature,
        map::map_svg,
        jobs::explain,
        jobs::list_jobs,
        jobs::find_job,
        pictures::list_pictures,
        pictures::find_picture_activations,
        pictures::picture_webp,
        weights::weights,
        engine::engine,
        extract::extract,
        extract::extract_here,
        encode::encode,
        steer::steer,
        steer::steer_here,
        attribute::attribute,
        attribute::attribute_here,
    ),
    components(schemas(api::Problem))
)]
pub struct Document;

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "server", responses((status = 200)))]
pub async fn openapi_json() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

/// The part of the document that holds for an engine alone.
pub async fn engine_openapi_json() -> Json<utoipa::openapi::OpenApi> {
    let mut document = Document::openapi();
    let served: BTreeSet<&str> = crate::router::engine_routes().into_iter().map(|(path, ..)| path).collect();
    document.paths.paths.retain(|path, _| served.contains(path.as_str()));
    Json(document)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn every_route_is_documented_and_nothing_else() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let documented: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))
            })
            .collect();
        let routed: BTreeSet<(String, String)> = crate::router::documented_routes()
            .into_iter()
            .map(|(path, method, _)| (path.to_owned(), method.to_owned()))
            .collect();
        assert_eq!(documented, routed);
        assert!(routed.len() > 10);
    }

    #[tokio::test]
    async fn an_engines_routes_are_documented_as_well() {
        let Json(document) = engine_openapi_json().await;
        let documented: BTreeSet<&str> = document.paths.paths.keys().map(String::as_str).collect();
        let routed: BTreeSet<&str> = crate::router::engine_routes().into_iter().map(|(path, ..)| path).collect();
        assert_eq!(documented, routed);
        assert!(routed.len() > 5);
    }

    #[test]
    fn parameters_and_schemas_have_the_wires_names() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let list = &document["paths"]["/api/v1/{model}/{source}/features"]["get"];
        let names: BTreeSet<&str> = list["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        let expected = ["category", "dead", "ids", "minScore", "model", "page", "perPage", "q", "sort", "source"];
        assert_eq!(names, BTreeSet::from(expected));
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for name in [
            "Feature",
            "Activations",
            "Neighbours",
            "PictureActivations",
            "SteerRequest",
            "SteerEvent",
            "AttributeRequest",
            "AttributeResult",
            "EngineInfo",
            "Problem",
        ] {
            assert!(schemas.contains_key(name), "{name} is not described");
        }
        assert!(schemas["Feature"]["properties"].get("maxActApprox").is_some());
    }
}
