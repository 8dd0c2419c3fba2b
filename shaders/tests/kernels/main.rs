//! The kernels against a slow truth in f64. Each test is one async body that runs natively (Vulkan, also Mesa's
//! software adapter) and in a dedicated web worker of headless Chromium.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose

mod common;
mod feature_map;
mod known_answer;
mod sae_encode;
mod sae_select;

#[cfg(target_arch = "wasm32")]
wasm_bindgen_test::wasm_bindgen_test_configure!(run_in_dedicated_worker);
