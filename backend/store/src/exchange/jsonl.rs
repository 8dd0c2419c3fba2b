//! Files with one JSON object on each line, compressed with gzip where their name ends with `.gz`.

use crate::files::FileError;
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

/// Longest line that is read: what is longer is no row.
const MAX_LINE: u64 = 64 << 20;

/// Writes a compressed file, line by line.
pub(super) struct LineWriter {
    path: PathBuf,
    file: BufWriter<GzEncoder<File>>,
}

impl LineWriter {
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: PathBuf) -> Result<Self, FileError> {
        let file = File::create(&path).map_err(|error| FileError::io(&path, error))?;
        Ok(Self { path, file: BufWriter::new(GzEncoder::new(file, Compression::default())) })
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, row: &impl Serialize) -> Result<(), FileError> {
        let mut line = serde_json::to_vec(row).map_err(|error| FileError::corrupt(&self.path, &error))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|error| FileError::io(&self.path, error))
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> Result<(), FileError> {
        let failed = |error| FileError::io(&self.path, error);
        let encoder = self.file.into_inner().map_err(|error| failed(error.into_error()))?;
        encoder.finish().and_then(|file| file.sync_all()).map_err(failed)
    }
}

/// Reads a file line by line. Empty lines are passed over.
pub(super) struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    /// # Errors
    /// When there is no such file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|error| FileError::io(path, error))?;
        let compressed = path.extension().is_some_and(|extension| extension == "gz");
        let reader: Box<dyn BufRead> = if compressed {
            Box::new(BufReader::new(MultiGzDecoder::new(BufReader::new(file))))
        } else {
            Box::new(BufReader::new(file))
        };
        Ok(Self { path: path.to_owned(), reader, number: 0, line: Vec::new() })
    }

    /// The next object.
    ///
    /// # Errors
    /// When the line is not such an object, or the file is cut off; the line is named.
    pub fn next_row<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FileError> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = self.reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut self.line);
            if read.map_err(|error| self.wrong(error.to_string()))? == 0 {
                return Ok(None);
            }
            if self.line.len() as u64 > MAX_LINE {
                return Err(self.wrong(format!("it is longer than {MAX_LINE} bytes")));
            }
            if !self.line.trim_ascii().is_empty() {
                break;
            }
        }
        serde_json::from_slice(&self.line).map(Some).map_err(|error| self.wrong(reason_of(&error)))
    }

    /// Something is wrong with the line that was read last.
    pub fn wrong(&self, reason: impl std::fmt::Display) -> FileError {
        FileError::corrupt(&self.path, &format!("line {}: {reason}", self.number))
    }
}

/// Without the place within the text: a line of its own is always line 1.
fn reason_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("{} (column {})", &text[..end], error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn lines_come_back_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl.gz");
        let mut writer = LineWriter::create(path.clone()).unwrap();
        let rows: Vec<Value> = (0..3000).map(|i| json!({ "i": i, "text": "naïve\n☕" })).collect();
        rows.iter().try_for_each(|row| writer.push(row)).unwrap();
        writer.finish().unwrap();
        let mut lines = Lines::open(&path).unwrap();
        let mut read = Vec::new();
        while let Some(row) = lines.next_row::<Value>().unwrap() {
            read.push(row);
        }
        assert_eq!(read, rows);

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let mut lines = Lines::open(&path).unwrap();
        let error = loop {
            match lines.next_row::<Value>() {
                Ok(row) => assert!(row.is_some(), "half a file was read to its end"),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("rows.jsonl.gz") && error.contains("line "), "{error}");

        let path = folder.path().join("plain.jsonl");
        std::fs::write(&path, "{\"i\": 1}\n\n{\"i\": }\n").unwrap();
        let mut lines = Lines::open(&path).unwrap();
        assert_eq!(lines.next_row::<Value>().unwrap(), Some(json!({ "i": 1 })));
        let error = lines.next_row::<Value>().unwrap_err().to_string();
        assert!(error.contains("line 3: expected value (column"), "{error}");
    }
}
