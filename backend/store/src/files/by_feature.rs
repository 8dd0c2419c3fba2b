//! `activations.parquet` of an index: the rows of all shards in the order of features, and where each feature's are.
//!
//! The columns are those of a shard. A row group begins where a feature begins, but for a feature with more rows than
//! four groups should have: it goes on in groups of its own. How many rows each feature has is a JSON list in the
//! footer, `lmm_scope.rows_per_feature`; with the groups' sizes it says which groups to read.

use super::{
    activations::{Activation, Batch, Columns, ROWS_PER_BATCH, check_order, properties},
    ranged::{Piece, Ranged},
    table::{FileError, write_error},
};
use crate::objects::Bucket;
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    },
    errors::ParquetError,
    file::metadata::KeyValue,
};
use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Name of the footer's list.
const ROWS_PER_FEATURE: &str = "lmm_scope.rows_per_feature";
/// A feature that makes its group so many times larger than wanted goes on in another.
const LARGEST: usize = 4;

/// Writes rows that rise by feature, image and token into `file`, and tells how many each of the `features` has. A row
/// group is cut at the first feature that begins after `rows_per_group` rows. `path` is what errors name.
///
/// # Errors
/// The rows' first error; a row that is out of order or of no feature; a file that cannot be written.
pub fn write_by_feature<E: From<FileError>>(
    path: &Path,
    file: &mut File,
    rows: impl Iterator<Item = Result<Activation, E>>,
    features: u32,
    rows_per_group: usize,
    texts: Vec<(String, String)>,
) -> Result<Vec<u64>, E> {
    let failed = |error: ParquetError| write_error(path, error);
    let wanted = rows_per_group.max(1);
    let largest = wanted.saturating_mul(LARGEST);
    let mut columns = Columns::default();
    let schema = columns.take(path)?.schema();
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties(texts, largest))).map_err(failed)?;
    let mut counts = vec![0u64; features as usize];
    let (mut in_group, mut continued, mut last) = (0, false, None);
    for row in rows {
        let row = row?;
        let begins = last.is_none_or(|[feature, _, _]: [u32; 3]| feature != row.feature);
        check_order(path, last.replace(row.place()), &row)?;
        let Some(count) = counts.get_mut(row.feature as usize) else {
            let reason = format!("feature {} of {features}", row.feature);
            return Err(FileError::corrupt(path, &reason).into());
        };
        *count += 1;
        let full = in_group == largest;
        if full || (begins && (in_group >= wanted || continued)) {
            writer.write(&columns.take(path)?).map_err(failed)?;
            writer.flush().map_err(failed)?;
            continued = full && !begins;
            in_group = 0;
        }
        columns.push(&row);
        in_group += 1;
        if columns.len() == ROWS_PER_BATCH {
            writer.write(&columns.take(path)?).map_err(failed)?;
        }
    }
    writer.write(&columns.take(path)?).map_err(failed)?;
    let list = serde_json::to_string(&counts).map_err(|error| FileError::corrupt(path, &error))?;
    writer.append_key_value_metadata(KeyValue::new(ROWS_PER_FEATURE.to_owned(), list));
    writer.close().map_err(failed)?;
    Ok(counts)
}

/// Activations of one feature after the other. Memory holds the footer, 8 bytes a feature and, of each reader, one row
/// group.
#[derive(Debug)]
pub struct ActivationsByFeature {
    path: PathBuf,
    file: Ranged,
    metadata: ArrowReaderMetadata,
    /// First row of every row group, and after them the number of rows.
    groups: Vec<u64>,
    /// First row of every feature, and after them the number of rows.
    starts: Vec<u64>,
    groups_read: AtomicU64,
    bytes_read: AtomicU64,
}

