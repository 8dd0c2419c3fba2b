//! Hugging Face's ImageFolder: each line of a `metadata.jsonl` is a JSON object that names a file beside it.

use super::{Found, ImagesError, Place, caption_of, folder_of, joined, place::read_file};
use serde_json::Value;
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// Name of the file.
pub(super) const METADATA: &str = "metadata.jsonl";

/// `part` is the metadata's path from the root.
pub(super) fn pictures<'a>(
    root: &'a Path,
    part: &'a str,
) -> Result<impl Iterator<Item = Result<Found, ImagesError>> + 'a, ImagesError> {
    let path = root.join(part);
    let file = File::open(&path).map_err(|source| ImagesError::io(&path, source))?;
    let lines = BufReader::new(file).lines().zip(1u64..);
    Ok(lines.filter_map(move |(line, number)| match line {
        Ok(line) if line.trim().is_empty() => None,
        Ok(line) => {
            let found = found(root, folder_of(part), &line);
            Some(found.map_err(|reason| ImagesError::file(&path, format!("line {number}: {reason}"))))
        }
        Err(error) => Some(Err(ImagesError::file(&path, format!("line {number}: {error}")))),
    }))
}

fn found(root: &Path, folder: &str, line: &str) -> Result<Found, String> {
    let json: Value = serde_json::from_str(line).map_err(|error| format!("not a JSON object: {error}"))?;
    let name = json.get("file_name").and_then(Value::as_str).ok_or("there is no file_name")?;
    let place = Place::named(root, folder, name)?;
    let mask = ["mask_file_name", "mask"].iter().find_map(|field| json.get(field)?.as_str());
    let id = match json.get("id") {
        Some(Value::String(id)) if !id.is_empty() => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => joined(folder, name),
    };
    Ok(Found {
        id,
        caption: caption_of(&json),
        mask: mask.map(|mask| Place::named(root, folder, mask)).transpose()?,
        content: read_file(&root.join(place.file())),
        place,
    })
}
