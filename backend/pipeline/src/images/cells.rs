//! Pictures in Parquet files, as Hugging Face keeps them: a column of structs of `bytes` and `path`; or plain bytes.

use super::{
    Found, ImagesError, Place, folder_of,
    place::{check_size, read_file},
};
use arrow_array::{
    Array, ArrayRef, BinaryArray, PrimitiveArray, RecordBatch, StringArray, StructArray,
    types::{Int32Type, Int64Type, UInt32Type, UInt64Type},
};
use arrow_schema::{DataType, Schema};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    },
    errors::ParquetError,
};
use std::{fs::File, path::Path};

/// Names of a picture's column, the likeliest first; else it is the first that looks like one.
const PICTURE: [&str; 8] = ["image", "img", "picture", "webp", "jpg", "jpeg", "png", "bytes"];
const MASK: [&str; 2] = ["mask", "segmentation"];
const ID: [&str; 3] = ["id", "image_id", "key"];
const CAPTION: [&str; 2] = ["caption", "text"];
/// Rows in memory while a set is gone through.
const ROWS: usize = 8;

/// The columns that are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Columns {
    picture: String,
    mask: Option<String>,
    id: Option<String>,
    caption: Option<String>,
}

impl Columns {
    fn of(schema: &Schema) -> Option<Self> {
        let named = |names: &[&str], fits: fn(&DataType) -> bool| {
            let mut fields = names.iter().filter_map(|name| schema.field_with_name(name).ok());
            fields.find(|field| fits(field.data_type())).map(|field| field.name().clone())
        };
        let picture = named(&PICTURE, holds_bytes).or_else(|| {
            let mut structs = schema.fields().iter().filter(|field| matches!(field.data_type(), DataType::Struct(_)));
            structs.find(|field| holds_bytes(field.data_type())).map(|field| field.name().clone())
        });
        Some(Self {
            picture: picture?,
            mask: named(&MASK, holds_bytes),
            id: named(&ID, is_id),
            caption: named(&CAPTION, |kind| *kind == DataType::Utf8),
        })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        [Some(&self.picture), self.mask.as_ref(), self.id.as_ref(), self.caption.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

fn holds_bytes(kind: &DataType) -> bool {
    match kind {
        DataType::Binary => true,
        DataType::Struct(fields) => {
            let has = |name: &str, kind: &DataType| fields.iter().any(|f| f.name() == name && f.data_type() == kind);
            has("bytes", &DataType::Binary) || has("path", &DataType::Utf8)
        }
        _ => false,
    }
}

fn is_id(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::Int32 | DataType::Int64 | DataType::UInt32 | DataType::UInt64)
}

/// Opens a file without what Arrow writers note beside the schema: texts are then `Utf8` and bytes `Binary`.
fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, ImagesError> {
    let file = File::open(path).map_err(|source| ImagesError::io(path, source))?;
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).map_err(|error| damaged(path, &error))
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> ImagesError {
    ImagesError::file(path, format!("not a Parquet file, or damaged: {error}"))
}

/// Columns at the root, by their names.
fn mask_of<'a>(
    builder: &ParquetRecordBatchReaderBuilder<File>,
    names: impl Iterator<Item = &'a str>,
) -> ProjectionMask {
    let fields = builder.schema().fields();
    let roots: Vec<usize> = names.filter_map(|name| fields.iter().position(|field| field.name() == name)).collect();
    ProjectionMask::roots(builder.parquet_schema(), roots)
}

/// Rows of one file. `part` is its path from the root.
pub(super) fn pictures<'a>(
    root: &'a Path,
    part: &'a str,
) -> Result<impl Iterator<Item = Result<Found, ImagesError>> + 'a, ImagesError> {
    let path = root.join(part);
    let builder = open(&path)?;
    let Some(columns) = Columns::of(builder.schema()) else {
        let names: Vec<&str> = builder.schema().fields().iter().map(|field| field.name().as_str()).collect();
        let reason = format!(
            "no column holds pictures: expected a struct of `bytes` and `path`, or bytes named {}; it has {}",
            PICTURE.join(", "),
            names.join(", ")
        );
        return Err(ImagesError::file(&path, reason));
    };
    let mask = mask_of(&builder, columns.names());
    let build = builder.with_projection(mask).with_batch_size(ROWS).build();
    let batches = build.map_err(|error: ParquetError| damaged(&path, &error))?;
    let mut next = 0;
    Ok(batches.flat_map(move |batch| {
        let rows: Vec<Result<Found, ImagesError>> = match batch {
            Ok(batch) => {
                let first = next;
                next += batch.num_rows() as u64;
                let row = |at: usize| Ok(found(root, part, &columns, &batch, at, first + at as u64));
                (0..batch.num_rows()).map(row).collect()
            }
            Err(error) => vec![Err(damaged(&path, &error))],
        };
        rows.into_iter()
    }))
}

