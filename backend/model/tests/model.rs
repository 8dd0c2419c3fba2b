//! The model as a whole on tiny random checkpoints: shapes, cache equivalence, files, interventions, generation.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

use burn::tensor::Tensor;
use image::{DynamicImage, Rgb, RgbImage};
use model::config::LlavaNextConfig;
use model::llama::KvCache;
use model::weights::f32_from_tensor;
use model::{
    Edit, EditOp, Error, GenerateOptions, Hook, Intervention, LlavaNext, Lmm, Positions, PromptInput, SpanKind,
    generate,
};
use std::ops::ControlFlow;
use std::path::Path;

mod common;
use common::{B, Tiny, close, picture, question, tiny};

#[test]
fn the_picture_becomes_its_patches_and_one_newline() {
    let tiny = tiny();
    let prepared = tiny.lmm.prepare(&question("What is this?", Some(picture(50, 40)))).unwrap();
    let kinds = prepared.kinds();
    assert_eq!(kinds.len(), prepared.input_ids.len());
    assert_eq!(kinds.iter().filter(|kind| **kind == SpanKind::Base).count(), 16);
    assert_eq!(kinds.iter().filter(|kind| **kind == SpanKind::Newline).count(), 1);
    assert_eq!(prepared.grid, Some([4, 4]));
    assert_eq!(prepared.input_ids[0], 1, "one BOS, from the template");
    assert_eq!(prepared.input_ids.iter().filter(|id| **id == 1).count(), 1);
    let hidden = tiny.lmm.hidden_at(&prepared, 1).unwrap();
    assert_eq!(hidden.dims(), [prepared.input_ids.len(), 32]);
}

#[test]
fn one_token_at_a_time_equals_the_whole_sequence() {
    let tiny = tiny();
    let prepared = tiny.lmm.prepare(&question("What is this?", Some(picture(32, 32)))).unwrap();
    let language = &tiny.lmm.net.language;
    let embedded = tiny.lmm.embed(&prepared);
    let tokens = embedded.dims()[1];
    let whole = language.logits(language.blocks_forward(embedded.clone(), 0..language.depth()));
    let mut cache = KvCache::new(language.depth());
    let (split, depth) = (tokens - 5, language.depth());
    let mut rows = vec![language.cached_forward(embedded.clone().narrow(1, 0, split), &mut cache, 0..depth)];
    for token in split..tokens {
        rows.push(language.cached_forward(embedded.clone().narrow(1, token, 1), &mut cache, 0..depth));
    }
    assert_eq!(cache.positions(), tokens);
    let stepwise = language.logits(Tensor::cat(rows, 1));
    close(&f32_from_tensor(whole), &f32_from_tensor(stepwise), 2e-5);
}

#[test]
fn later_tokens_do_not_change_earlier_ones() {
    let tiny = tiny();
    let hidden = |text: &str| {
        let prepared = tiny.lmm.prepare(&PromptInput { text: text.into(), ..PromptInput::default() }).unwrap();
        f32_from_tensor(tiny.lmm.hidden_at(&prepared, 2).unwrap().narrow(0, 0, 3))
    };
    close(&hidden("What is this? It is"), &hidden("What is this? a blue bird"), 1e-6);
}

#[test]
fn hidden_states_are_the_output_of_the_named_block() {
    let tiny = tiny();
    let prepared = tiny.lmm.prepare(&question("What is this?", None)).unwrap();
    let embedded = tiny.lmm.embed(&prepared);
    let two: Tensor<B, 2> = tiny.lmm.net.language.blocks_forward(embedded, 0..2).squeeze_dim(0);
    close(&f32_from_tensor(two), &f32_from_tensor(tiny.lmm.hidden_at(&prepared, 1).unwrap()), 0.0);
    assert!(matches!(tiny.lmm.hidden_at(&prepared, 3), Err(Error::UnknownLayer { layer: 3, blocks: 3 })));
}

#[test]
fn prompts_and_pictures_must_agree() {
    let tiny = tiny();
    let raw = |text: &str, image| tiny.lmm.prepare(&PromptInput { text: text.into(), chat: false, image });
    assert!(matches!(raw("<image>", None), Err(Error::BadInput(_))));
    assert!(matches!(raw("no picture here", Some(picture(8, 8))), Err(Error::BadInput(_))));
    assert!(raw("<image>", Some(picture(1, 999))).is_ok());
    assert!(matches!(raw(&"word ".repeat(400), None), Err(Error::PromptTooLong { .. })));
}

