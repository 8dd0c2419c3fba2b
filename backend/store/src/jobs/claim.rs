//! Taking a job, keeping it, giving it back.

use super::{Assignment, Queue, millis, on_pool, row};
use crate::{StoreError, begin::begin};
use api::Job;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A job in the hands of one worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    pub job: Job,
    pub(super) token: String,
}

/// What a worker that asks for a job gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    Job(Box<Lease>),
    /// Nothing waits.
    Empty,
    /// The endpoint is paused.
    Paused,
    /// As many jobs run at the endpoint as may.
    Full,
    /// The endpoint's jobs per minute are used up, or it is held, for so long.
    Wait(Duration),
}

/// An endpoint's row, as a claim needs it.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
struct Limits {
    paused: i64,
    max_running: i64,
    per_minute: i64,
    next_start: i64,
}

impl Queue {
    /// Takes the next job of `assignment` for a worker, whose name must be its own.
    ///
    /// Jobs whose worker has not been heard of for a lease are put back first, at this endpoint and whoever's they are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim(&self, assignment: &Assignment, worker: &str) -> Result<Claim, StoreError> {
        static CLAIMS: AtomicU64 = AtomicU64::new(0);
        let token = format!("{worker}/{}", CLAIMS.fetch_add(1, Ordering::Relaxed));
        let endpoint = assignment.endpoint.as_str();
        let taken = on_pool!(self, |pool, dialect, Db| {
            let mut transaction = begin(pool, dialect.begin).await?;
            let limits: Option<Limits> = sqlx::query_as(&format!(
                "SELECT paused, max_running, per_minute, next_start FROM job_endpoint WHERE name = $1 {}",
                dialect.lock
            ))
            .bind(endpoint)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some(limits) = limits else { return Ok(Claim::Empty) };
            let vanished = sqlx::query(&format!(
                "UPDATE job SET state = CASE WHEN lost + 1 >= $2 THEN 'dead' ELSE 'queued' END, lost = lost + 1,
                     reason = CASE WHEN lost + 1 >= $2 THEN $3 ELSE reason END, lease = NULL, lease_until = NULL,
                     run_at = {now}, ended_at = CASE WHEN lost + 1 >= $2 THEN {now} ELSE NULL END
                 WHERE endpoint = $1 AND state = 'running' AND lease_until <= {now}",
                now = dialect.now
            ))
            .bind(endpoint)
            .bind(i64::from(self.rules.max_lost))
            .bind(format!("{} workers vanished over this job", self.rules.max_lost))
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if vanished > 0 {
                tracing::warn!(endpoint, jobs = vanished, "put back jobs whose worker has gone");
            }
            let (running, now): (i64, i64) = sqlx::query_as(&format!(
                "SELECT count(*), {} FROM job WHERE endpoint = $1 AND state = 'running'",
                dialect.now
            ))
            .bind(endpoint)
            .fetch_one(&mut *transaction)
            .await?;
            if let Some(refused) = limits.refuse(running, now) {
                transaction.commit().await?;
                return Ok(refused);
            }
            let taken: Option<row::JobRow> = sqlx::query_as(&format!(
                "UPDATE job SET state = 'running', lease = $1, lease_until = $2, started_at = $3
                 WHERE id = (SELECT id FROM job WHERE endpoint = $4 AND state = 'queued' AND interpreter = $5
                             AND prompt_hash = $6 AND model_id = $7 AND source_id = $8 AND sae_revision = $9
                             AND run_at <= $3 ORDER BY priority DESC, id LIMIT 1 {})
                 RETURNING {}",
                dialect.skip_locked,
                row::COLUMNS
            ))
            .bind(token.as_str())
            .bind(now + millis(self.rules.lease))
            .bind(now)
            .bind(endpoint)
            .bind(assignment.interpreter.as_str())
            .bind(assignment.prompt_hash.as_str())
            .bind(assignment.model_id.as_str())
            .bind(assignment.source_id.as_str())
            .bind(assignment.sae_revision.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
            if taken.is_some() && limits.per_minute > 0 {
                sqlx::query("UPDATE job_endpoint SET next_start = $2 WHERE name = $1")
                    .bind(endpoint)
                    .bind(limits.next_start.max(now) + limits.spacing())
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
            taken
        });
        let Some(taken) = taken else { return Ok(Claim::Empty) };
        Ok(Claim::Job(Box::new(Lease { job: taken.into_job()?, token })))
    }

    /// Keeps a job for another lease. `false`: it is no longer this worker's, which must drop what it does.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn heartbeat(&self, lease: &Lease) -> Result<bool, StoreError> {
        let kept = on_pool!(self, |pool, dialect, Db| {
            let sql = format!(
                "UPDATE job SET lease_until = {} + $3 WHERE id = $1 AND lease = $2 AND state = 'running'",
                dialect.now
            );
            let update = sqlx::query(&sql).bind(lease.job.id).bind(lease.token.as_str());
            update.bind(millis(self.rules.lease)).execute(pool).await?.rows_affected()
        });
        Ok(kept > 0)
    }

