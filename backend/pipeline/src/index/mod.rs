//! `lmm-scope index`: a cache's shards to one data set in the order of features, with what is known about each feature.
//!
//! ```text
//! shards ─▶ merge (several passes if need be) ─▶ activations.parquet
//!            └─▶ statistics, sketches, examples ─▶ examples.parquet ─▶ pictures.parquet
//!                 └─▶ fires with, decoder neighbours, map, tokens ─▶ features.parquet ─▶ source.json, index.json
//! ```
//!
//! The files are those that the store imports, as it does the demo's. They are made in a folder of their own and get
//! their names when all are whole; the same cache and flags give the same bytes.
//!
//! Exact, from values as they are cached (half floats): everything but `firing_values`, which `together.rs` estimates
//! for features with more than 64 activations. Memory: what the merge is allowed, and about 3 KB a feature and a bit a
//! picture, however many activations there are; 1 KB a living feature more while the map is made.

mod counts;
mod error;
pub(crate) mod feature;
mod map;
mod merge;
mod neighbours;
mod pictures;
mod reader;
mod rows;
mod staging;
mod statistics;
mod together;
mod upload;

pub use error::IndexError;
pub use feature::TopLogits;
pub use map::map_features;
pub use reader::FeatureIndex;
pub use upload::Upload;

use crate::{
    cache::{self, Cache, FilterOf},
    images::ImageSet,
};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use merge::{Merged, at_once, merge_to};
use model::{Lmm, SaeFile};
use pictures::{Shown, picture_id, write_pictures};
use rows::Parts;
use serde::{Deserialize, Serialize};
use staging::Staging;
use statistics::{Asked, Studied, study_all};
use std::{
    fs,
    io::Write,
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};
use store::files::{
    ActivationsByFeature, ExampleWriter, names, write_by_feature, write_samples, write_source, write_texts,
};
use together::{SKETCH, Sketches};

/// Version of the format of `index.json` and `activations.parquet`.
pub const FORMAT: u32 = 1;
/// Fewest and most rows after which a row group of `activations.parquet` ends: few to read for one feature, but few
/// groups to list.
const ROWS_PER_GROUP: Range<u64> = 1 << 14..1 << 18;
/// Row groups that a large index has.
const GROUPS: u64 = 1 << 14;

/// What is made of which cache.
#[derive(Debug, Clone, Copy)]
pub struct IndexOptions<'a> {
    /// Folder of a cache that is complete.
    pub cache: &'a Path,
    /// Folder of the index; made if there is none.
    pub out: &'a Path,
    /// The SAE that the cache was made with, for neighbours and the map.
    pub sae: Option<&'a SaeFile>,
    /// The pictures that the cache was made from; without them, grey ones are shown.
    pub images: Option<&'a ImageSet>,
    /// The features of a cache that was made with a filter, rising.
    pub filter: Option<&'a [u32]>,
    /// Examples per feature and kind.
    pub examples: usize,
    /// Bars of the histograms; at least one.
    pub bins: usize,
    /// Bytes that the files of a merge may take while they are open.
    pub memory: u64,
    /// Threads that count; as many as there are cores if it is not said.
    pub threads: Option<usize>,
}

/// `index.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexManifest {
    pub format: u32,
    /// What the activations are made from.
    pub cache: cache::Manifest,
    /// Features with statistics: all, or those of the cache's filter.
    pub features: u32,
    /// Of them, those without activations.
    pub dead: u32,
    /// Pictures that went through the model.
    pub pictures: u32,
    /// Tokens that densities are counted over.
    pub tokens: u64,
    pub activations: u64,
    /// Pictures that examples show.
    pub shown: u32,
    pub examples_per_kind: u32,
    pub bins: u32,
    /// Overlaps of features with more activations than this are estimates.
    pub exact_overlap_up_to: u32,
    /// What else was known: the SAE's decoder, the model's unembedding, the pictures.
    pub decoder: bool,
    pub output_tokens: bool,
    pub images: bool,
    /// Of `lmm-scope`.
    pub version: String,
}

impl IndexManifest {
    /// Where the activations come from.
    pub fn provenance(&self) -> api::Provenance {
        rows::provenance(&self.cache, self.pictures)
    }
}

/// What a run has done.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    pub manifest: IndexManifest,
    /// Times that all activations were written: one, and one more for each time that not all files could be open.
    pub passes: u32,
    /// Of `activations.parquet`.
    pub bytes: u64,
    pub merge_secs: f64,
    /// Statistics and examples.
    pub statistics_secs: f64,
    /// Overlaps, neighbours, output tokens and pictures.
    pub rest_secs: f64,
}

