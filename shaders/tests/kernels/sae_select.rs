//! The selection: ties, thresholds and rows that change a lot from tile to tile.

use shaders::cpu::sae_select::SaeSelect;
use shaders::kernels::sae_encode::{Plan, SaeEncode};
use shaders::tile_shape::{Speeds, TILE_SHAPES};
use shaders::{Cancel, Gpu, SaeShape, TopK, WeightType};

use crate::common::{Random, sorted_top_k, two_worlds};

two_worlds!(equal_activations_go_to_the_lower_latent, rising_rows_replace_what_was_kept, close_keys_are_told_apart);

/// With d_model 1, weights 1, hidden 0 and no b_dec, a row's activations are `b_enc`.
///
/// With `few` threads or many of the kernel.
async fn select(gpu: &Gpu, activations: &[f32], k: u32, few: bool) -> TopK {
    let latents = activations.len() as u32;
    let shape = SaeShape::new(1, latents, k).unwrap();
    let plan = Plan { shard_latents: latents.next_multiple_of(64), tile_latents: 512, batch_tokens: 2 };
    let mut sae = SaeEncode::with_plan(gpu, shape, WeightType::F32, plan);
    sae.write_biases(gpu, activations, &[0.0]).unwrap();
    let shapes: Vec<usize> = (0..TILE_SHAPES.len()).filter(|&at| TILE_SHAPES[at].waits_for_nobody() == few).collect();
    sae.set_speeds(Speeds::only(&shapes));
    sae.encode(gpu, &[0.0, 0.0, 0.0], 3, &Cancel::default()).await.unwrap()
}

fn select_on_cpu(activations: &[f32], k: u32) -> (Vec<u32>, Vec<f32>) {
    let mut select = SaeSelect::new(k);
    for (latent, &activation) in (0..).zip(activations) {
        select.push(latent, activation);
    }
    let (mut top_indices, mut top_acts) = (Vec::new(), Vec::new());
    select.finish(&mut top_indices, &mut top_acts);
    (top_indices, top_acts)
}

async fn check(gpu: &Gpu, activations: &[f32], k: u32) {
    let truth: Vec<f64> = activations.iter().map(|&activation| f64::from(activation).max(0.0)).collect();
    let expected = sorted_top_k(&truth, k);
    assert_eq!(select_on_cpu(activations, k), expected, "CPU twin, k = {k}");
    for few in [false, true] {
        let answer = select(gpu, activations, k, few).await;
        for token in 0..answer.tokens {
            let what = format!("token {token}, k = {k}, few threads: {few}");
            assert_eq!(answer.row(token), (&expected.0[..], &expected.1[..]), "{what}");
        }
    }
}

async fn equal_activations_go_to_the_lower_latent(gpu: Gpu) {
    let mut random = Random(2);
    let few_values: Vec<f32> = random.wholes(1500, 3);
    for k in [1, 31, 256, 1024] {
        check(&gpu, &[1.0; 1500], k).await;
        check(&gpu, &few_values, k).await;
    }
}

async fn rising_rows_replace_what_was_kept(gpu: Gpu) {
    let rising: Vec<f32> = (1..=1500u16).map(f32::from).collect();
    let falling: Vec<f32> = rising.iter().rev().copied().collect();
    check(&gpu, &rising, 100).await;
    check(&gpu, &falling, 100).await;
}

async fn close_keys_are_told_apart(gpu: Gpu) {
    // Neighbouring floats, from the smallest normal ones to the largest: every byte of the key decides somewhere.
    for first in [f32::MIN_POSITIVE, 1.0, 1.0e38] {
        let mut random = Random(u64::from(first.to_bits()));
        let steps = random.wholes(1200, 300);
        let neighbours: Vec<f32> =
            steps.iter().map(|step| f32::from_bits(first.to_bits() + (step + 300.0) as u32)).collect();
        check(&gpu, &neighbours, 77).await;
    }
    let mut random = Random(9);
    let spread: Vec<f32> = random.uniforms(1200, 1.0).iter().map(|value| value * 10f32.powf(value * 30.0)).collect();
    check(&gpu, &spread, 77).await;
}
