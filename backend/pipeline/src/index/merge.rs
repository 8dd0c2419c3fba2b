//! Shards that are sorted by feature to one sequence that is: a merge of as many files at once as the memory allows, in
//! several passes over temporary files if there are more.

use super::IndexError;
use crate::cache::{Activation, Cache, Shard};
use half::f16;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    fs::{self, File},
    ops::Range,
    path::{Path, PathBuf},
};
use store::files::{ActivationFile, write_activations};

/// What an open file takes: a batch of 65,536 rows that is decoded and one that is used, pages, dictionaries, footer.
pub(super) const OPEN_BYTES: u64 = 4 << 20;
/// Systems let a process open 256 files and more.
const MOST_OPEN: u64 = 200;

/// How many files are merged at once.
pub(super) fn at_once(memory: u64) -> usize {
    (memory / OPEN_BYTES).clamp(2, MOST_OPEN) as usize
}

/// Rows in the order of their places; an error ends them.
type Rows = Box<dyn Iterator<Item = Result<Activation, IndexError>>>;

/// A sorted file.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Shard(u32),
    /// What an earlier pass has merged.
    Run(PathBuf),
}

/// Merges until at most `at_once` files are left, and tells how many passes it took. Temporary files go into `folder`.
pub(super) fn merge_to(cache: &Cache, folder: &Path, at_once: usize) -> Result<(Vec<Source>, u32), IndexError> {
    let mut sources: Vec<Source> = (0..cache.manifest.shards).map(Source::Shard).collect();
    let mut passes = 0;
    while sources.len() > at_once {
        let mut merged = Vec::with_capacity(sources.len().div_ceil(at_once));
        for (number, group) in sources.chunks(at_once).enumerate() {
            if let [alone] = group {
                merged.push(alone.clone());
                continue;
            }
            let path = folder.join(format!("run-{passes}-{number:05}.parquet"));
            write_run(cache, group, &path)?;
            for source in group {
                if let Source::Run(path) = source {
                    fs::remove_file(path).map_err(|source| IndexError::io(path, source))?;
                }
            }
            merged.push(Source::Run(path));
        }
        sources = merged;
        passes += 1;
    }
    Ok((sources, passes))
}

fn write_run(cache: &Cache, group: &[Source], path: &Path) -> Result<(), IndexError> {
    let mut failure = None;
    let rows = Merged::open(cache, group)?.map_while(|row| row.map_err(|error| failure = Some(error)).ok());
    let mut file = File::create(path).map_err(|source| IndexError::io(path, source))?;
    write_activations(path, &mut file, rows, Vec::new())?;
    failure.map_or(Ok(()), Err)
}

/// The rows of several sources as one sequence.
pub(super) struct Merged {
    sources: Vec<Rows>,
    /// Of each source, the value of the row that is next.
    values: Vec<f16>,
    /// Of each source that has one, the place of the next row, smallest first.
    next: BinaryHeap<Reverse<([u32; 3], usize)>>,
}

impl Merged {
    /// # Errors
    /// When a source is missing or damaged.
    pub fn open(cache: &Cache, sources: &[Source]) -> Result<Self, IndexError> {
        let mut merged = Self { sources: Vec::new(), values: Vec::new(), next: BinaryHeap::new() };
        for source in sources {
            let mut rows: Rows = match source {
                Source::Shard(shard) => Box::new(CheckedShard::open(cache, *shard)?),
                Source::Run(path) => Box::new(ActivationFile::open(path)?.map(|row| row.map_err(IndexError::from))),
            };
            let first = rows.next().transpose()?;
            if let Some(first) = first {
                merged.next.push(Reverse((first.place(), merged.sources.len())));
            }
            merged.values.push(first.map_or(f16::ZERO, |first| first.value));
            merged.sources.push(rows);
        }
        Ok(merged)
    }
}

impl Iterator for Merged {
    type Item = Result<Activation, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut top = self.next.peek_mut()?;
        let Reverse(([feature, image, token], source)) = *top;
        let row = Activation { feature, image, token, value: self.values[source] };
        match self.sources[source].next() {
            Some(Ok(next)) => {
                self.values[source] = next.value;
                *top = Reverse((next.place(), source));
            }
            Some(Err(error)) => {
                let _ = PeekMut::pop(top);
                return Some(Err(error));
            }
            None => {
                let _ = PeekMut::pop(top);
            }
        }
        Some(Ok(row))
    }
}

/// A shard whose rows are those that its manifest allows and its footer counts.
struct CheckedShard {
    rows: Shard,
    path: PathBuf,
    latents: u32,
    images: Range<u32>,
    left: u64,
}

impl CheckedShard {
    fn open(cache: &Cache, shard: u32) -> Result<Self, IndexError> {
        let rows = cache.shard(shard)?;
        let left = rows.activations();
        let (latents, images) = (cache.manifest.settings.latents, cache.manifest.images_of(shard));
        Ok(Self { rows, path: cache.folder.shard(shard), latents, images, left })
    }

    fn check(&mut self, row: &Activation) -> Result<(), IndexError> {
        self.left = self.left.saturating_sub(1);
        let Activation { feature, image, token, value } = *row;
        let wrong = if feature >= self.latents {
            format!("the SAE has {} features", self.latents)
        } else if !self.images.contains(&image) {
            format!("the shard is of images {} to {}", self.images.start, self.images.end.saturating_sub(1))
        } else if !(value > f16::ZERO && value.is_finite()) {
            format!("the value is {value}")
        } else {
            return Ok(());
        };
        let place = format!("feature {feature}, image {image}, token {token}");
        Err(damaged(&self.path, &format!("{place}: {wrong}")))
    }
}

impl Iterator for CheckedShard {
    type Item = Result<Activation, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.rows.next() {
            Some(Ok(row)) => Some(self.check(&row).map(|()| row)),
            Some(Err(error)) => {
                self.left = 0;
                Some(Err(error.into()))
            }
            None if self.left > 0 => {
                let left = std::mem::take(&mut self.left);
                Some(Err(damaged(&self.path, &format!("{left} rows are missing"))))
            }
            None => None,
        }
    }
}

fn damaged(path: &Path, reason: &str) -> IndexError {
    IndexError::other(path, format!("a damaged shard ({reason}); remove it and run `lmm-scope cache` again"))
}
