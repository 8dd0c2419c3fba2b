//! New jobs, and asking again for known ones.

use super::{Assignment, Queue, on_pool, row};
use crate::{StoreError, begin::begin};
use api::{Job, JobKind, JobState};

/// Priority of a run over many features.
pub const BULK: i64 = 0;
/// Priority of what somebody waits for.
pub const VISITOR: i64 = 100;

/// Rows per `INSERT`: 13 values each stay far below both databases' limits.
const ROWS_PER_INSERT: usize = 500;

/// What [`Queue::enqueue`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Enqueued {
    /// Jobs that did not exist.
    pub new: u64,
    /// Known jobs that wait again or have moved up: cancelled ones, and those asked for with a higher priority.
    pub raised: u64,
    /// Known jobs that stay as they are.
    pub known: u64,
}

impl Queue {
    /// Enqueues the first step for these features. What is known already is not made twice; a cancelled job waits
    /// again, and one that waits or runs moves up to `priority`, whatever the step.
    ///
    /// # Errors
    /// When the database fails; nothing is enqueued then.
    pub async fn enqueue(
        &self,
        assignment: &Assignment,
        kind: JobKind,
        features: &[u32],
        priority: i64,
    ) -> Result<Enqueued, StoreError> {
        let mut features = features.to_vec();
        // In one order, so that two bulk runs never wait for each other.
        features.sort_unstable();
        features.dedup();
        self.add_endpoint(&assignment.endpoint).await?;
        let mut done = Enqueued::default();
        on_pool!(self, |pool, dialect, Db| {
            let mut transaction = begin(pool, dialect.begin).await?;
            let now: i64 = sqlx::query_scalar(&format!("SELECT {}", dialect.now)).fetch_one(&mut *transaction).await?;
            for chunk in features.chunks(ROWS_PER_INSERT) {
                let mut update = sqlx::QueryBuilder::<Db>::new("UPDATE job SET state = ");
                update.push_bind(JobState::Queued.as_str());
                // The interpreter may have moved to another address.
                update.push(", endpoint = ").push_bind(assignment.endpoint.as_str());
                // A cancelled one starts anew.
                update.push(", ended_at = NULL");
                for (column, value) in [("tries", "0"), ("lost", "0"), ("reason", "NULL")] {
                    let anew = format!(", {column} = CASE WHEN state = 'cancelled' THEN {value} ELSE {column} END");
                    update.push(anew);
                }
                update.push(", run_at = CASE WHEN state = 'cancelled' THEN ");
                update.push_bind(now).push(" ELSE run_at END, priority = CASE WHEN priority < ");
                update.push_bind(priority).push(" THEN ").push_bind(priority).push(" ELSE priority END");
                update.push(" WHERE (state = 'cancelled' OR (state = 'queued' AND (priority < ").push_bind(priority);
                update.push(" OR endpoint <> ").push_bind(assignment.endpoint.as_str());
                update.push("))) AND model_id = ").push_bind(assignment.model_id.as_str());
                update.push(" AND source_id = ").push_bind(assignment.source_id.as_str());
                update.push(" AND sae_revision = ").push_bind(assignment.sae_revision.as_str());
                update.push(" AND interpreter = ").push_bind(assignment.interpreter.as_str());
                update.push(" AND prompt_hash = ").push_bind(assignment.prompt_hash.as_str());
                update.push(" AND kind = ").push_bind(kind.as_str()).push(" AND feature IN (");
                let mut list = update.separated(", ");
                for feature in chunk {
                    list.push_bind(i64::from(*feature));
                }
                update.push(")");
                done.raised += update.build().execute(&mut *transaction).await?.rows_affected();

                // Whoever waits for a feature waits for its other steps as well; one that runs hands its priority on.
                let mut steps = sqlx::QueryBuilder::<Db>::new("UPDATE job SET priority = ");
                steps.push_bind(priority).push(" WHERE state IN ('queued', 'running') AND priority < ");
                steps.push_bind(priority).push(" AND model_id = ").push_bind(assignment.model_id.as_str());
                steps.push(" AND source_id = ").push_bind(assignment.source_id.as_str());
                steps.push(" AND sae_revision = ").push_bind(assignment.sae_revision.as_str());
                steps.push(" AND interpreter = ").push_bind(assignment.interpreter.as_str());
                steps.push(" AND prompt_hash = ").push_bind(assignment.prompt_hash.as_str());
                steps.push(" AND feature IN (");
                let mut list = steps.separated(", ");
                for feature in chunk {
                    list.push_bind(i64::from(*feature));
                }
                steps.push(")");
                steps.build().execute(&mut *transaction).await?;

                let mut insert = sqlx::QueryBuilder::<Db>::new(
                    "INSERT INTO job (model_id, source_id, sae_revision, feature, kind, interpreter, prompt_hash,
                                      endpoint, priority, state, run_at, created_at) ",
                );
                insert.push_values(chunk, |mut row, feature| {
                    row.push_bind(assignment.model_id.as_str());
                    row.push_bind(assignment.source_id.as_str());
                    row.push_bind(assignment.sae_revision.as_str());
                    row.push_bind(i64::from(*feature));
                    row.push_bind(kind.as_str());
                    row.push_bind(assignment.interpreter.as_str());
                    row.push_bind(assignment.prompt_hash.as_str());
                    row.push_bind(assignment.endpoint.as_str());
                    row.push_bind(priority);
                    row.push_bind(JobState::Queued.as_str());
                    row.push_bind(now);
                    row.push_bind(now);
                });
                insert.push(" ON CONFLICT DO NOTHING");
                done.new += insert.build().execute(&mut *transaction).await?.rows_affected();
            }
            transaction.commit().await?;
        });
        done.known = (features.len() as u64).saturating_sub(done.new + done.raised);
        Ok(done)
    }

    /// One job by what it is about; `None` when nobody asked for it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_job_of(
        &self,
        assignment: &Assignment,
        kind: JobKind,
        feature: u32,
    ) -> Result<Option<Job>, StoreError> {
        let sql = format!(
            "SELECT {} FROM job WHERE model_id = $1 AND source_id = $2 AND sae_revision = $3 AND feature = $4
             AND kind = $5 AND interpreter = $6 AND prompt_hash = $7",
            row::COLUMNS
        );
        let found: Option<row::JobRow> = on_pool!(self, |pool, _dialect, Db| {
            sqlx::query_as(&sql)
                .bind(assignment.model_id.as_str())
                .bind(assignment.source_id.as_str())
                .bind(assignment.sae_revision.as_str())
                .bind(i64::from(feature))
                .bind(kind.as_str())
                .bind(assignment.interpreter.as_str())
                .bind(assignment.prompt_hash.as_str())
                .fetch_optional(pool)
                .await?
        });
        found.map(row::JobRow::into_job).transpose()
    }
}
