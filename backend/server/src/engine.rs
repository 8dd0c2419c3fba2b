//! The engine: an actor, one thread that owns the model. Requests wait in a bounded queue; a full queue is an answer
//! ("busy"), and a client that has gone cancels its own work.

mod run;

use crate::picture::HeldPicture;
use api::{Provenance, SteerEvent, SteerRequest, TokenSpan};
use frontend::api::SourceKey;
use run::LoadedModel;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the engine's queue is full")]
    Busy,
    #[error("the engine gave no answer: it has stopped, or this job failed in it")]
    Stopped,
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("{path}: {reason}", path = path.display())]
    Mismatch { path: PathBuf, reason: String },
    #[error("the hidden states cannot be written: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    #[error("the engine's metadata cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    #[error("cannot read {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Picture and prompt of an extract.
#[derive(Debug, Default)]
pub struct ExtractInput {
    pub image: Option<HeldPicture>,
    /// Goes through the chat template; empty: the picture alone.
    pub prompt: String,
}

/// Hidden states at the hook point.
#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    /// `[tokens, d_model]`, row-major.
    pub values: Vec<f32>,
    pub tokens: usize,
    pub d_model: usize,
    pub input_ids: Vec<u32>,
    pub spans: Vec<TokenSpan>,
    /// Rows and columns of the base picture's patches; `[0, 0]` without a picture.
    pub grid: [usize; 2],
    pub provenance: Provenance,
    /// Time in the model, without the wait.
    pub took: Duration,
}

/// Events of a steer run. Unbounded, so that a slow reader never holds up the model; the run's length bounds it.
pub type SteerEvents = mpsc::UnboundedReceiver<SteerEvent>;

enum Job {
    Extract { input: ExtractInput, reply: oneshot::Sender<Result<Hidden, EngineError>> },
    Steer { input: SteerInput, reply: oneshot::Sender<Result<SteerEvents, EngineError>> },
}

/// A steer request with its picture decoded.
#[derive(Debug, Default)]
pub struct SteerInput {
    pub request: SteerRequest,
    pub image: Option<HeldPicture>,
}

/// A handle to the engine; cloning shares the queue.
#[derive(Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
    source: Arc<SourceKey>,
}

/// Keeps the queue of an engine without a worker, whose jobs wait for ever.
pub struct IdleQueue {
    _jobs: mpsc::Receiver<Job>,
}

impl Engine {
    /// Loads `artifacts/model` and `artifacts/sae/{hook point}` on a thread of its own and waits until they are ready.
    ///
    /// # Errors
    /// When the files are missing, damaged, or do not fit `source`.
    pub async fn start(artifacts: PathBuf, source: api::Source, queue: usize) -> Result<Self, EngineError> {
        let key = Arc::new(SourceKey::from(&source));
        let (jobs, mut waiting) = mpsc::channel(queue);
        let (ready, loaded) = oneshot::channel();
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            match LoadedModel::load(&artifacts, &source) {
                Ok(model) => {
                    if ready.send(Ok(())).is_ok() {
                        work(&model, &mut waiting);
                    }
                }
                // Nobody waits any more when the start was given up.
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        thread.map_err(|source| EngineError::Io { path: "engine thread".into(), source })?;
        loaded.await.map_err(|_| EngineError::Stopped)??;
        Ok(Self { jobs, source: key })
    }

    /// An engine that accepts `queue` jobs and never does any: a full queue, for tests.
    pub fn without_worker(source: SourceKey, queue: usize) -> (Self, IdleQueue) {
        let (jobs, waiting) = mpsc::channel(queue);
        (Self { jobs, source: Arc::new(source) }, IdleQueue { _jobs: waiting })
    }

    /// The source whose model and SAE it has.
    pub fn source(&self) -> &SourceKey {
        &self.source
    }

    /// Jobs that could be accepted at this moment.
    pub fn free(&self) -> usize {
        self.jobs.capacity()
    }

    /// Hidden states of a picture and a prompt. Dropping the future cancels the job while it waits.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when the queue is full; the model's own errors.
    pub async fn extract(&self, input: ExtractInput) -> Result<Hidden, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Extract { input, reply })?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }

    /// Starts the three texts. Dropping the events cancels the run at its next token.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when the queue is full; the model's own errors about the request.
    pub async fn steer(&self, input: SteerInput) -> Result<SteerEvents, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Steer { input, reply })?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }

    fn submit(&self, job: Job) -> Result<(), EngineError> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => EngineError::Busy,
            mpsc::error::TrySendError::Closed(_) => EngineError::Stopped,
        })
    }
}

/// Works until every handle is gone.
fn work(model: &LoadedModel, jobs: &mut mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        // A panic is a bug in the model's code; it costs this job its answer, not the server its engine.
        let done = catch_unwind(AssertUnwindSafe(|| run_job(model, job)));
        if done.is_err() {
            tracing::error!("a job of the engine panicked");
        }
    }
}

fn run_job(model: &LoadedModel, job: Job) {
    match job {
        Job::Extract { reply, .. } if reply.is_closed() => tracing::debug!("extract cancelled while waiting"),
        Job::Extract { input, reply } => drop(reply.send(model.extract(input))),
        Job::Steer { reply, .. } if reply.is_closed() => tracing::debug!("steer cancelled while waiting"),
        Job::Steer { input, reply } => model.steer(input, reply),
    }
}
