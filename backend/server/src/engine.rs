//! The engine: an actor, one thread that owns the model. Requests wait in a bounded queue; a full queue is an answer
//! ("busy"), and a client that has gone cancels its own work. Steer requests are written side by side, one token of
//! each at a time; what is asked for meanwhile (extract, attribute) waits for one token at most.
//!
//! [`Runner`] is where the model runs: in this process, or in other ones ([`remote`]).

mod actor;
mod loaded;
pub mod remote;
mod runner;
mod spec;
pub mod steerer;
mod steering;

use crate::picture::HeldPicture;
use actor::{Job, Ticket, work};
use api::{
    AttributeRequest, AttributeResult, EngineInfo, ExtractDtype, Provenance, SteerEvent, SteerRequest, TokenSpan,
};
use burn::tensor::backend::Backend;
use half::f16;
use loaded::LoadedModel;
use model::{hook::Hook, lens::Lens};
pub use runner::Runner;
pub use spec::{Device, EngineSpec, Fit, reads_another_hook, sae_folder};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the engine's queue is full")]
    Busy,
    #[error("the engine gave no answer: it has stopped, or this job failed in it")]
    Stopped,
    #[error("the engine cannot start on {device}: {reason}")]
    Start { device: Device, reason: String },
    #[error("none of the engines answers: {0}")]
    NoneAnswers(String),
    #[error("the engine {url} does not fit: {reason}")]
    Unfit { url: String, reason: String },
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

impl From<crate::revision::Unreadable> for EngineError {
    fn from(crate::revision::Unreadable { path, source }: crate::revision::Unreadable) -> Self {
        Self::Io { path, source }
    }
}

/// Picture and prompt of an extract.
#[derive(Debug, Default)]
pub struct ExtractInput {
    pub image: Option<HeldPicture>,
    /// Goes through the chat template; empty: the picture alone.
    pub prompt: String,
    /// Another hook point than the SAE's.
    pub hook: Option<Hook>,
    /// Tokens per position that the lenses name; 0: no lenses.
    pub lens: usize,
    /// Also the thresholds of the hidden states as they are in this format.
    pub threshold: Option<ExtractDtype>,
}

/// Hidden states at the hook point.
pub struct Hidden {
    /// `[tokens, d_model]`, row-major; `[tiles · positions, d_vision]` in the vision tower.
    pub values: Vec<f32>,
    pub tokens: usize,
    pub d_model: usize,
    pub hook: Hook,
    pub input_ids: Vec<u32>,
    pub spans: Vec<TokenSpan>,
    /// Rows and columns of the base picture's patches; `[0, 0]` without a picture.
    pub grid: [usize; 2],
    /// If they were asked for.
    pub lenses: Option<Lenses>,
    /// `[tokens]`, if they were asked for: the SAE's k-th largest activation, 0 where fewer are positive.
    pub thresholds: Option<Vec<f32>>,
    pub provenance: Provenance,
    /// Time in the model, without the wait.
    pub took: Duration,
}

/// A value of a hidden state as it is sent: a few channels of the residual stream are massive, and a half float ends at
/// 65,504.
pub(crate) fn half_float(value: f32) -> f16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// Tokens that positions are near to.
pub struct Lenses {
    /// Nothing at the vision tower's hook points.
    pub logit: Option<Lens>,
    /// Nothing without a picture.
    pub embedding: Option<Lens>,
    /// Strings of all ids.
    pub tokens: BTreeMap<u32, String>,
}

/// Events of a steer run. Unbounded, so that a slow reader never holds up the model; the run's length bounds it.
pub type SteerEvents = mpsc::UnboundedReceiver<SteerEvent>;

/// A steer request with its picture decoded.
#[derive(Debug, Default)]
pub struct SteerInput {
    pub request: SteerRequest,
    pub image: Option<HeldPicture>,
}

