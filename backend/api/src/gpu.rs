//! What the page says to its GPU worker and back (JSON beside transferred `ArrayBuffer`s).
//!
//! A message is a JS array `[json, buffer?, …]`: the JSON of [`GpuRequest`] or [`GpuReply`], then the buffers it
//! names, transferred, never copied. (Tagged from outside, `{"encode":{…}}`: a tag inside costs the worker 20 KB.) A
//! canvas (`OffscreenCanvas`) may lie beside the buffers of any request: from then on it is the one that is drawn on.
//! The worker posts [`GpuReply::Ready`] first; nothing may be sent before.
//!
//! Requests about the last encode name its tokens in a buffer, u32 `[selected]`, and are answered with
//! [`GpuReply::Numbers`] and buffers; numbers do not travel as JSON.

use crate::shards::{Agreement, Tier};
use serde::{Deserialize, Serialize};

/// Where the features are computed, as a visitor may ask for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// Whichever is faster here, by measurement.
    #[default]
    Auto,
    Gpu,
    Cpu,
    /// The server, when the visitor's machine cannot hold the SAE.
    Server,
}

impl Compute {
    pub const ALL: [Self; 4] = [Self::Auto, Self::Gpu, Self::Cpu, Self::Server];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
            Self::Server => "server",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|compute| compute.as_str() == name)
    }
}

/// What goes wrong on purpose: to see how the page recovers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The device is destroyed.
    Lost,
    /// The device reports that its memory ran out.
    Memory,
}

impl Fault {
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "lost" => Some(Self::Lost),
            "memory" => Some(Self::Memory),
            _ => None,
        }
    }
}

/// Page → worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuRequest {
    /// Get the SAE whose `manifest.json` lies in the folder `base_url` (it ends with `/`), from this machine's storage
    /// or by fetching it, and put it on the GPU or into the CPU twin. Without a tier, the best that suits.
    Load { id: u32, base_url: String, tier: Option<Tier>, compute: Compute },
    /// Encode hidden states: a buffer, f16 little endian `[tokens, d_model]`; for a slice a second one, f32 `[tokens]`:
    /// the whole SAE's k-th largest activation of each token.
    Encode { id: u32, tokens: u32 },
    /// Patch map of one feature from the last encode, upsampled: answers with one f32 buffer `[height, width]`.
    Map { id: u32, feature: u32, start: u32, grid: [u32; 2], size: [u32; 2] },
    /// The `count` strongest features of the selected tokens, by their mean over them or by their maximum. Answers with
    /// u32 `[n]`, the features, and f32 `[n]`, what they are ranked by.
    Rank { id: u32, by_mean: bool, count: u32 },
    /// One feature on the selected tokens. Answers with u32: its place among the features that fire there, by their
    /// maximum (from 1; 0: it is silent), and their number; `[bins]`, counts of its activations in equal bins from 0 to
    /// its maximum; `[n]`, at most `count` features that fire on the same tokens, most alike first (Jaccard); `[n]`, on
    /// how many of the tokens each of them fires together with it. And with f32: its mean and its maximum.
    Facts { id: u32, feature: u32, bins: u32, count: u32 },
    /// How much of the selected tokens the SAE explains, with its decoder. Answers with f32: the fraction of variance
    /// unexplained, and the mean of `‖x − x̂‖ / ‖x‖`.
    Reconstruct { id: u32 },
    /// The `count` features whose decoder rows are nearest to this one's. Answers with u32 `[n]`, the features, and f32
    /// `[n]`, the cosines.
    Neighbours { id: u32, feature: u32, count: u32 },
    /// Draw light on the canvas, which gets this size (height, width) in pixels: a buffer, f32 `[rows, columns]`, shares
    /// of full light. Answers without a buffer.
    Draw { id: u32, grid: [u32; 2], size: [u32; 2] },
    /// Give up the request with this id, running or waiting; it fails with [`GpuReply::Failed`], cancelled.
    Cancel { id: u32 },
    /// Break the device before the next request.
    Break { fault: Fault },
}

/// Which path computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputePath {
    WebGpu,
    /// The CPU twin compiled to wasm.
    Cpu,
    /// The server; the page's own last resort, never the worker's.
    Server,
}

/// Where bytes of the SAE came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// From this machine's storage.
    pub stored: u64,
    /// Over the network.
    pub fetched: u64,
}

/// The SAE is loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadedSae {
    pub path: ComputePath,
    /// The GPU's name; empty for the CPU, and where the browser keeps it to itself.
    pub adapter: String,
    /// Why this path: what was measured, or why the GPU will not do.
    pub reason: String,
    pub tier: Tier,
    /// How close the tier comes to the SAE in f32, if it was measured.
    pub agreement: Option<Agreement>,
    pub latents: u32,
    pub d_model: u32,
    pub k: u32,
    pub origin: Origin,
    /// Why the SAE was not kept for the next visit, if it was not.
    pub not_kept: Option<String>,
    /// Bytes of the decoder, which is loaded when it is asked for; without one there are no reconstructions.
    pub decoder: Option<u64>,
    /// The GPU is the CPU in disguise. It computes, but Chromium's loses all its work over a canvas.
    pub software: bool,
}

/// Worker → page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuReply {
    Ready,
    /// Of the load with this id; `fetched` of `received` came over the network.
    Progress {
        id: u32,
        received: u64,
        fetched: u64,
        total: u64,
    },
    Loaded {
        id: u32,
        sae: LoadedSae,
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
    /// What was asked for, in buffers, and which path computed it.
    Numbers {
        id: u32,
        path: ComputePath,
    },
    /// A request failed; without an id it is the worker itself that stopped.
    Failed {
        id: Option<u32>,
        detail: String,
        /// The device is gone, and the SAE with it: load it again.
        #[serde(default)]
        lost: bool,
        /// It was asked for.
        #[serde(default)]
        cancelled: bool,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn requests_and_replies_survive_as_json() {
        let requests = [
            (GpuRequest::Encode { id: 1, tokens: 65 }, r#"{"encode":{"id":1,"tokens":65}}"#),
            (GpuRequest::Rank { id: 2, by_mean: true, count: 96 }, r#"{"rank":{"id":2,"by_mean":true,"count":96}}"#),
            (
                GpuRequest::Facts { id: 3, feature: 17, bins: 16, count: 5 },
                r#"{"facts":{"id":3,"feature":17,"bins":16,"count":5}}"#,
            ),
            (GpuRequest::Reconstruct { id: 4 }, r#"{"reconstruct":{"id":4}}"#),
            (
                GpuRequest::Neighbours { id: 5, feature: 17, count: 5 },
                r#"{"neighbours":{"id":5,"feature":17,"count":5}}"#,
            ),
            (
                GpuRequest::Draw { id: 6, grid: [8, 9], size: [30, 40] },
                r#"{"draw":{"id":6,"grid":[8,9],"size":[30,40]}}"#,
            ),
        ];
        for (request, json) in requests {
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(serde_json::from_str::<GpuRequest>(json).unwrap(), request);
        }
        let reply = GpuReply::Numbers { id: 2, path: ComputePath::WebGpu };
        let json = r#"{"numbers":{"id":2,"path":"web_gpu"}}"#;
        assert_eq!(serde_json::to_string(&reply).unwrap(), json);
        assert_eq!(serde_json::from_str::<GpuReply>(json).unwrap(), reply);
    }
}
