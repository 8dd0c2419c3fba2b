//! The queue of interpretation: jobs that any number of workers on any number of machines take, each done once.
//!
//! One table in the store's SQLite, or in a Postgres database that many machines share. What holds in both:
//!
//! - *Once.* A job is the only one of its feature, SAE, kind, interpreter and prompts. Its explanation, its end and the
//!   job that follows are one transaction, and only the worker that holds the lease can write it.
//! - *Leases.* A running job belongs to its worker until `lease_until`, which the worker moves on while it lives. After
//!   that the next claim at the endpoint puts it back. All times are the database's.
//! - *Order.* Higher priority first, then the older job. A failed try waits, each time twice as long; after
//!   [`Rules::max_tries`], or at once when trying again is useless, the job is dead and keeps the reason.
//! - *Holds.* A server that is away, or asks for patience, is nobody's failed try: the job goes back and the endpoint
//!   starts nothing for a while.
//! - *Limits* are those of an endpoint over all workers: a claim locks the endpoint's row, so that two workers cannot
//!   both take the last free place.

mod claim;
mod control;
mod enqueue;
mod finish;
mod read;
mod row;
mod scores;

pub use claim::{Claim, Lease};
pub use control::JobFilter;
pub use enqueue::{BULK, Enqueued, VISITOR};
pub use finish::{Outcome, Usage};
pub use read::{Found, today};
pub use scores::{ComputedScore, add_scores};

use crate::{Store, StoreError};
use sqlx::{Connection, PgConnection, PgPool, SqlitePool, postgres::PgPoolOptions};
use std::time::Duration;

/// Connections of one process to Postgres.
const CONNECTIONS: u32 = 8;
/// How long a process waits for Postgres to answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A worker that has not been heard of for so long is gone.
    pub lease: Duration,
    /// Tries that may end with an error.
    pub max_tries: u32,
    /// Workers that may vanish over one job.
    pub max_lost: u32,
    /// Before the second try; doubled before each further one.
    pub first_delay: Duration,
    pub max_delay: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(40),
            max_tries: 6,
            max_lost: 20,
            first_delay: Duration::from_secs(5),
            max_delay: Duration::from_secs(3600),
        }
    }
}

/// Whose jobs: one source, one interpreter with its prompts, at one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Assignment {
    pub model_id: String,
    pub source_id: String,
    pub sae_revision: String,
    pub interpreter: String,
    pub prompt_hash: String,
    pub endpoint: String,
}

/// The queue. Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct Queue {
    pool: Pool,
    rules: Rules,
}

#[derive(Debug, Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Where the two databases speak differently. Everything else is written once: both take `$1`.
struct Dialect {
    /// Begins a transaction that will write.
    begin: &'static str,
    /// Milliseconds since 1970.
    now: &'static str,
    /// Locks the selected rows of `job_endpoint`; foreign keys to them may still be checked.
    lock: &'static str,
    /// Locks the selected job, or passes over one that somebody else holds.
    skip_locked: &'static str,
}

const SQLITE: Dialect = Dialect {
    // One writer at a time: every lock is taken by this.
    begin: "BEGIN IMMEDIATE",
    now: "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    lock: "",
    skip_locked: "",
};

const POSTGRES: Dialect = Dialect {
    begin: "BEGIN",
    now: "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
    lock: "FOR NO KEY UPDATE",
    skip_locked: "FOR UPDATE SKIP LOCKED",
};

/// Compiles `$body` for both databases: `$pool` is the pool, `$dialect` its words, `$Db` its type.
macro_rules! on_pool {
    ($queue:expr, |$pool:ident, $dialect:ident, $Db:ident| $body:expr) => {
        match &$queue.pool {
            $crate::jobs::Pool::Sqlite($pool) => {
                #[allow(dead_code, reason = "not every query names the database's type")]
                type $Db = ::sqlx::Sqlite;
                let $dialect = &$crate::jobs::SQLITE;
                $body
            }
            $crate::jobs::Pool::Postgres($pool) => {
                #[allow(dead_code, reason = "not every query names the database's type")]
                type $Db = ::sqlx::Postgres;
                let $dialect = &$crate::jobs::POSTGRES;
                $body
            }
        }
    };
}
use on_pool;

impl Queue {
    /// The queue in the store's own database.
    pub fn of_store(store: &Store) -> Self {
        Self { pool: Pool::Sqlite(store.pool.clone()), rules: Rules::default() }
    }

    /// Opens (and migrates) the queue at `url`: `postgres://user@host/database` for many machines, or
    /// `sqlite://path/to/file.db`.
    ///
    /// # Errors
    /// When the URL is of neither kind, or the database cannot be reached.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Ok(Self::of_store(&Store::open(url).await?));
        }
        let open = |source: sqlx::Error| StoreError::Open { url: without_password(url), source };
        // A pool tries a refused connection again until its time is up; the first one shall say at once what is wrong.
        let first = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect(url)).await;
        first.map_err(|_| open(sqlx::Error::PoolTimedOut))?.map_err(open)?.close().await.map_err(open)?;
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_TIMEOUT);
        let pool = options.connect(url).await.map_err(open)?;
        sqlx::migrate!("./migrations-postgres").run(&pool).await.map_err(|error| open(error.into()))?;
        Ok(Self { pool: Pool::Postgres(pool), rules: Rules::default() })
    }

    /// The same queue under other rules.
    pub fn with_rules(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Waits for running queries and closes the database.
    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }
}

/// Messages end in logs.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}", user.split(':').next().unwrap_or_default()),
        None => url.to_owned(),
    }
}

/// As the database counts time.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_repeated() {
        assert_eq!(without_password("postgres://me:secret@host:5432/scope"), "postgres://me@host:5432/scope");
        assert_eq!(without_password("postgres://me@host/scope"), "postgres://me@host/scope");
        assert_eq!(without_password("postgres:///scope?host=/run"), "postgres:///scope?host=/run");
    }
}