#[test]
fn tiles_follow_the_base_picture_row_by_row() {
    let device = Default::default();
    // The 8B model's form: CLIP's own patch embedding with a class token, read one block before the last.
    let mut config = model::testing::tiny_config(320);
    config.vision_config.stem = None;
    config.vision_feature_layer = -2;
    config.vision_feature_select_strategy = "default".into();
    config.image_grid_pinpoints = vec![[32, 64], [64, 32], [64, 64]];
    let dir = tempfile::tempdir().unwrap();
    model::testing::tiny_checkpoint::<B>(dir.path(), &device).unwrap();
    let net: LlavaNext<B> = config.init(&device);
    let lmm = Lmm::with_net(&dir.path().join("model"), config, net, &device).unwrap();
    let prepared =
        lmm.prepare(&PromptInput { text: "<image>".into(), chat: false, image: Some(picture(64, 32)) }).unwrap();
    let count = |kind| prepared.kinds().iter().filter(|found| **found == kind).count();
    // 64 × 32 goes into one row of two tiles: 4 rows of 8 patches, each closed by a newline.
    assert_eq!((count(SpanKind::Base), count(SpanKind::Tile), count(SpanKind::Newline)), (16, 32, 4));
    assert_eq!(lmm.embed(&prepared).dims()[1], prepared.input_ids.len());
    rows_are_those_of_their_tiles(&lmm, picture(64, 32), [1, 2]);
    // Four tiles of different content: swapped rows, columns or patches show.
    let quarters = RgbImage::from_fn(64, 64, |x, y| {
        let tile = (y / 32 * 2 + x / 32) as u8;
        Rgb([tile * 60 + x as u8, 200 - tile * 50, (y * 3) as u8 ^ tile])
    });
    rows_are_those_of_their_tiles(&lmm, DynamicImage::ImageRgb8(quarters), [2, 2]);
}

/// Every picture token is the patch of its tile at its place, each row closed by the newline. `layout`: tiles
/// downwards and across, all of whose patches survive.
fn rows_are_those_of_their_tiles(lmm: &Lmm<B>, picture: DynamicImage, layout: [usize; 2]) {
    const GRID: usize = 4;
    let pixels = lmm.processor.process(&lmm.config, &picture);
    let tiles = pixels.layout.clone().unwrap();
    assert_eq!([tiles.rows, tiles.columns], layout);
    let shape = [pixels.tiles, 3, pixels.side, pixels.side];
    let tensor = || Tensor::<B, 4>::from_data(burn::tensor::TensorData::new(pixels.values.clone(), shape), &lmm.device);
    let found = f32_from_tensor(lmm.net.image_tokens(tensor(), Some(&tiles)));
    let patches = f32_from_tensor(lmm.net.patch_tokens(tensor()));
    let newline = f32_from_tensor(lmm.net.image_newline.val());
    let d = newline.len();
    let patch = |tile: usize, row: usize, column: usize| {
        let start = ((tile * GRID + row) * GRID + column) * d;
        &patches[start..start + d]
    };
    let [rows, columns] = layout;
    // Tile 0 is the base picture.
    let mut expected: Vec<&[f32]> = (0..GRID * GRID).map(|i| patch(0, i / GRID, i % GRID)).collect();
    for row in 0..rows * GRID {
        for column in 0..columns * GRID {
            let tile = 1 + row / GRID * columns + column / GRID;
            expected.push(patch(tile, row % GRID, column % GRID));
        }
        expected.push(&newline);
    }
    close(&found, &expected.concat(), 1e-6);
    assert_ne!(patch(1, 0, 0), patch(2, 0, 0), "tiles that look alike would hide a swap");
    assert_ne!(patch(1, 0, 1), patch(1, 1, 0), "patches that look alike would hide a swap");
}

#[test]
fn checkpoints_survive_the_disk() {
    let tiny = tiny();
    let again = tempfile::tempdir().unwrap();
    tiny.lmm.net.save(&tiny.lmm.config, again.path()).unwrap();
    let read = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(read(again.path()) == read(&tiny.dir.path().join("model")), "f16 weights are written as they were read");
    assert_eq!(LlavaNextConfig::load(again.path()).unwrap(), tiny.lmm.config);
}

