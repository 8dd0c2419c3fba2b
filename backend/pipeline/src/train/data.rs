//! Hidden states on disk, and the order in which they are trained on.
//!
//! A folder of safetensors files, each with `hidden [tokens, d_model]` in f16, bf16 or f32, as `lmm-scope cache
//! --hidden` and `lmm-scope extract` write them. They stay in their files: memory holds a batch or two.

use super::{Batch, Tokens, TrainError, Wanted};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Bytes at both ends of a file's tensor that tell it from another with the same name and size.
const SAMPLE: usize = 1 << 12;

/// Hidden states in one or more files.
#[derive(Debug)]
pub struct HiddenShards {
    shards: Vec<Shard>,
    d_model: usize,
    tokens: u64,
    fingerprint: String,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    dtype: Dtype,
    /// Where the tensor begins in the file.
    start: usize,
    /// Number of its first token among all.
    first: u64,
    tokens: u64,
}

impl HiddenShards {
    /// Opens a folder's safetensors files in the order of their names, those of a cache's folder, or one such file.
    ///
    /// # Errors
    /// What is missing or damaged, files of different widths, fewer than two tokens.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let (mut shards, mut d_model, mut tokens) = (Vec::<Shard>::new(), 0, 0);
        let mut digest = Sha256::new();
        for file in shard_files(path)? {
            let (shard, d) = Shard::open(file, tokens)?;
            if let Some(before) = shards.first()
                && d != d_model
            {
                let reason =
                    format!("hidden states of {d} dimensions, but those in {} have {d_model}", before.path.display());
                return Err(TrainError::file(&shard.path, reason));
            }
            d_model = d;
            tokens += shard.tokens;
            shard.describe(d, &mut digest);
            shards.push(shard);
        }
        if tokens < 2 {
            return Err(TrainError::file(path, format!("holds {tokens} tokens; an SAE needs many")));
        }
        let fingerprint = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { shards, d_model, tokens, fingerprint })
    }

    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// How many there are.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// First digits of a hash of names, sizes and samples: other hidden states have another.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// `[count, d_model]` from `position` on, in the order's sequence.
    ///
    /// # Errors
    /// Hidden states that are not finite, with their file and row.
    pub fn batch(&self, order: &mut Order, position: u64, count: usize) -> Result<Vec<f32>, TrainError> {
        let tokens: Vec<u64> = (position..).take(count).map(|position| order.token_at(position)).collect();
        let mut out = vec![0.0; count * self.d_model];
        let rows = out.par_chunks_exact_mut(self.d_model).zip(&tokens);
        let bad = rows.filter_map(|(out, &token)| self.read(token, out).then_some(token)).min();
        match bad {
            None => Ok(out),
            Some(token) => {
                let shard = self.shard_of(token);
                let row = token - shard.first;
                Err(TrainError::file(&shard.path, format!("`hidden` is not finite: row {row} holds NaN or infinity")))
            }
        }
    }

    fn shard_of(&self, token: u64) -> &Shard {
        &self.shards[self.shards.partition_point(|shard| shard.first <= token) - 1]
    }

    /// Fills a row; true if it is not finite.
    fn read(&self, token: u64, out: &mut [f32]) -> bool {
        let shard = self.shard_of(token);
        let width = self.d_model * shard.dtype.bitsize() / 8;
        let start = shard.start + (token - shard.first) as usize * width;
        widen(&shard.map[start..start + width], shard.dtype, out);
        out.iter().any(|value| !value.is_finite())
    }
}

impl Tokens for HiddenShards {
    fn d_model(&self) -> usize {
        self.d_model
    }

    fn count(&self) -> Option<u64> {
        Some(self.tokens)
    }

    fn prepare(&self, _folder: &Path) -> Result<String, TrainError> {
        Ok(self.fingerprint.clone())
    }

    fn stream(&self, wanted: &Wanted<'_>, give: &mut dyn FnMut(Result<Batch, TrainError>) -> bool) {
        let mut order = Order::new(wanted.seed, self.tokens);
        for step in wanted.step.. {
            let position = step * wanted.batch_tokens as u64;
            let rows = self.batch(&mut order, position, wanted.batch_tokens);
            let failed = rows.is_err();
            if !give(rows.map(|rows| Batch { rows, next: String::new() })) || failed {
                return;
            }
        }
    }
}

