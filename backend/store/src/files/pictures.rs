//! `pictures.parquet`: the pictures that examples and samples show, with what is drawn in them.

use super::{
    column::{Row, binaries, json, strings, u32s},
    table::{self, FileError, RowWriter, Table},
};
use arrow_array::ArrayRef;
use std::{fs::File, path::Path};

/// A picture and its bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PictureRow {
    /// `url` is not in the file: reading fills it with [`picture_url`].
    pub picture: api::Picture,
    /// WebP.
    pub webp: Vec<u8>,
}

/// Path of a picture relative to the site's root.
pub fn picture_url(id: &str) -> String {
    format!("/pictures/{id}.webp")
}

impl Table for PictureRow {
    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error> {
        let pictures = || rows.iter().map(|row| &row.picture);
        Ok(vec![
            ("id", strings(pictures().map(|p| p.id.as_str()))),
            ("width", u32s(pictures().map(|p| p.width))),
            ("height", u32s(pictures().map(|p| p.height))),
            ("caption", strings(pictures().map(|p| p.caption.as_str()))),
            ("kind", strings(pictures().map(|p| p.kind.as_str()))),
            ("objects", json(pictures().map(|p| &p.objects))?),
            ("credit", strings(pictures().map(|p| p.credit.as_str()))),
            ("webp", binaries(rows.iter().map(|row| row.webp.as_slice()))),
        ])
    }

    fn from_row(row: &Row<'_>) -> Result<Self, String> {
        let id = row.string("id")?;
        let picture = api::Picture {
            url: picture_url(&id),
            id,
            width: row.u32("width")?,
            height: row.u32("height")?,
            caption: row.string("caption")?,
            kind: row.string("kind")?,
            objects: row.json("objects")?,
            credit: row.string("credit")?,
        };
        Ok(Self { picture, webp: row.binary("webp")? })
    }
}

/// Writes `pictures.parquet` row by row.
pub struct PictureWriter<'f>(RowWriter<'f, PictureRow>);

impl<'f> PictureWriter<'f> {
    /// `path` is what errors name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(path: &Path, file: &'f mut File) -> Result<Self, FileError> {
        RowWriter::new(path, file).map(Self)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, row: PictureRow) -> Result<(), FileError> {
        self.0.push(row)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> Result<(), FileError> {
        self.0.finish()
    }
}

/// Writes `pictures.parquet`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_pictures(path: &Path, rows: &[PictureRow]) -> Result<(), FileError> {
    table::write(path, rows)
}

/// Reads `pictures.parquet`.
///
/// # Errors
/// When the file is missing, damaged or of another format.
pub fn read_pictures(path: &Path) -> Result<Vec<PictureRow>, FileError> {
    table::read(path)
}