/// Rewrites a checkpoint's tensors.
fn rewrite(dir: &Path, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
    use safetensors::{Dtype, SafeTensors, tensor::TensorView};
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.iter().map(|(name, view)| (name.to_string(), view.shape().to_vec(), view.data().to_vec())).collect();
    change(&mut tensors);
    let views =
        tensors.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F16, shape.clone(), data).unwrap()));
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn load_error(tiny: &Tiny) -> String {
    Lmm::<B>::load(&tiny.dir.path().join("model"), &Default::default()).unwrap_err().to_string()
}

#[test]
fn the_newer_key_layout_loads() {
    let tiny = tiny();
    rewrite(&tiny.dir.path().join("model"), |tensors| {
        for (name, _, _) in tensors {
            *name = match name.strip_prefix("language_model.model.") {
                Some(rest) => format!("model.language_model.{rest}"),
                None if name.starts_with("language_model.lm_head") => name.replace("language_model.", ""),
                None => format!("model.{name}"),
            };
        }
    });
    assert!(Lmm::<B>::load(&tiny.dir.path().join("model"), &Default::default()).is_ok());
}

#[test]
fn a_missing_extra_or_misshapen_tensor_is_named() {
    let tiny = tiny();
    let model = tiny.dir.path().join("model");
    let whole = std::fs::read(model.join("model.safetensors")).unwrap();
    rewrite(&model, |tensors| tensors.retain(|(name, _, _)| name != "image_newline"));
    assert!(load_error(&tiny).contains("`image_newline` is missing"), "{}", load_error(&tiny));
    std::fs::write(model.join("model.safetensors"), &whole).unwrap();
    rewrite(&model, |tensors| tensors.push(("stranger.weight".into(), vec![1], vec![0, 0])));
    assert!(load_error(&tiny).contains("stranger.weight"), "{}", load_error(&tiny));
    std::fs::write(model.join("model.safetensors"), &whole).unwrap();
    rewrite(&model, |tensors| {
        let newline = tensors.iter_mut().find(|(name, _, _)| name == "image_newline").unwrap();
        (newline.1, newline.2) = (vec![2], vec![0; 4]);
    });
    assert!(load_error(&tiny).contains("shape [2], expected [32]"), "{}", load_error(&tiny));
    std::fs::write(model.join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    assert!(load_error(&tiny).contains("model.safetensors"), "{}", load_error(&tiny));
}

#[test]
fn contradicting_sizes_in_the_config_are_explained() {
    let tiny = tiny();
    let path = tiny.dir.path().join("model/config.json");
    let text =
        std::fs::read_to_string(&path).unwrap().replace("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3");
    std::fs::write(&path, text).unwrap();
    assert!(load_error(&tiny).contains("num_attention_heads by num_key_value_heads"), "{}", load_error(&tiny));
}

fn intervention(tiny: &Tiny, edits: Vec<Edit>, positions: Positions) -> Intervention<B> {
    Intervention { hook: Hook::Block(1), sae: tiny.sae.clone(), edits, positions, keep_error: false }
}

fn said(tiny: &Tiny, with: Option<&Intervention<B>>, options: &GenerateOptions) -> model::Generation {
    let prepared = tiny.lmm.prepare(&question("What is this?", Some(picture(32, 32)))).unwrap();
    generate(&tiny.lmm, &prepared, options, with, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn the_reconstruction_is_decode_of_encode() {
    use model::intervention::PositionKind;
    let tiny = tiny();
    let x: Tensor<B, 2> = Tensor::random([5, 32], burn::tensor::Distribution::Normal(0.0, 1.0), &Default::default());
    let z = tiny.sae.encode(x.clone());
    // Truth, written out: z W_dec + b_dec with dense z.
    let (w, b) = (f32_from_tensor(tiny.sae.w_dec.clone()), f32_from_tensor(tiny.sae.b_dec.clone()));
    let dense: Vec<f32> = (0..5)
        .flat_map(|token| {
            let row: Vec<(u32, f32)> = z.row(token).collect();
            let (w, b) = (&w, &b);
            (0..32)
                .map(move |d| b[d] + row.iter().map(|(j, act)| act * w[*j as usize * 32 + d]).sum::<f32>())
                .collect::<Vec<_>>()
        })
        .collect();
    let kinds = [PositionKind::Generated; 5];
    let plain = intervention(&tiny, Vec::new(), Positions::All).apply(x.clone(), 0, &kinds);
    close(&f32_from_tensor(plain.clone()), &dense, 1e-4);
    // A clamp far above the rest is in the reconstruction with exactly its value, and only at selected positions.
    let clamp = intervention(&tiny, vec![Edit { feature: 9, op: EditOp::Clamp(1e4) }], Positions::Image);
    close(&f32_from_tensor(clamp.apply(x.clone(), 0, &kinds)), &dense, 1e-4);
    let prompt = [PositionKind::Prompt(SpanKind::Base); 5];
    let changed = f32_from_tensor(clamp.apply(x.clone(), 0, &prompt));
    let along = (0..32).map(|d| (changed[d] - dense[d]) * w[9 * 32 + d]).sum::<f32>();
    let norm = (0..32).map(|d| w[9 * 32 + d].powi(2)).sum::<f32>();
    assert!((along / norm / 1e4 - 1.0).abs() < 0.05, "{}", along / norm);
    // An ablated latent is gone and nothing takes its place.
    let first = z.indices[0];
    let ablate = intervention(&tiny, vec![Edit { feature: first as usize, op: EditOp::Ablate }], Positions::All);
    let without = f32_from_tensor(ablate.apply(x, 0, &kinds));
    let expected: Vec<f32> = (0..32).map(|d| dense[d] - z.acts[0] * w[first as usize * 32 + d]).collect();
    close(&without[..32], &expected, 1e-4);
}

#[test]
fn a_clamp_to_nothing_removes_the_latent_and_promotes_none() {
    use model::intervention::PositionKind;
    let tiny = tiny();
    let x: Tensor<B, 2> = Tensor::random([5, 32], burn::tensor::Distribution::Normal(0.0, 1.0), &Default::default());
    let strongest = tiny.sae.encode(x.clone()).indices[0] as usize;
    let kinds = [PositionKind::Generated; 5];
    let with = |edits| f32_from_tensor(intervention(&tiny, edits, Positions::All).apply(x.clone(), 0, &kinds));
    let ablated = with(vec![Edit { feature: strongest, op: EditOp::Ablate }]);
    assert_ne!(ablated, with(Vec::new()));
    for value in [0.0, -0.0, -5.0] {
        let clamped = with(vec![Edit { feature: strongest, op: EditOp::Clamp(value) }]);
        assert_eq!(clamped, ablated, "clamped to {value}");
    }
}

#[test]
fn a_cache_changes_nothing_while_an_intervention_is_on() {
    use model::intervention::PositionKind;
    let tiny = tiny();
    let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let edits = vec![Edit { feature: 9, op: EditOp::Clamp(20.0) }, Edit { feature: 3, op: EditOp::Add(2.0) }];
    let with = intervention(&tiny, edits, Positions::All);
    let cached = said(&tiny, Some(&with), &options);
    assert!(!cached.tokens.is_empty());

    // Without a cache: the whole sequence again for every token.
    let prepared = tiny.lmm.prepare(&question("What is this?", Some(picture(32, 32)))).unwrap();
    let language = &tiny.lmm.net.language;
    let mut sequence = tiny.lmm.embed(&prepared);
    for token in &cached.tokens {
        let kinds = vec![PositionKind::Generated; sequence.dims()[1]];
        let hooked = language.blocks_forward(sequence.clone(), 0..2).squeeze_dim(0);
        let changed = with.apply(hooked, 0, &kinds).unsqueeze();
        let hidden = language.blocks_forward(changed, 2..language.depth());
        let last = hidden.dims()[1] - 1;
        let logits = f32_from_tensor(language.logits(hidden.narrow(1, last, 1)));
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = logits.iter().map(|logit| (logit - max).exp()).sum::<f32>().ln() + max;
        let logprob = logits[token.id as usize] - log_sum;
        assert!((logprob - token.logprob).abs() < 1e-3, "{logprob} and {}", token.logprob);
        assert!(max - logits[token.id as usize] < 1e-4, "token {} is not the likeliest", token.id);
        sequence = Tensor::cat(vec![sequence, language.embed(tiny.lmm.ids(&[token.id]))], 1);
    }
}

#[test]
fn greedy_generation_is_repeatable_and_streams_what_it_returns() {
    let tiny = tiny();
    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let first = said(&tiny, None, &options);
    assert_eq!(first, said(&tiny, None, &options));
    assert!(first.tokens.iter().all(|token| token.logprob <= 0.0));
    assert_eq!(first.tokens.iter().map(|token| token.text.as_str()).collect::<String>(), first.text);
    let prepared = tiny.lmm.prepare(&question("What is this?", None)).unwrap();
    let mut seen = 0;
    let stopped = generate(&tiny.lmm, &prepared, &options, None, &mut |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((seen, stopped.unwrap().tokens.len()), (3, 3));
}

#[test]
fn sampling_follows_its_seed() {
    let tiny = tiny();
    let hot = |seed| GenerateOptions {
        max_new_tokens: 16,
        temperature: 2.0,
        top_p: 0.95,
        seed,
        ..GenerateOptions::default()
    };
    assert_eq!(said(&tiny, None, &hot(4)), said(&tiny, None, &hot(4)));
    assert_ne!(said(&tiny, None, &hot(4)).tokens, said(&tiny, None, &hot(5)).tokens);
}

#[test]
fn unknown_features_and_layers_are_refused() {
    let tiny = tiny();
    let prepared = tiny.lmm.prepare(&question("What is this?", None)).unwrap();
    let run = |intervention: &Intervention<B>| {
        generate(&tiny.lmm, &prepared, &GenerateOptions::default(), Some(intervention), &mut |_| {
            ControlFlow::Continue(())
        })
    };
    let unknown = intervention(&tiny, vec![Edit { feature: 64, op: EditOp::Ablate }], Positions::All);
    assert!(matches!(run(&unknown), Err(Error::UnknownFeature { index: 64, latents: 64 })));
    let deep = Intervention { hook: Hook::Block(3), ..intervention(&tiny, Vec::new(), Positions::All) };
    assert!(matches!(run(&deep), Err(Error::UnknownLayer { .. })));
}

#[test]
fn steering_changes_the_text() {
    let tiny = tiny();
    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let plain = said(&tiny, Some(&intervention(&tiny, Vec::new(), Positions::All)), &options);
    let pushed = [EditOp::Clamp(200.0), EditOp::Add(200.0)];
    assert!(pushed.into_iter().any(|op| {
        (0..4).any(|feature| {
            said(&tiny, Some(&intervention(&tiny, vec![Edit { feature, op }], Positions::All)), &options).tokens
                != plain.tokens
        })
    }));
}

/// Rewrites all tensors of a checkpoint in f32.
fn widen(dir: &Path, change: impl Fn(&str, &mut [f32])) {
    use safetensors::{Dtype, SafeTensors, tensor::TensorView};
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let halves = view.data().chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
            let mut values: Vec<f32> = halves.collect();
            change(name, &mut values);
            (name.to_string(), view.shape().to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views =
        tensors.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn weights_in_f32_load_in_every_format() {
    use model::Dtype;
    let tiny = tiny();
    let folder = tiny.dir.path().join("model");
    let hidden = |dtype| {
        let lmm = Lmm::<B>::load_as(&folder, &Default::default(), dtype).unwrap();
        let prepared = lmm.prepare(&question("What is this?", Some(picture(32, 32)))).unwrap();
        f32_from_tensor(lmm.hidden_at(&prepared, 1).unwrap())
    };
    let formats = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let from_halves = formats.map(hidden);
    widen(&folder, |_, _| ());
    // The same numbers, stored in more bytes.
    for (dtype, expected) in formats.into_iter().zip(from_halves) {
        close(&hidden(dtype), &expected, 0.0);
    }
}

#[test]
fn a_tensor_that_is_not_finite_is_found() {
    let tiny = tiny();
    let folder = tiny.dir.path().join("model");
    let found = || model::weights::first_not_finite(&folder).unwrap();
    assert_eq!(found(), None);
    rewrite(&folder, |tensors| {
        let newline = tensors.iter_mut().find(|(name, _, _)| name == "image_newline").unwrap();
        newline.2[2..4].copy_from_slice(&half::f16::NEG_INFINITY.to_le_bytes());
    });
    let file = folder.join("model.safetensors");
    assert_eq!(found(), Some((file.clone(), "image_newline".to_string())));
    widen(&folder, |name, values| {
        if name.ends_with("layers.1.mlp.up_proj.weight") {
            values[7] = f32::NAN;
        } else {
            values.iter_mut().for_each(|value| *value = if value.is_finite() { *value } else { 0.0 });
        }
    });
    assert_eq!(found(), Some((file, "language_model.model.layers.1.mlp.up_proj.weight".to_string())));
}
