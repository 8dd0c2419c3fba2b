//! How fast a cache is sorted by feature, what memory it takes, and how long it takes to read one feature:
//! `make bench-index`.
//!
//! `bench_index [MILLIONS] [MEMORY_MB]` makes so many million activations (10) of 131,072 features in shards, half of
//! them of the hundredth part of the features that fires most, indexes them, and reads features at random.

use anyhow::{Context, Result};
use half::f16;
use pipeline::{
    cache::{
        Activation, CacheFolder, FORMAT, ImageSetOf, Manifest, PictureTokens, Settings, write_manifest,
        write_shard_file,
    },
    images::{Listed, Place},
    index::{FeatureIndex, IndexOptions, index},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{collections::BTreeSet, fs::File, path::Path, time::Instant};
use store::files::{ImageListWriter, ImageRow};

const LATENTS: u32 = 131_072;
const SHARD_PICTURES: u32 = 64;
/// Patches of a picture, 24 × 24.
const TOKENS: u32 = 576;
/// Activations of a picture.
const PER_PICTURE: u64 = 4096;
const READS: usize = 2000;

fn main() -> Result<()> {
    let number = |at: usize, otherwise: u64| std::env::args().nth(at).map_or(Ok(otherwise), |text| text.parse());
    let (millions, memory) = (number(1, 10)?, number(2, 1024)?);
    let place = tempfile::tempdir()?;
    let (cache, out) = (place.path().join("cache"), place.path().join("index"));
    let begun = Instant::now();
    let activations = make_cache(&cache, millions * 1_000_000)?;
    println!("{activations} activations of {LATENTS} features made in {:.1} s", begun.elapsed().as_secs_f64());

    let before = peak();
    let options = IndexOptions {
        cache: &cache,
        out: &out,
        sae: None,
        images: None,
        filter: None,
        examples: 60,
        bins: 24,
        memory: memory << 20,
        threads: None,
    };
    let begun = Instant::now();
    let summary = index(&options, None, &|_| {})?;
    let seconds = begun.elapsed().as_secs_f64();
    let pace = |seconds: f64| activations as f64 / seconds / 1e6;
    println!("\n| | |\n|---|---:|");
    println!("| passes | {} |", summary.passes);
    println!("| all, million activations/s | {:.2} |", pace(seconds));
    println!("| merge, million activations/s | {:.2} |", pace(summary.merge_secs));
    println!("| statistics and examples, million activations/s | {:.2} |", pace(summary.statistics_secs));
    println!("| overlaps and the rest, s | {:.2} |", summary.rest_secs);
    println!("| bytes per activation | {:.2} |", summary.bytes as f64 / activations as f64);
    match (before, peak()) {
        (Some(before), Some(after)) => {
            println!("| peak memory, MiB (before it: {}) | {} |", before >> 20, after >> 20);
        }
        _ => println!("| peak memory | this system does not say |"),
    }
    read_features(&out)
}

/// Reads features at random, dense and sparse ones alike.
fn read_features(out: &Path) -> Result<()> {
    let begun = Instant::now();
    let index = FeatureIndex::open(out)?;
    let opened = begun.elapsed().as_secs_f64();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut times = Vec::with_capacity(READS);
    let mut rows = 0;
    for _ in 0..READS {
        let feature = random.random_range(0..LATENTS);
        let begun = Instant::now();
        rows += index.activations(feature)?.len();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((READS as f64 * share) as usize).min(READS - 1)];
    println!("| open, ms | {:.2} |", opened * 1e3);
    println!("| one feature, p50, ms | {:.3} |", at(0.5));
    println!("| one feature, p99, ms | {:.3} |", at(0.99));
    println!("| one feature, slowest, ms | {:.3} |", at(1.0));
    println!("| activations per feature read | {} |", rows / READS);
    println!("| bytes per feature read | {} |", index.file().bytes_read() / READS as u64);
    Ok(())
}

/// Tells how many activations there are: about as many as are asked for.
fn make_cache(path: &Path, activations: u64) -> Result<u64> {
    let pictures = u32::try_from(activations.div_ceil(PER_PICTURE))?;
    let shards = pictures.div_ceil(SHARD_PICTURES);
    let settings = Settings {
        format: FORMAT,
        model: "synthetic@0".into(),
        sae_revision: "0".into(),
        hook_point: "model.layers.24".into(),
        dtype: "f16".into(),
        k: 256,
        latents: LATENTS,
        d_model: 4096,
        shard_pictures: SHARD_PICTURES,
        ..Settings::default()
    };
    let listed = Listed { pictures, digest: "0".repeat(64), ..Listed::default() };
    let image_set = ImageSetOf { name: "synthetic".into(), layout: "folder".into(), listed, ..ImageSetOf::default() };
    let manifest = Manifest { settings, image_set, shards, date: "2025-01-01".into(), version: "0".into() };
    let folder = CacheFolder::new(path);
    write_manifest(&folder, &manifest)?;
    list(&folder, pictures)?;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut made = 0;
    for shard in 0..shards {
        let mut places = BTreeSet::new();
        for image in manifest.images_of(shard) {
            for _ in 0..PER_PICTURE {
                let features = if random.random_bool(0.5) { LATENTS / 100 } else { LATENTS };
                places.insert([random.random_range(0..features), image, random.random_range(0..TOKENS)]);
            }
        }
        made += places.len() as u64;
        let rows = places.into_iter().map(|[feature, image, token]| {
            let value = f16::from_f32(random.random_range(0.05..8.0));
            Activation { feature, image, token, value }
        });
        let pictures: Vec<PictureTokens> = manifest.images_of(shard).map(tokens_of).collect();
        write_shard_file(&folder, &manifest, shard, &pictures, &[], rows)?;
    }
    Ok(made)
}

fn tokens_of(image: u32) -> PictureTokens {
    PictureTokens { image, tokens: TOKENS, kept: TOKENS, picture: [0, TOKENS], base: [0, TOKENS], grid: [24, 24] }
}

fn list(folder: &CacheFolder, pictures: u32) -> Result<()> {
    let path = folder.images();
    let mut file = File::create(&path).with_context(|| path.display().to_string())?;
    let mut writer = ImageListWriter::new(&path, &mut file)?;
    for image in 0..pictures {
        let place = serde_json::to_string(&Place::File { file: format!("{image}.png") })?;
        writer.push(ImageRow { image, id: format!("{image}"), first: image, place, ..ImageRow::default() })?;
    }
    Ok(writer.finish()?)
}

/// The most memory that this process has had, in bytes, where the system says so.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}
