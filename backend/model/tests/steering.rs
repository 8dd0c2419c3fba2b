//! Interventions, batches, attribution and lenses on a tiny random checkpoint, against definitions written out.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod common;

use burn::tensor::{Distribution, Tensor};
use common::{B, Tiny, close, picture, question, tiny};
use model::batch::{Batch, RowId, Step};
use model::generate::variants;
use model::weights::f32_from_tensor;
use model::{
    AttributeOptions, Edit, EditOp, Error, GenerateOptions, Generation, Hook, Intervention, Positions, Prepared, Sae,
    SaeConfig, SpanKind, Variant, attribute, generate, steer,
};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

fn at_block(tiny: &Tiny, edits: Vec<Edit>) -> Intervention<B> {
    let (hook, sae) = (Hook::Block(1), tiny.sae.clone());
    Intervention { hook, sae, edits, positions: Positions::All, keep_error: false }
}

fn edit(feature: usize, op: EditOp) -> Edit {
    Edit { feature, op }
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..GenerateOptions::default() }
}

fn asked(tiny: &Tiny, text: &str, with_picture: bool) -> Prepared {
    tiny.lmm.prepare(&question(text, with_picture.then(|| picture(32, 32)))).unwrap()
}

fn alone(tiny: &Tiny, prepared: &Prepared, options: &GenerateOptions, with: Option<&Intervention<B>>) -> Generation {
    generate(&tiny.lmm, prepared, options, with, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn random(rows: usize, d: usize) -> Tensor<B, 2> {
    Tensor::random([rows, d], Distribution::Normal(0.0, 1.0), &Default::default())
}

fn same_text(a: &Generation, b: &Generation) {
    assert_eq!(a.token_ids(), b.token_ids());
    assert_eq!(a.text, b.text);
    let logprobs = |g: &Generation| g.tokens.iter().map(|token| token.logprob).collect::<Vec<_>>();
    close(&logprobs(a), &logprobs(b), 1e-3);
}

#[test]
fn the_three_texts_are_those_of_three_runs() {
    let tiny = tiny();
    let prepared = asked(&tiny, "What is this?", true);
    let intervention = at_block(&tiny, vec![edit(9, EditOp::Clamp(30.0)), edit(3, EditOp::Add(-4.0))]);
    let mut told: HashMap<&str, Vec<u32>> = HashMap::new();
    let three = steer(&tiny.lmm, &prepared, &options(10), &intervention, &mut |variant, token| {
        let name = match variant {
            Variant::Original => "original",
            Variant::Reconstructed => "reconstructed",
            Variant::Steered => "steered",
        };
        told.entry(name).or_default().push(token.id);
        ControlFlow::Continue(())
    })
    .unwrap();
    same_text(&three.original, &alone(&tiny, &prepared, &options(10), None));
    same_text(&three.reconstructed, &alone(&tiny, &prepared, &options(10), Some(&intervention.reconstruction())));
    same_text(&three.steered, &alone(&tiny, &prepared, &options(10), Some(&intervention)));
    for (name, text) in [("original", &three.original), ("steered", &three.steered)] {
        assert_eq!(told.get(name).cloned().unwrap_or_default(), text.token_ids());
    }
}

#[test]
fn requests_that_join_and_leave_at_any_time_do_not_disturb_each_other() {
    let tiny = tiny();
    let intervention = at_block(&tiny, vec![edit(5, EditOp::Clamp(20.0))]);
    let requests = [
        (asked(&tiny, "What is this?", true), options(14)),
        (asked(&tiny, "Why?", false), options(9)),
        (asked(&tiny, "Alice feels happy. Why? She saw a dog.", true), options(11)),
    ];
    let mut batch = Batch::new(&tiny.lmm);
    let mut ended: HashMap<RowId, Generation> = HashMap::new();
    let mut turns = |batch: &mut Batch<'_, B>, turns: usize| {
        for _ in 0..turns {
            for (id, step) in batch.step() {
                if let Step::Ended(generation) = step {
                    ended.insert(id, generation);
                }
            }
        }
    };
    let variants = variants(&intervention);
    let first = batch.join(&requests[0].0, &requests[0].1, &variants).unwrap();
    turns(&mut batch, 3);
    let second = batch.join(&requests[1].0, &requests[1].1, &variants[2..]).unwrap();
    turns(&mut batch, 2);
    // The middle text of the first request is given up; the others go on.
    batch.leave(first[1]);
    let third = batch.join(&requests[2].0, &requests[2].1, &variants[..1]).unwrap();
    assert_eq!(batch.len(), 4);
    turns(&mut batch, 20);
    assert!(batch.is_empty());
    let of = |id: RowId| ended.get(&id).expect("the text has ended");
    assert!(!ended.contains_key(&first[1]));
    same_text(of(first[0]), &alone(&tiny, &requests[0].0, &requests[0].1, None));
    same_text(of(first[2]), &alone(&tiny, &requests[0].0, &requests[0].1, Some(&intervention)));
    same_text(of(second[0]), &alone(&tiny, &requests[1].0, &requests[1].1, Some(&intervention)));
    same_text(of(third[0]), &alone(&tiny, &requests[2].0, &requests[2].1, None));
}

#[test]
fn with_the_error_kept_nothing_changes_without_edits() {
    let tiny = tiny();
    let x = random(6, 32);
    let keep = |edits| Intervention { keep_error: true, ..at_block(&tiny, edits) };
    let all = [true; 6];
    assert_eq!(f32_from_tensor(keep(Vec::new()).apply_selected(x.clone(), &all)), f32_from_tensor(x.clone()));
    // An edit moves the stream by exactly what it moves the reconstruction.
    let edits = vec![edit(tiny.sae.encode(x.clone()).indices[0] as usize, EditOp::Ablate), edit(9, EditOp::Clamp(7.0))];
    let plain = at_block(&tiny, Vec::new()).apply_selected(x.clone(), &all);
    let moved = at_block(&tiny, edits.clone()).apply_selected(x.clone(), &all) - plain;
    let kept = keep(edits).apply_selected(x.clone(), &all) - x;
    close(&f32_from_tensor(kept), &f32_from_tensor(moved), 1e-4);
}

#[test]
fn orthogonal_sets_the_component_along_the_row_and_nothing_else() {
    let tiny = tiny();
    let x = random(4, 32);
    let plain = at_block(&tiny, Vec::new()).apply_selected(x.clone(), &[true; 4]);
    let edits = vec![edit(7, EditOp::Orthogonal(3.5))];
    let moved = at_block(&tiny, edits).apply_selected(x, &[true, false, true, true]);
    let row = f32_from_tensor(tiny.sae.w_dec.clone().narrow(0, 7, 1));
    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
    let (plain, moved) = (f32_from_tensor(plain), f32_from_tensor(moved));
    let along = |stream: &[f32]| stream.iter().zip(&row).map(|(a, b)| a * b / norm).sum::<f32>();
    for token in 0..4 {
        let range = token * 32..(token + 1) * 32;
        let (before, after) = (&plain[range.clone()], &moved[range]);
        if token == 1 {
            assert_eq!(before, after, "this position is not selected");
            continue;
        }
        assert!((along(after) - 3.5).abs() < 1e-4, "{}", along(after));
        let rest: Vec<f32> = before.iter().zip(&row).map(|(v, r)| v + (3.5 - along(before)) * r / norm).collect();
        close(after, &rest, 1e-4);
    }
}

#[test]
fn positions_can_be_named_one_by_one() {
    let tiny = tiny();
    let x = random(5, 32);
    let kinds = [model::intervention::PositionKind::Prompt(SpanKind::Text); 5];
    let edits = || vec![edit(7, EditOp::Add(2.0))];
    let all = f32_from_tensor(at_block(&tiny, edits()).apply(x.clone(), 10, &kinds));
    let none = f32_from_tensor(at_block(&tiny, Vec::new()).apply(x.clone(), 10, &kinds));
    let some = Intervention { positions: "11, 13".parse().unwrap(), ..at_block(&tiny, edits()) };
    let some = f32_from_tensor(some.apply(x, 10, &kinds));
    for token in 0..5 {
        let range = token * 32..(token + 1) * 32;
        let expected = if [1, 3].contains(&token) { &all } else { &none };
        close(&some[range.clone()], &expected[range], 1e-6);
    }
    assert!("3,x".parse::<Positions>().is_err());
    let beyond = Intervention { positions: Positions::Tokens(vec![999]), ..at_block(&tiny, edits()) };
    let refused = generate(&tiny.lmm, &asked(&tiny, "Why?", false), &options(2), Some(&beyond), &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(refused, Err(Error::BadInput(_))));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let tiny = tiny();
    for edits in [
        vec![edit(64, EditOp::Ablate)],
        vec![edit(1, EditOp::Clamp(f32::NAN))],
        vec![edit(1, EditOp::Add(f32::INFINITY))],
        vec![edit(1, EditOp::Ablate), edit(1, EditOp::Clamp(2.0))],
    ] {
        assert!(at_block(&tiny, edits.clone()).check().is_err(), "{edits:?}");
    }
}

/// An SAE for the vision tower of the tiny checkpoint, 16 wide.
fn vision_sae() -> Arc<Sae<B>> {
    let device = Default::default();
    let w_dec: Tensor<B, 2> = Tensor::random([24, 16], Distribution::Normal(0.0, 0.3), &device);
    let config =
        SaeConfig { expansion_factor: 1, normalize_decoder: true, num_latents: 24, k: 6, signed: false, d_in: 16 };
    let encoder = w_dec.clone().transpose();
    let (bias, b_dec) = (Tensor::zeros([24], &device), Tensor::zeros([16], &device));
    Arc::new(Sae::top_k(config, encoder, bias, w_dec, b_dec))
}

#[test]
fn steering_the_vision_tower_reaches_the_answer_through_the_projector() {
    let tiny = tiny();
    let prepared = asked(&tiny, "What is this?", true);
    let hook = Hook::Vision(0);
    let hidden = tiny.lmm.hidden_at(&prepared, hook).unwrap();
    // No class token in the tiny tower: 16 patches of 16 numbers.
    assert_eq!(hidden.dims(), [16, 16]);
    let with =
        |edits, keep_error| Intervention { hook, sae: vision_sae(), edits, positions: Positions::All, keep_error };
    let plain = alone(&tiny, &prepared, &options(8), None);
    same_text(&plain, &alone(&tiny, &prepared, &options(8), Some(&with(Vec::new(), true))));
    let pushed = with(vec![edit(3, EditOp::Add(300.0))], true);
    let three = steer(&tiny.lmm, &prepared, &options(8), &pushed, &mut |_, _| ControlFlow::Continue(())).unwrap();
    same_text(&three.original, &plain);
    let logprobs = |g: &Generation| g.tokens.iter().map(|token| token.logprob).collect::<Vec<_>>();
    assert_ne!(logprobs(&three.steered), logprobs(&three.reconstructed));
    // Written out: the changed patches through the rest of the tower, the projector and the blocks.
    let changed = hidden.clone() + vision_row(&pushed, 3) * 300.0;
    let embedded = tiny.lmm.embed_from_vision(&prepared, changed.reshape([1, 16, 16]), 0);
    let language = &tiny.lmm.net.language;
    let last = prepared.input_ids.len() - 1;
    let out = language.blocks_forward(embedded, 0..language.depth()).narrow(1, last, 1);
    let logits = f32_from_tensor(language.logits(out));
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert_eq!(three.steered.tokens[0].id as usize, best);
    // The last block's output is what the language model reads: block 1 of 2 can be read, not steered through.
    assert!(tiny.lmm.check_steerable(Hook::Vision(1)).is_ok());
    assert!(matches!(tiny.lmm.check_hook(Hook::Vision(2)), Err(Error::UnknownVisionBlock { block: 2, blocks: 2 })));
    assert!(tiny.lmm.hidden_at(&asked(&tiny, "Why?", false), hook).is_err(), "no picture, no vision tower");
}

#[test]
fn positions_in_the_tower_are_those_of_its_tiles() {
    let tiny = tiny();
    let prepared = asked(&tiny, "What is this?", true);
    let (hook, sae) = (Hook::Vision(0), vision_sae());
    let with = |positions| {
        let edits = vec![edit(3, EditOp::Add(300.0))];
        let intervention = Intervention { hook, sae: sae.clone(), edits, positions, keep_error: true };
        generate(&tiny.lmm, &prepared, &options(2), Some(&intervention), &mut |_| ControlFlow::Continue(()))
    };
    // 16 patches, no class token, one tile; the prompt has more tokens than that.
    assert!(prepared.input_ids.len() > 17);
    assert!(with(Positions::Tokens(vec![0, 15])).is_ok());
    let error = with(Positions::Tokens(vec![16])).unwrap_err().to_string();
    assert!(error.contains("no position 16") && error.contains("1 tiles of 16"), "{error}");
    for nowhere in [Positions::Text, Positions::Generated] {
        let error = with(nowhere.clone()).unwrap_err().to_string();
        assert!(error.contains(&format!("no {nowhere} positions at vision.0")), "{error}");
    }
    same_text(&with(Positions::All).unwrap(), &with(Positions::Image).unwrap());
}

fn vision_row(intervention: &Intervention<B>, feature: usize) -> Tensor<B, 2> {
    intervention.sae.w_dec.clone().narrow(0, feature, 1)
}

fn what_to_attribute(verify: usize, keep_error: bool) -> AttributeOptions {
    AttributeOptions { hook: Hook::Block(1), answer: 40, baseline: 77, keep_error, verify }
}

/// logit(40) − logit(77) at the last position with this stream at the hook point.
fn difference(tiny: &Tiny, stream: Tensor<B, 2>) -> f32 {
    let language = &tiny.lmm.net.language;
    let tokens = stream.dims()[0];
    let out = language.blocks_forward(stream.unsqueeze(), 2..language.depth()).narrow(1, tokens - 1, 1);
    let logits = f32_from_tensor(language.logits(out));
    logits[40] - logits[77]
}

#[test]
fn attribution_is_the_directional_derivative_of_the_logit_difference() {
    let tiny = tiny();
    let prepared = asked(&tiny, "What is this?", true);
    let found = attribute(&tiny.lmm, &prepared, &tiny.sae, &what_to_attribute(0, false)).unwrap();
    // Δ, the blocks once more on the way back, and the model as it is.
    assert_eq!((found.forward_passes, found.backward_passes), (3, 1));
    let whole = attribute(&tiny.lmm, &prepared, &tiny.sae, &what_to_attribute(0, true)).unwrap();
    assert_eq!((whole.forward_passes, whole.backward_passes), (2, 1), "the stream is that of the model as it is");
    let z = tiny.sae.encode(tiny.lmm.hidden_at(&prepared, 1).unwrap());
    let stream = tiny.sae.decode(&z);
    assert!((found.logit_difference - difference(&tiny, stream.clone())).abs() < 1e-5);
    let mut checked = 0;
    for effect in found.effects.iter().step_by(found.effects.len() / 12) {
        let row = tiny.sae.w_dec.clone().narrow(0, effect.feature as usize, 1);
        let token = effect.token as usize;
        let mut place = vec![0.0f32; z.tokens];
        place[token] = 1.0;
        let place = Tensor::<B, 2>::from_data(burn::tensor::TensorData::new(place, [z.tokens, 1]), &Default::default());
        let nudged = |by: f32| difference(&tiny, stream.clone() + place.clone().matmul(row.clone() * by));
        // Central difference along the decoder row.
        let slope = (nudged(1e-2) - nudged(-1e-2)) / 2e-2;
        let expected = slope * effect.activation;
        assert!((expected - effect.attribution).abs() < 2e-4, "{effect:?}: {expected}");
        checked += 1;
    }
    assert!(checked >= 12);
    let sums: Vec<f32> = found.image.iter().zip(&found.text).map(|(a, b)| a + b).collect();
    close(&sums, &found.total, 1e-6);
    assert!(found.image.iter().any(|v| *v != 0.0) && found.text.iter().any(|v| *v != 0.0));
    let feature = found.strongest(1)[0];
    let map = found.map(feature, z.tokens);
    assert!((map.iter().sum::<f32>() - found.total[feature as usize]).abs() < 1e-5);
}

#[test]
fn verification_really_removes_the_feature() {
    let tiny = tiny();
    let prepared = asked(&tiny, "What is this?", false);
    for keep_error in [false, true] {
        let found = attribute(&tiny.lmm, &prepared, &tiny.sae, &what_to_attribute(6, keep_error)).unwrap();
        assert_eq!(found.verified.len(), 6);
        let hidden = tiny.lmm.hidden_at(&prepared, 1).unwrap();
        for verified in &found.verified {
            let mut z = tiny.sae.encode(hidden.clone());
            let whole = tiny.sae.decode(&z);
            for (index, act) in z.indices.iter().zip(&mut z.acts) {
                if *index == verified.feature {
                    *act = 0.0;
                }
            }
            let error = if keep_error { hidden.clone() - whole.clone() } else { hidden.zeros_like() };
            let with = difference(&tiny, whole + error.clone());
            let without = difference(&tiny, tiny.sae.decode(&z) + error);
            assert!((verified.measured - (with - without)).abs() < 1e-5, "{verified:?}: {}", with - without);
        }
        assert!(found.correlation.is_some());
    }
    let bad = |change: fn(&mut AttributeOptions)| {
        let mut options = what_to_attribute(0, false);
        change(&mut options);
        attribute(&tiny.lmm, &prepared, &tiny.sae, &options).is_err()
    };
    assert!(bad(|options| options.answer = 1 << 30));
    assert!(bad(|options| options.baseline = options.answer));
    assert!(bad(|options| options.hook = Hook::Vision(0)));
    assert!(bad(|options| options.hook = Hook::Block(3)));
}

#[test]
fn lenses_name_the_nearest_words() {
    let tiny = tiny();
    let prepared = asked(&tiny, "What is this?", true);
    let lens = model::lens::embedding_lens(&tiny.lmm, &prepared, 3).unwrap();
    // 16 patches and the newline.
    assert_eq!((lens.ids.len(), lens.scores.len()), (17 * 3, 17 * 3));
    assert!(lens.scores.chunks(3).all(|row| row[0] >= row[1] && row[1] >= row[2] && row[0] <= 1.0 + 1e-5));
    // A word's own embedding is nearest to itself.
    let hidden = tiny.lmm.hidden_at(&prepared, 2).unwrap();
    let logit = model::lens::logit_lens(&tiny.lmm, hidden.clone(), 4).unwrap();
    let tokens = prepared.input_ids.len();
    assert_eq!(logit.ids.len(), tokens * 4);
    // At the last block, the lens is the model's own next token.
    let next = alone(&tiny, &prepared, &options(1), None);
    let last = &next.tokens[0];
    let row = (tokens - 1) * 4;
    assert_eq!(logit.ids[row], last.id);
    assert!((logit.scores[row].ln() - last.logprob).abs() < 1e-4);
    assert!(model::lens::logit_lens(&tiny.lmm, hidden, 1 << 20).is_err());
    assert!(model::lens::embedding_lens(&tiny.lmm, &asked(&tiny, "Why?", false), 3).is_err());
}

#[test]
fn alternatives_are_the_likeliest_tokens() {
    let tiny = tiny();
    let prepared = asked(&tiny, "Why?", false);
    let told = alone(&tiny, &prepared, &GenerateOptions { top_alternatives: 5, ..options(6) }, None);
    for token in &told.tokens {
        assert_eq!(token.alternatives.len(), 5);
        assert_eq!(token.alternatives[0], (token.id, token.logprob), "greedy");
        assert!(token.alternatives.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    }
}

#[test]
fn a_sliding_window_hides_what_is_far_away() {
    let tiny = tiny();
    let mut config = tiny.lmm.config.clone();
    config.text_config.sliding_window = Some(4);
    let model = tiny.dir.path().join("model");
    let net = model::LlavaNext::<B>::load(&config, &model, &Default::default(), model::Dtype::F32).unwrap();
    let ids = |first: u32| tiny.lmm.ids(&[first, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
    // One block sees 4 tokens; after two, the last position has heard of 7.
    let out = |first: u32| {
        let x = net.language.embed(ids(first));
        f32_from_tensor(net.language.blocks_forward(x, 0..2).narrow(1, 9, 1))
    };
    assert_eq!(out(20), out(200));
    let near = |first: u32| {
        let x = net.language.embed(ids(first));
        f32_from_tensor(net.language.blocks_forward(x, 0..2).narrow(1, 3, 1))
    };
    assert_ne!(near(20), near(200));
    // Token by token with a cache: the same.
    let x = net.language.embed(ids(20));
    let mut cache = model::llama::KvCache::new(net.language.depth());
    let depth = net.language.depth();
    let steps: Vec<_> =
        (0..10).map(|t| net.language.cached_forward(x.clone().narrow(1, t, 1), &mut cache, 0..depth)).collect();
    let whole = net.language.blocks_forward(x, 0..depth);
    close(&f32_from_tensor(Tensor::cat(steps, 1)), &f32_from_tensor(whole), 2e-5);
}
