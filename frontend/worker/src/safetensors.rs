//! The header of a safetensors file, read before the rest has arrived.
//!
//! Layout: `u64` little endian length of the header, the header's JSON, then the tensors; offsets in the JSON count
//! from the end of the header. (The `safetensors` crate wants the whole file in memory.)

use api::json;
use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Deserialize;

use crate::Error;

/// Bytes of the length in front of the header.
pub const LENGTH_BYTES: u64 = 8;
/// Longer headers are refused: a shard has two tensors.
pub const MAX_HEADER_BYTES: u64 = 1 << 20;

/// One tensor's place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    /// First byte, from the end of the header.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Tensor {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// An entry of the header; of `__metadata__` nothing.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Length of the header from the first bytes of the file.
///
/// # Errors
/// [`Error::Safetensors`] if it is not plausible.
pub fn header_length(first: [u8; LENGTH_BYTES as usize]) -> Result<u64, Error> {
    let length = u64::from_le_bytes(first);
    if !(2..=MAX_HEADER_BYTES).contains(&length) {
        return Err(bad(format!("a header of {length} bytes; expected 2 to {MAX_HEADER_BYTES}")));
    }
    Ok(length)
}

/// The tensors in the header's JSON, in the order of their bytes.
///
/// # Errors
/// [`Error::Safetensors`] naming the tensor and what is wrong with it.
pub fn tensors(header: &[u8]) -> Result<Vec<Tensor>, Error> {
    let unreadable = |error: &dyn Display| bad(format!("its header: {error}"));
    let header = std::str::from_utf8(header).map_err(|error| unreadable(&error))?;
    let entries: BTreeMap<String, Entry> = json::read(header).map_err(|error| unreadable(&error))?;
    let named = entries.into_iter().filter(|(name, _)| name != "__metadata__");
    let mut tensors = named.map(|(name, entry)| tensor(name, entry)).collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|tensor| tensor.start);
    match tensors.windows(2).find(|pair| pair[1].start < pair[0].end) {
        Some(pair) => Err(bad(format!("{} and {} overlap", pair[0].name, pair[1].name))),
        None => Ok(tensors),
    }
}

fn tensor(name: String, entry: Entry) -> Result<Tensor, Error> {
    let Entry { dtype, shape, data_offsets: [start, end] } = entry;
    let width = match dtype.as_str() {
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" => 2,
        "I8" | "U8" => 1,
        other => return Err(bad(format!("{name} is {other}, which no shard has"))),
    };
    let expected = shape.iter().try_fold(width, |bytes: u64, &size| bytes.checked_mul(size));
    if expected.is_none() || end.checked_sub(start) != expected {
        return Err(bad(format!("{name}: offsets {:?} do not fit {dtype} of shape {shape:?}", [start, end])));
    }
    Ok(Tensor { name, dtype, shape, start, end })
}

/// The tensor of this name, checked.
///
/// # Errors
/// [`Error::Safetensors`] if it is missing or not as expected.
pub fn expect<'a>(tensors: &'a [Tensor], name: &str, dtype: &str, shape: &[u64]) -> Result<&'a Tensor, Error> {
    let Some(tensor) = tensors.iter().find(|tensor| tensor.name == name) else {
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).take(8).collect();
        return Err(bad(format!("{name} is missing; the file has {names:?}")));
    };
    if tensor.dtype != dtype || tensor.shape != shape {
        let (given, sizes) = (&tensor.dtype, &tensor.shape);
        return Err(bad(format!("{name} is {given} {sizes:?}; expected {dtype} {shape:?}")));
    }
    Ok(tensor)
}

fn bad(reason: String) -> Error {
    Error::Safetensors(reason)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    const GOOD: &str = r#"{"__metadata__":{"made":"by hand"},
        "scale":{"dtype":"F32","shape":[8],"data_offsets":[128,160]},
        "weight":{"dtype":"I8","shape":[8,16],"data_offsets":[0,128]}}"#;

    fn refused(header: &str) -> String {
        tensors(header.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn tensors_come_in_the_order_of_their_bytes() {
        let found = tensors(GOOD.as_bytes()).unwrap();
        let names: Vec<(&str, u64)> = found.iter().map(|tensor| (tensor.name.as_str(), tensor.bytes())).collect();
        assert_eq!(names, [("weight", 128), ("scale", 32)]);
        assert!(expect(&found, "weight", "I8", &[8, 16]).is_ok());
        let wrong = expect(&found, "weight", "I8", &[8, 15]).unwrap_err().to_string();
        assert!(wrong.contains("weight is I8 [8, 16]; expected I8 [8, 15]"), "{wrong}");
        let missing = expect(&found, "latents", "I32", &[8]).unwrap_err().to_string();
        assert!(missing.contains("latents is missing"), "{missing}");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(header_length([255; 8]).is_err() && header_length([0; 8]).is_err());
        assert_eq!(header_length(1024u64.to_le_bytes()), Ok(1024));
        for header in ["", "[1]", "\u{7f}"] {
            assert!(refused(header).contains("its header"), "{header}");
        }
        assert!(refused(&GOOD.replace("I8", "C64")).contains("weight is C64"));
        assert!(refused(&GOOD.replace("[0,128]", "[0,130]")).contains("do not fit"));
        assert!(refused(&GOOD.replace("[0,128]", "[128,0]")).contains("do not fit"));
        assert!(refused(&GOOD.replace("[0,128]", "[-1,127]")).contains("its header"));
        assert!(refused(&GOOD.replace("[0,128]", "[40,168]")).contains("overlap"));
        // 4294967296² · 2 does not fit 64 bits.
        assert!(refused(&GOOD.replace("[8,16]", "[4294967296,4294967296]")).contains("do not fit"));
    }
}
