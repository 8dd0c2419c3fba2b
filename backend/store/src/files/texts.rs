//! `texts.parquet`: texts where each feature fired, one row per feature and rank.

use super::{
    column::{Row, activation_lists, same_length, string_lists, u32s},
    table::{self, FileError, Table},
};
use arrow_array::ArrayRef;
use std::path::Path;

/// One feature on one text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TextRow {
    /// Feature index.
    pub feature: u32,
    /// Order within the feature, strongest first.
    pub rank: u32,
    pub tokens: Vec<String>,
    /// Activation per token, same length; kept to half precision in the file.
    pub values: Vec<f32>,
}

impl Table for TextRow {
    const ACTIVATION_LISTS: &'static [&'static str] = &["values"];

    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error> {
        Ok(vec![
            ("feature", u32s(rows.iter().map(|row| row.feature))),
            ("rank", u32s(rows.iter().map(|row| row.rank))),
            ("tokens", string_lists(rows.iter().map(|row| row.tokens.as_slice()))),
            ("values", activation_lists(rows.iter().map(|row| row.values.as_slice()))),
        ])
    }

    fn from_row(row: &Row<'_>) -> Result<Self, String> {
        let (tokens, values) = (row.strings("tokens")?, row.f32s("values")?);
        same_length(["tokens", "values"], [tokens.len(), values.len()])?;
        Ok(Self { feature: row.u32("feature")?, rank: row.u32("rank")?, tokens, values })
    }
}

/// Writes `texts.parquet`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_texts(path: &Path, rows: &[TextRow]) -> Result<(), FileError> {
    table::write(path, rows)
}

/// Reads `texts.parquet`.
///
/// # Errors
/// When the file is missing, damaged or of another format.
pub fn read_texts(path: &Path) -> Result<Vec<TextRow>, FileError> {
    table::read(path)
}
