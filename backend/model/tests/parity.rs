//! The model against `transformers` and PyTorch, stage by stage, on files in the published layout.
//!
//! `fixtures/make_parity.py` made the files and the expected numbers; run with `--no-capture` to see the largest errors.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

#[path = "parity/golden.rs"]
mod golden;

use burn::tensor::{Tensor, TensorData};
use golden::{
    Cases, Checkpoint, Goldens, Largest, PictureCase, cases, folder, ids_from_runs, levels, levels_from_values, lmm,
    normalised, op_from_name, question, raw_prompt, relative,
};
use model::weights::f32_from_tensor;
use model::{
    AttributeOptions, Cpu, Dtype, Edit, GenerateOptions, Generation, Hook, Intervention, Lmm, Prepared, PromptInput,
    Sae, SaeFile, TopK, attribute, generate, steer,
};
use std::ops::ControlFlow;
use std::sync::Arc;

/// `‖ours − theirs‖ / ‖theirs‖` of a stage that starts from the same pixel values or ids.
const STAGE_ERROR: f64 = 1e-4;
/// Of the hidden states that start from the picture's file.
const FILE_ERROR: f64 = 5e-3;
/// Of the mean of all levels: `serde_json` may read the last digit of the script's number differently.
const MEAN_LEVEL_ERROR: f64 = 1e-9;
const SAE_ERROR: f64 = 1e-5;
const ATTRIBUTION_ERROR: f64 = 1e-3;

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, temperature: 0.0, ..GenerateOptions::default() }
}

fn ids(generation: &Generation) -> Vec<u32> {
    generation.tokens.iter().map(|token| token.id).collect()
}