/// An attribute request with its picture decoded.
#[derive(Debug, Default)]
pub struct AttributeInput {
    pub request: AttributeRequest,
    pub image: Option<HeldPicture>,
}

/// A handle to the engine; cloning shares the queue.
#[derive(Clone)]
pub struct Engine {
    jobs: mpsc::UnboundedSender<Ticket>,
    /// The queue's places: whoever gets none is told that the engine is busy.
    places: Arc<Semaphore>,
    running: Arc<AtomicUsize>,
    info: Arc<EngineInfo>,
}

/// Keeps the queue of an engine without a worker, whose jobs wait for ever.
pub struct IdleQueue {
    _jobs: mpsc::UnboundedReceiver<Ticket>,
}

impl Engine {
    /// Loads model and SAE on a thread of its own and waits until they are ready.
    ///
    /// # Errors
    /// When the files are missing, damaged, or do not fit each other; when there is no such device.
    pub async fn start(spec: EngineSpec, queue: usize) -> Result<Self, EngineError> {
        match spec.device {
            Device::Cpu => Self::start_on::<model::Cpu>(spec, Default::default(), queue).await,
            #[cfg(feature = "cuda")]
            Device::Cuda(number) => {
                crate::kernels::keep();
                let device = burn::backend::cuda::CudaDevice::new(number);
                Self::start_on::<model::Cuda>(spec, device, queue).await
            }
            #[cfg(not(feature = "cuda"))]
            device @ Device::Cuda(_) => {
                let reason = "this program was built without CUDA; build it with `--features cuda`".into();
                Err(EngineError::Start { device, reason })
            }
        }
    }

    async fn start_on<B: Backend>(spec: EngineSpec, device: B::Device, queue: usize) -> Result<Self, EngineError> {
        let load = move || {
            // A driver that is missing is a panic in the libraries that look for it.
            let loaded = catch_unwind(AssertUnwindSafe(|| LoadedModel::<B>::load(&spec, &device)));
            loaded.unwrap_or_else(|panic| {
                let reason = crate::error::panic_message(panic.as_ref()).to_owned();
                Err(EngineError::Start { device: spec.device, reason })
            })
        };
        Self::spawn(load, queue).await
    }

