//! Safetensors files in pieces: tensors of gigabytes are read and written without being in memory.
//!
//! The file is the header's length (u64), the header (JSON: dtype, shape and byte range of every tensor), the bytes.

use crate::files::FileError;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom, Take, Write},
    path::{Path, PathBuf},
};

/// Longest header that is read, as in the format's own library.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes that a transposition may hold at once.
const TRANSPOSE_BYTES: usize = 256 << 20;

/// Where a tensor lies, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Tensor {
    /// `F16`, `I64` and so on.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// From the end of the header.
    data_offsets: [u64; 2],
}

impl Tensor {
    /// Bytes of one number; `None` for dtypes that nothing here reads.
    pub fn size(&self) -> Option<usize> {
        size_of(&self.dtype)
    }
}

fn size_of(dtype: &str) -> Option<usize> {
    match dtype {
        "F64" | "I64" | "U64" => Some(8),
        "F32" | "I32" | "U32" => Some(4),
        "F16" | "BF16" | "I16" | "U16" => Some(2),
        "I8" | "U8" => Some(1),
        _ => None,
    }
}

/// An open file, its header read and checked.
pub(super) struct TensorFile {
    pub path: PathBuf,
    start: u64,
    tensors: BTreeMap<String, Tensor>,
}

impl TensorFile {
    /// # Errors
    /// When it is missing, cut off, or its header does not fit its bytes.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let io = |error| FileError::io(path, error);
        let corrupt = |reason: String| FileError::corrupt(path, &reason);
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut first = [0; 8];
        file.read_exact(&mut first).map_err(|_| corrupt("it is too short for a safetensors file".into()))?;
        let header = u64::from_le_bytes(first);
        if header > MAX_HEADER || header + 8 > length {
            return Err(corrupt(format!("a header of {header} bytes in a file of {length}")));
        }
        let mut text = vec![0; usize::try_from(header).unwrap_or_default()];
        file.read_exact(&mut text).map_err(io)?;
        let header_json = |error: serde_json::Error| corrupt(format!("its header: {error}"));
        let mut entries: Map<String, Value> = serde_json::from_slice(&text).map_err(header_json)?;
        entries.remove("__metadata__");
        let (start, mut tensors) = (header + 8, BTreeMap::new());
        for (name, entry) in entries {
            let tensor: Tensor = serde_json::from_value(entry).map_err(header_json)?;
            let numbers = tensor.shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
            let expected = numbers.zip(tensor.size()).and_then(|(numbers, size)| numbers.checked_mul(size));
            let [from, to] = tensor.data_offsets;
            let found = to.checked_sub(from);
            let fits = tensor.size().is_none() || expected.map(|bytes| bytes as u64) == found;
            if found.is_none() || !fits || start.checked_add(to).is_none_or(|end| end > length) {
                return Err(corrupt(format!(
                    "tensor `{name}` ({} {:?}) has the bytes {from} to {to}, which it does not need or the file does \
                     not have",
                    tensor.dtype, tensor.shape
                )));
            }
            tensors.insert(name, tensor);
        }
        Ok(Self { path: path.to_owned(), start, tensors })
    }

    /// # Errors
    /// When there is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, FileError> {
        self.tensors.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
            self.wrong(name, format!("is missing; the file has {}", names.join(", ")))
        })
    }

    /// A tensor of this shape and of floats.
    ///
    /// # Errors
    /// When it is missing or another one.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<&Tensor, FileError> {
        let tensor = self.tensor(name)?;
        if tensor.shape != shape {
            return Err(self.wrong(name, format!("has shape {:?}, expected {shape:?}", tensor.shape)));
        }
        if !matches!(tensor.dtype.as_str(), "F64" | "F32" | "F16" | "BF16") {
            return Err(self.wrong(name, format!("has dtype {}; f16, bf16, f32 and f64 are read", tensor.dtype)));
        }
        Ok(tensor)
    }

    /// The bytes of a tensor, from its first on.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn bytes(&self, tensor: &Tensor) -> Result<BufReader<Take<File>>, FileError> {
        let [from, to] = tensor.data_offsets;
        let mut file = File::open(&self.path).map_err(|error| FileError::io(&self.path, error))?;
        file.seek(SeekFrom::Start(self.start + from)).map_err(|error| FileError::io(&self.path, error))?;
        Ok(BufReader::with_capacity(1 << 20, file.take(to - from)))
    }

    /// An error about a tensor.
    pub fn wrong(&self, name: &str, reason: impl std::fmt::Display) -> FileError {
        FileError::corrupt(&self.path, &format!("tensor `{name}` {reason}"))
    }

    /// Copies a tensor's bytes.
    ///
    /// # Errors
    /// When one of the files cannot be read or written.
    pub fn copy(&self, tensor: &Tensor, out: &Path, to: &mut impl Write) -> Result<(), FileError> {
        std::io::copy(&mut self.bytes(tensor)?, to).map(drop).map_err(|error| FileError::io(out, error))
    }

    /// Writes the transposed bytes of a matrix `[rows, columns]`: as many of its columns as fit in memory at a time.
    ///
    /// # Errors
    /// When one of the files cannot be read or written.
    pub fn transpose(&self, tensor: &Tensor, out: &Path, to: &mut impl Write) -> Result<(), FileError> {
        let (Some(size), [rows, columns]) = (tensor.size(), tensor.shape.as_slice()) else {
            return Err(FileError::corrupt(&self.path, &format!("{:?} is no matrix", tensor.shape)));
        };
        let (rows, columns) = (*rows, *columns);
        let at_once = (TRANSPOSE_BYTES / (rows * size).max(1)).clamp(1, columns.max(1));
        let mut line = vec![0; columns * size];
        let mut tile = Vec::new();
        for first in (0..columns).step_by(at_once) {
            let taken = at_once.min(columns - first);
            tile.resize(taken * rows * size, 0);
            let mut bytes = self.bytes(tensor)?;
            for row in 0..rows {
                bytes.read_exact(&mut line).map_err(|error| FileError::io(&self.path, error))?;
                let values = line[first * size..(first + taken) * size].chunks_exact(size);
                for (column, value) in values.enumerate() {
                    let place = (column * rows + row) * size;
                    tile[place..place + size].copy_from_slice(value);
                }
            }
            to.write_all(&tile).map_err(|error| FileError::io(out, error))?;
        }
        Ok(())
    }
}

