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
//! Everything is generic over `B: Backend`. Checkpoints are Hugging Face folders; see [`weights`].

pub mod anyres;
pub mod chat;
pub mod clip;
pub mod config;
pub mod error;
pub mod generate;
pub mod image_processor;
pub mod intervention;
pub mod llama;
pub mod llava;
pub mod lmm;
pub mod sae;
pub mod stem;
pub mod testing;
pub mod tokenize;
pub mod weights;

pub use config::LlavaNextConfig;
pub use error::Error;
pub use generate::{GenerateOptions, GeneratedToken, Generation, generate};
pub use intervention::{Edit, EditOp, Intervention, Positions};
pub use llava::LlavaNext;
pub use lmm::{Lmm, Prepared, PromptInput, Span, SpanKind};
pub use sae::{Sae, SaeConfig, TopK};

/// The CPU backend of the server.
#[cfg(feature = "flex")]
pub type Cpu = burn::backend::Flex;
