//! Settings of `lmm-scope serve` and `lmm-scope engine`: the doc comments are the manual.

use crate::{
    cli::InterpreterArgs,
    engine::{Device, EngineSpec, sae_folder},
    weights::hex,
};
use anyhow::Context;
use model::{dtype::Dtype, hook::Hook};
use sha2::{Digest, Sha256};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where and in what the model computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct ComputeArgs {
    /// Device that computes: cpu, cuda (the first card) or cuda:1. CUDA needs a program built with `--features cuda`.
    #[arg(long, env = "LMM_SCOPE_DEVICE", default_value_t)]
    pub device: Device,

    /// What the model computes in: f32, f16 or bf16. Half the bytes are faster on a card, and less exact.
    #[arg(long, env = "LMM_SCOPE_DTYPE", default_value_t)]
    pub dtype: Dtype,
}

/// Which engine `serve` uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The one in this process.
    #[default]
    Local,
    /// Engines at these addresses.
    Remote(Vec<String>),
}

impl FromStr for EngineChoice {
    type Err = String;

    /// `local`, or addresses such as `http://host:8090`, comma separated.
    fn from_str(given: &str) -> Result<Self, String> {
        if given == "local" {
            return Ok(Self::Local);
        }
        let urls = given.split(',').map(str::trim).map(|url| match reqwest::Url::parse(url) {
            Ok(parsed) if parsed.scheme() == "http" && parsed.has_host() && parsed.query().is_none() => {
                Ok(url.to_owned())
            }
            _ => Err(format!("`{url}` is neither `local` nor the address of an engine such as http://127.0.0.1:8090")),
        });
        Ok(Self::Remote(urls.collect::<Result<_, String>>()?))
    }
}

/// Run the engine alone: model and SAE behind /api/v1/extract, /steer and /attribute, for `serve --engine http://…`.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineArgs {
    /// Hugging Face checkpoint: a folder, or the id of a model that is in the cache of this machine.
    #[arg(long, env = "LMM_SCOPE_MODEL")]
    pub model: String,

    /// Revision of a model that is named by its id.
    #[arg(long, env = "LMM_SCOPE_REVISION")]
    pub revision: Option<String>,

    /// The model's name in the answers' provenance. Without it, the folder's name or the id.
    #[arg(long, env = "LMM_SCOPE_NAME")]
    pub name: Option<String>,

    /// Folder of the SAE: {hook point}/cfg.json and sae.safetensors, or the hook point's folder itself; or the id of a
    /// repository on the Hugging Face Hub that holds it.
    #[arg(long, env = "LMM_SCOPE_SAE")]
    pub sae: PathBuf,

    /// Hook point that the SAE reads: layers.24 or vision.22. Without it, the name of the SAE's folder says it.
    #[arg(long, env = "LMM_SCOPE_HOOK")]
    pub hook: Option<Hook>,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// Address to listen on.
    #[arg(long, env = "LMM_SCOPE_LISTEN", default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,

    /// Requests that may wait for the model; the next one is asked to come back later.
    #[arg(long, env = "LMM_SCOPE_ENGINE_QUEUE", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub engine_queue: u16,
}

impl EngineArgs {
    /// What the engine loads. Blocking work: files are looked for.
    ///
    /// # Errors
    /// When there is no such model or SAE.
    pub fn spec(&self) -> anyhow::Result<EngineSpec> {
        let model = model::hub::checkpoint_folder(&self.model, self.revision.as_deref())?;
        let (sae, hook) = sae_folder(&self.sae_on_this_machine()?, self.hook)?;
        let given = Path::new(&self.model);
        let folder_name = given.is_dir().then(|| given.canonicalize().ok()).flatten();
        let folder_name = folder_name.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let name = self.name.clone().or(folder_name).unwrap_or_else(|| self.model.clone());
        let ComputeArgs { device, dtype } = self.compute;
        Ok(EngineSpec { model, sae, hook, name, device, dtype })
    }

    /// The folder that `sae` names, fetched if it is one of the hub.
    fn sae_on_this_machine(&self) -> Result<PathBuf, model::Error> {
        match self.sae.to_str().filter(|id| !self.sae.exists() && model::hub::is_id(id)) {
            Some(id) => model::hub::sae_folder(id, None, self.hook.map(|hook| hook.to_string()).as_deref()),
            None => Ok(self.sae.clone()),
        }
    }
}

