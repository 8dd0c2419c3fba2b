//! Shards for a server that starts: those that lie beside the checkpoint, or in the user's cache, or new ones.

use super::folder::read_manifest;
use super::source::Source;
use super::{BROWSER_FOLDER, QuantizeError, QuantizeOptions, run};
use api::SaeManifest;
use api::shards::Tier;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

/// What is made where there is nothing; each with its decoder, for reconstructions and neighbours.
const TIERS: [Tier; 3] = [Tier::F16, Tier::Int8, Tier::Int4];
/// Digits of the checkpoint's hash that name its folder in the cache.
const DIGITS: usize = 16;

/// Shards that fit their checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Shards {
    pub folder: PathBuf,
    pub manifest: SaeManifest,
    /// They were not there before.
    pub made: bool,
}

/// Finds shards of the SAE in `sae` (a hook point's folder, or one that holds exactly one), or makes them: in the folder
/// `browser` of the hook point's or, if that cannot be written, in a folder of `cache` that the checkpoint's hash names.
///
/// # Errors
/// What is wrong with the SAE; a weight that a tier cannot hold; when neither place can be written.
pub fn ensure(sae: &Path, cache: Option<&Path>) -> Result<Shards, QuantizeError> {
    let source = Source::open(sae)?;
    let sha256 = source.sha256()?;
    let beside = source.folder().join(BROWSER_FOLDER);
    let cached = cache.map(|cache| cache.join(&sha256[..DIGITS]));
    for folder in std::iter::once(&beside).chain(&cached) {
        if let Some(manifest) = fitting(folder, &source, &sha256) {
            return Ok(Shards { folder: folder.clone(), manifest, made: false });
        }
    }
    let out = match (probe(&beside), cached) {
        (Ok(()), _) => beside,
        (Err(error), Some(cached)) => {
            tracing::debug!(%error, "shards go to the cache");
            cached
        }
        (Err(error), None) => return Err(error),
    };
    let options = QuantizeOptions { decoder: true, ..QuantizeOptions::new(sae, &out, &TIERS) };
    let manifest = run(&source, Some(sha256), &options, &|doing| tracing::debug!("{doing}"))?;
    Ok(Shards { folder: out, manifest, made: true })
}

/// The manifest of a folder whose files are all there and were made of this checkpoint.
fn fitting(folder: &Path, source: &Source, sha256: &str) -> Option<SaeManifest> {
    let manifest = read_manifest(folder);
    let manifest = manifest.inspect_err(|error| tracing::debug!(%error, "no shards here")).ok()?;
    let SaeManifest { hook_point, d_model, latents, k, source_sha256, .. } = &manifest;
    // `cfg.json` may name another k for the same weights.
    let sizes = (*d_model, *latents, *k as usize) == (source.d_model, source.latents(), source.file.k());
    (sizes && *hook_point == source.hook_point && source_sha256 == sha256).then_some(manifest)
}

/// Whether files can be written in a folder, which is made.
fn probe(folder: &Path) -> Result<(), QuantizeError> {
    fs::create_dir_all(folder).map_err(|source| QuantizeError::io(folder, source))?;
    let path = folder.join(format!(".biases.{}.probe.tmp", std::process::id()));
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
    let written = file.map(drop).and_then(|()| fs::remove_file(&path));
    written.map_err(|source| QuantizeError::io(&path, source))
}
