//! What the store knows, said to both worlds: the API's handlers and the pages rendered on the server.

use crate::error::AppError;
use api::{
    ActivationKind, Activations, Feature, FeatureList, FeatureQuery, FeatureSummary, Job, JobKind, JobList, JobQuery,
    Neighbours, Picture, PictureActivations, PictureList, Source,
};
use frontend::api::{Client, Endpoint, Pending, SourceKey};
use pipeline::interpret::Identity;
use serde::Serialize;
use std::fmt::Display;
use store::{
    MapPoint, PictureBytes, SourceEntry, Store,
    jobs::{JobFilter, Queue, VISITOR, add_scores},
};

/// The store, with "not found" as an error that says what is missing.
#[derive(Debug, Clone)]
pub struct Catalogue {
    store: Store,
    queue: Queue,
    /// Who answers visitors' requests for an explanation of the served source, if anybody does.
    interpreter: Option<Identity>,
    served: SourceKey,
}

impl Catalogue {
    /// `served` is the source whose model runs here.
    pub fn new(store: Store, served: SourceKey) -> Self {
        let queue = Queue::of_store(&store);
        Self { store, queue, interpreter: None, served }
    }

    /// The same with jobs in another database, and with somebody who interprets.
    pub fn with_queue(self, queue: Queue, interpreter: Option<Identity>) -> Self {
        Self { queue, interpreter, ..self }
    }

    /// The source whose model runs here.
    pub fn served(&self) -> &SourceKey {
        &self.served
    }

    async fn entry(&self, key: &SourceKey) -> Result<SourceEntry, AppError> {
        let entry = self.store.find_source(&key.model, &key.source).await?;
        entry.ok_or_else(|| {
            AppError::not_found(format!("There is no source {}/{}. See /api/v1/sources.", key.model, key.source))
        })
    }

    /// All sources, the one whose model runs here first.
    pub async fn sources(&self) -> Result<Vec<Source>, AppError> {
        let mut sources = self.store.list_sources().await?;
        // The database may hold sources of earlier starts, which can be read only.
        sources.sort_by_key(|source| SourceKey::from(source) != self.served);
        Ok(sources)
    }

    pub async fn source(&self, key: &SourceKey) -> Result<Source, AppError> {
        Ok(self.entry(key).await?.source)
    }

    pub async fn features(&self, key: &SourceKey, query: &FeatureQuery) -> Result<FeatureList, AppError> {
        Ok(self.store.list_features(&self.entry(key).await?, query).await?)
    }

    pub async fn feature(&self, key: &SourceKey, index: u32) -> Result<Feature, AppError> {
        let entry = self.entry(key).await?;
        let found = self.store.find_feature(&entry, index).await?;
        let mut feature = found.ok_or_else(|| no_feature(&entry, index))?;
        // After those that the build made: the first is the label.
        let further = self.queue.list_explanations(&entry.source, &[index]).await?.remove(&index);
        feature.explanations.extend(further.into_iter().flatten());
        let scores = self.queue.list_scores(&entry.source, Some(&[index])).await?.remove(&index);
        add_scores(&mut feature.explanations, scores.unwrap_or_default());
        Ok(feature)
    }

    pub async fn activations(
        &self,
        key: &SourceKey,
        index: u32,
        kind: ActivationKind,
        limit: u32,
    ) -> Result<Activations, AppError> {
        let entry = self.entry(key).await?;
        let found = self.store.list_activations(&entry, index, kind, limit).await?;
        found.ok_or_else(|| no_feature(&entry, index))
    }

    pub async fn neighbours(&self, key: &SourceKey, index: u32) -> Result<Neighbours, AppError> {
        let entry = self.entry(key).await?;
        self.store.find_neighbours(&entry, index).await?.ok_or_else(|| no_feature(&entry, index))
    }

    pub async fn pictures(
        &self,
        key: &SourceKey,
        kind: &str,
        page: u32,
        per_page: u32,
    ) -> Result<PictureList, AppError> {
        Ok(self.store.list_pictures(&self.entry(key).await?, kind, page, per_page).await?)
    }

    pub async fn picture(&self, key: &SourceKey, id: &str) -> Result<Picture, AppError> {
        let entry = self.entry(key).await?;
        self.store.find_picture(&entry, id).await?.ok_or_else(|| no_picture(id))
    }

    pub async fn picture_activations(&self, key: &SourceKey, id: &str) -> Result<PictureActivations, AppError> {
        let entry = self.entry(key).await?;
        let found = self.store.find_picture_activations(&entry, id).await?;
        found.ok_or_else(|| AppError::not_found(format!("{id} is not a sample picture. See /pictures?kind=sample.")))
    }

