//! `sprites.parquet`: the drawings that scenes are composed of, each with its author and licence.

use super::{
    column::{Row, binaries, strings},
    table::{self, FileError, Table},
};
use arrow_array::ArrayRef;
use std::path::Path;

/// One drawing of one concept in one design family.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpriteRow {
    /// Design family, e.g. `noto`.
    pub family: String,
    pub concept: String,
    /// Emoji group.
    pub group: String,
    /// Code points in hexadecimal, e.g. `1f436`.
    pub hex: String,
    pub title: String,
    pub author: String,
    pub licence: String,
    /// Where it was taken from.
    pub source: String,
    /// WebP with transparency.
    pub webp: Vec<u8>,
}

impl Table for SpriteRow {
    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error> {
        Ok(vec![
            ("family", strings(rows.iter().map(|row| row.family.as_str()))),
            ("concept", strings(rows.iter().map(|row| row.concept.as_str()))),
            ("group", strings(rows.iter().map(|row| row.group.as_str()))),
            ("hex", strings(rows.iter().map(|row| row.hex.as_str()))),
            ("title", strings(rows.iter().map(|row| row.title.as_str()))),
            ("author", strings(rows.iter().map(|row| row.author.as_str()))),
            ("licence", strings(rows.iter().map(|row| row.licence.as_str()))),
            ("source", strings(rows.iter().map(|row| row.source.as_str()))),
            ("webp", binaries(rows.iter().map(|row| row.webp.as_slice()))),
        ])
    }

    fn from_row(row: &Row<'_>) -> Result<Self, String> {
        Ok(Self {
            family: row.string("family")?,
            concept: row.string("concept")?,
            group: row.string("group")?,
            hex: row.string("hex")?,
            title: row.string("title")?,
            author: row.string("author")?,
            licence: row.string("licence")?,
            source: row.string("source")?,
            webp: row.binary("webp")?,
        })
    }
}

/// Writes `sprites.parquet`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_sprites(path: &Path, rows: &[SpriteRow]) -> Result<(), FileError> {
    table::write(path, rows)
}

/// Reads `sprites.parquet`.
///
/// # Errors
/// When the file is missing, damaged or of another format.
pub fn read_sprites(path: &Path) -> Result<Vec<SpriteRow>, FileError> {
    table::read(path)
}
