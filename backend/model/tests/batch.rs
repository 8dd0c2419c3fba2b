//! What goes wrong with one text is not the others' matter; what is told is what was generated; what nobody waits for is
//! given up.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod common;

use common::{B, Tiny, close, picture, question, tiny};
use half::bf16;
use model::attribution::attribute_unless;
use model::batch::{Batch, RowId, Step};
use model::generate::variants;
use model::{
    AttributeOptions, Dtype, Edit, EditOp, Error, GenerateOptions, Generation, Hook, Intervention, Lmm, Positions,
    Prepared, Sae, attribute, generate,
};
use std::cell::Cell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

fn asked(tiny: &Tiny, text: &str, with_picture: bool) -> Prepared {
    tiny.lmm.prepare(&question(text, with_picture.then(|| picture(32, 32)))).unwrap()
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..GenerateOptions::default() }
}

fn alone(tiny: &Tiny, prepared: &Prepared, options: &GenerateOptions, with: Option<&Intervention<B>>) -> Generation {
    generate(&tiny.lmm, prepared, options, with, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn clamped(tiny: &Tiny) -> Intervention<B> {
    let edits = vec![Edit { feature: 5, op: EditOp::Clamp(20.0) }];
    let (hook, sae) = (Hook::Block(1), tiny.sae.clone());
    Intervention { hook, sae, edits, positions: Positions::All, keep_error: false }
}

fn same_text(a: &Generation, b: &Generation) {
    assert_eq!(a.token_ids(), b.token_ids());
    assert_eq!(a.text, b.text);
    let logprobs = |g: &Generation| g.tokens.iter().map(|token| token.logprob).collect::<Vec<_>>();
    close(&logprobs(a), &logprobs(b), 1e-3);
}

/// How texts ended.
type Ends = HashMap<RowId, Result<Generation, Error>>;

fn run(batch: &mut Batch<'_, B>, turns: usize, ends: &mut Ends) {
    for _ in 0..turns {
        for (id, step) in batch.step() {
            let end = match step {
                Step::Token(_) => continue,
                Step::Ended(generation) => Ok(generation),
                Step::Failed(error) => Err(error),
            };
            assert!(ends.insert(id, end).is_none(), "a text ends once");
        }
    }
}

/// A good request runs, one joins that goes wrong with its first generated token: its steered text's error. The good
/// texts must be what they are alone.
fn spoiled_by(bad: impl FnOnce(&Tiny) -> Intervention<B>) -> Error {
    let tiny = tiny();
    let (good, bad) = (clamped(&tiny), bad(&tiny));
    let (first, second) = (asked(&tiny, "What is this?", true), asked(&tiny, "Why?", false));
    let (mut batch, mut ends) = (Batch::new(&tiny.lmm), Ends::new());
    let good_rows = batch.join(&first, &options(14), &variants(&good)).unwrap();
    run(&mut batch, 3, &mut ends);
    let bad_rows = batch.join(&second, &options(9), &[None, Some(Arc::new(bad))]).unwrap();
    run(&mut batch, 20, &mut ends);
    assert!(batch.is_empty());
    let mut end = |id: RowId| ends.remove(&id).expect("the text has ended");
    let plain = good.reconstruction();
    for (row, with) in good_rows.iter().zip([None, Some(&plain), Some(&good)]) {
        same_text(&end(*row).unwrap(), &alone(&tiny, &first, &options(14), with));
    }
    // The other text of the request is told apart where numbers alone are wrong.
    if let Ok(text) = end(bad_rows[0]) {
        same_text(&text, &alone(&tiny, &second, &options(9), None));
    }
    end(bad_rows[1]).unwrap_err()
}

#[test]
fn a_text_that_overflows_ends_alone() {
    let error = spoiled_by(|tiny| {
        // Together they leave f32; one by one they do not.
        let edits = (0..64).map(|feature| Edit { feature, op: EditOp::Add(3e38) }).collect();
        Intervention { edits, positions: Positions::Generated, keep_error: true, ..clamped(tiny) }
    });
    assert!(matches!(error, Error::Overflow { .. }), "{error}");
}

#[test]
fn a_text_that_panics_ends_alone() {
    let error = spoiled_by(|tiny| {
        // The prompt leaves the decoder alone; with the first generated token a row is read that is not there.
        let mut sae = Sae::clone(&tiny.sae);
        sae.w_dec = sae.w_dec.clone().narrow(0, 0, 1);
        let edits = vec![Edit { feature: 40, op: EditOp::Add(1.0) }];
        let (sae, positions) = (Arc::new(sae), Positions::Generated);
        Intervention { sae, edits, positions, keep_error: true, ..clamped(tiny) }
    });
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
}

#[test]
fn numbers_that_overflow_in_the_prompt_are_the_edits_fault() {
    let tiny = tiny();
    let edits = (0..64).map(|feature| Edit { feature, op: EditOp::Add(3e38) }).collect();
    let with = Intervention { edits, ..clamped(&tiny) };
    let prepared = asked(&tiny, "Why?", false);
    let found = generate(&tiny.lmm, &prepared, &options(2), Some(&with), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(found, Err(Error::Overflow { .. })), "{found:?}");
}

#[test]
fn the_text_is_the_decoding_of_all_tokens() {
    let tiny = tiny();
    let prepared = asked(&tiny, "What is this?", false);
    let (mut broken, mut told) = (0, 0);
    for seed in 0..40 {
        let hot = GenerateOptions { max_new_tokens: 1 + seed % 5, temperature: 3.0, seed: seed as u64, ..options(0) };
        let found = alone(&tiny, &prepared, &hot, None);
        assert_eq!(found.text, tiny.lmm.tokenizer.decode(&found.token_ids(), true).unwrap());
        assert_eq!(found.text, found.tokens.iter().map(|token| token.text.as_str()).collect::<String>());
        broken += usize::from(found.text.ends_with('\u{fffd}'));
        told += usize::from(!found.text.is_empty());
    }
    assert!(broken >= 3 && told > broken, "{broken} of {told} texts end inside a character");
}

#[test]
fn spaces_are_cleaned_up_where_the_tokenizer_asks_for_it() {
    let tiny = tiny();
    let folder = tiny.dir.path().join("model");
    let ids = tiny.lmm.tokenizer.encode("a cat . a dog , it 's red", false).unwrap().get_ids().to_vec();
    assert_eq!(tiny.lmm.decode(&ids).unwrap(), "a cat . a dog , it 's red");
    let path = folder.join("tokenizer_config.json");
    let mut settings: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    settings["clean_up_tokenization_spaces"] = true.into();
    std::fs::write(&path, settings.to_string()).unwrap();
    let lmm = Lmm::<B>::load(&folder, &Default::default()).unwrap();
    assert_eq!(lmm.decode(&ids).unwrap(), "a cat. a dog, it's red");
}

#[test]
fn a_tokenizer_of_another_checkpoint_is_named() {
    let tiny = tiny();
    let mut config = tiny.lmm.config.clone();
    config.text_config.vocab_size = 50;
    let net = tiny.lmm.net.clone();
    let lmm = Lmm::with_net(&tiny.dir.path().join("model"), config, net, &Default::default()).unwrap();
    let error = lmm.prepare(&question("What is this?", None)).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("vocab_size in config.json is 50"), "{error}");
}

fn what_to_attribute(verify: usize) -> AttributeOptions {
    AttributeOptions { hook: Hook::Block(1), answer: 40, baseline: 77, keep_error: false, verify }
}

#[test]
fn nothing_is_computed_for_nobody() {
    let tiny = tiny();
    let prepared = asked(&tiny, "What is this?", true);
    let asked_times = |patience: usize, work: &dyn Fn(&dyn Fn() -> bool) -> bool| {
        let calls = Cell::new(0);
        let gone = || {
            calls.set(calls.get() + 1);
            calls.get() > patience
        };
        assert!(work(&gone), "given up");
        calls.get()
    };
    let attributed = |gone: &dyn Fn() -> bool| {
        let found = attribute_unless(&tiny.lmm, &prepared, &tiny.sae, &what_to_attribute(60), gone);
        matches!(found, Err(Error::Cancelled))
    };
    // In the first pass, on the way back, and while features are removed: at the next block.
    for patience in [0, 1, 4, 10, 30] {
        assert_eq!(asked_times(patience, &attributed), patience + 1);
    }
    let read = |gone: &dyn Fn() -> bool| {
        matches!(tiny.lmm.hidden_unless(&prepared, Hook::Block(2), gone), Err(Error::Cancelled))
    };
    assert_eq!(asked_times(2, &read), 3);
}

#[test]
fn logit_differences_of_a_half_format_are_not_rounded_to_it() {
    let tiny = tiny();
    let lmm = Lmm::<B>::load_as(&tiny.dir.path().join("model"), &Default::default(), Dtype::Bf16).unwrap();
    let prepared = lmm.prepare(&question("What is this?", None)).unwrap();
    let found = attribute(&lmm, &prepared, &tiny.sae, &what_to_attribute(8)).unwrap();
    let rounded = |value: f32| bf16::from_f32(value).to_f32() == value;
    assert!(!rounded(found.logit_difference), "{}", found.logit_difference);
    assert!(!rounded(found.logit_difference_original), "{}", found.logit_difference_original);
    assert_eq!(found.verified.len(), 8);
    assert!(found.verified.iter().any(|verified| !rounded(verified.measured)), "{:?}", found.verified);
}
