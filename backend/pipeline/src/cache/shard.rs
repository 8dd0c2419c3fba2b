//! One shard: its pictures through the model, their activations sorted in memory, and written.

use super::{
    CacheError, CacheFolder, Extractor, Manifest, PictureTokens, Skipped,
    extractor::Encoded,
    folder::write_whole,
    hidden::HiddenWriter,
    read::{CACHE, MANIFEST, PICTURES, SKIPPED},
    stream::{Passed, pass},
};
use crate::images::{ImageSet, read_list};
use burn::tensor::backend::Backend;
use half::f16;
use model::TopK;
use rayon::prelude::*;
use std::{ops::ControlFlow, path::Path};
use store::files::{Activation, write_activations};

/// Bits of a key: a shard's picture and its token; the feature has the rest.
const IMAGE_BITS: u32 = 12;
const TOKEN_BITS: u32 = 20;
/// Most pictures of a shard.
pub const MAX_SHARD_PICTURES: u32 = 1 << IMAGE_BITS;

/// What shards are made with.
pub struct Job<'a, B: Backend> {
    pub folder: &'a CacheFolder,
    pub manifest: &'a Manifest,
    pub images: &'a ImageSet,
    pub extractor: &'a Extractor<B>,
    /// The features that are kept, rising, if not all.
    pub filter: Option<&'a [u32]>,
}

/// What a shard's file is made of.
#[derive(Default)]
struct Gathered {
    rows: Rows,
    pictures: Vec<PictureTokens>,
    skipped: Vec<Skipped>,
}

