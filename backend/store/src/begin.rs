//! The beginning of a transaction.

use sqlx::{Connection, Database, Pool, Transaction};

/// Begins a transaction with a statement of one's own; safe when the caller's future is dropped while it waits.
///
/// `Pool::begin_with` asks SQLite, after the statement, whether a transaction is open. A future that is dropped at that
/// moment leaves it open, and its connection goes back to the pool, where every later `begin_with` fails. A task of its
/// own is not dropped: what it has begun and nobody takes is rolled back.
///
/// # Errors
/// When the database fails.
pub async fn begin<DB>(pool: &Pool<DB>, statement: &'static str) -> Result<Transaction<'static, DB>, sqlx::Error>
where
    DB: Database,
    DB::Connection: Connection<Database = DB>,
{
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin_with(statement).await }).await;
    begun.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}
