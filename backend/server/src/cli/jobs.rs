//! What `explain`, `work`, `score` and `queue` share: the databases, the source, the interpreter, the features.

use super::CliError;
use crate::config::database_url;
use api::Source;
use pipeline::interpret::{Dissect, Engine, Identity, InterpretError, Interpreter, OpenAi, OpenAiConfig};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use store::{SourceEntry, Store, files::names, jobs::Queue};

/// Where the features are, and where the jobs.
#[derive(Debug, Clone, clap::Args)]
pub struct JobsArgs {
    /// Folder of the features and their pictures, as `lmm-scope pocket` writes it.
    #[arg(long, env = "LMM_SCOPE_ARTIFACTS", default_value = "public/pocket")]
    pub artifacts: PathBuf,

    /// Database of this machine, as `lmm-scope serve` has it: sqlite:///var/lib/lmm-scope/scope.db. Without it, a file
    /// in your data folder, one for each folder of artifacts.
    #[arg(long, env = "LMM_SCOPE_DATABASE")]
    pub database: Option<String>,

    /// Database of the jobs and explanations, for many machines: postgres://user@host/database. Without it, they are in
    /// the database of this machine.
    #[arg(long, env = "LMM_SCOPE_QUEUE")]
    pub queue: Option<String>,
}

/// Who interprets.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct InterpreterArgs {
    /// Who interprets: dissect, by ground truth, or openai, a larger model behind an OpenAI-compatible server.
    #[arg(long, env = "LMM_SCOPE_INTERPRETER", value_enum, default_value_t,
        requires_ifs = [("openai", "lmm_url"), ("openai", "lmm_name")])]
    pub interpreter: InterpreterName,

    #[command(flatten)]
    pub lmm: LmmArgs,
}

/// A larger model behind an OpenAI-compatible server.
#[derive(Debug, Clone, clap::Args)]
pub struct LmmArgs {
    /// Address of the larger model's server, with the version: http://127.0.0.1:8000/v1.
    #[arg(long, env = "LMM_SCOPE_LMM_URL")]
    pub lmm_url: Option<String>,

    /// The larger model's name, as its server has it.
    #[arg(long, env = "LMM_SCOPE_LMM_NAME")]
    pub lmm_name: Option<String>,

    /// What serves it: vllm, sglang or other. They want to see several pictures differently.
    #[arg(long, env = "LMM_SCOPE_LMM_ENGINE", value_enum, default_value_t)]
    pub lmm_engine: Engine,

    /// Key of the server, if it wants one.
    #[arg(long, env = "LMM_SCOPE_LMM_KEY", hide_env_values = true)]
    pub lmm_key: Option<String>,

    /// Pictures that one explanation, or one question of a score, looks at.
    #[arg(long, env = "LMM_SCOPE_LMM_PICTURES", default_value_t = PICTURES,
        value_parser = clap::value_parser!(u16).range(1..=32))]
    pub lmm_pictures: u16,

    /// Seconds that one answer may take.
    #[arg(long, env = "LMM_SCOPE_LMM_TIMEOUT_SECS", default_value_t = TIMEOUT_SECS,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub lmm_timeout_secs: u16,
}

/// Pictures of one question: the paper's.
const PICTURES: u16 = 5;
const TIMEOUT_SECS: u16 = 300;

impl Default for LmmArgs {
    fn default() -> Self {
        Self {
            lmm_url: None,
            lmm_name: None,
            lmm_engine: Engine::default(),
            lmm_key: None,
            lmm_pictures: PICTURES,
            lmm_timeout_secs: TIMEOUT_SECS,
        }
    }
}

/// An interpreter that a command may name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum InterpreterName {
    /// Names a feature by the masks or captions that it matches best; needs a set with ground truth.
    #[default]
    Dissect,
    /// Asks a larger model behind an OpenAI-compatible server.
    Openai,
}

/// The opened databases.
pub struct Opened {
    pub store: Store,
    pub queue: Queue,
}

impl JobsArgs {
    /// # Errors
    /// When a database cannot be opened.
    pub async fn open(&self) -> Result<Opened, CliError> {
        let store = Store::open(&self.database_url()?).await?;
        let queue = match &self.queue {
            Some(url) => Queue::open(url).await?,
            None => Queue::of_store(&store),
        };
        Ok(Opened { store, queue })
    }

    /// The jobs alone.
    ///
    /// # Errors
    /// When the database cannot be opened.
    pub async fn open_queue(&self) -> Result<Queue, CliError> {
        match &self.queue {
            Some(url) => Ok(Queue::open(url).await?),
            None => Ok(Queue::of_store(&Store::open(&self.database_url()?).await?)),
        }
    }

    fn database_url(&self) -> Result<String, CliError> {
        let url = database_url(self.database.as_deref(), &self.artifacts);
        url.map_err(|error| CliError::file(&self.artifacts, format!("{error:#}")))
    }

    /// Imports the artefacts, unless they are known, and finds their source.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub async fn source(&self, store: &Store) -> Result<SourceEntry, CliError> {
        if !self.artifacts.join(names::SOURCE).is_file() {
            let reason = format!("there is no {} here; name a folder with --artifacts", names::SOURCE);
            return Err(CliError::file(&self.artifacts, reason));
        }
        let imported = store.import_artifacts(&self.artifacts).await?;
        let source = imported.source();
        let entry = store.find_source(&source.model_id, &source.source_id).await?;
        entry.ok_or_else(|| CliError::Bug("an imported source is not there".to_owned()))
    }
}

impl InterpreterArgs {
    /// What its jobs on this folder's features are known by; `None` where it cannot interpret them.
    ///
    /// # Errors
    /// When the larger model's address is none.
    pub fn identity(&self, folder: &Path, source: &Source) -> Result<Option<Identity>, InterpretError> {
        match self.interpreter {
            InterpreterName::Dissect => Ok(Dissect::is_possible(folder, source).then(Dissect::identity_of)),
            InterpreterName::Openai => Ok(Some(OpenAi::new(self.lmm.config())?.identity().clone())),
        }
    }

    /// Opens it for a source; may take seconds.
    ///
    /// # Errors
    /// When it cannot work with these files, or with this address.
    pub async fn open(&self, args: &JobsArgs, source: &SourceEntry) -> Result<Arc<dyn Interpreter>, CliError> {
        match self.interpreter {
            InterpreterName::Dissect => {
                let (folder, source) = (args.artifacts.clone(), source.source.clone());
                let opened = tokio::task::spawn_blocking(move || Dissect::open(&folder, &source)).await;
                Ok(Arc::new(opened.map_err(|error| CliError::Bug(error.to_string()))??))
            }
            InterpreterName::Openai => Ok(Arc::new(OpenAi::new(self.lmm.config())?)),
        }
    }
}

impl LmmArgs {
    /// Where the model is and how it is asked.
    pub fn config(&self) -> OpenAiConfig {
        OpenAiConfig {
            url: self.lmm_url.clone().unwrap_or_default(),
            model: self.lmm_name.clone().unwrap_or_default(),
            key: self.lmm_key.clone(),
            engine: self.lmm_engine,
            pictures: usize::from(self.lmm_pictures),
            timeout: Duration::from_secs(u64::from(self.lmm_timeout_secs)),
        }
    }
}

/// Runs a command's asynchronous part.
///
/// # Errors
/// What the command says.
pub fn block_on<T>(work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| CliError::Bug(format!("no runtime: {error}")))?.block_on(work)
}
