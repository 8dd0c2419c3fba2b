//! SAE files of all kinds against the libraries that define them; encoding against a naive one; files that are wrong.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use burn::tensor::{Tensor, TensorData, backend::Backend};
use half::{bf16, f16};
use model::sae::{Activation, top_k};
use model::weights::f32_from_tensor;
use model::{Error, Sae, SaeFile, TopK};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

type B = model::Cpu;

fn device<T: Backend>() -> T::Device {
    Default::default()
}

fn load(dir: &Path) -> Result<Sae<B>, Error> {
    Sae::load(dir, &device::<B>())
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sae")
}

/// Every folder of the fixtures, and the activation that it must be read with.
const CASES: [(&str, Activation); 13] = [
    ("reference", Activation::TopK),
    ("sparsify", Activation::TopK),
    ("sparsify_bf16", Activation::TopK),
    ("sae_lens_3_topk", Activation::TopK),
    ("sae_lens_topk", Activation::TopK),
    ("sae_lens_topk_rescaled", Activation::TopK),
    ("sae_lens_standard", Activation::Relu),
    ("sae_lens_constant_norm", Activation::Relu),
    ("sae_lens_jumprelu", Activation::JumpRelu),
    ("sae_lens_layer_norm", Activation::JumpRelu),
    ("sae_lens_expected_average", Activation::JumpRelu),
    ("sae_lens_batchtopk", Activation::JumpRelu),
    ("sae_lens_batchtopk_checkpoint", Activation::JumpRelu),
];

struct Goldens(Vec<u8>);

impl Goldens {
    fn read() -> Self {
        Self(std::fs::read(fixtures().join("goldens.safetensors")).unwrap())
    }

    fn get(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (view.shape().to_vec(), values)
    }
}

fn tensor(values: &[f32], d: usize) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / d, d]), &device::<B>())
}

fn dense(z: &TopK, latents: usize) -> Vec<f32> {
    let mut out = vec![0.0; z.tokens * latents];
    for token in 0..z.tokens {
        for (latent, act) in z.row(token) {
            out[token * latents + latent as usize] += act;
        }
    }
    out
}

/// To within 1e-4 of the largest value.
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f32, |largest, value| largest.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-4 * largest, "{what}: value {i} is {found}, expected {expected}");
    }
}

/// Falling activations, rising latents among equal ones, filled up with (0, 0).
fn assert_ordered(z: &TopK) {
    for token in 0..z.tokens {
        let row: Vec<(u32, f32)> = z.row(token).collect();
        let in_order = |pair: &[(u32, f32)]| {
            pair[0].1 > pair[1].1 || (pair[0].1 == pair[1].1 && (pair[1].1 == 0.0 || pair[0].0 < pair[1].0))
        };
        assert!(row.windows(2).all(in_order), "row {token}: {row:?}");
        assert!(row.iter().all(|&(latent, act)| act > 0.0 || (latent, act) == (0, 0.0)), "row {token}: {row:?}");
    }
}

