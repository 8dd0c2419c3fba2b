//! A shard of a cache: which feature fires how strongly on which token of which picture.
//!
//! Four columns, `feature`, `image`, `token` and `value` (a half float), sorted by the first three. Sorted columns are
//! small when each is written in its own way: 2.6 to 3.3 bytes a row on the demo's pictures.

use super::table::{FileError, write_error};
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, PrimitiveArray, RecordBatch,
    types::{Float16Type, UInt32Type},
};
use half::f16;
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    },
    basic::{Compression, Encoding},
    errors::ParquetError,
    file::{
        metadata::{KeyValue, SortingColumn},
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Rows that are encoded together, and rows per row group.
pub(super) const ROWS_PER_BATCH: usize = 1 << 16;
const ROWS_PER_GROUP: usize = 1 << 20;

/// One row of a shard.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Activation {
    pub feature: u32,
    /// Number of the picture in its set.
    pub image: u32,
    /// Position in the model's sequence, or among the vision tower's positions.
    pub token: u32,
    /// Above zero.
    pub value: f16,
}

impl Activation {
    /// What rows are sorted by.
    pub fn place(&self) -> [u32; 3] {
        [self.feature, self.image, self.token]
    }
}

/// Writes a shard into `file`, with texts for its footer, and tells how many rows it has. `path` is what errors name.
///
/// # Errors
/// When the file cannot be written, or rows do not rise.
pub fn write_activations(
    path: &Path,
    file: &mut File,
    rows: impl Iterator<Item = Activation>,
    texts: Vec<(String, String)>,
) -> Result<u64, FileError> {
    let failed = |error: ParquetError| write_error(path, error);
    let mut columns = Columns::default();
    let schema = columns.take(path)?.schema();
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties(texts, ROWS_PER_GROUP))).map_err(failed)?;
    let (mut count, mut last) = (0, None);
    for row in rows {
        check_order(path, last.replace(row.place()), &row)?;
        columns.push(&row);
        count += 1;
        if columns.len() == ROWS_PER_BATCH {
            writer.write(&columns.take(path)?).map_err(failed)?;
        }
    }
    writer.write(&columns.take(path)?).map_err(failed)?;
    writer.close().map_err(failed)?;
    Ok(count)
}

pub(super) fn check_order(path: &Path, last: Option<[u32; 3]>, row: &Activation) -> Result<(), FileError> {
    if last.is_none_or(|last| last < row.place()) {
        return Ok(());
    }
    let [feature, image, token] = row.place();
    let reason = format!("feature {feature}, image {image}, token {token} is out of order");
    Err(FileError::corrupt(path, &reason))
}

/// Long runs of features and few pictures; tokens that mostly rise by little; values that come again and again because
/// they are rounded.
pub(super) fn properties(texts: Vec<(String, String)>, rows_per_group: usize) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_size(rows_per_group)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_sorting_columns(Some(
            (0..3).map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: false }).collect(),
        ))
        .set_key_value_metadata(Some(texts.into_iter().map(|(key, text)| KeyValue::new(key, text)).collect()))
        .set_created_by(concat!("lmm-scope ", env!("CARGO_PKG_VERSION")).to_owned());
    for name in ["feature", "token"] {
        let column = ColumnPath::from(name);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    properties.build()
}

/// Rows that are not yet written.
#[derive(Default)]
pub(super) struct Columns {
    feature: Vec<u32>,
    image: Vec<u32>,
    token: Vec<u32>,
    value: Vec<f16>,
}

impl Columns {
    pub(super) fn push(&mut self, row: &Activation) {
        self.feature.push(row.feature);
        self.image.push(row.image);
        self.token.push(row.token);
        self.value.push(row.value);
    }

    pub(super) fn len(&self) -> usize {
        self.feature.len()
    }

    /// Hands the rows over.
    pub(super) fn take(&mut self, path: &Path) -> Result<RecordBatch, FileError> {
        let Self { feature, image, token, value } = std::mem::take(self);
        let columns: [(&str, ArrayRef); 4] = [
            ("feature", Arc::new(PrimitiveArray::<UInt32Type>::from_iter_values(feature))),
            ("image", Arc::new(PrimitiveArray::<UInt32Type>::from_iter_values(image))),
            ("token", Arc::new(PrimitiveArray::<UInt32Type>::from_iter_values(token))),
            ("value", Arc::new(PrimitiveArray::<Float16Type>::from_iter_values(value))),
        ];
        RecordBatch::try_from_iter(columns).map_err(|error| FileError::corrupt(path, &error))
    }
}

/// A shard that is read row by row, a batch of them in memory. Rows come sorted, or an error does.
pub struct ActivationFile {
    path: PathBuf,
    rows: u64,
    texts: Vec<KeyValue>,
    batches: ParquetRecordBatchReader,
    batch: Option<Batch>,
    last: Option<[u32; 3]>,
    failed: bool,
}