fn shard_files(path: &Path) -> Result<Vec<PathBuf>, TrainError> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|source| TrainError::io(path, source))? {
        let file = entry.map_err(|source| TrainError::io(path, source))?.path();
        // A name with a dot in front is a file that is being written.
        let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && file.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(file);
        }
    }
    files.sort();
    // A cache has them in a folder of their own.
    let inner = path.join("hidden");
    if files.is_empty() && inner.is_dir() {
        return shard_files(&inner);
    }
    if files.is_empty() {
        return Err(TrainError::file(path, "no safetensors files here; `lmm-scope cache --hidden` writes them"));
    }
    Ok(files)
}

/// Maps a file that nobody changes while it is read.
pub(super) fn map_file(path: &Path) -> Result<Mmap, TrainError> {
    let file = File::open(path).map_err(|source| TrainError::io(path, source))?;
    // SAFETY: the map is read-only; a file that another process truncates while it is mapped is outside what any reader
    // of memory-mapped files can guard against.
    unsafe { Mmap::map(&file) }.map_err(|source| TrainError::io(path, source))
}

impl Shard {
    /// The file and its width.
    fn open(path: PathBuf, first: u64) -> Result<(Self, usize), TrainError> {
        let map = map_file(&path)?;
        let file = SafeTensors::deserialize(&map)
            .map_err(|error| TrainError::file(&path, format!("not a safetensors file: {error}")))?;
        let hidden = file.tensor("hidden").map_err(|_| {
            let mut names = file.names();
            names.sort_unstable();
            TrainError::file(&path, format!("there is no tensor `hidden`; the file has: {}", names.join(", ")))
        })?;
        let &[tokens, d_model] = hidden.shape() else {
            let reason = format!("`hidden` has shape {:?}; [tokens, d_model] is read", hidden.shape());
            return Err(TrainError::file(&path, reason));
        };
        if d_model == 0 {
            return Err(TrainError::file(&path, "`hidden` has no dimensions"));
        }
        let dtype = hidden.dtype();
        if !matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
            let reason = format!("`hidden` has dtype {dtype}; f16, bf16 and f32 are read");
            return Err(TrainError::file(&path, reason));
        }
        let start = hidden.data().as_ptr() as usize - map.as_ptr() as usize;
        Ok((Self { path, map, dtype, start, first, tokens: tokens as u64 }, d_model))
    }

    /// What tells it from another file, into a hash.
    fn describe(&self, d_model: usize, digest: &mut Sha256) {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        digest.update(format!("{name} {} {d_model} {}\n", self.tokens, self.dtype));
        let bytes = &self.map[self.start..self.start + self.tokens as usize * d_model * self.dtype.bitsize() / 8];
        digest.update(&bytes[..bytes.len().min(SAMPLE)]);
        digest.update(&bytes[bytes.len().saturating_sub(SAMPLE)..]);
    }
}

fn widen(bytes: &[u8], dtype: Dtype, out: &mut [f32]) {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        Dtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(out),
            _ => out.iter_mut().zip(pairs()).for_each(|(out, pair)| *out = f16::from_le_bytes(pair).to_f32()),
        },
        Dtype::BF16 => out.iter_mut().zip(pairs()).for_each(|(out, pair)| *out = bf16::from_le_bytes(pair).to_f32()),
        _ => {
            let words = bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]);
            out.iter_mut().zip(words).for_each(|(out, word)| *out = f32::from_le_bytes(word));
        }
    }
}

/// Neighbouring tokens that are read together.
const BLOCK: u64 = 128;
/// Blocks whose tokens are mixed.
const WINDOW: u64 = 256;

/// The sequence of all tokens, epoch after epoch, each in another order: blocks of neighbours are shuffled, then the
/// tokens of 256 blocks among themselves. So tokens of one picture are far apart, and a disk still reads in pieces.
///
/// A place in it depends on the seed and its number alone: going on after a stop needs no more than these.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    tokens: u64,
    /// Epoch and its blocks in their order.
    epoch: Option<u64>,
    blocks: Vec<u32>,
    /// Place among the blocks of the last one of all, which may be short.
    short: u64,
    /// Epoch and number of the window, and its tokens in their order.
    window: Option<(u64, u64)>,
    rows: Vec<u64>,
}

