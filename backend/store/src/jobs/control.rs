//! What an operator does: limits, pause, cancel, try again.

use super::{Queue, on_pool};
use crate::{StoreError, begin::begin};
use api::{JobKind, JobState};

/// Jobs that may run at once at an endpoint that nobody has limited.
const MAX_RUNNING: u32 = 16;

/// Which jobs. Empty fields leave the choice open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub id: Option<i64>,
    pub state: Option<JobState>,
    pub kind: Option<JobKind>,
    pub endpoint: Option<String>,
    pub interpreter: Option<String>,
    /// Model and source.
    pub source: Option<(String, String)>,
}

/// Appends ` AND …` for every given field of a filter.
macro_rules! push_filter {
    ($sql:expr, $filter:expr) => {
        if let Some(id) = $filter.id {
            $sql.push(" AND id = ").push_bind(id);
        }
        if let Some(state) = $filter.state {
            $sql.push(" AND state = ").push_bind(state.as_str());
        }
        if let Some(kind) = $filter.kind {
            $sql.push(" AND kind = ").push_bind(kind.as_str());
        }
        if let Some(endpoint) = &$filter.endpoint {
            $sql.push(" AND endpoint = ").push_bind(endpoint.as_str());
        }
        if let Some(interpreter) = &$filter.interpreter {
            $sql.push(" AND interpreter = ").push_bind(interpreter.as_str());
        }
        if let Some((model, source)) = &$filter.source {
            $sql.push(" AND model_id = ").push_bind(model.as_str());
            $sql.push(" AND source_id = ").push_bind(source.as_str());
        }
    };
}
pub(super) use push_filter;

impl Queue {
    /// Makes an endpoint known; one that is known keeps its limits.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_endpoint(&self, name: &str) -> Result<(), StoreError> {
        on_pool!(self, |pool, _dialect, Db| {
            sqlx::query("INSERT INTO job_endpoint (name, max_running) VALUES ($1, $2) ON CONFLICT DO NOTHING")
                .bind(name)
                .bind(i64::from(MAX_RUNNING))
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// Limits an endpoint over all workers: jobs at once, and jobs that start in a minute (0: any number).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn limit(&self, endpoint: &str, max_running: u32, per_minute: u32) -> Result<(), StoreError> {
        on_pool!(self, |pool, _dialect, Db| {
            sqlx::query(
                "INSERT INTO job_endpoint (name, max_running, per_minute) VALUES ($1, $2, $3)
                 ON CONFLICT (name) DO UPDATE SET max_running = excluded.max_running,
                     per_minute = excluded.per_minute, next_start = 0",
            )
            .bind(endpoint)
            .bind(i64::from(max_running))
            .bind(i64::from(per_minute))
            .execute(pool)
            .await?;
        });
        Ok(())
    }

    /// Lets no job start at an endpoint, or at all of them; running ones end. Returns how many endpoints changed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pause(&self, endpoint: Option<&str>) -> Result<u64, StoreError> {
        self.set_paused(endpoint, 1).await
    }

    /// Undoes [`Self::pause`].
    ///
    /// # Errors
    /// When the database fails.
    pub async fn resume(&self, endpoint: Option<&str>) -> Result<u64, StoreError> {
        self.set_paused(endpoint, 0).await
    }

    async fn set_paused(&self, endpoint: Option<&str>, paused: i64) -> Result<u64, StoreError> {
        let changed = on_pool!(self, |pool, _dialect, Db| {
            let mut update = sqlx::QueryBuilder::<Db>::new("UPDATE job_endpoint SET paused = ");
            update.push_bind(paused).push(" WHERE paused <> ").push_bind(paused);
            if let Some(endpoint) = endpoint {
                update.push(" AND name = ").push_bind(endpoint);
            }
            update.build().execute(pool).await?.rows_affected()
        });
        Ok(changed)
    }

    /// Cancels jobs that wait or run; a running one's worker drops it at its next heartbeat. Returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cancel(&self, filter: &JobFilter) -> Result<u64, StoreError> {
        let cancelled = on_pool!(self, |pool, dialect, Db| {
            let mut transaction = begin(pool, dialect.begin).await?;
            // As a claim does: many rows are never locked in two orders.
            sqlx::query(&format!("SELECT name FROM job_endpoint ORDER BY name {}", dialect.lock))
                .execute(&mut *transaction)
                .await?;
            let mut update = sqlx::QueryBuilder::<Db>::new(format!(
                "UPDATE job SET state = 'cancelled', lease = NULL, lease_until = NULL, ended_at = {}
                 WHERE state IN ('queued', 'running')",
                dialect.now
            ));
            push_filter!(update, filter);
            let cancelled = update.build().execute(&mut *transaction).await?.rows_affected();
            transaction.commit().await?;
            cancelled
        });
        Ok(cancelled)
    }

    /// Lets dead and cancelled jobs start anew. Returns how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn retry(&self, filter: &JobFilter) -> Result<u64, StoreError> {
        let revived = on_pool!(self, |pool, dialect, Db| {
            let mut transaction = begin(pool, dialect.begin).await?;
            // As a claim does: many rows are never locked in two orders.
            sqlx::query(&format!("SELECT name FROM job_endpoint ORDER BY name {}", dialect.lock))
                .execute(&mut *transaction)
                .await?;
            let mut update = sqlx::QueryBuilder::<Db>::new(format!(
                "UPDATE job SET state = 'queued', tries = 0, lost = 0, ended_at = NULL, run_at = {}
                 WHERE state IN ('dead', 'cancelled')",
                dialect.now
            ));
            push_filter!(update, filter);
            let revived = update.build().execute(&mut *transaction).await?.rows_affected();
            transaction.commit().await?;
            revived
        });
        Ok(revived)
    }
}
