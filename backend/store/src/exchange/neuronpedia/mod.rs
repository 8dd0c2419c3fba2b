//! Neuronpedia's exports: folders of `batch-N.jsonl.gz` with the columns of its tables.
//!
//! `features/`, `activations/` (texts) and `explanations/` have the columns that Neuronpedia itself exports;
//! `explanation_scores/` those of its table of scores, which it does not export. It knows no pictures: these are in
//! `picture_activations/` and `images/`, and [`crate::files::names::SOURCE`] says what belongs to all rows.

mod export;
mod import;
mod rows;

pub use export::export;
pub use import::import;

/// Features per batch, as in Neuronpedia's own exports.
const BATCH: u32 = 1024;

const FEATURES: &str = "features";
const ACTIVATIONS: &str = "activations";
const EXPLANATIONS: &str = "explanations";
const SCORES: &str = "explanation_scores";
const PICTURE_ACTIVATIONS: &str = "picture_activations";
