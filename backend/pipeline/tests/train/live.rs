//! `train-sae --images`: the pocket model's hidden states without files, whole and in parts.

use super::{tensors, timeless};
use half::f16;
use model::{Cpu, Hook, Lmm};
use pipeline::cache::{self, CacheFolder, Extractor, FORMAT, Job, Share, TokenKind};
use pipeline::images::ImageSet;
use pipeline::train::{
    Batch, HiddenShards, LivePlace, LiveProgress, LiveTokens, Settings, TRAINING, Tokens, TrainOptions, Wanted, train,
};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use store::files::{names, read_pictures};

const D: usize = 192;
/// Patches of a picture and the newline after them.
const TOKENS: u64 = 65;
/// Pictures that are there, without the duplicate and the file that is none.
const PICTURES: u64 = 21;
const BUFFER: u32 = 4;
const STEPS: u64 = 24;
const BATCH: usize = 150;

fn pocket() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../public/pocket")
}

/// Pictures of the demo as files; the sixth again under another name, and a file that is no picture.
fn pictures(folder: &Path) -> ImageSet {
    let set = folder.join("pictures");
    fs::create_dir_all(&set).unwrap();
    let rows = read_pictures(&pocket().join(names::PICTURES)).unwrap();
    for (number, row) in rows.iter().take(PICTURES as usize).enumerate() {
        fs::write(set.join(format!("{number:02}.webp")), &row.webp).unwrap();
    }
    fs::copy(set.join("05.webp"), set.join("05 again.webp")).unwrap();
    fs::write(set.join("07 broken.webp"), "no picture").unwrap();
    ImageSet::open(&set, None).unwrap()
}

fn extractor() -> Extractor<Cpu> {
    let lmm = Lmm::<Cpu>::load(&pocket().join("model"), &Default::default()).unwrap();
    Extractor::new(lmm, None, Hook::Block(3), "<image>".into(), false, &[TokenKind::Image])
}

/// What a cache of the same hidden states is begun with.
fn cache_settings(shard_pictures: u32) -> cache::Settings {
    cache::Settings {
        format: FORMAT,
        model: "pocket".into(),
        hook_point: "model.layers.3".into(),
        dtype: "f32".into(),
        prompt: "<image>".into(),
        tokens: vec![TokenKind::Image],
        d_model: D as u32,
        hidden: true,
        shard_pictures,
        ..cache::Settings::default()
    }
}

fn live(images: &ImageSet, buffer: u32) -> LiveTokens<'_, Cpu> {
    let settings = cache_settings(buffer);
    LiveTokens { extractor: extractor(), images, settings, date: "today".into(), report: &|_| {} }
}

fn settings() -> Settings {
    let mut settings = Settings::new(STEPS * BATCH as u64, 256, 8, BATCH);
    settings.lr = 1e-3;
    settings.warmup_steps = 3;
    settings.dead_tokens = 3 * BATCH as u64;
    settings
}

fn options(out: PathBuf) -> TrainOptions {
    TrainOptions { out, save_every: 2 }
}

/// Rows of so many tokens from the beginning, in batches of `batch_tokens`.
fn first_rows(source: &dyn Tokens, folder: &Path, seed: u64, tokens: u64, batch_tokens: usize) -> Vec<Batch> {
    source.prepare(folder).unwrap();
    let enough = AtomicBool::new(false);
    let wanted = Wanted { seed, batch_tokens, step: 0, place: "", folder, enough: &enough };
    let mut batches: Vec<Batch> = Vec::new();
    source.stream(&wanted, &mut |batch| {
        batches.push(batch.unwrap());
        (batches.len() * batch_tokens) < tokens as usize
    });
    batches
}

/// Rows as the bits of half floats, sorted.
fn sorted(rows: &[f32]) -> Vec<Vec<u16>> {
    let bits = |row: &[f32]| row.iter().map(|value| f16::from_f32(*value).to_bits()).collect();
    let mut rows: Vec<Vec<u16>> = rows.chunks_exact(D).map(bits).collect();
    rows.sort_unstable();
    rows
}

#[test]
fn an_epoch_is_what_a_cache_keeps() {
    let folder = tempfile::tempdir().unwrap();
    let images = pictures(folder.path());
    let kept = CacheFolder::new(&folder.path().join("cache"));
    let manifest = cache::begin(&kept, cache_settings(8), &images, "today".into(), &mut |_| {}).unwrap();
    let extractor = extractor();
    let job = Job { folder: &kept, manifest: &manifest, images: &images, extractor: &extractor, filter: None };
    cache::run(&job, Share::default(), &mut |_| {}).unwrap();
    let shards = HiddenShards::open(kept.path()).unwrap();
    let tokens = PICTURES * TOKENS;
    assert_eq!(shards.tokens(), tokens);
    let files = first_rows(&shards, folder.path(), 1, tokens, tokens as usize).remove(0).rows;

    let live = live(&images, BUFFER);
    assert_eq!((live.d_model(), live.count()), (D, None));
    let rows = |seed: u64| first_rows(&live, &folder.path().join("list"), seed, 2 * tokens, tokens as usize);
    let epochs = rows(1);
    for epoch in &epochs {
        assert!(sorted(&epoch.rows) == sorted(&files), "the very same tokens");
    }
    assert!(epochs[0].rows != epochs[1].rows, "another epoch, another order");
    let again = rows(1);
    assert!(epochs == again, "to the bit, places included");
    let other = rows(2);
    assert!(other[0].rows != epochs[0].rows && sorted(&other[0].rows) == sorted(&files), "another seed");
    // Sizes of batches do not change the order.
    let small = first_rows(&live, &folder.path().join("list"), 1, tokens, 35);
    let small: Vec<f32> = small.into_iter().flat_map(|batch| batch.rows).collect();
    assert!(epochs[0].rows[..] == small[..epochs[0].rows.len()]);
    let place = LivePlace::read(&epochs[1].next).unwrap();
    assert_eq!((place.pictures, place.skipped), (2 * PICTURES, 1));
    assert_eq!(place.first_skipped[0].id, "07 broken.webp");
}

