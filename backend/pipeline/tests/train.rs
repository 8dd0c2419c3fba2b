//! `train-sae` on synthetic hidden states: learning, stopping and going on, and what is refused.
#![allow(clippy::unwrap_used)] // tests panic on purpose

#[path = "train/live.rs"]
mod live;

use half::f16;
use model::SaeFile;
use pipeline::train::{HiddenShards, Precision, Settings, TRAINING, TrainError, TrainOptions, TrainingRow, train};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use store::files::{names, read_training};

const D: usize = 16;
const LATENTS: usize = 64;
const K: usize = 4;
const BATCH: usize = 300;
const STEPS: u64 = 60;
/// Of each of two files: together less than the steps need, so that epochs change.
const TOKENS: usize = 5000;

/// Sums of three of forty directions.
fn tokens(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(77);
    let directions: Vec<f32> = (0..40 * D).map(|_| rng.random_range(-0.5..0.5)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out = vec![0.3; count * D];
    for row in out.chunks_exact_mut(D) {
        for _ in 0..3 {
            let (direction, strength) = (rng.random_range(0..40usize), rng.random_range(0.5f32..1.5));
            row.iter_mut().zip(&directions[direction * D..]).for_each(|(out, value)| *out += strength * value);
        }
    }
    out
}

fn write(path: &Path, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) {
    let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    fs::write(path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
}

fn write_hidden(path: &Path, values: &[f32], d: usize) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    write(path, "hidden", Dtype::F16, &[values.len() / d, d], &bytes);
}

/// A folder of hidden states in two files, and others that are nobody's business.
fn hidden(folder: &Path) -> PathBuf {
    let hidden = folder.join("hidden");
    fs::create_dir_all(&hidden).unwrap();
    for file in 0..2 {
        write_hidden(&hidden.join(format!("hidden-{file:05}.safetensors")), &tokens(TOKENS, file), D);
    }
    fs::write(hidden.join("manifest.json"), "{}").unwrap();
    fs::write(hidden.join(".hidden-00002.safetensors.tmp"), "half").unwrap();
    hidden
}

fn settings(shards: &HiddenShards) -> Settings {
    let mut settings = Settings::new(shards.tokens(), LATENTS, K, BATCH);
    settings.tokens = STEPS * BATCH as u64;
    settings.lr = 3e-3;
    settings.warmup_steps = 5;
    // Some latents die on the way: AuxK and the counters are part of what must go on.
    settings.dead_tokens = 4 * BATCH as u64;
    settings
}

fn options(out: &Path) -> TrainOptions {
    TrainOptions { out: out.to_path_buf(), save_every: 5 }
}

/// The tensors of a file by their names; headers may order them as they like.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// A log without what the clock says.
fn timeless(rows: Vec<TrainingRow>) -> Vec<TrainingRow> {
    rows.into_iter().map(|row| TrainingRow { tokens_per_second: 0.0, ..row }).collect()
}

#[test]
fn a_run_that_was_interrupted_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let shards = HiddenShards::open(&hidden(folder.path())).unwrap();
    for dtype in [Precision::F32, Precision::Bf16] {
        let settings = Settings { dtype, ..settings(&shards) };
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(format!("{name}-{dtype:?}")));
        let straight = train(&shards, &settings, &options(&whole), &mut |_| {}).unwrap();
        assert_eq!((straight.resumed_at, straight.log.len()), (0, STEPS as usize));
        assert!(straight.log.iter().any(|row| row.dead > 0), "AuxK had something to do");
        // It stops twice: right after step 27, of which 25 are in the checkpoint, and at 33, where 30 are.
        for stop in [27, 33] {
            let mut watch = |row: &TrainingRow| assert!(row.step != stop, "stopped on purpose");
            let stopped = catch_unwind(AssertUnwindSafe(|| train(&shards, &settings, &options(&parts), &mut watch)));
            assert!(stopped.is_err());
            assert!(!parts.join("cfg.json").exists(), "an SAE that is not finished is none yet");
        }
        // The log may be ahead of the checkpoint.
        let log = parts.join(TRAINING).join(names::TRAINING_LOG);
        let mut rows = read_training(&log).unwrap();
        assert_eq!(rows.len(), 30);
        rows.push(TrainingRow { step: 31, loss: 9.0, ..rows[29] });
        store::files::write_training(&log, &rows).unwrap();
        let resumed = train(&shards, &settings, &options(&parts), &mut |_| {}).unwrap();
        assert_eq!(resumed.resumed_at, 30);
        assert!(resumed.state == straight.state, "weights, moments and counters to the bit");
        assert_eq!(timeless(resumed.log), timeless(straight.log.clone()));
        assert_eq!(timeless(read_training(&log).unwrap()), timeless(straight.log));
        for file in ["sae.safetensors", "training/checkpoint.safetensors"] {
            assert!(tensors(&whole.join(file)) == tensors(&parts.join(file)), "{file}");
        }
        // Once more: nothing is left to do, and the same comes out.
        let again = train(&shards, &settings, &options(&parts), &mut |_| panic!("no step is left")).unwrap();
        assert_eq!((again.resumed_at, again.state == straight.state), (STEPS, true));
    }
}

