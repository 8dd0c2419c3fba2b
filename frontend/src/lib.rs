//! The pages of LMM Scope. One crate, two worlds: with `ssr` the server renders them ([`render`]), with `hydrate`
//! the browser makes them live. Data comes through [`api::Client`], GPU work through [`gpu`].
//!
//! A page is *params → resource → view*; components take data.

// Types of whole pages are deep.
#![recursion_limit = "256"]

pub mod api;
pub mod app;
pub mod browser;
pub mod by_index;
pub mod components;
pub mod diff;
pub mod format;
pub mod gpu;
pub mod heat;
pub mod http;
pub mod links;
pub mod pages;
pub mod ranking;
#[cfg(feature = "ssr")]
pub mod render;
pub mod safetensors;
pub mod sse;

/// Entry point of the browser bundle.
#[cfg(feature = "hydrate")]
#[wasm_bindgen::prelude::wasm_bindgen]
pub fn hydrate() {
    console_error_panic_hook::set_once();
    leptos::mount::hydrate_body(app::App);
}
