//! Just enough of the safetensors format to find one tensor in an answer without copying it:
//! 8 bytes header length (u64, little endian), a JSON header, then the data.

use crate::ranking::TopActs;
use api::{TokenSpan, json};
use serde::Deserialize;

/// Headers above this are not ours.
const MAX_HEADER: u64 = 1 << 20;

/// One tensor's entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TensorInfo {
    pub dtype: String,
    pub shape: Vec<u32>,
    /// Begin and end, counted from the first data byte.
    pub data_offsets: [u32; 2],
}

/// The header of either answer; what else is in it is passed over.
#[derive(Deserialize)]
struct Header {
    #[serde(default, rename = "__metadata__")]
    metadata: Metadata,
    hidden: Option<TensorInfo>,
    threshold: Option<TensorInfo>,
    top_indices: Option<TensorInfo>,
    top_acts: Option<TensorInfo>,
}

/// Entries that are themselves JSON in a string, and a name.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    grid: String,
    spans: String,
    provenance: String,
}

impl Header {
    fn read(json: &[u8]) -> Result<Self, String> {
        let json = std::str::from_utf8(json).map_err(|error| error.to_string());
        json.and_then(|json| json::read(json).map_err(|error| error.to_string()))
            .map_err(|error| format!("the safetensors header cannot be read: {error}"))
    }
}

/// What `POST …/extract` answers with, before its data is touched.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtractHeader {
    pub tokens: u32,
    pub d_model: u32,
    /// Byte range of `hidden` in the whole file.
    pub hidden: [u32; 2],
    /// Byte range of `threshold` f32 `[tokens]`, if it is there.
    pub threshold: Option<[u32; 2]>,
    /// Rows and columns of the base picture's patch grid.
    pub grid: [u32; 2],
    pub spans: Vec<TokenSpan>,
    pub provenance: String,
}

/// Length of the JSON header from the first 8 bytes, checked.
pub fn header_length(first: &[u8]) -> Result<u32, String> {
    let bytes: [u8; 8] = first.try_into().map_err(|_| "the answer is shorter than a safetensors file".to_owned())?;
    let length = u64::from_le_bytes(bytes);
    if length == 0 || length > MAX_HEADER {
        return Err(format!("a safetensors header of {length} bytes was announced; at most {MAX_HEADER} are expected"));
    }
    u32::try_from(length).map_err(|error| error.to_string())
}

/// Reads the JSON header of an extract answer of `file_bytes` bytes in all and checks shapes against spans.
pub fn extract_header(json: &[u8], file_bytes: u32) -> Result<ExtractHeader, String> {
    let data_start =
        8 + u32::try_from(json.len()).map_err(|_| "the safetensors header is longer than 4 GiB".to_owned())?;
    let Header { metadata, hidden, threshold, .. } = Header::read(json)?;
    let hidden = hidden.ok_or("the answer has no tensor `hidden`")?;
    let (tokens, d_model) = match (hidden.dtype.as_str(), hidden.shape.as_slice()) {
        ("F16", [tokens, d_model]) => (*tokens, *d_model),
        (dtype, shape) => return Err(format!("`hidden` is {dtype} {shape:?}; expected F16 [tokens, d_model]")),
    };
    let [begin, end] = hidden.data_offsets.map(|offset| u64::from(offset) + u64::from(data_start));
    if end > u64::from(file_bytes) || end.checked_sub(begin) != Some(u64::from(tokens) * u64::from(d_model) * 2) {
        return Err(format!("`hidden` should lie at bytes {begin}..{end} of {file_bytes}: the answer is cut off"));
    }
    let threshold = match threshold {
        Some(info) if info.dtype == "F32" && info.shape == [tokens] => {
            let range = info.data_offsets.map(|offset| offset.saturating_add(data_start));
            if range[1] > file_bytes || range[1].checked_sub(range[0]) != Some(4 * tokens) {
                return Err(format!(
                    "`threshold` should lie at bytes {range:?} of {file_bytes}: the answer is cut off"
                ));
            }
            Some(range)
        }
        Some(other) => return Err(format!("`threshold` is {other:?}; expected F32 [{tokens}]")),
        None => None,
    };
    let grid: [u32; 2] = metadata_json(&metadata.grid, "grid")?;
    let spans: Vec<TokenSpan> = metadata_json(&metadata.spans, "spans")?;
    if spans.iter().any(|span| span.start > span.end || span.end > tokens) {
        return Err(format!("`spans` reach past the {tokens} tokens"));
    }
    let provenance = metadata.provenance;
    Ok(ExtractHeader { tokens, d_model, hidden: [begin as u32, end as u32], threshold, grid, spans, provenance })
}

