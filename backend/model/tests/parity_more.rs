//! Further interventions, the vision tower's, the lenses, and a large picture against `transformers` and PyTorch.
//!
//! `fixtures/make_parity_more.py` made the expected numbers; run with `--no-capture` to see the largest errors.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

#[path = "parity/golden.rs"]
mod golden;

use burn::tensor::{Tensor, TensorData};
use golden::{
    Goldens, Largest, cases, folder, levels, lmm, more_cases, normalised, op_from_name, question, raw_prompt, relative,
};
use model::lens::{Lens, embedding_lens, logit_lens};
use model::weights::f32_from_tensor;
use model::{Cpu, Edit, GenerateOptions, Hook, Intervention, Sae, generate};
use std::ops::ControlFlow;
use std::sync::Arc;

/// `‖ours − theirs‖ / ‖theirs‖`.
const STAGE_ERROR: f64 = 1e-4;
const LENS_ERROR: f64 = 1e-4;

#[test]
fn further_forms_of_steering_give_the_same_words() {
    let (more, lmm) = (more_cases(), lmm("llama3"));
    let mut compared = 0;
    for case in &more.steer {
        let hook: Hook = case.hook.parse().unwrap();
        let sae = if matches!(hook, Hook::Vision(_)) { "vision_sae" } else { "sae" };
        let sae = Arc::new(Sae::<Cpu>::load(&folder().join(sae), &Default::default()).unwrap());
        let prepared = lmm.prepare(&question(&case.question, case.picture.as_deref())).unwrap();
        for (form, expected) in &case.forms {
            let edit =
                |(op, feature, value): &(String, usize, f32)| Edit { feature: *feature, op: op_from_name(op, *value) };
            let intervention = Intervention {
                hook,
                sae: sae.clone(),
                edits: expected.edits.iter().map(edit).collect(),
                positions: expected.positions.parse().unwrap(),
                keep_error: expected.keep_error,
            };
            let options = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
            let go_on = &mut |_: &model::GeneratedToken| ControlFlow::Continue(());
            let found = generate(&lmm, &prepared, &options, Some(&intervention), go_on).unwrap();
            let what = format!("{hook}, {}, {form}", case.picture.as_deref().unwrap_or("text alone"));
            assert_eq!(found.token_ids(), expected.ids, "{what}");
            compared += 1;
        }
    }
    assert!(compared >= 25, "only {compared} texts");
    eprintln!("further steering: {compared} texts, all equal");
}

/// The stored positions of a lens: words equal, scores close.
fn compare_lens(key: &str, goldens: &Goldens, lens: &Lens, largest: &mut Largest) {
    let rows = goldens.i32s(&format!("{key}/rows"));
    let (mut ids, mut scores) = (Vec::new(), Vec::new());
    for row in rows {
        let range = row as usize * lens.n..(row as usize + 1) * lens.n;
        ids.extend(lens.ids[range.clone()].iter().map(|&id| id as i32));
        scores.extend_from_slice(&lens.scores[range]);
    }
    assert_eq!(ids, goldens.i32s(&format!("{key}/ids")), "{key}: words");
    largest.check(key, relative(&scores, &goldens.f32s(&format!("{key}/scores"))));
}

#[test]
fn lenses_name_the_references_words() {
    let (cases, more, goldens, lmm) = (cases(), more_cases(), Goldens::open("more.safetensors"), lmm("llama3"));
    let mut logit = Largest::new("probabilities of the logit lens", LENS_ERROR);
    let mut embedding = Largest::new("cosines of the embedding lens", LENS_ERROR);
    for case in &more.lenses {
        let prepared = lmm.prepare(&question(&case.question, case.picture.as_deref())).unwrap();
        let hidden = lmm.hidden_at(&prepared, cases.hook).unwrap();
        let lens = logit_lens(&lmm, hidden, more.words).unwrap();
        compare_lens(&format!("{}/logit", case.key), &goldens, &lens, &mut logit);
        if case.picture.is_some() {
            let lens = embedding_lens(&lmm, &prepared, more.words).unwrap();
            compare_lens(&format!("{}/embedding", case.key), &goldens, &lens, &mut embedding);
        }
    }
}

#[test]
fn stages_of_a_large_picture() {
    let (cases, more, goldens, lmm) = (cases(), more_cases(), Goldens::open("more.safetensors"), lmm("llama3"));
    let prepared = lmm.prepare(&raw_prompt(&more.large)).unwrap();
    let pixels = prepared.pixels.as_ref().unwrap();
    // From the file: the levels are Pillow's, and so the values but for f32's rounding.
    let expected = normalised(&levels(more.large.trim_end_matches(".png")));
    let mut values = Largest::new("pixel values", 1e-6);
    values.check(&more.large, relative(&pixels.values, &expected));
    let shape = [pixels.tiles, 3, pixels.side, pixels.side];
    let tiles = Tensor::<Cpu, 4>::from_data(TensorData::new(pixels.values.clone(), shape), &lmm.device);
    let mut stages = Largest::new("stages of a large picture", STAGE_ERROR);
    let mut check =
        |stage: &str, found: &[f32]| stages.check(stage, goldens.error(&format!("large/{stage}"), found, cases.rows));
    check("clip", &f32_from_tensor(lmm.net.vision.hidden_at(tiles.clone(), lmm.config.feature_layer())));
    check("projector", &f32_from_tensor(lmm.net.patch_tokens(tiles)));
    let hidden = lmm.hidden_at(&prepared, cases.hook).unwrap();
    check("hidden", &f32_from_tensor(hidden.clone()));
    let language = &lmm.net.language;
    let last = language.blocks_forward(hidden.unsqueeze(), cases.hook + 1..language.depth());
    let tokens = last.dims()[1];
    check("logits", &f32_from_tensor(language.logits(last.narrow(1, tokens - 1, 1))));
}
