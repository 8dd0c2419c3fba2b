//! The end of a try: what was found, or why nothing was.

use super::{Lease, Queue, millis, on_pool};
use crate::{StoreError, begin::begin};
use api::{Category, JobKind, JobState, Score};
use std::time::Duration;

/// Adds to what a job took.
const SPENT: &str = "UPDATE job SET input_tokens = input_tokens + $2, output_tokens = output_tokens + $3 WHERE id = $1";

/// Tokens that a try took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// What a job found.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// What the feature is about.
    Explained {
        description: String,
        category: Category,
        /// Method, e.g. `dissect`, and author for people.
        type_name: String,
        author: String,
    },
    /// A short label for it.
    Refined {
        label: String,
    },
    Categorised {
        category: Category,
    },
    /// All scores of the explanation.
    Scored {
        scores: Vec<Score>,
    },
    /// Nothing to say, and why. The job is done nevertheless.
    Nothing {
        reason: String,
    },
}

impl Outcome {
    fn reason(&self) -> Option<&str> {
        match self {
            Self::Nothing { reason } => Some(reason),
            _ => None,
        }
    }
}

impl Queue {
    /// Writes what a job found, ends the job, and enqueues the `next` step, all or nothing. `false`: the job is no
    /// longer this worker's, and nothing was written but what it took.
    ///
    /// # Errors
    /// When the database fails; nothing is written then.
    pub async fn complete(
        &self,
        lease: &Lease,
        outcome: &Outcome,
        usage: Usage,
        next: Option<JobKind>,
    ) -> Result<bool, StoreError> {
        let job = &lease.job;
        let scores = match outcome {
            Outcome::Scored { scores } => serde_json::to_string(scores).map_err(StoreError::row("score"))?,
            _ => "[]".to_owned(),
        };
        on_pool!(self, |pool, dialect, Db| {
            let mut transaction = begin(pool, dialect.begin).await?;
            let ended = sqlx::query(&format!(
                "UPDATE job SET state = 'done', lease = NULL, lease_until = NULL, reason = $3,
                     input_tokens = input_tokens + $4, output_tokens = output_tokens + $5, ended_at = {}
                 WHERE id = $1 AND lease = $2 AND state = 'running'",
                dialect.now
            ))
            .bind(job.id)
            .bind(lease.token.as_str())
            .bind(outcome.reason())
            .bind(tokens(usage.input_tokens))
            .bind(tokens(usage.output_tokens))
            .execute(&mut *transaction)
            .await?;
            if ended.rows_affected() == 0 {
                sqlx::query(SPENT)
                    .bind(job.id)
                    .bind(tokens(usage.input_tokens))
                    .bind(tokens(usage.output_tokens))
                    .execute(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                return Ok(false);
            }
            if let Outcome::Explained { description, category, type_name, author } = outcome {
                sqlx::query(&format!(
                    "INSERT INTO explanation (job, model_id, source_id, sae_revision, feature, interpreter, prompt_hash,
                                              type_name, author, description, category, scores, created_at)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, {})",
                    dialect.now
                ))
                .bind(job.id)
                .bind(job.model_id.as_str())
                .bind(job.layer.as_str())
                .bind(job.sae_revision.as_str())
                .bind(i64::from(job.index))
                .bind(job.interpreter.as_str())
                .bind(job.prompt_hash.as_str())
                .bind(type_name.as_str())
                .bind(author.as_str())
                .bind(description.as_str())
                .bind(category.as_str())
                .bind(scores.as_str())
                .execute(&mut *transaction)
                .await?;
            }
            let changed = match outcome {
                Outcome::Refined { label } => Some(("label", label.as_str())),
                Outcome::Categorised { category } => Some(("category", category.as_str())),
                Outcome::Scored { .. } => Some(("scores", scores.as_str())),
                Outcome::Explained { .. } | Outcome::Nothing { .. } => None,
            };
            if let Some((column, value)) = changed {
                sqlx::query(&format!(
                    "UPDATE explanation SET {column} = $1 WHERE model_id = $2 AND source_id = $3 AND sae_revision = $4
                     AND feature = $5 AND interpreter = $6 AND prompt_hash = $7"
                ))
                .bind(value)
                .bind(job.model_id.as_str())
                .bind(job.layer.as_str())
                .bind(job.sae_revision.as_str())
                .bind(i64::from(job.index))
                .bind(job.interpreter.as_str())
                .bind(job.prompt_hash.as_str())
                .execute(&mut *transaction)
                .await?;
            }
            if let Some(next) = next {
                sqlx::query(&format!(
                    "INSERT INTO job (model_id, source_id, sae_revision, feature, kind, interpreter, prompt_hash,
                                      endpoint, priority, state, run_at, created_at)
                     SELECT model_id, source_id, sae_revision, feature, $2, interpreter, prompt_hash, endpoint,
                            priority, 'queued', {now}, {now} FROM job WHERE id = $1 ON CONFLICT DO NOTHING",
                    now = dialect.now
                ))
                .bind(job.id)
                .bind(next.as_str())
                .execute(&mut *transaction)
                .await?;
            }
            transaction.commit().await?;
        });
        Ok(true)
    }

    /// Ends a try that went wrong: the job waits for the next one, longer each time, or is dead. `retry_after` is the
    /// shortest wait; `None` means that trying again is useless. `false`: the job is no longer this worker's.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fail(
        &self,
        lease: &Lease,
        reason: &str,
        retry_after: Option<Duration>,
        usage: Usage,
    ) -> Result<bool, StoreError> {
        let tries = lease.job.tries.saturating_add(1);
        let wait = retry_after.filter(|_| tries < self.rules.max_tries).map(|least| self.delay(tries).max(least));
        let state = if wait.is_some() { JobState::Queued } else { JobState::Dead };
        let failed = on_pool!(self, |pool, dialect, Db| {
            sqlx::query(&format!(
                "UPDATE job SET state = $3, tries = tries + 1, lease = NULL, lease_until = NULL, reason = $4,
                     run_at = {now} + $5, input_tokens = input_tokens + $6, output_tokens = output_tokens + $7,
                     ended_at = CASE WHEN $8 = 1 THEN {now} ELSE NULL END
                 WHERE id = $1 AND lease = $2 AND state = 'running'",
                now = dialect.now
            ))
            .bind(lease.job.id)
            .bind(lease.token.as_str())
            .bind(state.as_str())
            .bind(reason)
            .bind(millis(wait.unwrap_or_default()))
            .bind(tokens(usage.input_tokens))
            .bind(tokens(usage.output_tokens))
            .bind(i64::from(state == JobState::Dead))
            .execute(pool)
            .await?
            .rows_affected()
        });
        if failed == 0 {
            self.spend(lease, usage).await?;
        }
        Ok(failed > 0)
    }

    /// Puts a job back because its endpoint is away or too busy for anybody: that is no try of the job's. No job starts
    /// there for `wait`. `false`: the job is no longer this worker's.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hold(&self, lease: &Lease, reason: &str, wait: Duration, usage: Usage) -> Result<bool, StoreError> {
        let held = on_pool!(self, |pool, dialect, Db| {
            let mut transaction = begin(pool, dialect.begin).await?;
            sqlx::query(&format!(
                "UPDATE job_endpoint SET next_start = CASE WHEN next_start < {now} + $2 THEN {now} + $2
                     ELSE next_start END WHERE name = $1",
                now = dialect.now
            ))
            .bind(lease.job.endpoint.as_str())
            .bind(millis(wait))
            .execute(&mut *transaction)
            .await?;
            let held = sqlx::query(
                "UPDATE job SET state = 'queued', lease = NULL, lease_until = NULL, reason = $3
                 WHERE id = $1 AND lease = $2 AND state = 'running'",
            )
            .bind(lease.job.id)
            .bind(lease.token.as_str())
            .bind(reason)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            transaction.commit().await?;
            held
        });
        self.spend(lease, usage).await?;
        Ok(held > 0)
    }

    /// Adds to what a job took, whosever it is now: the tokens are gone.
    async fn spend(&self, lease: &Lease, usage: Usage) -> Result<(), StoreError> {
        if usage != Usage::default() {
            on_pool!(self, |pool, _dialect, Db| {
                let spent = sqlx::query(SPENT).bind(lease.job.id).bind(tokens(usage.input_tokens));
                spent.bind(tokens(usage.output_tokens)).execute(pool).await?;
            });
        }
        Ok(())
    }

    /// The wait after so many failed tries.
    fn delay(&self, tries: u32) -> Duration {
        let doubled = 2u32.checked_pow(tries.saturating_sub(1)).unwrap_or(u32::MAX);
        self.rules.first_delay.saturating_mul(doubled).min(self.rules.max_delay)
    }
}

fn tokens(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
