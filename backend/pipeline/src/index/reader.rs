//! An index on disk: what it was made from, and the activations of one feature at a time.

use super::{FORMAT, IndexError, IndexManifest};
use crate::cache::Activation;
use std::{fs, path::Path};
use store::files::{ActivationsByFeature, names};

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
    /// When there is no index, it was not finished, or its files do not belong together.
    pub fn open(folder: &Path) -> Result<Self, IndexError> {
        let path = folder.join(names::INDEX);
        let bytes = fs::read(&path).map_err(|source| IndexError::io(&path, source))?;
        let manifest: IndexManifest =
            serde_json::from_slice(&bytes).map_err(|error| IndexError::other(&path, format!("no index: {error}")))?;
        if manifest.format != FORMAT {
            let reason = format!("format {}; this program reads {FORMAT}", manifest.format);
            return Err(IndexError::other(&path, reason));
        }
        let path = folder.join(names::ACTIVATIONS);
        let file = ActivationsByFeature::open(&path)?;
        let id = manifest.cache.id().map_err(|error| IndexError::other(&path, error))?;
        let of = file.text(CACHE)?;
        if of != id {
            let reason = format!("activations of another cache ({of}, not {id}); run `lmm-scope index` again");
            return Err(IndexError::other(&path, reason));
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
