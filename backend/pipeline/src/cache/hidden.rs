//! Hidden states of a shard, written as they come: `hidden` f16 `[rows, d_model]`, and of each row its picture's number
//! `image` and its position `token`, both i32 `[rows]`.

use super::CacheError;
use half::f16;
use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Bytes before the values. A safetensors file begins with a header that says how much follows; room is left for it.
const START: usize = 8192;

/// A safetensors file whose number of rows shows when it ends.
pub(super) struct HiddenWriter<'f> {
    path: PathBuf,
    file: BufWriter<&'f mut File>,
    d_model: usize,
    images: Vec<i32>,
    tokens: Vec<i32>,
}

impl<'f> HiddenWriter<'f> {
    pub fn new(path: &Path, file: &'f mut File, d_model: usize) -> Result<Self, CacheError> {
        let mut file = BufWriter::new(file);
        file.write_all(&[b' '; START]).map_err(|source| CacheError::io(path, source))?;
        Ok(Self { path: path.to_owned(), file, d_model, images: Vec::new(), tokens: Vec::new() })
    }

    /// `values`: `[positions, d_model]`. What is too large for a half float becomes the largest.
    pub fn push(&mut self, image: u32, positions: &[u32], values: &[f32]) -> Result<(), CacheError> {
        self.images.extend(positions.iter().map(|_| image as i32));
        self.tokens.extend(positions.iter().map(|&position| position as i32));
        let (low, high) = (f16::MIN.to_f32(), f16::MAX.to_f32());
        let bytes: Vec<u8> =
            values.iter().flat_map(|value| f16::from_f32(value.clamp(low, high)).to_le_bytes()).collect();
        self.file.write_all(&bytes).map_err(|source| CacheError::io(&self.path, source))
    }

    /// Writes what comes after the values, and then the header. `texts` go into its metadata.
    pub fn finish(mut self, texts: &[(String, String)]) -> Result<(), CacheError> {
        let header = self.header(texts)?;
        let path = self.path.clone();
        self.write_rest(&header).map_err(|source| CacheError::io(&path, source))
    }

    fn write_rest(&mut self, header: &[u8]) -> std::io::Result<()> {
        for column in [&self.images, &self.tokens] {
            let bytes: Vec<u8> = column.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.file.write_all(&bytes)?;
        }
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&((START - 8) as u64).to_le_bytes())?;
        self.file.write_all(header)?;
        self.file.flush()
    }

    /// JSON. What is left of its room are spaces, which the format allows.
    fn header(&self, texts: &[(String, String)]) -> Result<Vec<u8>, CacheError> {
        let rows = self.images.len();
        let (values, numbers) = (rows * self.d_model * 2, rows * 4);
        let texts: serde_json::Map<String, serde_json::Value> =
            texts.iter().map(|(name, text)| (name.clone(), text.clone().into())).collect();
        let header = serde_json::json!({
            "__metadata__": texts,
            "hidden": tensor("F16", &[rows, self.d_model], 0, values),
            "image": tensor("I32", &[rows], values, numbers),
            "token": tensor("I32", &[rows], values + numbers, numbers),
        });
        let header = header.to_string().into_bytes();
        if header.len() > START - 8 {
            return Err(CacheError::other(&self.path, format!("its header of {} bytes is too long", header.len())));
        }
        Ok(header)
    }
}

/// A tensor's entry in the header.
fn tensor(dtype: &str, shape: &[usize], start: usize, bytes: usize) -> serde_json::Value {
    serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, start + bytes] })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;
    use safetensors::{Dtype, SafeTensors};

    #[test]
    fn safetensors_reads_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000.safetensors");
        for pictures in [0u32, 1, 3] {
            let mut file = File::create(&path).unwrap();
            let mut writer = HiddenWriter::new(&path, &mut file, 2).unwrap();
            for image in 0..pictures {
                writer.push(image + 7, &[1, 5], &[1.0, -2.5, 1e9, -1e9]).unwrap();
            }
            writer.finish(&[("hook_point".to_owned(), "model.layers.3".to_owned())]).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            assert_eq!(metadata.metadata().as_ref().unwrap()["hook_point"], "model.layers.3");
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let hidden = tensors.tensor("hidden").unwrap();
            assert_eq!((hidden.dtype(), hidden.shape()), (Dtype::F16, &[2 * pictures as usize, 2][..]));
            let values: Vec<f32> =
                hidden.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
            assert_eq!(values, [1.0, -2.5, 65504.0, -65504.0].repeat(pictures as usize));
            let numbers = |name: &str| -> Vec<i32> {
                let view = tensors.tensor(name).unwrap();
                view.data().chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            };
            assert_eq!(numbers("token"), [1, 5].repeat(pictures as usize));
            assert_eq!(numbers("image"), (7..7 + pictures as i32).flat_map(|n| [n, n]).collect::<Vec<_>>());
        }
    }
}