#[test]
fn a_run_that_was_interrupted_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let images = pictures(folder.path());
    let (source, settings) = (live(&images, BUFFER), settings());
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let straight = train(&source, &settings, &options(whole.clone()), &mut |_| {}).unwrap();
    assert_eq!((straight.resumed_at, straight.log.len()), (0, STEPS as usize));
    assert!(straight.log.iter().any(|row| row.dead > 0), "AuxK had something to do");
    assert!(straight.log[STEPS as usize - 1].fvu < straight.log[0].fvu, "it learns");
    // More than two epochs: stops lie in buffers of the first, the second and the third.
    assert!(settings.tokens > 2 * PICTURES * TOKENS);
    let mut reached = 0;
    for stop in [3, 8, 13, 22] {
        let seen = Mutex::new(Vec::new());
        let report = |progress: LiveProgress| seen.lock().unwrap().push(progress);
        let source = LiveTokens { report: &report, ..live(&images, BUFFER) };
        let mut watch = |row: &pipeline::train::TrainingRow| assert!(row.step != stop, "stopped on purpose");
        let stopped = catch_unwind(AssertUnwindSafe(|| train(&source, &settings, &options(parts.clone()), &mut watch)));
        assert!(stopped.is_err());
        assert!(!parts.join("cfg.json").exists(), "an SAE that is not finished is none yet");
        let seen = seen.lock().unwrap().clone();
        let listed = seen.iter().any(|progress| matches!(progress, LiveProgress::Listed(_)));
        assert_eq!(listed, reached == 0, "pictures are listed once");
        assert!(seen.iter().any(|progress| matches!(progress, LiveProgress::Filled { pictures: 1.., of: 4 })));
        reached = stop;
    }
    let resumed = train(&source, &settings, &options(parts.clone()), &mut |_| {}).unwrap();
    assert_eq!(resumed.resumed_at, 20);
    assert!(resumed.state == straight.state, "weights, moments, counters and place to the bit");
    assert_eq!(timeless(resumed.log), timeless(straight.log));
    for file in ["sae.safetensors", "training/checkpoint.safetensors"] {
        assert!(tensors(&whole.join(file)) == tensors(&parts.join(file)), "{file}");
    }
    let place = LivePlace::read(&straight.state.place).unwrap();
    assert!(place.pictures >= 2 * PICTURES && place.skipped == 1, "{place:?}");
}

#[test]
fn other_pictures_and_buffers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let images = pictures(folder.path());
    let (source, out) = (live(&images, BUFFER), folder.path().join("out"));
    let own = Settings { tokens: 2 * BATCH as u64, ..settings() };
    train(&source, &own, &options(out.clone()), &mut |_| {}).unwrap();
    let said = |source: &dyn Tokens| {
        train(source, &own, &options(out.clone()), &mut |_| panic!("a step was made")).unwrap_err().to_string()
    };
    let message = said(&live(&images, 5));
    assert!(message.contains("--buffer-pictures is 4 there and 5 here"), "{message}");
    let other = cache::Settings { dtype: "bf16".into(), ..cache_settings(BUFFER) };
    let message = said(&LiveTokens { settings: other, ..live(&images, BUFFER) });
    assert!(message.contains("begun with dtype \"f32\", but \"bf16\" is asked for"), "{message}");
    fs::write(folder.path().join("pictures/99.webp"), "another").unwrap();
    let more = ImageSet::open(&folder.path().join("pictures"), None).unwrap();
    let message = said(&live(&more, BUFFER));
    assert!(message.contains("other pictures"), "{message}");
    // The list is that of the first run still.
    assert!(out.join(TRAINING).join("source/images.parquet").is_file());
}

#[test]
fn a_folder_of_somebody_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (pictures(folder.path()), folder.path().join("out"));
    let file = out.join(TRAINING).join("source/notes.txt");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "of another program").unwrap();
    let started = train(&live(&images, BUFFER), &settings(), &options(out), &mut |_| panic!("a step was made"));
    let error = started.unwrap_err().to_string();
    assert!(error.contains("source: was not made by training"), "{error}");
    assert_eq!(fs::read_to_string(file).unwrap(), "of another program");
}

#[test]
fn a_set_without_readable_pictures_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("pictures");
    fs::create_dir_all(&set).unwrap();
    for number in 0..5 {
        fs::write(set.join(format!("{number}.png")), format!("no picture {number}")).unwrap();
    }
    let (images, out) = (ImageSet::open(&set, None).unwrap(), folder.path().join("out"));
    let error = train(&live(&images, 2), &settings(), &options(out.clone()), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("none of its 5 pictures can be read"), "{error}");
    assert!(!out.exists(), "something was left");
}
