//! WebDataset: consecutive entries of a tar that share a key are one sample; what follows the first dot of the name
//! says what an entry is.

use super::{Found, ImagesError, Place, caption_of, folder::is_picture, place::read_part};
use std::{fs::File, path::Path};
use tar::Archive;

/// Longest caption or JSON that is read, in bytes.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// A regular file of a tar.
struct Entry {
    key: String,
    /// What follows the first dot of the name, in lower case.
    extension: String,
    offset: u64,
    length: u64,
}

/// Samples of one tar. `part` is its path from the root; with `several` tars, it is a part of the ids.
///
/// The names of the tar's entries are in memory, its pictures are not.
pub(super) fn pictures<'a>(
    root: &'a Path,
    part: &'a str,
    several: bool,
) -> Result<impl Iterator<Item = Result<Found, ImagesError>> + 'a, ImagesError> {
    let path = root.join(part);
    let mut entries = entries(&path)?.into_iter().peekable();
    let prefix = if several { format!("{}/", part.strip_suffix(".tar").unwrap_or(part)) } else { String::new() };
    Ok(std::iter::from_fn(move || {
        let first = entries.next()?;
        let mut sample = vec![first];
        while let Some(more) = entries.next_if(|entry| entry.key == sample[0].key) {
            sample.push(more);
        }
        Some(Ok(found(&path, part, &prefix, &sample)))
    }))
}

fn entries(path: &Path) -> Result<Vec<Entry>, ImagesError> {
    let damaged = |error: std::io::Error| ImagesError::file(path, format!("not a tar, or damaged: {error}"));
    let file = File::open(path).map_err(|source| ImagesError::io(path, source))?;
    let size = file.metadata().map_err(|source| ImagesError::io(path, source))?.len();
    let mut archive = Archive::new(file);
    let mut found = Vec::new();
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(damaged)?.to_string_lossy().into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name);
        let (offset, length) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(ImagesError::file(path, format!("cut off: {name} goes past the end of the file")));
        }
        let (folder, file) = name.rsplit_once('/').map_or(("", name), |(folder, file)| (folder, file));
        // Notes of file systems, such as `._cat.jpg`.
        if file.starts_with('.') {
            continue;
        }
        let (stem, extension) = file.split_once('.').unwrap_or((file, ""));
        let (key, extension) = (super::joined(folder, stem), extension.to_ascii_lowercase());
        found.push(Entry { key, extension, offset, length });
    }
    Ok(found)
}

fn found(path: &Path, part: &str, prefix: &str, sample: &[Entry]) -> Found {
    let place = |entry: &Entry| Place::Part { file: part.to_owned(), offset: entry.offset, length: entry.length };
    let is_mask = |entry: &Entry| matches!(entry.extension.as_str(), "mask.png" | "seg.png");
    let picture = sample.iter().find(|entry| !is_mask(entry) && is_picture(&format!("x.{}", entry.extension)));
    let content = match picture {
        Some(entry) => read_part(path, entry.offset, entry.length),
        None => Err("the sample has no picture".to_owned()),
    };
    Found {
        id: format!("{prefix}{}", sample[0].key),
        caption: caption(path, sample),
        place: place(picture.unwrap_or(&sample[0])),
        mask: sample.iter().find(|entry| is_mask(entry)).map(place),
        content,
    }
}

fn caption(path: &Path, sample: &[Entry]) -> String {
    let text = |extension: &str| {
        let entry = sample.iter().find(|entry| entry.extension == extension && entry.length <= MAX_TEXT_BYTES)?;
        String::from_utf8(read_part(path, entry.offset, entry.length).ok()?).ok()
    };
    match text("txt") {
        Some(text) => text.trim().to_owned(),
        None => text("json")
            .and_then(|text| serde_json::from_str(&text).ok())
            .map_or_else(String::new, |json| caption_of(&json)),
    }
}
