//! CPU twins of the kernels: the same answers without a GPU.

pub mod feature_map;
pub mod sae_encode;
pub mod sae_select;