#[test]
fn every_format_gives_what_its_library_gives() {
    let goldens = Goldens::read();
    let (shape, hidden) = goldens.get("hidden");
    let [tokens, d] = shape[..] else { panic!("{shape:?}") };
    let folders = std::fs::read_dir(fixtures()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(folders.count(), CASES.len(), "a folder without a test");
    for (name, activation) in CASES {
        let (features, reconstruction) =
            (goldens.get(&format!("{name}.features")).1, goldens.get(&format!("{name}.reconstruction")).1);
        let latents = features.len() / tokens;
        let file = SaeFile::open(&fixtures().join(name)).unwrap();
        assert_eq!((file.latents(), file.d_in(), file.activation()), (latents, d, activation), "{name}");
        let from_file = file.encode(&hidden).unwrap();
        assert_ordered(&from_file);
        assert_close(&dense(&from_file, latents), &features, &format!("features of {name}, from the file"));

        let sae = load(&fixtures().join(name)).unwrap();
        assert_eq!(sae.config.k, file.k(), "{name}");
        let z = sae.encode(tensor(&hidden, d));
        assert_ordered(&z);
        assert_eq!((z.tokens, z.k), (from_file.tokens, from_file.k), "{name}");
        assert_close(&dense(&z, latents), &features, &format!("features of {name}"));
        for z in [&z, &from_file] {
            let found = f32_from_tensor(sae.decode(z));
            assert_close(&found, &reconstruction, &format!("reconstruction of {name}"));
        }
        let active = if activation == Activation::TopK { sae.config.k } else { z.k };
        let all = top_k(&f32_from_tensor(sae.activations(tensor(&hidden, d))), latents, active);
        assert_eq!((&all.indices, &all.acts), (&z.indices, &z.acts), "{name}: tiles against the whole");
        let row = sae.decoder_row(latents - 1);
        assert_eq!(row, f32_from_tensor(sae.w_dec.clone())[(latents - 1) * d..], "{name}");
    }
}

#[test]
fn rows_are_those_of_the_loaded_sae() {
    for (name, _) in CASES {
        let (file, sae) = (SaeFile::open(&fixtures().join(name)).unwrap(), load(&fixtures().join(name)).unwrap());
        let (latents, d) = (file.latents(), file.d_in());
        let encoder = f32_from_tensor(sae.encoder.clone().transpose());
        let w_dec = f32_from_tensor(sae.w_dec.clone());
        let mut rows = vec![9.0];
        for latents in [0..latents, 3..4, latents - 5..latents] {
            let values = latents.start * d..latents.end * d;
            file.encoder_rows(latents.clone(), &mut rows);
            assert_eq!(rows, encoder[values.clone()], "encoder rows {latents:?} of {name}");
            file.decoder_rows(latents.clone(), &mut rows);
            assert_eq!(rows, w_dec[values], "decoder rows {latents:?} of {name}");
        }
        let biases = (f32_from_tensor(sae.encoder_bias.clone()), f32_from_tensor(sae.b_dec.clone()));
        assert_eq!(file.biases(), biases, "{name}");
    }
}

/// A TopK SAE in the reference layout.
struct Written {
    folder: TempDir,
    d: usize,
    /// `[latents, d]`, rounded to what the file holds.
    encoder: Vec<f32>,
    bias: Vec<f32>,
    b_dec: Vec<f32>,
}

fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

fn rounded(values: Vec<f32>, dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F16 => values.into_iter().map(|value| f16::from_f32(value).to_f32()).collect(),
        Dtype::BF16 => values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect(),
        _ => values,
    }
}

type Named<'a> = (&'a str, &'a [usize], &'a [f32]);

