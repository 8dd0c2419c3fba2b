//! SAEs of several layouts to shards and back; folders with a history; what is refused.
#![allow(clippy::unwrap_used)] // tests panic on purpose

use api::shards::{MANIFEST, MAX_SHARD_BYTES, SaeManifest, ShardFile, Tier, TierShards};
use half::f16;
use model::SaeFile;
use model::sae::TopK;
use pipeline::quantize::{HiddenStates, Packed, QuantizeOptions, ensure, quantize, read_manifest, sha256_of_file};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// SAEs that SAELens and others wrote: 72 latents of 20 dimensions, k = 7.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/sae").join(name)
}

const LATENTS: usize = 72;
const D: usize = 20;
const K: usize = 7;

fn run(options: &QuantizeOptions) -> SaeManifest {
    quantize(options, &|_| ()).unwrap()
}

fn refused(options: &QuantizeOptions) -> String {
    let error = quantize(options, &|_| ()).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A filter that lists these latents for the folder's hook point.
fn filter(folder: &Path, hook_point: &str, latents: &[u32]) -> PathBuf {
    let path = folder.join("filter.json");
    fs::write(&path, serde_json::json!({ hook_point: latents }).to_string()).unwrap();
    path
}

/// All tiers, with the decoder.
fn everything(name: &str, folder: &TempDir, slice: &[u32]) -> QuantizeOptions {
    QuantizeOptions {
        filter: Some(filter(folder.path(), name, slice)),
        decoder: true,
        ..QuantizeOptions::new(fixture(name), folder.path().join("shards"), &Tier::ALL)
    }
}

/// Tensors of a shard, by name: dtype, shape, bytes.
fn tensors(folder: &Path, shard: &ShardFile) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let path = folder.join(&shard.file);
    assert_eq!(sha256_of_file(&path).unwrap(), shard.sha256);
    assert!(shard.file.contains(&shard.sha256[..12]), "{}", shard.file);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, shard.bytes);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |view: &TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().iter().map(|(name, view)| (name.clone(), stored(view))).collect()
}

