use crate::files::FileError;
use std::path::PathBuf;

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {url}: {source}")]
    Open { url: String, source: sqlx::Error },
    #[error("the database failed: {0}")]
    Sql(#[from] sqlx::Error),
    #[error(transparent)]
    File(#[from] FileError),
    /// The files are readable but do not fit together.
    #[error("{}: {reason}", path.display())]
    Artefact { path: PathBuf, reason: String },
    /// A list query that asks for something that does not exist.
    #[error("{field}: {reason}")]
    Query { field: &'static str, reason: String },
    /// A row that this version cannot read.
    #[error("a stored {what} is damaged: {reason}; delete the database and start again")]
    Row { what: &'static str, reason: String },
    #[error("a background task of the store stopped: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl StoreError {
    pub(crate) fn row(what: &'static str) -> impl Fn(serde_json::Error) -> Self {
        move |error| Self::Row { what, reason: error.to_string() }
    }
}