fn safetensors_bytes(tensors: &[Named<'_>], dtype: Dtype) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| bytes_of(values, dtype)).collect();
    let views = tensors.iter().zip(&bytes);
    let views = views.map(|((name, shape, _), bytes)| (*name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

impl Written {
    fn new(encoder: Vec<f32>, bias: Vec<f32>, b_dec: Vec<f32>, k: usize, dtype: Dtype) -> Self {
        let (latents, d) = (bias.len(), b_dec.len());
        let folder = tempfile::tempdir().unwrap();
        let tensors: [Named<'_>; 4] = [
            ("encoder.weight", &[latents, d], &encoder),
            ("encoder.bias", &[latents], &bias),
            ("W_dec", &[latents, d], &encoder),
            ("b_dec", &[d], &b_dec),
        ];
        std::fs::write(folder.path().join("sae.safetensors"), safetensors_bytes(&tensors, dtype)).unwrap();
        let cfg = format!(r#"{{"num_latents": {latents}, "k": {k}, "d_in": {d}}}"#);
        std::fs::write(folder.path().join("cfg.json"), cfg).unwrap();
        let (encoder, bias, b_dec) = (rounded(encoder, dtype), rounded(bias, dtype), rounded(b_dec, dtype));
        Self { folder, d, encoder, bias, b_dec }
    }

    fn random(latents: usize, d: usize, k: usize, dtype: Dtype, rng: &mut ChaCha8Rng) -> Self {
        let mut values = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0f32)).collect::<Vec<f32>>();
        Self::new(values(latents * d), values(latents), values(d), k, dtype)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn file(&self) -> SaeFile {
        SaeFile::open(self.path()).unwrap()
    }

    /// Pre-activations `[tokens, latents]` in f64, one by one.
    fn naive(&self, hidden: &[f32]) -> Vec<f64> {
        let mut out = Vec::new();
        for x in hidden.chunks_exact(self.d) {
            for (row, bias) in self.encoder.chunks_exact(self.d).zip(&self.bias) {
                let products = row.iter().zip(x).zip(&self.b_dec);
                let sum: f64 = products.map(|((w, x), b)| f64::from(*w) * (f64::from(*x) - f64::from(*b))).sum();
                out.push(sum + f64::from(*bias));
            }
        }
        out
    }
}

/// The activations of `z` are the k strongest of `pre`, and each is that of its latent, to within rounding.
fn assert_strongest(z: &TopK, pre: &[f64], latents: usize, what: &str) {
    assert_eq!(z.tokens * latents, pre.len(), "{what}");
    assert_ordered(z);
    for (token, pre) in pre.chunks_exact(latents).enumerate() {
        let tolerance = 2e-5 * pre.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
        let mut sorted: Vec<f64> = pre.iter().map(|value| value.max(0.0)).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for ((latent, act), strongest) in z.row(token).zip(sorted) {
            let act = f64::from(act);
            assert!((act - strongest).abs() <= tolerance, "{what}, token {token}: {act}, expected {strongest}");
            if act > 0.0 {
                let own = pre[latent as usize];
                assert!((act - own).abs() <= tolerance, "{what}, token {token}: latent {latent} has {own}, not {act}");
            }
        }
    }
}

#[test]
fn encoding_matches_a_naive_one_at_awkward_sizes() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];
    for (case, latents) in [1, 5, 63, 513, 4097].into_iter().enumerate() {
        for (shift, d) in [1, 7, 64].into_iter().enumerate() {
            let dtype = dtypes[(case + shift) % dtypes.len()];
            for k in [1, 6, latents] {
                let k = k.min(latents);
                let sae = Written::random(latents, d, k, dtype, &mut rng);
                let (file, loaded) = (sae.file(), load(sae.path()).unwrap());
                for tokens in [1, 3, 65] {
                    let mut hidden: Vec<f32> = (0..tokens * d).map(|_| rng.random_range(-2.0..2.0)).collect();
                    // One channel far above the others, as LMMs have it.
                    hidden.iter_mut().step_by(d).for_each(|value| *value *= 1e4);
                    let pre = sae.naive(&hidden);
                    let what = format!("{tokens} tokens, {latents} latents of {d}, k = {k}, {dtype:?}");
                    let z = file.encode(&hidden).unwrap();
                    assert_eq!(z.k, k, "{what}");
                    assert_strongest(&z, &pre, latents, &what);
                    assert_strongest(&loaded.encode(tensor(&hidden, d)), &pre, latents, &what);
                }
            }
        }
    }
}

/// Whole numbers are exact in any order of summation, so that ties are ties.
fn whole_numbers(latents: usize, d: usize, k: usize) -> (Written, Vec<f32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut values = |count: usize| (0..count).map(|_| rng.random_range(-2..=2) as f32).collect::<Vec<f32>>();
    let sae = Written::new(values(latents * d), values(latents), values(d), k, Dtype::F32);
    let hidden = values(700 * d);
    (sae, hidden)
}

#[test]
fn ties_go_to_the_lower_index_and_threads_change_nothing() {
    for (latents, d, k) in [(4097, 7, 5), (4097, 7, 300), (9000, 3, 40)] {
        let (sae, hidden) = whole_numbers(latents, d, k);
        let pre: Vec<f32> = sae.naive(&hidden).into_iter().map(|value| value as f32).collect();
        let expected = top_k(&pre, latents, k);
        let file = sae.file();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| file.encode(&hidden)).unwrap(), expected, "{threads} threads");
        }
        let loaded = load(sae.path()).unwrap();
        assert_eq!(loaded.encode(tensor(&hidden, d)), expected);
    }
}