fn f32_values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The rows in a tier's files, and the latents of a slice, after checking dtypes and shapes against `api::shards`.
fn read_rows(folder: &Path, tier: Tier, shards: &[ShardFile]) -> (Vec<f32>, Vec<u32>) {
    let width = tier.width(D as u32) as usize;
    let (dtype, columns, side) = match tier {
        Tier::F16 => (Dtype::F16, width, None),
        Tier::Int8 => (Dtype::I8, width, Some(("scale", Dtype::F32, vec![]))),
        Tier::Int4 => (Dtype::U8, width / 2, Some(("scale", Dtype::F16, vec![width / 32]))),
        Tier::Slice => (Dtype::F16, width, Some(("latents", Dtype::I32, vec![]))),
    };
    let (mut all, mut latents) = (Vec::new(), Vec::new());
    for shard in shards {
        let rows = shard.rows as usize;
        let mut tensors = tensors(folder, shard);
        let (found, shape, weight) = tensors.remove("weight").unwrap();
        assert_eq!((found, shape), (dtype, vec![rows, columns]), "{tier}");
        let mut packed = Packed { weight, scale: Vec::new() };
        if let Some((name, dtype, further)) = &side {
            let (found, shape, bytes) = tensors.remove(*name).unwrap();
            assert_eq!((found, shape), (*dtype, [vec![rows], further.clone()].concat()), "{tier}");
            if *name == "scale" {
                packed.scale = bytes;
            } else {
                latents.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
        }
        assert!(tensors.is_empty(), "{tier} has more: {tensors:?}");
        let mut values = Vec::new();
        packed.unpack(tier, D as u32, &mut values);
        all.extend(values);
    }
    (all, latents)
}

/// Where a file's tensors begin, by name.
fn starts(folder: &Path, shard: &ShardFile) -> BTreeMap<String, u64> {
    let bytes = fs::read(folder.join(&shard.file)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors.map(|(name, entry)| (name, entry["data_offsets"][0].as_u64().unwrap())).collect()
}

/// Half a step of the tier, for each weight of a row.
fn half_steps(tier: Tier, row: &[f32]) -> Vec<f32> {
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    match tier {
        // Eleven bits, and what is below the smallest normal number.
        Tier::F16 | Tier::Slice => row.iter().map(|value| value.abs() / 2048.0 + 3e-8).collect(),
        Tier::Int8 => vec![largest(row) / 127.0 * 0.5001; row.len()],
        Tier::Int4 => {
            row.chunks(32).flat_map(|group| vec![largest(group) / 7.0 * 1.001 * 0.5001; group.len()]).collect()
        }
    }
}

fn assert_rows(found: &[f32], expected: &[f32], tier: Tier, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (row, (found, expected)) in found.chunks_exact(D).zip(expected.chunks_exact(D)).enumerate() {
        for ((found, expected), allowed) in found.iter().zip(expected).zip(half_steps(tier, expected)) {
            assert!((found - expected).abs() <= allowed, "{what}, row {row}: {found} and {expected}");
        }
    }
}

#[test]
fn every_tier_of_every_layout_comes_back_within_half_a_step() {
    let slice = [3, 17, 40, 71];
    for name in ["reference", "sparsify_bf16", "sae_lens_topk", "sae_lens_topk_rescaled"] {
        let folder = tempfile::tempdir().unwrap();
        let options = everything(name, &folder, &slice);
        let manifest = run(&options);
        assert_eq!(manifest.check(), Ok(()));
        assert_eq!(read_manifest(&options.out).unwrap(), manifest);
        assert_eq!((manifest.hook_point.as_str(), manifest.k as usize), (name, K));
        assert_eq!((manifest.d_model as usize, manifest.latents as usize), (D, LATENTS));
        let file = SaeFile::open(&fixture(name)).unwrap();
        assert_eq!(manifest.source_sha256, sha256_of_file(file.path()).unwrap());
        assert_eq!(manifest.tiers.iter().map(|tier| tier.tier).collect::<Vec<_>>(), Tier::ALL);

        let biases = tensors(&options.out, &manifest.biases);
        let (b_enc, b_dec) = file.biases();
        assert_eq!((&biases["b_enc"].1, f32_values(&biases["b_enc"].2)), (&vec![LATENTS], b_enc));
        assert_eq!((&biases["b_dec"].1, f32_values(&biases["b_dec"].2)), (&vec![D], b_dec));

        let (mut encoder, mut decoder) = (Vec::new(), Vec::new());
        file.encoder_rows(0..LATENTS, &mut encoder);
        file.decoder_rows(0..LATENTS, &mut decoder);
        for TierShards { tier, rows, shards, decoder: decoder_shards, agreement } in &manifest.tiers {
            assert!(agreement.is_none());
            for (matrix, shards, whole) in [("encoder", shards, &encoder), ("decoder", decoder_shards, &decoder)] {
                let (found, latents) = read_rows(&options.out, *tier, shards);
                assert_eq!(found.len(), *rows as usize * D);
                for shard in shards {
                    // A decoder's scales are there when its rows stream past.
                    let starts = starts(&options.out, shard);
                    let first = starts["weight"] == 0;
                    assert_eq!(first, matrix == "encoder" || starts.len() == 1, "{tier} {matrix}: {starts:?}");
                }
                let expected: Vec<f32> = if *tier == Tier::Slice {
                    assert_eq!(latents, slice);
                    slice.iter().flat_map(|&latent| whole[latent as usize * D..][..D].to_vec()).collect()
                } else {
                    whole.clone()
                };
                assert_rows(&found, &expected, *tier, &format!("{tier} {matrix} of {name}"));
            }
        }
    }
}

#[test]
fn files_stay_below_the_limit_and_share_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let max_shard_bytes = 4096 + 500;
    let options = QuantizeOptions { max_shard_bytes, ..everything("reference", &folder, &[1, 2, 3]) };
    let manifest = run(&options);
    assert_eq!(manifest.check(), Ok(()));
    assert!(manifest.files().all(|file| file.bytes <= max_shard_bytes), "{manifest:?}");
    let halves = manifest.tier(Tier::F16).unwrap();
    // 10 rows of 48 bytes fit.
    assert_eq!(halves.shards.iter().map(|shard| shard.rows).collect::<Vec<_>>(), [9; 8]);
    assert_eq!(halves.bytes(), halves.shards.iter().map(|shard| shard.bytes).sum::<u64>());
    let (found, _) = read_rows(&options.out, Tier::F16, &halves.shards);
    let mut encoder = Vec::new();
    SaeFile::open(&fixture("reference")).unwrap().encoder_rows(0..LATENTS, &mut encoder);
    assert_rows(&found, &encoder, Tier::F16, "f16");
    let error = refused(&QuantizeOptions { max_shard_bytes: 4100, ..options });
    assert!(error.contains("does not fit in a shard"), "{error}");
}

#[test]
fn running_again_changes_nothing_and_removes_what_is_left_over() {
    let folder = tempfile::tempdir().unwrap();
    let options = everything("reference", &folder, &[5, 6]);
    let first = run(&options);
    let files = names(&options.out);
    assert_eq!(files.len(), 2 + 2 * Tier::ALL.len());
    assert_eq!(run(&options), first);
    assert_eq!(names(&options.out), files);

    // Left by runs that were killed, by earlier ones, and by people.
    let write = |name: &str| fs::write(options.out.join(name), "x").unwrap();
    write(".f16-000.1234.0.tmp");
    write(".int8-001.1234.1.tmp");
    let old = fs::File::options().write(true).open(options.out.join(".f16-000.1234.0.tmp")).unwrap();
    old.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
    write("int8-000-0123456789ab.safetensors");
    write("notes.txt");
    let fewer = QuantizeOptions { tiers: vec![Tier::Int4, Tier::F16, Tier::Int4], decoder: false, ..options.clone() };
    let manifest = run(&fewer);
    assert_eq!(manifest.tiers.iter().map(|tier| tier.tier).collect::<Vec<_>>(), [Tier::F16, Tier::Int4]);
    let mut expected: BTreeSet<String> = manifest.files().map(|file| file.file.clone()).collect();
    expected.extend([MANIFEST, "notes.txt", ".int8-001.1234.1.tmp"].map(str::to_owned));
    assert_eq!(names(&options.out), expected, "a run may be going on that writes the young temporary file");
}

/// A TopK SAE in the reference layout, in f32.
fn write_sae(folder: &Path, encoder: &[f32], decoder: &[f32], d: usize, k: usize) {
    let latents = encoder.len() / d;
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let tensors = [
        ("encoder.weight", vec![latents, d], bytes(encoder)),
        ("encoder.bias", vec![latents], bytes(&vec![0.0; latents])),
        ("W_dec", vec![latents, d], bytes(decoder)),
        ("b_dec", vec![d], bytes(&vec![0.0; d])),
    ];
    let views =
        tensors.iter().map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::create_dir_all(folder).unwrap();
    let file = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
    fs::write(folder.join("sae.safetensors"), file).unwrap();
    let config = serde_json::json!({ "num_latents": latents, "k": k, "d_in": d });
    fs::write(folder.join("cfg.json"), config.to_string()).unwrap();
}

/// Numbers between -1 and 1 that look random.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

#[test]
fn weights_that_a_tier_cannot_hold_are_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (sae, out) = (folder.path().join("sae"), folder.path().join("out"));
    let mut encoder = numbers(10 * 4, 1);
    encoder[7 * 4 + 1] = -70_000.0;
    let mut decoder = numbers(10 * 4, 2);
    write_sae(&sae, &encoder, &decoder, 4, 2);
    let options = |tiers: &[Tier]| QuantizeOptions::new(&sae, &out, tiers);
    let error = refused(&options(&[Tier::Int8, Tier::F16]));
    assert!(error.contains("latent 7: its encoder weights reach 70000") && error.contains("±65504"), "{error}");
    assert!(!out.exists(), "a folder that was made goes again");
    let kept = run(&options(&[Tier::Int8, Tier::Int4]));
    assert!(kept.tier(Tier::F16).is_none());

    encoder[7 * 4 + 1] = f32::NAN;
    decoder[2 * 4] = f32::INFINITY;
    write_sae(&sae, &encoder, &decoder, 4, 2);
    let error = refused(&options(&[Tier::Int4]));
    assert!(error.contains("latent 7: its encoder weights hold NaN"), "{error}");
    encoder[7 * 4 + 1] = 1.0;
    write_sae(&sae, &encoder, &decoder, 4, 2);
    let error = refused(&QuantizeOptions { decoder: true, ..options(&[Tier::Int8]) });
    assert!(error.contains("latent 2: its decoder weights hold inf"), "{error}");
    decoder.fill(f32::INFINITY);
    write_sae(&sae, &encoder, &decoder, 4, 2);
    let hidden = Some(HiddenStates { name: "states".into(), values: vec![1.0; 8] });
    let error = refused(&QuantizeOptions { hidden, ..options(&[Tier::Int8]) });
    assert!(error.contains("`W_dec` holds NaN, infinite"), "{error}");
    assert_eq!(read_manifest(&out).unwrap(), kept, "the folder is as it was");
    assert_eq!(names(&out).len(), 1 + kept.files().count());
}