/// Serve the page and the API.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// Address to listen on. Without it, 127.0.0.1:8080 or, when that is taken, the next free port.
    #[arg(long, env = "LMM_SCOPE_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// Database, e.g. sqlite:///var/lib/lmm-scope/scope.db. Without it, a file in your data folder, one for each folder
    /// of artifacts.
    #[arg(long, env = "LMM_SCOPE_DATABASE")]
    pub database: Option<String>,

    /// Database of the jobs and explanations, if it is another one: postgres://user@host/database, for workers on many
    /// machines.
    #[arg(long, env = "LMM_SCOPE_QUEUE")]
    pub queue: Option<String>,

    /// Folder of the model, its SAE and their features, as `lmm-scope pocket` writes it.
    #[arg(long, env = "LMM_SCOPE_ARTIFACTS", default_value = "public/pocket")]
    pub artifacts: PathBuf,

    /// Folder of the browser bundles, as `cargo xtask bundle` writes it.
    #[arg(long, env = "LMM_SCOPE_SITE")]
    pub site: Option<PathBuf>,

    /// Folder of further files that are served as they are (favicon and the like).
    #[arg(long, env = "LMM_SCOPE_PUBLIC", default_value = "public")]
    pub public: PathBuf,

    /// Where the model runs: local, or the addresses of engines (`lmm-scope engine`), comma separated:
    /// http://10.0.0.5:8090,http://10.0.0.6:8090. They must hold this source's model and SAE.
    #[arg(long, env = "LMM_SCOPE_ENGINE", default_value = "local")]
    pub engine: EngineChoice,

    // Of the local engine.
    #[command(flatten)]
    pub compute: ComputeArgs,

    /// Requests that may wait for the local engine; the next one is asked to come back later.
    #[arg(long, env = "LMM_SCOPE_ENGINE_QUEUE", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub engine_queue: u16,

    // Who is to do what visitors ask for; `lmm-scope work` with the same flags does it.
    #[command(flatten)]
    pub by: InterpreterArgs,
}

impl ServeArgs {
    /// The database's address: the given one, or a file in the data folder of this user.
    ///
    /// # Errors
    /// When there is no data folder, or no folder of artifacts.
    pub fn database_url(&self) -> anyhow::Result<String> {
        database_url(self.database.as_deref(), &self.artifacts)
    }

    /// Where the bundles are: the given folder, or the one cargo's target folder holds.
    pub fn site_folder(&self) -> PathBuf {
        let target = || std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        self.site.clone().unwrap_or_else(|| target().join("site"))
    }
}

/// The database's address: the given one, or a file in the data folder of this user, by the folder of artifacts.
///
/// # Errors
/// When there is no data folder, or no folder of artifacts.
pub fn database_url(given: Option<&str>, artifacts: &Path) -> anyhow::Result<String> {
    if let Some(url) = given {
        return Ok(url.to_owned());
    }
    let folder = dirs::data_dir()
        .ok_or_else(|| anyhow::anyhow!("this user has no data folder; name a file with --database sqlite://…"))?;
    let name = database_name(artifacts)
        .with_context(|| format!("cannot read the folder of artifacts {}", artifacts.display()))?;
    let file = folder.join("lmm-scope").join(name);
    // The address is percent-decoded and cut at `?` when it is read.
    let file = file.to_string_lossy().replace('%', "%25").replace('?', "%3F");
    Ok(format!("sqlite://{file}"))
}

/// `scope-{8 digits}.db`, by the folder's real path: every build numbers its pictures alike, so that two builds cannot
/// share a database.
fn database_name(artifacts: &Path) -> io::Result<String> {
    let folder = artifacts.canonicalize()?;
    let hash = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    Ok(format!("scope-{}.db", hex(&hash[..4])))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn engines_are_named_by_their_addresses() {
        assert_eq!("local".parse(), Ok(EngineChoice::Local));
        let two = EngineChoice::Remote(vec!["http://a:8090".into(), "http://10.0.0.5".into()]);
        assert_eq!("http://a:8090, http://10.0.0.5".parse(), Ok(two));
        for wrong in ["", "remote", "localhost:8090", "https://a", "http://", "http://a,", "http://a?b=c"] {
            assert!(wrong.parse::<EngineChoice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_folder_of_artifacts_has_a_database_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::create_dir(&one).unwrap();
        assert!(database_name(&two).is_err());
        std::fs::create_dir(&two).unwrap();
        let name = database_name(&one).unwrap();
        assert!(name.len() == "scope-01234567.db".len() && name.ends_with(".db"), "{name}");
        assert_ne!(name, database_name(&two).unwrap());
        assert_eq!(name, database_name(&two.join("../one")).unwrap(), "however the folder is named");
    }
}