#[test]
fn a_token_does_not_depend_on_the_others() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let sae = Written::random(600, 33, 20, Dtype::F16, &mut rng);
    let hidden: Vec<f32> = (0..70 * 33).map(|_| rng.random_range(-1.0..1.0)).collect();
    let file = sae.file();
    let all = file.encode(&hidden).unwrap();
    for token in [0, 15, 16, 69] {
        let one = file.encode(&hidden[token * 33..(token + 1) * 33]).unwrap();
        assert_eq!(one.indices, all.indices[token * 20..(token + 1) * 20]);
        assert_close(&one.acts, &all.acts[token * 20..(token + 1) * 20], "activations");
    }
    assert_eq!(file.encode(&[]).unwrap().tokens, 0);
}

#[test]
fn a_token_without_active_latents_is_filled_up() {
    let sae = Written::new(vec![0.5; 30 * 4], vec![-100.0; 30], vec![0.0; 4], 3, Dtype::F32);
    let hidden = [1.0; 8];
    let loaded = load(sae.path()).unwrap();
    let z = sae.file().encode(&hidden).unwrap();
    assert_eq!(z, loaded.encode(tensor(&hidden, 4)));
    assert_eq!((z.indices, z.acts), (vec![0; 6], vec![0.0; 6]));
}

#[test]
fn weights_at_odd_addresses_are_read() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for dtype in [Dtype::F32, Dtype::F16] {
        let sae = Written::random(80, 5, 4, dtype, &mut rng);
        let hidden: Vec<f32> = (0..15).map(|_| rng.random_range(-1.0..1.0)).collect();
        let expected = sae.file().encode(&hidden).unwrap();
        // A header that is one byte longer moves everything behind it.
        let path = sae.path().join("sae.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        bytes[..8].copy_from_slice(&(header + 1).to_le_bytes());
        bytes.insert(8 + header as usize, b' ');
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(sae.file().encode(&hidden).unwrap(), expected);
    }
}

#[test]
fn decoding_adds_decoder_rows_whether_few_or_most_latents_are_active() {
    for (latents, d, k) in [(50, 6, 3), (50, 6, 40)] {
        let (sae, hidden) = whole_numbers(latents, d, k);
        let loaded = load(sae.path()).unwrap();
        let z = loaded.encode(tensor(&hidden, d));
        let mut expected = Vec::new();
        for row in dense(&z, latents).chunks_exact(latents) {
            for i in 0..d {
                let sum: f32 = (0..latents).map(|j| row[j] * sae.encoder[j * d + i]).sum();
                expected.push(sum + sae.b_dec[i]);
            }
        }
        assert_eq!(f32_from_tensor(loaded.decode(&z)), expected);
        let none = TopK { tokens: 0, k, ..TopK::default() };
        assert_eq!(loaded.decode(&none).dims(), [0, d]);
    }
}

#[test]
fn room_for_extra_latents_is_filled_with_the_next_strongest() {
    let (sae, hidden) = whole_numbers(40, 6, 4);
    let loaded = load(sae.path()).unwrap();
    let pre: Vec<f32> = sae.naive(&hidden).into_iter().map(|value| value as f32).collect();
    let wide = loaded.encode_top(tensor(&hidden, 6), 2);
    assert_eq!(wide, top_k(&pre, 40, 6));
    assert_eq!(loaded.kept(&wide), 4);
    let relu = load(&fixtures().join("sae_lens_standard")).unwrap();
    let hidden = Goldens::read().get("hidden").1;
    let d = relu.config.d_in;
    let (z, wide) = (relu.encode(tensor(&hidden, d)), relu.encode_top(tensor(&hidden, d), 3));
    assert_eq!((wide.k, relu.kept(&wide)), (z.k + 3, z.k + 3));
    assert_eq!(dense(&z, relu.latents()), dense(&wide, relu.latents()));
}