#[test]
fn what_contradicts_itself_or_the_sae_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = everything("reference", &folder, &[1]);
    let hidden = |count: usize| Some(HiddenStates { name: "states".into(), values: vec![0.5; count] });
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let sae = |name: &str| QuantizeOptions { sae: fixture(name), ..good.clone() };
    for (expected, options) in [
        ("no tier", QuantizeOptions { tiers: Vec::new(), ..good.clone() }),
        ("a slice needs a filter", QuantizeOptions { filter: None, ..good.clone() }),
        (
            "latent 72 does not exist",
            QuantizeOptions { filter: Some(filter(&other, "reference", &[72])), ..good.clone() },
        ),
        ("no whole number of hidden states", QuantizeOptions { hidden: hidden(D + 1), ..good.clone() }),
        ("no whole number of hidden states", QuantizeOptions { hidden: hidden(0), ..good.clone() }),
        ("nothing", sae("nothing")),
        ("its activation is Relu", sae("sae_lens_standard")),
        ("its activation is JumpRelu", sae("sae_lens_jumprelu")),
    ] {
        let error = refused(&options);
        assert!(error.contains(expected), "{error} lacks {expected:?}");
        assert!(!good.out.exists(), "{expected}");
    }
    let error = refused(&QuantizeOptions { out: file.clone(), ..good });
    assert!(error.starts_with(&file.display().to_string()), "{error}");
}

