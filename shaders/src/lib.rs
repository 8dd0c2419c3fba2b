//! WGSL kernels, their host code and their CPU twins.
//!
//! A kernel is three siblings of one name: `wgsl/<stem>.wgsl`, `src/kernels/<stem>.rs` and `src/cpu/<stem>.rs`.
//!
//! | kernel | does |
//! |---|---|
//! | `sae_encode` | TopK SAE encoder: matmul, bias, ReLU, threshold, for one tile of latents |
//! | `sae_select` | exact top-k of each row, ties to the lower latent |
//! | `feature_map` | one feature's patch activations, upsampled to pixels |
//!
//! [`kernels::sae_encode::SaeEncode`] and [`cpu::sae_encode::SaeEncode`] compute the same thing:
//! `z = TopK_k(ReLU((x - b_dec) W_encᵀ + b_enc))`, and answer with the same [`TopK`].

pub mod cpu;
mod error;
mod gpu;
pub mod kernels;
pub mod known_answer;
mod shape;
mod source;
mod top_k;

pub use error::Error;
pub use gpu::Gpu;
pub use shape::{MAX_K, MAX_LATENTS, MapShape, SaeShape, WeightType};
pub use top_k::TopK;

/// Every WGSL file of this crate: name and text, for validation.
pub const WGSL: [(&str, &str); 3] = [
    ("sae_encode", kernels::sae_encode::WGSL),
    ("sae_select", kernels::sae_select::WGSL),
    ("feature_map", kernels::feature_map::WGSL),
];
