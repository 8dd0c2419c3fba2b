//! Rows of `job` as both databases give them.

use crate::StoreError;
use api::{Job, JobKind, JobState};

/// What [`JobRow`] reads.
pub(super) const COLUMNS: &str = "id, model_id, source_id, sae_revision, feature, kind, interpreter, prompt_hash, \
    endpoint, priority, state, tries, lost, run_at, lease, reason, input_tokens, output_tokens, created_at, \
    started_at, ended_at";

/// A row of `job`.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct JobRow {
    id: i64,
    model_id: String,
    source_id: String,
    sae_revision: String,
    feature: i64,
    kind: String,
    interpreter: String,
    prompt_hash: String,
    endpoint: String,
    priority: i64,
    state: String,
    tries: i64,
    lost: i64,
    run_at: i64,
    lease: Option<String>,
    reason: Option<String>,
    input_tokens: i64,
    output_tokens: i64,
    created_at: i64,
    started_at: Option<i64>,
    ended_at: Option<i64>,
}

impl JobRow {
    pub(super) fn into_job(self) -> Result<Job, StoreError> {
        let damaged = |reason: String| StoreError::Row { what: "job", reason };
        let kind = JobKind::from_name(&self.kind).ok_or_else(|| damaged(format!("kind `{}`", self.kind)))?;
        let state = JobState::from_name(&self.state).ok_or_else(|| damaged(format!("state `{}`", self.state)))?;
        Ok(Job {
            id: self.id,
            model_id: self.model_id,
            layer: self.source_id,
            index: u32::try_from(self.feature).map_err(|error| damaged(error.to_string()))?,
            kind,
            state,
            interpreter: self.interpreter,
            prompt_hash: self.prompt_hash,
            sae_revision: self.sae_revision,
            endpoint: self.endpoint,
            priority: self.priority,
            tries: u32::try_from(self.tries).unwrap_or(u32::MAX),
            lost: u32::try_from(self.lost).unwrap_or(u32::MAX),
            reason: self.reason,
            worker: self.lease.map(|token| worker(&token).to_owned()),
            input_tokens: count(self.input_tokens),
            output_tokens: count(self.output_tokens),
            created_at: self.created_at,
            run_at: self.run_at,
            started_at: self.started_at,
            ended_at: self.ended_at,
        })
    }
}

/// Who claimed, of a lease's token.
fn worker(token: &str) -> &str {
    token.rsplit_once('/').map_or(token, |(worker, _claim)| worker)
}

/// A count as the wire has it.
pub(super) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}
