//! Pictures as a folder of files with `metadata.jsonl`: Hugging Face's ImageFolder, which `datasets` loads with the
//! columns `image`, `id` and the others. A picture's number is its place in the order of the file names.

use super::{jsonl::Lines, rows::RowFile, rows_of};
use crate::files::{FileError, PictureRow, names};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Component, Path},
};

/// The folder, and the file that describes its pictures.
pub(super) const FOLDER: &str = "images";
const METADATA: &str = "metadata.jsonl";

/// A picture as the artefact files keep it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The same bytes if they are a WebP already.
    pub webp: Vec<u8>,
    pub width: u32,
    pub height: u32,
}

/// Reads a picture file of any kind; this crate decodes none. The error says what is wrong with it.
pub type Decode<'a> = &'a dyn Fn(&[u8]) -> Result<Decoded, String>;

/// A line of `metadata.jsonl`. Others need `file_name` only.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Described {
    file_name: String,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    caption: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    objects: Option<Vec<api::PictureObject>>,
    #[serde(default)]
    credit: Option<String>,
}

/// Writes the pictures of an artefact folder, and gives each one's number by its id.
pub(super) fn export(pictures: &Path, folder: &Path) -> Result<HashMap<String, u32>, FileError> {
    fs::create_dir_all(folder).map_err(|error| FileError::io(folder, error))?;
    let path = folder.join(METADATA);
    let failed = |error| FileError::io(&path, error);
    let mut metadata = BufWriter::new(File::create(&path).map_err(failed)?);
    let mut numbers = HashMap::new();
    for row in rows_of::<PictureRow>(pictures)? {
        let PictureRow { picture, webp } = row?;
        let number = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let described = Described {
            // Zeros in front, so that names and numbers have one order.
            file_name: format!("{number:08}.webp"),
            id: Some(picture.id.clone()),
            caption: Some(picture.caption),
            kind: Some(picture.kind),
            objects: Some(picture.objects),
            credit: Some(picture.credit),
        };
        let file = folder.join(&described.file_name);
        fs::write(&file, webp).map_err(|error| FileError::io(&file, error))?;
        let mut line = serde_json::to_vec(&described).map_err(|error| FileError::corrupt(&path, &error))?;
        line.push(b'\n');
        metadata.write_all(&line).map_err(failed)?;
        if numbers.insert(picture.id.clone(), number).is_some() {
            return Err(FileError::corrupt(pictures, &format!("picture {} occurs twice", picture.id)));
        }
    }
    metadata.flush().and_then(|()| metadata.get_ref().sync_all()).map_err(failed)?;
    Ok(numbers)
}

/// Reads such a folder into `pictures.parquet` in `out`, and gives the ids by their numbers. None, and an empty file,
/// if there is no folder.
pub(super) fn import(folder: &Path, out: &Path, decode: Decode<'_>) -> Result<Option<Vec<String>>, FileError> {
    let mut rows = RowFile::<PictureRow>::create(out.join(names::PICTURES))?;
    if !folder.is_dir() {
        rows.finish()?;
        return Ok(None);
    }
    let mut found = Vec::new();
    let (mut ids, mut files) = (HashSet::new(), HashSet::new());
    let mut lines = Lines::open(&folder.join(METADATA))?;
    while let Some(described) = lines.next_row::<Described>()? {
        let inside = Path::new(&described.file_name).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || described.file_name.is_empty() {
            return Err(lines.wrong(format!("file_name {:?} is not a file of this folder", described.file_name)));
        }
        let stem = Path::new(&described.file_name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let id = described.id.clone().unwrap_or(stem);
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if id.is_empty() || id.starts_with('.') || !id.chars().all(plain) {
            return Err(lines.wrong(format!("id {id:?} cannot be part of an address; use letters, digits, . _ -")));
        }
        if !ids.insert(id.clone()) || !files.insert(described.file_name.clone()) {
            return Err(lines.wrong(format!("id {id:?} or its file occurs twice; give each picture an id of its own")));
        }
        found.push((id, described));
    }
    found.sort_by(|one, other| one.1.file_name.cmp(&other.1.file_name));
    let mut ids = Vec::with_capacity(found.len());
    for (id, described) in found {
        let path = folder.join(&described.file_name);
        let bytes = fs::read(&path).map_err(|error| FileError::io(&path, error))?;
        let Decoded { webp, width, height } = decode(&bytes).map_err(|reason| FileError::corrupt(&path, &reason))?;
        let picture = api::Picture {
            id: id.clone(),
            width,
            height,
            caption: described.caption.unwrap_or_default(),
            kind: described.kind.unwrap_or_default(),
            objects: described.objects.unwrap_or_default(),
            credit: described.credit.unwrap_or_default(),
            ..api::Picture::default()
        };
        rows.push(PictureRow { picture, webp })?;
        ids.push(id);
    }
    rows.finish()?;
    Ok(Some(ids))
}