    /// Gives a job back untouched, for a worker that is told to stop.
    ///
    /// # Errors
    /// When the database fails; the lease then ends by itself.
    pub async fn release(&self, lease: &Lease) -> Result<bool, StoreError> {
        let released = on_pool!(self, |pool, _dialect, Db| {
            let sql = "UPDATE job SET state = 'queued', lease = NULL, lease_until = NULL
                       WHERE id = $1 AND lease = $2 AND state = 'running'";
            let update = sqlx::query(sql).bind(lease.job.id).bind(lease.token.as_str());
            update.execute(pool).await?.rows_affected()
        });
        Ok(released > 0)
    }

    /// Jobs of `assignment` that wait or run, those of later steps included.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remaining(&self, assignment: &Assignment) -> Result<u64, StoreError> {
        let remaining: i64 = on_pool!(self, |pool, _dialect, Db| {
            sqlx::query_scalar(
                "SELECT count(*) FROM job WHERE endpoint = $1 AND state IN ('queued', 'running') AND interpreter = $2
                 AND prompt_hash = $3 AND model_id = $4 AND source_id = $5 AND sae_revision = $6",
            )
            .bind(assignment.endpoint.as_str())
            .bind(assignment.interpreter.as_str())
            .bind(assignment.prompt_hash.as_str())
            .bind(assignment.model_id.as_str())
            .bind(assignment.source_id.as_str())
            .bind(assignment.sae_revision.as_str())
            .fetch_one(pool)
            .await?
        });
        Ok(row::count(remaining))
    }
}

impl Limits {
    /// Why no job may start at `now`, if none may.
    fn refuse(&self, running: i64, now: i64) -> Option<Claim> {
        if self.paused != 0 {
            return Some(Claim::Paused);
        }
        if running >= self.max_running {
            return Some(Claim::Full);
        }
        let wait = self.next_start - now;
        (wait > 0).then(|| Claim::Wait(Duration::from_millis(wait.unsigned_abs())))
    }

    /// Milliseconds from one start to the next, where they are limited: never too few.
    fn spacing(&self) -> i64 {
        (60_000 + self.per_minute - 1) / self.per_minute.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_refuses_when_paused_full_or_too_fast() {
        let limits = Limits { paused: 0, max_running: 2, per_minute: 60, next_start: 5_000 };
        assert_eq!(limits.refuse(0, 5_000), None);
        assert_eq!(limits.refuse(0, 4_000), Some(Claim::Wait(Duration::from_secs(1))));
        assert_eq!(limits.refuse(2, 9_000), Some(Claim::Full));
        let held = Limits { per_minute: 0, ..limits };
        assert_eq!(held.refuse(1, 4_500), Some(Claim::Wait(Duration::from_millis(500))), "held, whatever the limits");
        assert_eq!(held.refuse(1, 5_000), None);
        let spacing = |per_minute| Limits { per_minute, ..held }.spacing();
        assert_eq!([1, 60, 7_000, 60_000, 1_000_000].map(spacing), [60_000, 1_000, 9, 1, 1]);
        let paused = Limits { paused: 1, max_running: 2, per_minute: 0, next_start: 0 };
        assert_eq!(paused.refuse(0, 0), Some(Claim::Paused));
    }
}
