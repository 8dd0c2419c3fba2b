//! Where a command's numbers come from: everything needed to make them again.

use super::{CliError, setup::Setup};
use crate::{
    engine::Device,
    revision::{self, Unreadable, digits},
};
use model::Prepared;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::Path;

/// [`api::Provenance`], and what the shell adds to it.
#[derive(Debug, Clone, Serialize)]
pub struct RunProvenance {
    #[serde(flatten)]
    pub numbers: api::Provenance,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    pub device: String,
    /// Version of `lmm-scope`.
    pub version: &'static str,
}

impl RunProvenance {
    /// Of a run of the model, perhaps with an SAE.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn of_run(setup: &Setup, prepared: &Prepared, sae: Option<&Path>) -> Result<Self, CliError> {
        let weights = revision::of_files(&model::weights::checkpoint_files(&setup.folder)?)?;
        let numbers = api::Provenance {
            model: format!("{}@{weights}", setup.name),
            sae_revision: sae.map(revision::of_sae).transpose()?.unwrap_or_default(),
            dtype: setup.dtype.to_string(),
            prompt_hash: digits(&Sha256::digest(&prepared.rendered)),
            image_set: setup.picture.clone().unwrap_or_default(),
            date: today(),
        };
        let hook = Some(setup.hook.to_string());
        Ok(Self { numbers, hook, device: setup.device.to_string(), version: env!("CARGO_PKG_VERSION") })
    }

    /// Of an SAE on its own, on the CPU. `sae` is the hook point's folder.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn of_sae(sae: &Path) -> Result<Self, CliError> {
        let numbers = api::Provenance {
            sae_revision: revision::of_sae(sae)?,
            dtype: "f32".into(),
            date: today(),
            ..api::Provenance::default()
        };
        Ok(Self { numbers, hook: None, device: "cpu".into(), version: env!("CARGO_PKG_VERSION") })
    }

    /// The same of what another device computed.
    pub fn computed_on(self, device: Device) -> Self {
        Self { device: device.to_string(), ..self }
    }

    /// As it goes into a file's metadata.
    pub fn json(&self) -> Result<String, CliError> {
        serde_json::to_string(self).map_err(|error| CliError::Bug(error.to_string()))
    }
}

/// A picture in the terms of [`api::Provenance::image_set`]: its name and the first digits of its SHA-256.
pub fn picture_name(path: &Path, bytes: &[u8]) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}@{}", digits(&Sha256::digest(bytes)))
}

fn today() -> String {
    time::OffsetDateTime::now_utc().date().to_string()
}

impl From<Unreadable> for CliError {
    fn from(Unreadable { path, source }: Unreadable) -> Self {
        Self::file(&path, source)
    }
}
