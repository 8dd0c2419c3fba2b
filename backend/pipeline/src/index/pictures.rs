//! `pictures.parquet`: the pictures that examples show, small, from the image set that the cache was made of.

use super::IndexError;
use crate::{
    cache::Cache,
    images::{ImageSet, ImagesError, ListedPicture, PlaceReader, hex, read_list},
    pocket::pack::encode_webp,
};
use image::{DynamicImage, Rgba, RgbaImage};
use model::picture::decode_picture;
use sha2::{Digest, Sha256};
use std::{fs::File, path::Path};
use store::files::{PictureRow, PictureWriter};

/// Longest side of a picture that is kept, in pixels.
const SIDE: u32 = 384;
const QUALITY: f32 = 80.0;
/// Without the image set, a patch is so many pixels of plain grey.
const PATCH: u32 = 24;
/// Pictures whose places are read at once.
const LISTED: u32 = 1024;
/// Hex digits of the set's digest in a picture's id: pictures of different sets have different ids.
const DIGITS: usize = 8;

/// Which pictures are shown: one bit each.
pub(super) struct Shown(Vec<u64>);

impl Shown {
    pub fn new(pictures: u32) -> Self {
        Self(vec![0; pictures.div_ceil(64) as usize])
    }

    pub fn add(&mut self, image: u32) {
        if let Some(bits) = self.0.get_mut(image as usize / 64) {
            *bits |= 1 << (image % 64);
        }
    }

    fn has(&self, image: u32) -> bool {
        self.0.get(image as usize / 64).is_some_and(|bits| bits >> (image % 64) & 1 == 1)
    }
}

/// The id under which a picture of the cache is stored and shown.
pub(super) fn picture_id(cache: &Cache, image: usize) -> String {
    let digest = &cache.manifest.image_set.listed.digest;
    let digits: String = digest.chars().filter(char::is_ascii_hexdigit).take(DIGITS).collect();
    format!("{digits}-{image}")
}

/// Writes the shown pictures, and tells how many there are. `grid`: rows and columns of patches.
///
/// # Errors
/// When a picture is not what it was when the cache was made.
pub(super) fn write_pictures(
    cache: &Cache,
    images: Option<&ImageSet>,
    grid: [u32; 2],
    shown: &Shown,
    path: &Path,
    file: &mut File,
) -> Result<u32, IndexError> {
    let mut writer = PictureWriter::new(path, file)?;
    let mut reader = images.map(|images| PlaceReader::new(images.root()));
    let plain = encode(&plain(grid), path)?;
    let (all, mut written) = (cache.manifest.image_set.listed.pictures, 0);
    for first in (0..all).step_by(LISTED as usize) {
        let images = first..first.saturating_add(LISTED).min(all);
        if !images.clone().any(|image| shown.has(image)) {
            continue;
        }
        for listed in read_list(&cache.folder.images(), images)?.into_iter().filter(|one| shown.has(one.image)) {
            let (webp, [width, height]) = match &mut reader {
                Some(reader) => {
                    let small = small(&read(reader, &listed)?);
                    let size = [small.width(), small.height()];
                    (encode(&small, path)?, size)
                }
                None => (plain.clone(), [grid[1] * PATCH, grid[0] * PATCH]),
            };
            let caption = if listed.caption.is_empty() { listed.id } else { listed.caption };
            let picture = api::Picture {
                id: picture_id(cache, listed.image as usize),
                width,
                height,
                caption,
                kind: "photo".into(),
                ..api::Picture::default()
            };
            writer.push(PictureRow { picture, webp })?;
            written += 1;
        }
    }
    writer.finish()?;
    Ok(written)
}

fn read(reader: &mut PlaceReader, listed: &ListedPicture) -> Result<DynamicImage, IndexError> {
    let bytes = reader.read(&listed.place)?;
    let bad = |reason: String| ImagesError::File { path: listed.place.file().into(), reason };
    if hex(&Sha256::digest(&bytes)) != listed.sha256 {
        let reason = format!("picture {} has changed since the cache was made; leave --images out", listed.id);
        return Err(bad(reason).into());
    }
    Ok(decode_picture(&bytes).map_err(|error| bad(error.to_string()))?)
}

/// At most [`SIDE`] pixels on a side; smaller ones stay as they are.
fn small(picture: &DynamicImage) -> RgbaImage {
    if picture.width().max(picture.height()) <= SIDE {
        return picture.to_rgba8();
    }
    picture.resize(SIDE, SIDE, image::imageops::FilterType::Triangle).to_rgba8()
}

/// What heat maps lie on when there is no picture.
fn plain([rows, columns]: [u32; 2]) -> RgbaImage {
    RgbaImage::from_pixel((columns * PATCH).max(1), (rows * PATCH).max(1), Rgba([128, 128, 128, 255]))
}

fn encode(picture: &RgbaImage, path: &Path) -> Result<Vec<u8>, IndexError> {
    encode_webp(picture, QUALITY).map_err(|error| IndexError::other(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_pictures_are_known_by_their_bits() {
        let mut shown = Shown::new(130);
        [0, 63, 64, 129].into_iter().for_each(|image| shown.add(image));
        assert_eq!((0..200).filter(|image| shown.has(*image)).collect::<Vec<_>>(), [0, 63, 64, 129]);
    }

    #[test]
    fn large_pictures_are_made_smaller() {
        let size = |width, height| {
            let small = small(&DynamicImage::new_rgb8(width, height));
            [small.width(), small.height()]
        };
        assert_eq!((size(768, 192), size(40, 30)), ([384, 96], [40, 30]));
    }
}
