//! WGSL kernels, their host code and their CPU twins.
//!
//! A kernel is three siblings of one name: `wgsl/<stem>.wgsl`, `src/kernels/<stem>.rs` and `src/cpu/<stem>.rs`.
//!
//! | kernel | does |
//! |---|---|
//! | `sae_encode` | TopK SAE encoder: matmul, bias, ReLU, threshold, for one tile of latents |
//! | `sae_select` | exact top-k of each row, ties to the lower latent |
//! | `feature_map` | one feature's patch activations, upsampled to pixels |
//! | `feature_draw` | the same as light over a picture, drawn into a canvas |
//! | `feature_pool` | mean and maximum of each feature over some tokens; the strongest |
//! | `sae_decode` | reconstruction from a top k, its squared error and fraction of variance unexplained |
//! | `cosine` | cosine of one row with each row of a matrix |
//! | `cofire` | on how many tokens two features fire together |
//! | `histogram` | counts of positive values in equal bins |
//!
//! [`kernels::sae_encode::SaeEncode`] and [`cpu::sae_encode::SaeEncode`] compute the same thing:
//! `z = TopK_k(ReLU((x - b_dec) W_encᵀ + b_enc))`, and answer with the same [`TopK`].

mod cancel;
mod canvas;
pub mod cpu;
mod decoded;
mod decoder_rows;
mod error;
mod gpu;
pub mod kernels;
pub mod known_answer;
mod limits;
pub mod pace;
pub mod pack;
mod pooled;
mod render;
mod shape;
mod source;
pub mod tile_shape;
mod top_k;

pub use cancel::Cancel;
pub use canvas::{Canvas, Screen};
pub use decoded::Decoded;
pub use error::Error;
pub use gpu::Gpu;
pub use pooled::{PoolBy, Pooled};
pub use shape::{INT4_GROUP, MAX_K, MAX_LATENTS, MapShape, SaeShape, WeightType};
pub use top_k::TopK;

/// Every WGSL file of this crate: name and text, for validation.
pub const WGSL: [(&str, &str); 9] = [
    ("sae_encode", kernels::sae_encode::WGSL),
    ("sae_select", kernels::sae_select::WGSL),
    ("feature_map", kernels::feature_map::WGSL),
    ("feature_draw", kernels::feature_draw::WGSL),
    ("feature_pool", kernels::feature_pool::WGSL),
    ("sae_decode", kernels::sae_decode::WGSL),
    ("cosine", kernels::cosine::WGSL),
    ("cofire", kernels::cofire::WGSL),
    ("histogram", kernels::histogram::WGSL),
];
