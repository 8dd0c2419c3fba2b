//! Flags that several commands share: the doc comments are the manual.

use crate::config::ComputeArgs;
use clap::builder::{OsStringValueParser, TypedValueParser};
use model::hook::Hook;
use std::path::PathBuf;
use store::objects::Location;

/// What a run of the model needs.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Checkpoint folder in Hugging Face's form, or the id of a repository on the Hugging Face Hub (owner/name).
    #[arg(long, env = "LMM_SCOPE_MODEL", value_name = "DIR|HF_ID")]
    pub model: String,

    /// Branch, tag or commit of the repository. Without it, its main branch.
    #[arg(long, env = "LMM_SCOPE_REVISION")]
    pub revision: Option<String>,

    #[command(flatten)]
    pub compute: ComputeArgs,

    #[command(flatten)]
    pub prompt: PromptArgs,

    #[command(flatten)]
    pub hook: HookArgs,

    /// Picture: PNG, JPEG, WebP, GIF or BMP.
    #[arg(long, env = "LMM_SCOPE_IMAGE", value_name = "FILE")]
    pub image: Option<PathBuf>,
}

/// The words, in exactly one of two ways.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct PromptArgs {
    /// A person's turn; goes through the checkpoint's chat template, the picture before the words.
    #[arg(long, env = "LMM_SCOPE_PROMPT", value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,

    /// Given to the tokenizer as it stands, which adds its usual special tokens and knows those written in the text;
    /// `<image>` is the place of the picture.
    #[arg(long, env = "LMM_SCOPE_RAW_PROMPT", value_name = "TEXT", allow_hyphen_values = true)]
    pub raw_prompt: Option<String>,
}

/// The module whose output is read or changed, in exactly one of two ways.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct HookArgs {
    /// Block of the language model, counted from 0.
    #[arg(long, env = "LMM_SCOPE_LAYER", value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub layer: Option<usize>,

    /// Hook point by its name: layers.24 is block 24 of the language model, vision.22 that of the vision tower.
    #[arg(long, env = "LMM_SCOPE_HOOK", value_name = "NAME", allow_negative_numbers = true)]
    pub hook: Option<Hook>,
}

impl HookArgs {
    /// The hook point and the flag that named it.
    pub fn named(&self) -> (Hook, &'static str) {
        match (self.hook, self.layer) {
            (Some(hook), _) => (hook, "--hook"),
            // The group requires one of them.
            (None, layer) => (Hook::Block(layer.unwrap_or_default()), "--layer"),
        }
    }
}

/// A folder, or s3://bucket/prefix.
pub fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(Location::from_os)
}

/// A whole number from 0 up.
pub fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("`{text}` is not a whole number from 0 up"))
}

/// A whole number from 1 up.
pub fn count_from_one(text: &str) -> Result<usize, String> {
    count(text).ok().filter(|number| *number > 0).ok_or_else(|| format!("`{text}` is not a whole number from 1 up"))
}

/// A number that is neither infinite nor NaN.
pub fn finite(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite());
    number.ok_or_else(|| format!("`{text}` is not a finite number"))
}