impl ActivationsByFeature {
    /// # Errors
    /// When the file is missing, is no Parquet file, or does not say where its features are.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::of(path, Ranged::open(path)?)
    }

    /// The same of an object: of it, the footer is fetched here, and later the row groups that are asked for.
    ///
    /// # Errors
    /// As [`Self::open`], and when the bucket cannot be read.
    pub fn open_in(bucket: &Arc<Bucket>, name: &str) -> Result<Self, FileError> {
        Self::of(&bucket.at(name), Ranged::open_in(bucket, name)?)
    }

    fn of(path: &Path, (file, end): (Ranged, Piece)) -> Result<Self, FileError> {
        let metadata = file.metadata(path, end)?;
        let sizes = metadata.metadata().row_groups().iter().map(|group| group.num_rows());
        let groups = starts(sizes.map(|rows| u64::try_from(rows).unwrap_or_default()));
        let list = text(path, &metadata, ROWS_PER_FEATURE)?;
        let counts: Vec<u64> = serde_json::from_str(list).map_err(|error| FileError::corrupt(path, &error))?;
        let starts = starts(counts.into_iter());
        if starts.last() != groups.last() {
            let reason = format!("{:?} rows in the list of features, {:?} in row groups", starts.last(), groups.last());
            return Err(FileError::corrupt(path, &reason));
        }
        let (groups_read, bytes_read) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { path: path.to_owned(), file, metadata, groups, starts, groups_read, bytes_read })
    }

    /// A text of the footer.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn text(&self, key: &str) -> Result<&str, FileError> {
        text(&self.path, &self.metadata, key)
    }

    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// How many features it knows, dead ones included.
    pub fn features(&self) -> u32 {
        (self.starts.len() - 1) as u32
    }

    /// The numbers of a feature's rows; none if it is dead.
    ///
    /// # Errors
    /// When there is no such feature.
    pub fn rows_of(&self, feature: u32) -> Result<Range<u64>, FileError> {
        match self.starts.get(feature as usize..).and_then(|starts| starts.first_chunk::<2>()) {
            Some(&[start, end]) => Ok(start..end),
            None => Err(FileError::corrupt(&self.path, &format!("feature {feature} of {}", self.features()))),
        }
    }

    /// The row group that holds a row; of the row after the last one, the number of groups.
    pub fn group_of(&self, row: u64) -> usize {
        self.groups.partition_point(|start| *start <= row).saturating_sub(1)
    }

    /// How many row groups there are.
    pub fn groups(&self) -> usize {
        self.groups.len() - 1
    }

    /// All activations of a feature, by image and token.
    ///
    /// # Errors
    /// When there is no such feature, or the file is damaged there.
    pub fn activations(&self, feature: u32) -> Result<Vec<Activation>, FileError> {
        self.read(self.rows_of(feature)?).collect()
    }

    /// Some rows, a batch of them in memory; only the row groups that hold them are read.
    pub fn read(&self, rows: Range<u64>) -> ActivationRows<'_> {
        let end = rows.end.min(self.groups.last().copied().unwrap_or_default());
        let rows = rows.start.min(end)..end;
        let due = rows.end - rows.start;
        ActivationRows { file: self, rows, due, group: None, batch: None, last: None, failed: false }
    }

    /// Row groups that have been read since the file was opened, each time counted.
    pub fn groups_read(&self) -> u64 {
        self.groups_read.load(Ordering::Relaxed)
    }

    /// Bytes that have been read since then.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Reads a row group in one piece, and decodes `take` of its rows after the first `skip`.
    fn open_group(&self, group: usize, skip: u64, take: u64) -> Result<ParquetRecordBatchReader, FileError> {
        let piece = self.file.read(&self.path, self.bytes_of(group)?)?;
        self.groups_read.fetch_add(1, Ordering::Relaxed);
        self.bytes_read.fetch_add(piece.bytes(), Ordering::Relaxed);
        let rows = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
        ParquetRecordBatchReaderBuilder::new_with_metadata(piece, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_offset(rows(skip))
            .with_limit(rows(take))
            .with_batch_size(rows(take).min(ROWS_PER_BATCH))
            .build()
            .map_err(|error| FileError::corrupt(&self.path, &error))
    }

    /// Where a row group lies in the file: its columns follow one another.
    fn bytes_of(&self, group: usize) -> Result<Range<u64>, FileError> {
        let bytes = self.file.bytes();
        let (mut start, mut end) = (bytes, 0);
        for column in self.metadata.metadata().row_group(group).columns() {
            let first = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
            let place = u64::try_from(first).ok().zip(u64::try_from(column.compressed_size()).ok());
            let place = place.and_then(|(first, size)| Some((first, first.checked_add(size)?)));
            let Some((first, last)) = place.filter(|(_, last)| *last <= bytes) else {
                let reason = format!("row group {group} lies outside of the file");
                return Err(FileError::corrupt(&self.path, &reason));
            };
            (start, end) = (start.min(first), end.max(last));
        }
        Ok(start..end.max(start))
    }
}

