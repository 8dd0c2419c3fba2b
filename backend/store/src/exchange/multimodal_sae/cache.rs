//! Cached activations: a list of places and a list of values, in files that share out the features.

use super::super::tensors::{TensorFile, header};
use crate::files::FileError;
use half::{bf16, f16};
use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Take, Write},
    path::Path,
};

/// One activation. Sorts as the scripts write: by picture, token, feature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub image: u32,
    pub token: u32,
    pub feature: u32,
    pub value: f32,
}

impl Place {
    pub fn key(&self) -> [u32; 3] {
        [self.image, self.token, self.feature]
    }
}

/// Bounds of the files of an SAE with so many latents: equal parts, a power of two of them, at most 4,096 latents each.
pub(super) fn splits(latents: u32) -> Vec<(u32, u32)> {
    let parts = u64::from(latents.div_ceil(4096).next_power_of_two()).min(u64::from(latents.max(1)));
    let bound = |part: u64| (part * u64::from(latents) / parts) as u32;
    (0..parts).map(|part| (bound(part), bound(part + 1))).filter(|(first, end)| first < end).collect()
}

/// Writes places, already sorted, as `locations` (i64) and `activations` (f32).
pub(super) fn write(path: &Path, places: &[Place]) -> Result<(), FileError> {
    let failed = |error| FileError::io(path, error);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    let (locations, activations) = ([places.len(), 3], [places.len()]);
    let tensors = [("locations", "I64", locations.as_slice()), ("activations", "F32", activations.as_slice())];
    file.write_all(&header(&tensors)).map_err(failed)?;
    for place in places {
        for number in place.key() {
            file.write_all(&i64::from(number).to_le_bytes()).map_err(failed)?;
        }
    }
    for place in places {
        file.write_all(&place.value.to_le_bytes()).map_err(failed)?;
    }
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)
}

/// A file that is read row by row.
pub(super) struct CacheFile {
    file: TensorFile,
    locations: BufReader<Take<File>>,
    activations: BufReader<Take<File>>,
    rows: usize,
    row: usize,
    location_size: usize,
    value_type: String,
    /// delphi counts features from the first of the file, in small unsigned numbers; multimodal-sae from 0, signed.
    first: u32,
}

impl CacheFile {
    /// # Errors
    /// When it is missing, damaged, or its tensors have other shapes or dtypes.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = TensorFile::open(path)?;
        let locations = file.tensor("locations")?;
        let [rows, 3] = *locations.shape.as_slice() else {
            return Err(file.wrong("locations", format!("has shape {:?}, expected [n, 3]", locations.shape)));
        };
        let activations = file.floats("activations", &[rows])?;
        let (Some(location_size), true) = (locations.size(), locations.dtype.starts_with(['I', 'U'])) else {
            return Err(file.wrong("locations", format!("has dtype {}; whole numbers are read", locations.dtype)));
        };
        let first = if locations.dtype.starts_with('U') { first_feature(path)? } else { 0 };
        Ok(Self {
            locations: file.bytes(locations)?,
            activations: file.bytes(activations)?,
            value_type: activations.dtype.clone(),
            rows,
            row: 0,
            location_size,
            first,
            file,
        })
    }

    /// An error about the row that was read last.
    pub fn wrong(&self, name: &str, reason: impl std::fmt::Display) -> FileError {
        self.file.wrong(name, format!("row {}: {reason}", self.row.saturating_sub(1)))
    }

    /// The next activation, or `None` after the last.
    ///
    /// # Errors
    /// When a number is negative, too large or not finite.
    pub fn next_place(&mut self) -> Result<Option<Place>, FileError> {
        if self.row == self.rows {
            return Ok(None);
        }
        self.row += 1;
        let mut numbers = [0; 3];
        for number in &mut numbers {
            let value = read_whole(&mut self.locations, self.location_size);
            let value = value.map_err(|error| FileError::io(&self.file.path, error))?;
            *number = u32::try_from(value)
                .map_err(|_| self.wrong("locations", format!("{value} is no number of a picture, token or feature")))?;
        }
        let value = read_float(&mut self.activations, &self.value_type);
        let value = value.map_err(|error| FileError::io(&self.file.path, error))?;
        if !value.is_finite() || value < 0.0 {
            return Err(self.wrong("activations", format!("{value} is not an activation, which is zero or more")));
        }
        let [image, token, feature] = numbers;
        let feature = feature.checked_add(self.first);
        let feature = feature.ok_or_else(|| self.wrong("locations", "the feature's index is too large"))?;
        Ok(Some(Place { image, token, feature, value }))
    }
}