impl<B: Backend> Job<'_, B> {
    /// Makes a shard, hidden states first. Its claim must be held. `done` is called after every picture.
    pub(super) fn write_shard(&self, shard: u32, done: &mut dyn FnMut()) -> Result<(), CacheError> {
        let gathered = if self.manifest.settings.hidden {
            let path = self.folder.hidden(shard);
            write_whole(&path, |file| {
                let mut writer = HiddenWriter::new(&path, file, self.manifest.settings.d_model as usize)?;
                let gathered = self.gather(shard, Some(&mut writer), done)?;
                writer.finish(&[
                    (CACHE.to_owned(), self.id(&path)?),
                    ("hook_point".to_owned(), self.manifest.settings.hook_point.clone()),
                    ("model".to_owned(), self.manifest.settings.model.clone()),
                    ("dtype".to_owned(), self.manifest.settings.dtype.clone()),
                ])?;
                Ok(gathered)
            })?
        } else {
            self.gather(shard, None, done)?
        };
        let Gathered { mut rows, pictures, skipped } = gathered;
        rows.sort();
        let first = self.manifest.images_of(shard).start;
        write_shard_file(self.folder, self.manifest, shard, &pictures, &skipped, rows.activations(first))
    }

    fn id(&self, path: &Path) -> Result<String, CacheError> {
        self.manifest.id().map_err(|error| CacheError::other(path, error))
    }

    fn gather(
        &self,
        shard: u32,
        mut hidden: Option<&mut HiddenWriter<'_>>,
        done: &mut dyn FnMut(),
    ) -> Result<Gathered, CacheError> {
        let images = self.manifest.images_of(shard);
        let first = images.start;
        let pictures = read_list(&self.folder.images(), images)?;
        let keep_hidden = hidden.is_some();
        let mut gathered = Gathered { rows: Rows::new(self), ..Gathered::default() };
        pass(self.extractor, self.images.root(), pictures, keep_hidden, &mut |passed| {
            match passed {
                Passed::Skipped(skipped) => gathered.skipped.push(skipped),
                Passed::Encoded(image, Encoded { tokens, positions, top, hidden: states }) => {
                    if let (Some(writer), Some(states)) = (&mut hidden, &states) {
                        writer.push(image, &positions, states)?;
                    }
                    if let Some(top) = &top {
                        let fits = gathered.rows.add(image - first, &positions, top);
                        fits.map_err(|reason| CacheError::other(&self.folder.shard(shard), reason))?;
                    }
                    gathered.pictures.push(PictureTokens { image, ..tokens });
                }
            }
            done();
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(gathered)
    }
}

/// Writes a shard's file: what is known about its pictures, and rows that rise by feature, picture and token.
///
/// # Errors
/// When rows do not rise, or the file cannot be written.
pub fn write_shard_file(
    folder: &CacheFolder,
    manifest: &Manifest,
    shard: u32,
    pictures: &[PictureTokens],
    skipped: &[Skipped],
    rows: impl Iterator<Item = Activation>,
) -> Result<(), CacheError> {
    let path = folder.shard(shard);
    let bug = |error: serde_json::Error| CacheError::other(&path, error);
    let texts = vec![
        (CACHE.to_owned(), manifest.id().map_err(bug)?),
        (MANIFEST.to_owned(), serde_json::to_string(manifest).map_err(bug)?),
        (PICTURES.to_owned(), serde_json::to_string(pictures).map_err(bug)?),
        (SKIPPED.to_owned(), serde_json::to_string(skipped).map_err(bug)?),
    ];
    write_whole(&path, |file| Ok(write_activations(&path, file, rows, texts)?)).map(drop)
}

/// Activations of a shard, 16 bytes each: feature, picture and token in one number, so that sorting is fast.
#[derive(Default)]
struct Rows {
    rows: Vec<(u64, f16)>,
    /// Whether a feature is kept; empty if all are.
    kept: Vec<bool>,
}

impl Rows {
    fn new<B: Backend>(job: &Job<'_, B>) -> Self {
        let mut kept = Vec::new();
        if let Some(filter) = job.filter {
            kept.resize(job.manifest.settings.latents as usize, false);
            for &feature in filter {
                if let Some(kept) = kept.get_mut(feature as usize) {
                    *kept = true;
                }
            }
        }
        Self { rows: Vec::new(), kept }
    }

    /// Takes the activations of one picture that are above zero as half floats. What is too large becomes the largest.
    fn add(&mut self, image: u32, positions: &[u32], top: &TopK) -> Result<(), String> {
        if let Some(last) = positions.last().filter(|last| **last >= 1 << TOKEN_BITS) {
            return Err(format!("token {last} is beyond the {} that a cache can hold", 1 << TOKEN_BITS));
        }
        for (row, &token) in positions.iter().enumerate() {
            let place = (u64::from(image) << TOKEN_BITS) | u64::from(token);
            for (feature, act) in top.row(row) {
                let value = f16::from_f32(act.min(f16::MAX.to_f32()));
                if value > f16::ZERO && self.kept.get(feature as usize).copied().unwrap_or(self.kept.is_empty()) {
                    self.rows.push(((u64::from(feature) << (IMAGE_BITS + TOKEN_BITS)) | place, value));
                }
            }
        }
        Ok(())
    }

    fn sort(&mut self) {
        self.rows.par_sort_unstable_by_key(|(place, _)| *place);
    }

    /// `first` is the number of the shard's first picture.
    fn activations(&self, first: u32) -> impl Iterator<Item = Activation> + '_ {
        self.rows.iter().map(move |&(place, value)| Activation {
            feature: (place >> (IMAGE_BITS + TOKEN_BITS)) as u32,
            image: first + ((place >> TOKEN_BITS) % u64::from(MAX_SHARD_PICTURES)) as u32,
            token: (place % (1 << TOKEN_BITS)) as u32,
            value,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    fn top(indices: &[u32], acts: &[f32]) -> TopK {
        let indices = indices.to_vec();
        TopK { tokens: indices.len() / 2, k: 2, indices, acts: acts.to_vec(), norms: Vec::new() }
    }

    #[test]
    fn activations_are_sorted_filtered_and_rounded() {
        let mut rows = Rows::default();
        rows.add(4095, &[1, (1 << TOKEN_BITS) - 1], &top(&[9, 131_071, 9, 0], &[2.0, 1.0, 1e9, 0.0])).unwrap();
        rows.add(0, &[3, 4], &top(&[9, 2, 2, 0], &[0.5, 1e-9, 0.25, 0.0])).unwrap();
        rows.sort();
        let expected = [(2, 10, 4, 0.25), (9, 10, 3, 0.5), (9, 4105, 1, 2.0), (9, 4105, 1_048_575, 65504.0)];
        let expected = expected
            .into_iter()
            .chain([(131_071, 4105, 1, 1.0)])
            .map(|(feature, image, token, value)| Activation { feature, image, token, value: f16::from_f32(value) });
        assert_eq!(rows.activations(10).collect::<Vec<_>>(), expected.collect::<Vec<_>>());

        let mut rows = Rows { kept: vec![false, false, true], ..Rows::default() };
        rows.add(0, &[3, 4], &top(&[9, 1, 2, 0], &[0.5, 0.5, 0.25, 0.0])).unwrap();
        assert_eq!(rows.activations(0).map(|row| row.feature).collect::<Vec<_>>(), [2]);
        assert!(rows.add(0, &[1 << TOKEN_BITS], &top(&[9, 1], &[0.5, 0.5])).unwrap_err().contains("1048576"));
    }
}
