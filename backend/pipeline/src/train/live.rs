//! Hidden states straight from the model, a buffer of pictures at a time.
//!
//! ```text
//! blocks of 16 neighbouring pictures, shuffled ─▶ buffer: so many pictures through the model, tokens mixed ─▶ batches
//! ```
//!
//! What a buffer holds follows from seed, number and settings alone. So a place is the number of a buffer and how many
//! of its tokens are gone, and to go on takes one buffer made anew. While one is trained on, the next is made: memory
//! holds two, in half precision, as a cache's files have them.
//!
//! The list of pictures is made once, in the form of a cache's (`manifest.json`, `images.parquet`), whose
//! `shardPictures` are those of a buffer.

use super::data::random;
use super::tokens::Enough;
use super::{Batch, Tokens, TrainError, Wanted};
use crate::cache::{Beginning, CacheError, CacheFolder, Extractor, Passed, Settings, Skipped, begin, pass};
use crate::images::{ImageSet, read_list};
use burn::tensor::backend::Backend;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

/// Neighbouring pictures that stay together, so that a disk reads in pieces.
const BLOCK: u32 = 16;
/// Pictures that could not be read and are named; the others are counted.
const NAMED: usize = 20;

/// Hidden states of an image set.
pub struct LiveTokens<'a, B: Backend> {
    pub extractor: Extractor<B>,
    pub images: &'a ImageSet,
    /// What decides the hidden states, but for the pictures. `shard_pictures` are those of a buffer, at least one.
    pub settings: Settings,
    /// Of the day, for the list of pictures.
    pub date: String,
    /// Is told what there is to wait for.
    pub report: &'a (dyn Fn(LiveProgress) + Sync),
}

/// What happens before the first batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LiveProgress {
    /// So many pictures are listed.
    Listed(u32),
    /// So many pictures of the first buffer went through the model.
    Filled { pictures: u64, of: u64 },
}

/// Where a batch ends, and what was seen up to there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePlace {
    /// Number of the buffer, counted through all epochs.
    pub buffer: u64,
    /// Tokens of it that are gone. The counts below are about all buffers of which tokens are gone.
    pub token: u64,
    /// Pictures that went through the model, once in each epoch.
    pub pictures: u64,
    /// Pictures that could not be read, of those that came up in the first epoch.
    pub skipped: u64,
    /// The first 20 of them.
    pub first_skipped: Vec<Skipped>,
}

impl LivePlace {
    /// What [`super::State::place`] says; `None` if it is not a place in an image set.
    pub fn read(place: &str) -> Option<Self> {
        serde_json::from_str(place).ok()
    }

    /// Counts a buffer, of the first epoch or not.
    fn count(&mut self, buffer: &Buffer, first_epoch: bool) {
        self.pictures += buffer.states.len() as u64;
        if first_epoch {
            self.skipped += buffer.skipped.len() as u64;
            let room = NAMED.saturating_sub(self.first_skipped.len());
            self.first_skipped.extend(buffer.skipped.iter().take(room).cloned());
        }
    }
}

/// Some pictures' tokens, mixed.
struct Buffer {
    number: u64,
    /// By picture: `[tokens, d_model]`.
    states: Vec<Vec<f16>>,
    /// Picture and token, in the order in which they are trained on.
    order: Vec<(u32, u32)>,
    skipped: Vec<Skipped>,
}

