//! The kernels against a slow truth in f64. Each test is one async body that runs natively (Vulkan, also Mesa's
//! software adapter) and in a dedicated web worker of headless Chromium.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod cofire;
mod common;
mod cosine;
mod encoder_twin;
mod feature_draw;
mod feature_map;
mod feature_pool;
mod histogram;
mod known_answer;
mod sae_decode;
mod sae_encode;
mod sae_select;
mod sparse;

#[cfg(target_arch = "wasm32")]
wasm_bindgen_test::wasm_bindgen_test_configure!(run_in_dedicated_worker);