/// Rows in memory, and the next of them.
pub(super) struct Batch {
    feature: PrimitiveArray<UInt32Type>,
    image: PrimitiveArray<UInt32Type>,
    token: PrimitiveArray<UInt32Type>,
    value: PrimitiveArray<Float16Type>,
    next: usize,
}

impl ActivationFile {
    /// # Errors
    /// When the file is missing or is no Parquet file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|error| FileError::io(path, error))?;
        let corrupt = |error: ParquetError| FileError::corrupt(path, &error);
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(corrupt)?;
        let metadata = builder.metadata().file_metadata();
        let rows = u64::try_from(metadata.num_rows()).unwrap_or_default();
        let texts = metadata.key_value_metadata().cloned().unwrap_or_default();
        let batches = builder.with_batch_size(ROWS_PER_BATCH).build().map_err(corrupt)?;
        Ok(Self { path: path.to_owned(), rows, texts, batches, batch: None, last: None, failed: false })
    }

    /// How many rows it has.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// A text of the footer.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn text(&self, key: &str) -> Result<&str, FileError> {
        let found = self.texts.iter().find(|text| text.key == key).and_then(|text| text.value.as_deref());
        found.ok_or_else(|| FileError::corrupt(&self.path, &format!("its footer has no {key}")))
    }

    /// The file it reads.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn next_row(&mut self) -> Result<Option<Activation>, FileError> {
        loop {
            if let Some(row) = self.batch.as_mut().and_then(Batch::next) {
                check_order(&self.path, self.last.replace(row.place()), &row)?;
                return Ok(Some(row));
            }
            let corrupt = |reason: String| FileError::corrupt(&self.path, &reason);
            let Some(batch) = self.batches.next() else { return Ok(None) };
            let batch = batch.map_err(|error| corrupt(error.to_string()))?;
            self.batch = Some(Batch::new(&batch).map_err(corrupt)?);
        }
    }
}

impl Iterator for ActivationFile {
    type Item = Result<Activation, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = self.next_row();
        self.failed = row.is_err();
        row.transpose()
    }
}

impl Batch {
    pub(super) fn new(batch: &RecordBatch) -> Result<Self, String> {
        Ok(Self {
            feature: column(batch, "feature")?,
            image: column(batch, "image")?,
            token: column(batch, "token")?,
            value: column(batch, "value")?,
            next: 0,
        })
    }

    pub(super) fn next(&mut self) -> Option<Activation> {
        let at = self.next;
        if at >= self.feature.len() {
            return None;
        }
        self.next += 1;
        Some(Activation {
            feature: self.feature.value(at),
            image: self.image.value(at),
            token: self.token.value(at),
            value: self.value.value(at),
        })
    }
}

fn column<T: ArrowPrimitiveType>(batch: &RecordBatch, name: &str) -> Result<PrimitiveArray<T>, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("there is no column {name}"))?;
    let typed = column.as_any().downcast_ref::<PrimitiveArray<T>>();
    let typed = typed.ok_or_else(|| format!("column {name} has type {}", column.data_type()))?;
    if typed.null_count() > 0 {
        return Err(format!("column {name}: {} rows have no value", typed.null_count()));
    }
    Ok(typed.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    fn row(feature: u32, image: u32, token: u32) -> Activation {
        Activation { feature, image, token, value: f16::from_f32((token % 7 + 1) as f32 / 4.0) }
    }

    #[test]
    fn rows_and_texts_come_back_whatever_the_batches() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000.parquet");
        for count in [0, 1, 1000, ROWS_PER_BATCH as u32 + 5] {
            let rows: Vec<Activation> = (0..count).map(|i| row(i / 100, i % 100 / 10, i % 10 * 3)).collect();
            let texts = vec![("about".to_owned(), "a test".to_owned())];
            let mut file = File::create(&path).unwrap();
            assert_eq!(write_activations(&path, &mut file, rows.iter().copied(), texts).unwrap(), u64::from(count));
            let shard = ActivationFile::open(&path).unwrap();
            assert_eq!((shard.rows(), shard.text("about").unwrap()), (u64::from(count), "a test"));
            assert!(shard.text("other").unwrap_err().to_string().contains("no other"));
            assert_eq!(shard.collect::<Result<Vec<_>, _>>().unwrap(), rows);
        }
    }

    #[test]
    fn rows_that_do_not_rise_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000.parquet");
        for wrong in [[row(1, 0, 0), row(0, 0, 0)], [row(0, 1, 0), row(0, 0, 5)], [row(0, 0, 4), row(0, 0, 4)]] {
            let mut file = File::create(&path).unwrap();
            let error = write_activations(&path, &mut file, wrong.into_iter(), Vec::new()).unwrap_err().to_string();
            assert!(error.contains("out of order"), "{error}");
        }
        assert!(ActivationFile::open(&folder.path().join("missing.parquet")).is_err());
    }
}
