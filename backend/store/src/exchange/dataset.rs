//! One data set in Parquet: the artefact files as they are, with a data card that `datasets` and the Hub read.
//!
//! The only format that loses nothing of what the artefact files hold.

use super::{Artefacts, Explanations, Report, check_latent, folder::Staging, rows::RowFile, rows_of};
use crate::files::{self, ExampleRow, FeatureRow, FileError, PictureRow, SampleRow, TextRow, names};
use std::{fs, path::Path};

mod card;

/// Where the Parquet files lie in the data set.
const DATA: &str = "data";
const CREDITS: &str = "CREDITS.md";
const CARD: &str = "README.md";

/// Writes the data set of an artefact folder.
///
/// # Errors
/// When a file is missing or damaged, or the output cannot be written.
pub fn export(folder: &Path, more: &Explanations, out: &Path) -> Result<Report, FileError> {
    let artefacts = Artefacts::open(folder)?;
    let staging = Staging::new(out, &[DATA, CARD, CREDITS, names::SOURCE])?;
    let data = staging.make(DATA)?;
    let mut report = Report::default();
    let mut features = RowFile::create(data.join(names::FEATURES))?;
    for row in artefacts.features(more)? {
        let row: FeatureRow = row?;
        check_latent(&artefacts.path(names::FEATURES), &artefacts.source, row.feature.index)?;
        report.explanations += row.feature.explanations.len() as u64;
        features.push(row)?;
    }
    report.features = features.finish()?;
    copy_tables(folder, &data, &artefacts.source, &mut report)?;
    files::write_source(&staging.at(names::SOURCE), &artefacts.source)?;
    let credits = fs::read_to_string(folder.join(CREDITS)).ok();
    match &credits {
        Some(credits) => write(&staging.at(CREDITS), credits)?,
        None => report.note(format!("there is no {CREDITS}; the card names no licence of the pictures")),
    }
    write(&staging.at(CARD), &card::of(&artefacts.source, &report, credits.is_some()))?;
    staging.finish()?;
    Ok(report)
}

/// Writes the artefact files of such a data set.
///
/// # Errors
/// When a file is missing or damaged, or the output cannot be written.
pub fn import(from: &Path, out: &Path) -> Result<Report, FileError> {
    let staging = Staging::new(out, &names::IMPORTED)?;
    let source = files::read_source(&from.join(names::SOURCE))?;
    let data = from.join(DATA);
    let mut report = Report::default();
    let mut features = RowFile::create(staging.at(names::FEATURES))?;
    for row in rows_of::<FeatureRow>(&data.join(names::FEATURES))? {
        let row = row?;
        check_latent(&data.join(names::FEATURES), &source, row.feature.index)?;
        report.explanations += row.feature.explanations.len() as u64;
        features.push(row)?;
    }
    report.features = features.finish()?;
    copy_tables(&data, staging.path(), &source, &mut report)?;
    files::write_source(&staging.at(names::SOURCE), &source)?;
    let credits = from.join(CREDITS);
    if credits.is_file() && !out.join(CREDITS).exists() {
        fs::copy(&credits, staging.at(CREDITS)).map_err(|error| FileError::io(&credits, error))?;
    }
    staging.finish()?;
    Ok(report)
}

/// All tables but the features, row by row: what is damaged is not passed on.
fn copy_tables(from: &Path, to: &Path, source: &api::Source, report: &mut Report) -> Result<(), FileError> {
    let path = from.join(names::EXAMPLES);
    let mut examples = RowFile::create(to.join(names::EXAMPLES))?;
    for row in rows_of::<ExampleRow>(&path)? {
        let row = row?;
        check_latent(&path, source, row.feature)?;
        examples.push(row)?;
    }
    report.examples = examples.finish()?;
    let path = from.join(names::TEXTS);
    let mut texts = RowFile::create(to.join(names::TEXTS))?;
    for row in rows_of::<TextRow>(&path)? {
        let row = row?;
        check_latent(&path, source, row.feature)?;
        texts.push(row)?;
    }
    report.texts = texts.finish()?;
    let mut pictures = RowFile::create(to.join(names::PICTURES))?;
    rows_of::<PictureRow>(&from.join(names::PICTURES))?.try_for_each(|row| pictures.push(row?))?;
    report.pictures = pictures.finish()?;
    let mut samples = RowFile::create(to.join(names::SAMPLES))?;
    rows_of::<SampleRow>(&from.join(names::SAMPLES))?.try_for_each(|row| samples.push(row?))?;
    report.samples = samples.finish()?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), FileError> {
    fs::write(path, text).map_err(|error| FileError::io(path, error))
}
