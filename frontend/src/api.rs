//! The one way to the server's data: a page asks [`endpoint`] questions, [`Fetched`] waits for the answers.
//!
//! On the server the pages are rendered with an in-process [`Client`] that the `server` crate provides as an
//! `Arc<dyn Client>` in the Leptos context; in the browser it is `fetch` ([`crate::http::HttpClient`]).

pub mod endpoint;
mod fetched;

pub use endpoint::{Ask, Endpoint};
pub use fetched::{Fetched, Text, TextResource};

use api::{ErrorCode, FeatureSummary, Problem, Source, json};
use serde::{Serialize, de::DeserializeOwned};
use std::{future::Future, pin::Pin, sync::Arc};

/// What a page gets: the wire type, or the problem the server (or the network) answered with.
pub type Answer<T> = Result<T, Problem>;

/// An answer's JSON in the making. `Send` in both worlds, because Leptos resources want it
/// (the browser's futures are wrapped; there is one thread).
pub type Pending = Pin<Box<dyn Future<Output = Answer<String>> + Send + 'static>>;

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

/// Answers questions with JSON.
pub trait Client: Send + Sync {
    fn get(&self, endpoint: Endpoint) -> Pending;
}

impl dyn Client {
    /// The answer, as its type.
    pub async fn ask<T: DeserializeOwned>(&self, ask: Ask<T>) -> Answer<T> {
        read(&self.get(ask.endpoint).await?)
    }
}

/// An answer's JSON as its type.
pub fn read<T: DeserializeOwned>(json: &str) -> Answer<T> {
    json::read(json).map_err(|error| {
        local_problem(ErrorCode::Internal, "The answer cannot be read", format!("{error}. Reload the page."))
    })
}

/// An answer as JSON.
pub fn write<T: Serialize>(answer: &T) -> Answer<String> {
    serde_json::to_string(answer)
        .map_err(|error| local_problem(ErrorCode::Internal, "The answer cannot be written", error.to_string()))
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
