//! A Parquet file as a list of rows: the one writer and the one reader behind every artefact.

use super::column::Row;
use arrow_array::{ArrayRef, RecordBatch};
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    },
    basic::{Compression, Encoding},
    errors::ParquetError,
    file::{metadata::ParquetMetaData, properties::WriterProperties},
    schema::types::ColumnPath,
};
use std::{
    fmt::Display,
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
};

/// Rows per record batch and per row group: a few megabytes of pictures, whatever the file's size.
const ROWS_PER_BATCH: usize = 1024;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read or write {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is damaged or not of the expected format: {reason}", path.display())]
    Corrupt { path: PathBuf, reason: String },
}

impl FileError {
    /// An operating-system error about `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// The content of `path` is not what it should be.
    pub fn corrupt(path: &Path, reason: &impl Display) -> Self {
        Self::Corrupt { path: path.to_owned(), reason: reason.to_string() }
    }

    /// The file it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::Corrupt { path, .. } => path,
        }
    }
}

/// A kind of row: its columns, and how to read one back.
pub(crate) trait Table: Sized {
    /// Columns of `f32` lists holding activations: split by byte, because rounded floats then compress well.
    const ACTIVATION_LISTS: &'static [&'static str] = &[];
    /// Columns that have no value in some rows.
    const NULLABLE: &'static [&'static str] = &[];

    /// One array per column, in file order. An empty slice gives empty columns, which still carry the schema.
    fn columns(rows: &[Self]) -> Result<Vec<(&'static str, ArrayRef)>, serde_json::Error>;

    fn from_row(row: &Row<'_>) -> Result<Self, String>;
}

/// Writes `path` through a temporary name beside it; on failure the temporary file is removed.
///
/// # Errors
/// When the folder or the file cannot be written, or `fill` fails.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), FileError>) -> Result<(), FileError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = fs::create_dir_all(folder)
        .and_then(|()| File::create(&temporary))
        .map_err(|error| FileError::io(path, error))
        .and_then(|mut file| {
            fill(&mut file)?;
            file.sync_all().map_err(|error| FileError::io(path, error))
        })
        .and_then(|()| fs::rename(&temporary, path).map_err(|error| FileError::io(path, error)));
    if written.is_err() {
        // Best effort: the error that matters is the one above.
        fs::remove_file(&temporary).ok();
    }
    written
}

pub(super) fn write<T: Table>(path: &Path, rows: &[T]) -> Result<(), FileError> {
    write_atomically(path, |file| {
        let mut writer = open_writer::<T>(path, file)?;
        for rows in rows.chunks(ROWS_PER_BATCH) {
            writer.write(&batch_of(path, rows)?).map_err(|error| write_error(path, error))?;
        }
        writer.close().map(drop).map_err(|error| write_error(path, error))
    })
}

pub(crate) fn batch_of<T: Table>(path: &Path, rows: &[T]) -> Result<RecordBatch, FileError> {
    let columns = T::columns(rows).map_err(|error| FileError::corrupt(path, &error))?;
    // The schema is that of all batches, whether a value is missing in this one or not.
    let columns = columns.into_iter().map(|(name, array)| (name, array, T::NULLABLE.contains(&name)));
    RecordBatch::try_from_iter_with_nullable(columns).map_err(|error| FileError::corrupt(path, &error))
}

fn open_writer<'f, T: Table>(path: &Path, file: &'f mut File) -> Result<ArrowWriter<&'f mut File>, FileError> {
    let schema = batch_of::<T>(path, &[])?.schema();
    ArrowWriter::try_new(file, schema, Some(properties::<T>())).map_err(|error| write_error(path, error))
}

/// Writes rows as they come, a batch of them in memory.
pub(super) struct RowWriter<'f, T> {
    path: PathBuf,
    writer: ArrowWriter<&'f mut File>,
    pending: Vec<T>,
}

impl<'f, T: Table> RowWriter<'f, T> {
    /// `path` is what errors name.
    pub(super) fn new(path: &Path, file: &'f mut File) -> Result<Self, FileError> {
        let writer = open_writer::<T>(path, file)?;
        Ok(Self { path: path.to_owned(), writer, pending: Vec::with_capacity(ROWS_PER_BATCH) })
    }

    pub(super) fn push(&mut self, row: T) -> Result<(), FileError> {
        self.pending.push(row);
        if self.pending.len() < ROWS_PER_BATCH { Ok(()) } else { self.flush() }
    }

    pub(super) fn finish(mut self) -> Result<(), FileError> {
        self.flush()?;
        self.writer.close().map(drop).map_err(|error| write_error(&self.path, error))
    }

    fn flush(&mut self) -> Result<(), FileError> {
        let batch = batch_of(&self.path, &self.pending)?;
        self.pending.clear();
        self.writer.write(&batch).map_err(|error| write_error(&self.path, error))
    }
}

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

pub(super) fn write_error(path: &Path, error: ParquetError) -> FileError {
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(cause) => FileError::io(path, *cause),
            Err(cause) => FileError::corrupt(path, &cause),
        },
        other => FileError::corrupt(path, &other),
    }
}

/// Reads all rows.
pub(super) fn read<T: Table>(path: &Path) -> Result<Vec<T>, FileError> {
    Rows::open(path)?.try_fold(Vec::new(), |mut all, batch| {
        all.extend(batch?);
        Ok(all)
    })
}

/// Reads a file in batches, so that its size does not decide the memory.
pub(crate) struct Rows<T> {
    path: PathBuf,
    batches: ParquetRecordBatchReader,
    row: std::marker::PhantomData<fn() -> T>,
}

impl<T: Table> Rows<T> {
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|error| FileError::io(path, error))?;
        let batches = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.with_batch_size(ROWS_PER_BATCH).build())
            .map_err(|error| FileError::corrupt(path, &error))?;
        Ok(Self { path: path.to_owned(), batches, row: std::marker::PhantomData })
    }

    /// Only the rows with these numbers; other row groups are not touched.
    pub(crate) fn open_range(path: &Path, rows: Range<usize>) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|error| FileError::io(path, error))?;
        let corrupt = |error: ParquetError| FileError::corrupt(path, &error);
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(corrupt)?;
        let (groups, before) = covering(builder.metadata(), &rows);
        let builder = builder.with_row_groups(groups).with_offset(rows.start.saturating_sub(before));
        let batches = builder.with_limit(rows.len()).with_batch_size(ROWS_PER_BATCH).build().map_err(corrupt)?;
        Ok(Self { path: path.to_owned(), batches, row: std::marker::PhantomData })
    }
}

/// The row groups that hold some of `rows`, and how many rows come before the first of them.
fn covering(metadata: &ParquetMetaData, rows: &Range<usize>) -> (Vec<usize>, usize) {
    let (mut groups, mut before, mut start) = (Vec::new(), rows.start, 0);
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let end = start + usize::try_from(group.num_rows()).unwrap_or_default();
        if start < rows.end && end > rows.start {
            if groups.is_empty() {
                before = start;
            }
            groups.push(number);
        }
        start = end;
    }
    (groups, before)
}

impl<T: Table> Iterator for Rows<T> {
    type Item = Result<Vec<T>, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?;
        let rows = batch
            .map_err(|error| error.to_string())
            .and_then(|batch| (0..batch.num_rows()).map(|index| T::from_row(&Row { batch: &batch, index })).collect());
        Some(rows.map_err(|reason| FileError::corrupt(&self.path, &reason)))
    }
}
