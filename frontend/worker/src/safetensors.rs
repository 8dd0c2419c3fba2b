//! The header of a safetensors file, read before the rest has arrived.
//!
//! Layout: `u64` little endian length of the header, the header's JSON, then the tensors; offsets in the JSON count
//! from the end of the header. (The `safetensors` crate wants the whole file in memory.)

use std::collections::BTreeMap;

use serde::Deserialize;
use shaders::WeightType;

use crate::Error;

/// Bytes of the length in front of the header.
pub const LENGTH_BYTES: u64 = 8;
/// Longer headers are refused: an SAE has four tensors.
pub const MAX_HEADER_BYTES: u64 = 1 << 20;

/// One tensor's place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub dtype: WeightType,
    pub shape: Vec<u32>,
    /// First byte, from the beginning of the file.
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

/// The tensors of an SAE that encoding needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaeTensors {
    /// `[latents, d_model]`
    pub weight: Tensor,
    /// `[latents]`
    pub b_enc: Tensor,
    /// `[d_model]`
    pub b_dec: Tensor,
    pub latents: u32,
    pub d_model: u32,
}

/// An entry of the header.
#[derive(Deserialize)]
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

/// Finds `encoder.weight`, `encoder.bias` and `b_dec` in the header's JSON.
///
/// # Errors
/// [`Error::Safetensors`] naming the tensor and what is wrong with it.
pub fn sae_tensors(header: &[u8]) -> Result<SaeTensors, Error> {
    let entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|error| bad(format!("its header: {error}")))?;
    let data_start = LENGTH_BYTES + header.len() as u64;
    let weight = tensor(&entries, "encoder.weight", data_start)?;
    let b_enc = tensor(&entries, "encoder.bias", data_start)?;
    let b_dec = tensor(&entries, "b_dec", data_start)?;
    let [latents, d_model] = weight.shape[..] else {
        return Err(bad(format!("encoder.weight has shape {:?}; expected [latents, d_model]", weight.shape)));
    };
    for (name, tensor, expected) in [("encoder.bias", &b_enc, latents), ("b_dec", &b_dec, d_model)] {
        if tensor.shape != [expected] {
            return Err(bad(format!("{name} has shape {:?}; expected [{expected}]", tensor.shape)));
        }
    }
    Ok(SaeTensors { weight, b_enc, b_dec, latents, d_model })
}

fn tensor(entries: &BTreeMap<String, serde_json::Value>, name: &str, data_start: u64) -> Result<Tensor, Error> {
    let Some(value) = entries.get(name) else {
        let names: Vec<&str> = entries.keys().map(String::as_str).take(8).collect();
        return Err(bad(format!("{name} is missing; the file has {names:?}")));
    };
    let entry = Entry::deserialize(value).map_err(|error| bad(format!("{name}: {error}")))?;
    let dtype = match entry.dtype.as_str() {
        "F16" => WeightType::F16,
        "F32" => WeightType::F32,
        other => return Err(bad(format!("{name} is {other}; expected F16 or F32"))),
    };
    let shape = entry.shape.iter().map(|&size| u32::try_from(size)).collect::<Result<Vec<u32>, _>>();
    let shape = shape.map_err(|_| bad(format!("{name} has shape {:?}", entry.shape)))?;
    let expected = shape.iter().try_fold(dtype.bytes(), |bytes, &size| bytes.checked_mul(size.into()));
    let [start, end] = entry.data_offsets;
    if end.checked_sub(start) != expected || expected.is_none() {
        let offsets = entry.data_offsets;
        return Err(bad(format!("{name}: offsets {offsets:?} do not fit {} of shape {shape:?}", entry.dtype)));
    }
    let (Some(start), Some(end)) = (start.checked_add(data_start), end.checked_add(data_start)) else {
        return Err(bad(format!("{name}: offsets {:?} are too large", entry.data_offsets)));
    };
    Ok(Tensor { dtype, shape, start, end })
}

fn bad(reason: String) -> Error {
    Error::Safetensors(reason)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests panic on purpose
    use super::*;

    const GOOD: &str = r#"{"__metadata__":{"made":"by hand"},
        "W_dec":{"dtype":"BF16","shape":[8,4],"data_offsets":[0,64]},
        "b_dec":{"dtype":"F32","shape":[4],"data_offsets":[64,80]},
        "encoder.bias":{"dtype":"F16","shape":[8],"data_offsets":[80,96]},
        "encoder.weight":{"dtype":"F16","shape":[8,4],"data_offsets":[96,160]}}"#;

    fn refused(header: &str) -> String {
        match sae_tensors(header.as_bytes()) {
            Err(Error::Safetensors(reason)) => reason,
            other => panic!("{header} gives {other:?}"),
        }
    }

    #[test]
    fn finds_the_encoder_and_ignores_the_rest() {
        let tensors = sae_tensors(GOOD.as_bytes()).unwrap();
        let data = 8 + GOOD.len() as u64;
        assert_eq!((tensors.latents, tensors.d_model), (8, 4));
        assert_eq!((tensors.weight.start, tensors.weight.end), (data + 96, data + 160));
        assert_eq!((tensors.b_dec.dtype, tensors.b_enc.dtype), (WeightType::F32, WeightType::F16));
    }

    #[test]
    fn implausible_lengths_are_refused() {
        assert_eq!(header_length(321u64.to_le_bytes()), Ok(321));
        // The beginning of an HTML page, of a Git LFS pointer, and nothing.
        for first in [*b"<!DOCTYP", *b"version ", [0; 8], [0xff; 8]] {
            assert!(matches!(header_length(first), Err(Error::Safetensors(_))), "{first:?}");
        }
    }

    #[test]
    fn truncated_headers_are_refused() {
        for end in 0..GOOD.len() {
            assert!(sae_tensors(&GOOD.as_bytes()[..end]).is_err(), "{end} bytes were accepted");
        }
    }

    #[test]
    fn garbage_is_refused_by_name() {
        assert!(refused("[]").contains("header"));
        assert!(refused("{}").contains("encoder.weight is missing"));
        assert!(refused(&GOOD.replace("encoder.bias", "bias")).contains("encoder.bias is missing"));
        assert!(
            refused(&GOOD.replace("\"shape\":[8,4],\"data_offsets\":[96", "\"shape\":[32],\"data_offsets\":[96"))
                .contains("expected [latents, d_model]")
        );
        assert!(refused(&GOOD.replace("\"shape\":[4]", "\"shape\":[2,2]")).contains("b_dec has shape"));
        assert!(
            refused(&GOOD.replace("\"F16\",\"shape\":[8],", "\"I8\",\"shape\":[8],")).contains("encoder.bias is I8")
        );
        assert!(refused(&GOOD.replace("[96,160]", "[96,162]")).contains("do not fit"));
        assert!(refused(&GOOD.replace("[96,160]", "[160,96]")).contains("do not fit"));
        assert!(refused(&GOOD.replace("[96,160]", "[-1,160]")).contains("encoder.weight"));
        assert!(
            refused(&GOOD.replace("[96,160]", "[18446744073709551551,18446744073709551615]")).contains("too large")
        );
        // 4294967295² · 2 does not fit 64 bits.
        let huge = GOOD.replace("[8,4],\"data_offsets\":[96", "[4294967295,4294967295],\"data_offsets\":[96");
        assert!(refused(&huge).contains("do not fit"));
    }
}