impl<B: Backend> Tokens for LiveTokens<'_, B> {
    fn d_model(&self) -> usize {
        self.settings.d_model as usize
    }

    /// How many tokens a picture has, the model says.
    fn count(&self) -> Option<u64> {
        None
    }

    fn prepare(&self, folder: &Path) -> Result<String, TrainError> {
        let list = CacheFolder::new(folder);
        if list.manifest().exists() {
            let (there, here) = (list.read_manifest()?.settings.shard_pictures, self.settings.shard_pictures);
            if there != here {
                let reason = format!(
                    "belongs to another run: --buffer-pictures is {there} there and {here} here; give its settings, \
                     or another --out"
                );
                return Err(TrainError::file(folder, reason));
            }
        }
        let manifest = begin(&list, self.settings.clone(), self.images, self.date.clone(), &mut |beginning| {
            if let Beginning::Listed(pictures) = beginning {
                (self.report)(LiveProgress::Listed(pictures));
            }
        })?;
        manifest.id().map_err(|error| TrainError::file(folder, error))
    }

    fn stream(&self, wanted: &Wanted<'_>, give: &mut dyn FnMut(Result<Batch, TrainError>) -> bool) {
        if let Err(error) = self.batches(wanted, give) {
            give(Err(error));
        }
    }
}

impl<B: Backend> LiveTokens<'_, B> {
    fn batches(
        &self,
        wanted: &Wanted<'_>,
        give: &mut dyn FnMut(Result<Batch, TrainError>) -> bool,
    ) -> Result<(), TrainError> {
        let list = CacheFolder::new(wanted.folder);
        let pictures = list.read_manifest()?.image_set.listed.pictures;
        let from = match wanted.place {
            "" => LivePlace::default(),
            place => LivePlace::read(place)
                .ok_or_else(|| TrainError::file(wanted.folder, format!("`{place}` is no place in an image set")))?,
        };
        let filler = Filler { live: self, list: &list, pictures, wanted, first: from.buffer };
        let per_epoch = filler.per_epoch();
        std::thread::scope(|scope| {
            let _enough = Enough(wanted.enough);
            // Whoever sends waits until it is taken: one buffer is used up while the next is made.
            let (sender, buffers) = sync_channel(0);
            scope.spawn(move || filler.fill_all(&sender));
            let mut mixer = Mixer { d_model: self.d_model(), batch_tokens: wanted.batch_tokens, rows: Vec::new() };
            let mut place = from.clone();
            for buffer in buffers {
                let buffer: Buffer = buffer?;
                let begun = buffer.number == from.buffer && from.token > 0;
                if !begun {
                    place.count(&buffer, buffer.number < per_epoch);
                }
                let gone = if begun { from.token } else { 0 };
                if gone > buffer.order.len() as u64 {
                    let reason = format!("buffer {} has fewer tokens than were taken of it before", buffer.number);
                    return Err(TrainError::file(wanted.folder, reason));
                }
                (place.buffer, place.token) = (buffer.number, gone);
                if !mixer.use_up(&buffer, &mut place, give)? {
                    return Ok(());
                }
            }
            Ok(())
        })
    }
}

/// Cuts buffers into batches.
struct Mixer {
    d_model: usize,
    batch_tokens: usize,
    /// The batch that is not full yet.
    rows: Vec<f32>,
}

