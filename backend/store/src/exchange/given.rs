//! What a foreign format does not say about its SAE: `source.json`, from the folder itself or named by the user.

use crate::files::{FileError, names};
use serde_json::Value;
use std::{fs, path::Path};

/// Without these nothing can be shown; everything else may be unknown.
const NEEDED: [&str; 7] = ["modelId", "sourceId", "layer", "hookPoint", "latents", "dModel", "grid"];

/// Reads `given`, else `source.json` in `from`. Fields that are left out are empty or zero, and named in the second
/// value.
///
/// # Errors
/// When there is neither, or one of [`NEEDED`] is missing or of another type.
pub(super) fn read_given(from: &Path, given: Option<&Path>) -> Result<(api::Source, Vec<String>), FileError> {
    let own = from.join(names::SOURCE);
    let path = given.unwrap_or(&own);
    if given.is_none() && !own.is_file() {
        let reason = format!(
            "there is no {} in it, and the format does not say all that is needed; name a file with --source-file \
             that has {}",
            names::SOURCE,
            NEEDED.join(", ")
        );
        return Err(FileError::corrupt(from, &reason));
    }
    let bytes = fs::read(path).map_err(|error| FileError::io(path, error))?;
    let corrupt = |error: &serde_json::Error| FileError::corrupt(path, error);
    let said: serde_json::Map<String, Value> = serde_json::from_slice(&bytes).map_err(|error| corrupt(&error))?;
    if let Some(missing) = NEEDED.iter().find(|name| !said.contains_key(**name)) {
        return Err(FileError::corrupt(path, &format!("there is no {missing}; needed are {}", NEEDED.join(", "))));
    }
    let mut whole = serde_json::to_value(api::Source::default()).map_err(|error| corrupt(&error))?;
    let mut unknown = Vec::new();
    if let Value::Object(fields) = &mut whole {
        unknown = fields.keys().filter(|name| !said.contains_key(*name)).cloned().collect();
        fields.extend(said);
    }
    let source: api::Source = serde_json::from_value(whole).map_err(|error| corrupt(&error))?;
    let [rows, columns] = source.grid;
    if source.latents == 0 || u64::from(rows) * u64::from(columns) > 1 << 16 || rows == 0 || columns == 0 {
        let reason = format!("{} latents on a grid of {rows}×{columns} patches cannot be", source.latents);
        return Err(FileError::corrupt(path, &reason));
    }
    Ok((source, unknown))
}

/// A note about fields of `source.json` that nobody said.
pub(super) fn note_unknown(unknown: &[String], notes: &mut Vec<String>) {
    if !unknown.is_empty() {
        notes.push(format!("source.json does not say {}; these stay empty or zero", unknown.join(", ")));
    }
}