fn found(root: &Path, part: &str, columns: &Columns, batch: &RecordBatch, at: usize, row: u64) -> Found {
    let cell = |column: &str| Place::Cell { file: part.to_owned(), row, column: column.to_owned() };
    let picture = batch.column_by_name(&columns.picture);
    let path = picture.and_then(|picture| path_in(picture, at)).filter(|path| !path.is_empty());
    let id = columns.id.as_deref().and_then(|id| id_in(batch.column_by_name(id)?, at));
    let (place, content) = match (picture.and_then(|picture| bytes_in(picture, at)), &path) {
        (Some(bytes), _) => {
            let content = check_size(bytes.len() as u64).map(|()| bytes.to_vec());
            (cell(&columns.picture), content)
        }
        (None, Some(path)) => match Place::named(root, folder_of(part), path) {
            Ok(place) => {
                let content = read_file(&root.join(place.file()));
                (place, content)
            }
            Err(reason) => (cell(&columns.picture), Err(reason)),
        },
        (None, None) => (cell(&columns.picture), Err("the row has no picture".to_owned())),
    };
    let has_mask = |column: &&str| batch.column_by_name(column).is_some_and(|mask| bytes_in(mask, at).is_some());
    let caption = columns.caption.as_deref().and_then(|caption| text_in(batch.column_by_name(caption)?, at));
    Found {
        id: id.or(path).unwrap_or_else(|| format!("{part}:{row}")),
        caption: caption.unwrap_or_default().trim().to_owned(),
        place,
        mask: columns.mask.as_deref().filter(has_mask).map(cell),
        content,
    }
}

/// The bytes of a cell of a picture's column.
fn bytes_in(column: &ArrayRef, at: usize) -> Option<&[u8]> {
    let column = match column.as_any().downcast_ref::<StructArray>() {
        Some(fields) if fields.is_null(at) => return None,
        Some(fields) => fields.column_by_name("bytes")?,
        None => column,
    };
    let bytes = column.as_any().downcast_ref::<BinaryArray>()?;
    (!bytes.is_null(at)).then(|| bytes.value(at))
}

fn path_in(column: &ArrayRef, at: usize) -> Option<String> {
    let fields = column.as_any().downcast_ref::<StructArray>().filter(|fields| !fields.is_null(at))?;
    text_in(fields.column_by_name("path")?, at)
}

fn text_in(column: &ArrayRef, at: usize) -> Option<String> {
    let texts = column.as_any().downcast_ref::<StringArray>()?;
    (!texts.is_null(at)).then(|| texts.value(at).to_owned())
}

fn id_in(column: &ArrayRef, at: usize) -> Option<String> {
    if column.is_null(at) {
        return None;
    }
    let any = column.as_any();
    let number = any
        .downcast_ref::<PrimitiveArray<Int64Type>>()
        .map(|ids| ids.value(at).to_string())
        .or_else(|| any.downcast_ref::<PrimitiveArray<Int32Type>>().map(|ids| ids.value(at).to_string()))
        .or_else(|| any.downcast_ref::<PrimitiveArray<UInt64Type>>().map(|ids| ids.value(at).to_string()))
        .or_else(|| any.downcast_ref::<PrimitiveArray<UInt32Type>>().map(|ids| ids.value(at).to_string()));
    number.or_else(|| text_in(column, at)).filter(|id| !id.is_empty())
}

/// One column of one file, read forwards cell by cell.
pub(super) struct Cells {
    file: String,
    column: String,
    path: std::path::PathBuf,
    batches: ParquetRecordBatchReader,
    /// The row that comes next.
    next: u64,
}

impl Cells {
    /// Begins at a row; what is before it is not read.
    pub fn open(root: &Path, file: &str, column: &str, row: u64) -> Result<Self, ImagesError> {
        let path = root.join(file);
        let builder = open(&path)?;
        let mask = mask_of(&builder, std::iter::once(column));
        let (mut groups, mut start, mut before) = (Vec::new(), 0, row);
        for (number, group) in builder.metadata().row_groups().iter().enumerate() {
            let end = start + u64::try_from(group.num_rows()).unwrap_or_default();
            if end > row {
                if groups.is_empty() {
                    before = start;
                }
                groups.push(number);
            }
            start = end;
        }
        let skipped = usize::try_from(row - before).unwrap_or(usize::MAX);
        let builder = builder.with_row_groups(groups).with_offset(skipped).with_projection(mask).with_batch_size(1);
        let batches = builder.build().map_err(|error| damaged(&path, &error))?;
        Ok(Self { file: file.to_owned(), column: column.to_owned(), path, batches, next: row })
    }

    /// Whether a row is reached by reading on. What lies between is read in vain, so that it must not be much.
    pub fn reaches(&self, file: &str, column: &str, row: u64) -> bool {
        self.file == file && self.column == column && (self.next..=self.next + ROWS as u64).contains(&row)
    }

    /// The bytes in a row that [`Self::reaches`].
    pub fn read(&mut self, row: u64) -> Result<Vec<u8>, ImagesError> {
        let missing = || ImagesError::file(&self.path, format!("row {row} of {} holds no picture", self.column));
        loop {
            let batch = self.batches.next().ok_or_else(missing)?.map_err(|error| damaged(&self.path, &error))?;
            let at = self.next;
            self.next += 1;
            if at == row {
                let column = batch.column_by_name(&self.column).ok_or_else(missing)?;
                return bytes_in(column, 0).map(<[u8]>::to_vec).ok_or_else(missing);
            }
        }
    }
}
