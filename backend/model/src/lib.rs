//! LLaVA-NeXT, the TopK sparse autoencoder and the paper's interventions, in burn.
//!
//! The forward pass, top to bottom:
//!
//! ```text
//! picture ─ image_processor ─▶ pixel values ─ clip ─▶ patch features ─ projector ─▶ image tokens ─┐
//! prompt ── chat ─ tokenizer ─▶ input ids ──────────── embed_tokens ─▶ text tokens ──────────── llava ─ llama ─▶ logits
//!                                                                                 block `layer` ─▶ hidden states ─ sae ─▶ features
//! ```
//!
//! What is done with it: [`generate`] and [`batch`] (texts, with an [`intervention`] at a [`hook`]), [`attribution`]
//! (which features made the model say it), [`lens`] (what a position says in words). [`clip_score`] is a model of its
//! own: how well a text fits a picture.
//!
//! Everything is generic over `B: Backend`. Checkpoints are Hugging Face folders; see [`weights`].

pub mod anyres;
pub mod attribution;
pub mod batch;
pub mod chat;
pub mod clip;
pub mod clip_score;
pub mod config;
mod cpu;
mod decoding;
pub mod dtype;
pub mod error;
pub mod generate;
pub mod hook;
#[cfg(not(target_family = "wasm"))]
pub mod hub;

pub mod image_processor;
pub mod intervention;
mod kv_cache;
mod layers;
pub mod lens;
pub mod llama;
pub mod llava;
pub mod lmm;
#[cfg(not(target_family = "wasm"))]
pub mod picture;
pub mod sae;
pub mod stem;
pub mod testing;
pub mod tokenize;
pub mod weights;

pub use attribution::{AttributeOptions, Attribution, attribute};
pub use clip_score::ClipModel;
pub use config::LlavaNextConfig;
pub use dtype::Dtype;
pub use error::Error;
pub use generate::{GenerateOptions, GeneratedToken, Generation, Steered, Variant, generate, steer};
pub use hook::Hook;
pub use intervention::{Edit, EditOp, Intervention, Positions};
pub use llava::LlavaNext;
pub use lmm::{Lmm, Prepared, PromptInput, Span, SpanKind};
pub use sae::{Sae, SaeConfig, SaeFile, TopK};

/// The CPU backend of the server.
#[cfg(feature = "flex")]
pub type Cpu = burn::backend::Flex;

/// NVIDIA GPUs; `libcuda` and NVRTC are loaded when it is first used.
#[cfg(feature = "cuda")]
pub type Cuda = burn::backend::Cuda;
