//! `lmm-scope cache`: an image set to sparse activations, shard by shard, by any number of processes.
//!
//! ```text
//! begin: the set is listed once ─▶ images.parquet, manifest.json
//! run:   claim a shard ─▶ decode ─▶ model to the hook point ─▶ SAE ─▶ sort ─▶ shards/00000.parquet
//! finish: what was skipped and how much there is
//! ```
//!
//! A process that ends at any moment leaves whole files, files under a temporary name that are overwritten, and no
//! claims: they are locks of the operating system. Shards of one folder are equal whoever made them.
//!
//! Memory holds one shard's activations (16 bytes each) and a few decoded pictures, however many pictures there are.

mod error;
mod extractor;
mod folder;
mod hidden;
mod manifest;
mod read;
mod shard;
mod stream;

pub use error::CacheError;
pub use extractor::{Extractor, SaeWeights};
pub use folder::CacheFolder;
pub use manifest::{FORMAT, FilterOf, ImageSetOf, Manifest, Settings, TokenKind};
pub use read::{Cache, PictureTokens, Shard, Skipped, read};
pub use shard::{Job, MAX_SHARD_PICTURES, write_shard_file};
pub use store::files::Activation;
pub(crate) use stream::{Passed, pass};

use crate::images::{ImageSet, list};
use burn::tensor::backend::Backend;
use folder::{write_bytes, write_whole};
use serde::Serialize;
use std::{
    io::{BufWriter, Write},
    str::FromStr,
    time::{Duration, Instant},
};

/// Name of the lock under which a cache is begun and finished.
const SETUP: &str = "setup";
/// How long a process waits before it looks again whether another one has done its shard, or died.
const POLL: Duration = Duration::from_millis(200);
/// Pictures that a summary names; all are in `skipped.jsonl`.
const NAMED: usize = 20;

/// What happens before there is a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// Another process lists the pictures.
    Waiting,
    /// So many are listed.
    Listed(u32),
}

/// Goes on with the cache in a folder, or begins one there: lists the set and writes the manifest.
///
/// # Errors
/// When the folder holds another cache, or the set cannot be read.
pub fn begin(
    folder: &CacheFolder,
    settings: Settings,
    images: &ImageSet,
    date: String,
    report: &mut dyn FnMut(Beginning),
) -> Result<Manifest, CacheError> {
    let _setup = folder.lock(SETUP, || report(Beginning::Waiting))?;
    if folder.manifest().exists() {
        let manifest = folder.read_manifest()?;
        manifest.check(folder.path(), &settings, images)?;
        return Ok(manifest);
    }
    let path = folder.images();
    let listed =
        write_whole(&path, |file| Ok(list(images, &path, file, &mut |pictures| report(Beginning::Listed(pictures)))?))?;
    let manifest = Manifest::new(settings, images, listed, date);
    write_manifest(folder, &manifest)?;
    Ok(manifest)
}

/// Writes `manifest.json`.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_manifest(folder: &CacheFolder, manifest: &Manifest) -> Result<(), CacheError> {
    let path = folder.manifest();
    let mut json = serde_json::to_vec_pretty(manifest).map_err(|error| CacheError::other(&path, error))?;
    json.push(b'\n');
    write_bytes(&path, &json)
}

/// The shards that a process does: every `of`-th from `part` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub part: u32,
    pub of: u32,
}

impl Default for Share {
    /// All of them.
    fn default() -> Self {
        Self { part: 0, of: 1 }
    }
}

impl FromStr for Share {
    type Err = String;

    /// `0/4` to `3/4`.
    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
        let share = share.filter(|(part, of)| part < of).map(|(part, of)| Self { part, of });
        share.ok_or_else(|| format!("`{text}` is not a share such as 0/4, 1/4, 2/4 or 3/4"))
    }
}

impl Share {
    /// Whether a shard is in it.
    pub fn has(self, shard: u32) -> bool {
        shard % self.of == self.part
    }

    fn shards(self, all: u32) -> impl Iterator<Item = u32> {
        (self.part..all).step_by(self.of as usize)
    }
}

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Pictures that this process has done.
    pub pictures: u32,
    /// How many of them in a second.
    pub per_second: f64,
    /// Shards of its share that are done, whoever did them.
    pub shards_done: u32,
    pub shards: u32,
    /// Until the share is done, at the pace of all processes together; none before there is a pace.
    pub left: Option<Duration>,
}

