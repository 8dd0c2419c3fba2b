//! The web worker that owns the visitor's GPU.
//!
//! It loads the SAE from the server onto the GPU (or into the CPU twin), encodes hidden states into features and
//! draws feature maps. The page talks to it in [`api::gpu`] messages; requests are handled one after another.
//!
//! | module | does |
//! |---|---|
//! | [`worker`] | a request in, a reply and its buffers out |
//! | [`sae`] | an SAE out of its manifest: tier, place, shards |
//! | [`place`] | where to compute: the GPU, the CPU twin; measured |
//! | [`engine`] | the SAE on the GPU or in the CPU twin |
//! | [`facts`] | questions about the last encode: on the GPU, or by the CPU twins |
//! | [`decoder`] | the decoder's rows, streamed past when they are asked for |
//! | [`fetch`] | the files of one request: room, progress |
//! | [`load`] | one shard, streamed in small slices: weights never sit whole in wasm memory on the GPU path |
//! | [`store`] | what is kept on this machine for the next visit |
//! | [`safetensors`] | what a shard's header says |
//! | `browser` | fetch, storage, messages, the adapter's name; starts the worker (wasm only) |
//!
//! Everything but `browser` is the same natively, where it is tested.
#![allow(async_fn_in_trait, reason = "the worker is one thread; its futures never leave it")]

pub mod decoder;
pub mod engine;
mod error;
pub mod facts;
pub mod fetch;
pub mod load;
pub mod place;
pub mod sae;
pub mod safetensors;
pub mod store;
pub mod worker;

#[cfg(target_arch = "wasm32")]
mod browser;

pub use error::Error;
