//! An artefact file that is written row by row into a folder that nobody reads yet.

use crate::files::{
    FileError,
    table::{Table, batch_of},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding},
    errors::ParquetError,
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// Rows in memory, and per row group.
const ROWS_PER_BATCH: usize = 1024;

/// The rows of one file, some of them in memory.
pub(super) struct RowFile<T> {
    path: PathBuf,
    writer: ArrowWriter<File>,
    pending: Vec<T>,
    count: u64,
}

impl<T: Table> RowFile<T> {
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: PathBuf) -> Result<Self, FileError> {
        let file = File::create(&path).map_err(|error| FileError::io(&path, error))?;
        let schema = batch_of::<T>(&path, &[])?.schema();
        let writer = ArrowWriter::try_new(file, schema, Some(properties::<T>()));
        let writer = writer.map_err(|error| failed(&path, &error))?;
        Ok(Self { path, writer, pending: Vec::with_capacity(ROWS_PER_BATCH), count: 0 })
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, row: T) -> Result<(), FileError> {
        self.pending.push(row);
        self.count += 1;
        if self.pending.len() < ROWS_PER_BATCH { Ok(()) } else { self.flush() }
    }

    /// Writes what is pending and the footer, and waits for the disk. Gives the number of rows.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self) -> Result<u64, FileError> {
        self.flush()?;
        let file = self.writer.into_inner().map_err(|error| failed(&self.path, &error))?;
        file.sync_all().map_err(|error| FileError::io(&self.path, error))?;
        Ok(self.count)
    }

    fn flush(&mut self) -> Result<(), FileError> {
        let batch = batch_of(&self.path, &self.pending)?;
        self.pending.clear();
        self.writer.write(&batch).map_err(|error| failed(&self.path, &error))
    }
}

fn failed(path: &Path, error: &ParquetError) -> FileError {
    FileError::io(path, std::io::Error::other(error.to_string()))
}

/// As the artefact files have them: activations split by byte, because rounded floats then compress well.
fn properties<T: Table>() -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_size(ROWS_PER_BATCH)
        .set_created_by(concat!("lmm-scope ", env!("CARGO_PKG_VERSION")).to_owned());
    for name in T::ACTIVATION_LISTS {
        let column = ColumnPath::new(vec![(*name).to_owned(), "list".to_owned(), "item".to_owned()]);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::BYTE_STREAM_SPLIT);
    }
    properties.build()
}