fn answer(lmm: &Lmm<Cpu>, prepared: &Prepared, count: usize, with: Option<&Intervention<Cpu>>) -> Generation {
    generate(lmm, prepared, &greedy(count), with, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn text_prompt(text: &str, chat: bool) -> PromptInput {
    PromptInput { text: text.into(), chat, image: None }
}

/// Both checkpoints with their cases.
fn checkpoints(cases: &Cases) -> [(&'static str, &Checkpoint); 2] {
    [("llama3", &cases.llama3), ("mistral", &cases.mistral)]
}

#[test]
fn pixels_are_pillows() {
    let cases = cases();
    let lmm = lmm("llama3");
    for case in &cases.llama3.pictures {
        let name = &case.picture;
        let prepared = lmm.prepare(&raw_prompt(name)).unwrap();
        let pixels = prepared.pixels.unwrap();
        assert_eq!((pixels.tiles, pixels.side), (case.tiles, 336), "{name}: tiles");
        let expected = levels(case.stem());
        let found = levels_from_values(&pixels.values, pixels.side);
        assert_eq!(found.len(), expected.as_raw().len(), "{name}: number of levels");
        let mut sum = 0f64;
        for (i, (found, &expected)) in found.iter().zip(expected.as_raw()).enumerate() {
            let level = found.round();
            assert!((found - level).abs() <= 0.01, "{name}: value {i} is between levels: {found}");
            // Files are decoded and resampled in the same arithmetic: nothing may differ.
            assert_eq!(level, f32::from(expected), "{name}: value {i}");
            sum += f64::from(level);
        }
        let mean_difference = (sum / found.len() as f64 - case.mean_level).abs();
        assert!(mean_difference <= MEAN_LEVEL_ERROR, "{name}: mean level differs by {mean_difference}");
        eprintln!("pixels of {name}: all {} levels equal, and their mean", found.len());
    }
}

#[test]
fn prompts_become_the_same_ids() {
    let cases = cases();
    let mut compared = 0;
    for (name, checkpoint) in checkpoints(&cases) {
        let lmm = lmm(name);
        for case in &checkpoint.pictures {
            let raw = lmm.prepare(&raw_prompt(&case.picture)).unwrap();
            assert_eq!(raw.input_ids, ids_from_runs(&case.raw_ids), "{name}, {}: raw prompt", case.picture);
            let chat = lmm.prepare(&question(&case.question, Some(&case.picture))).unwrap();
            assert_eq!(chat.rendered, case.rendered, "{name}, {}: chat template", case.picture);
            assert_eq!(chat.input_ids, ids_from_runs(&case.chat_ids), "{name}, {}: chat prompt", case.picture);
            compared += 2;
        }
        for case in &checkpoint.texts {
            let prepared = lmm.prepare(&text_prompt(&case.text, case.chat)).unwrap();
            assert_eq!(prepared.rendered, case.rendered, "{name}, {:?}: chat template", case.text);
            assert_eq!(prepared.input_ids, case.ids, "{name}, {:?}", case.text);
            compared += 1;
        }
    }
    eprintln!("input ids: {compared} prompts, all equal");
}

/// Hidden states at the hook point and the last position's logits.
fn hidden_and_logits(lmm: &Lmm<Cpu>, prepared: &Prepared, hook: usize) -> (Vec<f32>, Vec<f32>) {
    let hidden = lmm.hidden_at(prepared, Hook::Block(hook)).unwrap();
    let language = &lmm.net.language;
    let last = language.blocks_forward(hidden.clone().unsqueeze(), hook + 1..language.depth());
    let [_, tokens, _] = last.dims();
    (f32_from_tensor(hidden), f32_from_tensor(language.logits(last.narrow(1, tokens - 1, 1))))
}

/// Every stage of the chosen pictures of one checkpoint.
fn compare_stages(name: &str, chosen: impl Fn(&PictureCase) -> bool) {
    let (cases, goldens, lmm) = (cases(), Goldens::load(), lmm(name));
    let checkpoint = if name == "llama3" { &cases.llama3 } else { &cases.mistral };
    let mut clip = Largest::new("CLIP, feature layer", STAGE_ERROR);
    let mut projector = Largest::new("projector", STAGE_ERROR);
    let mut hidden = Largest::new("hidden states at the hook point", STAGE_ERROR);
    let mut logits = Largest::new("last logits", STAGE_ERROR);
    let mut from_file = Largest::new("hidden states from the picture's file", FILE_ERROR);
    let mut compared = 0;
    for case in checkpoint.pictures.iter().filter(|case| case.staged && chosen(case)) {
        let (picture, key) = (&case.picture, format!("{name}/{}", case.stem()));
        let mut prepared = lmm.prepare(&raw_prompt(picture)).unwrap();
        let expected_values = normalised(&levels(case.stem()));
        let pixels = prepared.pixels.as_mut().unwrap();
        let shape = [pixels.tiles, 3, pixels.side, pixels.side];
        let own_values = std::mem::replace(&mut pixels.values, expected_values.clone());
        let pixels = Tensor::<Cpu, 4>::from_data(TensorData::new(expected_values.clone(), shape), &lmm.device);

        let features = lmm.net.vision.hidden_at(pixels.clone(), lmm.config.feature_layer());
        clip.check(picture, goldens.error(&format!("{key}/clip"), &f32_from_tensor(features), cases.rows));
        let patches = f32_from_tensor(lmm.net.patch_tokens(pixels));
        projector.check(picture, goldens.error(&format!("{key}/projector"), &patches, cases.rows));
        let (found, last) = hidden_and_logits(&lmm, &prepared, cases.hook);
        let mut hidden_error = goldens.error(&format!("{key}/hidden"), &found, cases.rows);
        hidden.check(picture, hidden_error);
        logits.check(picture, goldens.error(&format!("{key}/logits"), &last, cases.rows));

        // The same levels up to f32's rounding need no second pass through the model.
        let difference = relative(&own_values, &expected_values);
        if difference.is_nan() || difference > 1e-6 {
            prepared.pixels.as_mut().unwrap().values = own_values;
            let found = f32_from_tensor(lmm.hidden_at(&prepared, Hook::Block(cases.hook)).unwrap());
            hidden_error = goldens.error(&format!("{key}/hidden"), &found, cases.rows);
        }
        from_file.check(picture, hidden_error);
        compared += 1;
    }
    assert!(compared > 0, "{name}: no picture was chosen");
    eprintln!("{name}: stages of {compared} pictures");
}

/// Of such a picture no row or no column of tile patches is left after unpadding.
fn is_line(case: &PictureCase) -> bool {
    case.picture.starts_with("line_")
}

#[test]
fn stages_of_the_llama_checkpoint() {
    compare_stages("llama3", |case| !is_line(case));
}

#[test]
fn stages_of_pictures_thinner_than_a_patch() {
    compare_stages("llama3", is_line);
}

#[test]
fn stages_of_the_mistral_checkpoint() {
    compare_stages("mistral", |_| true);
}

/// Computing in a half format costs what the format cannot hold, and no more: bf16 has 8 bits, f16 has 11.
#[test]
fn half_formats_stay_close() {
    let cases = cases();
    let input = question("What is this?", Some("photo_600x400.png"));
    for (name, _) in checkpoints(&cases) {
        let path = folder().join(name);
        let hidden = |dtype| {
            let lmm = Lmm::<Cpu>::load_as(&path, &Default::default(), dtype).unwrap();
            f32_from_tensor(lmm.hidden_at(&lmm.prepare(&input).unwrap(), cases.hook).unwrap())
        };
        let whole = hidden(Dtype::F32);
        for (dtype, allowed) in [(Dtype::F16, 3e-3), (Dtype::Bf16, 2e-2)] {
            let error = relative(&hidden(dtype), &whole);
            eprintln!("{name} in {dtype}: error {error:.2e} beside f32, allowed {allowed:.0e}");
            assert!(error <= allowed, "{name} in {dtype}: {error}");
        }
    }
}

fn compare_answer(case: &str, found: &Generation, expected: &[u32], text: Option<&String>) {
    assert_eq!(ids(found), expected, "{case}: greedy tokens");
    assert_eq!(Some(&found.text), text, "{case}: text");
}

#[test]
fn greedy_answers_about_pictures_are_equal() {
    let cases = cases();
    let mut tokens = 0;
    for (name, checkpoint) in checkpoints(&cases) {
        let lmm = lmm(name);
        for case in &checkpoint.pictures {
            let Some(expected) = &case.greedy else { continue };
            let prepared = lmm.prepare(&question(&case.question, Some(&case.picture))).unwrap();
            let found = answer(&lmm, &prepared, 32, None);
            compare_answer(&format!("{name}, {}", case.picture), &found, expected, case.greedy_text.as_ref());
            tokens += expected.len();
        }
    }
    assert!(tokens >= 8 * 32, "only {tokens} tokens were compared");
    eprintln!("greedy answers about pictures: {tokens} tokens, all equal");
}

#[test]
fn text_alone_gives_the_same_numbers_and_words() {
    let (cases, goldens) = (cases(), Goldens::load());
    let mut hidden = Largest::new("hidden states of texts", STAGE_ERROR);
    let mut logits = Largest::new("last logits of texts", STAGE_ERROR);
    for (name, checkpoint) in checkpoints(&cases) {
        let lmm = lmm(name);
        for case in &checkpoint.texts {
            let prepared = lmm.prepare(&text_prompt(&case.text, case.chat)).unwrap();
            let (found, last) = hidden_and_logits(&lmm, &prepared, cases.hook);
            hidden.check(&case.key, goldens.error(&format!("{}/hidden", case.key), &found, cases.rows));
            logits.check(&case.key, goldens.error(&format!("{}/logits", case.key), &last, cases.rows));
            if let Some(expected) = &case.greedy {
                compare_answer(&case.key, &answer(&lmm, &prepared, 32, None), expected, case.greedy_text.as_ref());
            }
        }
    }
}

#[test]
fn texts_end_at_each_stop_token_of_the_generation_config() {
    let (cases, lmm) = (cases(), lmm("llama3"));
    assert_eq!(cases.llama3.stops.len(), 2);
    for case in &cases.llama3.stops {
        let prepared = lmm.prepare(&text_prompt(&case.text, false)).unwrap();
        let found = answer(&lmm, &prepared, 32, None);
        assert_eq!(ids(&found), case.greedy, "{:?} must end before {}", case.text, case.token);
    }
}

fn sae() -> Arc<Sae<Cpu>> {
    Arc::new(Sae::load(&folder().join("sae"), &Default::default()).unwrap())
}

#[test]
fn the_sae_encodes_to_the_same_features() {
    let (cases, goldens, sae) = (cases(), Goldens::load(), sae());
    let file = SaeFile::open(&folder().join("sae")).unwrap();
    let mut acts = Largest::new("activations", SAE_ERROR);
    let mut decoded = Largest::new("reconstruction", SAE_ERROR);
    for case in &cases.encode {
        let key = &case.key;
        let (hidden, width) = goldens.matrix(&format!("{key}/hidden"));
        let tokens = hidden.len() / width;
        let expected = goldens.i32s(&format!("{key}/indices"));
        let expected_acts = goldens.f32s(&format!("{key}/acts"));
        let mut compare = |way: &str, z: &TopK| {
            assert_eq!((z.tokens, z.tokens * z.k), (tokens, expected.len()), "{key}, {way}: shape");
            // The script left no ties, so that the order is fixed too.
            for (token, (found, expected)) in z.indices.chunks_exact(z.k).zip(expected.chunks_exact(z.k)).enumerate() {
                let found: Vec<i32> = found.iter().map(|&index| index as i32).collect();
                assert_eq!(found, expected, "{key}, {way}: features of token {token}");
            }
            acts.check(&format!("{key}, {way}"), relative(&z.acts, &expected_acts));
        };
        compare("memory-mapped", &file.encode(&hidden).unwrap());
        let z = sae.encode(Tensor::from_data(TensorData::new(hidden, [tokens, width]), &Default::default()));
        compare("tensors", &z);
        decoded.check(key, relative(&f32_from_tensor(sae.decode(&z)), &goldens.f32s(&format!("{key}/decoded"))));
    }
}

#[test]
fn each_form_of_steering_gives_the_same_words() {
    let (cases, lmm, sae) = (cases(), lmm("llama3"), sae());
    let mut compared = 0;
    for case in &cases.steer {
        let picture = case.picture.as_deref();
        let prepared = lmm.prepare(&question(&case.question, picture)).unwrap();
        for (form, expected) in &case.forms {
            compared += 1;
            let what = format!("{}, {form}", picture.unwrap_or("text alone"));
            if form == "original" {
                assert_eq!(ids(&answer(&lmm, &prepared, 24, None)), expected.ids, "{what}");
                continue;
            }
            let edit =
                |(op, feature, value): &(String, usize, f32)| Edit { feature: *feature, op: op_from_name(op, *value) };
            let intervention = Intervention {
                hook: Hook::Block(cases.hook),
                sae: sae.clone(),
                edits: expected.edits.iter().map(edit).collect(),
                positions: expected.positions.parse().unwrap(),
                keep_error: expected.keep_error,
            };
            // All three texts at once for the forms people use most; one alone for the others.
            if form == "clamp_all" || form == "clamp_prefill" {
                let all = steer(&lmm, &prepared, &greedy(24), &intervention, &mut |_, _| ControlFlow::Continue(()));
                let all = all.unwrap();
                assert_eq!(ids(&all.steered), expected.ids, "{what}: steered");
                assert_eq!(ids(&all.reconstructed), case.forms["reconstructed"].ids, "{what}: reconstructed");
                assert_eq!(ids(&all.original), case.forms["original"].ids, "{what}: original");
            } else {
                assert_eq!(ids(&answer(&lmm, &prepared, 24, Some(&intervention))), expected.ids, "{what}");
            }
        }
    }
    eprintln!("steering: {compared} texts, all equal");
}

#[test]
fn attribution_is_the_gradient_of_the_reference() {
    let (cases, goldens, lmm, sae) = (cases(), Goldens::load(), lmm("llama3"), sae());
    let mut parts = Largest::new("attribution (total, image, text, each token)", ATTRIBUTION_ERROR);
    let mut measured = Largest::new("measured effects of the strongest features", ATTRIBUTION_ERROR);
    let mut differences = Largest::new("logit differences", ATTRIBUTION_ERROR);
    for case in &cases.attribution {
        let what = case.picture.as_deref().unwrap_or("text alone");
        let prepared = lmm.prepare(&question(&case.question, case.picture.as_deref())).unwrap();
        let options = AttributeOptions {
            hook: Hook::Block(cases.hook),
            answer: case.answer,
            baseline: case.baseline,
            keep_error: false,
            verify: 40,
        };
        let found = attribute(&lmm, &prepared, &sae, &options).unwrap();
        differences.check(what, relative(&[found.logit_difference], &[case.logit_difference]));
        differences.check(what, relative(&[found.logit_difference_original], &[case.logit_difference_original]));
        for (part, values) in [("total", &found.total), ("image", &found.image), ("text", &found.text)] {
            let expected = goldens.f32s(&format!("{}/{part}", case.key));
            parts.check(&format!("{what}, {part}"), relative(values, &expected));
        }
        let mut effects = vec![0f32; prepared.input_ids.len() * sae.latents()];
        for effect in &found.effects {
            effects[effect.token as usize * sae.latents() + effect.feature as usize] = effect.attribution;
        }
        assert_eq!(found.effects.len(), case.positive_effects, "{what}: active (token, feature) pairs");
        let error = goldens.error(&format!("{}/effects", case.key), &effects, cases.rows);
        parts.check(&format!("{what}, each token"), error);

        assert_eq!(found.verified.len(), 40, "{what}: verified features");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for verified in &found.verified {
            let rank = case.top.iter().position(|&feature| feature == verified.feature);
            let rank = rank.unwrap_or_else(|| panic!("{what}: feature {} is not a strong one", verified.feature));
            if let Some(&effect) = case.measured.get(rank) {
                ours.push(verified.measured);
                theirs.push(effect);
            }
        }
        assert!(ours.len() >= 38, "{what}: {} of the 40 features are the reference's", ours.len());
        measured.check(what, relative(&ours, &theirs));
        let correlation = found.correlation.unwrap();
        assert!(correlation >= 0.99, "{what}: correlation {correlation}");

        // The reference needs two forward passes and one backward pass for each latent; here the blocks run forward for
        // the logits, for the model as it is, and once more on the way back.
        assert_eq!((found.forward_passes, found.backward_passes), (3, 1), "{what}");
        let (passes, reference) = (found.forward_passes + found.backward_passes, 3 * sae.latents());
        let ratio = reference / passes;
        eprintln!("{what}: correlation {correlation:.4}; {passes} passes, the reference {reference}: {ratio} to 1");
        assert!(ratio >= 100, "{what}: {passes} passes");
    }
}
