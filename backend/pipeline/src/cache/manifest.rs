//! `manifest.json`: what a cache's numbers are made from. A run that goes on must be asked for the same.

use super::CacheError;
use crate::images::{ImageSet, Listed, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Version of the format of the folder.
pub const FORMAT: u32 = 1;

/// Which tokens' activations are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenKind {
    /// The picture's: patches of the base picture and of tiles, and newlines.
    Image,
    /// The prompt's, without the token that begins every text.
    Text,
}

/// Everything that decides what is in the shards, but for the pictures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    pub format: u32,
    /// Name and revision of the weights.
    pub model: String,
    /// Empty without an SAE: then only hidden states are kept.
    pub sae_revision: String,
    pub hook_point: String,
    pub dtype: String,
    /// As it was given.
    pub prompt: String,
    /// Whether the prompt went through the chat template.
    pub chat: bool,
    /// First digits of the SHA-256 of the text that is tokenised.
    pub prompt_hash: String,
    /// Rising, each once.
    pub tokens: Vec<TokenKind>,
    /// Latents per token; 0 if the SAE's activation is not TopK, or there is none.
    pub k: u32,
    pub latents: u32,
    pub d_model: u32,
    /// Features that are kept, if not all.
    pub filter: Option<FilterOf>,
    /// Whether hidden states are kept as well.
    pub hidden: bool,
    /// Pictures per shard, duplicates and unreadable ones included.
    pub shard_pictures: u32,
}

/// A list of features.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterOf {
    pub features: u32,
    /// Of the rising features, as little-endian u32.
    pub sha256: String,
}

impl FilterOf {
    /// `features` rise.
    pub fn of(features: &[u32]) -> Self {
        let bytes: Vec<u8> = features.iter().flat_map(|feature| feature.to_le_bytes()).collect();
        Self { features: features.len() as u32, sha256: hex(&Sha256::digest(bytes)) }
    }
}

/// The pictures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSetOf {
    pub name: String,
    pub layout: String,
    /// [`ImageSet::listing`]: names and sizes.
    pub listing: String,
    #[serde(flatten)]
    pub listed: Listed,
}

/// `manifest.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    #[serde(flatten)]
    pub settings: Settings,
    pub image_set: ImageSetOf,
    pub shards: u32,
    /// When it was begun.
    pub date: String,
    /// Of `lmm-scope`.
    pub version: String,
}

impl Manifest {
    pub(super) fn new(settings: Settings, images: &ImageSet, listed: Listed, date: String) -> Self {
        Self {
            shards: listed.pictures.div_ceil(settings.shard_pictures.max(1)),
            image_set: ImageSetOf {
                name: images.name().to_owned(),
                layout: images.layout().to_string(),
                listing: images.listing().to_owned(),
                listed,
            },
            settings,
            date,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Checks that what is in the folder is what is asked for.
    ///
    /// # Errors
    /// The first setting that differs, with both values.
    pub(super) fn check(&self, folder: &Path, asked: &Settings, images: &ImageSet) -> Result<(), CacheError> {
        let bug = |error: serde_json::Error| CacheError::other(folder, error);
        let fields = |settings: &Settings| serde_json::to_value(settings).map_err(bug);
        let (begun, wanted) = (fields(&self.settings)?, fields(asked)?);
        let names = wanted.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        if let Some(name) = names.iter().find(|name| begun.get(name) != wanted.get(name)) {
            let (begun, wanted) = (&begun[name.as_str()], &wanted[name.as_str()]);
            return Err(CacheError::other(
                folder,
                format!(
                    "it was begun with {name} {begun}, but {wanted} is asked for; \
                     ask for the same, or name another folder with --out"
                ),
            ));
        }
        let ImageSetOf { name, layout, listing, .. } = &self.image_set;
        if *listing != images.listing() || *layout != images.layout().to_string() {
            return Err(CacheError::other(
                folder,
                format!(
                    "it was begun on other pictures ({name}, {layout}) than {} ({}), or files have come, gone \
                     or changed since; name another folder with --out",
                    images.name(),
                    images.layout()
                ),
            ));
        }
        Ok(())
    }

    /// First digits of a hash over what decides the numbers: shards carry it, so that none of another cache is read as
    /// one of this.
    ///
    /// # Errors
    /// None that can be caused from outside.
    pub fn id(&self) -> Result<String, serde_json::Error> {
        let decides = serde_json::to_vec(&(&self.settings, &self.image_set.listed.digest))?;
        Ok(hex(&Sha256::digest(decides)[..8]))
    }

    /// Numbers of a shard's pictures.
    pub fn images_of(&self, shard: u32) -> std::ops::Range<u32> {
        let (each, all) = (self.settings.shard_pictures, self.image_set.listed.pictures);
        let end = |shard: u32| u32::try_from(u64::from(shard) * u64::from(each)).unwrap_or(all).min(all);
        end(shard)..end(shard + 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    fn manifest() -> (tempfile::TempDir, ImageSet, Manifest) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.png"), "x").unwrap();
        let images = ImageSet::open(folder.path(), None).unwrap();
        let settings = Settings { dtype: "f32".into(), k: 32, shard_pictures: 4, ..Settings::default() };
        let listed = Listed { pictures: 10, digest: "d".into(), ..Listed::default() };
        let manifest = Manifest::new(settings, &images, listed, "today".into());
        (folder, images, manifest)
    }

    #[test]
    fn shards_cover_every_picture_once() {
        let (_folder, _, manifest) = manifest();
        assert_eq!(manifest.shards, 3);
        let covered: Vec<u32> = (0..manifest.shards).flat_map(|shard| manifest.images_of(shard)).collect();
        assert_eq!(covered, (0..10).collect::<Vec<_>>());
        assert!(manifest.images_of(3).is_empty());
    }

    #[test]
    fn other_settings_and_other_pictures_are_refused_by_name() {
        let (folder, images, manifest) = manifest();
        let out = Path::new("out");
        let same = manifest.settings.clone();
        manifest.check(out, &same, &images).unwrap();
        let again: Manifest = serde_json::from_slice(&serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert_eq!(again, manifest);
        let refused = |asked: &Settings, images: &ImageSet| manifest.check(out, asked, images).unwrap_err().to_string();
        let error = refused(&Settings { dtype: "f16".into(), ..same.clone() }, &images);
        assert!(error.contains("begun with dtype \"f32\", but \"f16\" is asked for"), "{error}");
        let filter = Some(FilterOf::of(&[1, 2]));
        assert!(refused(&Settings { filter, ..same.clone() }, &images).contains("begun with filter null"));
        std::fs::write(folder.path().join("b.png"), "y").unwrap();
        let more = ImageSet::open(folder.path(), None).unwrap();
        assert!(refused(&same, &more).contains("other pictures"));
        let other = Manifest { settings: Settings { k: 31, ..same }, ..manifest.clone() };
        assert_ne!(other.id().unwrap(), manifest.id().unwrap());
        assert_eq!(Manifest { date: "tomorrow".into(), ..manifest.clone() }.id().unwrap(), manifest.id().unwrap());
    }
}