#[test]
fn it_learns_and_what_it_writes_is_an_sae() {
    let folder = tempfile::tempdir().unwrap();
    let shards = HiddenShards::open(&hidden(folder.path())).unwrap();
    let mut settings = settings(&shards);
    settings.tokens = 400 * BATCH as u64;
    let out = folder.path().join("model.layers.3");
    let trained = train(&shards, &settings, &options(&out), &mut |_| {}).unwrap();
    let (first, last) = (trained.log[0], trained.log[399]);
    assert!(last.fvu < 0.5 * first.fvu && last.fvu < 0.3, "{first:?} to {last:?}");
    assert!(last.multi_topk_fvu < last.fvu, "four times as many latents reconstruct more");
    assert!(trained.log.iter().all(|row| row.l0 > 0.0 && row.l0 <= K as f32 && row.tokens_per_second > 0.0));
    assert!(trained.log.windows(2).all(|rows| rows[1].step == rows[0].step + 1));

    let file = SaeFile::open(&out).unwrap();
    assert_eq!((file.latents(), file.d_in(), file.k()), (LATENTS, D, K));
    let mut rows = Vec::new();
    file.decoder_rows(0..LATENTS, &mut rows);
    for row in rows.chunks_exact(D) {
        let norm: f32 = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
    }
    // The file computes what training computed: the same FVU on hidden states of the same kind.
    let x = tokens(2000, 9);
    let z = file.encode(&x).unwrap();
    let (_, b_dec) = file.biases();
    let (mut error, mut variance) = (0.0, 0.0);
    for i in 0..D {
        let mean = x.iter().skip(i).step_by(D).sum::<f32>() / 2000.0;
        variance += x.iter().skip(i).step_by(D).map(|value| (value - mean).powi(2)).sum::<f32>();
    }
    for (token, row) in x.chunks_exact(D).enumerate() {
        let mut left: Vec<f32> = row.iter().zip(&b_dec).map(|(x, b_dec)| x - b_dec).collect();
        for (latent, act) in z.row(token) {
            let direction = &rows[latent as usize * D..][..D];
            left.iter_mut().zip(direction).for_each(|(left, value)| *left -= act * value);
        }
        error += left.iter().map(|value| value * value).sum::<f32>();
    }
    let fvu = error / variance;
    assert!((fvu - last.fvu).abs() < 0.2 * last.fvu, "{fvu} in the file, {} in the log", last.fvu);
}

/// What a run says that must be refused; nothing may be left of it.
fn refused(folder: &Path, hidden: &Path, change: impl Fn(&mut Settings)) -> String {
    let out = folder.join("refused");
    let attempt = || -> Result<(), TrainError> {
        let shards = HiddenShards::open(hidden)?;
        let mut settings = settings(&shards);
        change(&mut settings);
        // What a checkpoint holds would stay.
        let options = TrainOptions { save_every: u64::MAX, ..options(&out) };
        train(&shards, &settings, &options, &mut |_| {}).map(drop)
    };
    let said = attempt().unwrap_err().to_string();
    assert!(!out.exists(), "{said}: something was left");
    said
}

#[test]
fn a_caches_folder_is_read_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let [inner, outer] =
        [hidden(folder.path()), folder.path().to_path_buf()].map(|path| HiddenShards::open(&path).unwrap());
    assert_eq!((inner.tokens(), inner.d_model()), (2 * TOKENS as u64, D));
    assert_eq!((outer.tokens(), outer.fingerprint()), (inner.tokens(), inner.fingerprint()));
}

#[test]
fn settings_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let hidden = hidden(folder.path());
    let cases: [(fn(&mut Settings), &str); 9] = [
        (|settings| settings.k = 0, "--k"),
        (|settings| settings.k = LATENTS + 1, "between 1 and the 64 latents"),
        (|settings| settings.latents = 0, "--latents"),
        (|settings| settings.batch_tokens = 1, "--batch-tokens"),
        (|settings| settings.batch_tokens = 2 * TOKENS + 1, "there are 10000 hidden states"),
        (|settings| settings.tokens = 10, "less than one batch"),
        (|settings| settings.lr = f64::NAN, "--lr"),
        (|settings| settings.decay_share = 1.5, "--decay-share"),
        (|settings| settings.auxk_alpha = -1.0, "--auxk-alpha"),
    ];
    for (change, says) in cases {
        let said = refused(folder.path(), &hidden, change);
        assert!(said.contains(says), "{said} lacks {says:?}");
    }
    let said = refused(folder.path(), &hidden, |settings| settings.lr = 1e30);
    assert!(said.contains("not finite") && said.contains("--lr"), "{said}");
}