#[test]
fn an_encoder_that_does_not_subtract_b_dec_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let sae = folder.path().join("sae");
    fs::create_dir(&sae).unwrap();
    fs::copy(fixture("sae_lens_topk/sae_weights.safetensors"), sae.join("sae_weights.safetensors")).unwrap();
    let config = fs::read_to_string(fixture("sae_lens_topk/cfg.json")).unwrap();
    let options = QuantizeOptions::new(&sae, folder.path().join("out"), &[Tier::F16]);
    for (from, to, expected) in [
        ("\"apply_b_dec_to_input\": true", "\"apply_b_dec_to_input\": false", "does not subtract b_dec"),
        ("\"normalize_activations\": \"none\"", "\"normalize_activations\": \"layer_norm\"", "normalised (LayerNorm)"),
    ] {
        let changed = config.replace(from, to);
        assert_ne!(changed, config, "{from}");
        fs::write(sae.join("cfg.json"), changed).unwrap();
        let error = refused(&options);
        assert!(error.contains(expected), "{error}");
    }
}

/// What `TopK` says about each token.
fn features(z: &TopK, token: usize) -> BTreeMap<u32, f32> {
    z.row(token).filter(|(_, act)| *act > 0.0).collect()
}

#[test]
fn tiers_are_compared_with_f32() {
    const WIDE: usize = 64;
    let folder = tempfile::tempdir().unwrap();
    let sae = folder.path().join("model.layers.3");
    // Weights that f16 holds, so that its tier is the SAE itself.
    let encoder: Vec<f32> = numbers(300 * WIDE, 3).iter().map(|w| f16::from_f32(*w).to_f32()).collect();
    write_sae(&sae, &encoder, &encoder, WIDE, 8);
    let slice: Vec<u32> = (0..300).step_by(3).collect();
    let values = numbers(50 * WIDE, 5);
    let options = QuantizeOptions {
        filter: Some(filter(folder.path(), "model.layers.3", &slice)),
        hidden: Some(HiddenStates { name: "hidden.safetensors".into(), values: values.clone() }),
        ..QuantizeOptions::new(&sae, folder.path().join("out"), &Tier::ALL)
    };
    let manifest = run(&options);
    let [halves, int8, int4, slice] = [Tier::F16, Tier::Int8, Tier::Int4, Tier::Slice]
        .map(|tier| manifest.tier(tier).unwrap().agreement.clone().unwrap());
    for exact in [&halves, &slice] {
        assert_eq!((exact.overlap, exact.overlap_min, exact.value_error), (1.0, 1.0, 0.0), "{exact:?}");
        assert_eq!(exact.fvu, exact.fvu_f32);
        assert_eq!((exact.hidden.as_str(), exact.tokens), ("hidden.safetensors", 50));
    }
    assert!(int8.overlap > 0.95 && int8.overlap_min >= 0.75, "{int8:?}");
    assert!(int8.value_error > 0.0 && int8.value_error < 0.01, "{int8:?}");
    assert!(int4.overlap > 0.5 && int4.overlap < int8.overlap, "{int4:?}");
    assert!(int4.value_error > int8.value_error && int4.value_error < 0.1, "{int4:?}");
    assert_eq!((int8.fvu_f32, int4.fvu_f32), (halves.fvu, halves.fvu));

    // The variance by another way: the SAE's own encoder, and sums over all tokens.
    let file = SaeFile::open(&sae).unwrap();
    let z = file.encode(&values).unwrap();
    let (mut residual, mut variance) = (0.0, 0.0);
    for channel in 0..WIDE {
        let mean = (0..50).map(|token| f64::from(values[token * WIDE + channel])).sum::<f64>() / 50.0;
        for token in 0..50 {
            let x = f64::from(values[token * WIDE + channel]);
            let rows = features(&z, token).into_iter();
            let y = rows.map(|(latent, act)| f64::from(act) * f64::from(encoder[latent as usize * WIDE + channel]));
            residual += (x - y.sum::<f64>()).powi(2);
            variance += (x - mean).powi(2);
        }
    }
    assert!((halves.fvu - residual / variance).abs() < 1e-4 * halves.fvu, "{} and {}", halves.fvu, residual / variance);
}