fn starts(counts: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut starts = vec![0];
    let mut sum = 0u64;
    starts.extend(counts.map(|count| {
        sum = sum.saturating_add(count);
        sum
    }));
    starts
}

fn text<'a>(path: &Path, metadata: &'a ArrowReaderMetadata, key: &str) -> Result<&'a str, FileError> {
    let texts = metadata.metadata().file_metadata().key_value_metadata();
    let found = texts.and_then(|texts| texts.iter().find(|text| text.key == key)?.value.as_deref());
    found.ok_or_else(|| FileError::corrupt(path, &format!("its footer has no {key}")))
}

/// Rows that are read as they are asked for. They rise, or an error comes.
pub struct ActivationRows<'a> {
    file: &'a ActivationsByFeature,
    /// What no group has been opened for.
    rows: Range<u64>,
    /// What has not been handed out.
    due: u64,
    group: Option<ParquetRecordBatchReader>,
    batch: Option<Batch>,
    last: Option<[u32; 3]>,
    failed: bool,
}

impl ActivationRows<'_> {
    fn next_row(&mut self) -> Result<Option<Activation>, FileError> {
        let path = &self.file.path;
        loop {
            if let Some(row) = self.batch.as_mut().and_then(Batch::next) {
                check_order(path, self.last.replace(row.place()), &row)?;
                self.due = self.due.saturating_sub(1);
                return Ok(Some(row));
            }
            if let Some(batch) = self.group.as_mut().and_then(Iterator::next) {
                let batch = batch.map_err(|error| FileError::corrupt(path, &error))?;
                self.batch = Some(Batch::new(&batch).map_err(|reason| FileError::corrupt(path, &reason))?);
                continue;
            }
            if self.rows.is_empty() {
                return match self.due {
                    0 => Ok(None),
                    due => Err(FileError::corrupt(path, &format!("{due} rows are missing"))),
                };
            }
            let number = self.file.group_of(self.rows.start);
            let (start, end) = (self.file.groups[number], self.file.groups[number + 1].min(self.rows.end));
            let (skip, take) = (self.rows.start - start, end - self.rows.start);
            self.rows.start = end;
            self.group = Some(self.file.open_group(number, skip, take)?);
        }
    }
}

