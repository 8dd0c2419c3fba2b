//! `images.parquet`: every picture of an image set with its number, which activations name it by.

use super::{
    column::{Row, strings, u32s},
    table::{FileError, RowWriter, Rows, Table},
};
use arrow_array::ArrayRef;
use std::{fs::File, ops::Range, path::Path};

/// One picture of a set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageRow {
    /// Its place in the set's order, from 0.
    pub image: u32,
    pub id: String,
    /// Empty if there is none.
    pub caption: String,
    /// Of the file's bytes, as 64 hex digits; empty if they could not be read.
    pub sha256: String,
    /// The first picture with the same bytes: itself, unless it is a duplicate.
    pub first: u32,
    /// Why it could not be read; empty if it could.
    pub problem: String,
    /// Where its bytes are, as JSON.
    pub place: String,
    /// Where its mask is, as JSON; empty if there is none.
    pub mask: String,
}

impl Table for ImageRow {
    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error> {
        Ok(vec![
            ("image", u32s(rows.iter().map(|row| row.image))),
            ("id", strings(rows.iter().map(|row| row.id.as_str()))),
            ("caption", strings(rows.iter().map(|row| row.caption.as_str()))),
            ("sha256", strings(rows.iter().map(|row| row.sha256.as_str()))),
            ("first", u32s(rows.iter().map(|row| row.first))),
            ("problem", strings(rows.iter().map(|row| row.problem.as_str()))),
            ("place", strings(rows.iter().map(|row| row.place.as_str()))),
            ("mask", strings(rows.iter().map(|row| row.mask.as_str()))),
        ])
    }

    fn from_row(row: &Row<'_>) -> Result<Self, String> {
        Ok(Self {
            image: row.u32("image")?,
            id: row.string("id")?,
            caption: row.string("caption")?,
            sha256: row.string("sha256")?,
            first: row.u32("first")?,
            problem: row.string("problem")?,
            place: row.string("place")?,
            mask: row.string("mask")?,
        })
    }
}

/// Writes `images.parquet` row by row.
pub struct ImageListWriter<'f>(RowWriter<'f, ImageRow>);

impl<'f> ImageListWriter<'f> {
    /// `path` is what errors name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(path: &Path, file: &'f mut File) -> Result<Self, FileError> {
        RowWriter::new(path, file).map(Self)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, row: ImageRow) -> Result<(), FileError> {
        self.0.push(row)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> Result<(), FileError> {
        self.0.finish()
    }
}

/// The rows of `images.parquet`, some at a time.
pub struct ImageRows(Rows<ImageRow>);

impl ImageRows {
    /// # Errors
    /// When the file is missing, damaged or of another format.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Rows::open(path).map(Self)
    }
}

impl Iterator for ImageRows {
    type Item = Result<Vec<ImageRow>, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// The rows of some pictures; fewer where the set has ended.
///
/// # Errors
/// When the file is missing, damaged or of another format.
pub fn read_image_rows(path: &Path, images: Range<u32>) -> Result<Vec<ImageRow>, FileError> {
    let rows = images.start as usize..images.end as usize;
    let mut found = Vec::with_capacity(rows.len());
    for batch in Rows::<ImageRow>::open_range(path, rows)? {
        found.extend(batch?);
    }
    match found.first() {
        Some(row) if row.image != images.start => {
            let reason = format!("row {} is of picture {}", images.start, row.image);
            Err(FileError::corrupt(path, &reason))
        }
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn rows_are_found_by_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.parquet");
        let row =
            |image: u32| ImageRow { image, id: format!("picture {image}"), first: image / 2, ..ImageRow::default() };
        let mut file = File::create(&path).unwrap();
        let mut writer = ImageListWriter::new(&path, &mut file).unwrap();
        // More than two row groups.
        (0..2500).try_for_each(|image| writer.push(row(image))).unwrap();
        writer.finish().unwrap();
        for images in [0..3, 1020..1030, 2047..2049, 2490..2510, 0..2500] {
            let expected: Vec<ImageRow> = images.clone().filter(|image| *image < 2500).map(row).collect();
            assert_eq!(read_image_rows(&path, images.clone()).unwrap(), expected, "{images:?}");
        }
        assert_eq!(read_image_rows(&path, 2500..2600).unwrap(), []);
        let all: Vec<ImageRow> = ImageRows::open(&path).unwrap().flat_map(Result::unwrap).collect();
        assert_eq!(all.len(), 2500);
    }
}