#[test]
fn one_token_and_many_can_be_compared_on() {
    let folder = tempfile::tempdir().unwrap();
    for tokens in [1, 5000] {
        let hidden = Some(HiddenStates { name: "states".into(), values: numbers(tokens * D, 9) });
        let options = QuantizeOptions {
            hidden,
            ..QuantizeOptions::new(fixture("reference"), folder.path().join("out"), &[Tier::Int8])
        };
        let agreement = run(&options).tiers[0].agreement.clone().unwrap();
        assert_eq!(agreement.tokens, tokens.min(4096) as u32);
        assert!(agreement.fvu.is_finite() && agreement.overlap > 0.5, "{agreement:?}");
    }
}

#[test]
fn a_server_uses_what_fits_and_makes_what_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let sae = folder.path().join("model.layers.1");
    let cache = folder.path().join("cache");
    let encoder = numbers(30 * 16, 1);
    write_sae(&sae, &encoder, &encoder, 16, 4);
    let made = ensure(&sae, Some(&cache)).unwrap();
    assert_eq!((made.made, &made.folder), (true, &sae.canonicalize().unwrap().join("browser")));
    let tiers: Vec<Tier> = made.manifest.tiers.iter().map(|tier| tier.tier).collect();
    assert_eq!(tiers, [Tier::F16, Tier::Int8, Tier::Int4]);
    assert!(made.manifest.tiers.iter().all(|tier| !tier.decoder.is_empty()));
    let found = ensure(&sae, None).unwrap();
    assert_eq!((found.made, &found.manifest, &found.folder), (false, &made.manifest, &made.folder));

    // A file that is cut off, another k, other weights.
    let shard = made.folder.join(&made.manifest.tiers[1].shards[0].file);
    fs::write(&shard, "cut off").unwrap();
    assert!(ensure(&sae, None).unwrap().made);
    assert_eq!(sha256_of_file(&shard).unwrap(), made.manifest.tiers[1].shards[0].sha256);
    write_sae(&sae, &encoder, &encoder, 16, 5);
    let other = ensure(&sae, None).unwrap();
    assert_eq!((other.made, other.manifest.k), (true, 5));
    write_sae(&sae, &numbers(30 * 16, 2), &encoder, 16, 5);
    let other = ensure(&sae, None).unwrap();
    assert!(other.made && other.manifest.source_sha256 != made.manifest.source_sha256);
    assert_eq!(names(&other.folder).len(), 1 + other.manifest.files().count(), "the old ones are gone");
    assert!(!cache.exists());

    // Beside the checkpoint nothing can be written: a file has the folder's name.
    fs::remove_dir_all(&other.folder).unwrap();
    fs::write(&other.folder, "").unwrap();
    assert!(ensure(&sae, None).is_err());
    let cached = ensure(&sae, Some(&cache)).unwrap();
    assert_eq!((cached.made, &cached.folder), (true, &cache.join(&cached.manifest.source_sha256[..16])));
    assert!(!ensure(&sae, Some(&cache)).unwrap().made);
    assert!(cached.manifest.files().all(|file| file.bytes < MAX_SHARD_BYTES));
}