    async fn spawn<B: Backend>(
        load: impl FnOnce() -> Result<LoadedModel<B>, EngineError> + Send + 'static,
        queue: usize,
    ) -> Result<Self, EngineError> {
        let (jobs, waiting) = mpsc::unbounded_channel();
        let (ready, loaded) = oneshot::channel();
        let running = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&running);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || match load() {
            Ok(model) => {
                if ready.send(Ok(model.info.clone())).is_ok() {
                    work(&model, waiting, &counter);
                }
            }
            // Nobody waits any more when the start was given up.
            Err(error) => drop(ready.send(Err(error))),
        });
        thread.map_err(|source| EngineError::Io { path: "engine thread".into(), source })?;
        let info = Arc::new(loaded.await.map_err(|_| EngineError::Stopped)??);
        Ok(Self { jobs, places: Arc::new(Semaphore::new(queue)), running, info })
    }

    /// An engine that accepts `queue` jobs and never does any: a full queue, for tests.
    pub fn without_worker(queue: usize) -> (Self, IdleQueue) {
        let (jobs, waiting) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(queue));
        (Self { jobs, places, running: Arc::default(), info: Arc::default() }, IdleQueue { _jobs: waiting })
    }

    /// What it holds, and how busy it is at this moment.
    pub fn info(&self) -> EngineInfo {
        EngineInfo { free: self.free() as u32, running: self.running() as u32, ..EngineInfo::clone(&self.info) }
    }

    /// Jobs that could be accepted at this moment.
    pub fn free(&self) -> usize {
        self.places.available_permits()
    }

    /// Steer requests that are being written at this moment.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Hidden states of a picture and a prompt. Dropping the future cancels the job while it waits, or at the next block.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when the queue is full; the model's own errors.
    pub async fn extract(&self, input: ExtractInput) -> Result<Hidden, EngineError> {
        self.ask(|reply| Job::Extract { input, reply }).await
    }

    /// Effects of features on the difference of two answers. Dropping the future cancels the job while it waits, or at the
    /// next block.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when the queue is full; the model's own errors.
    pub async fn attribute(&self, input: AttributeInput) -> Result<AttributeResult, EngineError> {
        self.ask(|reply| Job::Attribute { input, reply }).await
    }

    /// Starts the three texts. Dropping the events cancels the run at its next token.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when the queue is full; the model's own errors about the request.
    pub async fn steer(&self, input: SteerInput) -> Result<SteerEvents, EngineError> {
        self.ask(|reply| Job::Steer { input, reply }).await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, EngineError>>) -> Job) -> Result<T, EngineError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| EngineError::Busy)?;
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Ticket { job: job(reply), place }).map_err(|_| EngineError::Stopped)?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;
    use api::SteerFeature;
    use model::{Cpu, Sae};
    use std::path::Path;

    fn spec(folder: &Path) -> EngineSpec {
        EngineSpec {
            model: folder.join("model"),
            sae: folder.join("sae/model.layers.1"),
            hook: Hook::Block(1),
            name: "tiny".into(),
            device: Device::Cpu,
            dtype: Default::default(),
        }
    }

    fn words() -> ExtractInput {
        ExtractInput { prompt: "a red cat".into(), ..ExtractInput::default() }
    }

    #[tokio::test]
    async fn a_panic_costs_only_its_request() {
        let folder = tempfile::tempdir().unwrap();
        model::testing::tiny_checkpoint::<Cpu>(folder.path(), &Default::default()).unwrap();
        let spec = spec(folder.path());
        let broken = move || {
            let mut model = LoadedModel::<Cpu>::load(&spec, &Default::default())?;
            // An encoder that does not fit the stream: every product with it panics.
            let mut sae = Sae::clone(&model.sae);
            sae.encoder = sae.encoder.clone().narrow(0, 0, 16);
            model.sae = Arc::new(sae);
            Ok::<_, EngineError>(model)
        };
        let engine = Engine::spawn(broken, 4).await.unwrap();
        let request = SteerRequest {
            prompt: "What is this?".into(),
            features: vec![SteerFeature { index: 1, strength: 1.0 }],
            n_tokens: 4,
            ..SteerRequest::default()
        };
        for _ in 0..2 {
            let input = SteerInput { request: request.clone(), image: None };
            match engine.steer(input).await {
                Err(error) => assert!(matches!(error, EngineError::Stopped), "{error}"),
                Ok(mut events) => {
                    let mut last = None;
                    while let Some(event) = events.recv().await {
                        last = Some(event);
                    }
                    assert!(matches!(last, Some(SteerEvent::Failed { .. })), "{last:?}");
                }
            }
            let hidden = engine.extract(words()).await.unwrap();
            assert!(hidden.tokens > 0 && hidden.values.len() == hidden.tokens * 32);
        }
        assert_eq!((engine.free(), engine.running()), (4, 0));
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        model::testing::tiny_checkpoint::<Cpu>(folder.path(), &Default::default()).unwrap();
        let started = Engine::start(EngineSpec { device: Device::Cuda(99), ..spec(folder.path()) }, 1).await;
        let Err(error) = started else { panic!("there is no card 99") };
        assert!(error.to_string().contains("cuda:99"), "{error}");
    }

    #[tokio::test]
    async fn an_sae_of_another_width_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        model::testing::tiny_checkpoint::<Cpu>(folder.path(), &Default::default()).unwrap();
        let Err(error) = Engine::start(EngineSpec { hook: Hook::Vision(0), ..spec(folder.path()) }, 1).await else {
            panic!("32 values per token do not come from a tower of 16")
        };
        assert!(error.to_string().contains("vision.0 has 16"), "{error}");
    }
}
