use crate::{
    AppState,
    error::AppError,
    extractors::{Path, Query},
};
use api::{Job, JobList, JobQuery};
use axum::{Json, extract::State, http::StatusCode};
use frontend::api::SourceKey;

/// The queue of interpretation: how every endpoint and every step is doing, and the jobs, newest first.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", params(JobQuery),
    responses((status = 200, body = JobList), super::Refused))]
pub async fn list_jobs(
    State(state): State<AppState>,
    Query(query): Query<JobQuery>,
) -> Result<Json<JobList>, AppError> {
    Ok(Json(state.catalogue.jobs(&query).await?))
}

/// One job.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = i64, Path)),
    responses((status = 200, body = Job), super::Refused))]
pub async fn find_job(State(state): State<AppState>, Path(id): Path<i64>) -> Result<Json<Job>, AppError> {
    Ok(Json(state.catalogue.job(id).await?))
}

/// Asks for an explanation of a feature, before any bulk run. Asking again gives the same job.
#[utoipa::path(post, path = "/api/v1/{model}/{source}/features/{index}/explain", tag = "jobs",
    params(("model" = String, Path), ("source" = String, Path), ("index" = u32, Path)),
    responses((status = 202, body = Job), super::Refused))]
pub async fn explain(
    State(state): State<AppState>,
    Path((model, source, index)): Path<(String, String, u32)>,
) -> Result<(StatusCode, Json<Job>), AppError> {
    let job = state.catalogue.explain(&SourceKey::new(model, source), index).await?;
    Ok((StatusCode::ACCEPTED, Json(job)))
}
