//! Pooling against f64, and bit by bit against the twin.

use shaders::cpu::feature_pool::feature_pool;
use shaders::kernels::feature_pool::FeaturePool;
use shaders::pace::Pace;
use shaders::{Cancel, Error, Gpu, MAX_LATENTS, PoolBy, Pooled, TopK};

use crate::common::{Random, two_worlds};
use crate::sparse::{random_top_k, whole_top_k};

two_worlds!(
    means_and_maxima_are_close_to_f64,
    ties_go_to_the_lower_feature,
    every_call_starts_from_zero,
    activations_of_any_size_are_pooled,
    the_largest_sae_is_pooled,
    small_submissions_give_the_same_answer,
    work_can_be_cancelled_midway,
    bad_input_is_refused,
);

/// Mean and maximum of every feature in f64.
fn truth(top: &TopK, latents: u32, tokens: &[u32]) -> Vec<(f64, f32)> {
    let mut truth = vec![(0.0, 0.0f32); latents as usize];
    for &token in tokens {
        let (features, acts) = top.row(token);
        for (&feature, &act) in features.iter().zip(acts) {
            let (mean, max) = &mut truth[feature as usize];
            *mean += f64::from(act) / tokens.len() as f64;
            *max = act.max(*max);
        }
    }
    truth
}

/// Panics unless `pooled` is in order and right, and lists every feature that fires.
fn assert_right(pooled: &[Pooled], truth: &[(f64, f32)], by: PoolBy, tokens: usize) {
    let largest = truth.iter().fold(0.0f32, |largest, &(_, max)| largest.max(max));
    // Half a unit, and the rounding of the mean to f32.
    let unit = tokens as f64 * f64::from(largest) / f64::from(1 << 30);
    for one in pooled {
        let (mean, max) = truth[one.feature as usize];
        // Written so that NaN fails.
        let close = (f64::from(one.mean) - mean).abs() <= 0.5 * unit + 1e-6 * mean;
        assert!(close && one.max == max, "{one:?}, not {mean} and {max}");
    }
    let strength = |one: &Pooled| if by == PoolBy::Mean { one.mean } else { one.max };
    for pair in pooled.windows(2) {
        let (a, b) = (strength(&pair[0]), strength(&pair[1]));
        assert!(a > b || (a == b && pair[0].feature < pair[1].feature), "{pair:?}");
    }
    assert_eq!(pooled.len(), truth.iter().filter(|&&(_, max)| max > 0.0).count());
}

async fn check(gpu: &Gpu, kernel: &FeaturePool, top: &TopK, latents: u32, tokens: &[u32]) {
    for by in [PoolBy::Mean, PoolBy::Max] {
        let all = kernel.strongest(gpu, top, tokens, by, usize::MAX, &Cancel::default()).await.unwrap();
        assert_right(&all, &truth(top, latents, tokens), by, tokens.len());
        assert_eq!(feature_pool(top, latents, tokens, by, usize::MAX).unwrap(), all);
        let some = all.len().min(3);
        assert_eq!(kernel.strongest(gpu, top, tokens, by, 3, &Cancel::default()).await.unwrap(), all[..some]);
        assert_eq!(feature_pool(top, latents, tokens, by, 3).unwrap(), all[..some]);
    }
}

async fn means_and_maxima_are_close_to_f64(gpu: Gpu) {
    // Some that are awkward; then any.
    let mut sizes = vec![(1, 1, 1), (7, 3, 10), (65, 32, 300), (577, 64, 3001), (20, 1024, 5000)];
    let mut random = Random(36);
    for most_tokens in [3000, 100, 9].repeat(4) {
        let latents = random.up_to(4000);
        let k = random.up_to(u64::from(latents).min(if most_tokens > 100 { 40 } else { 1024 }));
        sizes.push((random.up_to(most_tokens), k, latents));
    }
    for (tokens, k, latents) in sizes {
        let kernel = FeaturePool::new(&gpu, latents).unwrap();
        let top = random_top_k(tokens, k, latents, u64::from(tokens));
        let every_third: Vec<u32> = (0..tokens).step_by(3).collect();
        check(&gpu, &kernel, &top, latents, &[tokens / 2]).await;
        check(&gpu, &kernel, &top, latents, &every_third).await;
        check(&gpu, &kernel, &top, latents, &(0..tokens).rev().collect::<Vec<_>>()).await;
    }
}

async fn ties_go_to_the_lower_feature(gpu: Gpu) {
    let kernel = FeaturePool::new(&gpu, 200).unwrap();
    let top = whole_top_k(40, 16, 200, 3);
    check(&gpu, &kernel, &top, 200, &(0..40).collect::<Vec<_>>()).await;
    // Whole numbers are exact.
    let top = TopK { tokens: 2, k: 2, top_indices: vec![9, 4, 4, 9], top_acts: vec![3.0, 1.0, 3.0, 1.0] };
    let (four, nine) = (Pooled { feature: 4, mean: 2.0, max: 3.0 }, Pooled { feature: 9, mean: 2.0, max: 3.0 });
    for by in [PoolBy::Mean, PoolBy::Max] {
        assert_eq!(kernel.strongest(&gpu, &top, &[0, 1], by, 9, &Cancel::default()).await.unwrap(), [four, nine]);
    }
    // A token that is listed twice counts twice.
    let answer = kernel.strongest(&gpu, &top, &[0, 0, 1, 1], PoolBy::Mean, 1, &Cancel::default()).await.unwrap();
    assert_eq!(answer, [four]);
}

