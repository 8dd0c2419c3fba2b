//! An index on disk or in a bucket: what it was made from, and the activations of one feature at a time.

use super::{FORMAT, IndexError, IndexManifest};
use crate::cache::Activation;
use std::{fs, path::Path, sync::Arc};
use store::{
    files::{ActivationsByFeature, names},
    objects::{Bucket, Location},
};

/// Name of the text in the footer of the activations that says which cache they are of.
pub(super) const CACHE: &str = "lmm_scope.cache";

/// An index that is done. Memory holds the list of its features.
#[derive(Debug)]
pub struct FeatureIndex {
    manifest: IndexManifest,
    file: ActivationsByFeature,
}

impl FeatureIndex {
    /// # Errors
    /// When there is no index, it was not finished, its files do not belong together, or the bucket cannot be read.
    pub fn open(location: impl Into<Location>) -> Result<Self, IndexError> {
        match location.into() {
            Location::Bucket { bucket, prefix } => Self::open_in(&Arc::new(Bucket::connect(&bucket, &prefix)?)),
            Location::Folder(folder) => {
                let path = folder.join(names::INDEX);
                let bytes = fs::read(&path).map_err(|source| IndexError::io(&path, source))?;
                let manifest = manifest(&path, &bytes)?;
                let path = folder.join(names::ACTIVATIONS);
                Self::of(&path, manifest, ActivationsByFeature::open(&path)?)
            }
        }
    }

    /// An index in a bucket that is open. Of the activations, the footer is fetched here, and later the row groups of
    /// the features that are asked for.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(bucket: &Arc<Bucket>) -> Result<Self, IndexError> {
        let manifest = manifest(&bucket.at(names::INDEX), &bucket.read(names::INDEX)?)?;
        let file = ActivationsByFeature::open_in(bucket, names::ACTIVATIONS)?;
        Self::of(&bucket.at(names::ACTIVATIONS), manifest, file)
    }

    /// `path` is that of the activations.
    fn of(path: &Path, manifest: IndexManifest, file: ActivationsByFeature) -> Result<Self, IndexError> {
        let id = manifest.cache.id().map_err(|error| IndexError::other(path, error))?;
        let of = file.text(CACHE)?;
        if of != id {
            let reason = format!("activations of another cache ({of}, not {id}); run `lmm-scope index` again");
            return Err(IndexError::other(path, reason));
        }
        Ok(Self { manifest, file })
    }

    pub fn manifest(&self) -> &IndexManifest {
        &self.manifest
    }

    /// All activations of a feature, by image and token. Only the row groups that hold some are read.
    ///
    /// # Errors
    /// When there is no such feature, or the file is damaged there.
    pub fn activations(&self, feature: u32) -> Result<Vec<Activation>, IndexError> {
        Ok(self.file.activations(feature)?)
    }

    /// The file itself, for features that do not fit into memory, and for what was read of it.
    pub fn file(&self) -> &ActivationsByFeature {
        &self.file
    }
}

fn manifest(path: &Path, bytes: &[u8]) -> Result<IndexManifest, IndexError> {
    let manifest: IndexManifest =
        serde_json::from_slice(bytes).map_err(|error| IndexError::other(path, format!("no index: {error}")))?;
    if manifest.format == FORMAT {
        return Ok(manifest);
    }
    Err(IndexError::other(path, format!("format {}; this program reads {FORMAT}", manifest.format)))
}