impl Iterator for ActivationRows<'_> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use half::f16;

    /// Feature, and how many rows it has: a dense one in the middle, dead ones everywhere.
    const COUNTS: [u64; 9] = [0, 30, 70, 1, 1000, 3, 0, 120, 0];

    fn rows() -> Vec<Activation> {
        let of = |(feature, count): (usize, &u64)| {
            (0..*count as u32).map(move |number| Activation {
                feature: feature as u32,
                image: number / 10,
                token: number % 10 * 3,
                value: f16::from_f32((number % 7 + 1) as f32),
            })
        };
        COUNTS.iter().enumerate().flat_map(of).collect()
    }

    fn write(path: &Path, rows: &[Activation]) -> Result<Vec<u64>, FileError> {
        let texts = vec![("about".to_owned(), "a test".to_owned())];
        let mut file = File::create(path).unwrap();
        write_by_feature(path, &mut file, rows.iter().copied().map(Ok), COUNTS.len() as u32, 100, texts)
    }

    #[test]
    fn a_feature_comes_from_its_row_groups_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("activations.parquet");
        let rows = rows();
        assert_eq!(write(&path, &rows).unwrap(), COUNTS);
        let file = ActivationsByFeature::open(&path).unwrap();
        assert_eq!((file.features(), file.text("about").unwrap()), (9, "a test"));
        // 30 + 70 | 1 + 399 of the dense one | 400 | 201 | 3 + 120.
        assert_eq!(file.groups, [0, 100, 500, 900, 1101, 1224]);
        let whole = std::fs::metadata(&path).unwrap().len();
        for (feature, groups) in [(0, 0), (1, 1), (2, 1), (3, 1), (4, 3), (5, 1), (6, 0), (7, 1), (8, 0)] {
            let before = (file.groups_read(), file.bytes_read());
            let expected: Vec<Activation> = rows.iter().filter(|row| row.feature == feature).copied().collect();
            assert_eq!(file.activations(feature).unwrap(), expected, "feature {feature}");
            assert_eq!(file.groups_read() - before.0, groups, "feature {feature}");
            let of_groups: u64 = match file.rows_of(feature).unwrap() {
                rows if rows.is_empty() => 0,
                rows => (file.group_of(rows.start)..=file.group_of(rows.end - 1))
                    .map(|group| file.bytes_of(group).unwrap())
                    .map(|bytes| bytes.end - bytes.start)
                    .sum(),
            };
            assert_eq!(file.bytes_read() - before.1, of_groups, "feature {feature}");
            assert!(of_groups < whole / 2 || feature == 4, "{of_groups} of {whole} bytes");
        }
        assert_eq!(file.read(95..510).map(Result::unwrap).collect::<Vec<_>>(), rows[95..510]);
        assert!(file.activations(9).is_err());
    }

    #[test]
    fn an_object_is_read_like_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("activations.parquet");
        // A footer that is longer than what is read of the file's end first.
        let texts = vec![("about".to_owned(), "a long text ".repeat(10_000))];
        let rows = rows();
        let mut file = File::create(&path).unwrap();
        let all = rows.iter().copied().map(Ok::<_, FileError>);
        write_by_feature(&path, &mut file, all, COUNTS.len() as u32, 100, texts).unwrap();
        let bucket = Bucket::new(Arc::new(object_store::memory::InMemory::new()), "s3://scope/run", "run").unwrap();
        let bucket = Arc::new(bucket);
        let missing = ActivationsByFeature::open_in(&bucket, "activations.parquet").unwrap_err().to_string();
        assert!(missing.contains("s3://scope/run/activations.parquet: there is no such object"), "{missing}");
        bucket.upload("activations.parquet", &path).unwrap();
        let object = ActivationsByFeature::open_in(&bucket, "activations.parquet").unwrap();
        let file = ActivationsByFeature::open(&path).unwrap();
        assert_eq!((object.groups.clone(), object.bytes()), (file.groups.clone(), file.bytes()));
        for feature in 0..COUNTS.len() as u32 {
            assert_eq!(object.activations(feature).unwrap(), file.activations(feature).unwrap(), "feature {feature}");
            assert_eq!(object.bytes_read(), file.bytes_read(), "feature {feature}");
        }
        bucket.write("activations.parquet", std::fs::read(&path).unwrap()[..500].to_vec()).unwrap();
        assert!(object.activations(2).unwrap_err().to_string().contains("has changed"));
        let cut = ActivationsByFeature::open_in(&bucket, "activations.parquet").unwrap_err().to_string();
        assert!(cut.contains("is damaged"), "{cut}");
    }

    #[test]
    fn no_rows_are_a_file_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("activations.parquet");
        assert_eq!(write(&path, &[]).unwrap(), [0; 9]);
        let file = ActivationsByFeature::open(&path).unwrap();
        assert_eq!((file.groups(), file.activations(3).unwrap()), (0, Vec::new()));
    }

    #[test]
    fn wrong_rows_and_damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("activations.parquet");
        let row = |feature: u32| Activation { feature, value: f16::ONE, ..Activation::default() };
        assert!(write(&path, &[row(1), row(1)]).unwrap_err().to_string().contains("out of order"));
        assert!(write(&path, &[row(9)]).unwrap_err().to_string().contains("feature 9 of 9"));
        write(&path, &rows()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let file = ActivationsByFeature::open(&path).unwrap();
        let place = file.bytes_of(3).unwrap();
        bytes[place.start as usize..place.end as usize].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        let file = ActivationsByFeature::open(&path).unwrap();
        assert!(file.activations(4).is_err(), "its last group is damaged");
        assert_eq!(file.activations(7).unwrap().len(), 120);
        let shard = folder.path().join("00000.parquet");
        super::super::write_activations(&shard, &mut File::create(&shard).unwrap(), rows().into_iter(), Vec::new())
            .unwrap();
        let error = ActivationsByFeature::open(&shard).unwrap_err().to_string();
        assert!(error.contains("no lmm_scope.rows_per_feature"), "{error}");
    }
}
