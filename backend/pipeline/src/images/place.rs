//! Where a picture's bytes are, so that it can be read without those before it.

use super::{ImagesError, cells::Cells};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

/// Largest file that is read as a picture.
pub const MAX_PICTURE_BYTES: u64 = 256 << 20;

/// The bytes of a picture or a mask. Files are named by their paths from the set's root, with slashes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Place {
    /// A file of its own.
    File { file: String },
    /// A part of a file: an entry of a tar.
    Part { file: String, offset: u64, length: u64 },
    /// A cell of a Parquet file.
    Cell { file: String, row: u64, column: String },
}

impl Place {
    /// The place of a file that metadata name.
    ///
    /// # Errors
    /// When it would be outside of the set: metadata come from elsewhere.
    pub(super) fn named(root: &Path, folder: &str, name: &str) -> Result<Self, String> {
        let outside = || format!("names {name}, which is not in the set's folder");
        let path = Path::new(name);
        let within = match path.is_absolute() {
            true => {
                let whole = root.canonicalize().unwrap_or_else(|_| root.to_owned());
                path.strip_prefix(root).or_else(|_| path.strip_prefix(&whole)).map_err(|_| outside())?.to_owned()
            }
            false => Path::new(folder).join(path),
        };
        let mut parts = Vec::new();
        for part in within.components() {
            match part {
                Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
                Component::CurDir => {}
                _ => return Err(outside()),
            }
        }
        Ok(Self::File { file: parts.join("/") })
    }

    /// The file that holds it, from the set's root.
    pub fn file(&self) -> &str {
        match self {
            Self::File { file } | Self::Part { file, .. } | Self::Cell { file, .. } => file,
        }
    }
}

/// Reads pictures by their places; fast for places in the order of the set.
pub struct PlaceReader {
    root: PathBuf,
    cells: Option<Cells>,
}

impl PlaceReader {
    /// `root` is the set's.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), cells: None }
    }

    /// The bytes at a place.
    ///
    /// # Errors
    /// When they are not there (any more), or are too many for a picture.
    pub fn read(&mut self, place: &Place) -> Result<Vec<u8>, ImagesError> {
        let path = self.root.join(place.file());
        match place {
            Place::File { .. } => read_file(&path).map_err(|reason| ImagesError::file(&path, reason)),
            Place::Part { offset, length, .. } => {
                read_part(&path, *offset, *length).map_err(|reason| ImagesError::file(&path, reason))
            }
            Place::Cell { file, row, column } => {
                let here = |cells: &Cells| cells.reaches(file, column, *row);
                let mut cells = match self.cells.take().filter(here) {
                    Some(cells) => cells,
                    None => Cells::open(&self.root, file, column, *row)?,
                };
                let bytes = cells.read(*row)?;
                self.cells = Some(cells);
                Ok(bytes)
            }
        }
    }
}

/// A file, or why it is not read.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let bytes = file.metadata().map_err(|error| error.to_string())?.len();
    check_size(bytes)?;
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    file.take(MAX_PICTURE_BYTES).read_to_end(&mut content).map_err(|error| error.to_string())?;
    Ok(content)
}

/// A part of a file, or why it is not read.
pub(super) fn read_part(path: &Path, offset: u64, length: u64) -> Result<Vec<u8>, String> {
    check_size(length)?;
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut content = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact(&mut content)?;
        Ok(content)
    };
    read().map_err(|error: std::io::Error| error.to_string())
}

pub(super) fn check_size(bytes: u64) -> Result<(), String> {
    if bytes <= MAX_PICTURE_BYTES {
        return Ok(());
    }
    Err(format!("{bytes} bytes are too many for a picture; at most {MAX_PICTURE_BYTES} are read"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn metadata_name_files_of_the_set_only() {
        let root = Path::new("/data/set");
        let named = |folder: &str, name: &str| Place::named(root, folder, name).map(|place| place.file().to_owned());
        assert_eq!(named("train", "a.png").unwrap(), "train/a.png");
        assert_eq!(named("", "./b/a.png").unwrap(), "b/a.png");
        assert_eq!(named("train", "/data/set/c/a.png").unwrap(), "c/a.png");
        for outside in ["../a.png", "b/../../a.png", "/data/other.png", "/etc/hostname"] {
            assert!(named("", outside).unwrap_err().contains(outside), "{outside}");
        }
    }
}