impl Order {
    pub fn new(seed: u64, tokens: u64) -> Self {
        Self { seed, tokens, epoch: None, blocks: Vec::new(), short: 0, window: None, rows: Vec::new() }
    }

    /// The token at a place of the sequence.
    pub fn token_at(&mut self, position: u64) -> u64 {
        let (epoch, place) = (position / self.tokens, position % self.tokens);
        if self.epoch != Some(epoch) {
            self.blocks = (0..self.tokens.div_ceil(BLOCK) as u32).collect();
            let mut rng = random(self.seed, epoch, 0);
            self.blocks.shuffle(&mut rng);
            let last = self.blocks.len() as u32 - 1;
            self.short = self.blocks.iter().position(|block| *block == last).unwrap_or_default() as u64;
            self.epoch = Some(epoch);
        }
        let mut window = place / (WINDOW * BLOCK);
        if self.window_begin(window + 1) <= place {
            window += 1;
        }
        if self.window != Some((epoch, window)) {
            self.fill_window(epoch, window);
        }
        self.rows[(place - self.window_begin(window)) as usize]
    }

    /// Place in the epoch of a window's first token.
    fn window_begin(&self, window: u64) -> u64 {
        let before = (window * WINDOW).min(self.blocks.len() as u64);
        let missing = self.tokens.next_multiple_of(BLOCK) - self.tokens;
        before * BLOCK - if self.short < before { missing } else { 0 }
    }

    fn fill_window(&mut self, epoch: u64, window: u64) {
        let mut rng = random(self.seed, epoch, window + 1);
        let end = ((window + 1) * WINDOW).min(self.blocks.len() as u64);
        let blocks = &self.blocks[(window * WINDOW) as usize..end as usize];
        self.rows.clear();
        for &block in blocks {
            let first = u64::from(block) * BLOCK;
            self.rows.extend(first..(first + BLOCK).min(self.tokens));
        }
        self.rows.shuffle(&mut rng);
        self.window = Some((epoch, window));
    }
}

/// Random numbers of one part of an epoch, which those of no other part repeat.
pub(super) fn random(seed: u64, epoch: u64, part: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((epoch << 32) | part);
    rng
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn every_epoch_has_every_token_once_in_another_order() {
        for tokens in [2, 127, 128, 129, WINDOW * BLOCK, WINDOW * BLOCK + 1, 3 * WINDOW * BLOCK - 77] {
            let mut order = Order::new(5, tokens);
            let epochs: Vec<Vec<u64>> = (0..2)
                .map(|epoch| (epoch * tokens..(epoch + 1) * tokens).map(|position| order.token_at(position)).collect())
                .collect();
            for epoch in &epochs {
                let mut sorted = epoch.clone();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..tokens), "{tokens} tokens");
            }
            // Backwards, and from the middle: the same.
            let place = tokens + tokens / 2;
            assert_eq!(order.token_at(place), epochs[1][(place - tokens) as usize]);
            assert_eq!(order.token_at(0), epochs[0][0]);
            assert_eq!(Order::new(5, tokens).token_at(place), epochs[1][(place - tokens) as usize]);
            if tokens > 100 {
                assert_ne!(epochs[0], epochs[1]);
                assert_ne!(epochs[0], (0..tokens).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn halves_and_floats_are_read_alike() {
        let values = [1.0f32, -0.5, 0.25, 3.0];
        let f16s: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        let f32s: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        // Off by a byte: where a cast would not be aligned.
        let shifted: Vec<u8> = std::iter::once(0).chain(f16s.iter().copied()).collect();
        for (bytes, dtype) in
            [(&f16s[..], Dtype::F16), (&bf16s, Dtype::BF16), (&f32s, Dtype::F32), (&shifted[1..], Dtype::F16)]
        {
            let mut out = [0.0; 4];
            widen(bytes, dtype, &mut out);
            assert_eq!(out, values, "{dtype}");
        }
    }
}
