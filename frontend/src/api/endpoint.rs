//! The reading endpoints under `/api/v1`, and which type each answers with.

use super::SourceKey;
use crate::links::{api_path, encode, feature_query_string, job_query_string, query_string};
use api::{
    ActivationKind, Activations, Feature, FeatureList, FeatureQuery, FeatureSummary, JobList, JobQuery, Neighbours,
    PictureActivations, PictureList, Source,
};
use std::marker::PhantomData;

/// One question to the server. (`extract` and `steer` are only ever asked for by a live page:
/// [`crate::http::extract`], [`crate::http::steer`].)
#[derive(Debug, Clone, PartialEq)]
pub enum Endpoint {
    Sources,
    Source(SourceKey),
    Features(SourceKey, FeatureQuery),
    Feature(SourceKey, u32),
    Activations { key: SourceKey, index: u32, kind: ActivationKind, limit: u32 },
    Neighbours(SourceKey, u32),
    Pictures { key: SourceKey, kind: String, page: u32, per_page: u32 },
    PictureActivations(SourceKey, String),
    Random(SourceKey),
    Jobs(JobQuery),
}

impl Endpoint {
    /// Path and query of the `GET` request.
    pub fn path(&self) -> String {
        match self {
            Self::Sources => "/api/v1/sources".into(),
            Self::Source(key) => api_path(key, ""),
            Self::Features(key, query) => api_path(key, "/features") + &feature_query_string(query),
            Self::Feature(key, index) => api_path(key, &format!("/features/{index}")),
            Self::Activations { key, index, kind, limit } => {
                let query = query_string([("kind", kind.as_str().to_owned()), ("limit", limit.to_string())]);
                api_path(key, &format!("/features/{index}/activations{query}"))
            }
            Self::Neighbours(key, index) => api_path(key, &format!("/features/{index}/neighbours")),
            Self::Pictures { key, kind, page, per_page } => {
                let (page, per_page) = (page.to_string(), per_page.to_string());
                let query = query_string([("kind", kind.clone()), ("page", page), ("perPage", per_page)]);
                api_path(key, "/pictures") + &query
            }
            Self::PictureActivations(key, id) => api_path(key, &format!("/pictures/{}/activations", encode(id))),
            Self::Random(key) => api_path(key, "/random"),
            Self::Jobs(query) => "/api/v1/jobs".to_owned() + &job_query_string(query),
        }
    }
}

/// An endpoint together with the type of its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask<T> {
    pub endpoint: Endpoint,
    answer: PhantomData<fn() -> T>,
}

fn ask<T>(endpoint: Endpoint) -> Ask<T> {
    Ask { endpoint, answer: PhantomData }
}

/// `GET /sources`
pub fn sources() -> Ask<Vec<Source>> {
    ask(Endpoint::Sources)
}

/// `GET /{model}/{source}`
pub fn source(key: SourceKey) -> Ask<Source> {
    ask(Endpoint::Source(key))
}

/// `GET /{model}/{source}/features`
pub fn features(key: SourceKey, query: FeatureQuery) -> Ask<FeatureList> {
    ask(Endpoint::Features(key, query))
}

/// `GET /{model}/{source}/features/{index}`
pub fn feature(key: SourceKey, index: u32) -> Ask<Feature> {
    ask(Endpoint::Feature(key, index))
}

/// `GET /{model}/{source}/features/{index}/activations?kind=&limit=`
pub fn activations(key: SourceKey, index: u32, kind: ActivationKind, limit: u32) -> Ask<Activations> {
    ask(Endpoint::Activations { key, index, kind, limit })
}

/// `GET /{model}/{source}/features/{index}/neighbours`
pub fn neighbours(key: SourceKey, index: u32) -> Ask<Neighbours> {
    ask(Endpoint::Neighbours(key, index))
}

/// `GET /{model}/{source}/pictures?kind=sample&perPage=`: the first of the demo's pictures.
pub fn samples(key: SourceKey, per_page: u32) -> Ask<PictureList> {
    ask(Endpoint::Pictures { key, kind: "sample".into(), page: 0, per_page })
}

/// `GET /{model}/{source}/pictures/{id}/activations`
pub fn picture_activations(key: SourceKey, id: String) -> Ask<PictureActivations> {
    ask(Endpoint::PictureActivations(key, id))
}

/// `GET /{model}/{source}/random`: a living, labelled feature.
pub fn random(key: SourceKey) -> Ask<FeatureSummary> {
    ask(Endpoint::Random(key))
}

/// `GET /jobs`: the queue of interpretation, and a page of its jobs.
pub fn jobs(query: JobQuery) -> Ask<JobList> {
    ask(Endpoint::Jobs(query))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{JobKind, JobState};

    #[test]
    fn questions_have_the_paths_of_the_api() {
        let key = || SourceKey::new("pocket", "3-res-3k");
        assert_eq!(sources().endpoint.path(), "/api/v1/sources");
        assert_eq!(source(key()).endpoint.path(), "/api/v1/pocket/3-res-3k");
        let query = FeatureQuery { q: "red dog".into(), ..FeatureQuery::default() };
        assert_eq!(features(key(), query).endpoint.path(), "/api/v1/pocket/3-res-3k/features?q=red+dog");
        let top = activations(key(), 17, ActivationKind::default(), 24).endpoint.path();
        assert!(top.starts_with("/api/v1/pocket/3-res-3k/features/17/activations?kind="), "{top}");
        assert!(top.ends_with("&limit=24"), "{top}");
        let samples = samples(key(), 6).endpoint.path();
        assert_eq!(samples, "/api/v1/pocket/3-res-3k/pictures?kind=sample&page=0&perPage=6");
        let picture = picture_activations(key(), "a/b".into()).endpoint.path();
        assert_eq!(picture, "/api/v1/pocket/3-res-3k/pictures/a%2Fb/activations");
        assert_eq!(jobs(JobQuery::default()).endpoint.path(), "/api/v1/jobs");
        let dead = JobQuery { state: Some(JobState::Dead), kind: Some(JobKind::Score), page: 2, per_page: 0 };
        assert_eq!(jobs(dead).endpoint.path(), "/api/v1/jobs?state=dead&kind=score&page=2");
    }
}
