//! Settings of `lmm-scope serve`: the doc comments are the manual.

use crate::weights::hex;
use anyhow::Context;
use sha2::{Digest, Sha256};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

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
    /// When there is no data folder, or no folder of artifacts.
    pub fn database_url(&self) -> anyhow::Result<String> {
        if let Some(url) = &self.database {
            return Ok(url.clone());
        }
        let folder = dirs::data_dir()
            .ok_or_else(|| anyhow::anyhow!("this user has no data folder; name a file with --database sqlite://…"))?;
        let name = database_name(&self.artifacts)
            .with_context(|| format!("cannot read the folder of artifacts {}", self.artifacts.display()))?;
        let file = folder.join("lmm-scope").join(name);
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
