//! Host code of the WGSL kernels.

pub mod cofire;
pub mod cosine;
pub mod feature_draw;
pub mod feature_map;
pub mod feature_pool;
pub mod histogram;
pub mod sae_decode;
pub mod sae_encode;
pub mod sae_select;

/// `Params` of `sae_encode.wgsl` and `sae_select.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct TileParams {
    pub tokens: u32,
    pub width: u32,
    pub first_latent: u32,
    pub end_latent: u32,
    pub shard_latent: u32,
    pub row_capacity: u32,
    pub k: u32,
    pub last_tile: u32,
}

/// Bytes of `Params` in every shader.
pub const PARAMS_BYTES: u32 = 32;

const _: () = assert!(size_of::<TileParams>() == PARAMS_BYTES as usize);