#[test]
fn what_is_saved_is_loaded_and_the_rest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hidden = Goldens::read().get("hidden").1;
    let sae = load(&fixtures().join("reference")).unwrap();
    // f16 weights, so saving as f16 loses nothing. A folder around the hook point is found through.
    sae.save(&folder.path().join("model.layers.1")).unwrap();
    let again = load(folder.path()).unwrap();
    assert_eq!(again.config, sae.config);
    let d = sae.config.d_in;
    assert_eq!(again.encode(tensor(&hidden, d)), sae.encode(tensor(&hidden, d)));
    sae.save(&folder.path().join("model.layers.2")).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("2 hook points"), "{error}");
    for name in ["sae_lens_standard", "sae_lens_layer_norm", "sae_lens_jumprelu"] {
        let other = load(&fixtures().join(name)).unwrap();
        assert!(matches!(other.save(folder.path()), Err(Error::BadInput(_))), "{name}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_errors_not_activations() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for (bad, dtype) in [(f32::NAN, Dtype::F32), (f32::INFINITY, Dtype::F16), (f32::NEG_INFINITY, Dtype::BF16)] {
        let mut encoder: Vec<f32> = (0..700 * 8).map(|_| rng.random_range(-1.0..1.0)).collect();
        encoder[699 * 8 + 3] = bad;
        let sae = Written::new(encoder, vec![0.0; 700], vec![0.0; 8], 2, dtype);
        for error in [sae.file().encode(&[1.0; 24]).unwrap_err(), load(sae.path()).unwrap_err()] {
            let text = error.to_string();
            assert!(matches!(error, Error::BadFile { .. }), "{text}");
            assert!(text.contains("sae.safetensors") && text.contains("encoder.weight"), "{text}");
        }
    }
    let sae = Written::random(10, 4, 2, Dtype::F32, &mut rng);
    assert!(matches!(sae.file().encode(&[1.0, f32::NAN, 0.0, 0.0]), Err(Error::NotFinite { .. })));
    assert!(matches!(sae.file().encode(&[1.0; 5]), Err(Error::BadInput(_))));
}

/// A folder of the fixtures with one thing changed.
struct Changed {
    folder: TempDir,
}

impl Changed {
    fn new(case: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixtures().join(case)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::write(folder.path().join(path.file_name().unwrap()), std::fs::read(&path).unwrap()).unwrap();
        }
        Self { folder }
    }

    fn cfg(self, key: &str, value: serde_json::Value) -> Self {
        let path = self.folder.path().join("cfg.json");
        let mut cfg: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        if value.is_null() {
            cfg.as_object_mut().unwrap().remove(key);
        } else {
            cfg[key] = value;
        }
        std::fs::write(&path, cfg.to_string()).unwrap();
        self
    }

    /// The weights with one tensor changed, added or (without values) left out; f32.
    fn tensor(self, file: &str, name: &str, shape: &[usize], values: Option<f32>) -> Self {
        let path = self.folder.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        let found = SafeTensors::deserialize(&bytes).unwrap();
        let read = |view: &TensorView<'_>| -> Vec<f32> {
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = found
            .tensors()
            .into_iter()
            .filter(|(key, _)| key != name)
            .map(|(key, view)| (key, view.shape().to_vec(), read(&view)))
            .collect();
        if let Some(value) = values {
            tensors.push((name.into(), shape.to_vec(), vec![value; shape.iter().product()]));
        }
        let named: Vec<Named<'_>> = tensors.iter().map(|(key, shape, values)| (&**key, &**shape, &**values)).collect();
        std::fs::write(&path, safetensors_bytes(&named, Dtype::F32)).unwrap();
        self
    }

    fn bytes(self, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Self {
        let path = self.folder.path().join(file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(bytes)).unwrap();
        self
    }
}

