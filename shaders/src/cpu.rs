//! CPU twins of the kernels: the same answers without a GPU.

pub mod cofire;
pub mod cosine;
pub mod feature_draw;
pub mod feature_map;
pub mod feature_pool;
pub mod histogram;
pub mod sae_decode;
pub mod sae_encode;
pub mod sae_select;