/// What `POST …/encode` answers with: `top_indices` I32 and `top_acts` F32, both `[tokens, k]`.
pub fn top_acts(file: &[u8]) -> Result<TopActs, String> {
    let length = header_length(file.get(..8).unwrap_or_default())? as usize;
    let json = file.get(8..8 + length).ok_or("the answer is cut off within its header")?;
    let header = Header::read(json)?;
    let tensor = |name: &str, info: &Option<TensorInfo>, dtype: &str| {
        let info = info.as_ref().ok_or(format!("the answer has no tensor `{name}`"))?;
        let (&[tokens, k], [begin, end]) = (info.shape.as_slice(), info.data_offsets.map(|at| at as usize)) else {
            return Err(format!("`{name}` has shape {:?}; expected [tokens, k]", info.shape));
        };
        let bytes = file.get(8 + length + begin..8 + length + end).filter(|_| info.dtype == dtype);
        let words = bytes.map(|bytes| bytes.as_chunks::<4>().0).filter(|words| words.len() == (tokens * k) as usize);
        Ok((k as usize, words.ok_or(format!("`{name}` is cut off, or not {dtype}"))?))
    };
    let ((k, indices), (_, acts)) =
        (tensor("top_indices", &header.top_indices, "I32")?, tensor("top_acts", &header.top_acts, "F32")?);
    Ok(TopActs {
        k,
        indices: indices.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
        acts: acts.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
    })
}

/// A metadata entry that is itself JSON in a string.
fn metadata_json<T: serde::de::DeserializeOwned>(text: &str, name: &str) -> Result<T, String> {
    if text.is_empty() {
        return Err(format!("the answer has no `{name}`"));
    }
    json::read(text).map_err(|error| format!("`{name}` cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;
    use api::TokenKind;

    #[test]
    fn activations_are_read_and_what_is_cut_off_is_refused() {
        let json = r#"{"top_acts":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},
            "top_indices":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]}}"#;
        let numbers = [7u32.to_le_bytes(), 3u32.to_le_bytes(), 2.5f32.to_le_bytes(), 0f32.to_le_bytes()].concat();
        let file = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &numbers].concat();
        let acts = top_acts(&file).unwrap();
        assert_eq!((acts.k, acts.indices, acts.acts), (2, vec![7, 3], vec![2.5, 0.0]));
        for length in [0, 7, 60, file.len() - 1] {
            assert!(top_acts(&file[..length]).is_err(), "{length} bytes");
        }
    }

    fn header() -> String {
        serde_json::json!({
            "__metadata__": {
                "grid": "[2,2]",
                "spans": r#"[{"kind":"base","start":0,"end":4},{"kind":"text","start":4,"end":5,"tokens":["hi"]}]"#,
                "provenance": "pocket@1a2b",
            },
            "hidden": {"dtype": "F16", "shape": [5, 3], "data_offsets": [0, 30]},
            "input_ids": {"dtype": "I32", "shape": [5], "data_offsets": [30, 50]},
        })
        .to_string()
    }

    #[test]
    fn hidden_states_are_found_without_touching_them() {
        let json = header();
        let length = json.len() as u32;
        assert_eq!(header_length(&u64::from(length).to_le_bytes()).unwrap(), length);
        let found = extract_header(json.as_bytes(), 8 + length + 50).unwrap();
        assert_eq!((found.tokens, found.d_model, found.grid), (5, 3, [2, 2]));
        assert_eq!(found.hidden, [8 + length, 8 + length + 30]);
        assert_eq!(found.spans[1].kind, TokenKind::Text);
        assert_eq!(found.spans[1].tokens, ["hi"]);
    }

    #[test]
    fn a_cut_off_or_foreign_answer_is_refused_with_its_reason() {
        let json = header();
        let cut = extract_header(json.as_bytes(), 8 + json.len() as u32 + 10).unwrap_err();
        assert!(cut.contains("cut off"), "{cut}");
        let wide = json.replace("F16", "F32");
        assert!(extract_header(wide.as_bytes(), 10_000).unwrap_err().contains("expected F16"));
        let far = json.replace(r#"\"end\":5"#, r#"\"end\":9"#);
        assert!(extract_header(far.as_bytes(), 10_000).unwrap_err().contains("reach past"));
        assert!(extract_header(b"{}", 10).unwrap_err().contains("hidden"));
        assert!(header_length(&[1, 2]).is_err());
        assert!(header_length(&u64::MAX.to_le_bytes()).is_err());
    }
}
