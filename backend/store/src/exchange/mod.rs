//! Other programs' formats: what `lmm-scope export` writes of an artefact folder and `lmm-scope import` turns into one.
//! `docs/formats.md` says what each carries and loses.
//!
//! Files are written into a folder with a temporary name beside the output and renamed when all are whole. Large files
//! go through row by row. Every error names the file and, in it, the line, the row or the tensor. What a format does
//! not hold stays empty and is named in [`Report::notes`]: nothing is made up.

pub mod dataset;
mod folder;
mod given;
mod images;
mod jsonl;
pub mod multimodal_sae;
pub mod neuronpedia;
mod rows;
pub mod saelens;
mod tensors;

pub use images::{Decode, Decoded};

use crate::files::{self, FeatureRow, FileError, names, table};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Further explanations by feature, for instance those that workers wrote into the database.
pub type Explanations = BTreeMap<u32, Vec<api::Explanation>>;

/// What was written, and what the format could not hold.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Report {
    pub features: u64,
    pub explanations: u64,
    /// Features on pictures.
    pub examples: u64,
    /// Features on texts.
    pub texts: u64,
    pub pictures: u64,
    pub samples: u64,
    /// Weights and biases of an SAE.
    pub tensors: u64,
    /// For people: what is lost, missing or left out.
    pub notes: Vec<String>,
}

impl Report {
    /// Tells something that the format does not hold, or that had to be left out.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Notes something that happened `count` times, if it happened.
    fn note_count(&mut self, count: u64, what: &str) {
        if count > 0 {
            self.note(format!("{count} {what}"));
        }
    }
}

/// An artefact folder that is exported.
struct Artefacts<'a> {
    folder: &'a Path,
    source: api::Source,
}

impl<'a> Artefacts<'a> {
    fn open(folder: &'a Path) -> Result<Self, FileError> {
        Ok(Self { folder, source: files::read_source(&folder.join(names::SOURCE))? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The features, each with what `more` says about it after its own explanations.
    fn features<'m>(
        &self,
        more: &'m Explanations,
    ) -> Result<impl Iterator<Item = Result<FeatureRow, FileError>> + use<'a, 'm>, FileError> {
        let rows = rows_of::<FeatureRow>(&self.path(names::FEATURES))?;
        Ok(rows.map(move |row| {
            row.map(|mut row| {
                row.feature.explanations.extend(more.get(&row.feature.index).into_iter().flatten().cloned());
                row
            })
        }))
    }
}

/// The rows of a file, one after the other.
fn rows_of<T: table::Table>(path: &Path) -> Result<impl Iterator<Item = Result<T, FileError>> + use<T>, FileError> {
    Ok(table::Rows::<T>::open(path)?.flat_map(|batch| match batch {
        Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error)],
    }))
}

fn check_latent(path: &Path, source: &api::Source, index: u32) -> Result<(), FileError> {
    if index < source.latents {
        return Ok(());
    }
    Err(FileError::corrupt(path, &format!("feature {index} of an SAE with {} latents", source.latents)))
}

#[cfg(test)]
mod tests;
