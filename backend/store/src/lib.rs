//! All SQL and all file formats: the Parquet artefacts in [`files`], other programs' formats in [`exchange`], and the
//! database behind the page, [`Store`].
//!
//! Knows nothing of HTTP and nothing of tensors. Errors are one enum per half: [`files::FileError`] names the file,
//! [`StoreError`] carries the cause.

mod begin;
mod blob;
mod error;
mod example;
pub mod exchange;
mod feature;
pub mod files;
mod import;
pub mod jobs;
mod map;
pub mod objects;
mod picture;
mod source;
pub mod testing;

pub use error::StoreError;
pub use import::Import;
pub use map::MapPoint;
pub use picture::PictureBytes;
pub use source::SourceEntry;

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{str::FromStr, time::Duration};

/// Readers at once; SQLite has one writer in any case.
const CONNECTIONS: u32 = 8;
/// How long a connection waits for another process's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The database. Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens (and creates, and migrates) the database at `url`: `sqlite://path/to/file.db` or `sqlite::memory:`.
    ///
    /// # Errors
    /// When the URL is not one of SQLite, the file cannot be opened, or its schema is from a newer program.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let open = |source: sqlx::Error| StoreError::Open { url: url.to_owned(), source };
        if !url.starts_with("sqlite:") {
            let reason = "expected an address such as sqlite:///var/lib/lmm-scope/scope.db or sqlite::memory:";
            return Err(open(sqlx::Error::Configuration(reason.into())));
        }
        let options = SqliteConnectOptions::from_str(url)
            .map_err(open)?
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT);
        let in_memory = url.contains(":memory:");
        if let Some(folder) = options.get_filename().parent().filter(|_| !in_memory) {
            tokio::fs::create_dir_all(folder).await.map_err(|error| open(sqlx::Error::Io(error)))?;
        }
        // A database in memory lives in its one connection.
        let pool = SqlitePoolOptions::new().max_connections(if in_memory { 1 } else { CONNECTIONS });
        let pool = if in_memory { pool.min_connections(1).idle_timeout(None).max_lifetime(None) } else { pool };
        let pool = pool.connect_with(options).await.map_err(open)?;
        sqlx::migrate!().run(&pool).await.map_err(|error| open(error.into()))?;
        Ok(Self { pool })
    }

    /// Waits for running queries and closes the database, so that the write-ahead log is folded in.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