#[test]
fn broken_hidden_states_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = hidden(folder.path());
    let second = good.join("hidden-00001.safetensors");
    let says = |hidden: &Path, says: &str| {
        let said = refused(folder.path(), hidden, |_| {});
        assert!(said.contains(says), "{said} lacks {says:?}");
    };
    says(&folder.path().join("missing"), "missing: ");
    let empty = folder.path().join("empty");
    fs::create_dir_all(&empty).unwrap();
    says(&empty, "no safetensors files here");
    fs::write(&second, "no tensors").unwrap();
    says(&good, "hidden-00001.safetensors: not a safetensors file");
    write(&second, "activations", Dtype::F32, &[1, 1], &[0; 4]);
    says(&good, "there is no tensor `hidden`; the file has: activations");
    write(&second, "hidden", Dtype::F32, &[4], &[0; 16]);
    says(&good, "[tokens, d_model] is read");
    write(&second, "hidden", Dtype::I32, &[2, D], &[0; 8 * D]);
    says(&good, "dtype I32");
    write_hidden(&second, &[0.5; 24], 12);
    says(&good, "hidden states of 12 dimensions, but those in");
    let mut values = tokens(TOKENS, 1);
    values[1234 * D + 5] = f32::INFINITY;
    write_hidden(&second, &values, D);
    says(&good, "hidden-00001.safetensors: `hidden` is not finite: row 1234");
    let whole = fs::read(good.join("hidden-00000.safetensors")).unwrap();
    fs::write(&second, &whole[..whole.len() - 7]).unwrap();
    says(&good, "hidden-00001.safetensors: not a safetensors file");
    write_hidden(&second, &[1.0; D], D);
    says(&second, "holds 1 tokens");
    write_hidden(&second, &vec![1.0; TOKENS * D], D);
    says(&second, "all tokens of the hidden states are alike");
}

#[test]
fn a_checkpoint_goes_on_only_with_its_own_settings() {
    let folder = tempfile::tempdir().unwrap();
    let hidden = hidden(folder.path());
    let shards = HiddenShards::open(&hidden).unwrap();
    let out = folder.path().join("out");
    let own = settings(&shards);
    train(&shards, &own, &options(&out), &mut |_| {}).unwrap();
    let said = |shards: &HiddenShards, settings: &Settings| {
        train(shards, settings, &options(&out), &mut |_| panic!("a step was made")).unwrap_err().to_string()
    };
    let other = Settings { k: 8, seed: 3, ..own.clone() };
    let message = said(&shards, &other);
    assert!(message.contains("--k is 4 there and 8 here") && message.contains("--seed is 0 there"), "{message}");
    assert!(message.contains("checkpoint.safetensors"), "{message}");
    let mut values = tokens(TOKENS, 1);
    values[3] += 1.0;
    write_hidden(&hidden.join("hidden-00001.safetensors"), &values, D);
    let changed = HiddenShards::open(&hidden).unwrap();
    let message = said(&changed, &settings(&changed));
    assert!(message.contains("other hidden states"), "{message}");

    let checkpoint = out.join(TRAINING).join("checkpoint.safetensors");
    let bytes = fs::read(&checkpoint).unwrap();
    fs::write(&checkpoint, &bytes[..bytes.len() / 2]).unwrap();
    let message = said(&shards, &own);
    assert!(message.contains("checkpoint.safetensors: is no checkpoint"), "{message}");
    fs::write(&checkpoint, &bytes).unwrap();
    fs::remove_file(out.join(TRAINING).join(names::TRAINING_LOG)).unwrap();
    assert!(said(&shards, &own).contains("log.parquet"));
    fs::remove_dir_all(out.join(TRAINING)).unwrap();
    assert!(said(&shards, &own).contains("holds an SAE that was not trained here"));
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let shards = HiddenShards::open(&hidden(folder.path())).unwrap();
    let (own, out) = (settings(&shards), folder.path().join("out"));
    let mut said = String::new();
    let mut watch = |row: &TrainingRow| {
        if row.step == 2 {
            said = train(&shards, &own, &options(&out), &mut |_| {}).unwrap_err().to_string();
        }
    };
    train(&shards, &own, &options(&out), &mut watch).unwrap();
    assert!(said.contains("another process is training here"), "{said}");
}
