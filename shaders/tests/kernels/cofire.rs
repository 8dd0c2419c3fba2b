//! Pairs against a plain loop over tokens.

use shaders::cpu::cofire::cofire;
use shaders::kernels::cofire::{Cofire, MAX_FEATURES};
use shaders::pace::Pace;
use shaders::{Cancel, Error, Gpu, TopK};

use crate::common::{Random, two_worlds};
use crate::sparse::random_top_k;

two_worlds!(
    pairs_are_counted_on_awkward_sizes,
    silent_and_absent_features_are_zero,
    small_submissions_give_the_same_answer,
    work_can_be_cancelled_midway,
    bad_input_is_refused,
);

/// The definition: every pair, every token.
fn truth(top: &TopK, features: &[u32]) -> Vec<u32> {
    let fires = |token: u32, feature: u32| {
        let (latents, acts) = top.row(token);
        latents.iter().zip(acts).any(|(&latent, &act)| latent == feature && act > 0.0)
    };
    let rows: Vec<Vec<bool>> =
        features.iter().map(|&feature| (0..top.tokens).map(|token| fires(token, feature)).collect()).collect();
    let common = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|&(&a, &b)| a && b).count() as u32;
    rows.iter().flat_map(|a| rows.iter().map(|b| common(a, b)).collect::<Vec<_>>()).collect()
}

async fn pairs_are_counted_on_awkward_sizes(gpu: Gpu) {
    let kernel = Cofire::new(&gpu);
    // The last one is past a dispatch row of `mark`; then any.
    let mut sizes = vec![
        (1, 1, 1, 1),
        (31, 2, 5, 3),
        (32, 4, 9, 9),
        (33, 4, 40, 17),
        (1000, 32, 300, MAX_FEATURES),
        (3, 1024, 2000, 100),
        (131_100, 32, 100, 2),
    ];
    let mut random = Random(34);
    for most_tokens in [3000, 100, 9].repeat(4) {
        let latents = 1 + random.up_to(600);
        let k = random.up_to(u64::from(latents).min(if most_tokens > 100 { 40 } else { 1024 }));
        let features = random.up_to(u64::from(latents).min(60)) as usize;
        sizes.push((random.up_to(most_tokens), k, latents, features));
    }
    let mut pairs = 0;
    for (tokens, k, latents, count) in sizes {
        let top = random_top_k(tokens, k, latents, u64::from(tokens));
        // In no order of latent.
        let mut features: Vec<u32> = (0..latents).rev().take(count).collect();
        features.rotate_left(count / 3);
        let expected = truth(&top, &features);
        let what = format!("{tokens} tokens, {count} features");
        assert_eq!(kernel.counts(&gpu, &top, &features, &Cancel::default()).await.unwrap(), expected, "{what}");
        assert_eq!(cofire(&top, &features).unwrap(), expected, "{what}, twin");
        pairs += expected.iter().map(|&count| u64::from(count)).sum::<u64>();
    }
    assert!(pairs > 1000, "the test has {pairs} pairs");
}

async fn silent_and_absent_features_are_zero(gpu: Gpu) {
    let kernel = Cofire::new(&gpu);
    // Feature 8 is listed with activation 0 only, feature 9 never.
    let top =
        TopK { tokens: 2, k: 3, top_indices: vec![1, 2, 8, 2, 1, 8], top_acts: vec![1.0, 2.0, 0.0, 1.0, 0.0, 0.0] };
    let expected = [2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1];
    assert_eq!(kernel.counts(&gpu, &top, &[2, 9, 8, 1], &Cancel::default()).await.unwrap(), expected);
    assert_eq!(cofire(&top, &[2, 9, 8, 1]).unwrap(), expected);
    assert_eq!(kernel.counts(&gpu, &TopK::empty(3), &[4, 5], &Cancel::default()).await.unwrap(), [0; 4]);
}

async fn small_submissions_give_the_same_answer(gpu: Gpu) {
    let mut kernel = Cofire::new(&gpu);
    // Three words of tokens; one activation, one word at a time, and a few.
    let top = random_top_k(70, 1, 6, 5);
    for work in [1.0, 600.0] {
        kernel.set_pace(Pace::at_most(work));
        let answer = kernel.counts(&gpu, &top, &[5, 0, 3], &Cancel::default()).await;
        assert_eq!(answer, cofire(&top, &[5, 0, 3]), "{work} at a time");
    }
}

async fn work_can_be_cancelled_midway(gpu: Gpu) {
    let top = random_top_k(9, 2, 6, 5);
    let mut kernel = Cofire::new(&gpu);
    // Two submissions are over before the tenth check, one for each of 18 activations is not.
    let whole = kernel.counts(&gpu, &top, &[1, 2], &Cancel::at_check(10)).await.unwrap();
    kernel.set_pace(Pace::at_most(1.0));
    assert_eq!(kernel.counts(&gpu, &top, &[1, 2], &Cancel::at_check(10)).await, Err(Error::Cancelled));
    let answer = kernel.counts(&gpu, &top, &[1, 2], &Cancel::default()).await;
    assert_eq!(answer, Ok(whole), "the next one is as if nothing had been");
}

async fn bad_input_is_refused(gpu: Gpu) {
    let kernel = Cofire::new(&gpu);
    let top = random_top_k(4, 2, 10, 1);
    let too_many: Vec<u32> = (0..=MAX_FEATURES as u32).collect();
    let cases: [&[u32]; 3] = [&[], &too_many, &[3, 4, 3]];
    for features in cases {
        let refused = kernel.counts(&gpu, &top, features, &Cancel::default()).await;
        assert!(matches!(refused, Err(Error::Size { .. })), "{refused:?}");
        assert_eq!(cofire(&top, features), refused);
    }
    let mut bad = top.clone();
    bad.top_acts[3] = f32::NAN;
    let expected = Err(Error::NotFinite { what: "top_acts [tokens, k]", row: 1 });
    assert_eq!(kernel.counts(&gpu, &bad, &[1], &Cancel::default()).await, expected);
    assert_eq!(cofire(&bad, &[1]), expected);
}
