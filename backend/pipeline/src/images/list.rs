//! A set's list of pictures: numbers, ids without repetition, content hashes, duplicates, places.

use super::{Found, ImageSet, ImagesError, Place, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
    path::Path,
};
use store::files::{FileError, ImageListWriter, ImageRow, read_image_rows};

/// Most pictures of a set. Listing keeps 16 bytes of each hash and id in memory to know what it has seen, up to 100
/// bytes a picture; everything after it needs neither.
pub const MAX_PICTURES: u32 = 1 << 24;

/// What a list says about its set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// All of them: numbers go from 0 up to it.
    pub pictures: u32,
    /// Pictures whose bytes are those of one before them.
    pub duplicates: u32,
    /// Pictures whose bytes cannot be had. What is no picture is found when it is decoded.
    pub unreadable: u32,
    /// SHA-256 over all ids and content hashes.
    pub digest: String,
}

/// Part of a hash that stands for the whole one: collisions are out of reach at [`MAX_PICTURES`].
type Print = [u8; 16];

fn print_of(hash: &[u8]) -> Print {
    let mut print = Print::default();
    print.iter_mut().zip(hash).for_each(|(print, byte)| *print = *byte);
    print
}

/// Goes through a set once and writes its list into `file`; `path` is what errors name. An id that occurs again gets
/// `#` and its picture's number. `progress` is told how many pictures there are so far.
///
/// # Errors
/// When the set cannot be read as a whole or has more than [`MAX_PICTURES`]; when the list cannot be written.
pub fn list(
    set: &ImageSet,
    path: &Path,
    file: &mut File,
    progress: &mut dyn FnMut(u32),
) -> Result<Listed, ImagesError> {
    let mut writer = ImageListWriter::new(path, file)?;
    let mut listed = Listed::default();
    let mut digest = Sha256::new();
    let (mut first_of, mut ids) = (HashMap::<Print, u32>::new(), HashSet::<Print>::new());
    for found in set.pictures()? {
        let Found { mut id, caption, place, mask, content } = found?;
        let image = listed.pictures;
        if image >= MAX_PICTURES {
            let reason = format!("more than {MAX_PICTURES} pictures; cut the set into several");
            return Err(ImagesError::file(set.root(), reason));
        }
        if !ids.insert(print_of(&Sha256::digest(&id))) {
            id = format!("{id}#{image}");
            ids.insert(print_of(&Sha256::digest(&id)));
        }
        let mut row = ImageRow { image, id, caption, first: image, ..ImageRow::default() };
        row.place = json(path, &place)?;
        row.mask = mask.map(|mask| json(path, &mask)).transpose()?.unwrap_or_default();
        match content {
            Ok(bytes) => {
                let hash = Sha256::digest(&bytes);
                row.first = *first_of.entry(print_of(&hash)).or_insert(image);
                row.sha256 = hex(&hash);
                listed.duplicates += u32::from(row.first != image);
            }
            Err(problem) => {
                row.problem = problem;
                listed.unreadable += 1;
            }
        }
        for text in [&row.id, &row.sha256] {
            digest.update(text.as_bytes());
            digest.update([0]);
        }
        writer.push(row)?;
        listed.pictures += 1;
        progress(listed.pictures);
    }
    if listed.pictures == 0 {
        return Err(ImagesError::file(set.root(), "there is no picture in this set"));
    }
    writer.finish()?;
    listed.digest = hex(&digest.finalize());
    Ok(listed)
}

fn json(path: &Path, place: &Place) -> Result<String, ImagesError> {
    serde_json::to_string(place).map_err(|error| FileError::corrupt(path, &error).into())
}

/// A picture of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedPicture {
    pub image: u32,
    pub id: String,
    /// Empty if there is none.
    pub caption: String,
    /// 64 hex digits; empty if there is a problem.
    pub sha256: String,
    /// The first picture with the same bytes.
    pub first: u32,
    /// Why its bytes cannot be had; empty if they can.
    pub problem: String,
    pub place: Place,
    pub mask: Option<Place>,
}

impl ListedPicture {
    /// Whether its bytes are those of a picture before it.
    pub fn is_duplicate(&self) -> bool {
        self.first != self.image
    }
}

/// Some pictures of a list; fewer where it has ended.
///
/// # Errors
/// When the list is missing or damaged.
pub fn read_list(path: &Path, images: Range<u32>) -> Result<Vec<ListedPicture>, ImagesError> {
    let bad = |error: serde_json::Error| FileError::corrupt(path, &error);
    let picture = |row: ImageRow| -> Result<ListedPicture, ImagesError> {
        let mask = Some(row.mask).filter(|mask| !mask.is_empty());
        Ok(ListedPicture {
            image: row.image,
            id: row.id,
            caption: row.caption,
            sha256: row.sha256,
            first: row.first,
            problem: row.problem,
            place: serde_json::from_str(&row.place).map_err(bad)?,
            mask: mask.map(|mask| serde_json::from_str(&mask)).transpose().map_err(bad)?,
        })
    };
    read_image_rows(path, images)?.into_iter().map(picture).collect()
}
