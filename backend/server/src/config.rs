//! Settings of `lmm-scope serve`: the doc comments are the manual.

use std::{net::SocketAddr, path::PathBuf};

/// Serve the page and the API.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// Address to listen on. Without it, 127.0.0.1:8080 or, when that is taken, the next free port.
    #[arg(long, env = "LMM_SCOPE_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// Database, e.g. sqlite:///var/lib/lmm-scope/scope.db. Without it, a file in your data folder.
    #[arg(long, env = "LMM_SCOPE_DATABASE")]
    pub database: Option<String>,

    /// Folder of the model, its SAE and their features, as `lmm-scope pocket` writes it.
    #[arg(long, env = "LMM_SCOPE_ARTIFACTS", default_value = "public/pocket")]
    pub artifacts: PathBuf,

    /// Folder of the browser bundles, as `cargo xtask bundle` writes it.
    #[arg(long, env = "LMM_SCOPE_SITE")]
    pub site: Option<PathBuf>,

    /// Folder of further files that are served as they are (favicon and the like).
    #[arg(long, env = "LMM_SCOPE_PUBLIC", default_value = "public")]
    pub public: PathBuf,

    /// Requests that may wait for the model; the next one is asked to come back later.
    #[arg(long, env = "LMM_SCOPE_ENGINE_QUEUE", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub engine_queue: u16,
}

impl ServeArgs {
    /// The database's address: the given one, or a file in the data folder of this user.
    ///
    /// # Errors
    /// When there is no data folder.
    pub fn database_url(&self) -> anyhow::Result<String> {
        if let Some(url) = &self.database {
            return Ok(url.clone());
        }
        let folder = dirs::data_dir()
            .ok_or_else(|| anyhow::anyhow!("this user has no data folder; name a file with --database sqlite://…"))?;
        let file = folder.join("lmm-scope").join("scope.db");
        // The address is percent-decoded and cut at `?` when it is read.
        let file = file.to_string_lossy().replace('%', "%25").replace('?', "%3F");
        Ok(format!("sqlite://{file}"))
    }

    /// Where the bundles are: the given folder, or the one cargo's target folder holds.
    pub fn site_folder(&self) -> PathBuf {
        let target = || std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        self.site.clone().unwrap_or_else(|| target().join("site"))
    }
}