async fn every_call_starts_from_zero(gpu: Gpu) {
    let kernel = FeaturePool::new(&gpu, 50).unwrap();
    let top = random_top_k(30, 8, 50, 1);
    let all: Vec<u32> = (0..30).collect();
    let first = kernel.strongest(&gpu, &top, &all, PoolBy::Mean, 50, &Cancel::default()).await.unwrap();
    check(&gpu, &kernel, &top, 50, &[3]).await;
    assert!(kernel.strongest(&gpu, &top, &[], PoolBy::Mean, 50, &Cancel::default()).await.unwrap().is_empty());
    assert_eq!(kernel.strongest(&gpu, &top, &all, PoolBy::Mean, 50, &Cancel::default()).await.unwrap(), first);
}

async fn activations_of_any_size_are_pooled(gpu: Gpu) {
    let kernel = FeaturePool::new(&gpu, 64).unwrap();
    for scale in [1e-20, 1e-6, 1e6, 1e20] {
        let mut top = random_top_k(50, 8, 64, 5);
        top.top_acts.iter_mut().for_each(|act| *act *= scale);
        let tokens: Vec<u32> = (0..50).collect();
        let answer = kernel.strongest(&gpu, &top, &tokens, PoolBy::Max, 64, &Cancel::default()).await.unwrap();
        assert_eq!(feature_pool(&top, 64, &tokens, PoolBy::Max, 64).unwrap(), answer);
        for one in &answer {
            let (mean, max) = truth(&top, 64, &tokens)[one.feature as usize];
            let close = (f64::from(one.mean) - mean).abs() <= 1e-5 * f64::from(answer[0].max);
            assert!(close && one.max == max, "{one:?}, not {mean} and {max}");
        }
    }
}

async fn the_largest_sae_is_pooled(gpu: Gpu) {
    // Past a dispatch row of `compact`.
    let kernel = FeaturePool::new(&gpu, MAX_LATENTS).unwrap();
    let last = MAX_LATENTS - 1;
    let top = TopK { tokens: 1, k: 3, top_indices: vec![last, 0, 70_000], top_acts: vec![1.0, 0.5, 0.0] };
    let answer = kernel.strongest(&gpu, &top, &[0], PoolBy::Mean, 9, &Cancel::default()).await.unwrap();
    let (one, half) = (Pooled { feature: last, mean: 1.0, max: 1.0 }, Pooled { feature: 0, mean: 0.5, max: 0.5 });
    assert_eq!(answer, [one, half]);
}

async fn small_submissions_give_the_same_answer(gpu: Gpu) {
    let mut kernel = FeaturePool::new(&gpu, 40).unwrap();
    let top = random_top_k(9, 4, 40, 2);
    // One activation; some, and a rest.
    for work in [1.0, 200.0] {
        kernel.set_pace(Pace::at_most(work));
        check(&gpu, &kernel, &top, 40, &[1, 4, 4, 8]).await;
    }
}

async fn work_can_be_cancelled_midway(gpu: Gpu) {
    let mut kernel = FeaturePool::new(&gpu, 40).unwrap();
    let (top, tokens) = (random_top_k(3, 4, 40, 2), [0, 1, 2]);
    // One submission is over before the sixth check, one for each of twelve activations is not.
    let cancel = Cancel::at_check(6);
    let whole = kernel.strongest(&gpu, &top, &tokens, PoolBy::Mean, 40, &cancel).await.unwrap();
    kernel.set_pace(Pace::at_most(1.0));
    let cancelled = kernel.strongest(&gpu, &top, &tokens, PoolBy::Mean, 40, &Cancel::at_check(6)).await;
    assert_eq!(cancelled, Err(Error::Cancelled));
    let answer = kernel.strongest(&gpu, &top, &tokens, PoolBy::Mean, 40, &Cancel::default()).await;
    assert_eq!(answer, Ok(whole), "the next one is as if nothing had been");
}

async fn bad_input_is_refused(gpu: Gpu) {
    for latents in [0, MAX_LATENTS + 1] {
        assert!(matches!(FeaturePool::new(&gpu, latents), Err(Error::Size { what: "latents", .. })));
    }
    let kernel = FeaturePool::new(&gpu, 10).unwrap();
    let top = random_top_k(4, 2, 10, 1);
    let (mut far, mut bad) = (top.clone(), top.clone());
    far.top_indices[5] = 10;
    bad.top_acts[7] = f32::NAN;
    for (top, token, what) in [(&top, 4, "token"), (&far, 2, "latent")] {
        let answers = [
            kernel.strongest(&gpu, top, &[token], PoolBy::Max, 1, &Cancel::default()).await,
            feature_pool(top, 10, &[token], PoolBy::Max, 1),
        ];
        for answer in answers {
            assert!(matches!(&answer, Err(Error::Size { what: named, .. }) if *named == what), "{answer:?}");
        }
    }
    let expected = Err(Error::NotFinite { what: "top_acts [tokens, k]", row: 3 });
    assert_eq!(kernel.strongest(&gpu, &bad, &[0], PoolBy::Max, 1, &Cancel::default()).await, expected);
    assert_eq!(feature_pool(&bad, 10, &[0], PoolBy::Max, 1), expected);
}