impl Mixer {
    /// Hands out what the buffer holds from the place on; false if nobody wants more.
    fn use_up(
        &mut self,
        buffer: &Buffer,
        place: &mut LivePlace,
        give: &mut dyn FnMut(Result<Batch, TrainError>) -> bool,
    ) -> Result<bool, TrainError> {
        let (d, batch_tokens, rows) = (self.d_model, self.batch_tokens, &mut self.rows);
        let mut left = &buffer.order[place.token as usize..];
        while !left.is_empty() {
            let held = rows.len();
            let (now, later) = left.split_at(left.len().min(batch_tokens - held / d));
            left = later;
            place.token += now.len() as u64;
            rows.resize(held + now.len() * d, 0.0);
            rows[held..].par_chunks_exact_mut(d).zip(now).for_each(|(row, (picture, token))| {
                let start = *token as usize * d;
                buffer.states[*picture as usize][start..start + d].convert_to_f32_slice(row);
            });
            if rows.len() == batch_tokens * d {
                if left.is_empty() {
                    // Nobody has to make a buffer anew of which nothing is left.
                    (place.buffer, place.token) = (buffer.number + 1, 0);
                }
                let next = serde_json::to_string(place).map_err(|error| TrainError::Asked(error.to_string()))?;
                if !give(Ok(Batch { rows: std::mem::take(rows), next })) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Makes buffers.
struct Filler<'a, B: Backend> {
    live: &'a LiveTokens<'a, B>,
    list: &'a CacheFolder,
    /// Of the set, duplicates and unreadable ones included.
    pictures: u32,
    wanted: &'a Wanted<'a>,
    /// Number of the buffer that comes first.
    first: u64,
}

impl<B: Backend> Filler<'_, B> {
    fn per_epoch(&self) -> u64 {
        u64::from(self.pictures.div_ceil(self.live.settings.shard_pictures.max(1))).max(1)
    }

    /// Makes one buffer after the other, until nobody takes them any more. An error is the last that it sends.
    fn fill_all(&self, sender: &SyncSender<Result<Buffer, TrainError>>) {
        let per_epoch = self.per_epoch();
        let mut sequence: Option<(u64, Vec<u32>)> = None;
        let mut empty = 0;
        for number in self.first.. {
            let (epoch, window) = (number / per_epoch, number % per_epoch);
            let (_, order) = match sequence.take().filter(|(of, _)| *of == epoch) {
                Some(same) => sequence.insert(same),
                None => sequence.insert((epoch, epoch_order(self.wanted.seed, epoch, self.pictures))),
            };
            let each = self.live.settings.shard_pictures.max(1) as usize;
            let begin = window as usize * each;
            let filled = self.fill(number, &order[begin..(begin + each).min(order.len())]);
            let filled = match filled {
                Ok(Some(mut buffer)) => {
                    empty = if buffer.order.is_empty() { empty + 1 } else { 0 };
                    buffer.order.shuffle(&mut random(self.wanted.seed, epoch, window + 1));
                    Ok(buffer)
                }
                Ok(None) => return,
                Err(error) => Err(error),
            };
            let failed = filled.is_err();
            if sender.send(filled).is_err() || failed {
                return;
            }
            if empty == per_epoch {
                let reason = format!("none of its {} pictures can be read", self.pictures);
                sender.send(Err(TrainError::file(self.live.images.root(), reason))).ok();
                return;
            }
        }
    }

    /// The tokens of some pictures, in the pictures' order; `None` if nobody waits for them any more.
    fn fill(&self, number: u64, images: &[u32]) -> Result<Option<Buffer>, TrainError> {
        let Self { live, list, wanted, .. } = self;
        let mut pictures = Vec::with_capacity(images.len());
        for block in images.chunk_by(|a, b| a + 1 == *b) {
            let (first, last) = (block[0], block[block.len() - 1]);
            pictures.extend(read_list(&list.images(), first..last + 1).map_err(CacheError::from)?);
        }
        let mut buffer = Buffer { number, states: Vec::new(), order: Vec::new(), skipped: Vec::new() };
        let enough: &AtomicBool = wanted.enough;
        pass(&live.extractor, live.images.root(), pictures, true, &mut |passed| {
            match passed {
                Passed::Skipped(skipped) => buffer.skipped.push(skipped),
                Passed::Encoded(_, encoded) => buffer.push(encoded.hidden.unwrap_or_default(), live.d_model()),
            }
            if number == self.first {
                let (pictures, of) = (buffer.states.len() as u64, images.len() as u64);
                (live.report)(LiveProgress::Filled { pictures, of });
            }
            Ok(if enough.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok((!enough.load(Ordering::Relaxed)).then_some(buffer))
    }
}

impl Buffer {
    /// Takes a picture's hidden states `[tokens, d_model]`. What is too large for a half float becomes the largest.
    fn push(&mut self, mut states: Vec<f32>, d_model: usize) {
        let picture = self.states.len() as u32;
        self.order.extend((0..(states.len() / d_model) as u32).map(|token| (picture, token)));
        let (low, high) = (f16::MIN.to_f32(), f16::MAX.to_f32());
        states.iter_mut().for_each(|value| *value = value.clamp(low, high));
        let mut halves = vec![f16::ZERO; states.len()];
        halves.convert_from_f32_slice(&states);
        self.states.push(halves);
    }
}

/// All pictures of an epoch, in the order in which they come up.
fn epoch_order(seed: u64, epoch: u64, pictures: u32) -> Vec<u32> {
    let mut blocks: Vec<u32> = (0..pictures.div_ceil(BLOCK)).collect();
    blocks.shuffle(&mut random(seed, epoch, 0));
    let images = blocks.into_iter().flat_map(|block| block * BLOCK..((block + 1) * BLOCK).min(pictures));
    images.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn every_epoch_has_every_picture_once_in_another_order() {
        for pictures in [1, 15, 16, 17, 1000] {
            let epochs = [0, 1].map(|epoch| epoch_order(3, epoch, pictures));
            assert_eq!(epochs[0], epoch_order(3, 0, pictures));
            for epoch in &epochs {
                let mut sorted = epoch.clone();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..pictures), "{pictures} pictures");
            }
            if pictures == 1000 {
                assert!(epochs[0] != epochs[1] && epochs[0] != epoch_order(4, 0, pictures));
            }
        }
    }

    /// A buffer of pictures with so many tokens, each of which holds its own number.
    fn buffer(number: u64, first: usize, tokens: &[usize]) -> Buffer {
        let mut buffer = Buffer { number, states: Vec::new(), order: Vec::new(), skipped: Vec::new() };
        let mut next = first;
        for &count in tokens {
            buffer.push((next..next + count).flat_map(|token| [token as f32, -1e9]).collect(), 2);
            next += count;
        }
        buffer
    }

    #[test]
    fn batches_cross_buffers_and_say_where_they_end() {
        let buffers = [buffer(0, 0, &[3, 2]), buffer(1, 5, &[]), buffer(2, 5, &[4, 1]), buffer(3, 10, &[2])];
        let mut mixer = Mixer { d_model: 2, batch_tokens: 5, rows: Vec::new() };
        let mut batches = Vec::new();
        let mut place = LivePlace::default();
        let mut give = |batch: Result<Batch, TrainError>| {
            batches.push(batch.unwrap());
            true
        };
        for buffer in &buffers[..3] {
            place.count(buffer, true);
            (place.buffer, place.token) = (buffer.number, 0);
            assert!(mixer.use_up(buffer, &mut place, &mut give).unwrap());
        }
        // From the middle of one, over its end.
        mixer.batch_tokens = 3;
        for (buffer, token) in [(&buffers[2], 4), (&buffers[3], 0)] {
            (place.buffer, place.token) = (buffer.number, token);
            mixer.use_up(buffer, &mut place, &mut give).unwrap();
        }
        let ends: Vec<(u64, u64, u64)> = batches
            .iter()
            .map(|batch| LivePlace::read(&batch.next).unwrap())
            .map(|place| (place.buffer, place.token, place.pictures))
            .collect();
        assert_eq!(ends, [(1, 0, 2), (3, 0, 4), (4, 0, 4)]);
        let firsts: Vec<Vec<f32>> =
            batches.iter().map(|batch| batch.rows.chunks_exact(2).map(|row| row[0]).collect()).collect();
        let tokens = |range: std::ops::Range<u8>| range.map(f32::from).collect::<Vec<_>>();
        assert_eq!(firsts, [tokens(0..5), tokens(5..10), tokens(9..12)]);
        assert!(batches.iter().flat_map(|batch| batch.rows.chunks_exact(2)).all(|row| row[1] == -65504.0));
        assert_eq!(LivePlace::read(""), None);
    }
}