    pub async fn random(&self, key: &SourceKey) -> Result<FeatureSummary, AppError> {
        let entry = self.entry(key).await?;
        let found = self.store.random_feature(&entry).await?;
        found.ok_or_else(|| AppError::not_found("No feature of this source is alive."))
    }

    /// The features of a source that have a place on its map, and the source.
    pub async fn map(&self, key: &SourceKey) -> Result<(Source, Vec<MapPoint>), AppError> {
        let entry = self.entry(key).await?;
        let points = self.store.list_map(&entry).await?;
        Ok((entry.source, points))
    }

    /// The queue: how endpoints and steps are doing, and a page of jobs.
    pub async fn jobs(&self, query: &JobQuery) -> Result<JobList, AppError> {
        let filter = JobFilter { state: query.state, kind: query.kind, ..JobFilter::default() };
        let found = self.queue.list_jobs(&filter, query.page, query.per_page).await?;
        Ok(JobList {
            endpoints: self.queue.list_endpoints().await?,
            kinds: self.queue.list_kinds().await?,
            jobs: found.jobs,
            total: found.total,
            now: found.now,
            page: query.page,
            per_page: found.per_page,
        })
    }

    pub async fn job(&self, id: i64) -> Result<Job, AppError> {
        let found = self.queue.find_job(id).await?;
        found.ok_or_else(|| AppError::not_found(format!("There is no job {id}. See /api/v1/jobs.")))
    }

    /// A visitor's request for an explanation; the same one when it is asked for again.
    pub async fn explain(&self, key: &SourceKey, index: u32) -> Result<Job, AppError> {
        let entry = self.entry(key).await?;
        if index >= entry.source.latents {
            return Err(no_feature(&entry, index));
        }
        let Some(interpreter) = self.interpreter.as_ref().filter(|_| *key == self.served) else {
            let Source { model_id, source_id, .. } = &entry.source;
            let detail = format!("Nobody interprets the features of {model_id}/{source_id} here.");
            return Err(AppError::bad_request(detail));
        };
        let assignment = interpreter.assignment(&entry.source);
        self.queue.enqueue(&assignment, JobKind::Explain, &[index], VISITOR).await?;
        let job = self.queue.find_job_of(&assignment, JobKind::Explain, index).await?;
        job.ok_or_else(|| AppError::internal(std::io::Error::other("an enqueued job is not there")))
    }

    pub async fn picture_webp(&self, id: &str) -> Result<PictureBytes, AppError> {
        self.store.picture_webp(id).await?.ok_or_else(|| no_picture(id))
    }

    pub async fn picture_etag(&self, id: &str) -> Result<String, AppError> {
        self.store.picture_etag(id).await?.ok_or_else(|| no_picture(id))
    }
}

fn no_feature(entry: &SourceEntry, index: u32) -> AppError {
    let Source { model_id, source_id, latents, .. } = &entry.source;
    let last = latents.saturating_sub(1);
    AppError::not_found(format!(
        "There is no feature {index}: {model_id}/{source_id} has {latents} latents (0 to {last})."
    ))
}

fn no_picture(id: impl Display) -> AppError {
    AppError::not_found(format!("There is no picture {id}."))
}

/// The pages' way to the same answers, without HTTP.
impl Client for Catalogue {
    fn get(&self, endpoint: Endpoint) -> Pending {
        let catalogue = self.clone();
        Box::pin(async move {
            catalogue.answer(endpoint).await.map_err(|error| {
                error.log();
                error.problem("")
            })
        })
    }
}

impl Catalogue {
    /// The JSON that the API answers with.
    async fn answer(&self, endpoint: Endpoint) -> Result<String, AppError> {
        match endpoint {
            Endpoint::Sources => json(&self.sources().await?),
            Endpoint::Source(key) => json(&self.source(&key).await?),
            Endpoint::Features(key, query) => json(&self.features(&key, &query).await?),
            Endpoint::Feature(key, index) => json(&self.feature(&key, index).await?),
            Endpoint::Activations { key, index, kind, limit } => {
                json(&self.activations(&key, index, kind, limit).await?)
            }
            Endpoint::Neighbours(key, index) => json(&self.neighbours(&key, index).await?),
            Endpoint::Pictures { key, kind, page, per_page } => {
                json(&self.pictures(&key, &kind, page, per_page).await?)
            }
            Endpoint::PictureActivations(key, id) => json(&self.picture_activations(&key, &id).await?),
            Endpoint::Random(key) => json(&self.random(&key).await?),
            Endpoint::Jobs(query) => json(&self.jobs(&query).await?),
        }
    }
}

fn json(answer: &impl Serialize) -> Result<String, AppError> {
    serde_json::to_string(answer).map_err(AppError::internal)
}