/// `{first}_{last}.safetensors`.
fn first_feature(path: &Path) -> Result<u32, FileError> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    stem.split('_').next().and_then(|first| first.parse().ok()).ok_or_else(|| {
        let reason =
            "its locations count from the file's first feature, but its name is not {first}_{last}.safetensors";
        FileError::corrupt(path, &reason)
    })
}

/// A number of 1 to 8 bytes. Signed and unsigned ones are the same below half their range; above, a large unsigned one
/// of 8 bytes is negative, and no index.
fn read_whole(reader: &mut impl Read, size: usize) -> std::io::Result<i64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes[..size])?;
    Ok(i64::from_le_bytes(bytes))
}

fn read_float(reader: &mut impl Read, dtype: &str) -> std::io::Result<f32> {
    let mut bytes = [0; 8];
    let mut read = |size: usize| reader.read_exact(&mut bytes[..size]);
    Ok(match dtype {
        "F64" => {
            read(8)?;
            f64::from_le_bytes(bytes) as f32
        }
        "F32" => {
            read(4)?;
            f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        }
        "BF16" => {
            read(2)?;
            bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
        }
        _ => {
            read(2)?;
            f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    fn read(path: &Path) -> Result<Vec<Place>, FileError> {
        let mut file = CacheFile::open(path)?;
        let mut places = Vec::new();
        while let Some(place) = file.next_place()? {
            places.push(place);
        }
        Ok(places)
    }

    #[test]
    fn files_share_out_all_features() {
        assert_eq!(splits(12), [(0, 12)]);
        assert_eq!(splits(8192), [(0, 4096), (4096, 8192)]);
        assert_eq!(splits(131_072).len(), 32);
        for latents in [1, 4097, 10_000, 131_072] {
            let splits = splits(latents);
            assert_eq!((splits[0].0, splits[splits.len() - 1].1), (0, latents));
            assert!(splits.windows(2).all(|pair| pair[0].1 == pair[1].0), "{splits:?}");
        }
    }

    #[test]
    fn places_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0_11.safetensors");
        let places: Vec<Place> =
            (0..50).map(|i| Place { image: i / 9, token: i % 9, feature: i % 12, value: i as f32 / 8.0 }).collect();
        write(&path, &places).unwrap();
        assert_eq!(read(&path).unwrap(), places);
        write(&path, &[]).unwrap();
        assert_eq!(read(&path).unwrap(), []);
    }

    /// As delphi writes: unsigned, half floats, features from the file's first on.
    #[test]
    fn small_numbers_count_from_the_files_first_feature() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("4096_8191.safetensors");
        let mut bytes = header(&[("locations", "U16", &[2, 3]), ("activations", "F16", &[2])]);
        bytes.extend([3u16, 7, 5, 3, 8, 0].iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend([1.5, 2.0].iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()));
        std::fs::write(&path, &bytes).unwrap();
        let expected = [
            Place { image: 3, token: 7, feature: 4101, value: 1.5 },
            Place { image: 3, token: 8, feature: 4096, value: 2.0 },
        ];
        assert_eq!(read(&path).unwrap(), expected);
        let other = folder.path().join("cache.safetensors");
        std::fs::write(&other, &bytes).unwrap();
        assert!(read(&other).unwrap_err().to_string().contains("{first}_{last}"));
    }

    #[test]
    fn damage_names_tensor_and_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0_11.safetensors");
        let says = |path: &Path, text: &str| {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains("0_11.safetensors") && error.contains(text), "{error}");
        };
        let place = Place { image: 0, token: 0, feature: 1, value: 1.0 };
        write(&path, &[place, Place { value: f32::NAN, token: 1, ..place }]).unwrap();
        says(&path, "tensor `activations` row 1: NaN");
        write(&path, &[place, Place { value: -1.0, token: 1, ..place }]).unwrap();
        says(&path, "tensor `activations` row 1: -1");

        let mut bytes = header(&[("locations", "I64", &[1, 3]), ("activations", "F32", &[1])]);
        bytes.extend([0i64, -4, 1].iter().flat_map(|number| number.to_le_bytes()));
        bytes.extend(1f32.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        says(&path, "tensor `locations` row 0: -4");
        std::fs::write(&path, header(&[("locations", "I64", &[0, 2]), ("activations", "F32", &[0])])).unwrap();
        says(&path, "has shape [0, 2], expected [n, 3]");
        std::fs::write(&path, header(&[("locations", "F32", &[0, 3]), ("activations", "F32", &[0])])).unwrap();
        says(&path, "`locations` has dtype F32");
        std::fs::write(&path, header(&[("locations", "I64", &[0, 3])])).unwrap();
        says(&path, "`activations` is missing; the file has locations");
    }
}
