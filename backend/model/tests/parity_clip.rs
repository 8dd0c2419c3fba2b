//! CLIP's two towers against `transformers`, on small checkpoints in the published layout.
//!
//! `fixtures/make_clip.py` made the files and the expected numbers; run with `--no-capture` to see the largest errors.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

#[path = "parity/golden.rs"]
mod golden;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use golden::{Goldens, Largest, levels_from_values, normalised, picture, relative};
use model::clip_score::cosine;
use model::image_processor::ImageProcessor;
use model::{ClipModel, Cpu};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// `‖ours − theirs‖ / ‖theirs‖` of an embedding, from the picture's file or the text.
const EMBEDDING_ERROR: f64 = 1e-5;
/// Of pixel values: the levels are equal, and so the values but for f32's rounding.
const PIXEL_ERROR: f64 = 1e-6;

/// `cases.json`.
#[derive(Deserialize)]
struct Cases {
    pictures: Vec<String>,
    texts: Vec<String>,
    /// Ids of the texts.
    newer: Vec<Vec<u32>>,
    older: Vec<Vec<u32>>,
}

fn folder() -> PathBuf {
    golden::folder().join("../clip")
}

fn cases() -> Cases {
    serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

fn load<B: Backend>(checkpoint: &str) -> ClipModel<B> {
    ClipModel::load(&folder().join(checkpoint), &Default::default()).unwrap()
}

/// Rows of a golden matrix.
fn rows(goldens: &Goldens, key: &str) -> Vec<Vec<f32>> {
    let (values, width) = goldens.matrix(key);
    values.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

#[test]
fn pixels_are_pillows() {
    let cases = cases();
    for (checkpoint, side) in [("newer", 56), ("older", 32)] {
        let processor = ImageProcessor::load_clip(&folder().join(checkpoint), side).unwrap();
        let expected = picture(&format!("../../clip/pixels/{checkpoint}.png")).into_rgb8();
        let mut values = Vec::new();
        for name in &cases.pictures {
            values.extend(processor.process_clip(side, &picture(name)));
        }
        let found = levels_from_values(&values, side);
        assert_eq!(found.len(), expected.as_raw().len(), "{checkpoint}: number of levels");
        for (i, (found, &expected)) in found.iter().zip(expected.as_raw()).enumerate() {
            let name = &cases.pictures[i / (3 * side * side)];
            assert_eq!(found.round(), f32::from(expected), "{checkpoint}, {name}: level {i}");
        }
        let mut largest = Largest::new("pixel values of CLIP", PIXEL_ERROR);
        largest.check(checkpoint, relative(&values, &normalised(&expected)));
    }
}

#[test]
fn texts_become_the_same_ids() {
    let cases = cases();
    for (checkpoint, expected) in [("newer", &cases.newer), ("older", &cases.older)] {
        let clip = load::<Cpu>(checkpoint);
        assert_eq!(expected.len(), cases.texts.len());
        for (text, expected) in cases.texts.iter().zip(expected) {
            assert_eq!(&clip.text_ids(text).unwrap().0, expected, "{checkpoint}: {text:?}");
        }
    }
}

/// Embeddings of all pictures and texts of both checkpoints, and the products that CLIP is trained on.
fn compare_embeddings<B: Backend>(pictures: &'static str, texts: &'static str, logits: &'static str) {
    let (cases, goldens) = (cases(), Goldens::open("../clip/goldens.safetensors"));
    let mut of_pictures = Largest::new(pictures, EMBEDDING_ERROR);
    let mut of_texts = Largest::new(texts, EMBEDDING_ERROR);
    let mut of_logits = Largest::new(logits, EMBEDDING_ERROR);
    for checkpoint in ["newer", "older"] {
        let clip = load::<B>(checkpoint);
        let image_embeds = rows(&goldens, &format!("{checkpoint}/image_embeds"));
        let text_embeds = rows(&goldens, &format!("{checkpoint}/text_embeds"));
        assert_eq!((image_embeds.len(), text_embeds.len()), (cases.pictures.len(), cases.texts.len()));
        let (mut images, mut words) = (Vec::new(), Vec::new());
        for (name, expected) in cases.pictures.iter().zip(&image_embeds) {
            let found = clip.image_embedding(&picture(name)).unwrap();
            of_pictures.check(&format!("{checkpoint}, {name}"), relative(&found, expected));
            images.push(found);
        }
        for (text, expected) in cases.texts.iter().zip(&text_embeds) {
            let found = clip.text_embedding(text).unwrap();
            of_texts.check(&format!("{checkpoint}, {text:?}"), relative(&found, expected));
            words.push(found);
        }
        let scale = clip.logit_scale.exp();
        let products = images.iter().flat_map(|image| words.iter().map(move |text| scale * cosine(image, text)));
        let products: Vec<f32> = products.collect();
        of_logits.check(checkpoint, relative(&products, &goldens.f32s(&format!("{checkpoint}/logits_per_image"))));
    }
}

#[test]
fn embeddings_are_those_of_transformers() {
    compare_embeddings::<Cpu>("CLIP's picture embeddings", "CLIP's text embeddings", "CLIP's logits");
}

/// Another backend than the CPU's own kernels: attention and its mask by tensor operations, as on a GPU.
#[test]
fn tensor_operations_give_the_same_embeddings() {
    compare_embeddings::<Autodiff<Cpu>>(
        "CLIP's picture embeddings by tensor operations",
        "CLIP's text embeddings by tensor operations",
        "CLIP's logits by tensor operations",
    );
}

#[test]
fn the_score_is_a_hundred_cosines_and_may_be_negative() {
    let (cases, goldens) = (cases(), Goldens::open("../clip/goldens.safetensors"));
    let clip = load::<Cpu>("newer");
    let images = rows(&goldens, "newer/image_embeds");
    let texts = rows(&goldens, "newer/text_embeds");
    let mut negative = 0;
    for (text, expected_text) in cases.texts.iter().zip(&texts) {
        let found = clip.clip_score(&picture(&cases.pictures[0]), text).unwrap();
        let expected = 100.0 * cosine(&images[0], expected_text);
        assert!((found - expected).abs() < 1e-3, "{text:?}: {found} and {expected}");
        negative += usize::from(found < 0.0);
    }
    assert!(negative > 0, "no score shows that nothing is clipped");
}

/// A copy of the newer checkpoint.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder().join("newer")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn refused(dir: &Path) -> String {
    ClipModel::<Cpu>::load(dir, &Default::default()).unwrap_err().to_string()
}

#[test]
fn a_missing_tensor_is_named() {
    for name in [
        "text_model.final_layer_norm.bias",
        "vision_model.post_layernorm.weight",
        "text_projection.weight",
        "logit_scale",
    ] {
        let dir = copy();
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let kept: Vec<_> = tensors.tensors().into_iter().filter(|(key, _)| key != name).collect();
        assert_eq!(kept.len() + 1, tensors.len());
        std::fs::write(&path, safetensors::serialize(kept, None).unwrap()).unwrap();
        let error = refused(dir.path());
        assert!(error.ends_with(&format!("tensor `{name}` is missing")), "{error}");
    }
}

#[test]
fn settings_that_do_not_fit_the_files_are_named() {
    let cases = [
        ("config.json", "/projection_dim", json!(23), "`visual_projection.weight` has shape [24, 40]"),
        ("config.json", "/text_config/num_hidden_layers", json!(2), "text_model.encoder.layers.2."),
        ("config.json", "/vision_config/patch_size", json!(7), "`vision_model.embeddings.patch_embedding.weight`"),
        ("config.json", "/text_config/eos_token_id", json!(5), "tokenizer.json: texts do not end with token 5"),
        ("config.json", "/text_config/vocab_size", json!(600), "vocab_size in config.json is 600"),
        ("config.json", "/text_config/max_position_embeddings", json!(2), "tokenizer.json: it adds 2 tokens"),
        ("config.json", "/model_type", json!("siglip"), "model_type \"siglip\""),
        ("preprocessor_config.json", "/size/shortest_edge", json!(48), "size {\"shortest_edge\":48}: only 56"),
    ];
    for (file, key, value, named) in cases {
        let dir = copy();
        let path = dir.path().join(file);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        *json.pointer_mut(key).unwrap() = value;
        std::fs::write(&path, json.to_string()).unwrap();
        let error = refused(dir.path());
        assert!(error.contains(named), "{key}: {error}");
    }
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let dir = copy();
        std::fs::remove_file(dir.path().join(file)).unwrap();
        let error = refused(dir.path());
        assert!(error.contains(file), "{error}");
    }
}
