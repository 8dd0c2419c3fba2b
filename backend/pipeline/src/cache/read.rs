//! Reading a cache: its shards, sorted activations and what is known about the pictures.

use super::{CacheError, CacheFolder, Manifest};
use serde::{Deserialize, Serialize};
use std::path::Path;
use store::files::{Activation, ActivationFile};

/// Names of texts in a shard's footer; the first is also in the metadata of hidden states.
pub(super) const CACHE: &str = "lmm_scope.cache";
pub(super) const MANIFEST: &str = "lmm_scope.manifest";
pub(super) const PICTURES: &str = "lmm_scope.pictures";
pub(super) const SKIPPED: &str = "lmm_scope.skipped";

/// Where a picture's tokens are. Ranges are `[start, end)` in what [`Activation::token`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PictureTokens {
    /// Number of the picture.
    pub image: u32,
    /// All positions of the sequence, or of the vision tower.
    pub tokens: u32,
    /// Positions whose activations are kept: what densities are counted over.
    pub kept: u32,
    /// The picture's positions: base, tiles and newlines.
    pub picture: [u32; 2],
    /// Patches of the base picture, row-major.
    pub base: [u32; 2],
    /// Rows and columns of these patches.
    pub grid: [u32; 2],
}

/// A picture without activations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub image: u32,
    pub id: String,
    pub reason: String,
}

/// One shard, its activations read in batches: an iterator of rows that rise by feature, picture and token.
pub struct Shard {
    cache: String,
    pictures: Vec<PictureTokens>,
    skipped: Vec<Skipped>,
    rows: ActivationFile,
}

/// Opens a shard; its activations are read as they are asked for.
///
/// # Errors
/// When it is missing, damaged, or no shard of a cache.
pub fn read(path: &Path) -> Result<Shard, CacheError> {
    let rows = ActivationFile::open(path)?;
    let bad = |error: serde_json::Error| CacheError::other(path, format!("damaged footer: {error}"));
    Ok(Shard {
        cache: rows.text(CACHE)?.to_owned(),
        pictures: serde_json::from_str(rows.text(PICTURES)?).map_err(bad)?,
        skipped: serde_json::from_str(rows.text(SKIPPED)?).map_err(bad)?,
        rows,
    })
}

impl Shard {
    /// Pictures that went through the model, rising.
    pub fn pictures(&self) -> &[PictureTokens] {
        &self.pictures
    }

    /// Pictures that could not be read, rising.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// How many activations it has.
    pub fn activations(&self) -> u64 {
        self.rows.rows()
    }
}

impl Iterator for Shard {
    type Item = Result<Activation, CacheError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.rows.next()?.map_err(CacheError::from))
    }
}

/// A cache whose shards are all there.
#[derive(Debug, Clone)]
pub struct Cache {
    pub folder: CacheFolder,
    pub manifest: Manifest,
}

impl Cache {
    /// # Errors
    /// When there is no cache, or a shard is missing.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        let folder = CacheFolder::new(path);
        let manifest = folder.read_manifest()?;
        match (0..manifest.shards).find(|shard| !folder.shard(*shard).is_file()) {
            None => Ok(Self { folder, manifest }),
            Some(shard) => {
                let reason =
                    format!("shard {shard} of {} is missing; run `lmm-scope cache` to the end first", manifest.shards);
                Err(CacheError::other(path, reason))
            }
        }
    }

    /// Opens one shard.
    ///
    /// # Errors
    /// When it is missing, damaged, or of another cache.
    pub fn shard(&self, number: u32) -> Result<Shard, CacheError> {
        shard_of(&self.folder, &self.manifest, number)
    }
}

/// A shard, after checking that it belongs to the manifest.
pub(super) fn shard_of(folder: &CacheFolder, manifest: &Manifest, number: u32) -> Result<Shard, CacheError> {
    let path = folder.shard(number);
    let shard = read(&path)?;
    let id = manifest.id().map_err(|error| CacheError::other(&path, error))?;
    if shard.cache != id {
        let reason = format!("a shard of another cache ({}, not {id}); remove it and run again", shard.cache);
        return Err(CacheError::other(&path, reason));
    }
    Ok(shard)
}
