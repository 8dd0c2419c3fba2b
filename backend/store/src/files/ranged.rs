//! A Parquet file that is read where it is needed, on disk or in a bucket: its footer once, then row groups in one
//! piece each.

use super::table::FileError;
use crate::objects::{Bucket, Object};
use bytes::{Buf, Bytes, buf::Reader};
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// What is read first, from the end: most footers are shorter.
const END: u64 = 64 << 10;
/// Length of the metadata, and the format's mark: the last bytes of every file.
const TRAILER: u64 = 8;

/// Bytes by their places.
#[derive(Debug)]
pub(super) enum Ranged {
    File { file: Mutex<File>, bytes: u64 },
    Object(Object),
}

impl Ranged {
    /// A file on disk, and its end.
    pub fn open(path: &Path) -> Result<(Self, Piece), FileError> {
        let file = File::open(path).map_err(|error| FileError::io(path, error))?;
        let bytes = file.metadata().map_err(|error| FileError::io(path, error))?.len();
        let file = Self::File { file: Mutex::new(file), bytes };
        let end = file.read(path, bytes.saturating_sub(END)..bytes)?;
        Ok((file, end))
    }

    /// An object of a bucket, and its end, in one request.
    pub fn open_in(bucket: &Arc<Bucket>, name: &str) -> Result<(Self, Piece), FileError> {
        let (object, content) = bucket.read_end(name, END)?;
        let start = object.bytes().saturating_sub(content.len() as u64);
        Ok((Self::Object(object), Piece { start, content }))
    }

    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::Object(object) => object.bytes(),
        }
    }

    /// `path` is what errors name.
    pub fn read(&self, path: &Path, range: Range<u64>) -> Result<Piece, FileError> {
        let start = range.start;
        let content = match self {
            Self::Object(object) => object.read(range)?,
            Self::File { file, .. } => {
                let failed = |error| FileError::io(path, error);
                let mut content = vec![0; usize::try_from(range.end.saturating_sub(start)).unwrap_or_default()];
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(start)).map_err(failed)?;
                file.read_exact(&mut content).map_err(failed)?;
                content.into()
            }
        };
        Ok(Piece { start, content })
    }

    /// The metadata. More is read if `end` does not hold all of it.
    pub fn metadata(&self, path: &Path, mut end: Piece) -> Result<ArrowReaderMetadata, FileError> {
        let corrupt = |error: ParquetError| FileError::corrupt(path, &error);
        if let Some([l0, l1, l2, l3, ..]) = end.content.last_chunk::<{ TRAILER as usize }>() {
            let footer = u64::from(u32::from_le_bytes([*l0, *l1, *l2, *l3])) + TRAILER;
            if footer > end.content.len() as u64 && footer <= self.bytes() {
                end = self.read(path, self.bytes() - footer..self.bytes())?;
            }
        }
        ArrowReaderMetadata::load(&end, ArrowReaderOptions::new()).map_err(corrupt)
    }
}

/// Part of a file, in memory, at its place.
pub(super) struct Piece {
    start: u64,
    content: Bytes,
}

impl Piece {
    pub fn bytes(&self) -> u64 {
        self.content.len() as u64
    }
}

impl Length for Piece {
    fn len(&self) -> u64 {
        self.start + self.content.len() as u64
    }
}

impl ChunkReader for Piece {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let within = start.checked_sub(self.start).and_then(|start| usize::try_from(start).ok());
        match within.filter(|start| *start <= self.content.len()) {
            Some(start) => Ok(self.content.slice(start..).reader()),
            None => Err(ParquetError::EOF(format!("byte {start} is outside of what was read"))),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let within = start.checked_sub(self.start).and_then(|start| usize::try_from(start).ok());
        let range = within.and_then(|start| Some(start..start.checked_add(length)?));
        match range.filter(|range| range.end <= self.content.len()) {
            Some(range) => Ok(self.content.slice(range)),
            None => Err(ParquetError::EOF(format!("{length} bytes from {start} on are outside of what was read"))),
        }
    }
}
