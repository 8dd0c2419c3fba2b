//! `samples.parquet`: every patch's top features on the sample pictures.

use super::{
    column::{Row, activation_lists, strings, u32_lists, u32s},
    table::{self, FileError, Table},
};
use arrow_array::ArrayRef;
use std::path::Path;

/// One sample picture, encoded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleRow {
    /// Picture id.
    pub picture: String,
    pub k: u32,
    /// Rows and columns of the patch grid.
    pub grid: [u32; 2],
    /// `[patches, k]`, row-major, each row by falling activation.
    pub top_indices: Vec<u32>,
    /// Same shape; kept to half precision in the file.
    pub top_acts: Vec<f32>,
}

impl Table for SampleRow {
    const ACTIVATION_LISTS: &'static [&'static str] = &["topActs"];

    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error> {
        Ok(vec![
            ("picture", strings(rows.iter().map(|row| row.picture.as_str()))),
            ("k", u32s(rows.iter().map(|row| row.k))),
            ("gridRows", u32s(rows.iter().map(|row| row.grid[0]))),
            ("gridColumns", u32s(rows.iter().map(|row| row.grid[1]))),
            ("topIndices", u32_lists(rows.iter().map(|row| row.top_indices.as_slice()))),
            ("topActs", activation_lists(rows.iter().map(|row| row.top_acts.as_slice()))),
        ])
    }

    fn from_row(row: &Row<'_>) -> Result<Self, String> {
        let sample = Self {
            picture: row.string("picture")?,
            k: row.u32("k")?,
            grid: [row.u32("gridRows")?, row.u32("gridColumns")?],
            top_indices: row.u32s("topIndices")?,
            top_acts: row.f32s("topActs")?,
        };
        sample.check_shape()?;
        Ok(sample)
    }
}

impl SampleRow {
    fn check_shape(&self) -> Result<(), String> {
        let [rows, columns] = self.grid.map(|side| side as usize);
        let expected = rows.saturating_mul(columns).saturating_mul(self.k as usize);
        let found = [self.top_indices.len(), self.top_acts.len()];
        if found == [expected; 2] {
            return Ok(());
        }
        Err(format!(
            "sample {}: {rows}×{columns} patches with k = {} want {expected} values, found {} indices and {} activations",
            self.picture, self.k, found[0], found[1]
        ))
    }
}

/// Writes `samples.parquet`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_samples(path: &Path, rows: &[SampleRow]) -> Result<(), FileError> {
    table::write(path, rows)
}

/// Reads `samples.parquet`.
///
/// # Errors
/// When the file is missing, damaged, of another format, or a sample's lists do not fit its grid.
pub fn read_samples(path: &Path) -> Result<Vec<SampleRow>, FileError> {
    table::read(path)
}
