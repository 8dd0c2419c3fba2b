//! Where the model runs.

use super::{Engine, remote::RemoteEngines};
use crate::error::AppError;
use api::EngineInfo;
use std::sync::Arc;

/// The model, here or elsewhere.
#[derive(Clone)]
pub enum Runner {
    /// On a thread of this process.
    Local(Engine),
    /// In other processes, over HTTP.
    Remote(Arc<RemoteEngines>),
}

impl From<Engine> for Runner {
    fn from(engine: Engine) -> Self {
        Self::Local(engine)
    }
}

impl From<RemoteEngines> for Runner {
    fn from(engines: RemoteEngines) -> Self {
        Self::Remote(Arc::new(engines))
    }
}

impl Runner {
    /// What it holds and how busy it is; several engines are summed up.
    ///
    /// # Errors
    /// When no engine can be reached.
    pub async fn info(&self) -> Result<EngineInfo, AppError> {
        match self {
            Self::Local(engine) => Ok(engine.info()),
            Self::Remote(engines) => engines.info().await.ok_or_else(AppError::no_engine),
        }
    }

    /// Requests that could be accepted at this moment.
    pub async fn free(&self) -> usize {
        match self {
            Self::Local(engine) => engine.free(),
            Self::Remote(engines) => engines.info().await.map_or(0, |info| info.free as usize),
        }
    }
}