/// Output tokens of decoder rows `[features, d_model]`, strongest first: what [`index`] is given as `words`.
pub fn output_tokens<B: Backend>(lmm: &Lmm<B>, rows: &[f32], d_model: usize) -> Vec<TopLogits> {
    let data = TensorData::new(rows.to_vec(), [rows.len() / d_model.max(1), d_model]);
    feature::top_logits(lmm, Tensor::<B, 2>::from_data(data, &lmm.device))
}

/// Threads that count.
pub(crate) struct Pool(Option<rayon::ThreadPool>);

impl Pool {
    fn new(threads: Option<usize>) -> Result<Self, IndexError> {
        let pool = threads.map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build()).transpose();
        Ok(Self(pool.map_err(|error| IndexError::System(format!("no threads: {error}")))?))
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

/// What the shards' footers say.
#[derive(Debug, Default)]
struct Survey {
    pictures: u32,
    tokens: u64,
    activations: u64,
    /// Positions of the base picture's patches, and their rows and columns; the same for all pictures.
    base: Range<u32>,
    grid: [u32; 2],
}

/// Makes an index; tells `say` what it does. With `words`, features get output tokens.
///
/// # Errors
/// What is wrong with the cache, the SAE or the pictures; a disk that takes no more. An older index in the folder is
/// then as it was.
pub fn index(
    options: &IndexOptions<'_>,
    words: Option<&mut dyn FnMut(&[f32]) -> Vec<TopLogits>>,
    say: &dyn Fn(&str),
) -> Result<Summary, IndexError> {
    let begun = Instant::now();
    let cache = Cache::open(options.cache)?;
    let listed = listed_features(&cache, options)?;
    let pool = Pool::new(options.threads)?;
    say("looking through the shards");
    let survey = survey(&cache)?;
    let staging = Staging::begin(options.out)?;
    let (path, passes) = merge(&cache, &survey, &staging, options.memory, say)?;
    let merged = begun.elapsed();

    let file = ActivationsByFeature::open(&path)?;
    let bytes = fs::metadata(&path).map_err(|source| IndexError::io(&path, source))?.len();
    let mut shown = Shown::new(cache.manifest.image_set.listed.pictures);
    let asked = Asked { base: survey.base.clone(), examples: options.examples, bins: options.bins.max(1) };
    say("counting");
    let (studied, sketches) = count(&cache, &file, &listed, &asked, &pool, &staging, &mut shown)?;
    let counted = begun.elapsed();

    let parts = Parts { options, cache: &cache, survey: &survey, pool: &pool, say };
    let output_tokens = words.is_some();
    parts.write_features(&staging, studied.as_slice(), sketches, words)?;
    say("writing the pictures that are shown");
    let shown = staging
        .write(names::PICTURES, |path, file| write_pictures(&cache, options.images, survey.grid, &shown, path, file))?;
    write_texts(&staging.at(names::TEXTS), &[])?;
    write_samples(&staging.at(names::SAMPLES), &[])?;
    let dead = studied.iter().filter(|one| one.activations == 0).count() as u32;
    write_source(&staging.at(names::SOURCE), &parts.source(studied.len() as u32 - dead))?;
    let manifest = IndexManifest {
        format: FORMAT,
        cache: cache.manifest.clone(),
        features: studied.len() as u32,
        dead,
        pictures: survey.pictures,
        tokens: survey.tokens,
        activations: survey.activations,
        shown,
        examples_per_kind: options.examples as u32,
        bins: asked.bins as u32,
        exact_overlap_up_to: SKETCH as u32,
        decoder: options.sae.is_some(),
        output_tokens,
        images: options.images.is_some(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    staging.write(names::INDEX, |path, file| {
        let mut json = serde_json::to_vec_pretty(&manifest).map_err(|error| IndexError::other(path, error))?;
        json.push(b'\n');
        file.write_all(&json).map_err(|source| IndexError::io(path, source))
    })?;
    drop(file);
    staging.commit()?;
    let secs = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64();
    Ok(Summary {
        manifest,
        passes,
        bytes,
        merge_secs: merged.as_secs_f64(),
        statistics_secs: secs(merged, counted),
        rest_secs: secs(counted, begun.elapsed()),
    })
}

/// The features that get statistics, rising.
fn listed_features(cache: &Cache, options: &IndexOptions<'_>) -> Result<Vec<u32>, IndexError> {
    let settings = &cache.manifest.settings;
    let wrong = |reason: &str| Err(IndexError::other(options.cache, reason));
    if settings.latents == 0 {
        return wrong("this cache has hidden states alone; make one with --sae");
    }
    if let Some(sae) = options.sae
        && (sae.latents() != settings.latents as usize || sae.d_in() != settings.d_model as usize)
    {
        let (latents, d) = (sae.latents(), sae.d_in());
        let reason = format!(
            "{latents} latents of {d} dimensions; the cache was made with {} of {}",
            settings.latents, settings.d_model
        );
        return Err(IndexError::other(sae.path(), reason));
    }
    match (&settings.filter, options.filter) {
        (None, None) => Ok((0..settings.latents).collect()),
        (Some(of), Some(filter)) if *of == FilterOf::of(filter) => Ok(filter.to_vec()),
        (Some(_), Some(_)) => wrong("this cache was made with another --filter; name the same"),
        (Some(_), None) => wrong("this cache was made with --filter; name the same, or dead features cannot be told"),
        (None, Some(_)) => wrong("this cache was made without --filter; leave it out"),
    }
}

fn survey(cache: &Cache) -> Result<Survey, IndexError> {
    let mut survey = Survey::default();
    for number in 0..cache.manifest.shards {
        let shard = cache.shard(number)?;
        survey.activations += shard.activations();
        for picture in shard.pictures() {
            let (base, grid) = (picture.base[0]..picture.base[1], picture.grid);
            if survey.pictures == 0 {
                (survey.base, survey.grid) = (base.clone(), grid);
            }
            let patches = u64::from(grid[0]) * u64::from(grid[1]);
            let fits = patches == u64::from(base.end.saturating_sub(base.start)) && patches <= 1 << 16;
            if (&survey.base, survey.grid) != (&base, grid) || !fits {
                let reason = format!("picture {} has a base of {grid:?} patches at {base:?}, others", picture.image);
                let reason = format!("{reason} {:?} at {:?}; a damaged shard", survey.grid, survey.base);
                return Err(IndexError::other(&cache.folder.shard(number), reason));
            }
            survey.pictures += 1;
            survey.tokens += u64::from(picture.kept);
        }
    }
    Ok(survey)
}

/// Writes `activations.parquet`, and tells where and in how many passes.
fn merge(
    cache: &Cache,
    survey: &Survey,
    staging: &Staging,
    memory: u64,
    say: &dyn Fn(&str),
) -> Result<(std::path::PathBuf, u32), IndexError> {
    say(&format!("sorting {} activations by feature", survey.activations));
    let (sources, passes) = merge_to(cache, staging.folder(), at_once(memory))?;
    let id = cache.manifest.id().map_err(|error| IndexError::other(cache.folder.path(), error))?;
    let per_group = (survey.activations / GROUPS).clamp(ROWS_PER_GROUP.start, ROWS_PER_GROUP.end) as usize;
    let (latents, texts) = (cache.manifest.settings.latents, vec![(reader::CACHE.to_owned(), id)]);
    let counts = staging.write(names::ACTIVATIONS, |path, file| {
        write_by_feature(path, file, Merged::open(cache, &sources)?, latents, per_group, texts)
    })?;
    for source in sources {
        if let merge::Source::Run(path) = source {
            fs::remove_file(&path).map_err(|source| IndexError::io(&path, source))?;
        }
    }
    let path = staging.at(names::ACTIVATIONS);
    match counts.iter().sum::<u64>() {
        rows if rows == survey.activations => Ok((path, passes + 1)),
        rows => Err(IndexError::other(&path, format!("{rows} of {} rows were merged", survey.activations))),
    }
}

/// Writes `examples.parquet`, and tells what is known about the listed features.
fn count(
    cache: &Cache,
    file: &ActivationsByFeature,
    listed: &[u32],
    asked: &Asked,
    pool: &Pool,
    staging: &Staging,
    shown: &mut Shown,
) -> Result<(Vec<Studied>, Sketches), IndexError> {
    let mut studied = Vec::with_capacity(listed.len());
    let mut sketches = Sketches::new();
    staging.write(names::EXAMPLES, |path, examples| {
        let mut writer = ExampleWriter::new(path, examples)?;
        study_all(file, asked, pool, &mut |mut one: Studied| {
            sketches.push(&one.sketch, one.activations);
            one.sketch = Vec::new();
            if listed.get(studied.len()) != Some(&one.feature) {
                return Ok(());
            }
            for example in std::mem::take(&mut one.examples) {
                shown.add(example.firing.picture as u32);
                let picture = picture_id(cache, example.firing.picture);
                writer.push(example.firing.row(one.feature, example.kind, example.rank, picture, example.bin))?;
            }
            studied.push(one);
            Ok(())
        })?;
        writer.finish().map_err(IndexError::from)
    })?;
    Ok((studied, sketches))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_decides_how_many_files_are_open() {
        assert_eq!([0, 9 << 20, 64 << 20, 1 << 40].map(at_once), [2, 2, 16, 200]);
    }
}