/// The beginning of a file that has these tensors (name, dtype, shape) in this order; their bytes follow.
pub(super) fn header(tensors: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut from = 0;
    for (name, dtype, shape) in tensors {
        let to = from + shape.iter().product::<usize>() * size_of(dtype).unwrap_or_default();
        entries.insert((*name).to_owned(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] }));
        from = to;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    // Readers map the file: tensors begin at multiples of 8.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    #[test]
    fn a_matrix_is_transposed_byte_by_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let mut bytes = header(&[("W", "F16", &[2, 3]), ("b", "F32", &[1])]);
        bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        bytes.extend(7f32.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let mut turned = Vec::new();
        file.transpose(file.floats("W", &[2, 3]).unwrap(), &path, &mut turned).unwrap();
        assert_eq!(turned, [1, 2, 7, 8, 3, 4, 9, 10, 5, 6, 11, 12]);
        let mut copied = Vec::new();
        file.copy(file.tensor("b").unwrap(), &path, &mut copied).unwrap();
        assert_eq!(copied, 7f32.to_le_bytes());
        let error = file.floats("W", &[3, 2]).unwrap_err().to_string();
        assert!(error.contains("tensor `W` has shape [2, 3], expected [3, 2]"), "{error}");
        assert!(file.tensor("c").unwrap_err().to_string().contains("`c` is missing; the file has W, b"));

        for keep in [0, 7, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..keep]).unwrap();
            let error = TensorFile::open(&path).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("a.safetensors"), "{keep}: {error}");
        }
    }
}
