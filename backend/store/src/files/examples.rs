//! `examples.parquet`: where each feature fired, one row per feature, kind and rank.

use super::{
    column::{Row, activation_lists, f32s, same_length, strings, u16_lists, u32s},
    table::{self, FileError, RowWriter, Table},
};
use arrow_array::ArrayRef;
use std::{fs::File, path::Path};

/// One feature on one picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExampleRow {
    /// Feature index.
    pub feature: u32,
    pub kind: api::ActivationKind,
    /// Order within feature and kind, strongest first.
    pub rank: u32,
    /// Picture id.
    pub picture: String,
    /// Patches of the base picture where it fires, row-major.
    pub indices: Vec<u16>,
    /// Activation at those patches; kept to half precision in the file.
    pub values: Vec<f32>,
    pub max_value: f32,
    pub max_index: u32,
    /// Mean over all patches of the base picture, zeros included.
    pub mean_value: f32,
    pub bin_min: f32,
    pub bin_max: f32,
}

impl Table for ExampleRow {
    const ACTIVATION_LISTS: &'static [&'static str] = &["featureActsValues"];

    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error> {
        Ok(vec![
            ("feature", u32s(rows.iter().map(|row| row.feature))),
            ("kind", strings(rows.iter().map(|row| row.kind.as_str()))),
            ("rank", u32s(rows.iter().map(|row| row.rank))),
            ("picture", strings(rows.iter().map(|row| row.picture.as_str()))),
            ("featureActsIndices", u16_lists(rows.iter().map(|row| row.indices.as_slice()))),
            ("featureActsValues", activation_lists(rows.iter().map(|row| row.values.as_slice()))),
            ("maxValue", f32s(rows.iter().map(|row| row.max_value))),
            ("maxValueTokenIndex", u32s(rows.iter().map(|row| row.max_index))),
            ("meanValue", f32s(rows.iter().map(|row| row.mean_value))),
            ("binMin", f32s(rows.iter().map(|row| row.bin_min))),
            ("binMax", f32s(rows.iter().map(|row| row.bin_max))),
        ])
    }

    fn from_row(row: &Row<'_>) -> Result<Self, String> {
        let kind = row.string("kind")?;
        let (indices, values) = (row.u16s("featureActsIndices")?, row.f32s("featureActsValues")?);
        same_length(["featureActsIndices", "featureActsValues"], [indices.len(), values.len()])?;
        Ok(Self {
            feature: row.u32("feature")?,
            kind: api::ActivationKind::from_name(&kind).ok_or_else(|| format!("unknown kind of example: {kind}"))?,
            rank: row.u32("rank")?,
            picture: row.string("picture")?,
            indices,
            values,
            max_value: row.f32("maxValue")?,
            max_index: row.u32("maxValueTokenIndex")?,
            mean_value: row.f32("meanValue")?,
            bin_min: row.f32("binMin")?,
            bin_max: row.f32("binMax")?,
        })
    }
}

/// Writes `examples.parquet` row by row.
pub struct ExampleWriter<'f>(RowWriter<'f, ExampleRow>);

impl<'f> ExampleWriter<'f> {
    /// `path` is what errors name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(path: &Path, file: &'f mut File) -> Result<Self, FileError> {
        RowWriter::new(path, file).map(Self)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, row: ExampleRow) -> Result<(), FileError> {
        self.0.push(row)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> Result<(), FileError> {
        self.0.finish()
    }
}

/// Writes `examples.parquet`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_examples(path: &Path, rows: &[ExampleRow]) -> Result<(), FileError> {
    table::write(path, rows)
}

/// Reads `examples.parquet`.
///
/// # Errors
/// When the file is missing, damaged or of another format.
pub fn read_examples(path: &Path) -> Result<Vec<ExampleRow>, FileError> {
    table::read(path)
}
