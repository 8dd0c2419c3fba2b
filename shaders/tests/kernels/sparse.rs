//! Encodes that nobody computed: what pools, decodes and counts of a top k start from.

use shaders::TopK;

use crate::common::Random;

/// Each token lists `k` neighbouring latents from a random one on; about half of them are 0.
pub fn random_top_k(tokens: u32, k: u32, latents: u32, seed: u64) -> TopK {
    let mut random = Random(seed);
    let mut top = TopK { tokens, ..TopK::empty(k) };
    for _ in 0..tokens {
        let first = ((random.uniform() + 1.0) / 2.0 * latents as f32) as u32;
        top.top_indices.extend((first..first + k).map(|latent| latent % latents));
        top.top_acts.extend(random.uniforms(k as usize, 5.0).iter().map(|act| act.max(0.0)));
    }
    top
}

/// The same with activations 0, 1 and 2: ties abound.
pub fn whole_top_k(tokens: u32, k: u32, latents: u32, seed: u64) -> TopK {
    let mut top = random_top_k(tokens, k, latents, seed);
    let acts = Random(seed).wholes(top.top_acts.len(), 2);
    top.top_acts = acts.into_iter().map(|act| act.max(0.0)).collect();
    top
}