#[test]
fn wrong_files_are_refused_with_the_file_and_the_reason() {
    use serde_json::json;
    const REFERENCE: &str = "sae.safetensors";
    const LENS: &str = "sae_weights.safetensors";
    let sparsify = || Changed::new("sparsify");
    let topk = || Changed::new("sae_lens_topk");
    let jump = || Changed::new("sae_lens_jumprelu");
    let table: Vec<(Changed, &str, &str)> = vec![
        (sparsify().cfg("k", json!(0)), "cfg.json", "k is 0"),
        (sparsify().cfg("k", json!(73)), "cfg.json", "k is 73; it must be between 1 and the 72 latents"),
        (sparsify().cfg("k", json!("many")), "cfg.json", "many"),
        (sparsify().cfg("d_in", json!(null)), "cfg.json", "d_in"),
        (sparsify().cfg("d_in", json!(0)), "cfg.json", "72 latents of 0 dimensions"),
        (sparsify().cfg("d_in", json!(21)), REFERENCE, "`encoder.weight` has shape [72, 20], expected [72, 21]"),
        (sparsify().cfg("num_latents", json!(71)), REFERENCE, "`encoder.weight` has shape [72, 20], expected [71, 20]"),
        (sparsify().cfg("num_latents", json!(u64::MAX)), "cfg.json", "can be indexed"),
        (sparsify().cfg("skip_connection", json!(true)), "cfg.json", "skip_connection"),
        (sparsify().cfg("transcode", json!(true)), "cfg.json", "transcode"),
        (sparsify().cfg("signed", json!(true)), "cfg.json", "signed"),
        (sparsify().cfg("activation", json!("groupmax")), "cfg.json", "groupmax"),
        (sparsify().tensor(REFERENCE, "W_dec", &[], None), REFERENCE, "`W_dec` is missing"),
        (sparsify().tensor(REFERENCE, "encoder.bias", &[71], Some(0.0)), REFERENCE, "[71], expected [72]"),
        (sparsify().tensor(REFERENCE, "b_dec", &[20], Some(f32::NAN)), REFERENCE, "`b_dec` holds NaN"),
        (sparsify().bytes(REFERENCE, |bytes| bytes[..bytes.len() - 9].to_vec()), REFERENCE, ""),
        (sparsify().bytes(REFERENCE, |_| Vec::new()), REFERENCE, ""),
        (sparsify().bytes("cfg.json", |_| b"{".to_vec()), "cfg.json", ""),
        (topk().cfg("architecture", json!("gated")), "cfg.json", "`gated` is not read"),
        (topk().cfg("architecture", json!("crosscoder")), "cfg.json", "standard, topk, jumprelu and batchtopk"),
        (topk().cfg("k", json!(null)), "cfg.json", "needs `k`"),
        (topk().cfg("k", json!(2.5)), "cfg.json", "whole number"),
        (topk().cfg("k", json!(73)), "cfg.json", "k is 73"),
        (topk().cfg("d_sae", json!(71)), LENS, "`W_enc` has shape [20, 72], expected [20, 71]"),
        (topk().cfg("normalize_activations", json!("covariance_whitening")), "cfg.json", "covariance_whitening"),
        (topk().tensor(LENS, "scaling_factor", &[72], Some(2.0)), LENS, "scaling_factor"),
        (jump().tensor(LENS, "threshold", &[], None), LENS, "`threshold` is missing"),
        (jump().tensor(LENS, "threshold", &[72], Some(f32::NAN)), LENS, "`threshold` holds NaN"),
        (Changed::new("sae_lens_standard").cfg("activation_fn_str", json!("tanh-relu")), "cfg.json", "tanh-relu"),
    ];
    for (changed, file, reason) in table {
        let error = SaeFile::open(changed.folder.path()).err().unwrap_or_else(|| panic!("{file}: {reason}: read"));
        let text = error.to_string();
        assert!(text.contains(file) && text.contains(reason), "expected {file} and `{reason}` in: {text}");
        assert!(load(changed.folder.path()).is_err(), "{text}");
    }
    let without_weights = sparsify();
    std::fs::remove_file(without_weights.folder.path().join(REFERENCE)).unwrap();
    let error = SaeFile::open(without_weights.folder.path()).unwrap_err().to_string();
    assert!(error.contains(REFERENCE) && error.contains(LENS), "{error}");
    // Factors of 1 are saves of an older version, not something to refuse.
    assert!(SaeFile::open(topk().tensor(LENS, "scaling_factor", &[72], Some(1.0)).folder.path()).is_ok());
}
