//! The artefact files of a source, one module per file: what `lmm-scope pocket index` and `lmm-scope index` write and
//! the store imports.
//!
//! All are Parquet with real columns (lists as lists, pictures as binary), so that DuckDB, Spark or Trino read them
//! as they are; only deeply nested parts (explanations, provenance, objects) are JSON strings. Columns carry the
//! wire types' names. Writers go through a temporary name, sync it, and rename it, so that a file is either the old
//! one or the new one, never half of one.

pub mod activations;
pub mod by_feature;
mod column;
pub mod examples;
pub mod features;
pub mod image_list;
pub mod pictures;
mod ranged;
pub mod samples;
pub mod sprites;
pub(crate) mod table;
pub mod texts;
pub mod training;

pub use activations::{Activation, ActivationFile, write_activations};
pub use by_feature::{ActivationRows, ActivationsByFeature, write_by_feature};
pub use examples::{ExampleRow, ExampleWriter, read_examples, write_examples};
pub use features::{FeatureRow, FeatureWriter, read_features, write_features};
pub use image_list::{ImageListWriter, ImageRow, ImageRows, read_image_rows};
pub use pictures::{PictureRow, PictureWriter, read_pictures, write_pictures};
pub use samples::{SampleRow, read_samples, write_samples};
pub use sprites::{SpriteRow, read_sprites, write_sprites};
pub use table::{FileError, write_atomically};
pub use texts::{TextRow, read_texts, write_texts};
pub use training::{TrainingRow, read_training, write_training};

/// File names inside an artefact folder.
pub mod names {
    pub const SOURCE: &str = "source.json";
    pub const FEATURES: &str = "features.parquet";
    pub const EXAMPLES: &str = "examples.parquet";
    pub const TEXTS: &str = "texts.parquet";
    pub const PICTURES: &str = "pictures.parquet";
    pub const SAMPLES: &str = "samples.parquet";
    pub const SPRITES: &str = "sprites.parquet";
    /// All activations in the order of features.
    pub const ACTIVATIONS: &str = "activations.parquet";
    /// What an index was made from; the last file that `lmm-scope index` writes.
    pub const INDEX: &str = "index.json";
    /// The log of an SAE's training.
    pub const TRAINING_LOG: &str = "log.parquet";
    /// Everything [`crate::Store::import_artifacts`] reads, in reading order.
    pub const IMPORTED: [&str; 6] = [SOURCE, FEATURES, EXAMPLES, TEXTS, PICTURES, SAMPLES];
}

use std::{fs, path::Path};

/// Writes `source.json`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_source(path: &Path, source: &api::Source) -> Result<(), FileError> {
    write_atomically(path, |file| {
        let mut json = serde_json::to_vec_pretty(source).map_err(|error| FileError::corrupt(path, &error))?;
        json.push(b'\n');
        std::io::Write::write_all(file, &json).map_err(|error| FileError::io(path, error))
    })
}

/// Reads `source.json`.
///
/// # Errors
/// When the file is missing or is not a source.
pub fn read_source(path: &Path) -> Result<api::Source, FileError> {
    let bytes = fs::read(path).map_err(|error| FileError::io(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| FileError::corrupt(path, &error))
}

#[cfg(test)]
mod tests;