/// Does the shards of a share that are not done, and waits for those that other processes do. What another process
/// leaves undone when it ends, this one does.
///
/// # Errors
/// What is wrong with the pictures, the model, or the folder. Shards that are done stay.
pub fn run<B: Backend>(job: &Job<'_, B>, share: Share, report: &mut dyn FnMut(&Progress)) -> Result<(), CacheError> {
    let shards: Vec<u32> = share.shards(job.manifest.shards).collect();
    let is_done = |shard: &u32| job.folder.shard(*shard).is_file();
    let mut pace = Pace::new(&shards, job.manifest, shards.iter().filter(|shard| is_done(shard)).count());
    loop {
        let mut others = false;
        for shard in &shards {
            if is_done(shard) {
                continue;
            }
            let Some(_claim) = job.folder.claim(*shard)? else {
                others = true;
                continue;
            };
            // Whoever had the claim may have done it after the first look.
            if !is_done(shard) {
                job.write_shard(*shard, &mut || report(&pace.after_picture()))?;
                pace.after_shard(shards.iter().filter(|shard| is_done(shard)).count());
            }
        }
        if !others {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// Measures how fast it goes.
struct Pace {
    begun: Instant,
    shards: usize,
    shard_pictures: f64,
    done_before: usize,
    done: usize,
    pictures: u32,
    in_shard: u32,
}

impl Pace {
    fn new(shards: &[u32], manifest: &Manifest, done: usize) -> Self {
        let shard_pictures = f64::from(manifest.settings.shard_pictures);
        let (begun, shards) = (Instant::now(), shards.len());
        Self { begun, shards, shard_pictures, done_before: done, done, pictures: 0, in_shard: 0 }
    }

    fn after_picture(&mut self) -> Progress {
        self.pictures += 1;
        self.in_shard += 1;
        let seconds = self.begun.elapsed().as_secs_f64().max(1e-3);
        let mine = f64::from(self.in_shard);
        let together = ((self.done - self.done_before) as f64 * self.shard_pictures + mine) / seconds;
        let left = (self.shards - self.done) as f64 * self.shard_pictures - mine;
        Progress {
            pictures: self.pictures,
            per_second: f64::from(self.pictures) / seconds,
            shards_done: self.done as u32,
            shards: self.shards as u32,
            left: Duration::try_from_secs_f64((left / together).max(0.0)).ok(),
        }
    }

    fn after_shard(&mut self, done: usize) {
        self.done = done.max(self.done_before);
        self.in_shard = 0;
    }
}

/// What is in a cache.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Whether all shards are done; if not, the rest is about those that are.
    pub complete: bool,
    pub shards_done: u32,
    pub shards: u32,
    /// Pictures that went through the model.
    pub pictures: u64,
    /// Pictures that could not be read.
    pub skipped: u64,
    /// The first of them.
    pub first_skipped: Vec<Skipped>,
    /// Tokens that are kept.
    pub tokens: u64,
    pub activations: u64,
    /// Of all shards' activations; hidden states are not counted.
    pub bytes: u64,
}

/// Adds up what is there. When all is, writes `skipped.jsonl` and tidies up.
///
/// # Errors
/// When a shard is damaged or of another cache.
pub fn finish(folder: &CacheFolder, manifest: &Manifest) -> Result<Summary, CacheError> {
    let _setup = folder.lock(SETUP, || {})?;
    let done: Vec<u32> = (0..manifest.shards).filter(|shard| folder.shard(*shard).is_file()).collect();
    let complete = done.len() == manifest.shards as usize;
    let mut summary =
        Summary { complete, shards_done: done.len() as u32, shards: manifest.shards, ..Summary::default() };
    if !complete {
        done.iter().try_for_each(|shard| summary.add(folder, manifest, *shard).map(drop))?;
        return Ok(summary);
    }
    let path = folder.skipped();
    write_whole(&path, |file| {
        let mut file = BufWriter::new(file);
        for shard in done {
            for skipped in summary.add(folder, manifest, shard)? {
                let line = serde_json::to_string(&skipped).map_err(|error| CacheError::other(&path, error))?;
                writeln!(file, "{line}").map_err(|source| CacheError::io(&path, source))?;
            }
            folder.forget_claims(shard);
        }
        file.flush().map_err(|source| CacheError::io(&path, source))
    })?;
    Ok(summary)
}

impl Summary {
    /// Adds a shard and hands out what it skipped.
    fn add(&mut self, folder: &CacheFolder, manifest: &Manifest, number: u32) -> Result<Vec<Skipped>, CacheError> {
        let path = folder.shard(number);
        let shard = read::shard_of(folder, manifest, number)?;
        self.bytes += std::fs::metadata(&path).map_err(|source| CacheError::io(&path, source))?.len();
        self.activations += shard.activations();
        self.pictures += shard.pictures().len() as u64;
        self.tokens += shard.pictures().iter().map(|picture| u64::from(picture.kept)).sum::<u64>();
        let skipped = shard.skipped().to_vec();
        self.skipped += skipped.len() as u64;
        let room = NAMED.saturating_sub(self.first_skipped.len());
        self.first_skipped.extend(skipped.iter().take(room).cloned());
        Ok(skipped)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn shares_divide_the_shards() {
        let mut all: Vec<u32> = (0..3).flat_map(|part| Share { part, of: 3 }.shards(10)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        assert_eq!("2/3".parse(), Ok(Share { part: 2, of: 3 }));
        for wrong in ["", "3/3", "1", "0/0", "-1/2", "a/b"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
