//! What the page says to its GPU worker and back (JSON beside transferred `ArrayBuffer`s).
//!
//! A message is a JS array `[json, buffer?, …]`: the JSON of [`GpuRequest`] or [`GpuReply`], then the buffers it
//! names, transferred, never copied. The worker posts [`GpuReply::Ready`] first; nothing may be sent before.

use serde::{Deserialize, Serialize};

/// Page → worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GpuRequest {
    /// Fetch the SAE and put it on the GPU (or into the CPU twin). `force_cpu` skips WebGPU.
    Load { id: u32, weights_url: String, config_url: String, force_cpu: bool },
    /// Encode hidden states: one buffer, f16 little endian `[tokens, d_model]`.
    Encode { id: u32, tokens: u32 },
    /// Patch map of one feature from the last encode, upsampled: answers with one f32 buffer `[height, width]`.
    Map { id: u32, feature: u32, start: u32, grid: [u32; 2], size: [u32; 2] },
}

/// Which path computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputePath {
    WebGpu,
    /// The CPU twin compiled to wasm.
    Cpu,
}

/// Worker → page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GpuReply {
    Ready,
    /// Of the load with this id.
    Progress {
        id: u32,
        received: u64,
        total: u64,
    },
    /// The SAE is loaded. `adapter` is the GPU's name; `reason` says why the CPU twin runs, if it does.
    Loaded {
        id: u32,
        path: ComputePath,
        adapter: String,
        reason: Option<String>,
        latents: u32,
        d_model: u32,
        k: u32,
    },
    /// Two buffers: `top_indices` u32 `[tokens, k]`, `top_acts` f32 `[tokens, k]`, each row by falling activation.
    Encoded {
        id: u32,
        tokens: u32,
        k: u32,
        ms: f32,
    },
    /// One buffer: f32 `[height, width]`.
    Map {
        id: u32,
        size: [u32; 2],
        max: f32,
    },
    /// A request failed; without an id it is the worker itself that stopped.
    Failed {
        id: Option<u32>,
        detail: String,
        /// The device is gone, and the SAE with it: load it again.
        #[serde(default)]
        lost: bool,
    },
}
