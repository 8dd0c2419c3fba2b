//! The one way to the server's data: [`Client`] has one method per endpoint.
//!
//! On the server the pages are rendered with an in-process client that the `server` crate provides as an
//! `Arc<dyn Client>` in the Leptos context; in the browser the same methods are `fetch` ([`crate::http::HttpClient`]).

use api::{
    ActivationKind, Activations, ErrorCode, Feature, FeatureList, FeatureQuery, FeatureSummary, Neighbours,
    PictureActivations, PictureList, Problem, Source,
};
use std::{future::Future, pin::Pin, sync::Arc};

/// What a page gets: the wire type, or the problem the server (or the network) answered with.
pub type Answer<T> = Result<T, Problem>;

/// A boxed answer in the making. `Send` in both worlds, because Leptos resources want it
/// (the browser's futures are wrapped; there is one thread).
pub type Pending<T> = Pin<Box<dyn Future<Output = Answer<T>> + Send + 'static>>;

/// One SAE of one model: the first two segments of every address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct SourceKey {
    pub model: String,
    pub source: String,
}

impl SourceKey {
    pub fn new(model: impl Into<String>, source: impl Into<String>) -> Self {
        Self { model: model.into(), source: source.into() }
    }
}

impl From<&Source> for SourceKey {
    fn from(source: &Source) -> Self {
        Self::new(&source.model_id, &source.source_id)
    }
}

impl From<&FeatureSummary> for SourceKey {
    fn from(feature: &FeatureSummary) -> Self {
        Self::new(&feature.model_id, &feature.layer)
    }
}

/// One method per reading endpoint under `/api/v1`. (`extract` and `steer` are only ever asked for by a live page:
/// [`crate::http::extract`], [`crate::http::steer`].)
pub trait Client: Send + Sync {
    /// `GET /sources`
    fn sources(&self) -> Pending<Vec<Source>>;
    /// `GET /{model}/{source}`
    fn source(&self, key: SourceKey) -> Pending<Source>;
    /// `GET /{model}/{source}/features`
    fn features(&self, key: SourceKey, query: FeatureQuery) -> Pending<FeatureList>;
    /// `GET /{model}/{source}/features/{index}`
    fn feature(&self, key: SourceKey, index: u32) -> Pending<Feature>;
    /// `GET /{model}/{source}/features/{index}/activations?kind=&limit=`
    fn activations(&self, key: SourceKey, index: u32, kind: ActivationKind, limit: u32) -> Pending<Activations>;
    /// `GET /{model}/{source}/features/{index}/neighbours`
    fn neighbours(&self, key: SourceKey, index: u32) -> Pending<Neighbours>;
    /// `GET /{model}/{source}/pictures?kind=&page=&perPage=`
    fn pictures(&self, key: SourceKey, kind: String, page: u32, per_page: u32) -> Pending<PictureList>;
    /// `GET /{model}/{source}/pictures/{id}/activations`
    fn picture_activations(&self, key: SourceKey, id: String) -> Pending<PictureActivations>;
    /// `GET /{model}/{source}/random`: a living, labelled feature.
    fn random(&self, key: SourceKey) -> Pending<FeatureSummary>;
}

/// The client of this world: the server's own from the context, or `fetch`.
pub fn client() -> Arc<dyn Client> {
    match leptos::prelude::use_context::<Arc<dyn Client>>() {
        Some(client) => client,
        None => Arc::new(crate::http::HttpClient),
    }
}

/// A problem that arose on this side of the wire (no network, an answer that cannot be read, a page not found).
pub fn local_problem(code: ErrorCode, title: &str, detail: impl Into<String>) -> Problem {
    let status = match code {
        ErrorCode::NotFound => 404,
        ErrorCode::Internal => 500,
        _ => 400,
    };
    Problem {
        kind: format!("/docs#error-{}", code.as_str()),
        title: title.into(),
        status,
        detail: detail.into(),
        code,
        request_id: String::new(),
    }
}
