//! Where a command's numbers come from: everything needed to make them again.

use super::{CliError, setup::Setup};
use crate::weights::{hash_file, hex};
use model::Prepared;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Hex digits of a SHA-256 in provenance.
const DIGITS: usize = 12;
/// Weights of this many bytes and more are not read for their hash alone: an 8B model would take a minute.
const HASHED_WHOLE: u64 = 1 << 30;
/// Longest header of a safetensors file, in bytes.
const MAX_HEADER: u64 = 100_000_000;

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
        let weights = revision(&model::weights::checkpoint_files(&setup.folder)?)?;
        let numbers = api::Provenance {
            model: format!("{}@{weights}", setup.name),
            sae_revision: sae.map(sae_revision).transpose()?.unwrap_or_default(),
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
            sae_revision: sae_revision(sae)?,
            dtype: "f32".into(),
            date: today(),
            ..api::Provenance::default()
        };
        Ok(Self { numbers, hook: None, device: "cpu".into(), version: env!("CARGO_PKG_VERSION") })
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

fn digits(hash: &[u8]) -> String {
    hex(&hash[..DIGITS / 2])
}

/// Revision of the weights in a hook point's folder.
fn sae_revision(folder: &Path) -> Result<String, CliError> {
    let unreadable = |error: io::Error| CliError::file(folder, error);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    revision(&files)
}

/// First digits of the files' SHA-256, as one after the other. Of large files only the headers and sizes are hashed,
/// and the revision says so.
fn revision(files: &[PathBuf]) -> Result<String, CliError> {
    let mut bytes = 0;
    for path in files {
        bytes += fs::metadata(path).map_err(|error| CliError::file(path, error))?.len();
    }
    let whole = bytes < HASHED_WHOLE;
    let mut hash = Sha256::new();
    for path in files {
        let hashed = if whole { hash_file(path, &mut hash) } else { hash_header(path, &mut hash) };
        hashed.map_err(|error| CliError::file(path, error))?;
    }
    let digits = digits(&hash.finalize());
    Ok(if whole { digits } else { format!("{digits} (of headers and sizes)") })
}

/// Adds a safetensors file's size in bytes and its header.
fn hash_header(path: &Path, hash: &mut Sha256) -> io::Result<()> {
    let mut file = File::open(path)?;
    hash.update(file.metadata()?.len().to_le_bytes());
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length).min(MAX_HEADER)).read_to_end(&mut header)?;
    hash.update(&header);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn a_revision_is_the_hash_of_the_files_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        for (path, text) in files.iter().zip(["hel", "lo"]) {
            fs::write(path, text).unwrap();
        }
        assert_eq!(revision(&files).unwrap(), hex(&Sha256::digest("hello"))[..DIGITS]);
        assert!(revision(&[folder.path().join("c")]).is_err());
    }

    #[test]
    fn headers_and_sizes_tell_large_files_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let hashed = |header: &str, tail: &[u8]| {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(tail);
            fs::write(&path, bytes).unwrap();
            let mut hash = Sha256::new();
            hash_header(&path, &mut hash).unwrap();
            hex(&hash.finalize())
        };
        let first = hashed("{\"a\":1}", b"0123");
        assert_eq!(first, hashed("{\"a\":1}", b"abcd"), "the values are not read");
        assert_ne!(first, hashed("{\"a\":2}", b"0123"));
        assert_ne!(first, hashed("{\"a\":1}", b"01234567"));
        fs::write(&path, b"short").unwrap();
        assert!(hash_header(&path, &mut Sha256::new()).is_err());
    }
}
